"""The embedded data set: the same bytes everywhere, balanced, labels that augmentation keeps, and learnable."""

from __future__ import annotations

import hashlib

import pytest
import torch

from bench.training import embedded
from bench.training.augment import apply_weak, draw_weak


@pytest.fixture(scope="module")
def train():
    return embedded.generate("train", 8)


def test_same_bytes_on_every_machine(train):
    images, *_ = train
    sample = images[::37].contiguous().numpy().tobytes()
    assert hashlib.sha256(sample).hexdigest()[:16] == "6ba2c19c8f0f03f0"


def test_shapes_labels_and_hierarchy(train):
    images, fine, coarse = train
    assert images.shape == (800, 3, 32, 32) and images.dtype == torch.uint8
    assert torch.equal(torch.bincount(fine), torch.full((100,), 8))
    assert torch.equal(torch.bincount(coarse), torch.full((20,), 40))
    assert torch.equal(coarse, fine // 5)


def test_more_images_never_change_the_first_ones(train):
    fewer, labels, _ = embedded.generate("train", 3)
    keep = torch.arange(800).view(100, 8)[:, :3].flatten()
    assert torch.equal(fewer, train[0][keep]) and torch.equal(labels, train[1][keep])


def test_test_images_are_others(train):
    test, *_ = embedded.generate("test", 8)
    assert not (test.flatten(1)[:, None, :64] == train[0].flatten(1)[None, :, :64]).all(-1).any()


def test_normalisation_constants():
    pixels = embedded.generate("train", embedded.TRAIN_IMAGES_PER_CLASS)[0].double() / 255
    assert torch.allclose(pixels.mean((0, 2, 3)), torch.tensor(embedded.MEAN, dtype=torch.float64), atol=1e-4)
    assert torch.allclose(pixels.std((0, 2, 3)), torch.tensor(embedded.STD, dtype=torch.float64), atol=1e-4)


def spectrum(images: torch.Tensor) -> torch.Tensor:
    """What a position or a flip hardly changes: colours, and the amplitude spectrum with its mirror image."""
    grey = images.double().mean(1)
    amplitude = torch.fft.fft2(grey - grey.mean((1, 2), keepdim=True)).abs()
    mirrored = amplitude.flip(2).roll(1, 2)
    low = (amplitude + mirrored)[:, :12, :12].flatten(1)
    colours = images.double().mean((2, 3)) * 3
    ends = torch.tensor([0.1, 0.9], dtype=torch.float64)
    quantiles = images.double().flatten(2).quantile(ends, dim=2).permute(1, 0, 2).flatten(1)
    return torch.cat([low / low.norm(dim=1, keepdim=True) * 40, colours / 10, quantiles / 5], 1)


def test_labels_can_be_told_and_survive_augmentation(train):
    """A nearest class mean on such statistics, no learning, is far above chance (1 %), also after crop and flip."""
    features, labels = spectrum(train[0]), train[1]
    means = torch.stack([features[labels == label].mean(0) for label in range(100)])
    test, fine, _ = embedded.generate("test", 5)
    augmented = apply_weak(test, draw_weak(len(test), torch.Generator().manual_seed(0)))

    def accuracy(images: torch.Tensor) -> float:
        return float((torch.cdist(spectrum(images), means).argmin(1) == fine).double().mean())

    plain = accuracy(test)
    assert plain > 0.9  # the classes are there to be told
    assert accuracy(test.flip(3)) > 0.95 * plain
    assert accuracy(augmented) > 0.4  # black borders disturb statistics that never saw them
