"""Weak augmentation against torchvision on the same offsets, and the distribution of what is drawn."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision.transforms.functional as TF
from torchvision.transforms import RandomCrop

from bench.training.augment import WeakDraw, apply_weak, draw_weak
from zoo.errors import BadInput


def noise(n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)


def torchvision_weak(image: torch.Tensor, top: int, left: int, flip: bool) -> torch.Tensor:
    size = image.shape[-1]
    image = TF.crop(TF.pad(image, [4], fill=0), top, left, size, size)
    return TF.hflip(image) if flip else image


def test_every_offset_and_flip_equals_torchvision():
    top, left, flip = torch.cartesian_prod(torch.arange(9), torch.arange(9), torch.arange(2)).unbind(1)
    draw = WeakDraw(top, left, flip.bool())
    images = noise(9 * 9 * 2)
    expected = [torchvision_weak(image, int(t), int(c), bool(f)) for image, t, c, f in zip(images, *draw, strict=True)]
    assert torch.equal(apply_weak(images, draw), torch.stack(expected))


def test_offsets_have_the_range_of_torchvisions_random_crop():
    torch.manual_seed(0)
    padded = TF.pad(noise(1)[0], [4])
    seen = {RandomCrop.get_params(padded, (32, 32))[:2] for _ in range(2000)}
    draw = draw_weak(5000, torch.Generator().manual_seed(0))
    assert set(zip(draw.top.tolist(), draw.left.tolist(), strict=True)) == seen
    assert len(seen) == 81


def test_offsets_are_uniform_independent_and_half_are_flipped():
    n = 81_000
    draw = draw_weak(n, torch.Generator().manual_seed(0))
    cells = torch.bincount((draw.top * 9 + draw.left) * 2 + draw.flip, minlength=162).double()
    expected = n / 162
    chi2 = ((cells - expected) ** 2 / expected).sum().item()
    # 161 degrees of freedom: mean 161, standard deviation sqrt(322); 5 of them leave no room for a bias.
    assert chi2 < 161 + 5 * math.sqrt(322)
    assert abs(draw.flip.double().mean().item() - 0.5) < 5 * 0.5 / math.sqrt(n)


def test_one_seed_gives_one_augmentation():
    images = noise(64)
    first, again, other = (apply_weak(images, draw_weak(64, torch.Generator().manual_seed(seed))) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("chunk", [1, 7, 50, 51])
def test_the_result_does_not_depend_on_the_chunk(chunk):
    images, draw = noise(50), draw_weak(50, torch.Generator().manual_seed(5))
    assert torch.equal(apply_weak(images, draw, chunk=chunk), apply_weak(images, draw))


def test_input_is_left_alone_and_output_is_new_memory():
    centre, unflipped = torch.full((20,), 4), torch.zeros(20, dtype=torch.bool)
    images, draw = noise(20), WeakDraw(centre, centre, unflipped)
    before = images.clone()
    out = apply_weak(images, draw)
    assert torch.equal(out, images)  # offset 4 of a padding of 4 is the image itself
    out.zero_()
    assert torch.equal(images, before)


def test_channels_last_and_sliced_images_are_taken_as_they_are():
    images, draw = noise(40), draw_weak(20, torch.Generator().manual_seed(6))
    expected = apply_weak(images[::2].clone(), draw)
    assert torch.equal(apply_weak(images[::2], draw), expected)
    assert torch.equal(apply_weak(images[::2].to(memory_format=torch.channels_last), draw), expected)


def test_no_images_is_no_error():
    assert apply_weak(noise(0), draw_weak(0, torch.Generator())).shape == (0, 3, 32, 32)


@pytest.mark.parametrize("images", [noise(4).float(), noise(4)[0], noise(5)], ids=["float", "one", "count"])
def test_wrong_images_are_refused(images):
    with pytest.raises(BadInput, match="images"):
        apply_weak(images, draw_weak(4, torch.Generator()))


def test_larger_images_are_padded_in_proportion():
    """By 8 at 64x64, against torchvision's crop of the padded image."""
    images = torch.randint(0, 256, (40, 3, 64, 64), generator=torch.Generator().manual_seed(9), dtype=torch.uint8)
    draw = draw_weak(40, torch.Generator().manual_seed(10), 64)
    assert 12 < int(draw.top.max()) <= 16 and int(draw.left.min()) >= 0
    for image, out, top, left, flip in zip(images, apply_weak(images, draw, chunk=8), *draw, strict=True):
        crop = TF.crop(TF.pad(image, [8]), int(top), int(left), 64, 64)
        assert torch.equal(out, TF.hflip(crop) if flip else crop)
