"""KD: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015 (arXiv 1503.02531)."""

from __future__ import annotations

from pydantic import NonNegativeFloat, PositiveFloat, model_validator
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from methods.contract import Batch, Method, Progress, register
from methods.settings import Settings, added_later
from methods.standardize import standardized
from zoo import Outputs


def soft_target_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float | Tensor) -> Tensor:
    """T^2 * KL(softmax(z_t / T) || softmax(z_s / T)), summed over classes, mean over the batch. Logits (B, C)."""
    log_student = log_softmax(student_logits / temperature, dim=1)
    log_teacher = log_softmax(teacher_logits / temperature, dim=1)
    return kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2


class WithKD(Settings):
    """Parameters of a method that may have KD beside it: both, or neither.

    RepDistiller's "CRD+KD" is CRD as it is with weight 1 and T 4 (`-r 1 -a 1 -b 0.8`).
    """

    kd_weight: NonNegativeFloat | None = added_later()
    """Weight of KD's term beside the method's own; needs kd_temperature. Null is no such term."""
    kd_temperature: PositiveFloat | None = added_later()
    """T of that term."""

    @model_validator(mode="after")
    def _both_or_neither(self) -> WithKD:
        if (self.kd_weight is None) != (self.kd_temperature is None):
            raise ValueError("kd_weight and kd_temperature belong together: give both or neither")
        return self


def kd_beside(params: WithKD, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
    """KD's term where the parameters ask for it, to be laid beside a method's own."""
    if params.kd_weight is None:
        return {}
    return {"kd": params.kd_weight * soft_target_loss(student.logits, teacher.logits, params.kd_temperature)}


@register
class KD(Method):
    """L = w_ce * CE(z_s, y) + w_kd * T^2 * KL(p_t(T) || p_s(T)), section 2 of the paper.

    Weights 0.1 / 0.9 and T = 4 are those of both reference code bases (RepDistiller `-r 0.1 -a 0.9`, mdistiller
    `KD.LOSS`), not of the paper, which names none for CIFAR-100. `standardize` puts `standardized` logits into the
    second term.
    """

    name = "kd"
    label = "KD"
    group = "logit"
    row = 1

    class Params(Settings):
        temperature: PositiveFloat
        """T, which both networks' logits are divided by in the soft-target term."""
        ce_weight: NonNegativeFloat
        """Weight of the cross entropy with the labels."""
        kd_weight: NonNegativeFloat
        """Weight of the soft-target term."""
        standardize: bool = added_later(False)
        """Logit standardization: the soft-target term takes logits of mean 0 and deviation 1."""

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        p, z_s, z_t = self.params, student.logits, teacher.logits
        if p.standardize:
            z_s, z_t = standardized(z_s), standardized(z_t)
        return {
            "ce": p.ce_weight * batch.cross_entropy(student.logits),
            "kd": p.kd_weight * soft_target_loss(z_s, z_t, p.temperature),
        }
