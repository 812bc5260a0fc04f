"""A student that predicts with its teacher's classifier, through a projector of its last map (SimKD, CVPR 2022)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from zoo import registry
from zoo.outputs import Net


class Frozen(nn.Linear):
    """A copy of a linear layer whose weight and bias are buffers: kept with a network, never trained."""

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("weight", linear.weight.detach().clone())
        self.register_buffer("bias", linear.bias.detach().clone())


def projector(student_channels: int, teacher_channels: int, hidden: int) -> nn.Sequential:
    """Three convolutions (1x1, 3x3, 1x1; no bias) by way of `hidden` channels, each with BatchNorm and ReLU."""
    layers: list[nn.Module] = []
    for into, out, size in ((student_channels, hidden, 1), (hidden, hidden, 3), (hidden, teacher_channels, 1)):
        layers += [nn.Conv2d(into, out, size, padding=size // 2, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
    return nn.Sequential(*layers)


class Reused(Net):
    """`student` up to its last map, `projector`, and the classifier `frozen`; the student's own one goes unused.

    The parts are shared with whoever made it, so it predicts as they are trained. `height` is the teacher's last map's:
    a higher one of the student is pooled to it first.
    """

    def __init__(self, student: Net, projector: nn.Module, frozen: Frozen, height: int) -> None:
        super().__init__()
        self.arch, self.side = student.arch, student.side
        self.student, self.projector, self.frozen = student, projector, frozen
        self.register_buffer("height", torch.tensor(height))
        self.register_buffer("image_side", torch.tensor(student.side))
        self._height = height

    @classmethod
    def rebuilt(cls, arch: str, state: Mapping[str, Tensor]) -> Reused:
        """The network of architecture `arch` whose `state_dict` that is, in eval mode."""
        classes, teacher_channels = state["frozen.weight"].shape
        hidden, student_channels = state["projector.0.weight"].shape[:2]
        made = cls(
            registry.build(arch, classes, int(state["image_side"])),
            projector(student_channels, teacher_channels, hidden),
            Frozen(nn.Linear(teacher_channels, classes)),
            int(state["height"]),
        )
        made.load_state_dict(state)
        return made.eval()

    @property
    def head(self) -> nn.Linear:
        return self.frozen

    @property
    def preact_bn(self) -> tuple[nn.BatchNorm2d, ...]:
        return self.student.preact_bn

    @property
    def size(self) -> int:
        """Numbers that a prediction needs: the classifier's too, and not the one that goes unused."""
        unused = sum(value.numel() for value in self.student.head.parameters())
        own = sum(value.numel() for value in self.frozen.buffers())
        return registry.count_parameters(self) - unused + own

    def trace(self, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]:
        features, preact, last_map = self.student.trace(x)
        return features, preact, self.projected(last_map)

    def projected(self, last_map: Tensor) -> Tensor:
        """The student's last map (B, C, h, h) as one of the teacher's width, no higher than the teacher's."""
        if last_map.shape[2] > self._height:
            last_map = adaptive_avg_pool2d(last_map, self._height)
        return self.projector(last_map)
