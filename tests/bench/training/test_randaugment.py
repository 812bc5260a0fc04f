"""Every operation, cutout and whole strong augmentation against Pillow, and the distribution of the draw."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from bench.training import randaugment
from bench.training.randaugment import OPERATIONS, apply_strong, cutout, draw_strong
from zoo.errors import BadInput


def affine(*matrix: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.transform(image.size, Image.Transform.AFFINE, matrix)


PILLOW: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "autocontrast": lambda image, v: ImageOps.autocontrast(image),
    "brightness": lambda image, v: ImageEnhance.Brightness(image).enhance(v),
    "color": lambda image, v: ImageEnhance.Color(image).enhance(v),
    "contrast": lambda image, v: ImageEnhance.Contrast(image).enhance(v),
    "equalize": lambda image, v: ImageOps.equalize(image),
    "identity": lambda image, v: image,
    "posterize": lambda image, v: ImageOps.posterize(image, max(1, int(v))),
    "rotate": lambda image, v: image.rotate(v),
    "sharpness": lambda image, v: ImageEnhance.Sharpness(image).enhance(v),
    "shear_x": lambda image, v: affine(1, v, 0, 0, 1, 0)(image),
    "shear_y": lambda image, v: affine(1, 0, 0, v, 1, 0)(image),
    "solarize": lambda image, v: ImageOps.solarize(image, v),
    "translate_x": lambda image, v: affine(1, 0, v * image.width, 0, 1, 0)(image),
    "translate_y": lambda image, v: affine(1, 0, 0, 0, 1, v * image.height)(image),
}
RANGES = {name: (op.low, op.high) for name, op in OPERATIONS.items()} | {"posterize": (0, 8)}


def noise(n: int, levels: int = 256, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, levels, (n, 3, 32, 32), generator=torch.Generator().manual_seed(seed)).byte()


def uniform(n: int, seed: int) -> torch.Tensor:
    return torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def sample_images() -> torch.Tensor:
    """Noise, smooth, narrow-range, few-level, one-odd-pixel and constant images, (19, 3, 32, 32)."""
    smooth = torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    smooth = (torch.nn.functional.interpolate(smooth, 32, mode="bicubic").clamp(0, 1) * 255).byte()
    constant = torch.tensor([0, 1, 128, 255], dtype=torch.uint8)[:, None, None, None].expand(4, 3, 32, 32)
    odd = constant.clone()
    odd[:, :, 5, 7] = 200
    half = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    half[:, :, :16] = 9  # two levels, half of the pixels each
    return torch.cat([noise(3), smooth, noise(2, levels=3) + 100, noise(1, levels=40), constant, odd, half])


def as_pillow(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def pillow(name: str, images: torch.Tensor, magnitudes: torch.Tensor) -> torch.Tensor:
    pairs = zip(images, magnitudes.tolist(), strict=True)
    return torch.stack([as_tensor(PILLOW[name](as_pillow(image), v)) for image, v in pairs])


def magnitude_grid(name: str) -> torch.Tensor:
    """Even steps with both ends, where the ties are (half pixels, whole levels and bits), and random ones."""
    low, high = RANGES[name]
    random = low + (high - low) * uniform(40, seed=4)
    return torch.cat([torch.linspace(low, high, 65, dtype=torch.float64), random, torch.tensor([low, high])])


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_equals_pillow_over_its_whole_range(name):
    images, magnitudes = sample_images(), magnitude_grid(name)
    magnitudes, images = magnitudes.repeat_interleave(len(images)), images.repeat(len(magnitudes), 1, 1, 1)
    before = images.clone()
    out = OPERATIONS[name].apply(images, magnitudes)
    assert out.dtype == torch.uint8
    differing = (out != pillow(name, images, magnitudes)).flatten(1).any(dim=1)
    assert not differing.any(), f"{int(differing.sum())} images differ, at {magnitudes[differing][:5]}"
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y", "translate_x", "translate_y"])
def test_geometry_reads_the_pixel_that_pillow_reads(name):
    # Every pixel of this image is another colour, so that a wrong source shows.
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    image = torch.stack([x + 1, y + 1, x + y + 1]).byte()
    # Multiples of 1/64 of the width lie on the border between two pixels.
    ties = torch.arange(-19, 20, dtype=torch.float64) / 64
    low, high = RANGES[name]
    random = low + (high - low) * uniform(1500, seed=5)
    magnitudes = torch.cat([ties, random])
    images = image.expand(len(magnitudes), -1, -1, -1)
    assert torch.equal(OPERATIONS[name].apply(images, magnitudes), pillow(name, images, magnitudes))


@pytest.mark.parametrize("levels", [2, 3, 5, 17, 256])
def test_histogram_operations_on_random_images(levels):
    spread = 1 + (uniform(300, seed=6) * (255 // (levels - 1))).byte().view(-1, 1, 1, 1)
    images = noise(300, levels, seed=7) * spread
    unused = torch.zeros(300, dtype=torch.float64)
    for name in ("autocontrast", "equalize"):
        assert torch.equal(OPERATIONS[name].apply(images, unused), pillow(name, images, unused)), name


def pillow_cutout(image: Image.Image, side: float, x: float, y: float) -> Image.Image:
    """The box of the MLKD repository, with its random centre numpy.random.uniform(32) from a given share."""
    size = side * 32
    if size <= 0:
        return image
    left, top = (int(max(0, low + (1.0 - low) * share - size / 2)) for low, share in ((32, x), (32, y)))
    image = image.copy()
    corners = (left, top, min(32, left + size), min(32, top + size))
    ImageDraw.Draw(image).rectangle(corners, (125, 123, 114))
    return image


def test_cutout_equals_pillow_for_boxes_inside_across_and_outside():
    shares = torch.tensor([0.0, 1e-9, 0.01, 0.25, 0.5, 0.77, 0.99, 1 - 1e-9], dtype=torch.float64)
    sides = torch.tensor([*(pixels / 32 for pixels in range(17)), 1e-9, 0.2, 0.4999], dtype=torch.float64)
    side, x, y = torch.cartesian_prod(sides, shares, shares).unbind(1)
    images = noise(len(side))
    before = images.clone()
    triples = zip(images, side.tolist(), x.tolist(), y.tolist(), strict=True)
    expected = [as_tensor(pillow_cutout(as_pillow(image), *box)) for image, *box in triples]
    assert torch.equal(cutout(images, side, x, y), torch.stack(expected))
    assert torch.equal(images, before)


def test_numpys_one_argument_uniform_runs_down_to_one():
    # What the repositories call for the centre: the argument is the lower bound, the upper one defaults to 1.
    shares = np.random.RandomState(0).random_sample(1000)
    np.testing.assert_allclose(np.random.RandomState(0).uniform(32, size=1000), 32 + (1 - 32) * shares)


@pytest.mark.parametrize("posterize", [(4, 8), (0, 1)])
@pytest.mark.parametrize("ops", [0, 2, 3])
def test_strong_augmentation_equals_pillow_image_by_image(ops, posterize):
    n = 300
    images, draw = noise(n), draw_strong(n, torch.Generator().manual_seed(8), ops, posterize)
    names = list(OPERATIONS)
    expected = []
    for i in range(n):
        top, left, flip = (field[i].item() for field in draw.weak)
        image = TF.crop(TF.pad(as_pillow(images[i]), [4]), top, left, 32, 32)
        image = TF.hflip(image) if flip else image
        for place, v in zip(draw.operation[i].tolist(), draw.magnitude[i].tolist(), strict=True):
            image = PILLOW[names[place]](image, v)
        expected.append(as_tensor(pillow_cutout(image, *draw.cutout[i].tolist())))
    assert torch.equal(apply_strong(images, draw), torch.stack(expected))


def test_list_and_ranges_are_those_of_the_mlkd_repository():
    enhance, geometry, none = (0.05, 0.95), (-0.3, 0.3), (0, 1)
    assert {name: (op.low, op.high) for name, op in OPERATIONS.items()} == {
        "autocontrast": none, "equalize": none, "identity": none,
        "brightness": enhance, "color": enhance, "contrast": enhance, "sharpness": enhance,
        "posterize": (4, 8), "solarize": (0, 256), "rotate": (-30, 30),
        "shear_x": geometry, "shear_y": geometry, "translate_x": geometry, "translate_y": geometry,
    }  # fmt: skip
    assert all(op.apply is getattr(randaugment, name) for name, op in OPERATIONS.items())


def test_operations_are_drawn_uniformly_and_with_replacement():
    n = 98_000
    draw = draw_strong(n, torch.Generator().manual_seed(9))
    pairs = torch.bincount(draw.operation[:, 0] * 14 + draw.operation[:, 1], minlength=196).double()
    chi2 = ((pairs - n / 196) ** 2 / (n / 196)).sum().item()
    # 195 degrees of freedom: mean 195, standard deviation sqrt(390); an operation twice is a pair too.
    assert chi2 < 195 + 5 * math.sqrt(390)


@pytest.mark.parametrize("posterize", [(4, 8), (0, 1)])
def test_magnitudes_are_uniform_over_their_ranges(posterize):
    draw = draw_strong(70_000, torch.Generator().manual_seed(10), posterize=posterize)
    side, x, y = draw.cutout.unbind(1)
    samples = {"side": (side, 0, 0.5), "x": (x, 0, 1), "y": (y, 0, 1)}
    for place, (name, (low, high)) in enumerate((RANGES | {"posterize": posterize}).items()):
        samples[name] = (draw.magnitude[draw.operation == place], low, high)
    for name, (values, low, high) in samples.items():
        share = ((values - low) / (high - low)).sort().values
        even = (torch.arange(len(share)) + 0.5) / len(share)
        assert share[0] >= 0 and share[-1] <= 1, name
        # Kolmogorov-Smirnov: a uniform sample is farther off once in 1,500 draws.
        assert (share - even).abs().max() < 2 / math.sqrt(len(share)), name


def test_one_seed_gives_one_augmentation():
    images = noise(100)
    first, again, other = (
        apply_strong(images, draw_strong(100, torch.Generator().manual_seed(seed))) for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("chunk", [1, 33, 100, 1000])
def test_the_result_does_not_depend_on_the_chunk(chunk):
    images, draw = noise(100), draw_strong(100, torch.Generator().manual_seed(11))
    before = images.clone()
    assert torch.equal(apply_strong(images, draw, chunk=chunk), apply_strong(images, draw))
    assert torch.equal(images, before)


def test_images_may_be_on_another_device_than_the_draw():
    # The meta device holds no values: mixing devices in a call fails on it, and so does waiting for a value.
    out = apply_strong(noise(50).to("meta"), draw_strong(50, torch.Generator().manual_seed(12)), chunk=20)
    assert (out.device.type, out.dtype, out.shape) == ("meta", torch.uint8, (50, 3, 32, 32))


def test_no_images_is_no_error():
    assert apply_strong(noise(0), draw_strong(0, torch.Generator())).shape == (0, 3, 32, 32)


@pytest.mark.parametrize("posterize", [(8, 4), (-1, 4), (4, 9)])
def test_a_posterize_range_that_is_none_is_refused(posterize):
    with pytest.raises(BadInput, match="posterize"):
        draw_strong(4, torch.Generator(), posterize=posterize)


def test_images_without_a_draw_each_are_refused():
    with pytest.raises(BadInput, match="5 images"):
        apply_strong(noise(5), draw_strong(4, torch.Generator()))
