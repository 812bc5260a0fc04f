"""DIST against loops in NumPy, its oracle values and what must hold of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from methods.dist import relation_losses
from tests.methods.reference import close, measure, numeric_gradient, oracle_inputs, random_inputs, softmax

torch.set_num_threads(1)
PARAMS = {"temperature": 4.0, "ce_weight": 1.0, "inter_weight": 2.0, "intra_weight": 2.0}


def correlation(u: list[float], v: list[float]) -> float:
    mean_u, mean_v = sum(u) / len(u), sum(v) / len(v)
    product = sum((a - mean_u) * (b - mean_v) for a, b in zip(u, v, strict=True))
    lengths = math.sqrt(sum((a - mean_u) ** 2 for a in u)) * math.sqrt(sum((b - mean_v) ** 2 for b in v))
    return product / (lengths + 1e-8)


def by_hand(z_s: np.ndarray, z_t: np.ndarray, temperature: float) -> tuple[float, float]:
    p_s, p_t = ([softmax(row / temperature) for row in z] for z in (z_s, z_t))
    inter = [correlation(s, t) for s, t in zip(p_s, p_t, strict=True)]
    classes = range(z_s.shape[1])
    intra = [correlation([row[c] for row in p_s], [row[c] for row in p_t]) for c in classes]
    return tuple(temperature**2 * (1 - sum(r) / len(r)) for r in (inter, intra))


def test_oracle_values() -> None:
    z_s, z_t, labels = oracle_inputs()
    for temperature, inter, intra, digits in (
        (1.0, 0.817082577918, 1.20194168129, 5e-12),
        (4.0, 12.6161167387, 20.4474804188, 5e-11),
    ):
        one = PARAMS | {"temperature": temperature, "inter_weight": 1.0, "intra_weight": 1.0}
        terms = measure("dist", one, z_s, z_t, labels)
        assert (terms["inter"][0], terms["intra"][0]) == pytest.approx((inter, intra), abs=digits)
        assert by_hand(z_s, z_t, temperature) == pytest.approx((inter, intra), abs=digits)
        slope = (terms["inter"][1] + terms["intra"][1])[0, :3]
        printed = {1.0: (-0.01200807, -0.0481003, 0.04147755), 4.0: (-0.20402944, -0.68809697, 0.48340717)}
        assert slope == pytest.approx(printed[temperature], abs=5e-8)
    whole = measure("dist", PARAMS, z_s, z_t, labels)
    assert sum(value for value, _ in whole.values()) == pytest.approx(69.3027474383, abs=5e-10)


@pytest.mark.parametrize(("batch", "classes"), [(2, 3), (5, 7)])
def test_values_and_gradients(batch: int, classes: int) -> None:
    z_s, z_t, labels = random_inputs(batch, classes, scale=1.0)
    terms = measure("dist", PARAMS, z_s, z_t, labels)
    for place, name in enumerate(("inter", "intra")):
        close(terms[name][0], 2 * by_hand(z_s, z_t, 4.0)[place])
        slope = numeric_gradient(lambda z, place=place: 2 * by_hand(z, z_t, 4.0)[place], z_s, h=0.01)
        close(terms[name][1], slope, 1e-5)


def test_a_batch_of_one_has_no_relation_of_classes() -> None:
    z_s, z_t, labels = random_inputs(1, 5)
    value, gradient = measure("dist", PARAMS, z_s, z_t, labels)["intra"]
    assert value == 2 * 16 and not gradient.any()


def test_equal_logits_cost_what_the_added_eps_does() -> None:
    z, _, labels = random_inputs(16, 100, scale=4.0)
    terms = measure("dist", PARAMS, z, z, labels)
    assert 0 < terms["inter"][0] < 1e-4 and 0 < terms["intra"][0] < 0.02


def test_a_constant_added_to_a_row_changes_nothing() -> None:
    z_s, z_t, labels = random_inputs(4, 6)
    shift = np.array([[-3.0], [0.5], [7.0], [40.0]])
    plain, shifted = (measure("dist", PARAMS, *z, labels) for z in ((z_s, z_t), (z_s + shift, z_t - shift)))
    for name in ("inter", "intra"):
        close(shifted[name][0], plain[name][0], 1e-11)


def test_rows_that_do_not_vary_and_half_precision() -> None:
    z_s, z_t, labels = random_inputs(4, 6)
    terms = measure("dist", PARAMS, 0 * z_s, z_t, labels)
    assert all(np.isfinite(value) and np.isfinite(gradient).all() for value, gradient in terms.values())
    half = relation_losses(*(torch.tensor(z, dtype=torch.float16) for z in (z_s, z_t)), 4.0)
    assert all(loss.dtype == torch.float32 for loss in half)
    assert [float(loss) for loss in half] == pytest.approx(by_hand(z_s, z_t, 4.0), rel=2e-3)
