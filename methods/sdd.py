"""SDD: Wei, Luo and Luo, "Scaled Decoupled Distillation", CVPR 2024 (arXiv 2403.13512)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator, model_validator
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, kl_div, log_softmax

from methods.contract import Batch, Method, Progress, TrainSet, register
from methods.dkd import decoupled_losses
from methods.settings import Settings
from zoo import BadInput, Outputs, shapes

TAKES = {"kd": ("kd_weight",), "dkd": ("alpha", "beta", "warm_up_epochs")}  # parameters of each base


def region_logits(outputs: Outputs, scales: Iterable[int]) -> Tensor:
    """What the classifier says of every region, (B, N, C) in float32 at least; region 0 is the whole map.

    At scale m the last map is averaged over m x m equal cells; N is the sum of the m^2. A map of fewer cells than that
    repeats each, as adaptive pooling does. The classifier is linear, so its answer to the whole map's mean (scale 1) is
    the network's own logits.
    """
    cells, grids = outputs.last_map, []
    for scale in sorted(set(scales) - {1}, reverse=True):  # from fine to coarse: cells of cells, where they nest
        source = cells if cells.shape[2] % scale == 0 else outputs.last_map
        if source.shape[2] < scale:
            cells = interpolate(source, (scale, scale), mode="nearest")
        else:
            cells = avg_pool2d(source, source.shape[2] // scale)
        grids.append(cells.flatten(2))
    logits = [outputs.logits[:, None]]
    if grids:
        logits.append(outputs.head(torch.cat(grids, dim=2).transpose(1, 2)))
    dtype = torch.promote_types(outputs.logits.dtype, torch.float32)
    return torch.cat([part.to(dtype) for part in logits], dim=1)


def region_weights(teacher_logits: Tensor, labels: Tensor, complementary_weight: float) -> Tensor:
    """`complementary_weight` where the teacher is right on the region and wrong on the whole, or the reverse, else 1.

    Region logits (B, N, C), labels (B,); returns (B, N). Two different wrong answers agree: only the label counts.
    """
    correct = teacher_logits.argmax(dim=2) == labels[:, None]
    return torch.ones_like(teacher_logits[..., 0]).masked_fill(correct != correct[:, :1], complementary_weight)


@register
class SDD(Method):
    """A logit loss on the logits of regions of the last map, mean over the B * N pairs of sample and region:

        base kd    L = w_ce CE + w_kd mean(w T^2 KL(p_t || p_s))
        base dkd   L = w_ce CE + min(epoch / warm_up, 1) mean(w (alpha TCKD + beta NCKD)), epoch counted from 1

    w is `region_weights`. The student's classifier learns from all regions. Released (shicaiwei123/SDD-CVPR2024): base
    weights as KD's and DKD's, complementary weight 2, scales [1, 2] for networks of one family and [1, 2, 4] else,
    warm-up 20 with dkd, where the paper says 30, and none with kd. The paper sums over regions, the code averages. The
    last map of mobilenetv2 is 2 x 2, so scale 4 has each of its cells four times: so have the published numbers.

    StreamLined's copy lists the 4x4 cells before the whole map and still takes the first region for the whole, so its
    weights compare regions to the upper left sixteenth of the image. That is not repeated here. It also counts the
    warm-up from 0 (as its DKD does, see there); here, as in mdistiller, it is counted from 1.
    """

    name = "sdd"
    label = "SDD"
    group = "logit"
    row = 5

    class Params(Settings):
        base: Literal["kd", "dkd"]
        """The loss that is taken on regions; kd needs kd_weight, dkd needs alpha, beta and warm_up_epochs."""
        scales: tuple[PositiveInt, ...] = Field(strict=False)
        """Rows and columns of regions that the last map is divided into: 1, the whole map, and others."""
        temperature: PositiveFloat
        """T, which logits are divided by."""
        ce_weight: NonNegativeFloat
        """Weight of the cross entropy with the labels."""
        complementary_weight: NonNegativeFloat
        """Weight of regions where the teacher is right and on the whole map wrong, or the reverse; others have 1."""
        kd_weight: NonNegativeFloat | None = None
        """With base kd: weight of the soft-target term."""
        alpha: NonNegativeFloat | None = None
        """With base dkd: weight of the target class's term."""
        beta: NonNegativeFloat | None = None
        """With base dkd: weight of the other classes' term."""
        warm_up_epochs: PositiveInt | None = None
        """With base dkd: epochs over which both rise to their full weight."""

        @field_validator("scales")
        @classmethod
        def _whole_map_and_no_repeats(cls, scales: tuple[int, ...]) -> tuple[int, ...]:
            if 1 not in scales or len(set(scales)) < len(scales):
                raise ValueError("must contain 1, the whole map, and no scale twice")
            return scales

        @model_validator(mode="after")
        def _what_the_base_takes(self) -> SDD.Params:
            for base, keys in TAKES.items():
                for key in keys:
                    if base == self.base and getattr(self, key) is None:
                        raise ValueError(f'base "{self.base}" needs {key}: add it')
                    if base != self.base and getattr(self, key) is not None:
                        raise ValueError(f'base "{self.base}" takes no {key}: leave it out or set it to null')
            return self

    def build(self, student: nn.Module, teacher: nn.Module, train_set: TrainSet) -> None:
        for who, net in (("student", student), ("teacher", teacher)):
            height = shapes(net).last_map[1]
            for scale in self.params.scales:
                if height % scale and scale % height:
                    raise BadInput(
                        f"scales: the {who}'s last map of height {height} has no {scale} x {scale} equal cells: "
                        f"choose from {', '.join(str(m) for m in range(1, height + 1) if height % m == 0)} and "
                        f"multiples of {height}, which repeat its cells"
                    )

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        p, labels = self.params, batch.labels
        student_logits = region_logits(student, p.scales)
        with torch.no_grad():
            teacher_logits = region_logits(teacher, p.scales)
        weights = region_weights(teacher_logits, labels, p.complementary_weight)
        ce = p.ce_weight * batch.cross_entropy(student.logits)
        if p.base == "kd":
            log_student, log_teacher = (
                log_softmax(logits / p.temperature, dim=2) for logits in (student_logits, teacher_logits)
            )
            kl = kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(dim=2)
            return {"ce": ce, "kd": p.kd_weight * p.temperature**2 * (weights * kl).mean()}
        flat = (logits.flatten(0, 1) for logits in (student_logits, teacher_logits))
        tckd, nckd = decoupled_losses(*flat, labels[:, None].expand_as(weights).flatten(), p.temperature)
        warm_up, weights = progress.warm_up(p.warm_up_epochs), weights.flatten()
        return {
            "ce": ce,
            "tckd": warm_up * p.alpha * (weights * tckd).mean(),
            "nckd": warm_up * p.beta * (weights * nckd).mean(),
        }
