"""ReviewKD: Chen, Liu, Zhao and Jia, "Distilling Knowledge via Knowledge Review", CVPR 2021 (arXiv 2104.09044)."""

from __future__ import annotations

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, conv2d, interpolate, mse_loss

from methods.contract import Batch, Method, Progress, TrainSet, register
from methods.kd import WithKD, kd_beside
from zoo import Outputs, shapes


def hierarchical_context_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """HCL of two maps (B, C, H, W): (MSE + sum_k 2^-k MSE of the maps pooled to l_k x l_k) / (1 + sum_k 2^-k).

    l_k runs over those of 4, 2, 1 that are below H; k counts these from 1. Float32 at least, whatever the autocast.
    """
    dtype = torch.promote_types(student_map.dtype, torch.float32)
    student_map, teacher_map = student_map.to(dtype), teacher_map.to(dtype)  # autocast lowers nothing of what follows
    height, width = student_map.shape[2:]
    # Pooling is linear: the difference is pooled, not the maps; equal cells are pooled from their quarters.
    difference = pooled = student_map - teacher_map
    loss, weight, weights, equal_cells = mse_loss(student_map, teacher_map), 1.0, 1.0, True
    for size in (4, 2, 1):
        if size < height:
            pooled = adaptive_avg_pool2d(pooled if equal_cells else difference, size)
            equal_cells = height % size == 0 and width % size == 0
            weight /= 2
            weights += weight
            loss = loss + weight * pooled.square().mean()
    return loss / weights


class Normalise(nn.BatchNorm2d):
    """BatchNorm2d that takes a single value a channel, too: one image at the pooled level, as a last batch may be."""

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() == x.shape[1]:
            return (x - x) * self.weight[:, None, None] + self.bias[:, None, None]
        return super().forward(x)


def _convolution(in_channels: int, out_channels: int, kernel_size: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    return nn.Sequential(conv, Normalise(out_channels))


def _resize(x: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    return x if x.shape[2:] == size else interpolate(x, size, mode="nearest")


class Fusion(nn.Module):
    """One level's attention-based fusion of a student map with what comes from the deeper levels.

    x = BN(conv1x1(f)); with a residual r, resized to x: [w1, w2] = sigmoid(conv1x1([x, r])), x = w1 x + w2 r.
    Gives BN(conv3x3(x)), to compare with the teacher, and x itself, the next level's residual; both at `size`.
    """

    def __init__(self, in_channels: int, mid_channels: int, out_channels: int, fuses: bool) -> None:
        super().__init__()
        self.reduce = _convolution(in_channels, mid_channels, 1)
        self.expand = _convolution(mid_channels, out_channels, 3)
        self.attention = nn.Conv2d(2 * mid_channels, 2, 1) if fuses else None

    def forward(self, feature: Tensor, residual: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        x = self.reduce(feature)
        if self.attention is not None:
            # A 1x1 convolution of the concatenation is a sum, whose second part needs no resizing before it.
            of_x, of_r = self.attention.weight.split(x.shape[1], dim=1)
            scores = _resize(conv2d(residual, of_r, self.attention.bias), x.shape[2:])
            weights = torch.sigmoid(conv2d(x, of_x) + scores)
            x = weights[:, :1] * x + weights[:, 1:] * _resize(residual, x.shape[2:])
        x = _resize(x, size)
        return self.expand(x), x


@register
class ReviewKD(Method):
    """L = w_ce CE + w_r min(epoch / warm_up, 1) sum_l HCL(fused_l, teacher_l), epoch counted from 1.

    The student's levels are f1 ... fL (activated, for WRN raw sums) and the pooled features as a 1x1 map, fused from
    the deepest to the shallowest; the teacher's are its f1 ... fL before the activation and its pooled features.
    The width between the convolutions is that of the student's pooled features, at most 512.

    Published: CE 1, warm-up 20, weight per pair (scripts of dvlab-research/ReviewKD). That code counts epochs from 0,
    mdistiller's from 1. Both list shapes and channels by hand for each pair; here they follow from the networks. Of
    networks with unequal numbers of levels the deepest meet, as in OFD: our own reading, nobody publishes such a pair.
    """

    name = "reviewkd"
    label = "ReviewKD"
    group = "feature"
    row = 5

    class Params(WithKD):
        ce_weight: NonNegativeFloat
        """Weight of the cross entropy with the labels."""
        review_weight: NonNegativeFloat
        """Weight of the distances of fused features."""
        warm_up_epochs: PositiveInt
        """Epochs over which that term rises to its full weight."""

    def build(self, student: nn.Module, teacher: nn.Module, train_set: TrainSet) -> None:
        s, t = shapes(student), shapes(teacher)
        self.levels = min(len(s.features) - 1, len(t.preact))
        channels = [c for c, _, _ in s.features[-self.levels :]] + [s.pooled]
        targets = [*t.preact[-self.levels :], (t.pooled, 1, 1)]
        self.sizes = [(height, width) for _, height, width in targets]
        self.fusions = nn.ModuleList(
            Fusion(channels[level], min(512, s.pooled), targets[level][0], fuses=level < len(targets) - 1)
            for level in range(len(targets))
        )

    def fuse(self, student: Outputs) -> list[Tensor]:
        """The student's levels 1 ... L and pooled (of more than the teacher's the deepest), each in its shape."""
        levels = [*student.features[-self.levels :], student.pooled[:, :, None, None]]
        fused, residual = [], None
        for feature, fusion, size in reversed(list(zip(levels, self.fusions, self.sizes, strict=True))):
            result, residual = fusion(feature, residual, size)
            fused.append(result)
        return fused[::-1]

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        p = self.params
        targets = [*teacher.preact[-self.levels :], teacher.pooled[:, :, None, None]]
        losses = [hierarchical_context_loss(*maps) for maps in zip(self.fuse(student), targets, strict=True)]
        return {
            "ce": p.ce_weight * batch.cross_entropy(student.logits),
            "review": p.review_weight * progress.warm_up(p.warm_up_epochs) * torch.stack(losses).sum(),
            **kd_beside(p, student, teacher),
        }
