"""FitNet: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015 (arXiv 1412.6550)."""

from __future__ import annotations

from pydantic import NonNegativeFloat, NonNegativeInt
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from methods.contract import Batch, Method, Progress, TrainSet, register
from methods.kd import WithKD, kd_beside
from zoo import BadInput, Outputs, shapes


def regressor(student_shape: tuple[int, int, int], teacher_shape: tuple[int, int, int]) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU that takes a student map (C, H, W) to the teacher's shape.

    The layer follows from the heights s and t as in RepDistiller's `ConvReg`: s = 2t strides, 2s = t transposes,
    else an unpadded kernel of 1 + s - t, which is 1x1 for equal heights.
    """
    (student_c, s, _), (teacher_c, t, _) = student_shape, teacher_shape
    if s == 2 * t:
        conv: nn.Module = nn.Conv2d(student_c, teacher_c, kernel_size=3, stride=2, padding=1)
    elif 2 * s == t:
        conv = nn.ConvTranspose2d(student_c, teacher_c, kernel_size=4, stride=2, padding=1)
    elif s >= t:
        conv = nn.Conv2d(student_c, teacher_c, kernel_size=1 + s - t)
    else:
        raise BadInput(f"no hint regressor takes height {s} to {t}: choose another hint_layer")
    return nn.Sequential(conv, nn.BatchNorm2d(teacher_c), nn.ReLU())


@register
class FitNet(Method):
    """L = w_ce * CE + w_hint * MSE(regressor(f_s), f_t) on the features of one layer, mean over all elements.

    One stage, as in RepDistiller and mdistiller (CE 1, hint 100, layer 2); the paper trains the hint first and then
    distils soft targets. WRN features are raw signed sums and the regressor ends in a ReLU, so the teacher's negative
    values cannot be matched: both published code bases have it so, and so have their numbers.
    """

    name = "fitnet"
    label = "FitNet"
    group = "feature"
    row = 1

    class Params(WithKD):
        ce_weight: NonNegativeFloat
        """Weight of the cross entropy with the labels."""
        hint_weight: NonNegativeFloat
        """Weight of the distance of features."""
        hint_layer: NonNegativeInt
        """The stage whose features are compared; 0 is the stem's."""

    def build(self, student: nn.Module, teacher: nn.Module, train_set: TrainSet) -> None:
        layer = self.params.hint_layer
        deepest = min(len(shapes(net).features) for net in (student, teacher)) - 1
        if layer > deepest:
            raise BadInput(f"hint_layer {layer}: the networks have features 0 to {deepest}; choose one of them")
        # Shapes come from a copy without storage: mdistiller's probing moves the teacher's BatchNorm statistics.
        self.regressor = regressor(shapes(student).features[layer], shapes(teacher).features[layer])

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        p = self.params
        hint = self.regressor(student.features[p.hint_layer])
        return {
            "ce": p.ce_weight * batch.cross_entropy(student.logits),
            "hint": p.hint_weight * mse_loss(hint, teacher.features[p.hint_layer]),
            **kd_beside(p, student, teacher),
        }
