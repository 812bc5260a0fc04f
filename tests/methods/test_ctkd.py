"""CTKD against loops in NumPy, its oracle values, and which way its temperature goes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import methods
from methods.ctkd import reversed_by
from methods.standardize import standardized
from tests.methods import reference
from tests.methods.reference import close, numeric_gradient, oracle_inputs, random_inputs, soft_targets

torch.set_num_threads(1)
PARAMS = {
    "ce_weight": 0.1,
    "kd_weight": 0.9,
    "temperature_least": 1.0,
    "temperature_range": 20.0,
    "ramp_epochs": 10,
}


def step(theta: float, epoch: float, z_s, z_t, labels, **changes):
    """Terms, and the gradients of their sum in the student's logits and in theta."""
    made = methods.get("ctkd")(reference.settings("ctkd", PARAMS | changes), None, None, None).double()
    with torch.no_grad():
        made.theta.fill_(theta)
    student, teacher = torch.tensor(z_s, requires_grad=True), torch.tensor(z_t, requires_grad=True)
    terms = made.terms(
        reference.outputs(student), reference.outputs(teacher), reference.batch_of(labels), reference.progress(epoch)
    )
    to_logits, to_theta = torch.autograd.grad(sum(terms.values()), (student, made.theta))
    return {name: float(value.detach()) for name, value in terms.items()}, to_logits.numpy(), float(to_theta), made


@pytest.mark.parametrize(
    ("theta", "temperature", "kd", "total", "on_z", "slopes", "slope_on_z"),
    [
        (1.0, 15.6211715726, 2.8086274917, 2.84532005485, 0.71296807406,
         (-0.000506724775, -0.010353263334, -0.020706526668), -0.002295011344),
        (-1.5, 4.64851047613, 2.53275226524, 2.59703235104, 0.68864443211,
         (-0.006456071245, -0.131908698701, -0.263817397403), -0.024556232192),
    ],
)  # fmt: skip
def test_oracle_values(theta, temperature, kd, total, on_z, slopes, slope_on_z) -> None:
    for epoch, slope in zip((1, 5, 10), slopes, strict=True):
        terms, _, to_theta, made = step(theta, epoch, *oracle_inputs())
        assert float(made.watched()["temperature"].detach()) == pytest.approx(temperature, abs=5e-11)
        assert (terms["kd"] / 0.9, sum(terms.values())) == pytest.approx((kd, total), abs=5e-11)
        assert to_theta == pytest.approx(slope, abs=5e-13)
    terms, _, to_theta, _ = step(theta, 10, *oracle_inputs(), standardize=True, kd_weight=1.0, ce_weight=0.0)
    assert terms["kd"] == pytest.approx(on_z, abs=5e-12) and to_theta == pytest.approx(slope_on_z, abs=5e-13)


@pytest.mark.parametrize(("batch", "classes"), [(1, 4), (5, 7)])
def test_values_and_gradients(batch: int, classes: int) -> None:
    """The student's gradient is KD's at that temperature; theta's the slope of the whole, turned round."""
    z_s, z_t, labels = random_inputs(batch, classes)
    heat = lambda theta: 1 + 20 / (1 + math.exp(-theta))  # noqa: E731
    terms, to_logits, to_theta, _ = step(-0.7, 3, z_s, z_t, labels)
    kd, slope = soft_targets(z_s, z_t, heat(-0.7))
    ce, pull = reference.cross_entropy(z_s, labels)
    close([terms["ce"], terms["kd"]], [0.1 * ce, 0.9 * kd])
    close(to_logits, 0.1 * pull + 0.9 * slope)
    (rise,) = numeric_gradient(lambda t: 0.9 * soft_targets(z_s, z_t, heat(t[0]))[0], np.array([-0.7]))
    close(to_theta, -rise * (1 - math.cos(math.pi * 0.3)) / 2, 1e-7)


def test_the_ramp_ends_at_one_and_stays() -> None:
    value = torch.tensor(2.0, requires_grad=True)
    out = reversed_by(value, torch.tensor(0.25))
    assert out == 2.0 and torch.autograd.grad(3 * out, value)[0] == -0.75
    slopes = [step(0.0, epoch, *oracle_inputs())[2] for epoch in (1, 2, 9, 10, 11, 240)]
    parts = [slope / slopes[-1] for slope in slopes]
    assert parts == pytest.approx([0.0245, 0.0955, 0.9755, 1, 1, 1], abs=5e-5)


def test_the_temperature_climbs_to_where_kd_is_largest() -> None:
    """Of given logits, a student that knows little: T^2 KL over T has a maximum that ascent finds from above."""
    z_s, z_t, labels = random_inputs(6, 10, scale=1.0)
    z_t[range(6), labels] += 8.0
    made = methods.get("ctkd")(reference.settings("ctkd", PARAMS), None, None, None).double()
    both = reference.outputs(torch.tensor(z_s)), reference.outputs(torch.tensor(z_t))
    for _ in range(200):
        kd = made.terms(*both, reference.batch_of(labels), reference.progress(10))["kd"]
        (gradient,) = torch.autograd.grad(kd, made.theta)
        with torch.no_grad():
            made.theta -= 0.5 * gradient
    found = made.temperature(made.theta).item()
    at, below, above = (soft_targets(z_s, z_t, found * by)[0] for by in (1, 0.9, 1.1))
    assert 1.5 < found < 12 and at > max(below, above)


def test_standardised_logits_are_what_the_second_term_sees() -> None:
    z_s, z_t, labels = random_inputs(5, 7)
    terms, *_ = step(0.3, 10, z_s, z_t, labels, standardize=True)
    plain, *_ = step(0.3, 10, *(standardized(torch.tensor(z)).numpy() for z in (z_s, z_t)), labels)
    assert terms["kd"] == pytest.approx(plain["kd"], rel=1e-12)
    assert terms["ce"] == pytest.approx(0.1 * reference.cross_entropy(z_s, labels)[0], rel=1e-12)
