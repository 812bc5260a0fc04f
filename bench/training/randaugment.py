"""Strong augmentation of a whole epoch: weak augmentation, RandAugment (two operations), then cutout.

RandAugment (Cubuk, Zoph, Shlens and Le, 2020) in the form FixMatch (Sohn et al., 2020) gave it: operations
are drawn with replacement from a list of 14, each with its own magnitude, uniform over its (signed) range.
List, ranges and cutout are those of the MLKD repository (Jin-Ying/Multi-Level-Logit-Distillation, file
mdistiller/dataset/cifar100.py); StreamLined (HyunJunSik/StreamLined) differs in the range of posterize only.

Each operation takes uint8 images (N, 3, H, W) and float64 magnitudes (N,) on the CPU, and equals the Pillow
operation those repositories call, bit for bit: blends truncate in float32, look-up tables are built in
float64 or in integers, geometry is nearest neighbour in 16.16 fixed point, filled with black. What a
magnitude means is settled on the CPU, so that a CPU and a GPU give the same images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bench.training.augment import SIDE, WeakDraw, apply_weak, check_images, chunks, draw_weak
from zoo.errors import BadInput

LEVELS = 256
CUTOUT_MAX_SIDE = 0.5  # as a fraction of the image's width
CHUNK = {"cpu": 2500, "cuda": 12_500}  # images at a time, as in `augment`
CUTOUT_FILL = (125, 123, 114)


def identity(images: Tensor, magnitude: Tensor) -> Tensor:
    """The images as they are. The magnitude is not used."""
    return images


def autocontrast(images: Tensor, magnitude: Tensor) -> Tensor:
    """ImageOps.autocontrast: stretch each channel to 0..255. The magnitude is not used."""
    low, high = (bound.double() for bound in images.flatten(2).aminmax(dim=2, keepdim=True))
    levels = torch.arange(LEVELS, dtype=torch.float64, device=images.device)
    scale = torch.full_like(low, 255) / (high - low).clamp(min=1)  # 255 / tensor would round twice
    table = (levels * scale + -low * scale).clamp(0, 255)
    return _look_up(images, torch.where(high > low, table, levels))


def equalize(images: Tensor, magnitude: Tensor) -> Tensor:
    """ImageOps.equalize: flatten each channel's histogram. The magnitude is not used."""
    n, channels, height, width = images.shape
    pixels = images.flatten(2).long()
    histogram = pixels.new_zeros(n, channels, LEVELS).scatter_add_(2, pixels, torch.ones_like(pixels))
    brightest = histogram.gather(2, pixels.amax(dim=2, keepdim=True))
    step = (height * width - brightest) // 255
    below = histogram.cumsum(dim=2) - histogram
    table = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    return _look_up(images, torch.where(step > 0, table, torch.arange(LEVELS, device=images.device)))


def posterize(images: Tensor, magnitude: Tensor) -> Tensor:
    """ImageOps.posterize: keep the int(magnitude) highest bits, at least one."""
    bits = magnitude.long().clamp(min=1)
    return images & _per_image(LEVELS - 2 ** (8 - bits), images, torch.uint8)


def solarize(images: Tensor, magnitude: Tensor) -> Tensor:
    """ImageOps.solarize: invert what is not below the magnitude (0..256)."""
    threshold = _per_image(magnitude.ceil(), images, torch.int16)  # of whole levels, x < v is x < ceil(v)
    return images ^ (images >= threshold).to(torch.uint8) * 255  # 255 - x is x ^ 255


def brightness(images: Tensor, magnitude: Tensor) -> Tensor:
    """ImageEnhance.Brightness: blend with black."""
    return _blend(images.new_zeros(()), images, magnitude)


def color(images: Tensor, magnitude: Tensor) -> Tensor:
    """ImageEnhance.Color: blend with the grey image."""
    return _blend(_luma(images), images, magnitude)


def contrast(images: Tensor, magnitude: Tensor) -> Tensor:
    """ImageEnhance.Contrast: blend with the mean of the grey image, rounded half up."""
    pixels = images.shape[2] * images.shape[3]
    total = _luma(images).sum(dim=(2, 3), keepdim=True)
    return _blend((2 * total + pixels) // (2 * pixels), images, magnitude)


def sharpness(images: Tensor, magnitude: Tensor) -> Tensor:
    """ImageEnhance.Sharpness: blend with the image smoothed by [1 1 1; 1 5 1; 1 1 1] / 13, border kept."""
    x = images.to(torch.int16)
    rows = x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]
    weighted = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * x[:, :, 1:-1, 1:-1]
    # weighted / 13 + 1/2 is at least 1/26 away from every whole level: float32 errors cannot show.
    smooth = images.clone()
    smooth[:, :, 1:-1, 1:-1] = (weighted / 13 + 0.5).to(torch.uint8)
    return _blend(smooth, images, magnitude)


def rotate(images: Tensor, magnitude: Tensor) -> Tensor:
    """Image.rotate: by `magnitude` degrees counter-clockwise about the centre."""
    x, y = images.shape[3] / 2, images.shape[2] / 2
    angle = -torch.deg2rad(magnitude.remainder(360))
    cos, sin = angle.cos().round(decimals=15), angle.sin().round(decimals=15)
    return _affine(images, (cos, sin, x - cos * x - sin * y), (-sin, cos, y + sin * x - cos * y))


def shear_x(images: Tensor, magnitude: Tensor) -> Tensor:
    """Image.transform with (1, v, 0, 0, 1, 0): row y is read from v y further right."""
    return _affine(images, (1, magnitude, 0), (0, 1, 0))


def shear_y(images: Tensor, magnitude: Tensor) -> Tensor:
    """Image.transform with (1, 0, 0, v, 1, 0): column x is read from v x further down."""
    return _affine(images, (1, 0, 0), (magnitude, 1, 0))


def translate_x(images: Tensor, magnitude: Tensor) -> Tensor:
    """Image.transform with (1, 0, v W, 0, 1, 0): every pixel is read from v W further right."""
    return _affine(images, (1, 0, _whole_pixels(magnitude * images.shape[3])), (0, 1, 0))


def translate_y(images: Tensor, magnitude: Tensor) -> Tensor:
    """Image.transform with (1, 0, 0, 0, 1, v H): every pixel is read from v H further down."""
    return _affine(images, (1, 0, 0), (0, 1, _whole_pixels(magnitude * images.shape[2])))


def cutout(images: Tensor, side: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Paint a box in CUTOUT_FILL on each image; `side` 0..0.5, `x` and `y` 0..1, float64 (N,) on the CPU.

    The box is the repositories', oddities included. Its centre is numpy.random.uniform(W), which runs from W
    to the default bound 1 and not from 0. Its far edges are measured from the clipped near ones, so it is cut
    short at the right and bottom only. ImageDraw.rectangle paints both ends: int(side W) + 1 pixels.
    """
    height, width = images.shape[2:]
    size = side * width
    left = (width + (1 - width) * x - size / 2).clamp(min=0).floor()
    top = (height + (1 - height) * y - size / 2).clamp(min=0).floor()
    right, bottom = (left + size).clamp(max=width), (top + size).clamp(max=height)
    right = torch.where(size > 0, right, -1.0)  # side 0 leaves an image alone
    left, top, right, bottom = (_per_image(edge, images, torch.int16) for edge in (left, top, right, bottom))
    columns = torch.arange(width, device=images.device)
    rows = torch.arange(height, device=images.device)[:, None]
    box = ((columns >= left) & (columns <= right)) & ((rows >= top) & (rows <= bottom))
    fill = images.new_tensor(CUTOUT_FILL).view(-1, 1, 1)
    return images + (fill - images) * box  # modulo 256; several times faster than torch.where on a CPU


@dataclass(frozen=True)
class Operation:
    """An operation of RandAugment and the range of its magnitude."""

    apply: Callable[[Tensor, Tensor], Tensor]
    low: float = 0.0
    high: float = 1.0


OPERATIONS = {
    "autocontrast": Operation(autocontrast),
    "brightness": Operation(brightness, 0.05, 0.95),
    "color": Operation(color, 0.05, 0.95),
    "contrast": Operation(contrast, 0.05, 0.95),
    "equalize": Operation(equalize),
    "identity": Operation(identity),
    "posterize": Operation(posterize, 4, 8),
    "rotate": Operation(rotate, -30, 30),
    "sharpness": Operation(sharpness, 0.05, 0.95),
    "shear_x": Operation(shear_x, -0.3, 0.3),
    "shear_y": Operation(shear_y, -0.3, 0.3),
    "solarize": Operation(solarize, 0, 256),
    "translate_x": Operation(translate_x, -0.3, 0.3),
    "translate_y": Operation(translate_y, -0.3, 0.3),
}


class StrongDraw(NamedTuple):
    """What happens to each of N images; CPU tensors."""

    weak: WeakDraw
    operation: Tensor  # (N, ops) int64: place in OPERATIONS
    magnitude: Tensor  # (N, ops) float64: within the operation's range
    cutout: Tensor  # (N, 3) float64: side in 0..0.5, then x and y of the centre in 0..1


def draw_strong(
    n: int,
    generator: torch.Generator,
    ops: int = 2,
    posterize: tuple[float, float] = (4, 8),
    side: int = SIDE,
) -> StrongDraw:
    """Draw weak augmentation, `ops` operations with magnitudes, and cutout for n images from a CPU generator.

    `posterize` is the range of its bits, cut to a whole number, at least 1: (4, 8) in MLKD, which keeps 4 to
    7 bits; (0, 1) in StreamLined, which keeps 1. Raises BadInput where it is not a range within 0..8.
    """
    if not 0 <= posterize[0] <= posterize[1] <= 8:
        raise BadInput(f"posterize range {posterize} is not within 0..8 bits; take (4, 8) or (0, 1)")
    ranges = {name: (op.low, op.high) for name, op in OPERATIONS.items()} | {"posterize": posterize}
    low, high = torch.tensor(list(ranges.values()), dtype=torch.float64).unbind(1)
    weak = draw_weak(n, generator, side)
    operation = torch.randint(0, len(OPERATIONS), (n, ops), generator=generator)
    share = torch.rand(n, ops, dtype=torch.float64, generator=generator)
    magnitude = low[operation] + (high - low)[operation] * share
    box = torch.rand(n, 3, dtype=torch.float64, generator=generator)
    box[:, 0] *= CUTOUT_MAX_SIDE
    return StrongDraw(weak, operation, magnitude, box)


def apply_strong(images: Tensor, draw: StrongDraw, chunk: int | None = None) -> Tensor:
    """Crop, flip, transform and cut out uint8 images (N, 3, H, W) as drawn; a new tensor of the same shape.

    `chunk` images of 32x32, or as many pixels, are worked on at a time (default: CHUNK): the result does not
    depend on it. Raises BadInput where the images are not uint8 (N, C, H, W) or their number is not the draw's.
    """
    check_images(images, len(draw.operation))
    out = torch.empty_like(images, memory_format=torch.contiguous_format)
    for part in chunks(images, chunk or CHUNK.get(images.device.type, CHUNK["cuda"])):
        view = apply_weak(images[part], WeakDraw(*(field[part] for field in draw.weak)))
        for operation, magnitude in zip(draw.operation[part].T, draw.magnitude[part].T, strict=True):
            view = _one_operation_each(view, operation, magnitude)
        out[part] = cutout(view, *draw.cutout[part].unbind(1))
    return out


def _one_operation_each(images: Tensor, operation: Tensor, magnitude: Tensor) -> Tensor:
    # Sorted by operation on the CPU, so that the groups' sizes are known without waiting for the device.
    order = operation.argsort(stable=True)
    sizes = operation.bincount(minlength=len(OPERATIONS)).tolist()
    groups = images.index_select(0, order.to(images.device)).split(sizes)
    magnitudes = magnitude[order].split(sizes)
    done = [op.apply(*group) for op, *group in zip(OPERATIONS.values(), groups, magnitudes, strict=True)]
    return torch.cat(done).index_select(0, order.argsort().to(images.device))


def _per_image(values: Tensor, images: Tensor, dtype: torch.dtype) -> Tensor:
    return values.to(dtype).to(images.device).view(-1, 1, 1, 1)


def _look_up(images: Tensor, table: Tensor) -> Tensor:
    """Replace level v in channel c of image i by table[i, c, v], truncated."""
    return table.to(torch.uint8).gather(2, images.flatten(2).long()).view(images.shape)


def _blend(degenerate: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """Image.blend for factors in 0..1: degenerate + factor (images - degenerate) in float32, truncated."""
    degenerate, factor = degenerate.float(), _per_image(factor, images, torch.float32)
    return (images - degenerate).mul_(factor).add_(degenerate).to(torch.uint8)


def _luma(images: Tensor) -> Tensor:
    """Image.convert("L") as int32 (N, 1, H, W): ITU-R 601-2 in 16-bit fixed point, rounded."""
    red, green, blue = images.to(torch.int32).split(1, dim=1)
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


def _whole_pixels(shift: Tensor) -> Tensor:
    # To Pillow a translation is a scaling, done in float64 and not in fixed point: what is read is the pixel
    # that the shifted centre falls into.
    return (shift + 0.5).floor()


def _affine(images: Tensor, x_from: tuple[Tensor | float, ...], y_from: tuple[Tensor | float, ...]) -> Tensor:
    """Image.transform(AFFINE, NEAREST): pixel (x, y) is read from (a x + b y + c, d x + e y + f), else black.

    x_from = (a, b, c) and y_from = (d, e, f), each float64 (N,) or one number for all; centres are at halves.
    """
    n, channels, height, width = images.shape
    x = torch.arange(width, dtype=torch.int32, device=images.device)
    y = torch.arange(height, dtype=torch.int32, device=images.device)[:, None]

    def source(across: Tensor | float, down: Tensor | float, shift: Tensor | float) -> Tensor:
        floats = (across, down, shift + across * 0.5 + down * 0.5)
        fixed = ((torch.as_tensor(v, dtype=torch.float64) * 65536 + 0.5).floor().int() for v in floats)
        across, down, start = (v.to(images.device).view(-1, 1, 1) for v in fixed)
        return (across * x + down * y + start) >> 16

    column, row = source(*x_from), source(*y_from)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    index = torch.where(inside, row * width + column, 0).view(n, 1, height * width).long()
    pixels = images.flatten(2).gather(2, index.expand(-1, channels, -1)).view(images.shape)
    return pixels * inside[:, None]
