"""MLKD: Jin, Wang and Lin, "Multi-Level Logit Distillation", CVPR 2023."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, ValidationInfo, field_validator, model_validator
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from methods.contract import Batch, Method, Progress, TrainSet, register
from methods.settings import Settings, added_later
from methods.standardize import standardized
from zoo import Outputs


def log_probabilities(logits: Tensor, temperatures: Tensor) -> Tensor:
    """log softmax(z / T) at every temperature: (B, C) and (T,) -> (T, B, C), float32 at least."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return log_softmax(logits.to(dtype) / temperatures.to(dtype)[:, None, None], dim=2)


def instance_losses(log_student: Tensor, log_teacher: Tensor, temperatures: Tensor) -> Tensor:
    """T^2 KL(p_t || p_s), mean over the batch, at every temperature: (T, B, C) and (T,) -> (T,)."""
    kl = kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(dim=(1, 2))
    return kl * (temperatures.square() / log_student.shape[1]).to(kl.dtype)


def gram_distances(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """(1/B) ||P_t P_t^T - P_s P_s^T||_F^2 and (1/C) ||P_t^T P_t - P_s^T P_s||_F^2, each (T,).

    Probabilities (T, B, C). With D = P_s - P_t and S = P_s + P_t the difference of the Gram matrices is the symmetric
    part of D S^T (of D^T S): half the products, and no loss of digits where the networks nearly agree.
    """
    with torch.autocast(student.device.type, enabled=False):
        difference, total = student - teacher, student + teacher
        products = difference @ total.mT, difference.mT @ total
    batch, classes = (((m + m.mT) / 2).square().sum(dim=(1, 2)) / m.shape[1] for m in products)
    return batch, classes


@register
class MLKD(Method):
    """Instance, batch and class level, summed over temperatures T, with P = softmax(z / T), on the weak view

        L = w_ce CE + sum_T w_i T^2 KL(p_t || p_s) + w_b BC + w_c CC,        BC and CC as `gram_distances`

    and with `strong_instance_weight` w_s on two views: CE on both, plus w_s sum_T T^2 KL of the strong view.

    Equations from Jin-Ying/Multi-Level-Logit-Distillation @5ee473f, `mdistiller/distillers/KD_ours.py`, which differs
    from a first reading in three ways. Its masks of below-median samples and classes multiply scalars: each is the
    factor 1/2, so 0.9 amounts to the weights 0.45. Batch and class terms of the strong view are computed and dropped.
    And its strong view takes the weak view's logits at T = 2 and 6: `slipped_temperatures` [2, 6] repeats that.
    StreamLined's one-view form (`Distiller/MLKD.py`) is CE 0.5, T 2 to 4, 0.25 each.

    `standardize` puts `standardized` logits into the KL terms; BC and CC keep the logits as they are. Its temperatures
    are those of MLKD with 2 in place of 4 (sunshangquan/logit-standardization-KD @f6e5aa5), so 2 stands there twice.
    """

    name = "mlkd"
    label = "MLKD"
    group = "logit"
    row = 4

    class Params(Settings):
        standardize: bool = added_later(False)
        """Logit standardization: the instance terms take logits of mean 0 and deviation 1."""
        ce_weight: NonNegativeFloat
        """Weight of the cross entropy with the labels."""
        temperatures: tuple[PositiveFloat, ...] = Field(strict=False, min_length=1)
        """The T over which all terms are summed; none twice, unless standardize is set."""
        instance_weight: NonNegativeFloat
        """Weight of the soft-target term."""
        batch_weight: NonNegativeFloat
        """Weight of the term on relations of samples."""
        class_weight: NonNegativeFloat
        """Weight of the term on relations of classes."""
        strong_instance_weight: NonNegativeFloat | None = None
        """Weight of the soft-target term on a strongly augmented view; null is training on one view."""
        slipped_temperatures: tuple[PositiveFloat, ...] = Field(strict=False, default=())
        """T at which the strong view takes the weak view's logits, as released code does."""

        @field_validator("temperatures")
        @classmethod
        def _no_repeats(cls, temperatures: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
            if len(set(temperatures)) < len(temperatures) and not info.data.get("standardize"):
                raise ValueError("must contain no temperature twice")
            return temperatures

        @model_validator(mode="after")
        def _slips_of_the_strong_view(self) -> MLKD.Params:
            if self.slipped_temperatures and self.strong_instance_weight is None:
                raise ValueError("slipped_temperatures belong to the strong view: set strong_instance_weight, too")
            if not set(self.slipped_temperatures) <= set(self.temperatures):
                raise ValueError("slipped_temperatures must be among temperatures")
            return self

    @property
    def views(self) -> Literal["paired"] | None:
        return None if self.params.strong_instance_weight is None else "paired"

    def build(self, student: nn.Module, teacher: nn.Module, train_set: TrainSet) -> None:
        p = self.params
        slipped = [t in p.slipped_temperatures for t in p.temperatures]
        self.register_buffer("temperatures", torch.tensor(p.temperatures, dtype=torch.float64), persistent=False)
        self.register_buffer("slipped", torch.tensor(slipped), persistent=False)

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        p = self.params
        ce = batch.cross_entropy(student.logits)
        log_s, log_t = (log_probabilities(outputs.logits, self.temperatures) for outputs in (student, teacher))
        batches, classes = gram_distances(log_s.exp(), log_t.exp())
        if p.standardize:
            instance = self._instance(student, teacher)
        else:
            instance = instance_losses(log_s, log_t, self.temperatures)
        terms = {
            "ce": p.ce_weight * ce,
            "instance": p.instance_weight * instance.sum(),
            "batch": p.batch_weight * batches.sum(),
            "class": p.class_weight * classes.sum(),
        }
        if p.strong_instance_weight is not None:
            terms["ce"] = p.ce_weight * (ce + batch.cross_entropy(student.strong.logits))
            strong = self._instance(student.strong, teacher.strong)
            terms["strong"] = p.strong_instance_weight * torch.where(self.slipped, instance, strong).sum()
        return terms

    def _instance(self, student: Outputs, teacher: Outputs) -> Tensor:
        """T^2 KL of one view at every temperature, (T,)."""
        logits = student.logits, teacher.logits
        logits = map(standardized, logits) if self.params.standardize else logits
        return instance_losses(*(log_probabilities(z, self.temperatures) for z in logits), self.temperatures)
