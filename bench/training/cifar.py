"""The files of CIFAR-10 and CIFAR-100 on a disk: whole, or which of them is wrong and what to do about it."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from zoo.errors import BadInput


@dataclass(frozen=True)
class Layout:
    """The files of one of Krizhevsky's archives; torchvision checks the same sums."""

    name: str
    folder: str
    archive: str
    archive_md5: str
    files: Mapping[str, tuple[str, int | None]]  # MD5, and size in bytes where it is known


CIFAR100 = Layout(
    "CIFAR-100",
    "cifar-100-python",
    "cifar-100-python.tar.gz",
    "eb9058c3a382ffc7106e4002c42a8d85",
    {
        "train": ("16019d7e3df5f24257cddd939b257f8d", 155_249_918),
        "test": ("f0ef6b0ae62326f3e7ffdfab6717acfc", 31_049_707),
        "meta": ("7973b15100ade9c7d40fb424638fde48", 1_473),
    },
)
CIFAR10 = Layout(
    "CIFAR-10",
    "cifar-10-batches-py",
    "cifar-10-python.tar.gz",
    "c58f30108f718f92721af3b95e74349a",
    {
        "data_batch_1": ("c99cafc152244af753f735de768cd75f", None),
        "data_batch_2": ("d4bba439e000b95fd0a9bffe97cbabec", None),
        "data_batch_3": ("54ebc095f3ab1f0389bbae665268c751", None),
        "data_batch_4": ("634d18415352ddfa80567beed471001a", None),
        "data_batch_5": ("482c414d41f54cd18b22e5b47cb7c3cb", None),
        "test_batch": ("40351d587109b95175f43aff81a1287e", None),
        "batches.meta": ("5ff9c542aee3614f3951f8cda6e48888", None),
    },
)
LAYOUTS = {"cifar100": CIFAR100, "cifar10": CIFAR10}


def make_whole(root: Path, layout: Layout = CIFAR100) -> str | None:
    """None where `root` holds it whole, unpacked now if its archive lies there; else one line on what is wrong.

    Raises BadInput where a file is there and cannot be read now, or an archive is and cannot be unpacked.
    """
    faults = _faults(root, layout)
    if not faults:
        return None
    places = (root / layout.archive, root / layout.folder / layout.archive)
    archive = next(filter(Path.is_file, places), None)
    if archive is None:
        return "; ".join(faults) + _elsewhere(root, layout)
    if _md5(archive) != layout.archive_md5:
        size = archive.stat().st_size
        return f"{'; '.join(faults)}, and {archive} is cut short or damaged ({size:,} bytes): copy it again"
    _unpack(archive, root, layout)
    print(f"unpacked {archive}", flush=True)
    return "; ".join(_faults(root, layout)) or None


def _faults(root: Path, layout: Layout) -> list[str]:
    folder = root / layout.folder
    if not folder.is_dir():
        return [f"there is no folder {layout.folder}/"]
    return [
        f"{layout.folder}/{name} {fault}"
        for name, sums in layout.files.items()
        if (fault := _fault(folder / name, *sums))
    ]


def _fault(file: Path, md5: str, size: int | None) -> str | None:
    try:
        if not file.exists():
            return "is missing"
        if not file.is_file():
            return "is no file"
        held = file.stat().st_size
        if size is not None and held != size:
            return f"has {held:,} bytes instead of {size:,}{': it is cut short' if held < size else ''}"
        if _md5(file) == md5:
            return None
        return (
            "is cut short or damaged (its MD5 differs)"
            if size is None
            else ("has the right size and a wrong byte somewhere (its MD5 differs)")
        )
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


def _unpack(archive: Path, root: Path, layout: Layout) -> None:
    """Each file whole or not at all, also where two do this at once."""
    try:
        (root / layout.folder).mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as opened, tempfile.TemporaryDirectory(dir=root, prefix=".unpack-") as place:
            for name in layout.files:
                source = opened.extractfile(f"{layout.folder}/{name}")
                with open(Path(place) / name, "wb") as target:
                    shutil.copyfileobj(source, target)
                os.replace(Path(place) / name, root / layout.folder / name)
    except OSError as error:
        raise BadInput(
            f"{archive} cannot be unpacked there ({error.strerror}): tar xzf {archive} -C DIR, then --data DIR"
        ) from None


def _elsewhere(root: Path, layout: Layout) -> str:
    """Where else below `root` the data set lies, if it does: copied with a folder too many, or without its own."""
    if all((root / name).is_file() for name in layout.files):
        return f"; its files lie in {root} itself: put them into a folder {layout.folder}/"
    for found in _below(root, layout):
        return f"; there is one in {found}: give --data {found}"
    return ""


def _below(root: Path, layout: Layout, depth: int = 2) -> Iterator[Path]:
    try:
        folders = sorted(entry for entry in root.iterdir() if entry.is_dir()) if depth and root.is_dir() else []
    except OSError:
        return
    for folder in folders:
        if (folder / layout.folder).is_dir() or (folder / layout.archive).is_file():
            yield folder
        elif folder.name != layout.folder:
            yield from _below(folder, layout, depth - 1)
