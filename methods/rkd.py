"""RKD: Park, Kim, Lu and Cho, "Relational Knowledge Distillation", CVPR 2019 (arXiv 1904.05068).

All B^3 angles at once would take 8 GiB a tensor at B = 1024. So above batch 128 they are compared some anchors at a
time, and each part's gradient is taken at once, in the forward pass: memory grows with B^2.
"""

from __future__ import annotations

import torch
from pydantic import NonNegativeFloat
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import smooth_l1_loss

from methods.contract import Batch, Method, Progress, register
from methods.kd import WithKD, kd_beside
from zoo import Outputs

# Of the mean distance. Two samples nearer than this are one up to float32 rounding, and have no direction.
COINCIDENT = 1e-6
# Elements of a tensor above which it comes in parts. On a CPU 16 MiB of float64 stay in its heap: parts eight times as
# large took three times as long. A GPU, to which many small kernels are a burden, takes those. Batch 64 is one part.
LARGEST, LARGEST_ON_GPU = 2**21, 2**24


def relations(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Distances d_ij over their mean, (B, B), and cosines of the angle j-i-k, (B, B, B), of embeddings (B, D).

    The mean is over the B (B - 1) pairs of different samples. An angle with a side of no length (j = i, or two
    samples that coincide) has cosine 0, as in the released code, and unlike there a gradient of 0, not 1e12.
    """
    distances = relative_distances(embeddings)
    return distances, cosines(*sides(distances), slice(None))


def relative_distances(embeddings: Tensor) -> Tensor:
    """Distances over their mean, (B, B) in float64."""
    embeddings = embeddings.double()
    # In rows, since on a GPU the gradient of cdist holds a (rows, B, D) tensor. The other modes of cdist take
    # differences of squares, which leave no digits of a small distance.
    rows = embeddings.split(max(_largest(embeddings) // embeddings.numel(), 1))
    distances = torch.cat([torch.cdist(r, embeddings, compute_mode="donot_use_mm_for_euclid_dist") for r in rows])
    pairs = len(embeddings) * (len(embeddings) - 1)
    return distances / (distances.sum() / max(pairs, 1)).clamp_min(1e-12)


def sides(distances: Tensor) -> tuple[Tensor, Tensor]:
    """What the cosines are made of: squares of the distances (B, B), and inverses, 0 where there is no direction."""
    apart = distances > COINCIDENT
    inverse = torch.where(apart, 1 / torch.where(apart, distances, 1.0), 0.0)
    return distances.square(), inverse


def cosines(squares: Tensor, inverse: Tensor, anchors: slice) -> Tensor:
    """Cosines (anchors, B, B) of the angles j-i-k with i among `anchors`."""
    # Each angle follows from three distances, so no (B, B, D) tensor is made and none multiplied, which costs most of
    # the published form's time. But the law of cosines cancels for samples near each other: hence float64.
    opposite = squares[anchors, :, None] + squares[anchors, None, :] - squares
    return opposite * (inverse[anchors, :, None] * (inverse / 2)[anchors, None, :])


class _AnglesInParts(torch.autograd.Function):
    """Mean smooth-L1 distance of cosines, some anchors at a time: the loss and its gradient in the student's sides.

    Between two parts nothing is kept but (B, B) tensors, so that memory does not grow with B^3.
    """

    @staticmethod
    def forward(ctx, squares: Tensor, inverse: Tensor, wanted: tuple[Tensor, Tensor], anchors: int) -> Tensor:
        batch = len(squares)
        student = [side.detach().requires_grad_() for side in (squares, inverse)]
        total, slopes = squares.new_zeros(()), [torch.zeros_like(side) for side in student]
        for first in range(0, batch, anchors):
            part = slice(first, min(first + anchors, batch))
            target = cosines(*wanted, part)
            with torch.enable_grad():
                loss = smooth_l1_loss(cosines(*student, part), target) * ((part.stop - part.start) / batch)
            for slope, more in zip(slopes, torch.autograd.grad(loss, student), strict=True):
                slope += more
            total += loss.detach()
        ctx.save_for_backward(*slopes)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        of_squares, of_inverse = ctx.saved_tensors
        return gradient * of_squares, gradient * of_inverse, None, None


def _largest(tensor: Tensor) -> int:
    return LARGEST_ON_GPU if tensor.device.type == "cuda" else LARGEST


def angle_loss(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """Mean smooth-L1 distance of the cosines of two networks, from their `sides`; the teacher's carry no gradient."""
    batch = len(student[0])
    anchors = max(_largest(student[0]) // batch**2, 1)
    if anchors < batch:
        return _AnglesInParts.apply(*student, teacher, anchors)
    target = cosines(*teacher, slice(None))
    return smooth_l1_loss(cosines(*student, slice(None)), target)


def relational_losses(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """L_D and L_A: smooth-L1 distance of the two networks' distances and cosines, mean over all B^2 and B^3 entries.

    Embeddings (B, D_s) and (B, D_t). The gradient runs through the student's mean distance. Scalars in the
    student's type, float32 at least.
    """
    with torch.no_grad():
        wanted = relative_distances(teacher)
        wanted_sides = sides(wanted)
    distances = relative_distances(student)
    own_sides = sides(distances)
    dtype = torch.promote_types(student.dtype, torch.float32)
    return smooth_l1_loss(distances, wanted).to(dtype), angle_loss(own_sides, wanted_sides).to(dtype)


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

    class Params(WithKD):
        ce_weight: NonNegativeFloat
        """Weight of the cross entropy with the labels."""
        distance_weight: NonNegativeFloat
        """Weight of the term on distances between samples."""
        angle_weight: NonNegativeFloat
        """Weight of the term on angles between samples."""

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        p = self.params
        distance, angle = relational_losses(student.pooled, teacher.pooled)
        return {
            "ce": p.ce_weight * batch.cross_entropy(student.logits),
            "distance": p.distance_weight * distance,
            "angle": p.angle_weight * angle,
            **kd_beside(p, student, teacher),
        }
