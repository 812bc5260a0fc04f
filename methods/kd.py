"""KD: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015 (arXiv 1503.02531)."""

from __future__ import annotations

from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from methods.contract import Batch, Method, Progress, register
from methods.settings import Settings
from zoo import Outputs


def soft_target_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(softmax(z_t / T) || softmax(z_s / T)), summed over classes, mean over the batch. Logits (B, C)."""
    log_student = log_softmax(student_logits / temperature, dim=1)
    log_teacher = log_softmax(teacher_logits / temperature, dim=1)
    return kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2


@register
class KD(Method):
    """L = w_ce * CE(z_s, y) + w_kd * T^2 * KL(p_t(T) || p_s(T)), section 2 of the paper.

    Weights 0.1 / 0.9 and T = 4 are those of both reference code bases (RepDistiller `-r 0.1 -a 0.9`, mdistiller
    `KD.LOSS`), not of the paper, which names none for CIFAR-100.
    """

    name = "kd"
    label = "KD"
    group = "logit"
    row = 1

    class Params(Settings):
        temperature: PositiveFloat
        ce_weight: NonNegativeFloat
        kd_weight: NonNegativeFloat

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        p = self.params
        return {
            "ce": p.ce_weight * batch.cross_entropy(student.logits),
            "kd": p.kd_weight * soft_target_loss(student.logits, teacher.logits, p.temperature),
        }
