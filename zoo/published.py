"""The published checkpoints that the project knows: what each is, where it comes from, and how to know it again.

`python -m zoo.published` lists them (published.csv; docs/weights.md says where each column comes from).
`python -m zoo.published FILE ...` says of files whether they are these. `python -m zoo.published --get NAME ... DIR`
puts those that lie at an address of their own at DIR/NAME, and keeps only what has the known digest.
"""

from __future__ import annotations

import csv
import hashlib
import os
import secrets
import shutil
import sys
import urllib.request
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePath

from zoo import formats
from zoo.errors import BadInput, choose

PATH = Path(__file__).with_name("published.csv")
VARIABLE = "KD_WEIGHTS"  # environment: the folder of published checkpoints, by the names of the list
DATASET = "cifar100"  # of all of them


@dataclass(frozen=True)
class Published:
    """One checkpoint of CIFAR-100. Accuracies in percent; "" and None: not known."""

    name: str  # its place under $KD_WEIGHTS, with forward slashes
    arch: str
    top1: float | None  # measured here, on the test set (fp32, CPU)
    stated: float | None  # what its source says of it
    form: str  # what the file holds
    sha256: str  # of the file; "" where the project never had it
    git: str  # SHA-1 of the file as git names it in the source's repository; "" where it is in none
    source: str
    url: str
    part: str  # which file of the address, where that is a folder or an archive
    note: str

    @property
    def about(self) -> str:
        """What it is, in words."""
        stated = f", stated top-1 {self.stated:.2f}" if self.stated else ""
        accuracy = f", top-1 {self.top1:.2f}" if self.top1 else stated
        return f"{self.name} ({self.arch} of {self.source}{accuracy})"

    @property
    def remedy(self) -> str:
        """Where to get it and where to put it, in words."""
        part = f" ({self.part})" if self.part else ""
        return (
            f"{self.name} is {self.arch} of {self.source}: get it from {self.url}{part} and put it at"
            f" ${VARIABLE}/{self.name} (docs/weights.md)"
        )


@cache
def published() -> tuple[Published, ...]:
    """The list, in the order of the file."""
    with PATH.open(encoding="utf-8", newline="") as file:
        return tuple(
            Published(**{**row, **{name: float(row[name]) if row[name] else None for name in ("top1", "stated")}})
            for row in csv.DictReader(file)
        )


def named(path: str | os.PathLike[str]) -> Published | None:
    """The checkpoint that a path ends with the name of; None for any other."""
    text = PurePath(path).as_posix()
    return next((entry for entry in published() if text == entry.name or text.endswith(f"/{entry.name}")), None)


def identified(path: str | os.PathLike[str]) -> Published | None:
    """The checkpoint that a file is, by its bytes and whatever its name; None for any other. BadInput if unreadable."""
    sha256, git = _digests(path)
    return next((entry for entry in published() if sha256 == entry.sha256 or git == entry.git), None)


def verdict(path: str | os.PathLike[str]) -> str:
    """In words, whether a file is a published one, or has the name of one that it is not; "" for any other file."""
    entry = identified(path)
    if entry:
        return f"published as {entry.about}" + (f"; {entry.note}" if entry.note else "")
    entry = named(path)
    if entry is None:
        return ""
    if not entry.sha256 and not entry.git:
        return f"it has the name of {entry.name} of {entry.source}, whose SHA-256 is not known here"
    kind, own, theirs = "SHA-256", _digests(path)[0], entry.sha256
    if not theirs:
        kind, own, theirs = "git SHA-1", _digests(path)[1], entry.git
    return f"not the published {entry.name}: its {kind} begins {own[:12]}, that of {entry.source} {theirs[:12]}"


def get(name: str, folder: Path) -> Path:
    """Fetch a checkpoint of the list to folder/name, and return that path; one that is there and right is left.

    BadInput, and no file, where it lies in an archive or behind a page, cannot be fetched, or is not the known one.
    """
    entries = {entry.name: entry for entry in published()}
    entry = entries[choose("published checkpoint", name, entries)]
    target = folder / entry.name
    if target.exists():
        if identified(target) == entry:
            return target
        raise BadInput(f"{target} is there ({verdict(target)}): move it away, or give another folder")
    if entry.part:
        raise BadInput(f"{entry.name} is no single file there: get it by hand from {entry.url} ({entry.part})")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            with urllib.request.urlopen(entry.url, timeout=60) as answer, temporary.open("wb") as file:
                shutil.copyfileobj(answer, file)
        except (OSError, ValueError) as error:  # URLError is an OSError
            raise BadInput(f"{entry.url} cannot be fetched ({error}): fetch it by hand to {target}") from None
        if identified(temporary) != entry:
            raise BadInput(
                f"what {entry.url} gives is not the known {entry.name}, its digest differs: nothing was kept"
            )
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def where_to_get(path: str | os.PathLike[str]) -> str:
    """What to add to the words about a missing file: where to get it, if it is a published one; else ""."""
    entry = named(path)
    return f"; {entry.remedy}" if entry else ""


def _digests(path: str | os.PathLike[str]) -> tuple[str, str]:
    """SHA-256 of a file, and the SHA-1 that git names it by: that of a heading and the file."""
    sha256 = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            git = hashlib.sha1(b"blob %d\0" % os.fstat(file.fileno()).st_size, usedforsecurity=False)
            while piece := file.read(1 << 20):
                sha256.update(piece)
                git.update(piece)
    except OSError as error:
        raise formats.unreadable(path, error) from error
    return sha256.hexdigest(), git.hexdigest()


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 where a file is not a known one, 2 for a wrong request."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["--get"] and len(arguments) >= 3:
        try:
            for name in arguments[1:-1]:
                target = get(name, Path(arguments[-1]))
                print(f"{target}: {verdict(target)}")
        except (BadInput, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        return 0
    if any(argument.startswith("-") for argument in arguments):
        print("usage: python -m zoo.published [FILE ... | --get NAME ... DIR]", file=sys.stderr)
        return 0 if arguments in (["-h"], ["--help"]) else 2
    if not arguments:
        for entry in published():
            print(entry.about + (f"; {entry.note}" if entry.note else ""))
            print(f"  {entry.url}{f' ({entry.part})' if entry.part else ''}")
            known = f"SHA-256 {entry.sha256}" if entry.sha256 else f"git SHA-1 {entry.git}" if entry.git else ""
            print(f"  {known or 'no digest is known here'}")
        return 0
    try:
        found = {path: (identified(path), verdict(path)) for path in arguments}
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path, (_, words) in found.items():
        print(f"{path}: {words or 'not a published checkpoint that is known here'}")
    return 0 if all(entry for entry, _ in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
