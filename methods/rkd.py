"""RKD: Park, Kim, Lu and Cho, "Relational Knowledge Distillation", CVPR 2019 (arXiv 1904.05068)."""

from __future__ import annotations

import torch
from pydantic import NonNegativeFloat
from torch import Tensor
from torch.nn.functional import cross_entropy, smooth_l1_loss

from methods.contract import Batch, Method, Progress, register
from methods.settings import Settings
from zoo import Outputs

# Of the mean distance. Two samples nearer than this are one up to float32 rounding, and have no direction.
COINCIDENT = 1e-6


def relations(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Distances d_ij over their mean, (B, B), and cosines of the angle j-i-k, (B, B, B), of embeddings (B, D).

    The mean is over the B (B - 1) pairs of different samples. An angle with a side of no length (j = i, or two
    samples that coincide) has cosine 0, as in the released code, and unlike there a gradient of 0, not 1e12.
    """
    # Each angle follows from three distances, so no (B, B, D) tensor is made and none multiplied, which costs most of
    # the published form's time. But the law of cosines cancels for samples near each other: hence float64.
    embeddings = embeddings.double()
    # The other modes of cdist take differences of squares, which leave no digits of a small distance.
    distances = torch.cdist(embeddings, embeddings, compute_mode="donot_use_mm_for_euclid_dist")
    pairs = len(embeddings) * (len(embeddings) - 1)
    distances = distances / (distances.sum() / max(pairs, 1)).clamp_min(1e-12)
    apart = distances > COINCIDENT
    inverse = torch.where(apart, 1 / torch.where(apart, distances, 1.0), 0.0)
    squares = distances.square()
    opposite = squares[:, :, None] + squares[:, None, :] - squares
    return distances, opposite * (inverse[:, :, None] * (inverse / 2)[:, None, :])


def relational_losses(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """L_D and L_A: smooth-L1 distance of the two networks' distances and cosines, mean over all B^2 and B^3 entries.

    Embeddings (B, D_s) and (B, D_t). The gradient runs through the student's mean distance. Scalars in the
    student's type, float32 at least.
    """
    with torch.no_grad():
        wanted = relations(teacher)
    dtype = torch.promote_types(student.dtype, torch.float32)
    distance, angle = (smooth_l1_loss(s, t).to(dtype) for s, t in zip(relations(student), wanted, strict=True))
    return distance, angle


@register
class RKD(Method):
    """L = w_ce * CE + w_d * L_D + w_a * L_A on the pooled features, which may differ in width.

    Weights 1 / 25 / 50 for every pair are those of RepDistiller (`distiller_zoo/RKD.py`) and mdistiller
    (`configs/cifar100`); the authors' own repository has no CIFAR-100 experiment. All entries count in the means,
    those of a sample with itself, too. Neither term changes when either network's features are turned, moved or scaled.
    """

    name = "rkd"
    label = "RKD"
    group = "feature"
    row = 2

    class Params(Settings):
        ce_weight: NonNegativeFloat
        distance_weight: NonNegativeFloat
        angle_weight: NonNegativeFloat

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        p = self.params
        distance, angle = relational_losses(student.pooled, teacher.pooled)
        return {
            "ce": p.ce_weight * cross_entropy(student.logits, batch.labels),
            "distance": p.distance_weight * distance,
            "angle": p.angle_weight * angle,
        }
