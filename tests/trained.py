"""Finished runs of a second each, made in this process, for the tests of what is done with them."""

from __future__ import annotations

from pathlib import Path

import torch

from bench import experiment, store
from bench import grid as grids
from tests import tiny

GRID = tiny.GRID.replace("[vanilla, kd, fitnet]", "[vanilla, kd, simkd]")
PROTOCOL = tiny.PROTOCOL + "  simkd: {params: {}}\n"


def make(folder: Path, text: str = GRID) -> Path:
    """A results folder: a teacher, which is the student of the Student row too, KD and SimKD; or those of a grid."""
    grid, out = grids.expand(grids.load(str(tiny.write(folder, text, PROTOCOL)))), folder / "out"
    out.mkdir()
    grids.keep(grid, out)
    for run_id, run in grid.runs.items():
        store.run_folder(out, run_id).path.mkdir(parents=True)
        store.write_json(store.run_folder(out, run_id).config, run.model_dump(mode="json"))
        experiment.perform(
            [experiment.Job(run, _Heard(), grid.weights.get(run_id))], experiment.Site(out, torch.device("cpu"))
        )
    return out


class _Heard(experiment.Listener):
    def left(self, error: Exception) -> None:
        raise error


def run_of(out: Path, method: str) -> Path:
    """The folder of the one run of a method."""
    (path,) = (out / "runs").glob(f"{method}-*")
    return path
