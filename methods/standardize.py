"""Logit standardization: Sun, Ren, Li, Wang and Cao, CVPR 2024 (arXiv 2403.01427): a switch of logit methods."""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-7


def standardized(logits: Tensor) -> Tensor:
    """(z - mean_c z) / (std_c z + 1e-7) of each sample, (B, C), in float32 at least.

    For student and teacher alike, before a distillation loss and not before the cross entropy: what is distilled is the
    direction of the logits, their scale is left to the labels. The deviation has C - 1, as released
    (sunshangquan/logit-standardization-KD @f6e5aa5); the paper's Algorithm 1 has C, which is a temperature of 1.005 at
    100 classes. Weights are about ten times the usual ones with it: T 2 and 9 in place of 4 and 0.9.
    """
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return (z - z.mean(dim=1, keepdim=True)) / (z.std(dim=1, keepdim=True) + EPSILON)
