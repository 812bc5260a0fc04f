"""KD against a NumPy reference, its oracle values and what must hold of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from methods.kd import soft_target_loss
from tests.methods import reference
from tests.methods.reference import close, measure, oracle_inputs, random_inputs

torch.set_num_threads(1)
PARAMS = {"temperature": 4.0, "ce_weight": 0.1, "kd_weight": 0.9}


@pytest.mark.parametrize("temperature", [1.0, 2.5, 4.0])
@pytest.mark.parametrize(("batch", "classes"), [(1, 4), (2, 3), (5, 7)])
def test_values_and_gradients(batch: int, classes: int, temperature: float) -> None:
    z_s, z_t, labels = random_inputs(batch, classes)
    terms = measure("kd", {**PARAMS, "temperature": temperature}, z_s, z_t, labels)
    assert list(terms) == ["ce", "kd"]
    for key, weight, (value, gradient) in (
        ("ce", 0.1, reference.cross_entropy(z_s, labels)),
        ("kd", 0.9, reference.soft_targets(z_s, z_t, temperature)),
    ):
        close(terms[key][0], weight * value)
        close(terms[key][1], weight * gradient)


def test_reference_gradient_is_the_slope_of_the_reference() -> None:
    z_s, z_t, _ = random_inputs(3, 5)
    _, gradient = reference.soft_targets(z_s, z_t, 2.5)
    close(gradient, reference.numeric_gradient(lambda z: reference.soft_targets(z, z_t, 2.5)[0], z_s))


@pytest.mark.parametrize(("temperature", "value"), [(4.0, 2.4572970843), (1.0, 1.1660603133)])
def test_oracle_values(temperature: float, value: float) -> None:
    terms = measure("kd", {"temperature": temperature, "ce_weight": 1.0, "kd_weight": 1.0}, *oracle_inputs())
    assert terms["ce"][0] == pytest.approx(3.1755531232, abs=5.1e-11)
    assert terms["kd"][0] == pytest.approx(value, abs=5.1e-11)


def test_equal_logits_cost_nothing_and_pull_nowhere() -> None:
    z, _, labels = random_inputs(6, 9)
    value, gradient = measure("kd", PARAMS, z, z, labels)["kd"]
    assert value == 0
    assert np.abs(gradient).max() < 1e-15


def test_a_constant_added_to_a_row_changes_nothing() -> None:
    z_s, z_t, labels = random_inputs(4, 6)
    shift = np.array([[-3.0], [0.5], [7.0], [40.0]])
    plain, shifted = (measure("kd", PARAMS, *z, labels)["kd"] for z in ((z_s, z_t), (z_s + shift, z_t - 2 * shift)))
    close(shifted[0], plain[0], 1e-12)
    close(shifted[1], plain[1], 1e-12)


def test_the_average_is_over_the_batch_not_over_its_elements() -> None:
    z_s, z_t, _ = (torch.from_numpy(a) for a in random_inputs(4, 6))
    one_by_one = [soft_target_loss(s[None], t[None], 4.0) for s, t in zip(z_s, z_t, strict=True)]
    close(soft_target_loss(z_s, z_t, 4.0), torch.stack(one_by_one).mean())


@pytest.mark.parametrize("temperature", [0.1, 1.0, 4.0])
def test_confident_networks_give_finite_numbers(temperature: float) -> None:
    z_s, z_t = np.full((2, 5), -200.0), np.full((2, 5), -200.0)
    z_s[:, 1], z_t[:, 3] = 200.0, 200.0
    labels = np.array([1, 2])  # the student is sure and right, then sure and wrong
    terms = measure("kd", {**PARAMS, "temperature": temperature}, z_s, z_t, labels, dtype=torch.float32)
    assert all(np.isfinite(value) and np.isfinite(gradient).all() for value, gradient in terms.values())
    close(terms["kd"][0], 0.9 * 400 * temperature, 1e-5)  # T^2 times a gap of 400 / T
    assert np.abs(terms["kd"][1]).max() > 0
