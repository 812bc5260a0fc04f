"""VID: Ahn, Hu, Damianou, Lawrence and Dai, "Variational Information Distillation", CVPR 2019 (arXiv 1904.05835)."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn
from torch.nn.functional import softplus

from methods.contract import Batch, Method, Progress, TrainSet, register
from methods.kd import WithKD, kd_beside
from methods.maps import of_equal_height, precise, stages
from zoo import Outputs, shapes

LEAST_VARIANCE, FIRST_VARIANCE = 1e-5, 5.0


class Gaussian(nn.Module):
    """What a stage of the student says of the teacher's map: its mean, and a variance a channel.

    The mean is three 1x1 convolutions (student -> teacher -> teacher -> teacher channels, no bias) with ReLU between;
    the variance log(1 + exp(a)) + 1e-5 starts at 5.
    """

    def __init__(self, student_channels: int, teacher_channels: int) -> None:
        super().__init__()
        widths = (student_channels, teacher_channels, teacher_channels, teacher_channels)
        layers: list[nn.Module] = []
        for into, out in pairwise(widths):
            layers += [nn.Conv2d(into, out, kernel_size=1, bias=False), nn.ReLU()]
        self.mean = nn.Sequential(*layers[:-1])
        start = math.log(math.expm1(FIRST_VARIANCE - LEAST_VARIANCE))
        self.scale = nn.Parameter(torch.full((teacher_channels,), start))

    def loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Mean over B, C, h, w of ((mean - f_t)^2 / variance + log variance) / 2, which may be negative."""
        student, teacher = of_equal_height(student, teacher)
        error = (precise(self.mean(student)) - precise(teacher)).square().mean(dim=(0, 2, 3))
        variance = softplus(precise(self.scale)) + LEAST_VARIANCE
        return (error / variance + variance.log()).mean() / 2


@register
class VID(Method):
    """L = w_ce CE + w_vid sum_l (negative log likelihood of f_t,l under `Gaussian`_l(f_s,l)) over stages l = 1..L.

    Equations and constants (CE 1, weight 1) from RepDistiller, which trains the variances with the student's optimiser,
    as here. mdistiller keeps them in a plain list that no optimiser sees, so its VID is a regression of fixed variance
    5; the published numbers are RepDistiller's. A level's loss may be negative: variances may be below 1.
    """

    name = "vid"
    label = "VID"
    group = "feature"
    row = 12
    in_all = False

    class Params(WithKD):
        ce_weight: NonNegativeFloat
        """Weight of the cross entropy with the labels."""
        vid_weight: NonNegativeFloat
        """Weight of the negative log likelihood, summed over stages."""

    def build(self, student: nn.Module, teacher: nn.Module, train_set: TrainSet) -> None:
        maps = shapes(student).features[1:], shapes(teacher).features[1:]
        levels = min(map(len, maps))
        pairs = zip(*(m[-levels:] for m in maps), strict=True)
        self.levels = nn.ModuleList(Gaussian(s[0], t[0]) for s, t in pairs)

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        p = self.params
        both = stages(student, teacher)
        losses = [level.loss(s, t) for level, (s, t) in zip(self.levels, both, strict=True)]
        return {
            "ce": p.ce_weight * batch.cross_entropy(student.logits),
            "likelihood": p.vid_weight * torch.stack(losses).sum(),
            **kd_beside(p, student, teacher),
        }
