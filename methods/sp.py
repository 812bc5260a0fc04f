"""SP: Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019 (arXiv 1907.09682)."""

from __future__ import annotations

import torch
from pydantic import NonNegativeFloat
from torch import Tensor
from torch.nn.functional import normalize

from methods.contract import Batch, Method, Progress, register
from methods.kd import WithKD, kd_beside
from methods.maps import precise
from zoo import Outputs

SHORTEST = 1e-6  # rows of similarities are longer; published code has 1e-12, with which an empty map's gradient is 1e11


def similarities(maps: Tensor) -> Tensor:
    """How alike the samples of a batch are, (B, B): products of the flattened maps (B, C, h, w), rows of length 1."""
    flat = precise(maps).flatten(1)
    return normalize(flat @ flat.T, eps=SHORTEST)


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """|| G_t - G_s ||_F^2 / B^2 of two maps' `similarities`; their shapes may differ."""
    with torch.autocast(student.device.type, enabled=False):
        return (similarities(student) - similarities(teacher)).square().mean()


@register
class SP(Method):
    """L = w_ce CE + w_sp || G_t - G_s ||_F^2 / B^2 on the maps of the last stage (WRN: the raw sums).

    CE 1 and weight 3000 are RepDistiller's, whose version the authors have checked, and mdistiller's. A sample's
    product with itself counts; a batch of one costs nothing.
    """

    name = "sp"
    label = "SP"
    group = "feature"
    row = 11
    in_all = False

    class Params(WithKD):
        ce_weight: NonNegativeFloat
        """Weight of the cross entropy with the labels."""
        similarity_weight: NonNegativeFloat
        """Weight of the distance of similarity matrices."""

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        p = self.params
        return {
            "ce": p.ce_weight * batch.cross_entropy(student.logits),
            "similarity": p.similarity_weight * similarity_loss(student.features[-1], teacher.features[-1]),
            **kd_beside(p, student, teacher),
        }
