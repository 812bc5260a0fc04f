"""What is known of the data sets without opening them: classes and sizes. Nothing here imports torch or an image."""

from __future__ import annotations

from bench.run import Data
from zoo.errors import BadInput

NUM_CLASSES = 100
TRAIN_IMAGES = {"cifar100": 50_000, "embedded-1": 2_000}
TEST_IMAGES = {"cifar100": 10_000, "embedded-1": 1_000}


def train_size(data: Data) -> int:
    """Number of distinct training images."""
    return data.train_images or TRAIN_IMAGES[data.dataset] - (data.validation or 0)


def check_sizes(data: Data, where: str = "data") -> None:
    """BadInput where a data set cannot be divided as `data` says: each part has equally many images of each class."""
    size, held_out = TRAIN_IMAGES[data.dataset], data.validation or 0
    if held_out % NUM_CLASSES or held_out > size // 2:
        raise BadInput(
            f"{where}: validation: {held_out} is not a class-balanced part of {size} training images that leaves as "
            f"many to train on: use a multiple of {NUM_CLASSES} up to {size // 2}"
        )
    left = size - held_out
    if data.train_images is not None and (data.train_images % NUM_CLASSES or data.train_images > left):
        raise BadInput(
            f"{where}: train_images: {data.train_images} is not a class-balanced part of {left} images: "
            f"use a multiple of {NUM_CLASSES} up to {left}"
        )
