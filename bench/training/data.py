"""The data sets, held whole on the training device, and the augmented epoch made from (seed, epoch)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench import paths
from bench.datasets import NUM_CLASSES, check_sizes
from bench.run import Data, seed_for
from bench.training import cifar, embedded
from bench.training.augment import apply_weak, draw_weak
from bench.training.randaugment import apply_strong, draw_strong
from zoo.errors import BadInput

# Normalisation of RepDistiller, mdistiller and StreamLined (the true statistics differ in the fourth digit).
CIFAR100_MEAN, CIFAR100_STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
CIFAR100_FOLDER = cifar.FOLDER
ROOT_VARIABLE = "CIFAR100_ROOT"


@dataclass(frozen=True)
class Dataset:
    """Training, test and validation images on one device: uint8 (N, 3, 32, 32), their labels int64 (N,)."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    mean: Tensor  # (1, 3, 1, 1), of pixels in 0..1
    std: Tensor
    val_images: Tensor | None = None  # held out of the training images; None where nothing is
    val_labels: Tensor | None = None

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 images -> float32, as torchvision's ToTensor and Normalize do."""
        return (images.float().div_(255) - self.mean) / self.std


@dataclass(frozen=True)
class Epoch:
    """One augmented epoch in training order; a step slices it."""

    images: Tensor  # uint8 (M, 3, 32, 32): M = N, or 2N where weak and strong copies are shuffled together
    strong_images: Tensor | None  # the second view of the same images, for paired views
    labels: Tensor  # (M,)
    indices: Tensor  # (M,), position in the training set

    def batch(self, part: slice) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Images, second views, labels and indices of a step."""
        strong = None if self.strong_images is None else self.strong_images[part]
        return self.images[part], strong, self.labels[part], self.indices[part]

    def steps(self, batch: int) -> int:
        return -(-len(self.labels) // batch)


def load(data: Data, root: Path | None, device: torch.device) -> Dataset:
    """Load a data set to a device. `root` (or $CIFAR100_ROOT, or ./data) holds CIFAR-100 as torchvision keeps it."""
    if data.dataset == "cifar100":
        folder = cifar100_root(root)
        (train_images, train_labels), (test_images, test_labels) = (
            _cifar100(folder, True),
            _cifar100(folder, False),
        )
        mean, std = CIFAR100_MEAN, CIFAR100_STD
    else:
        train_images, train_labels, _ = embedded.generate("train", embedded.TRAIN_IMAGES_PER_CLASS)
        test_images, test_labels, _ = embedded.generate("test", embedded.TEST_IMAGES_PER_CLASS)
        mean, std = embedded.MEAN, embedded.STD
    held_out = ()
    if data.validation:
        kept = torch.ones(len(train_labels), dtype=torch.bool)
        kept[chosen := balanced_subset(train_labels, data.validation, "validation")] = False
        held_out = train_images[chosen], train_labels[chosen]
        train_images, train_labels = train_images[kept], train_labels[kept]
    if data.train_images is not None:
        chosen = balanced_subset(train_labels, data.train_images)
        train_images, train_labels = train_images[chosen], train_labels[chosen]
    tensors = (train_images, train_labels, test_images, test_labels, _channels(mean), _channels(std), *held_out)
    return Dataset(*(tensor.to(device) for tensor in tensors))


def cifar100_root(root: Path | None) -> Path:
    """The folder that holds `cifar-100-python/`: --data, else $CIFAR100_ROOT, else ./data."""
    said = os.environ.get(ROOT_VARIABLE)
    folder = root or (paths.expand(said, ROOT_VARIABLE) if said else Path("data"))
    return folder.parent if folder.name in (CIFAR100_FOLDER, cifar.ARCHIVE) else folder


def prepare(data: Data, root: Path | None) -> None:
    """See once, before any run starts, that the data set is there and whole; download CIFAR-100 where it is not."""
    check_sizes(data)
    if data.dataset != "cifar100":
        return
    folder = cifar100_root(root)
    wrong = cifar.make_whole(folder)
    if wrong is None:
        return
    if root is not None:
        raise BadInput(
            f'no whole CIFAR-100 in "{folder}": {wrong}. Give --data the folder that holds {CIFAR100_FOLDER}/ or '
            f"{cifar.ARCHIVE}, or leave --data out to download it where there is a network"
        )
    from torchvision.datasets import CIFAR100

    try:
        CIFAR100(folder, train=True, download=True)
    except Exception as error:
        raise BadInput(
            f'CIFAR-100 is not in "{folder}" ({wrong}) and cannot be downloaded ({_one_line(error)}): give --data DIR '
            f"or set {ROOT_VARIABLE} to a folder that holds {CIFAR100_FOLDER}/ or {cifar.ARCHIVE}"
        ) from None


def balanced_subset(labels: Tensor, size: int, purpose: str = "subset") -> Tensor:
    """Indices, ascending, of `size` images with equally many of each class; for a purpose the same in every run."""
    per_class = size // NUM_CLASSES
    order = torch.randperm(len(labels), generator=_generator(0, purpose))
    chosen = [order[labels[order] == label][:per_class] for label in range(NUM_CLASSES)]
    return torch.cat(chosen).sort().values


def augmented_epoch(dataset: Dataset, data: Data, seed: int, epoch: int) -> Epoch:
    """The epoch's images, augmented and in training order, from (seed, epoch) alone."""
    n, device = len(dataset.train_labels), dataset.train_images.device
    weak = apply_weak(dataset.train_images, draw_weak(n, _generator(seed, "weak", epoch)))
    strong = None
    if data.strong:
        draw = draw_strong(n, _generator(seed, "strong", epoch), data.strong.ops, data.strong.posterize_bits)
        strong = apply_strong(dataset.train_images, draw)
    both = data.views == "weak+strong"
    order = torch.randperm(2 * n if both else n, generator=_generator(seed, "order", epoch)).to(device)
    indices = order % n
    images = torch.cat([weak, strong])[order] if both else weak[order]
    paired = strong[order] if data.views == "paired" else None
    return Epoch(images, paired, dataset.train_labels[indices], indices)


def slices(total: int, batch: int, first: int = 0) -> Iterator[slice]:
    """Consecutive slices of `batch`, the last one partial (drop_last is off in the field's recipe)."""
    return (slice(start, start + batch) for start in range(first * batch, total, batch))


def _cifar100(folder: Path, train: bool) -> tuple[Tensor, Tensor]:
    from torchvision.datasets import (
        CIFAR100,
    )  # imported here: it costs a second that embedded runs do not need

    try:
        split = CIFAR100(folder, train=train, download=False)
    except RuntimeError:
        raise BadInput(
            f'no whole CIFAR-100 in "{folder}": give --data the folder that holds {CIFAR100_FOLDER}/'
        ) from None
    images = torch.from_numpy(np.ascontiguousarray(split.data.transpose(0, 3, 1, 2)))
    return images, torch.tensor(split.targets)


def _channels(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).view(1, -1, 1, 1)


def _generator(seed: int, *purpose: str | int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_for(seed, *purpose))


def _one_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
