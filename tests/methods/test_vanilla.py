"""Cross entropy alone."""

from __future__ import annotations

import pytest
import torch

import methods
from tests.methods import reference
from tests.methods.reference import close, measure, oracle_inputs, random_inputs

torch.set_num_threads(1)


def test_value_and_gradient() -> None:
    z_s, z_t, labels = random_inputs(5, 7)
    value, gradient = reference.cross_entropy(z_s, labels)
    close(gradient, reference.numeric_gradient(lambda z: reference.cross_entropy(z, labels)[0], z_s))
    terms = measure("vanilla", {}, z_s, z_t, labels)
    assert list(terms) == ["ce"]
    close(terms["ce"][0], value)
    close(terms["ce"][1], gradient)


def test_oracle_value() -> None:
    assert measure("vanilla", {}, *oracle_inputs())["ce"][0] == pytest.approx(3.1755531232, abs=5.1e-11)


def test_works_without_a_teacher_and_takes_no_parameters() -> None:
    cls = methods.get("vanilla")
    assert not cls.uses_teacher and cls.group == "" and not cls.Params.model_fields
    method = cls(cls.Params(), torch.nn.Identity(), None, methods.TrainSet(torch.arange(2), 2))
    student = reference.outputs(torch.zeros(2, 4, dtype=torch.float64))
    terms = method.terms(student, None, reference.batch_of([0, 3]), reference.progress(1))
    close(terms["ce"].item(), 2 * 0.6931471805599453)  # log 4
