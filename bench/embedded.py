"""The embedded data set: procedural images of CIFAR-100's shape, made in a second, with nothing to download.

What it is: a rehearsal of the whole path (teachers, students, distillation, resume, report) on a laptop's CPU. 100 fine
classes in 20 coarse ones of 5, as in CIFAR-100. A coarse class is a palette (5 of them) of a pattern family (4: stripes
told apart by orientation, lattices by spatial frequency, single objects by outline, scattered dots by number and size);
its 5 fine classes are neighbours within the family. Position, scale, phase, colour, contrast, a faint
distracting texture and noise vary. Labels survive a horizontal flip and a crop with padding 4.

What it is not: natural images, or a benchmark. Its accuracies say that code works, nothing about methods elsewhere.

Images depend on (split, class, index) alone: more of them never change the first ones. All arithmetic is on integers, all
random numbers are raw PCG64 output, whose stream NumPy keeps stable, so every machine makes the same bytes.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NUM_CLASSES, NUM_COARSE = 100, 20
TRAIN_IMAGES_PER_CLASS, TEST_IMAGES_PER_CLASS = 20, 10
MEAN, STD = (0.4600, 0.4500, 0.4300), (0.2000, 0.2000, 0.2000)  # of the training images, pixels in 0..1

SIZE = 32
SEED = 20250501
Ints = NDArray[np.int32]

PALETTES = np.array(  # (ink, ground) per palette, RGB
    [
        [[208, 72, 64], [72, 104, 128]],
        [[200, 176, 64], [96, 64, 112]],
        [[72, 176, 96], [120, 88, 64]],
        [[72, 128, 216], [136, 104, 72]],
        [[184, 88, 192], [80, 112, 72]],
    ],
    dtype=np.int32,
)
# One period of a sine as integers in -127..127. No entry is near a half, so rounding hides the last bit of any libm.
_SINE = np.rint(127 * np.sin(2 * np.pi * np.arange(1024) / 1024)).astype(np.int32)
# (cos, sin) * 64 of 0, 22.5, 45, 67.5 and 90 degrees.
_DIRECTIONS = ((64, 0), (59, 24), (45, 45), (24, 59), (0, 64))
_ROW, _COLUMN = (axis.astype(np.int32)[None] for axis in np.mgrid[:SIZE, :SIZE])


class _Draws:
    """Random numbers of n images, column by column of one (n, columns) block of bytes."""

    def __init__(self, words: NDArray[np.uint64]) -> None:
        self.columns = words.astype("<u8").view(np.uint16).astype(np.int32)
        self.used = 0

    def integers(self, low: int, high: int) -> Ints:
        """(n, 1, 1) integers in low..high inclusive."""
        column = self.columns[:, self.used, None, None]
        self.used += 1
        return low + ((column * (high - low + 1)) >> 16)

    def sign(self) -> Ints:
        return 2 * self.integers(0, 1) - 1


def generate(split: Literal["train", "test"], images_per_class: int) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 images (N, 3, 32, 32), fine labels (N,) in 0..99, coarse labels (N,) = fine // 5; class by class.

    The first k images of a class are the same ones for every `images_per_class` >= k.
    """
    images = np.concatenate([_class_images(split, label, images_per_class) for label in range(NUM_CLASSES)])
    fine = torch.arange(NUM_CLASSES).repeat_interleave(images_per_class)
    return torch.from_numpy(images), fine, fine // (NUM_CLASSES // NUM_COARSE)


_PARAMETER_WORDS, _NOISE_WORDS = 16, 3 * SIZE * SIZE // 8


def _class_images(split: str, label: int, n: int) -> NDArray[np.uint8]:
    stream = np.random.PCG64(np.random.SeedSequence([SEED, ("train", "test").index(split), label]))
    words = stream.random_raw(n * (_PARAMETER_WORDS + _NOISE_WORDS)).reshape(n, -1)
    draws = _Draws(np.ascontiguousarray(words[:, :_PARAMETER_WORDS]))
    noise = np.ascontiguousarray(words[:, _PARAMETER_WORDS:]).astype("<u8").view(np.uint8)
    coarse, variant = divmod(label, NUM_CLASSES // NUM_COARSE)
    family, palette = divmod(coarse, len(PALETTES))
    ink = _FAMILIES[family](variant, draws)  # (n, 32, 32) in 0..256
    ink = ink * draws.integers(150, 256) >> 8
    ink += _wave(draws, *_any_direction(draws), 12) * draws.integers(10, 40) >> 7
    ground_rgb, ink_rgb = ([PALETTES[palette, k, c] + draws.integers(-24, 24) for c in range(3)] for k in (1, 0))
    light = draws.integers(-30, 30)
    out = np.empty((n, 3, SIZE, SIZE), np.uint8)
    for c in range(3):
        plane = ground_rgb[c] + ((ink_rgb[c] - ground_rgb[c]) * ink >> 8) + light
        plane += (noise[:, c * 1024:(c + 1) * 1024].reshape(n, SIZE, SIZE).astype(np.int32) - 128) * 48 >> 8
        out[:, c] = plane.clip(0, 255)
    return out


def _any_direction(draws: _Draws) -> tuple[Ints, Ints]:
    angle = draws.integers(0, 1023)
    return _SINE[(angle + 256) & 1023] >> 1, _SINE[angle] >> 1


def _wave(draws: _Draws, across: Ints | int, down: Ints | int, frequency: int) -> Ints:
    """Sine in -127..127; (across, down) / 64 is its direction, frequency / 1024 its cycles per pixel / 10%."""
    scaled = frequency * draws.integers(58, 70)
    phase = (_COLUMN * across + _ROW * down) * scaled >> 8
    return _SINE[(phase + draws.integers(0, 1023)) & 1023]


def _stripes(variant: int, draws: _Draws) -> Ints:
    across, down = _DIRECTIONS[variant]
    return 128 + _wave(draws, across * draws.sign(), down, 9)


def _lattice(variant: int, draws: _Draws) -> Ints:
    frequency = (4, 6, 8, 11, 15)[variant]
    across = _wave(draws, 45, 45, frequency)
    return 128 + (across * _wave(draws, -45, 45, frequency) >> 7)


def _object(variant: int, draws: _Draws) -> Ints:
    x = 16 * _COLUMN - draws.integers(11 * 16, 20 * 16)  # 1/16 pixels from its centre
    y = 16 * _ROW - draws.integers(11 * 16, 20 * 16)
    radius = draws.integers(6 * 16, 9 * 16)
    ax, ay = abs(x), abs(y)
    outside = (
        (ax * ax + ay * ay) // radius - radius,  # disc
        np.maximum(ax, ay) - radius * 7 // 8,  # square
        ax + ay - radius * 5 // 4,  # diamond
np.maximum(2 * ax - y - radius, y - radius) * 3 // 4,  # triangle
        np.minimum(np.maximum(ax - radius, ay - radius // 3), np.maximum(ay - radius, ax - radius // 3)),  # cross
    )[variant]
    return (128 - outside * 8).clip(0, 256)


def _dots(variant: int, draws: _Draws) -> Ints:
    number, radius = ((2, 88), (4, 64), (6, 48), (9, 40), (14, 32))[variant]
    ink = np.zeros((len(draws.columns), SIZE, SIZE), np.int32)
    for _ in range(number):
        x = 16 * _COLUMN - draws.integers(2 * 16, 29 * 16)
        y = 16 * _ROW - draws.integers(2 * 16, 29 * 16)
        r = radius
        np.maximum(ink, (128 - ((x * x + y * y) // r - r) * 8).clip(0, 256), out=ink)
    return ink


_FAMILIES = (_stripes, _lattice, _object, _dots)
