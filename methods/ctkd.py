"""CTKD: Li et al., "Curriculum Temperature for Knowledge Distillation", AAAI 2023 (arXiv 2211.16231)."""

from __future__ import annotations

import math

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from methods.contract import Batch, Method, Progress, TrainSet, register
from methods.kd import soft_target_loss
from methods.settings import Settings, added_later
from methods.standardize import standardized
from zoo import Outputs


def reversed_by(value: Tensor, strength: Tensor) -> Tensor:
    """`value`, whose gradient arrives times -`strength`: who descends on the result makes it grow."""
    fixed = value.detach()
    return fixed - strength * (value - fixed)


@register
class CTKD(Method):
    """L = w_ce CE + w_kd T^2 KL(p_t(T) || p_s(T)), which the student descends and the temperature ascends.

    T = least + range sigmoid(theta) of one trained number theta, 1 at first; its gradient is -lambda dL/dtheta with
    lambda = (1 - cos(pi min(epoch, ramp) / ramp)) / 2, epoch from 1. T counts wherever it stands: in T^2 and in both
    softmaxes, so the teacher is held fixed at its logits. theta has the student's optimiser, weight decay included.
    zhengli97/CTKD @7d52522: CE 0.1, KD 0.9, T from 1 to 21, ramp 10; its global temperature, as the one per instance
    was not released. `standardize` puts `standardized` logits into the second term; there T^2 KL falls with T, so T
    goes down to `temperature_least` (in the released logs it stays within 0.05 of it from epoch 3 on).
    """

    name = "ctkd"
    label = "CTKD"
    group = "logit"
    row = 12
    in_all = False

    class Params(Settings):
        ce_weight: NonNegativeFloat
        """Weight of the cross entropy with the labels."""
        kd_weight: NonNegativeFloat
        """Weight of the soft-target term."""
        temperature_least: PositiveFloat
        """The lowest T that can be learned."""
        temperature_range: PositiveFloat
        """How far above that T can go."""
        ramp_epochs: PositiveInt
        """Epochs over which the gradient of T rises to its full size."""
        standardize: bool = added_later(False)
        """Logit standardization: the soft-target term takes logits of mean 0 and deviation 1."""

    def build(self, student: nn.Module, teacher: nn.Module, train_set: TrainSet) -> None:
        self.theta = nn.Parameter(torch.ones(()))

    def temperature(self, theta: Tensor) -> Tensor:
        """T, a scalar."""
        return self.params.temperature_least + self.params.temperature_range * torch.sigmoid(theta)

    def watched(self) -> dict[str, Tensor]:
        return {"temperature": self.temperature(self.theta)}

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        p, z_s, z_t = self.params, student.logits, teacher.logits
        if p.standardize:
            z_s, z_t = standardized(z_s), standardized(z_t)
        strength = (1 - torch.cos(math.pi * progress.warm_up(p.ramp_epochs))) / 2
        temperature = self.temperature(reversed_by(self.theta, strength))
        return {
            "ce": p.ce_weight * batch.cross_entropy(student.logits),
            "kd": p.kd_weight * soft_target_loss(z_s, z_t.detach(), temperature),
        }
