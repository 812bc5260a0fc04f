"""PKT against loops in NumPy, its oracle values and what must hold of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from methods.pkt import neighbour_loss
from tests.methods.reference import close, numeric_gradient, value_and_slope

torch.set_num_threads(1)
R, D = np.mgrid[0:8, 0:6]
STUDENT, TEACHER = np.sin(0.5 * R + 0.9 * D) + 0.1 * D, np.cos(0.4 * R - 0.3 * D) * (1 + 0.2 * D)


def by_hand(student: np.ndarray, teacher: np.ndarray) -> float:
    batch, tables = len(student), []
    for features in (student, teacher):
        unit = [[v / (math.sqrt(sum(w * w for w in row)) + 1e-7) for v in row] for row in features]
        kernel = [[(sum(x * y for x, y in zip(a, b, strict=True)) + 1) / 2 for b in unit] for a in unit]
        tables.append([[v / sum(row) for v in row] for row in kernel])
    p_s, p_t = tables
    cells = [(i, j) for i in range(batch) for j in range(batch)]
    return sum(p_t[i][j] * math.log((p_t[i][j] + 1e-7) / (p_s[i][j] + 1e-7)) for i, j in cells) / batch**2


def loss(teacher: np.ndarray):
    return lambda student: neighbour_loss(student, torch.tensor(teacher))


def test_oracle_values() -> None:
    value, gradient = value_and_slope(loss(TEACHER), STUDENT)
    assert value == pytest.approx(0.00957541937545, abs=5e-15)
    assert by_hand(STUDENT, TEACHER) == pytest.approx(value, rel=1e-12)
    assert 30000 * gradient[0, :3] == pytest.approx([-100.70922734, -72.97869365, -6.61036888], abs=5e-9)


def test_an_empty_row_has_a_finite_gradient() -> None:
    student = STUDENT.copy()
    student[2] = 0
    value, gradient = value_and_slope(loss(TEACHER), student)
    assert value == pytest.approx(0.009582909769, abs=5e-13) and np.isfinite(gradient).all()


@pytest.mark.parametrize(("batch", "widths"), [(2, (3, 3)), (5, (4, 2))])
def test_values_and_gradients(batch: int, widths: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    student, teacher = (rng.standard_normal((batch, width)) for width in widths)
    value, gradient = value_and_slope(loss(teacher), student)
    close(value, by_hand(student, teacher))
    close(gradient, numeric_gradient(lambda s: by_hand(s, teacher), student, h=0.01), 1e-6)


def test_lengths_and_turns_do_not_count_and_a_batch_of_one_costs_nothing() -> None:
    turn, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((6, 6)))
    other, _ = value_and_slope(loss(TEACHER @ turn), STUDENT * (1 + R[:, :1]))
    assert other == pytest.approx(0.00957541937545, rel=1e-6)
    assert value_and_slope(loss(TEACHER[:1]), STUDENT[:1])[0] == 0


def test_half_precision_is_computed_in_float32() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = neighbour_loss(*(torch.tensor(x, dtype=torch.float16) for x in (STUDENT, TEACHER)))
    assert found.dtype == torch.float32 and float(found) == pytest.approx(0.00957541937545, rel=2e-3)
