"""The embedded data set: procedural images of CIFAR-100's shape, made in a second, with nothing to download.

What it is: a rehearsal of the whole path (teachers, students, distillation, resume, report) on a laptop's CPU.
100 fine classes in 20 coarse ones of 5, as in CIFAR-100. A coarse class is a pattern drawn in its own ink: one of
five members of four families (stripes by direction, lattices by spacing, repeated motifs by outline, scattered dots
by number and size). Its five fine classes are told apart by the colour of the ground. Position, scale, phase, colour,
contrast, a faint distracting wave and noise vary; labels survive a horizontal flip and a crop with padding 4. Colours
are learned within a few steps and patterns are not, so a larger network ends ahead (a wider one soon, a deeper one
given the steps), and its soft labels tell a smaller one which patterns are alike.

What it is not: natural images, or a benchmark. Its accuracies say that code works, nothing about methods elsewhere.

Images depend on (split, class, index) alone: more of them never change the first ones. All arithmetic is on integers
and all random numbers are raw PCG64 output, whose stream NumPy keeps stable, so every machine makes the same bytes.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.datasets import ENTRIES

ENTRY = ENTRIES["embedded-1"]
NUM_CLASSES, NUM_COARSE = ENTRY.known.classes, 20
MEMBERS = NUM_CLASSES // NUM_COARSE  # fine classes of a coarse one, and patterns of a family
TRAIN_IMAGES_PER_CLASS = ENTRY.known.train // NUM_CLASSES
TEST_IMAGES_PER_CLASS = ENTRY.known.test // NUM_CLASSES
MEAN, STD = ENTRY.mean, ENTRY.std  # of the training images, pixels in 0..1

SIZE = ENTRY.known.side
SEED = 20250501
NUMBER_WORDS, NOISE_WORDS = 16, 3 * SIZE * SIZE // 8  # 64-bit words per image, as four numbers and as eight bytes
FIRST_POSITION = 16  # of an image's 64 numbers: before it the ones drawn in turn, from it on the dots' positions
HUE_CIRCLE, HUE_STEP, HUE_SPREAD = 1536, 307, 15  # once round, between two classes, either way within a class
Ints = NDArray[np.int32]

# One period of a sine as integers in -127..127. No entry is near a half, so rounding hides the last bit of any libm.
_SINE = np.rint(127 * np.sin(2 * np.pi * np.arange(1024) / 1024)).astype(np.int32)
# (cos, sin) * 64 of 0, 22.5, 45, 67.5 and 90 degrees.
_DIRECTIONS = ((64, 0), (59, 24), (45, 45), (24, 59), (0, 64))
_ROW, _COLUMN = (axis.astype(np.int32)[None] for axis in np.mgrid[:SIZE, :SIZE])


class _Draws:
    """The random numbers of n images: 64 columns of (n, 1, 1) integers in 0..65535, used in turn."""

    def __init__(self, words: NDArray[np.uint64]) -> None:
        self.columns = words.astype("<u8").view(np.uint16).astype(np.int32)[:, :, None, None]
        self.used = 0

    def integers(self, low: int, high: int) -> Ints:
        """(n, 1, 1) integers in low..high inclusive."""
        column = self.columns[:, self.used]
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
    return torch.from_numpy(images), fine, fine // MEMBERS


def _class_images(split: str, label: int, n: int) -> NDArray[np.uint8]:
    stream = np.random.PCG64(np.random.SeedSequence([SEED, ("train", "test").index(split), label]))
    words = stream.random_raw(n * (NUMBER_WORDS + NOISE_WORDS)).reshape(n, -1)
    draws = _Draws(np.ascontiguousarray(words[:, :NUMBER_WORDS]))
    noise = np.ascontiguousarray(words[:, NUMBER_WORDS:]).astype("<u8").view(np.uint8).reshape(n, 3, SIZE, SIZE)
    coarse, variant = divmod(label, MEMBERS)
    family, member = divmod(coarse, MEMBERS)
    ink = _FAMILIES[family](member, draws) * draws.integers(230, 256) >> 8  # (n, 32, 32), how much ink in 0..256
    ink += _wave(draws, *_any_direction(draws), 12) * draws.integers(0, 4) >> 7
    ground_hue = variant * HUE_STEP + draws.integers(-HUE_SPREAD, HUE_SPREAD)
    ink_hue = member * HUE_STEP + HUE_STEP // 2 + draws.integers(-HUE_SPREAD, HUE_SPREAD)
    light = draws.integers(-8, 8)
    images = np.empty((n, 3, SIZE, SIZE), np.uint8)
    for channel in range(3):
        ground = 10 + (_hue(ground_hue, channel) * 110 >> 8)  # dark
        inked = 115 + (_hue(ink_hue, channel) * 130 >> 8)  # light
        speckle = (noise[:, channel].astype(np.int32) - 128) * 10 >> 8
        images[:, channel] = (ground + ((inked - ground) * ink >> 8) + light + speckle).clip(0, 255)
    return images


def _hue(hue: Ints, channel: int) -> Ints:
    """One channel, 0..256, of a pure colour on the hue circle (piecewise linear, red at 0)."""
    half = HUE_CIRCLE // 2
    distance = abs((hue - HUE_CIRCLE // 3 * channel + half) % HUE_CIRCLE - half)
    return (512 - distance).clip(0, 256)


def _any_direction(draws: _Draws) -> tuple[Ints, Ints]:
    angle = draws.integers(0, 1023)
    return _SINE[(angle + 256) & 1023] >> 1, _SINE[angle] >> 1


def _wave(draws: _Draws, across: Ints | int, down: Ints | int, frequency: int) -> Ints:
    """Sine in -127..127 along (across, down) / 64, about `frequency` cycles in 64 pixels, scale and phase varying."""
    phase = (_COLUMN * across + _ROW * down) * (frequency * draws.integers(58, 70)) >> 8
    return _SINE[(phase + draws.integers(0, 1023)) & 1023]


def _stripes(member: int, draws: _Draws) -> Ints:
    across, down = _DIRECTIONS[member]
    return 128 + _wave(draws, across * draws.sign(), down, 9)


def _lattice(member: int, draws: _Draws) -> Ints:
    frequency = (4, 6, 8, 11, 15)[member]
    return 128 + (_wave(draws, 45, 45, frequency) * _wave(draws, -45, 45, frequency) >> 7)


def _motif(member: int, draws: _Draws) -> Ints:
    """A figure repeated over the image: disc, square, diamond, triangle or cross; lengths in sixteenths of a pixel."""
    period = draws.integers(150, 190)
    half = period >> 1
    x = (16 * _COLUMN + draws.integers(0, 999)) % period - half
    y = (16 * _ROW + draws.integers(0, 999)) % period - half
    radius, across, down = half * 3 // 4, abs(x), abs(y)
    outside = (
        (across * across + down * down) // radius - radius,
        np.maximum(across, down) - radius * 7 // 8,
        across + down - radius * 5 // 4,
        np.maximum(2 * across - y - radius, y - radius) * 3 // 4,
        np.minimum(np.maximum(across - half, down - radius // 3), np.maximum(down - half, across - radius // 3)),
    )[member]
    return _fill(outside)


def _dots(member: int, draws: _Draws) -> Ints:
    number, radius = ((2, 150), (4, 100), (8, 66), (16, 44), (22, 30))[member]
    ink = np.zeros((len(draws.columns), SIZE, SIZE), np.int32)
    for k in range(number):
        x, y = (draws.columns[:, FIRST_POSITION + 2 * k + axis] * 16 * SIZE >> 16 for axis in (0, 1))
        x, y = 16 * _COLUMN - x, 16 * _ROW - y
        np.maximum(ink, _fill((x * x + y * y) // radius - radius), out=ink)
    return ink


def _fill(outside: Ints) -> Ints:
    """Ink 256 inside (negative), 0 outside, with an edge two pixels wide."""
    return (128 - outside * 8).clip(0, 256)


_FAMILIES = (_stripes, _lattice, _motif, _dots)
