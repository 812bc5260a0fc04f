"""SimKD: Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022 (arXiv 2203.14001)."""

from __future__ import annotations

from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from methods.contract import Batch, Method, Progress, TrainSet, register
from methods.maps import of_equal_height, precise
from methods.settings import Settings
from zoo import BadInput, Outputs, shapes
from zoo.reused import Frozen, Reused, projector


@register
class SimKD(Method):
    """L = w mean over all elements (P(map_s) - map_t)^2 of the activated last maps; neither labels nor logits are read.

    P is a projector (see `zoo.reused`) through teacher channels / `reduction`. Predictions, in training's evaluation
    and after it, are the teacher's classifier on the pooled P(map_s): `deployed`. So its network is larger than the
    student of other methods (by 3 to 22 % on the field's six pairs), and the student's own classifier is never trained.
    DefangChen/SimKD @2b389c3: weight 1, reduction 2, no CE, no KL; its teacher is the best epoch of its training. Its
    "WRN" are ResNets, whose last map is after the ReLU: so `last_map`, as P ends in one, and not WRN's raw sums.
    A higher map is pooled to the other's height, the student's before P.
    """

    name = "simkd"
    label = "SimKD"
    group = "feature"
    row = 14
    in_all = False

    class Params(Settings):
        map_weight: NonNegativeFloat
        """Weight of the distance of the last maps."""
        reduction: PositiveInt
        """The projector's width is the teacher's channels divided by this."""

    def build(self, student: nn.Module, teacher: nn.Module, train_set: TrainSet) -> None:
        (channels, height, _), reduction = shapes(teacher).last_map, self.params.reduction
        if channels < reduction:
            raise BadInput(f"reduction {reduction}: the teacher's last map has {channels} channels: set it to less")
        self.projector = projector(shapes(student).last_map[0], channels, channels // reduction)
        self.frozen = Frozen(teacher.head)
        self.height = height

    def deployed(self, student: nn.Module) -> Reused:
        return Reused(student, self.projector, self.frozen, self.height)

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        own, _ = of_equal_height(student.last_map, teacher.last_map)
        own, wanted = of_equal_height(self.projector(own), teacher.last_map)
        return {"map": self.params.map_weight * mse_loss(precise(own), precise(wanted))}
