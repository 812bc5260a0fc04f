"""SKD: "Streamlined Knowledge Distillation", CVPR 2026, as its authors released it and as their paper defines it.

Relations between samples are compared as a whitened distance of cosine matrices (equations from the paper's
abstract and summaries, arithmetic from HyunJunSik/StreamLined, `Distiller/SKD.py` @e4ab795):

    G = rownorm(z) rownorm(z)^T / divisor        (B, B)
    D = G_s - G_t,  S = Cov(rows of D) + lambda I = L L^T
    L_dir = mean_i sqrt(D_i S^-1 D_i^T) = mean_i || L^-1 D_i^T ||

The gradient runs through S as well. Dividing G by C with lambda is the undivided form with lambda * C^2.
"""

from __future__ import annotations

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.nn.functional import normalize

from methods.contract import Batch, Method, Progress, register
from methods.kd import soft_target_loss
from methods.settings import Settings, added_later
from zoo import Outputs


def direction_loss(student_logits: Tensor, teacher_logits: Tensor, tikhonov: float, divisor: float) -> Tensor:
    """L_dir of the module docstring. Logits (B, C); float32 at least, whatever the autocast.

    A row of zeros in D gives zero, with a zero gradient (not the NaN of sqrt at 0).
    """
    with torch.autocast(student_logits.device.type, enabled=False):
        dtype = torch.promote_types(student_logits.dtype, torch.float32)
        student, teacher = (normalize(z.to(dtype), dim=1) for z in (student_logits, teacher_logits))
        difference = (student @ student.T - teacher @ teacher.T) / divisor
        centred = difference - difference.mean(dim=0)
        rows = difference.shape[0]
        covariance = centred.T @ centred / max(rows - 1, 1)
        ridge = tikhonov * torch.eye(rows, dtype=dtype, device=difference.device)
        # cholesky_ex leaves the error flag on the device: `cholesky` would wait for it at every step.
        factor, failed = torch.linalg.cholesky_ex(covariance + ridge)
        factor = factor.masked_fill(failed > 0, float("nan"))  # lambda too small for the precision: no number at all
        whitened = torch.linalg.solve_triangular(factor, difference.T, upper=False)
        return torch.linalg.vector_norm(whitened, dim=0).mean()


def below_median(values: Tensor) -> Tensor:
    """Fraction of a vector's elements that are at most its median: 1/2 for an even count without ties."""
    return (values <= values.median()).to(values.dtype).mean()


@register
class SKD(Method):
    """The released form: L = w_ce CE + w_kd (m1 T^2 KL(p_t || p_s) + m2 L_dir), G divided by C = number of classes.

    m1 and m2 are what the released code's masks amount to once they multiply scalars: the fraction of samples whose
    teacher confidence is at most the batch's median, and the fraction of classes whose summed teacher probability is
    at most the median over classes. Defaults of May 2025: T 4, lambda 0.1, CE 0.5, KD 0.5.
    """

    name = "skd"
    label = "SKD"
    group = "ours"
    row = 1

    class Params(Settings):
        temperature: PositiveFloat
        """T, which logits are divided by in the soft-target term."""
        tikhonov: PositiveFloat
        """lambda, added to the diagonal of the covariance."""
        ce_weight: NonNegativeFloat
        """Weight of the cross entropy with the labels."""
        kd_weight: NonNegativeFloat
        """Weight of the soft-target term, and of the relational one unless dir_weight is set."""
        dir_weight: NonNegativeFloat | None = added_later()
        """Weight of the relational term, for ablations; null is kd_weight."""

    def factors(self, teacher_logits: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """m1 and m2, from teacher logits (B, C)."""
        # In half precision a confident teacher's samples tie, and the fractions with them.
        probabilities = teacher_logits.to(torch.promote_types(teacher_logits.dtype, torch.float32)).softmax(dim=1)
        return below_median(probabilities.amax(dim=1)), below_median(probabilities.sum(dim=0))

    def divisor(self, num_classes: int) -> int:
        """What G is divided by."""
        return num_classes

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        p = self.params
        m1, m2 = self.factors(teacher.logits)
        divisor = self.divisor(student.logits.shape[1])
        dir_weight = p.kd_weight if p.dir_weight is None else p.dir_weight
        return {
            "ce": p.ce_weight * batch.cross_entropy(student.logits),
            "kd": p.kd_weight * m1 * soft_target_loss(student.logits, teacher.logits, p.temperature),
            "dir": dir_weight * m2 * direction_loss(student.logits, teacher.logits, p.tikhonov, divisor),
        }


@register
class SKDPaper(SKD):
    """The paper's form: G undivided and both factors one; the paper prints no value for lambda, so it is a parameter.

    The paper names two terms of equal weight; the cross entropy and T^2 stand as in the released code.
    """

    name = "skd_paper"
    label = "SKD (paper)"
    row = 2

    def factors(self, teacher_logits: Tensor) -> tuple[Tensor | float, Tensor | float]:
        return 1.0, 1.0

    def divisor(self, num_classes: int) -> int:
        return 1
