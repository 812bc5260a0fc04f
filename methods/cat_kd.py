"""CAT-KD: Guo et al., "Class Attention Transfer Based Knowledge Distillation", CVPR 2023 (arXiv 2304.12777)."""

from __future__ import annotations

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, normalize

from methods.contract import Batch, Method, Progress, TrainSet, register
from methods.kd import WithKD, kd_beside
from methods.maps import precise
from zoo import BadInput, Outputs, shapes


def class_activations(last_map: Tensor, weight: Tensor, cells: int) -> Tensor:
    """The class activation maps averaged over `cells` x `cells` equal cells, (B, C, cells^2).

    Of the activated map (B, D, h, h) and the classifier's weight (C, D), without its bias. Averaging and the classifier
    commute: the map is averaged first, at a fraction of the cost.
    """
    pooled = avg_pool2d(precise(last_map), last_map.shape[2] // cells).flatten(2)
    return precise(weight) @ pooled


@register
class CATKD(Method):
    """L = w_ce CE + beta mean (CAM_s - CAM_t)^2 over samples, classes and cells, CAM as `class_activations`.

    CE 1, 2 x 2 cells and beta per pair: GzyAftermath/CAT-KD @4467073, whose configurations of the six pairs do not
    normalise, where the paper's equation divides each class's map by its length. `normalise` does that; the betas mean
    nothing with it. The classifier is trained by this term, too. Released code replaces both classifiers by ones
    without bias (the student's drawn from N(0, 0.141)); here the student keeps the classifier that all methods have.
    """

    name = "cat_kd"
    label = "CAT-KD"
    group = "feature"
    row = 15
    in_all = False

    class Params(WithKD):
        ce_weight: NonNegativeFloat
        """Weight of the cross entropy with the labels."""
        beta: NonNegativeFloat
        """Weight of the distance of class activation maps."""
        cells: PositiveInt = 2
        """Height and width that the maps are pooled to."""
        normalise: bool = False
        """Whether each class's map is divided by its length, as in the paper's equation."""

    def build(self, student: nn.Module, teacher: nn.Module, train_set: TrainSet) -> None:
        for who, net in (("student", student), ("teacher", teacher)):
            height = shapes(net).last_map[1]
            if height % self.params.cells:
                fits = ", ".join(str(m) for m in range(1, height + 1) if height % m == 0)
                raise BadInput(f"cells {self.params.cells}: the {who}'s last map is {height} high: choose from {fits}")

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        p = self.params
        with torch.autocast(student.last_map.device.type, enabled=False):
            own = class_activations(student.last_map, student.head.weight, p.cells)
            wanted = class_activations(teacher.last_map, teacher.head.weight, p.cells)
            if p.normalise:
                own, wanted = normalize(own, dim=2), normalize(wanted, dim=2)
            distance = (own - wanted).square().mean()
        return {
            "ce": p.ce_weight * batch.cross_entropy(student.logits),
            "activations": p.beta * distance,
            **kd_beside(p, student, teacher),
        }
