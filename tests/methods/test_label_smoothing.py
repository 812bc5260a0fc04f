"""Smoothed labels reach every method's term of the labels, and no other term."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import methods
from tests.methods.test_contract import at_epoch, make, scene, student_outputs, teacher_side

SMOOTHING = 0.2


def by_hand(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy with the smoothed distribution written out."""
    wanted = torch.full_like(logits, SMOOTHING / logits.shape[1])
    wanted[torch.arange(len(labels)), labels] += 1 - SMOOTHING
    return -(wanted * logits.log_softmax(1)).sum(1).mean()


@pytest.mark.parametrize("name", methods.names())
def test_every_method_smooths_its_labels_where_the_protocol_says_so(name):
    pair = "resnet20-resnet8"
    at, student = scene(pair), student_outputs(pair)
    given, found = make(name, pair), []
    if given.views != "paired":
        student = replace(student, strong=None)
    for smoothing in (0.0, SMOOTHING):
        method, batch = make(name, pair), replace(at.batch, label_smoothing=smoothing)
        torch.manual_seed(3)
        found.append(method.terms(student, teacher_side(method, at.teacher_outputs), batch, at_epoch(5)))
    plain, smooth = found
    if "ce" not in plain:  # SimKD trains its student on the teacher's features alone
        assert name == "simkd" and all(torch.equal(smooth[term], plain[term]) for term in plain)
        return
    seen = [view.logits for view in (student, student.strong) if view]
    hard = sum(torch.nn.functional.cross_entropy(logits, at.batch.labels) for logits in seen)
    soft = sum(by_hand(logits, at.batch.labels) for logits in seen)
    torch.testing.assert_close(smooth["ce"], plain["ce"] * soft / hard)
    for term in plain.keys() - {"ce"}:
        assert torch.equal(smooth[term], plain[term]), term
