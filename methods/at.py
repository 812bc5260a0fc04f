"""AT: Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017 (arXiv 1612.03928)."""

from __future__ import annotations

import torch
from pydantic import NonNegativeFloat
from torch import Tensor
from torch.nn.functional import normalize

from methods.contract import Batch, Method, Progress, register
from methods.kd import WithKD, kd_beside
from methods.maps import of_equal_height, precise, stages
from zoo import Outputs


def attention(maps: Tensor) -> Tensor:
    """Where a network looks: the mean square over channels of (B, C, h, w), as rows (B, h * w) of length 1."""
    return normalize(precise(maps).square().mean(dim=1).flatten(1))


def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over B and h * w of the squared difference of two maps' attention; the higher map is pooled first."""
    student, teacher = of_equal_height(student, teacher)
    return (attention(student) - attention(teacher)).square().mean()


@register
class AT(Method):
    """L = w_ce CE + w_at sum_l mean (Q_s - Q_t)^2 over stages l = 1..L, Q the `attention` of a stage's map.

    CE 1 and weight 1000 are RepDistiller's (`-r 1 -b 1000`) and mdistiller's, the mean square is also that of the
    authors' code (szagoruyko/attention-transfer), where the paper has the norm of the difference. The mean divides by
    the size of the map, so a 32 x 32 stage weighs a sixteenth of an 8 x 8 one. Features are after the ReLU, those of
    WRN the raw sums, as in all of these.
    """

    name = "at"
    label = "AT"
    group = "feature"
    row = 10
    in_all = False

    class Params(WithKD):
        ce_weight: NonNegativeFloat
        """Weight of the cross entropy with the labels."""
        attention_weight: NonNegativeFloat
        """Weight of the distance of attention maps, summed over stages."""

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        p = self.params
        losses = [attention_loss(s, t) for s, t in stages(student, teacher)]
        return {
            "ce": p.ce_weight * batch.cross_entropy(student.logits),
            "attention": p.attention_weight * torch.stack(losses).sum(),
            **kd_beside(p, student, teacher),
        }
