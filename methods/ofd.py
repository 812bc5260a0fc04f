"""OFD: Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019 (arXiv 1904.01866)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, threshold

from methods.contract import Batch, Method, Progress, TrainSet, register
from methods.kd import WithKD, kd_beside
from zoo import Outputs, shapes
from zoo.outputs import init_conv

RARELY = 1e-3  # a channel that is negative less often than this takes -3 |gamma| for its margin


@torch.no_grad()
def margins(bn: nn.BatchNorm2d) -> Tensor:
    """Mean m of the negative part of each channel of a BatchNorm's output, (C,), if that is normal.

    With s = |gamma|: m = beta - s pdf(beta / s) / cdf(-beta / s) where cdf(-beta / s) > 0.001, else -3 s. The limit
    for gamma = 0, where the released code divides by zero, is min(beta, 0).
    """
    scale, shift = bn.weight.double().abs(), bn.bias.double()
    ratio = shift / scale.clamp_min(torch.finfo(torch.float64).tiny)
    negative = torch.special.ndtr(-ratio)
    density = torch.exp(-ratio.square() / 2) / math.sqrt(2 * math.pi)
    mean = shift - scale * density / negative
    margin = torch.where(negative > RARELY, mean, -3 * scale)
    return margin.to(torch.promote_types(bn.weight.dtype, torch.float32))


def partial_l2(student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    """Squared distance to the nearest value that the teacher allows, summed over a map, mean over the batch.

    A positive t allows itself alone, any other t everything up to max(t, m). Maps (B, C, h, w), margins (C,) below
    zero. Float32 at least. Equal to the paper's three cases, without their masks: a third of the time.
    """
    dtype = torch.promote_types(student.dtype, torch.float32)
    student, teacher, margin = student.to(dtype), teacher.to(dtype), margin.to(dtype)
    with torch.no_grad():  # the slope of a squared distance to a set is that to the nearest point, held fixed
        highest = torch.maximum(teacher, margin[:, None, None])
        nearest = student.clamp(threshold(teacher, 0.0, -math.inf), highest)
    return (student - nearest).square().sum() / len(student)


def connector(student_channels: int, teacher_channels: int) -> nn.Sequential:
    """1x1 convolution without bias, and BatchNorm: (B, student_channels, h, w) -> (B, teacher_channels, h, w)."""
    conv = nn.Conv2d(student_channels, teacher_channels, kernel_size=1, bias=False)
    init_conv(conv)
    return nn.Sequential(conv, nn.BatchNorm2d(teacher_channels))


@register
class OFD(Method):
    """L = w_ce * CE + w_f * sum_l 2^(l-L) L_l over pre-activation maps l = 1..L, L_l the partial L2 at a connector.

    CE 1 and features 0.001 as in the authors' clovaai/overhaul-distillation (`CIFAR-100`) and mdistiller. Both leave
    the teacher's BatchNorm in train mode, its authors on purpose (their issue 37); `teacher_mode` is the switch.
    Margins come from the last BatchNorm alone, although a ResNet's pre-activation contains its shortcut as well: so
    do theirs. As in mdistiller, networks of different depth meet at their last maps, and a teacher's map is pooled
    to the student's height where they differ. There the margins of a deeper teacher are those of other maps than the
    ones compared, and most pairs of different style stop with an error; ours of them are our own reading.
    """

    name = "ofd"
    label = "OFD"
    group = "feature"
    row = 4

    class Params(WithKD):
        ce_weight: NonNegativeFloat
        """Weight of the cross entropy with the labels."""
        feature_weight: NonNegativeFloat
        """Weight of the partial distances of features, summed over stages."""
        teacher_mode: Literal["eval", "train"]
        """Mode of the teacher's BatchNorm; train is the authors' choice."""

    @property
    def teacher_mode(self) -> Literal["eval", "train"]:
        return self.params.teacher_mode

    def build(self, student: nn.Module, teacher: nn.Module, train_set: TrainSet) -> None:
        maps = shapes(student).preact, shapes(teacher).preact
        levels = min(len(m) for m in maps)
        pairs = zip(*(m[-levels:] for m in maps), strict=True)
        self.connectors = nn.ModuleList(connector(s[0], t[0]) for s, t in pairs)
        norms = teacher.preact_bn[-levels:]
        if norms[0].weight.is_meta:  # shapes are all that is wanted, and to compute them torch imports its compiler
            self.register_buffer("margins", torch.empty(sum(bn.num_features for bn in norms), device="meta"))
        else:
            self.register_buffer("margins", torch.cat([margins(bn) for bn in norms]))

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        p, levels = self.params, len(self.connectors)
        maps = student.preact[-levels:], teacher.preact[-levels:]
        by_level = self.margins.split([bn.num_features for _, bn in self.connectors])
        feature = 0.0
        for level, (connect, s, t, margin) in enumerate(zip(self.connectors, *maps, by_level, strict=True), start=1):
            if s.shape[2:] != t.shape[2:]:
                t = adaptive_avg_pool2d(t, s.shape[2:])
            feature = feature + partial_l2(connect(s), t, margin) * 2.0 ** (level - levels)
        return {
            "ce": p.ce_weight * batch.cross_entropy(student.logits),
            "feature": p.feature_weight * feature,
            **kd_beside(p, student, teacher),
        }
