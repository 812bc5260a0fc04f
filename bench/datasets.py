"""The data sets: what each is, where it lies, and what is known of it before an image is decoded.

A data set joins here. Nothing in this module imports torch or opens an image.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from bench import trees
from bench.run import Data, Source
from bench.surroundings import paths
from zoo.errors import BadInput
from zoo.inputs import INPUTS, Channels

CHANNELS = 3


@dataclass(frozen=True)
class Known:
    """Sizes of a data set that is the same everywhere; train and test have equally many images of each class."""

    classes: int
    side: int
    train: int
    test: int


@dataclass(frozen=True)
class Entry:
    """One data set, by the name that protocols give.

    `variable` names the environment variable that says where it lies where --data does not; `folder` is what it is
    called there, `archive` the file it is published in. Without `known` a folder says for itself what it holds.
    `digested`: no published sum vouches for its files, so that a digest of them is part of a run's identity. `mean` and
    `std` are of normalisation, for pixels in 0..1; without them they are measured on the training images.
    """

    label: str
    known: Known | None
    mean: Channels | None = None
    std: Channels | None = None
    variable: str | None = None
    folder: str | None = None
    archive: str | None = None
    digested: bool = False


def _known(dataset: str, classes: int, train: int, test: int) -> tuple[Known, Channels, Channels]:
    """Sizes and normalisation of a data set that `zoo.inputs` knows the images of."""
    images = INPUTS[dataset]
    return Known(classes, images.side, train, test), images.mean, images.std


ENTRIES = {
    "cifar100": Entry(
        "CIFAR-100",
        *_known("cifar100", 100, 50_000, 10_000),
        variable="CIFAR100_ROOT",
        folder="cifar-100-python",
        archive="cifar-100-python.tar.gz",
    ),
    "cifar10": Entry(
        "CIFAR-10",
        *_known("cifar10", 10, 50_000, 10_000),
        variable="CIFAR10_ROOT",
        folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz",
    ),
    "tiny-imagenet-200": Entry(
        "Tiny-ImageNet-200",
        *_known("tiny-imagenet-200", 200, 100_000, 10_000),
        variable="TINY_IMAGENET_ROOT",
        folder="tiny-imagenet-200",
        archive="tiny-imagenet-200.zip",
        digested=True,
    ),
    "image-folder": Entry("Image folder", None, variable="IMAGE_FOLDER_ROOT", digested=True),
    "embedded-1": Entry("Embedded images", *_known("embedded-1", 100, 2_000, 1_000)),
}


@dataclass(frozen=True)
class Facts:
    """What a run's data come to: number of classes, images (3, side, side), and how many of them."""

    classes: int
    side: int
    train: int  # before anything is held out or left out
    smallest: int  # training images of the class with the fewest
    test: int


def facts(data: Data) -> Facts:
    """The facts of a run's data; BadInput where a folder would have to be read first (`identified`)."""
    entry = ENTRIES[data.dataset]
    known, source = entry.known, data.source
    if source:
        return Facts(source.classes, data.side or known.side, source.train, source.smallest, source.test)
    if known is None:
        raise BadInput(
            f"{data.dataset}: what it holds is not known before its folder is read: run it as a grid, with --data DIR "
            f"or {entry.variable}"
        )
    return Facts(known.classes, data.side or known.side, known.train, known.train // known.classes, known.test)


def train_size(data: Data) -> int:
    """Number of distinct training images."""
    return data.train_images or facts(data).train - (data.validation or 0)


def root(dataset: str, given: Path | None) -> Path | None:
    """The folder that a data set lies in: --data, else its variable, else ./data; None where it needs none.

    The last part may be the data set's own folder, or its archive: what holds it is meant.
    """
    entry = ENTRIES[dataset]
    if entry.variable is None:
        return None
    said = os.environ.get(entry.variable)
    if given is None and not said and entry.folder is None:
        raise BadInput(f"{dataset}: give --data DIR or set {entry.variable}: the folder with train/ and test/ in it")
    folder = given or (paths.expand(said, entry.variable) if said else Path("data"))
    return folder.parent if folder.name in (entry.folder, entry.archive) else folder


def identified(data: Data, given: Path | None) -> Data:
    """`data` with what its folder holds, where that is part of a run's identity. BadInput where the folder is at fault.

    Reads every image file's bytes the first time, and afterwards those that have changed.
    """
    entry = ENTRIES[data.dataset]
    if not entry.digested:
        return data
    if entry.known is None and data.side is None:
        raise BadInput(f'{data.dataset}: give the height and width to resize to in the protocol, e.g. "side: 64"')
    tree = tree_of(data, given)
    return data.model_copy(update={"source": _source(tree)})


def tree_of(data: Data, given: Path | None) -> trees.Tree:
    """The image files of a digested data set, by part and class."""
    entry, folder = ENTRIES[data.dataset], root(data.dataset, given)
    if entry.known is None:
        return trees.read(folder)
    tree = trees.read_tiny_imagenet(folder, entry.folder, entry.archive)
    found = _source(tree)
    wanted = Source(
        digest=found.digest,
        classes=entry.known.classes,
        train=entry.known.train,
        smallest=entry.known.train // entry.known.classes,
        test=entry.known.test,
    )
    if found != wanted:
        raise BadInput(
            f'"{tree.root}" is not the whole of {entry.label}: it holds {_counts(found)} instead of {_counts(wanted)}: '
            "unpack its archive again"
        )
    return tree


def check_sizes(data: Data, where: str = "data") -> None:
    """BadInput where a data set cannot be divided as `data` says: each part has equally many images of each class."""
    entry = ENTRIES[data.dataset]
    if data.side is not None and not entry.digested:
        raise BadInput(
            f"{where}: side: images of {data.dataset} are {entry.known.side}x{entry.known.side}: leave it out"
        )
    held_out, wanted = data.validation or 0, data.train_images
    if not held_out and wanted is None:
        return  # the whole of it, whatever that is
    found = facts(data)
    classes, size = found.classes, found.smallest * found.classes
    if held_out % classes or held_out > size // 2:
        raise BadInput(
            f"{where}: validation: {held_out} is not a class-balanced part of {size} training images that leaves as "
            f"many to train on: use a multiple of {classes} up to {found.smallest // 2 * classes}"
        )
    left = size - held_out
    if wanted is not None and (wanted % classes or wanted > left):
        raise BadInput(
            f"{where}: train_images: {wanted} is not a class-balanced part of {left} images: "
            f"use a multiple of {classes} up to {left}"
        )


def _source(tree: trees.Tree) -> Source:
    return Source(
        digest=tree.digest,
        classes=len(tree.classes),
        train=len(tree.train),
        smallest=tree.smallest,
        test=len(tree.test),
    )


def _counts(source: Source) -> str:
    return f"{source.train:,} and {source.test:,} images of {source.classes} classes"
