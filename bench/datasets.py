"""What is known of the data sets without opening them: classes and sizes. Nothing here imports torch or an image."""

from __future__ import annotations

from bench.run import Data

NUM_CLASSES = 100
TRAIN_IMAGES = {"cifar100": 50_000, "embedded-1": 2_000}
TEST_IMAGES = {"cifar100": 10_000, "embedded-1": 1_000}


def train_size(data: Data) -> int:
    """Number of distinct training images."""
    return data.train_images or TRAIN_IMAGES[data.dataset]
