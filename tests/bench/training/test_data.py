"""Data: the augmented epoch, its modes, class-balanced subsets, and CIFAR-100 as torchvision reads it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.datasets import ENTRIES, root
from bench.run import Data, seed_for
from bench.training import data as datasets
from bench.training.augment import apply_weak, draw_weak
from tests import tiny
from zoo.errors import BadInput

ENTRY = ENTRIES["cifar100"]
STRONG = {"ops": 2, "posterize_bits": (4, 8)}


def settings(views="weak", train_images=None, dataset="embedded-1") -> Data:
    strong = None if views == "weak" else STRONG
    return Data(dataset=dataset, train_images=train_images, views=views, strong=strong)


def test_weak_epoch_visits_every_image_once_and_keeps_labels():
    dataset = tiny.dataset(80)
    epoch = datasets.augmented_epoch(dataset, settings(), seed=3, epoch=2)
    assert sorted(epoch.indices.tolist()) == list(range(80))
    assert torch.equal(epoch.labels, dataset.train_labels[epoch.indices])
    draw = draw_weak(80, torch.Generator().manual_seed(seed_for(3, "weak", 2)))
    assert torch.equal(epoch.images, apply_weak(dataset.train_images, draw)[epoch.indices])
    assert epoch.strong_images is None and epoch.steps(32) == 3


def test_concatenated_copies_are_shuffled_together():
    """streamlined: 2N samples, each image once weak and once strong, the two kinds mixed within batches."""
    dataset = tiny.dataset(80)
    epoch = datasets.augmented_epoch(dataset, settings("weak+strong"), seed=0, epoch=1)
    assert sorted(epoch.indices.tolist()) == sorted([*range(80), *range(80)])
    assert epoch.strong_images is None and len(epoch.images) == 160
    weak = datasets.augmented_epoch(dataset, settings(), seed=0, epoch=1)
    weak_of = dict(zip(weak.indices.tolist(), weak.images, strict=True))
    is_weak = torch.tensor(
        [torch.equal(image, weak_of[i]) for i, image in zip(epoch.indices.tolist(), epoch.images, strict=True)]
    )
    assert 80 <= int(is_weak.sum()) < 90  # a strong copy may come out like its weak one, rarely
    assert 20 < int(is_weak[:80].sum()) < 60


def test_paired_views_are_of_the_same_images():
    dataset = tiny.dataset(80)
    epoch = datasets.augmented_epoch(dataset, settings("paired"), seed=0, epoch=1)
    weak = datasets.augmented_epoch(dataset, settings(), seed=0, epoch=1)
    assert torch.equal(epoch.indices, weak.indices) and torch.equal(epoch.images, weak.images)
    both = datasets.augmented_epoch(dataset, settings("weak+strong"), seed=0, epoch=1)
    strong_of = {}
    for i, image in zip(both.indices.tolist(), both.images, strict=True):
        strong_of.setdefault(i, []).append(image)
    for i, image in zip(epoch.indices.tolist(), epoch.strong_images, strict=True):
        assert any(torch.equal(image, other) for other in strong_of[i])


def test_epochs_and_seeds_differ_and_repeat():
    dataset = tiny.dataset(80)
    same, again, other_epoch, other_seed = (
        datasets.augmented_epoch(dataset, settings("paired"), seed, epoch)
        for seed, epoch in ((0, 1), (0, 1), (0, 2), (1, 1))
    )
    for name in ("images", "strong_images", "labels", "indices"):
        assert torch.equal(getattr(same, name), getattr(again, name))
        assert not torch.equal(getattr(same, name), getattr(other_epoch, name))
        assert not torch.equal(getattr(same, name), getattr(other_seed, name))


def test_normalisation_is_torchvisions():
    from torchvision.transforms import functional

    dataset = tiny.dataset(8)
    mean, std = ENTRY.mean, ENTRY.std
    dataset = datasets.Dataset(
        *list(vars(dataset).values())[:4], torch.tensor(mean).view(1, 3, 1, 1), torch.tensor(std).view(1, 3, 1, 1)
    )
    ours = dataset.normalise(dataset.train_images)
    for image, mine in zip(dataset.train_images, ours, strict=True):
        theirs = functional.normalize(functional.to_tensor(image.permute(1, 2, 0).numpy()), mean, std)
        assert torch.equal(mine, theirs)


def test_subset_is_balanced_and_stable():
    labels = torch.arange(2000) % 100
    chosen = datasets.balanced_subset(labels, 500)
    assert torch.equal(torch.bincount(labels[chosen], minlength=100), torch.full((100,), 5))
    assert torch.equal(chosen, datasets.balanced_subset(labels, 500)) and chosen.unique().numel() == 500
    smaller = datasets.balanced_subset(labels, 300)
    assert set(smaller.tolist()) < set(chosen.tolist())


@pytest.mark.parametrize("size", [150, 99, 10**6])
def test_unbalanced_subset_is_refused(size):
    with pytest.raises(BadInput, match="multiple of 100"):
        datasets.prepare(settings(train_images=size), None)


def test_slices():
    assert list(datasets.slices(10, 4)) == [slice(0, 4), slice(4, 8), slice(8, 12)]
    assert list(datasets.slices(10, 4, first=2)) == [slice(8, 12)]
    assert list(datasets.slices(8, 4, first=2)) == []


def test_embedded_loads_with_subset():
    dataset = datasets.load(settings(train_images=200), None, torch.device("cpu"))
    assert dataset.train_images.shape == (200, 3, 32, 32) and dataset.train_images.dtype == torch.uint8
    assert torch.equal(torch.bincount(dataset.train_labels, minlength=100), torch.full((100,), 2))


def test_missing_cifar_names_folder_and_remedy(tmp_path):
    with pytest.raises(BadInput, match="--data the folder that holds cifar-100-python/") as error:
        datasets.prepare(settings(dataset="cifar100"), tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["cifar100", "cifar10", "tiny-imagenet-200"])
def test_root_may_be_the_inner_folder_or_the_variable(name, monkeypatch):
    entry = ENTRIES[name]
    monkeypatch.delenv(entry.variable, raising=False)
    assert root(name, None) == Path("data")
    assert root(name, Path("a") / entry.folder) == root(name, Path("a") / entry.archive) == Path("a")
    monkeypatch.setenv(entry.variable, "b")
    assert root(name, None) == Path("b") and root(name, Path("c")) == Path("c")


@pytest.mark.skipif("CIFAR100_ROOT" not in os.environ, reason="CIFAR100_ROOT is not set: no real CIFAR-100")
def test_real_cifar100():
    """Against torchvision image by image, and the true statistics (facts of the data set) near the constants."""
    from torchvision.datasets import CIFAR100

    data = settings(dataset="cifar100", train_images=5000)
    datasets.prepare(data, None)
    whole = datasets.load(settings(dataset="cifar100"), None, torch.device("cpu"))
    split = CIFAR100(os.environ["CIFAR100_ROOT"], train=True)
    for i in (0, 1, 777, 49_999):
        image, label = split[i]
        assert int(whole.train_labels[i]) == label
        assert (whole.train_images[i].permute(1, 2, 0).numpy() == np.asarray(image)).all()
    pixels = whole.train_images.float().div(255)
    assert torch.allclose(pixels.mean((0, 2, 3)), torch.tensor(ENTRY.mean), atol=5e-4)
    assert torch.allclose(pixels.std((0, 2, 3)), torch.tensor(ENTRY.std), atol=2e-3)
    subset = datasets.load(data, None, torch.device("cpu"))
    assert torch.equal(torch.bincount(subset.train_labels), torch.full((100,), 50))
    assert len(subset.test_labels) == 10_000
