"""NKD: Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation", ICCV 2023 (arXiv 2303.13005)."""

from __future__ import annotations

from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.nn.functional import log_softmax

from methods.contract import Batch, Method, Progress, register
from methods.dkd import decouple
from methods.maps import precise
from methods.settings import Settings
from zoo import Outputs


def normalised_losses(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Target -p_t,y log p_s,y at T 1, and non-target -T^2 sum_{c != y} q_t log q_s at T, means over the batch.

    q is the softmax of the C - 1 other logits. Both are cross entropies, not divergences: equal logits cost something.
    """
    student, teacher = precise(student_logits), precise(teacher_logits).detach()
    log_s, log_t = (log_softmax(z, dim=1).gather(1, labels[:, None]).squeeze(1) for z in (student, teacher))
    (_, rest_s), (_, rest_t) = (decouple(z, labels, temperature) for z in (student, teacher))
    target = -(log_t.exp() * log_s).mean()
    return target, -(rest_t.exp() * rest_s).sum(dim=1).mean() * temperature**2


@register
class NKD(Method):
    """L = w_ce CE + w_t target + gamma non-target, as `normalised_losses`.

    CE 1, target 1, T 3 and gamma 3.5 from yzd-v/cls_KD @1e5d48f, whose CIFAR-100 configuration is for a pair of its own
    (resnet34 of ImageNet's form to resnet18): for the field's pairs the authors publish neither constants nor numbers.
    From July to October 2023 that repository, and SDD-CVPR2024's copy to this day, kept the target class in the second
    term; that is not repeated.
    """

    name = "nkd"
    label = "NKD"
    group = "logit"
    row = 11
    in_all = False

    class Params(Settings):
        temperature: PositiveFloat
        """T of the non-target term."""
        ce_weight: NonNegativeFloat
        """Weight of the cross entropy with the labels."""
        target_weight: NonNegativeFloat
        """Weight of the target class's term."""
        gamma: NonNegativeFloat
        """Weight of the other classes' term."""

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        p = self.params
        target, others = normalised_losses(student.logits, teacher.logits, batch.labels, p.temperature)
        return {
            "ce": p.ce_weight * batch.cross_entropy(student.logits),
            "target": p.target_weight * target,
            "others": p.gamma * others,
        }
