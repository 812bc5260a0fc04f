"""CIFAR ResNets (He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2).

The variant of RepDistiller and mdistiller: projection shortcuts (option B) where the shape changes, and "x4"
nets of wider stages. Parameters carry the names of those repositories, so their checkpoints load.

features  f0 (c0,32,32) after the stem's ReLU; f1 (c1,32,32), f2 (c2,16,16), f3 (c3,8,8) the stages' residual
          sums after ReLU
preact    the sums of f1, f2, f3 before that ReLU
last_map  f3
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.outputs import Net, init_conv

THIN = (16, 16, 32, 64)  # channels of the stem and the three stages
X4 = (32, 64, 128, 256)


class BasicBlock(nn.Module):
    """conv-BN-ReLU-conv-BN plus shortcut, without ReLU: (B, in, h, w) -> (B, out, h/stride, w/stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            projection = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        y += x if self.downsample is None else self.downsample(x)
        return y


class ResNet(Net):
    """ResNet of `depth` 6n+2 layers: a stem, three stages of n basic blocks, one linear layer."""

    def __init__(self, depth: int, widths: tuple[int, int, int, int], num_classes: int) -> None:
        super().__init__()
        stem, *stages = widths
        self.conv1 = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        blocks = (depth - 2) // 6
        self.layer1 = _stage(stem, stages[0], 1, blocks)
        self.layer2 = _stage(stages[0], stages[1], 2, blocks)
        self.layer3 = _stage(stages[1], stages[2], 2, blocks)
        self.fc = nn.Linear(stages[2], num_classes)  # keeps PyTorch's default initialisation
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init_conv(module)

    @property
    def head(self) -> nn.Linear:
        return self.fc

    @property
    def preact_bn(self) -> tuple[nn.BatchNorm2d, ...]:
        return tuple(stage[-1].bn2 for stage in (self.layer1, self.layer2, self.layer3))

    def trace(self, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        features, preact = [x], []
        for stage in (self.layer1, self.layer2, self.layer3):
            last = len(stage) - 1
            for i, block in enumerate(stage):
                total = block(x)
                x = F.relu(total, inplace=i < last)  # the last sum of a stage is kept, so not overwritten
            features.append(x)
            preact.append(total)
        return tuple(features), tuple(preact), x


def _stage(in_channels: int, out_channels: int, stride: int, blocks: int) -> nn.Sequential:
    rest = (BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1))
    return nn.Sequential(BasicBlock(in_channels, out_channels, stride), *rest)


ARCHITECTURES = {
    **{f"resnet{depth}": partial(ResNet, depth, THIN) for depth in (8, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": partial(ResNet, depth, X4) for depth in (8, 32)},
}
