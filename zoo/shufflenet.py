"""ShuffleNets: Zhang et al., "ShuffleNet", CVPR 2018 (V1, groups 3), and Ma et al., "ShuffleNet V2", ECCV 2018 (1x).

The CIFAR variants of RepDistiller and mdistiller, under their parameter names: a 1x1 stem of stride 1 without max
pooling; in V1 a ReLU behind the depthwise convolution, too, which the paper has not. Everything keeps PyTorch's own
initialisation. PyTorch's `channel_shuffle` with g groups is theirs: output j is input (j mod g) * (C / g) + j // g.

shufflenetv1
features  f0 (24,32,32) after the stem's ReLU; f1 (240,16,16), f2 (480,8,8), f3 (960,4,4) the stages after ReLU
preact    f1, f2, f3 before that ReLU
last_map  f3

shufflenetv2
features  f0 (24,32,32) as there; f1 (116,16,16), f2 (232,8,8), f3 (464,4,4) the stages' outputs, shuffled
preact    of a stage's last block the channels passed on and the branch before its last ReLU, NOT shuffled:
          f_i = channel_shuffle(relu(preact_i), 2), so another order of channels than the features'
last_map  (1024,4,4) after the last 1x1 convolution's ReLU, none of the features
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, channel_shuffle, nn

from zoo.errors import BadInput
from zoo.outputs import Net

STEM = 24
GROUPS = 3
V1 = ((240, 4), (480, 8), (960, 4))  # channels out and blocks of the three stages
V2 = ((116, 4), (232, 8), (464, 4))
V2_LAST = 1024


class GroupedBlock(nn.Module):
    """V1: grouped 1x1, shuffle, 3x3 depthwise, grouped 1x1, plus shortcut; the value before the last ReLU.

    With stride 2 the shortcut is a 3x3 average pooling (padding counts as zeros) whose channels stand behind the
    branch's; the first 1x1 of the network has one group, and hence no shuffle.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        branch = out_channels if stride == 1 else out_channels - in_channels
        mid = branch // 4
        self.stride = stride
        self.groups = 1 if in_channels == STEM else GROUPS
        self.conv1 = nn.Conv2d(in_channels, mid, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(mid)
        self.conv2 = nn.Conv2d(mid, mid, 3, stride, padding=1, groups=mid, bias=False)
        self.bn2 = nn.BatchNorm2d(mid)
        self.conv3 = nn.Conv2d(mid, branch, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(branch)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        if self.groups > 1:
            y = channel_shuffle(y, self.groups)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        if self.stride == 1:
            y += x
            return y
        return torch.cat([y, F.avg_pool2d(x, 3, 2, padding=1)], 1)


class ShuffleNetV1(Net):
    """Stem, three stages of which the first block halves the resolution, one linear layer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.layer1, self.layer2, self.layer3 = (nn.Sequential() for _ in V1)
        channels = STEM
        for stage, (out_channels, blocks) in zip((self.layer1, self.layer2, self.layer3), V1, strict=True):
            stage.append(GroupedBlock(channels, out_channels, 2))
            stage.extend(GroupedBlock(out_channels, out_channels, 1) for _ in range(blocks - 1))
            channels = out_channels
        self.linear = nn.Linear(V1[-1][0], num_classes)

    @property
    def head(self) -> nn.Linear:
        return self.linear

    @property
    def preact_bn(self) -> tuple[nn.BatchNorm2d, ...]:
        return tuple(stage[-1].bn3 for stage in (self.layer1, self.layer2, self.layer3))

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


class SplitBlock(nn.Module):
    """V2: half of the channels pass, the other half go through 1x1, 3x3 depthwise and 1x1; before the last ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, h, w) -> the passed half, and the branch without its last ReLU, each (B, C/2, h, w)."""
        passed, y = x.chunk(2, 1)
        y = F.relu(self.bn1(self.conv1(y)), inplace=True)
        return passed, self.bn3(self.conv3(self.bn2(self.conv2(y))))


class DownBlock(nn.Module):
    """V2, first of a stage: two branches of half the channels each, both of stride 2; conv1, conv2 are the left one."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, 2, padding=1, groups=in_channels, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = nn.Conv2d(in_channels, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(in_channels, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = nn.Conv2d(half, half, 3, 2, padding=1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, in, h, w) -> left and right branch, the right one without its last ReLU, each (B, out/2, h/2, w/2)."""
        left = F.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))), inplace=True)
        right = F.relu(self.bn3(self.conv3(x)), inplace=True)
        return left, self.bn5(self.conv5(self.bn4(self.conv4(right))))


class ShuffleNetV2(Net):
    """Stem, three stages of a DownBlock and SplitBlocks, a 1x1 convolution to 1024 channels, one linear layer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.layer1, self.layer2, self.layer3 = (nn.Sequential() for _ in V2)
        channels = STEM
        for stage, (out_channels, blocks) in zip((self.layer1, self.layer2, self.layer3), V2, strict=True):
            stage.append(DownBlock(channels, out_channels))
            stage.extend(SplitBlock(out_channels) for _ in range(blocks - 1))
            channels = out_channels
        self.conv2 = nn.Conv2d(channels, V2_LAST, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(V2_LAST)
        self.linear = nn.Linear(V2_LAST, num_classes)

    @property
    def head(self) -> nn.Linear:
        return self.linear

    @property
    def preact_bn(self) -> tuple[nn.BatchNorm2d, ...]:
        raise BadInput(
            "shufflenetv2 has no BatchNorm over all channels of a pre-activation, half of which pass its last block: "
            "choose another teacher"
        )

    def trace(self, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        features, preact = [x], []
        for stage in (self.layer1, self.layer2, self.layer3):
            last = len(stage) - 1
            for i, block in enumerate(stage):
                first, second = block(x)
                if i == last:
                    preact.append(torch.cat([first, second], 1))  # a copy, which the next line leaves alone
                x = channel_shuffle(torch.cat([first, F.relu(second, inplace=True)], 1), 2)
            features.append(x)
        return tuple(features), tuple(preact), F.relu(self.bn2(self.conv2(x)), inplace=True)


ARCHITECTURES = {"shufflenetv1": ShuffleNetV1, "shufflenetv2": ShuffleNetV2}
