"""Weak augmentation of a whole epoch: random crop with zero padding, then horizontal flip with p = 1/2.

The recipe of CIFAR-100 distillation benchmarks (RepDistiller, mdistiller): torchvision's
RandomCrop(32, padding=4) and RandomHorizontalFlip, on the raw uint8 image, so the padding is black before
normalisation. Larger images are padded in proportion: by 8 at 64x64.

Randomness and pixels are apart: `draw_weak` draws a few numbers per image on the CPU, `apply_weak` applies
them wherever the images are. A CPU and a GPU therefore see the same augmentation, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.errors import BadInput

SIDE, PADDING = 32, 4
FLIP_PROBABILITY = 0.5
# Images of 32x32 at a time: on a CPU what its cache holds; a GPU waits for the host once a chunk, and has the memory.
CHUNK = {"cpu": 1000, "cuda": 25_000}


class WeakDraw(NamedTuple):
    """What happens to each of N images; CPU tensors of shape (N,)."""

    top: Tensor  # int64 in 0..2p for padding p: first row of the crop in the padded image
    left: Tensor  # int64 in 0..2p: first column of the crop in the padded image
    flip: Tensor  # bool: mirror the crop left to right


def padding(side: int) -> int:
    """Zeros at each edge of images of that side, in proportion to the field's 4 at 32."""
    return PADDING * side // SIDE


def draw_weak(n: int, generator: torch.Generator, side: int = SIDE) -> WeakDraw:
    """Draw crops and flips for n images of that side from a CPU generator."""
    top, left = torch.randint(0, 2 * padding(side) + 1, (2, n), generator=generator)
    flip = torch.rand(n, generator=generator) < FLIP_PROBABILITY
    return WeakDraw(top, left, flip)


def apply_weak(images: Tensor, draw: WeakDraw, chunk: int | None = None) -> Tensor:
    """Crop and flip uint8 images (N, C, H, W) as drawn; a new tensor of the same shape on the same device.

    `chunk` images of 32x32, or as many pixels, are worked on at a time (default: CHUNK): the result does not
    depend on it. Raises BadInput where the images are not uint8 (N, C, H, W) or their number is not the draw's.
    """
    check_images(images, len(draw.top))
    draw = WeakDraw(*(field.to(images.device) for field in draw))
    out = torch.empty_like(images, memory_format=torch.contiguous_format)
    for part in chunks(images, chunk or CHUNK.get(images.device.type, CHUNK["cuda"])):
        out[part] = _crop_and_flip(images[part], *(field[part] for field in draw))
    return out


def chunks(images: Tensor, of_32x32: int) -> Iterator[slice]:
    """Slices of so many images, or of fewer that hold as many pixels."""
    size = max(1, of_32x32 * SIDE**2 // max(1, images.shape[-2] * images.shape[-1]))
    return (slice(start, start + size) for start in range(0, len(images), size))


def check_images(images: Tensor, drawn: int) -> None:
    """Raise BadInput unless `images` is a uint8 tensor (N, C, H, W) with N equal to the number of draws."""
    if images.dtype != torch.uint8 or images.dim() != 4:
        found = f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}"
        raise BadInput(f"augmentation works on uint8 images (N, C, H, W), not {found}; normalise afterwards")
    if len(images) != drawn:
        raise BadInput(f"{len(images)} images but augmentation drawn for {drawn}; draw for each image")


def _crop_and_flip(images: Tensor, top: Tensor, left: Tensor, flip: Tensor) -> Tensor:
    n, channels, height, width = images.shape
    pad = padding(width)
    padded_width = width + 2 * pad
    rows = torch.arange(height, device=images.device) + top[:, None]
    columns = torch.arange(width, device=images.device)
    columns = torch.where(flip[:, None], columns.flip(0), columns) + left[:, None]
    # Crop and flip are one gather by pixel number, shared by the channels: on a CPU twice as fast as advanced
    # indexing into a strided view of the 81 crops, or as a masked copy for each of them.
    index = (rows[:, :, None] * padded_width + columns[:, None, :]).view(n, 1, height * width)
    pixels = F.pad(images, (pad,) * 4).view(n, channels, -1)
    return pixels.gather(2, index.expand(-1, channels, -1)).view(images.shape)
