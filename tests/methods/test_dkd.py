"""DKD against a NumPy reference, its oracle values and what must hold of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from methods.dkd import decoupled_losses
from tests.methods import reference
from tests.methods.reference import close, measure, oracle_inputs, random_inputs

torch.set_num_threads(1)
PARAMS = {"temperature": 4.0, "ce_weight": 2.0, "alpha": 3.0, "beta": 6.0, "warm_up_epochs": 20}


def expected(
    z_s: np.ndarray, z_t: np.ndarray, labels: np.ndarray, factor: float, params: dict[str, Any]
) -> dict[str, tuple[float, np.ndarray]]:
    """Every term and its gradient; a clamp cuts what the decoupled terms see, and lets no gradient past it."""
    limit = params.get("logit_clamp") or np.inf
    inside = np.abs(z_s) <= limit
    cut = np.clip(z_s, -limit, limit), np.clip(z_t, -limit, limit), labels, params["temperature"]
    ce = reference.cross_entropy(z_s, labels)
    terms = {"ce": (params["ce_weight"] * ce[0], params["ce_weight"] * ce[1])}
    for key, weight, (losses, gradient) in (
        ("tckd", params["alpha"], reference.tckd(*cut)),
        ("nckd", params["beta"], reference.nckd(*cut)),
    ):
        terms[key] = factor * weight * np.mean(losses), factor * weight * gradient * inside
    return terms


@pytest.mark.parametrize("clamp", [None, 1.5])
@pytest.mark.parametrize(("epoch", "factor"), [(1, 0.05), (7, 0.35), (20, 1.0), (40, 1.0)])
@pytest.mark.parametrize(("batch", "classes"), [(1, 4), (2, 3), (5, 7)])
def test_values_and_gradients(batch: int, classes: int, epoch: int, factor: float, clamp: float | None) -> None:
    inputs = random_inputs(batch, classes, seed=1)
    params = {**PARAMS, "logit_clamp": clamp}
    if clamp:
        assert (np.abs(inputs[0]) > clamp).any() and (np.abs(inputs[1]) > clamp).any()
    terms = measure("dkd", params, *inputs, epoch=epoch)
    wanted = expected(*inputs, factor, params)
    assert list(terms) == ["ce", "tckd", "nckd"]
    for key, (value, gradient) in wanted.items():
        close(terms[key][0], value)
        close(terms[key][1], gradient)


@pytest.mark.parametrize("epoch", [1, 7])
def test_the_epoch_of_a_training_run_is_float32(epoch: int) -> None:
    z_s, z_t, labels = random_inputs(5, 7)
    terms = measure("dkd", PARAMS, z_s, z_t, labels, epoch=epoch, dtype=torch.float32)
    close(terms["nckd"][0], expected(z_s, z_t, labels, epoch / 20, PARAMS)["nckd"][0], 1e-5)


def test_reference_gradients_are_the_slopes_of_the_reference() -> None:
    z_s, z_t, labels = random_inputs(3, 5)
    for term in (reference.tckd, reference.nckd):
        slope = reference.numeric_gradient(lambda z, term=term: np.mean(term(z, z_t, labels, 2.5)[0]), z_s)
        close(term(z_s, z_t, labels, 2.5)[1], slope)


@pytest.mark.parametrize(
    ("alpha", "beta", "value"),
    [(1, 0, 0.3918884266), (0, 1, 2.2976358658), (1, 8, 18.7729753527), (1, 2, 4.9871601581)],
)
def test_oracle_values(alpha: int, beta: int, value: float) -> None:
    params = {**PARAMS, "alpha": float(alpha), "beta": float(beta), "ce_weight": 1.0}
    terms = measure("dkd", params, *oracle_inputs(), epoch=20)
    assert terms["ce"][0] == pytest.approx(3.1755531232, abs=5.1e-11)
    assert terms["tckd"][0] + terms["nckd"][0] == pytest.approx(value, abs=5.1e-11)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_two_parts_make_up_the_divergence(temperature: float) -> None:
    """Per sample T^2 KL(p_t || p_s) = TCKD + (1 - p_t,y) NCKD: the decomposition that the method starts from."""
    z_s, z_t, labels = random_inputs(6, 8)
    tckd, nckd = decoupled_losses(*(torch.from_numpy(a) for a in (z_s, z_t, labels)), temperature)
    assert tckd.shape == nckd.shape == (6,)
    for i in range(6):
        whole, _ = reference.soft_targets(z_s[i : i + 1], z_t[i : i + 1], temperature)
        p_y = reference.softmax(z_t[i] / temperature)[labels[i]]
        close(tckd[i] + (1 - p_y) * nckd[i], whole)


def test_two_classes_leave_nothing_to_the_second_part() -> None:
    terms = measure("dkd", PARAMS, *random_inputs(4, 2), epoch=20)
    assert terms["nckd"][0] == 0 and not terms["nckd"][1].any()
    assert terms["tckd"][0] > 0


def test_the_target_logit_does_not_enter_the_second_part() -> None:
    z_s, z_t, labels = random_inputs(4, 6)
    value, gradient = measure("dkd", PARAMS, z_s, z_t, labels)["nckd"]
    z_s[np.arange(4), labels] += [9.0, -5.0, 1.0, 30.0]
    close(measure("dkd", PARAMS, z_s, z_t, labels)["nckd"][0], value, 1e-12)
    assert not gradient[np.arange(4), labels].any()


def test_equal_logits_cost_nothing_and_pull_nowhere() -> None:
    z, _, labels = random_inputs(6, 9)
    terms = measure("dkd", PARAMS, z, z, labels, epoch=20)
    for key in ("tckd", "nckd"):
        assert terms[key][0] == 0
        assert np.abs(terms[key][1]).max() < 1e-14


@pytest.mark.parametrize("clamp", [None, 10.0])
def test_confident_networks_give_finite_numbers(clamp: float | None) -> None:
    z_s, z_t = np.full((3, 5), -200.0), np.full((3, 5), -200.0)
    z_s[:, 1], z_t[:, 3] = 200.0, 200.0
    labels = np.array([1, 2, 3])  # the student's choice, nobody's and the teacher's
    params = {**PARAMS, "logit_clamp": clamp, "temperature": 1.0}
    terms = measure("dkd", params, z_s, z_t, labels, epoch=20, dtype=torch.float32)
    assert all(np.isfinite(value) and np.isfinite(gradient).all() for value, gradient in terms.values())
    gap = 2 * clamp if clamp else 400
    # Rows 1 and 3 disagree on the label by the whole gap; 4 classes without it are at most log 4 away from that.
    assert terms["tckd"][0] == pytest.approx(params["alpha"] * 2 * gap / 3, abs=params["alpha"] * 1.4)
