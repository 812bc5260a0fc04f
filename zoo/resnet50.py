"""ResNet-50 for CIFAR (He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, bottleneck blocks).

The variant of RepDistiller and mdistiller, under their parameter names: ImageNet's network with a 3x3 stem of stride 1
and without max pooling, and the stride in the 3x3 convolution. No BatchNorm starts at zero.

features  f0 (64,32,32) after the stem's ReLU; f1 (256,32,32), f2 (512,16,16), f3 (1024,8,8), f4 (2048,4,4) the stages'
          residual sums after ReLU
preact    the sums of f1 ... f4 before that ReLU
last_map  f4
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.outputs import Net, init_conv

EXPANSION = 4
STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))  # inner width, blocks, stride of the first block


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions plus shortcut, without ReLU: (B, in, h, w) -> (B, 4 width, h/stride, w/stride)."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = EXPANSION * width
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()  # the name that published checkpoints use
        if stride != 1 or in_channels != out_channels:
            projection = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.shortcut.extend([projection, nn.BatchNorm2d(out_channels)])

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        y += self.shortcut(x)
        return y


class ResNet50(Net):
    """Stem, four stages of 3, 4, 6 and 3 bottlenecks, one linear layer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        channels, stages = 64, []
        for width, blocks, stride in STAGES:
            first, channels = Bottleneck(channels, width, stride), EXPANSION * width
            stages.append(nn.Sequential(first, *(Bottleneck(channels, width, 1) for _ in range(blocks - 1))))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.linear = nn.Linear(channels, num_classes)  # keeps PyTorch's default initialisation
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init_conv(module)

    @property
    def head(self) -> nn.Linear:
        return self.linear

    @property
    def preact_bn(self) -> tuple[nn.BatchNorm2d, ...]:
        return tuple(stage[-1].bn3 for stage in (self.layer1, self.layer2, self.layer3, self.layer4))

    def trace(self, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        features, preact = [x], []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            last = len(stage) - 1
            for i, block in enumerate(stage):
                total = block(x)
                x = F.relu(total, inplace=i < last)  # the last sum of a stage is kept, so not overwritten
            features.append(x)
            preact.append(total)
        return tuple(features), tuple(preact), x


ARCHITECTURES = {"resnet50": ResNet50}
