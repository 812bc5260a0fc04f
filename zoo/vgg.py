"""CIFAR VGGs with batch normalisation (Simonyan & Zisserman, "Very Deep Convolutional Networks", ICLR 2015).

The variant of RepDistiller and mdistiller, under their parameter names: five blocks of 3x3 convolutions (with
bias), 2x2 max pooling behind the first three, and behind the fourth for images of side 64 or more (there: of 64),
global average pooling, and one linear layer in place of three.

features  f0 (64,32,32), f1 (128,16,16), f2 (256,8,8), f3 (512,4,4), f4 (512,4,4): block outputs after ReLU
preact    the BatchNorm outputs of blocks 1 ... 4 before that ReLU
last_map  f4
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.outputs import Net, init_conv

WIDTHS = (64, 128, 256, 512, 512)  # channels of the five blocks
POOLS_AGAIN = 64  # from this side on, behind the fourth block too


class VGG(Net):
    """`convs` holds the number of convolutions in each of the five blocks."""

    def __init__(self, convs: tuple[int, int, int, int, int], num_classes: int) -> None:
        super().__init__()
        self.block0 = _block(3, WIDTHS[0], convs[0])
        self.block1 = _block(WIDTHS[0], WIDTHS[1], convs[1])
        self.block2 = _block(WIDTHS[1], WIDTHS[2], convs[2])
        self.block3 = _block(WIDTHS[2], WIDTHS[3], convs[3])
        self.block4 = _block(WIDTHS[3], WIDTHS[4], convs[4])
        self.classifier = nn.Linear(WIDTHS[4], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init_conv(module)
        if not self.classifier.weight.is_meta:  # as in init_conv
            nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    @property
    def head(self) -> nn.Linear:
        return self.classifier

    @property
    def preact_bn(self) -> tuple[nn.BatchNorm2d, ...]:
        return tuple(block[-1] for block in (self.block1, self.block2, self.block3, self.block4))

    def trace(self, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]:
        features, preact = [], []
        for i, block in enumerate((self.block0, self.block1, self.block2, self.block3, self.block4)):
            if 1 <= i <= 3 or (i == 4 and self.side >= POOLS_AGAIN):
                x = F.max_pool2d(x, 2)
            normed = block(x)
            x = F.relu(normed)
            features.append(x)
            preact.append(normed)
        return tuple(features), tuple(preact[1:]), x


def _block(in_channels: int, out_channels: int, convs: int) -> nn.Sequential:
    """conv-BN, then ReLU-conv-BN for the rest: it ends before its last ReLU, so both sides are at hand."""
    layers: list[nn.Module] = []
    for _ in range(convs):
        layers += [nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels)]
        layers += [nn.ReLU(inplace=True)]
        in_channels = out_channels
    return nn.Sequential(*layers[:-1])


ARCHITECTURES = {
    "vgg8": partial(VGG, (1, 1, 1, 1, 1)),
    "vgg11": partial(VGG, (1, 1, 2, 2, 2)),
    "vgg13": partial(VGG, (2, 2, 2, 2, 2)),
    "vgg16": partial(VGG, (2, 2, 3, 3, 3)),
    "vgg19": partial(VGG, (2, 2, 4, 4, 4)),
}
