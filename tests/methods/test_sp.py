"""SP against loops in NumPy, its oracle values and what must hold of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from methods.sp import similarity_loss
from tests.methods.reference import close, numeric_gradient, value_and_slope, wave

torch.set_num_threads(1)


def by_hand(student: np.ndarray, teacher: np.ndarray) -> float:
    batch, rows = len(student), []
    for maps in (student, teacher):
        flat = [maps[b].ravel() for b in range(batch)]
        g = [[sum(x * y for x, y in zip(a, b, strict=True)) for b in flat] for a in flat]
        rows.append([[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in g])
    return sum((rows[1][i][j] - rows[0][i][j]) ** 2 for i in range(batch) for j in range(batch)) / batch**2


def loss(teacher: np.ndarray):
    return lambda student: similarity_loss(student, torch.tensor(teacher))


@pytest.mark.parametrize(
    ("student", "teacher", "value", "digits"),
    [
        (wave(6, 4, 4, 0.2, 1), wave(6, 7, 4, 0.7, 1.5), 0.330283755733, 5e-13),
        (wave(2, 3, 8, 0.1, 1), wave(2, 6, 4, 0.7, 1.5), 0.0211668646375, 5e-14),
    ],
)
def test_oracle_values(student: np.ndarray, teacher: np.ndarray, value: float, digits: float) -> None:
    found, _ = value_and_slope(loss(teacher), student)
    assert found == pytest.approx(value, abs=digits) and by_hand(student, teacher) == pytest.approx(value, abs=digits)


@pytest.mark.parametrize("batch", [2, 4])
def test_values_and_gradients(batch: int) -> None:
    rng = np.random.default_rng(0)
    student, teacher = rng.standard_normal((batch, 2, 2, 2)), rng.standard_normal((batch, 3, 4, 4))
    value, gradient = value_and_slope(loss(teacher), student)
    close(value, by_hand(student, teacher))
    close(gradient, numeric_gradient(lambda s: by_hand(s, teacher), student, h=0.01), 1e-6)


def test_a_batch_of_one_and_equal_maps_cost_nothing() -> None:
    x = wave(6, 4, 4, 0.2, 1)
    assert value_and_slope(loss(x), x)[0] == 0
    assert value_and_slope(loss(3 * x[:1]), x[1:2])[0] == pytest.approx(0, abs=1e-30)


def test_scales_and_the_order_of_channels_do_not_count() -> None:
    student, teacher = wave(6, 4, 4, 0.2, 1), wave(6, 7, 4, 0.7, 1.5)
    other, _ = value_and_slope(loss(5 * teacher), 0.1 * student[:, ::-1].copy())
    assert other == pytest.approx(0.330283755733, abs=5e-13)


def test_an_empty_map_has_a_gradient_that_a_step_survives() -> None:
    student = wave(6, 4, 4, 0.2, 1)
    student[2] = 0
    value, gradient = value_and_slope(loss(wave(6, 7, 4, 0.7, 1.5)), student)
    assert np.isfinite(value) and np.isfinite(gradient).all() and np.abs(gradient).max() < 1e6


def test_half_precision_is_summed_in_float32() -> None:
    student, teacher = (
        torch.tensor(30 * x, dtype=torch.float16) for x in (wave(6, 4, 4, 0.2, 1), wave(6, 7, 4, 0.7, 1.5))
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = similarity_loss(student, teacher)
    assert found.dtype == torch.float32 and float(found) == pytest.approx(0.330283755733, rel=1e-3)
