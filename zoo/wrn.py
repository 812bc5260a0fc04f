"""Wide residual networks (Zagoruyko & Komodakis, "Wide Residual Networks", BMVC 2016), without dropout.

The variant of RepDistiller and mdistiller, under their parameter names. wrn_d_k has (d-4)/6 pre-activation
blocks in each of three stages, of 16k, 32k and 64k channels.

features  f0 (16,32,32) the stem convolution; f1 (16k,32,32), f2 (32k,16,16), f3 (64k,8,8) the stages'
          residual sums: all raw, hence signed
preact    the NEXT BatchNorm applied to f1, f2, f3: that of the following stage's first block, or the last one
last_map  ReLU of the last preact
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.outputs import Net, init_conv


class PreactBlock(nn.Module):
    """BN-ReLU-conv-BN-ReLU-conv plus shortcut: (B, in, h, w) -> the raw sum (B, out, h/stride, w/stride).

    The stage applies bn1 and its ReLU, because a stage's first bn1 is also an output of the network.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.convShortcut = None  # the name that published checkpoints use
        if in_channels != out_channels:
            self.convShortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, raw: Tensor, active: Tensor) -> Tensor:
        """`raw` is the block's input, `active` = relu(bn1(raw)); a projection starts from the latter."""
        y = F.relu(self.bn2(self.conv1(active)), inplace=True)
        y = self.conv2(y)
        y += raw if self.convShortcut is None else self.convShortcut(active)
        return y


class Stage(nn.Module):
    """Blocks of equal width, the first of which changes channels and resolution."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, blocks: int) -> None:
        super().__init__()
        rest = (PreactBlock(out_channels, out_channels, 1) for _ in range(blocks - 1))
        self.layer = nn.ModuleList([PreactBlock(in_channels, out_channels, stride), *rest])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Raw x -> the stage's raw sum, and x after the first BatchNorm, which is the preact of x."""
        entry = normed = self.layer[0].bn1(x)
        for i, block in enumerate(self.layer):
            if i > 0:
                normed = block.bn1(x)
            x = block(x, F.relu(normed, inplace=i > 0))  # `entry` is kept, so not overwritten
        return x, entry


class WideResNet(Net):
    """WRN-`depth`-`widen`, depth 6n+4: a bare stem convolution, three stages of n blocks, BN-ReLU, linear."""

    def __init__(self, depth: int, widen: int, num_classes: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = Stage(16, 16 * widen, 1, blocks)
        self.block2 = Stage(16 * widen, 32 * widen, 2, blocks)
        self.block3 = Stage(32 * widen, 64 * widen, 2, blocks)
        self.bn1 = nn.BatchNorm2d(64 * widen)
        self.fc = nn.Linear(64 * widen, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init_conv(module)
        nn.init.zeros_(self.fc.bias)  # its weight keeps PyTorch's default

    @property
    def head(self) -> nn.Linear:
        return self.fc

    @property
    def preact_bn(self) -> tuple[nn.BatchNorm2d, ...]:
        return self.block2.layer[0].bn1, self.block3.layer[0].bn1, self.bn1

    def trace(self, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]:
        # The next stage normalises its input anyway: taking the preact from there updates each BatchNorm's
        # running statistics once a step, where mdistiller's forward evaluates these three a second time.
        f0 = self.conv1(x)
        f1, _ = self.block1(f0)
        f2, preact1 = self.block2(f1)
        f3, preact2 = self.block3(f2)
        preact3 = self.bn1(f3)
        return (f0, f1, f2, f3), (preact1, preact2, preact3), F.relu(preact3)


ARCHITECTURES = {f"wrn_{depth}_{widen}": partial(WideResNet, depth, widen) for depth in (16, 40) for widen in (1, 2)}
