"""Whether a folder is one of results, before anything slow is imported or anything is written."""

from __future__ import annotations

import shlex
from pathlib import Path

from bench import store
from bench.surroundings.commandline import program
from zoo.errors import BadInput

MARKS = ("runs", store.KEPT, "submitted")  # one of them is in every folder that runs were begun or submitted for
MOST_ENTRIES = 1000  # of a folder that are looked at for what was meant


def require(folder: Path, option: str) -> None:
    """BadInput with what to do where nothing was ever run in `folder`, which `option` of the command line names."""
    said = f'{option} "{folder}"'
    if _is_results(folder):
        return
    if meant := _meant(folder):
        raise BadInput(f'{said} is no results folder: did you mean "{meant}"?')
    start = f"run a grid first ({program()} --grid quick --out {shlex.quote(str(folder))}), or give another folder"
    if not folder.exists():
        raise BadInput(f"{said}: there is no such folder: {start}")
    if not any(folder.iterdir()):
        raise BadInput(f"{said} is empty: {start}")
    raise BadInput(f"{said} holds no results (no runs/, no {store.KEPT}): {start}")


def _is_results(folder: Path) -> bool:
    return any((folder / mark).exists() for mark in MARKS)


def _meant(folder: Path) -> Path | None:
    """The results folder around a part of one, or the only one directly below."""
    if folder.exists():
        for around in folder.absolute().parents[:2]:  # of runs/, or of a run
            if (around / store.KEPT).exists() and (around / "runs").is_dir():
                return around
    below = []
    if folder.is_dir():
        below = [path for _, path in zip(range(MOST_ENTRIES), folder.iterdir(), strict=False) if path.is_dir()]
    found = [path for path in below if (path / store.KEPT).exists()]
    return found[0] if len(found) == 1 else None
