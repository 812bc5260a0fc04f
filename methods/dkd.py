"""DKD: Zhao, Cui, Song, Qiu and Liang, "Decoupled Knowledge Distillation", CVPR 2022 (arXiv 2203.08679)."""

from __future__ import annotations

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from methods.contract import Batch, Method, Progress, register
from methods.settings import Settings, added_later
from methods.standardize import standardized
from zoo import Outputs


def decouple(logits: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities of (target, not target), (B, 2), and of the other classes among themselves, (B, C-1).

    All in the log domain: the published code takes the logarithm after the softmax, which underflows to an
    infinite loss for a very confident network.
    """
    scaled = logits / temperature
    others = torch.arange(logits.shape[1] - 1, device=logits.device).expand(logits.shape[0], -1)
    others = others + (others >= labels[:, None])  # every class index but the label
    target, rest = scaled.gather(1, labels[:, None]), scaled.gather(1, others)
    binary = torch.cat([target, rest.logsumexp(dim=1, keepdim=True)], dim=1)
    return log_softmax(binary, dim=1), log_softmax(rest, dim=1)


def decoupled_losses(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """TCKD and NCKD (equations 5 to 7), each times T^2, summed over classes, (B,): the batch mean is the caller's.

    Per sample T^2 * KL(p_t || p_s) = TCKD + (1 - p_t,y) * NCKD.
    """
    student = decouple(student_logits, labels, temperature)
    teacher = decouple(teacher_logits, labels, temperature)
    tckd, nckd = (
        kl_div(s, t, reduction="none", log_target=True).sum(dim=1) * temperature**2
        for s, t in zip(student, teacher, strict=True)
    )
    return tckd, nckd


@register
class DKD(Method):
    """L = w_ce * CE + min(epoch / warm_up, 1) * (alpha * TCKD + beta * NCKD), epoch counted from 1.

    Published: CE 1, alpha 1, T 4, warm-up 20, beta per pair (mdistiller `configs/cifar100/dkd`). `logit_clamp` is
    StreamLined's addition (`Distiller/DKD.py`): both networks' logits are cut to +-clamp before the decoupled terms,
    not before the cross entropy. `standardize` puts `standardized` logits into the same place.

    StreamLined counts the warm-up from 0: its first epoch has no distillation at all, and each epoch up to the 20th has
    a twentieth less of it than here. Not copied: mdistiller, where the numbers of DKD come from, counts from 1.
    """

    name = "dkd"
    label = "DKD"
    group = "logit"
    row = 3

    class Params(Settings):
        temperature: PositiveFloat
        """T, which logits are divided by in the decoupled terms."""
        ce_weight: NonNegativeFloat
        """Weight of the cross entropy with the labels."""
        alpha: NonNegativeFloat
        """Weight of the target class's term (TCKD)."""
        beta: NonNegativeFloat
        """Weight of the other classes' term (NCKD)."""
        warm_up_epochs: PositiveInt
        """Epochs over which both terms rise to their full weight."""
        logit_clamp: PositiveFloat | None = None
        """Logits are cut to plus and minus this in the decoupled terms; null is off."""
        standardize: bool = added_later(False)
        """Logit standardization: the decoupled terms take logits of mean 0 and deviation 1."""

        @model_validator(mode="after")
        def _one_of_two(self) -> DKD.Params:
            if self.standardize and self.logit_clamp is not None:
                raise ValueError("logit_clamp and standardize are two ways with the same logits: set one of them")
            return self

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        p = self.params
        student_logits, teacher_logits = student.logits, teacher.logits
        if p.logit_clamp is not None:
            student_logits = student_logits.clamp(-p.logit_clamp, p.logit_clamp)
            teacher_logits = teacher_logits.clamp(-p.logit_clamp, p.logit_clamp)
        if p.standardize:
            student_logits, teacher_logits = standardized(student_logits), standardized(teacher_logits)
        tckd, nckd = decoupled_losses(student_logits, teacher_logits, batch.labels, p.temperature)
        warm_up = progress.warm_up(p.warm_up_epochs)
        return {
            "ce": p.ce_weight * batch.cross_entropy(student.logits),
            "tckd": warm_up * p.alpha * tckd.mean(),
            "nckd": warm_up * p.beta * nckd.mean(),
        }
