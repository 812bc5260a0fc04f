"""NKD against loops in NumPy, its oracle values and how it is related to DKD."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from methods.nkd import normalised_losses
from tests.methods.reference import close, measure, nckd, numeric_gradient, oracle_inputs, random_inputs, softmax, split

torch.set_num_threads(1)
PARAMS = {"temperature": 3.0, "ce_weight": 1.0, "target_weight": 1.0, "gamma": 3.5}


def by_hand(z_s: np.ndarray, z_t: np.ndarray, labels: np.ndarray, temperature: float) -> tuple[float, float]:
    target = others = 0.0
    for i, y in enumerate(labels):
        target -= softmax(z_t[i])[y] * math.log(softmax(z_s[i])[y]) / len(labels)
        (_, q_s), (_, q_t) = split(z_s[i] / temperature, y), split(z_t[i] / temperature, y)
        others -= temperature**2 * sum(q_t[c] * math.log(q_s[c]) for c in q_s) / len(labels)
    return target, others


def test_oracle_values() -> None:
    z_s, z_t, labels = oracle_inputs()
    for temperature, gamma, value in ((1.0, 1.5, 4.152072714), (3.0, 3.5, 70.3275289727), (3.0, 1.0, None)):
        terms = measure("nkd", PARAMS | {"temperature": temperature, "gamma": gamma}, z_s, z_t, labels)
        assert terms["target"][0] == pytest.approx(0.397083941676, abs=5e-13)
        if value is None:
            assert terms["others"][0] == pytest.approx(19.9801271517, abs=5e-11)
        else:
            assert terms["target"][0] + terms["others"][0] == pytest.approx(value, abs=5e-10)
    terms = measure("nkd", PARAMS, z_s, z_t, labels)
    gradient = (terms["target"][1] + terms["others"][1])[0, :3]
    assert gradient == pytest.approx([-0.05775171, -0.16468923, 0.00428359], abs=5e-9)


@pytest.mark.parametrize(("batch", "classes"), [(1, 4), (5, 7)])
def test_values_and_gradients(batch: int, classes: int) -> None:
    z_s, z_t, labels = random_inputs(batch, classes)
    terms = measure("nkd", PARAMS, z_s, z_t, labels)
    for place, (name, weight) in enumerate((("target", 1.0), ("others", 3.5))):
        close(terms[name][0], weight * by_hand(z_s, z_t, labels, 3.0)[place])
        slope = numeric_gradient(lambda z, k=place, w=weight: w * by_hand(z, z_t, labels, 3.0)[k], z_s)
        close(terms[name][1], slope, 1e-7)


def test_the_second_term_is_dkds_and_an_entropy() -> None:
    z_s, z_t, labels = random_inputs(5, 7)
    losses, gradient = nckd(z_s, z_t, labels, 3.0)
    value, slope = measure("nkd", PARAMS | {"gamma": 1.0}, z_s, z_t, labels)["others"]
    entropies = [-sum(q * math.log(q) for q in split(z / 3.0, y)[1].values()) for z, y in zip(z_t, labels, strict=True)]
    close(value, np.mean(losses) + 9.0 * np.mean(entropies))
    close(slope, gradient, 1e-8)


def test_a_constant_added_to_a_row_changes_nothing_and_half_precision() -> None:
    z_s, z_t, labels = random_inputs(4, 6)
    plain, shifted = (measure("nkd", PARAMS, *z, labels) for z in ((z_s, z_t), (z_s + 7.0, z_t - 40.0)))
    for name in ("target", "others"):
        close(shifted[name][0], plain[name][0], 1e-11)
    half = normalised_losses(*(torch.tensor(z, dtype=torch.float16) for z in (z_s, z_t)), torch.tensor(labels), 3.0)
    assert all(loss.dtype == torch.float32 for loss in half)
    assert [float(loss) for loss in half] == pytest.approx(by_hand(z_s, z_t, labels, 3.0), rel=2e-3)
