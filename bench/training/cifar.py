"""The files of CIFAR-100 on a disk: whole, or which of them is wrong and what to do about it."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from zoo.errors import BadInput

FOLDER = "cifar-100-python"
ARCHIVE = "cifar-100-python.tar.gz"
# MD5 and size of the files of Krizhevsky's archive; torchvision checks the same sums.
FILES = {
    "train": ("16019d7e3df5f24257cddd939b257f8d", 155_249_918),
    "test": ("f0ef6b0ae62326f3e7ffdfab6717acfc", 31_049_707),
    "meta": ("7973b15100ade9c7d40fb424638fde48", 1_473),
}
ARCHIVE_MD5 = "eb9058c3a382ffc7106e4002c42a8d85"


def make_whole(root: Path) -> str | None:
    """None where `root` holds CIFAR-100 whole, unpacked now if its archive lies there; else one line on what is wrong.

    Raises BadInput where a file is there and cannot be read now, or an archive is and cannot be unpacked.
    """
    faults = _faults(root / FOLDER)
    if not faults:
        return None
    archive = next(filter(Path.is_file, (root / ARCHIVE, root / FOLDER / ARCHIVE)), None)
    if archive is None:
        return "; ".join(faults) + _elsewhere(root)
    if _md5(archive) != ARCHIVE_MD5:
        size = archive.stat().st_size
        return f"{'; '.join(faults)}, and {archive} is cut short or damaged ({size:,} bytes): copy it again"
    _unpack(archive, root)
    print(f"unpacked {archive}", flush=True)
    return "; ".join(_faults(root / FOLDER)) or None


def _faults(folder: Path) -> list[str]:
    if not folder.is_dir():
        return [f"there is no folder {FOLDER}/"]
    return [f"{FOLDER}/{name} {fault}" for name in FILES if (fault := _fault(folder / name, *FILES[name]))]


def _fault(file: Path, md5: str, size: int) -> str | None:
    try:
        if not file.exists():
            return "is missing"
        if not file.is_file():
            return "is no file"
        held = file.stat().st_size
        if held != size:
            return f"has {held:,} bytes instead of {size:,}{': it is cut short' if held < size else ''}"
        return None if _md5(file) == md5 else "has the right size and a wrong byte somewhere (its MD5 differs)"
    except OSError as error:
        raise BadInput(f"{file} cannot be read now ({error.strerror}): see to the disk or its permissions") from None


def _md5(file: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with open(file, "rb") as opened:
            while piece := opened.read(1 << 20):
                digest.update(piece)
    except OSError as error:
        raise BadInput(f"{file} cannot be read now ({error.strerror}): see to the disk or its permissions") from None
    return digest.hexdigest()


def _unpack(archive: Path, root: Path) -> None:
    """Each file whole or not at all, also where two do this at once."""
    try:
        (root / FOLDER).mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as opened, tempfile.TemporaryDirectory(dir=root, prefix=".unpack-") as place:
            for name in FILES:
                source = opened.extractfile(f"{FOLDER}/{name}")
                with open(Path(place) / name, "wb") as target:
                    shutil.copyfileobj(source, target)
                os.replace(Path(place) / name, root / FOLDER / name)
    except OSError as error:
        raise BadInput(
            f"{archive} cannot be unpacked there ({error.strerror}): tar xzf {archive} -C DIR, then --data DIR"
        ) from None


def _elsewhere(root: Path) -> str:
    """Where else below `root` the data set lies, if it does: copied with a folder too many, or without its own."""
    if all((root / name).is_file() for name in FILES):
        return f"; its files lie in {root} itself: put them into a folder {FOLDER}/"
    for found in _below(root):
        return f"; there is one in {found}: give --data {found}"
    return ""


def _below(root: Path, depth: int = 2) -> Iterator[Path]:
    try:
        folders = sorted(entry for entry in root.iterdir() if entry.is_dir()) if depth and root.is_dir() else []
    except OSError:
        return
    for folder in folders:
        if (folder / FOLDER).is_dir() or (folder / ARCHIVE).is_file():
            yield folder
        elif folder.name != FOLDER:
            yield from _below(folder, depth - 1)
