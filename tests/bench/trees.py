"""Small folders of images for the tests, in the layouts that people have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def pixels(seed: int, height: int = 40, width: int = 48) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def folder(root: Path, classes: int = 3, train: int = 8, test: int = 2, held_out: str = "test") -> Path:
    """train/<class>/*.png and test/<class>/*.png, the class "a" in its own tone, and so on."""
    for part, images in (("train", train), (held_out, test)):
        for label in range(classes):
            place = root / part / "abcdefgh"[label]
            place.mkdir(parents=True)
            for number in range(images):
                noise = pixels(1000 * label + number + (500 if part == "train" else 0)) // 4 + 60 * label
                Image.fromarray(noise.astype(np.uint8)).save(place / f"{number}.png")
    return root


def tiny_imagenet(root: Path, wnids: tuple[str, ...] = ("n02", "n01"), train: int = 4, test: int = 3) -> Path:
    """As its archive unpacks; returns the folder that holds tiny-imagenet-200/."""
    top = root / "tiny-imagenet-200"
    (top / "val" / "images").mkdir(parents=True)
    (top / "test" / "images").mkdir(parents=True)
    (top / "test" / "images" / "test_0.JPEG").write_bytes(b"not looked at")
    (top / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in wnids))
    rows = []
    for place, wnid in enumerate(wnids):
        images = top / "train" / wnid / "images"
        images.mkdir(parents=True)
        (images.parent / f"{wnid}_boxes.txt").write_text("boxes\n")
        for number in range(train):
            Image.fromarray(pixels(100 * place + number, 64, 64)).save(images / f"{wnid}_{number}.JPEG")
        for number in range(test):
            name = f"val_{number * len(wnids) + place}.JPEG"
            Image.fromarray(pixels(100 * place + 50 + number, 64, 64)).save(top / "val" / "images" / name)
            rows.append(f"{name}\t{wnid}\t0\t0\t62\t62\n")
    (top / "val" / "val_annotations.txt").write_text("".join(sorted(rows)))
    return root
