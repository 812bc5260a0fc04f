"""Training from labels alone: teachers, and the Student row every gain is measured from."""

from __future__ import annotations

from torch import Tensor

from methods.contract import Batch, Method, Progress, register
from zoo import Outputs


@register
class Vanilla(Method):
    """L = CE(z_s, y). No parameters."""

    name = "vanilla"
    label = "Student"
    group = ""
    uses_teacher = False

    def terms(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        return {"ce": batch.cross_entropy(student.logits)}
