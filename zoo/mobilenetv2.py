"""MobileNetV2 at half width (Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018).

The CIFAR variant of RepDistiller and mdistiller, under their parameter names: plain ReLU where the paper has ReLU6, a
stem of stride 2, six-fold expansion, widths int(c / 2) of the paper's without rounding to multiples of 8, and all 1280
channels in the last layer. Other repositories have nets of the same names and shapes that compute something else
(StreamLined with ReLU6, HSAKD with a stem of stride 1): their files load, and give other accuracies than there.

features  f0 (16,16,16) after the stem's ReLU; f1 (12,16,16), f2 (16,8,8), f3 (48,4,4), f4 (160,2,2) the outputs of
          stages 1, 2, 4, 6: linear bottlenecks, hence signed
preact    f1, f2, f3, f4 themselves, which no activation follows
last_map  (1280,2,2) after the last 1x1 convolution's ReLU, none of the features
"""

from __future__ import annotations

from torch import Tensor, nn

from zoo.outputs import Net, init_conv

STEM, LAST, EXPANSION = 16, 1280, 6
# blocks, channels out, stride of the first block
STAGES = ((1, 8, 1), (2, 12, 1), (3, 16, 2), (4, 32, 2), (3, 48, 1), (3, 80, 2), (1, 160, 1))
SEEN = (1, 2, 4, 6)  # the stages whose outputs are features


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 projection without activation: (B, in, h, w) -> (B, out, h/stride, w/stride).

    A plain sum with the input where the shape stays. The first convolution is there for an expansion of 1, too.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = expansion * in_channels
        self.conv = nn.Sequential(
            *_layer(in_channels, wide, 1),
            *_layer(wide, wide, 3, stride, groups=wide),
            nn.Conv2d(wide, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.residual:
            y += x
        return y


class MobileNetV2(Net):
    """Stem, seven stages of inverted residuals, a 1x1 convolution to 1280 channels, one linear layer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(*_layer(3, STEM, 3, 2))
        self.blocks = nn.ModuleList()
        channels = STEM
        for i, (blocks, out_channels, stride) in enumerate(STAGES):
            stage = nn.Sequential()
            for j in range(blocks):
                expansion = EXPANSION if i > 0 else 1
                stage.append(InvertedResidual(channels, out_channels, stride if j == 0 else 1, expansion))
                channels = out_channels
            self.blocks.append(stage)
        self.conv2 = nn.Sequential(*_layer(channels, LAST, 1))
        self.classifier = nn.Sequential(nn.Linear(LAST, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init_conv(module)
        if not self.head.weight.is_meta:  # as in init_conv
            nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    @property
    def head(self) -> nn.Linear:
        return self.classifier[0]

    @property
    def preact_bn(self) -> tuple[nn.BatchNorm2d, ...]:
        return tuple(self.blocks[i][-1].conv[-1] for i in SEEN)

    def trace(self, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]:
        x = self.conv1(x)
        features = [x]
        for i, stage in enumerate(self.blocks):
            x = stage(x)
            if i in SEEN:
                features.append(x)
        return tuple(features), tuple(features[1:]), self.conv2(x)


def _layer(in_channels: int, out_channels: int, size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, size, stride, size // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]


ARCHITECTURES = {"mobilenetv2": MobileNetV2}
