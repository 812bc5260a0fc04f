"""A network in the form that is only ever asked: each BatchNorm that follows a convolution becomes part of it."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from zoo.outputs import Net
from zoo.outside import Outside
from zoo.resnet import BasicBlock, ResNet
from zoo.resnet50 import Bottleneck, ResNet50
from zoo.shufflenet import DownBlock, GroupedBlock, ShuffleNetV1, ShuffleNetV2, SplitBlock
from zoo.wrn import PreactBlock


def _numbered(count: int) -> tuple[tuple[str, str], ...]:
    return tuple((f"conv{i}", f"bn{i}") for i in range(1, count + 1))


# Where a block's BatchNorm is applied to the output of a convolution of its own. The others normalise a sum.
PAIRS = {
    ResNet: _numbered(1),
    BasicBlock: _numbered(2),
    PreactBlock: (("conv1", "bn2"),),
    ResNet50: _numbered(1),
    Bottleneck: _numbered(3),
    ShuffleNetV1: _numbered(1),
    GroupedBlock: _numbered(3),
    ShuffleNetV2: _numbered(2),
    SplitBlock: _numbered(3),
    DownBlock: _numbered(5),
}


def folded(net: Net) -> Net:
    """A frozen copy in eval mode that gives the same `Outputs` to rounding, with fewer passes over its maps.

    gamma (W x - mean) / sqrt(var + eps) + beta is one convolution with bias. Only for a network whose BatchNorm keeps
    its statistics; its weights have other names than the zoo's, so it cannot be saved as a checkpoint.
    """
    net = copy.deepcopy(net).eval()
    # What foreign code does between two layers is not known: a network from elsewhere stays as it is.
    for block in [] if isinstance(net, Outside) else list(net.modules()):
        for conv, norm in _pairs(block):
            setattr(block, conv, fuse_conv_bn_eval(getattr(block, conv), getattr(block, norm)))
            setattr(block, norm, nn.Identity())
    return net.requires_grad_(False)


def _pairs(block: nn.Module) -> Iterator[tuple[str, str]]:
    yield from PAIRS.get(type(block), ())
    if isinstance(block, nn.Sequential):
        layers = list(block.named_children())
        for (name, layer), (following, norm) in itertools.pairwise(layers):
            if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                yield name, following
