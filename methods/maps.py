"""What the losses on feature maps have in common: precision, equal heights, and which levels meet."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from zoo import Outputs


def precise(x: Tensor) -> Tensor:
    """In float32 at least: sums of squares of half precision overflow, or lose their digits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def of_equal_height(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Maps (B, C, h, h), the higher one averaged over cells to the height of the other; channels may differ."""
    s, t = student.shape[2], teacher.shape[2]
    if s > t:
        return adaptive_avg_pool2d(student, t), teacher
    return student, adaptive_avg_pool2d(teacher, s) if t > s else teacher


def stages(student: Outputs, teacher: Outputs) -> list[tuple[Tensor, Tensor]]:
    """The maps of stages 1 to L of both; of networks with unequal numbers of stages the deepest ones meet."""
    both = student.features[1:], teacher.features[1:]
    levels = min(map(len, both))
    return list(zip(*(maps[-levels:] for maps in both), strict=True))
