"""What every network of the zoo gives: logits when called, and all it saw on the way on demand."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from zoo.errors import BadInput

CHANNELS, SIDE = 3, 32  # of the square images that the CIFAR variants were made for
IMAGE = (CHANNELS, SIDE, SIDE)
SIDE_STEP = 16  # the stages of every architecture halve an image of such sides without a remainder


@dataclass(frozen=True, eq=False)
class Outputs:
    """One forward pass over B images and C classes; every tensor carries its gradient.

    logits    (B, C)
    features  f0 ... fL, each (B, c, h, w): stem and stage outputs, as the family's module defines them
    preact    versions of f1 ... fL before their activation, of the same shapes (shufflenetv2: in another channel order)
    last_map  (B, D, h, w), the activated map that the global average pooling reduces
    pooled    (B, D), its mean over h and w
    head      the classifier itself, (..., D) -> (..., C); head(pooled) is logits
    strong    the same network on a second, strongly augmented view, for the methods that ask for one
    """

    logits: Tensor
    features: tuple[Tensor, ...]
    preact: tuple[Tensor, ...]
    last_map: Tensor
    pooled: Tensor
    head: nn.Linear
    strong: Outputs | None = None


class Net(nn.Module):
    """A CIFAR network: families give `trace`, `head` and `preact_bn`, and everything else follows.

    `arch` is the name it was built under, `side` the height and width of its images. A larger side leaves weights, stem
    and strides as they are: all maps grow with it, and the mean over the last one takes any size. VGG alone pools once
    more from 64 on.
    """

    arch: str = ""
    side: int = SIDE

    @property
    def head(self) -> nn.Linear:
        """The classifier, pooled features (..., D) -> logits (..., C)."""
        raise NotImplementedError

    @property
    def preact_bn(self) -> tuple[nn.BatchNorm2d, ...]:
        """The BatchNorm in front of each pre-activation feature; OFD takes its margins from them.

        BadInput for an architecture where no one BatchNorm normalises all of its channels.
        """
        raise NotImplementedError

    def __dir__(self) -> list[str]:
        """Without `preact_bn`, which may be refused: torch.jit.trace reads every attribute that a module lists."""
        return [name for name in super().__dir__() if name != "preact_bn"]

    def trace(self, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]:
        """Images (B, 3, side, side) -> features, preact and last_map as in Outputs. Each layer runs once."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, side, side) -> logits (B, C)."""
        self._check(x)
        _, _, last_map = self.trace(x)
        return self.head(last_map.mean((2, 3)))

    def outputs(self, x: Tensor) -> Outputs:
        """Images (B, 3, side, side) -> logits and everything on the way, at the cost of `forward`."""
        self._check(x)
        features, preact, last_map = self.trace(x)
        pooled = last_map.mean((2, 3))
        return Outputs(self.head(pooled), features, preact, last_map, pooled, self.head)

    def _check(self, x: Tensor) -> None:
        # A mean over h and w would take any size, and VGG means another network at 64x64.
        side = self.side
        if x.ndim != 4 or x.shape[1:] != (CHANNELS, side, side):
            raise BadInput(
                f"images of shape {tuple(x.shape)}: {self.arch or 'this network'} was built for"
                f" (B, {CHANNELS}, {side}, {side}): resize them, or build it with that `side`"
            )


def init_conv(conv: nn.Conv2d) -> None:
    """Weights from N(0, 2 / (kh * kw * out_channels)), any bias 0 (He et al. 2015, fan-out form).

    RepDistiller and mdistiller spell it `kaiming_normal_(mode="fan_out")` for the ResNets and by hand for
    WRN and VGG; it is one distribution.
    """
    if conv.weight.is_meta:
        return  # there is nothing to draw, and torch would import its compiler to do so, which takes seconds
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
