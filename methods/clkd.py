"""CLKD: Zhang et al., "Class-aware Information for Logit-based Knowledge Distillation", 2022 (arXiv 2211.14773).

The paper's text was not at hand and its authors' code is not public, so this follows others' code. The skeleton of
three terms is certain: the abstract names them, and two authors write the first two alike. The correlation term and
the weights are not verified: the codes disagree on the former, and each form below names its own.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor
from torch.nn.functional import mse_loss, normalize

from methods.contract import Batch, Method, Progress, register
from methods.settings import Settings
from zoo import Outputs

Correlation = Literal["classes", "samples", "classes-raw"]


def normalised_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """NMSE of two matrices: mean over all elements of (u - v)^2, u and v their rows divided by their L2 norms.

    A norm below 1e-12 counts as 1e-12, so that a row of zeros stays zero.
    """
    return mse_loss(normalize(student, dim=1), normalize(teacher, dim=1))


def correlation_loss(student: Tensor, teacher: Tensor, form: Correlation) -> Tensor:
    """L_cc of logits (B, C), where Zc is Z less each class's mean over the batch and |.| the Frobenius norm.

        classes       |S_s - S_t| / C^2,    S = Zc^T Zc / (C - 1)   (C, C)   StreamLined, behind the target table
        samples       |S_s - S_t|^2 / C^2,  S = Zc Zc^T / (C - 1)   (B, B)   the same author a year earlier
        classes-raw   NMSE(S_s, S_t) / C^2, S = Z^T Z               (C, C)   another author's, for time series

    The divisor C - 1, not B - 1, is theirs. Equal logits give zero and a zero gradient in each form.
    """
    classes = student.shape[1]
    if form == "classes-raw":
        return normalised_mse(student.T @ student, teacher.T @ teacher) / classes**2
    student, teacher = (z - z.mean(dim=0) for z in (student, teacher))
    # Two products and not one of the stacked matrices: for equal logits their difference is exactly zero.
    if form == "classes":
        difference = student.T @ student - teacher.T @ teacher
        return torch.linalg.vector_norm(difference) / (max(classes - 1, 1) * classes**2)
    difference = student @ student.T - teacher @ teacher.T
    return difference.square().sum() / (max(classes - 1, 1) * classes) ** 2


@register
class CLKD(Method):
    """L = w_ce CE + w_level (L_ins + beta L_cla) + w_cc L_cc on plain logits, with neither softmax nor temperature.

    L_ins = NMSE(Z_s, Z_t) compares each sample's logits, L_cla = NMSE(Z_s^T, Z_t^T) each class over the batch.
    StreamLined's values (`Distiller/CLKD.py` @e4ab795): CE 0.1, level 0.5, beta 2, correlation 0.4.
    """

    name = "clkd"
    label = "CLKD"
    group = "logit"
    row = 2

    class Params(Settings):
        ce_weight: NonNegativeFloat
        """Weight of the cross entropy with the labels."""
        level_weight: NonNegativeFloat
        """Weight of the two distances of logits, per sample and per class."""
        beta: NonNegativeFloat
        """Weight of the class distance within them."""
        correlation_weight: NonNegativeFloat
        """Weight of the distance of class correlations."""
        correlation: Correlation
        """Which of three forms of that distance is taken; see methods/clkd.py."""

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        p = self.params
        with torch.autocast(student.logits.device.type, enabled=False):
            dtype = torch.promote_types(student.logits.dtype, torch.float32)
            z_s, z_t = student.logits.to(dtype), teacher.logits.to(dtype)
            return {
                "ce": p.ce_weight * batch.cross_entropy(z_s),
                "instance": p.level_weight * normalised_mse(z_s, z_t),
                "class": p.level_weight * p.beta * normalised_mse(z_s.T, z_t.T),
                "correlation": p.correlation_weight * correlation_loss(z_s, z_t, p.correlation),
            }
