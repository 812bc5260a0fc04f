"""AT against loops in NumPy, its oracle values and what must hold of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from methods.at import attention_loss
from methods.maps import stages
from tests.methods.reference import close, numeric_gradient, outputs, value_and_slope, wave

torch.set_num_threads(1)
S8, T8, S4, T4 = wave(2, 3, 8, 0.1, 1), wave(2, 5, 8, 0.9, 1.5), wave(2, 4, 4, 0.2, 1), wave(2, 6, 4, 0.7, 1.5)


def by_hand(student: np.ndarray, teacher: np.ndarray) -> float:
    """Cell by cell; the student's map may have twice the teacher's height."""
    batch, height = len(teacher), teacher.shape[2]
    if student.shape[2] == 2 * height:
        pooled = np.zeros((*student.shape[:2], height, height))
        for b, c, y, x in np.ndindex(pooled.shape):
            pooled[b, c, y, x] = sum(student[b, c, 2 * y + i, 2 * x + j] for i in (0, 1) for j in (0, 1)) / 4
        student = pooled
    total = 0.0
    for b in range(batch):
        looks = []
        for maps in (student, teacher):
            squares = [
                sum(maps[b, c, y, x] ** 2 for c in range(maps.shape[1])) / maps.shape[1]
                for y in range(height) for x in range(height)
            ]  # fmt: skip
            length = math.sqrt(sum(v * v for v in squares))
            looks.append([v / length for v in squares])
        total += sum((s - t) ** 2 for s, t in zip(*looks, strict=True)) / (batch * height**2)
    return total


def loss(teacher: np.ndarray):
    return lambda student: attention_loss(student, torch.tensor(teacher))


@pytest.mark.parametrize(
    ("student", "teacher", "value"),
    [(S8, T8, 0.00134018671442), (S4, T4, 0.00708150761201), (S8, T4, 0.00720568188394)],
)
def test_oracle_values(student: np.ndarray, teacher: np.ndarray, value: float) -> None:
    found, _ = value_and_slope(loss(teacher), student)
    assert found == pytest.approx(value, abs=5e-15)
    assert by_hand(student, teacher) == pytest.approx(value, abs=5e-15)


def test_oracle_gradient() -> None:
    _, gradient = value_and_slope(loss(T8), S8)
    assert gradient[0, 0, 0, :3] == pytest.approx([-1.33998318e-5, -4.68864791e-5, -2.00116195e-5], abs=5e-14)


@pytest.mark.parametrize("shapes", [((2, 3, 2, 2), (2, 4, 2, 2)), ((1, 1, 4, 4), (1, 2, 2, 2))])
def test_values_and_gradients(shapes: tuple) -> None:
    rng = np.random.default_rng(0)
    student, teacher = (rng.standard_normal(shape) + 0.5 for shape in shapes)
    value, gradient = value_and_slope(loss(teacher), student)
    close(value, by_hand(student, teacher))
    close(gradient, numeric_gradient(lambda s: by_hand(s, teacher), student, h=0.01), 1e-6)


def test_neither_signs_nor_scales_nor_the_order_of_channels_count() -> None:
    value, _ = value_and_slope(loss(T8), S8)
    other, _ = value_and_slope(loss(-T8), 7 * S8[:, ::-1].copy())
    assert other == pytest.approx(value, rel=1e-12)


def test_an_empty_map_costs_something_and_pulls_nowhere() -> None:
    value, gradient = value_and_slope(loss(T8), 0 * S8)
    assert value > 0 and not gradient.any()


def test_half_precision_is_summed_in_float32() -> None:
    student, teacher = (torch.tensor(300 * x, dtype=torch.float16) for x in (S8, T8))  # squares overflow
    found = attention_loss(student, teacher)
    assert found.dtype == torch.float32 and float(found) == pytest.approx(0.00134018671442, rel=1e-2)


def test_the_deepest_stages_meet() -> None:
    few, many = (tuple(torch.full((1, 1, 1, 1), float(k)) for k in range(n)) for n in (3, 5))
    pairs = stages(outputs(torch.zeros(1, 2), few), outputs(torch.zeros(1, 2), many))
    assert [(float(s), float(t)) for s, t in pairs] == [(1, 3), (2, 4)]
