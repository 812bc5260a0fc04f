"""A folded network against the one it was made of."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import zoo
from zoo.inference import folded

torch.set_num_threads(1)
FOLDED_WHOLLY = ("resnet8", "resnet8x4", "vgg8", "vgg13", "resnet50", "mobilenetv2", "shufflenetv1", "shufflenetv2")
NORMS_LEFT = {**dict.fromkeys(FOLDED_WHOLLY, 0), "wrn_16_1": 7}  # wrn: six in blocks, one at the end


def seasoned(arch: str) -> zoo.Net:
    """In eval mode, with statistics and weights of BatchNorm that are not those of the start."""
    torch.manual_seed(3)
    net = zoo.build(arch)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return net.eval()


@pytest.mark.parametrize("arch", NORMS_LEFT)
@torch.no_grad()
def test_gives_all_outputs_to_rounding(arch):
    net = seasoned(arch).double()  # so that what is wrong cannot hide in rounding
    before = {name: value.clone() for name, value in net.state_dict().items()}
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    made = folded(net)
    ours, theirs = made.outputs(images), net.outputs(images)
    for field in dataclasses.fields(ours):
        mine, other = getattr(ours, field.name), getattr(theirs, field.name)
        for a, b in zip(*((x if isinstance(x, tuple) else (x,)) for x in (mine, other)), strict=True):
            if isinstance(a, torch.Tensor):
                assert torch.allclose(a, b, rtol=1e-10, atol=1e-10), field.name
    assert sum(isinstance(module, nn.BatchNorm2d) for module in made.modules()) == NORMS_LEFT[arch]
    assert not made.training and not any(p.requires_grad for p in made.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@torch.no_grad()
def test_float32_differs_by_rounding_alone():
    net, images = seasoned("resnet8"), torch.randn(8, 3, 32, 32)
    off = folded(net)(images) - net(images)
    assert 0 < off.norm() / net(images).norm() < 1e-5
