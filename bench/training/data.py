"""The data sets, held whole on the training device, and the augmented epoch made from (seed, epoch)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.datasets import CHANNELS, ENTRIES, check_sizes, facts, root, train_size
from bench.run import Data, seed_for
from bench.training import cifar, embedded, images
from bench.training.augment import apply_weak, draw_weak
from bench.training.randaugment import apply_strong, draw_strong
from zoo.errors import BadInput

ROOM = 0.9  # of the free memory, for images and the epoch made of them; networks are small beside large images


@dataclass(frozen=True)
class Dataset:
    """Training, test and validation images on one device: uint8 (N, 3, side, side), their labels int64 (N,)."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    mean: Tensor  # (1, 3, 1, 1), of pixels in 0..1
    std: Tensor
    val_images: Tensor | None = None  # held out of the training images; None where nothing is
    val_labels: Tensor | None = None

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """`mean` and `std` as they are written, by channel: the shortest numbers that are these in float32."""
        mean, std = (each.flatten().cpu().numpy() for each in (self.mean, self.std))
        return tuple(float(str(value)) for value in mean), tuple(float(str(value)) for value in std)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 images -> float32, as torchvision's ToTensor and Normalize do."""
        return (images.float().div_(255) - self.mean) / self.std


@dataclass(frozen=True)
class Epoch:
    """One augmented epoch in training order; a step slices it."""

    images: Tensor  # uint8 (M, 3, side, side): M = N, or 2N where weak and strong copies are shuffled together
    strong_images: Tensor | None  # the second view of the same images, for paired views
    labels: Tensor  # (M,)
    indices: Tensor  # (M,), position in the training set

    def batch(self, part: slice) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Images, second views, labels and indices of a step."""
        strong = None if self.strong_images is None else self.strong_images[part]
        return self.images[part], strong, self.labels[part], self.indices[part]

    def steps(self, batch: int) -> int:
        return -(-len(self.labels) // batch)


def load(data: Data, given: Path | None, device: torch.device) -> Dataset:
    """Load a data set to a device. `given` is --data: see `bench.datasets.root`."""
    check_fits(data, device)
    entry = ENTRIES[data.dataset]
    mean, std = entry.mean, entry.std
    if entry.digested:
        train_images, train_labels, test_images, test_labels, *measured = images.load(data, given)
        mean, std = (mean, std) if mean else measured
    elif data.dataset in cifar.LAYOUTS:
        layout, folder = cifar.LAYOUTS[data.dataset], root(data.dataset, given)
        train_images, train_labels = _cifar(layout, folder, train=True)
        test_images, test_labels = _cifar(layout, folder, train=False)
    else:
        train_images, train_labels, _ = embedded.generate("train", embedded.TRAIN_IMAGES_PER_CLASS)
        test_images, test_labels, _ = embedded.generate("test", embedded.TEST_IMAGES_PER_CLASS)
    held_out = ()
    if data.validation:
        kept = torch.ones(len(train_labels), dtype=torch.bool)
        kept[chosen := balanced_subset(train_labels, data.validation, "validation")] = False
        held_out = train_images[chosen], train_labels[chosen]
        train_images, train_labels = train_images[kept], train_labels[kept]
    if data.train_images is not None:
        chosen = balanced_subset(train_labels, data.train_images)
        train_images, train_labels = train_images[chosen], train_labels[chosen]
    statistics = (_channels(data.mean or mean), _channels(data.std or std))
    tensors = (train_images, train_labels, test_images, test_labels, *statistics, *held_out)
    return Dataset(*(tensor.to(device) for tensor in tensors))


def prepare(data: Data, given: Path | None, device: torch.device | None = None) -> None:
    """See once, before any run starts, that the data set is there, whole, and fits; make of it what can be made.

    CIFAR is downloaded where it is not there, the images of a folder are decoded.
    """
    check_sizes(data)
    if device is not None:
        check_fits(data, device)
    if ENTRIES[data.dataset].digested:
        images.load(data, given)
    elif data.dataset in cifar.LAYOUTS:
        _prepare_cifar(cifar.LAYOUTS[data.dataset], data.dataset, given)


def _prepare_cifar(layout: cifar.Layout, dataset: str, given: Path | None) -> None:
    folder = root(dataset, given)
    wrong = cifar.make_whole(folder, layout)
    if wrong is None:
        return
    if given is not None:
        raise BadInput(
            f'no whole {layout.name} in "{folder}": {wrong}. Give --data the folder that holds {layout.folder}/ or '
            f"{layout.archive}, or leave --data out to download it where there is a network"
        )
    try:
        _torchvision(layout)(folder, train=True, download=True)
    except Exception as error:
        raise BadInput(
            f'{layout.name} is not in "{folder}" ({wrong}) and cannot be downloaded ({_one_line(error)}): give --data '
            f"DIR or set {ENTRIES[dataset].variable} to a folder that holds {layout.folder}/ or {layout.archive}"
        ) from None


def check_fits(data: Data, device: torch.device) -> None:
    """BadInput where images and augmented epochs are larger than what the device has free (where that is known)."""
    found, free = facts(data), _free_bytes(device)
    # As `augmented_epoch` holds them at its largest: every copy before and after it is put in order.
    copies = 1 + {"weak": 2, "paired": 4, "weak+strong": 6}[data.views]
    needed = (train_size(data) * copies + (data.validation or 0) + found.test) * CHANNELS * found.side**2
    if free is not None and needed > ROOM * free:
        raise BadInput(
            f"{data.dataset} at {found.side}x{found.side} does not fit: its images and an augmented epoch take "
            f"{needed / 1e9:.1f} GB, {device} has {free / 1e9:.1f} GB free: give a smaller side or train_images, or "
            "another device"
        )


def _free_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as lines:
            return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None


def balanced_subset(labels: Tensor, size: int, purpose: str = "subset") -> Tensor:
    """Indices, ascending, of `size` images with equally many of each class; for a purpose the same in every run."""
    classes = labels.unique()
    order = torch.randperm(len(labels), generator=_generator(0, purpose))
    chosen = [order[labels[order] == label][: size // len(classes)] for label in classes]
    return torch.cat(chosen).sort().values


def augmented_epoch(dataset: Dataset, data: Data, seed: int, epoch: int) -> Epoch:
    """The epoch's images, augmented and in training order, from (seed, epoch) alone."""
    n, device = len(dataset.train_labels), dataset.train_images.device
    side = dataset.train_images.shape[-1]
    weak = apply_weak(dataset.train_images, draw_weak(n, _generator(seed, "weak", epoch), side))
    strong = None
    if data.strong:
        draw = draw_strong(n, _generator(seed, "strong", epoch), data.strong.ops, data.strong.posterize_bits, side)
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


def _cifar(layout: cifar.Layout, folder: Path, train: bool) -> tuple[Tensor, Tensor]:
    try:
        split = _torchvision(layout)(folder, train=train, download=False)
    except RuntimeError:
        raise BadInput(
            f'no whole {layout.name} in "{folder}": give --data the folder that holds {layout.folder}/'
        ) from None
    pixels = torch.from_numpy(np.ascontiguousarray(split.data.transpose(0, 3, 1, 2)))
    return pixels, torch.tensor(split.targets)


def _torchvision(layout: cifar.Layout) -> type:
    from torchvision import datasets  # imported here: it costs a second that embedded runs do not need

    return {"CIFAR-10": datasets.CIFAR10, "CIFAR-100": datasets.CIFAR100}[layout.name]


def _channels(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).view(1, -1, 1, 1)


def _generator(seed: int, *purpose: str | int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_for(seed, *purpose))


def _one_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
