"""What the images of known data sets are when a network sees them: their side, and how pixels are normalised.

The one place for these numbers: `bench.datasets` takes them from here. Nothing in this module imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass

Channels = tuple[float, float, float]


@dataclass(frozen=True)
class Inputs:
    """`side`: height and width. A network sees (pixel - mean) / std, pixels in 0..1, by channel (red, green, blue)."""

    side: int
    mean: Channels
    std: Channels


INPUTS = {
    # RepDistiller, mdistiller and StreamLined normalise so; the true statistics differ in the fourth digit.
    "cifar100": Inputs(32, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    # The true statistics; much code divides by (0.2023, 0.1994, 0.2010), the mean deviation within an image.
    "cifar10": Inputs(32, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    # mdistiller's normalisation; the deviation over all pixels is (0.2770, 0.2691, 0.2821).
    "tiny-imagenet-200": Inputs(64, (0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
    # Its statistics are those of its training images.
    "embedded-1": Inputs(32, (0.4330, 0.4358, 0.4275), (0.2366, 0.2530, 0.2453)),
}
