"""Networks at other sides than 32: the same weights, larger maps, one more pooling in VGG."""

from __future__ import annotations

import pytest
import torch

import zoo

ONE_OF_A_FAMILY = (
    "resnet20",
    "resnet32x4",
    "wrn_16_2",
    "vgg8",
    "resnet50",
    "mobilenetv2",
    "shufflenetv1",
    "shufflenetv2",
)


@pytest.mark.parametrize("arch", zoo.architectures())
def test_four_times_the_work_at_twice_the_side(arch):
    """All but the classifier; and but VGG's last block, whose maps are 4x4 at 32 and at 64."""
    linear = 10 * zoo.shapes(arch).pooled
    small, large = (zoo.count_macs(arch, 10, side) - linear for side in (32, 64))
    last_block = {"vgg8": 1, "vgg11": 2, "vgg13": 2, "vgg16": 3, "vgg19": 4}.get(arch, 0) * 512 * 512 * 9 * 16
    assert large - last_block == 4 * (small - last_block)


@pytest.mark.parametrize("side", [32, 48, 64, 96])
@pytest.mark.parametrize("arch", ONE_OF_A_FAMILY)
def test_any_side_gives_one_row_an_image(arch, side):
    torch.manual_seed(0)
    net = zoo.build(arch, 7, side).eval()
    torch.manual_seed(0)
    plain = zoo.build(arch, 7)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), plain.parameters(), strict=True))
    with torch.no_grad():
        out = net.outputs(torch.randn(2, 3, side, side))
    assert out.logits.shape == (2, 7)
    shapes, usual = zoo.shapes(net), zoo.shapes(arch)
    assert [tuple(f.shape[1:]) for f in out.features] == list(shapes.features)
    assert [tuple(p.shape[1:]) for p in out.preact] == list(shapes.preact)
    assert tuple(out.last_map.shape[1:]) == shapes.last_map and shapes.pooled == usual.pooled
    scaled = [(c, h * side // 32, w * side // 32) for c, h, w in usual.features]
    if arch == "vgg8" and side >= 64:  # pools behind its fourth block, too
        scaled[-1] = (512, side // 16, side // 16)
    assert list(shapes.features) == scaled


def test_published_counts_at_64():
    """VGG8's last map is 4x4 there as at 32 (RepDistiller); ResNet50's convolutions are four times as many."""
    assert zoo.shapes(zoo.build_meta("vgg8", 200, 64)).last_map == (512, 4, 4)
    assert zoo.count_macs("resnet50", 200, 64) == 4 * (1_298_014_208 - 204_800) + 2 * 204_800


@pytest.mark.parametrize("side", [16, 40, 0, 64.0, True, "64"])
def test_sides_that_the_stages_cannot_halve_are_refused(side):
    with pytest.raises(zoo.BadInput, match="multiple of 16 from 32 up"):
        zoo.build("resnet8", 10, side)


def test_images_of_another_side_are_refused():
    with pytest.raises(zoo.BadInput, match=r"resnet8 was built for \(B, 3, 64, 64\)"):
        zoo.build("resnet8", 10, 64)(torch.zeros(1, 3, 32, 32))
