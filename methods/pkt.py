"""PKT: Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018."""

from __future__ import annotations

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from methods.contract import Batch, Method, Progress, register
from methods.kd import WithKD, kd_beside
from methods.maps import precise
from zoo import Outputs

EPSILON = 1e-7
LEAST_SQUARE = 1e-30  # under the root, so that the length of an empty row has a slope


def neighbours(pooled: Tensor) -> Tensor:
    """P (B, B): (cos + 1) / 2 of each two of the features (B, D), rows divided by their sums; oneself included."""
    x = precise(pooled)
    x = x / (x.square().sum(dim=1, keepdim=True).clamp_min(LEAST_SQUARE).sqrt() + EPSILON)
    kernel = (x @ x.T + 1) / 2
    return kernel / kernel.sum(dim=1, keepdim=True)


def neighbour_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over all B^2 entries of P_t log((P_t + eps) / (P_s + eps)); features (B, D) and (B, E)."""
    with torch.autocast(student.device.type, enabled=False):
        p_s, p_t = neighbours(student), neighbours(teacher)
        return (p_t * ((p_t + EPSILON) / (p_s + EPSILON)).log()).mean()


@register
class PKT(Method):
    """L = w_ce CE + w_pkt mean P_t log(P_t / P_s) on the pooled features, P as `neighbours`.

    The authors' code (passalis/probabilistic_kt), RepDistiller and mdistiller have one loss. CE 1 and weight 30000 are
    RepDistiller's: the authors use it without labels, for retrieval. The mean is over B^2 entries and not over rows, so
    30000 amounts to 469 a row at batch 64.
    """

    name = "pkt"
    label = "PKT"
    group = "feature"
    row = 13
    in_all = False

    class Params(WithKD):
        ce_weight: NonNegativeFloat
        """Weight of the cross entropy with the labels."""
        neighbour_weight: NonNegativeFloat
        """Weight of the divergence of neighbourhoods."""

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        p = self.params
        return {
            "ce": p.ce_weight * batch.cross_entropy(student.logits),
            "neighbours": p.neighbour_weight * neighbour_loss(student.pooled, teacher.pooled),
            **kd_beside(p, student, teacher),
        }
