"""What a machine without a network must be brought, in two folders of at most 60 MiB: `python -m bench.gpu --kit DIR`.

    DIR/1/  wheels of what a CUDA image of Python 3.12 with torch, torchvision and pandas lacks; half of CIFAR-100
    DIR/2/  the other half; the published teacher of the first sprint, as --weights takes it

CIFAR-100's images are lossless WebP, 96 MiB in all (the original archive has 161); the rest of its files is kept as it
is. `--restore` makes the original files again, to the byte: their MD5 is checked, as torchvision does.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench import datasets
from bench.measure.acceptance import TEACHER
from zoo.errors import BadInput

PYTHON, PLATFORMS = "3.12", ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_28_x86_64")
LACKING = ("pydantic",)  # its own requirements come along; submitit is needed for SLURM alone
MOST_MIB = 60  # of a folder
PARTS = 2
ACROSS, DOWN = 50, 50  # images of a picture
CIFAR100 = datasets.ENTRIES["cifar100"]
SIDE = CIFAR100.known.side
PIXELS = 3 * SIDE * SIDE
START, END, META = "start", "end", "meta"  # of a file's bytes around its images; the file that has none
SPLITS = {"train": CIFAR100.known.train, "test": CIFAR100.known.test}  # and their images
# A tenth of the time of the smallest files, and 2 % more bytes.
WEBP = {"lossless": True, "exact": True, "method": 4, "quality": 75}


def make(kit: Path, data: Path | None, weights: Path | None) -> Iterator[str]:
    """Write the kit; a line on each part of it. BadInput where something it needs is not there."""
    folder = datasets.root("cifar100", data) / CIFAR100.folder
    for name in (*SPLITS, META):
        if not (folder / name).is_file():
            raise BadInput(f'no CIFAR-100 in "{folder}": give --data the folder that holds {folder.name}/')
    teacher = weights / "sskd" / f"{TEACHER}.pth" if weights else None
    if teacher is None or not teacher.is_file():
        raise BadInput(f"--weights: no sskd/{TEACHER}.pth is there, the teacher of the first sprint")
    if kit.exists() and any(kit.iterdir()):
        raise BadInput(f'"{kit}" is not empty: give a new folder')
    folders = [kit / str(number) for number in range(1, PARTS + 1)]
    for part in folders:
        part.mkdir(parents=True)
    for part, target in zip(pack(folder), folders, strict=True):
        _write(target / f"cifar100.{target.name}.zip", part)
    (folders[1] / "weights" / "sskd").mkdir(parents=True)
    shutil.copyfile(teacher, folders[1] / "weights" / "sskd" / teacher.name)
    _wheels(folders[0] / "wheels")
    for part in folders:
        size = sum(path.stat().st_size for path in part.rglob("*") if path.is_file()) / 2**20
        if size > MOST_MIB:
            raise BadInput(f'"{part}" has {size:.1f} MiB and may have {MOST_MIB}')
        files = ", ".join(f"{path.relative_to(part)}" for path in sorted(part.rglob("*")) if path.is_file())
        yield f"{part}: {size:.1f} MiB ({files})"


def _wheels(folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder), "--only-binary=:all:"]
    command += ["--python-version", PYTHON, *(word for name in PLATFORMS for word in ("--platform", name)), *LACKING]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BadInput(f"pip cannot fetch {', '.join(LACKING)}: {(done.stderr.strip().splitlines() or ['?'])[-1]}")


def pack(folder: Path) -> list[dict[str, bytes]]:
    """Members of each part by name; what is not an image is in the first one."""
    parts: list[dict[str, bytes]] = [{META: (folder / META).read_bytes()}, *({} for _ in range(PARTS - 1))]
    pictures: dict[str, bytes] = {}
    for split in SPLITS:
        raw = (folder / split).read_bytes()
        images = np.asarray(pickle.loads(raw, encoding="latin1")["data"])
        at = raw.find(images.tobytes())
        if at < 0 or images.dtype != np.uint8 or images.shape[1:] != (PIXELS,):
            raise BadInput(f'"{folder / split}" is not CIFAR-100 as its authors wrote it')
        parts[0][f"{split}.{START}"], parts[0][f"{split}.{END}"] = raw[:at], raw[at + images.nbytes :]
        for number, first in enumerate(range(0, len(images), ACROSS * DOWN)):
            pictures[f"{split}.{number:03}.webp"] = _picture(images[first : first + ACROSS * DOWN])
    names, share = list(pictures), -(-len(pictures) // PARTS)
    for number, part in enumerate(parts):
        part |= {name: pictures[name] for name in names[number * share : (number + 1) * share]}
    return parts


def _picture(images: NDArray[np.uint8]) -> bytes:
    """(n, 3072) pixels, colour by colour -> a WebP of DOWN x ACROSS images, the last ones black where n is less."""
    grid = np.zeros((DOWN * ACROSS, PIXELS), np.uint8)
    grid[: len(images)] = images
    grid = grid.reshape(DOWN, ACROSS, 3, SIDE, SIDE).transpose(0, 3, 1, 4, 2)
    made = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(grid.reshape(DOWN * SIDE, ACROSS * SIDE, 3))).save(made, "webp", **WEBP)
    return made.getvalue()


def _pixels(picture: bytes) -> bytes:
    """The inverse of `_picture`, black images included."""
    seen = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
    grid = seen.reshape(DOWN, SIDE, ACROSS, SIDE, 3).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(grid).tobytes()


def _write(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content, zipfile.ZIP_STORED if name.endswith(".webp") else zipfile.ZIP_LZMA)


def restore(parts: Sequence[Path], root: Path) -> str:
    """Write `root`/cifar-100-python/ from the parts of a kit; a line on it. BadInput where they are not whole."""
    members: dict[str, bytes] = {}
    for path in parts:
        try:
            with zipfile.ZipFile(path) as file:
                members |= {name: file.read(name) for name in file.namelist()}
        except (OSError, zipfile.BadZipFile) as error:
            raise BadInput(f'"{path}" is no part of a kit ({error})') from None
    files = {META: members.get(META, b"")}
    for split in SPLITS:
        pictures = sorted(name for name in members if name.startswith(f"{split}.") and name.endswith(".webp"))
        pixels = b"".join(_pixels(members[name]) for name in pictures)
        start, end = (members.get(f"{split}.{place}", b"") for place in (START, END))
        files[split] = start + pixels[: SPLITS[split] * PIXELS] + end
    known = known_md5()
    for name, content in files.items():
        if hashlib.md5(content).hexdigest() != known[name]:
            raise BadInput(f"{name} of CIFAR-100 does not come out whole: give --restore all {PARTS} parts of one kit")
    folder = root / CIFAR100.folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return f"{folder}: {len(files)} files, their MD5 as published"


def known_md5() -> dict[str, str]:
    """The MD5 of each file, as torchvision has it."""
    from torchvision.datasets import CIFAR100

    return {name: md5 for name, md5 in (*CIFAR100.train_list, *CIFAR100.test_list)} | {META: CIFAR100.meta["md5"]}
