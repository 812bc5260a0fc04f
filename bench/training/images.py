"""Folders of images as one uint8 tensor a part: decoded and resized once, then read from the cache by every worker.

An image is turned as its EXIF says, made RGB (grey, palette and CMYK as Pillow converts them, 16-bit grey by its high
byte, transparency dropped), cut to a centred square and resized to `side` (bilinear, with antialiasing). One that has
that size already keeps its pixels. The cache is named by digest and side: a folder that changed is another entry.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import shutil
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench import trees
from bench.datasets import CHANNELS, facts, tree_of
from bench.run import Data
from bench.surroundings import machine, paths
from zoo.errors import BadInput

RECIPE = 1  # of decoding; another one gives other pixels
FACTS = "facts.json"


class Prepared(NamedTuple):
    """Images uint8 (N, 3, side, side) and labels (N,) of both parts, and the statistics of the training images."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    mean: tuple[float, float, float]  # of pixels in 0..1
    std: tuple[float, float, float]


def load(data: Data, given: Path | None) -> Prepared:
    """The images of identified data, from the cache, where they are put first if they are not there.

    Raises BadInput where the folder is not the one that was identified, or holds what is no image.
    """
    if data.source is None:
        raise BadInput(f"{data.dataset}: its folder has not been read: run it as a grid, with --data DIR")
    kept = paths.cache("images", f"{data.source.digest[:32]}-{facts(data).side}-{RECIPE}")
    found = _read(kept)
    if found is None:
        _prepare(data, given, kept)
        found = _read(kept)
    if found is None:
        raise BadInput(f'"{kept}" cannot be read: remove it')
    return found


def decode(raw: bytes, side: int) -> NDArray[np.uint8]:
    """The pixels (3, side, side) of an image file's bytes; raises whatever Pillow does where they are none."""
    from PIL import Image, ImageOps

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata; a person can do nothing about them
        with Image.open(io.BytesIO(raw)) as opened:
            opened.load()
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):
                image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
            if image.mode == "F":
                raise ValueError("its pixels are floating-point numbers")
            if image.mode == "P" and "transparency" in image.info:
                image = image.convert("RGBA")
            image = image.convert("RGB")
    shorter = min(image.size)
    left, top = (round((length - shorter) / 2) for length in image.size)
    square = image.crop((left, top, left + shorter, top + shorter))
    return np.asarray(square.resize((side, side), Image.Resampling.BILINEAR)).transpose(2, 0, 1)


def _prepare(data: Data, given: Path | None, kept: Path) -> None:
    tree, side = tree_of(data, given), facts(data).side
    if tree.digest != data.source.digest:
        raise BadInput(f'"{tree.root}" is not the folder that the plan was made for: run the command again')
    stage = kept.with_name(f".{kept.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    images = len(tree.train) + len(tree.test)
    try:
        stage.mkdir(parents=True)
        _check_room(kept.parent, images * CHANNELS * side**2)
        if images >= trees.MANY:
            print(f"preparing {images:,} images at {side}x{side}, once ...", file=sys.stderr, flush=True)
        faults = [fault for part in ("train", "test") for fault in _decode(tree, part, side, stage)]
        if faults:
            more = f" ({len(faults)} such files)" if len(faults) > 1 else ""
            raise BadInput(f"{faults[0]}{more}: repair or remove it")
        _write_facts(tree, stage)
        for file in stage.iterdir():
            with open(file, "rb+") as opened:
                os.fsync(opened.fileno())
        try:
            stage.rename(kept)
        except OSError:  # another process was first, or what lies there is damaged
            if _read(kept) is None:
                shutil.rmtree(kept, ignore_errors=True)
                stage.rename(kept)
    except OSError as error:
        raise BadInput(
            f'the prepared images cannot be written to "{kept.parent}" ({error.strerror or error}): set KD_BENCH_CACHE '
            f"to a folder with {images * CHANNELS * side**2 / 1e9:.1f} GB of room"
        ) from None
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _decode(tree: trees.Tree, part: str, side: int, stage: Path) -> list[str]:
    """Fill the array of a part; what is wrong with its files, a line each."""
    files = tree.train if part == "train" else tree.test
    array = np.lib.format.open_memmap(stage / f"{part}.npy", "w+", np.uint8, (len(files), CHANNELS, side, side))

    def one(place: int) -> str | None:
        path = tree.root / files[place].path
        try:
            raw = path.read_bytes()
        except OSError as error:
            return f'"{path}" cannot be read ({error.strerror})'
        if hashlib.sha256(raw).hexdigest() != files[place].sha256:
            return f'"{path}" has just changed'
        try:
            array[place] = decode(raw, side)
        except Exception as error:  # a decoder meets broken bytes with any of them
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            reason = "no image of a kind that Pillow knows" if "cannot identify" in reason else reason
            return f'"{path}" is not a whole image ({reason})'
        return None

    with ThreadPoolExecutor(machine.cores()) as pool:
        faults = [fault for fault in pool.map(one, range(len(files)), chunksize=1) if fault]
    array.flush()
    return faults


def _write_facts(tree: trees.Tree, stage: Path) -> None:
    images = np.load(stage / "train.npy", mmap_mode="r")
    total, squares = np.zeros(CHANNELS, np.int64), np.zeros(CHANNELS, np.int64)
    for start in range(0, len(images), 1000):
        some = images[start : start + 1000].astype(np.int64)
        total += some.sum((0, 2, 3))
        squares += (some * some).sum((0, 2, 3))
    pixels = images.size // CHANNELS
    mean, square = total / pixels / 255, squares / pixels / 255**2
    # Four digits, as statistics are given everywhere. A channel of one level is left as it is.
    std = [round(float(value), 4) or 1.0 for value in np.sqrt(np.maximum(square - mean**2, 0))]
    labels = {part: [file.label for file in files] for part, files in (("train", tree.train), ("test", tree.test))}
    facts = {"mean": [round(float(value), 4) for value in mean], "std": std, "classes": tree.classes, **labels}
    (stage / FACTS).write_text(json.dumps(facts))


def _read(kept: Path) -> Prepared | None:
    try:
        facts = json.loads((kept / FACTS).read_bytes())
        # Into memory: a mapped file that is cut short, or stale on a network disk, ends the process without a word.
        train, test = (torch.from_numpy(np.load(kept / f"{part}.npy")) for part in ("train", "test"))
        labels = torch.tensor(facts["train"]), torch.tensor(facts["test"])
        if (len(train), len(test)) != (len(labels[0]), len(labels[1])):
            return None
        return Prepared(train, labels[0], test, labels[1], tuple(facts["mean"]), tuple(facts["std"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(0, f"{free / 1e9:.1f} GB are free there")
