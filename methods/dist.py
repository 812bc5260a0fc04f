"""DIST: Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022 (arXiv 2205.10536)."""

from __future__ import annotations

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.nn.functional import softmax

from methods.contract import Batch, Method, Progress, register
from methods.maps import precise
from methods.settings import Settings
from zoo import Outputs

EPSILON = 1e-8


def correlations(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's r of each two rows of (n, m), (n,). The eps is added to the product of their lengths, as released."""
    a, b = a - a.mean(dim=1, keepdim=True), b - b.mean(dim=1, keepdim=True)
    # vector_norm has slope 0 at 0, so rows that do not vary have a gradient, if a large one.
    lengths = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    return (a * b).sum(dim=1) / (lengths + EPSILON)


def relation_losses(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(inter, intra) of logits (B, C): T^2 (1 - mean r) of the probabilities, over rows and over columns."""
    p_s, p_t = (softmax(precise(logits) / temperature, dim=1) for logits in (student_logits, teacher_logits))
    inter, intra = 1 - correlations(p_s, p_t).mean(), 1 - correlations(p_s.T, p_t.T).mean()
    return temperature**2 * inter, temperature**2 * intra


@register
class DIST(Method):
    """L = w_ce CE + w_inter T^2 (1 - mean_b r(p_s[b], p_t[b])) + w_intra T^2 (1 - mean_c r(p_s[:, c], p_t[:, c])).

    CE 1, weights 2 and 2, T 4 for every pair of CIFAR-100, T^2 included: hunto/DIST_KD @2418f18 with
    image_classification_sota @d9662f7. Equal logits cost a little more than nothing: the added eps shows in classes
    that are rare in a batch (1.8e-4 at T 4, 2.3e-3 at T 1). A batch of one has no relation of classes: intra is T^2
    there, with no gradient; the released loader drops the last, partial batch of an epoch, here it counts.
    """

    name = "dist"
    label = "DIST"
    group = "logit"
    row = 10
    in_all = False

    class Params(Settings):
        temperature: PositiveFloat
        """T, which logits are divided by."""
        ce_weight: NonNegativeFloat
        """Weight of the cross entropy with the labels."""
        inter_weight: NonNegativeFloat
        """Weight of the correlation of each sample's predictions."""
        intra_weight: NonNegativeFloat
        """Weight of the correlation of each class's predictions over a batch."""

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        p = self.params
        inter, intra = relation_losses(student.logits, teacher.logits, p.temperature)
        return {
            "ce": p.ce_weight * batch.cross_entropy(student.logits),
            "inter": p.inter_weight * inter,
            "intra": p.intra_weight * intra,
        }
