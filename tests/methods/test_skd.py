"""SKD in both forms against a NumPy reference, and what must hold of the direction term and the factors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import methods
from methods.skd import below_median, direction_loss
from tests.methods import reference
from tests.methods.reference import close, measure, random_inputs

torch.set_num_threads(1)
PARAMS = {"temperature": 4.0, "tikhonov": 0.1, "ce_weight": 0.3, "kd_weight": 0.7}


def tied(batch: int, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs whose teacher is exactly as confident on three samples, which hold the median."""
    z_s, z_t, labels = random_inputs(batch, classes, seed=2)
    order = np.argsort([max(reference.softmax(row)) for row in z_t])
    z_t[order[batch // 2 : batch // 2 + 2]] = z_t[order[batch // 2 - 1]]
    return z_s, z_t, labels


CASES = {
    "even batch": (random_inputs(6, 8), (1 / 2, 1 / 2)),
    "odd batch": (random_inputs(5, 8), (3 / 5, 1 / 2)),
    "odd number of classes": (random_inputs(6, 7), (1 / 2, 4 / 7)),
    "batch of two": (random_inputs(2, 4), (1 / 2, 1 / 2)),
    "ties in confidence": (tied(8, 6), (6 / 8, 1 / 2)),
    "more samples than classes": (random_inputs(9, 4), (5 / 9, 1 / 2)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["skd", "skd_paper"])
def test_values_and_gradients(name: str, case: str) -> None:
    (z_s, z_t, labels), factors = CASES[case]
    close(reference.released_factors(z_t), factors, 1e-15)
    m1, m2 = factors if name == "skd" else (1, 1)
    divisor = z_s.shape[1] if name == "skd" else 1
    terms = measure(name, PARAMS, z_s, z_t, labels)
    assert list(terms) == ["ce", "kd", "dir"]
    for key, weight, (value, gradient) in (
        ("ce", 0.3, reference.cross_entropy(z_s, labels)),
        ("kd", 0.7 * m1, reference.soft_targets(z_s, z_t, 4.0)),
        ("dir", 0.7 * m2, reference.direction(z_s, z_t, 0.1, divisor)),
    ):
        close(terms[key][0], weight * value)
        close(terms[key][1], weight * gradient)


@pytest.mark.parametrize(("tikhonov", "divisor"), [(0.1, 1), (0.1, 5), (1e-3, 1), (1000.0, 1)])
def test_direction_where_the_covariance_matters_and_where_not(tikhonov: float, divisor: int) -> None:
    z_s, z_t, _ = random_inputs(6, 5, seed=4)
    value, gradient = reference.direction(z_s, z_t, tikhonov, divisor)
    student, teacher = torch.tensor(z_s, requires_grad=True), torch.from_numpy(z_t)
    loss = direction_loss(student, teacher, tikhonov, divisor)
    loss.backward()
    close(loss.item(), value)
    close(student.grad, gradient)


@pytest.mark.parametrize(("tikhonov", "divisor"), [(0.1, 1), (0.1, 5), (0.01, 1)])
def test_reference_gradient_is_the_slope_of_the_reference(tikhonov: float, divisor: int) -> None:
    z_s, z_t, _ = random_inputs(4, 5, seed=4)
    slope = reference.numeric_gradient(lambda z: reference.direction(z, z_t, tikhonov, divisor)[0], z_s)
    close(slope, reference.direction(z_s, z_t, tikhonov, divisor)[1], 1e-8)


def test_the_gradient_runs_through_the_covariance() -> None:
    """What would be left of it with a constant covariance is far from the whole."""
    z_s, z_t, _ = random_inputs(6, 5, seed=4)
    student, teacher = torch.tensor(z_s, requires_grad=True), torch.from_numpy(z_t)
    direction_loss(student, teacher, 0.01, 1).backward()
    unit = [z / z.norm(dim=1, keepdim=True) for z in (student, teacher)]
    d = unit[0] @ unit[0].T - unit[1] @ unit[1].T
    inverse = torch.linalg.inv(torch.cov(d.T.detach()) + 0.01 * torch.eye(6, dtype=torch.float64))
    (held,) = torch.autograd.grad(torch.einsum("bi,ij,bj->b", d, inverse, d).sqrt().mean(), student)
    assert (student.grad - held).norm() > 0.1 * held.norm()


def test_dividing_the_gram_matrix_is_another_lambda() -> None:
    z_s, z_t, _ = (torch.from_numpy(a) for a in random_inputs(8, 10))
    divided, paper = (direction_loss(z_s, z_t, lam, divisor) for lam, divisor in ((0.1, 10), (10.0, 1)))
    close(divided, paper, 1e-12)


def test_the_released_lambda_makes_the_whitening_inert() -> None:
    """With 100 classes the released direction term is the mean row length of D over sqrt(lambda), to three digits."""
    z_s, z_t, _ = (torch.from_numpy(a) for a in random_inputs(64, 100))
    unit = [torch.nn.functional.normalize(z) for z in (z_s, z_t)]
    plain = ((unit[0] @ unit[0].T - unit[1] @ unit[1].T) / 100).norm(dim=1).mean() / math.sqrt(0.1)
    close(direction_loss(z_s, z_t, 0.1, 100), plain, 1e-3)


@pytest.mark.parametrize("name", ["skd", "skd_paper"])
def test_the_direction_can_be_weighted_apart(name: str) -> None:
    """For ablations; where it is not said, one weight serves both terms and the parameters are as ever."""
    z_s, z_t, labels = random_inputs(8, 10)
    usual, apart, without = (
        measure(name, {**PARAMS, **more}, z_s, z_t, labels) for more in ({}, {"dir_weight": 0.07}, {"dir_weight": 0.0})
    )
    for part in (0, 1):
        close(apart["dir"][part], usual["dir"][part] / 10, 1e-12)
        close(apart["kd"][part], usual["kd"][part], 1e-15)
    assert without["dir"][0] == 0 and not without["dir"][1].any()
    assert "dir_weight" not in reference.settings(name, PARAMS).model_dump()
    assert reference.settings(name, {**PARAMS, "dir_weight": 0.0}).model_dump()["dir_weight"] == 0


def test_only_directions_of_logits_count() -> None:
    z_s, z_t, _ = (torch.from_numpy(a) for a in random_inputs(5, 7))
    scale = torch.tensor([[0.1], [1.0], [3.0], [10.0], [500.0]], dtype=torch.float64)
    close(direction_loss(z_s * scale, z_t / scale, 0.1, 1), direction_loss(z_s, z_t, 0.1, 1), 1e-12)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 31, 32, 63, 64, 99, 100])
def test_the_factor_of_distinct_values_follows_from_their_number(count: int) -> None:
    values = torch.randperm(count, generator=torch.Generator().manual_seed(count)).double()
    assert below_median(values).item() == ((count + 1) // 2) / count


@pytest.mark.parametrize("batch", [16, 32, 64])
def test_factors_of_usual_batches_are_exactly_one_half(batch: int) -> None:
    _, z_t, _ = random_inputs(batch, 100)
    method = methods.get("skd")(reference.settings("skd", PARAMS), None, None, None)
    assert [float(m) for m in method.factors(torch.from_numpy(z_t).float())] == [0.5, 0.5]
    assert methods.get("skd_paper")(reference.settings("skd_paper", PARAMS), None, None, None).factors(None) == (1, 1)


@pytest.mark.parametrize(
    "values", [[1, 1, 1, 1], [0, 1, 1, 2], [0, 1, 1, 1], [0, 0, 1, 1], [1, 0, 1, 2, 1], [2, 1, 1, 1, 3, 1]]
)
def test_the_factor_with_ties(values: list[float]) -> None:
    share = below_median(torch.tensor(values, dtype=torch.float64)).item()
    assert share == sum(np.array(values) <= np.percentile(values, 50)) / len(values)


def test_samples_count_by_their_highest_and_classes_by_their_summed_probability() -> None:
    """A teacher that is quite sure: every sample ties, and classes chosen 3, 2, 1, 0 and 0 times have median 1."""
    z_t = np.zeros((6, 5))
    z_t[range(6), [0, 0, 0, 1, 1, 2]] = 2000
    method = methods.get("skd")(reference.settings("skd", PARAMS), None, None, None)
    assert [float(m) for m in method.factors(torch.from_numpy(z_t))] == [1, 3 / 5]
    close(reference.released_factors(z_t), [1, 3 / 5], 1e-15)


@pytest.mark.parametrize("name", ["skd", "skd_paper"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_logits_cost_nothing_and_pull_nowhere(name: str, dtype: torch.dtype) -> None:
    z, _, labels = random_inputs(6, 9)
    terms = measure(name, PARAMS, z, z, labels, dtype=dtype)
    assert terms["dir"][0] == 0 and not terms["dir"][1].any()
    assert terms["kd"][0] == 0 and np.abs(terms["kd"][1]).max() < 4 * torch.finfo(dtype).eps


def test_rows_of_zeros_among_others_have_finite_gradients() -> None:
    """Two rows of D are exactly zero and the others are not: the root has no slope there, and needs none."""
    z_s, z_t, labels = random_inputs(5, 6)
    z_t[:3, 3:], z_t[3:] = 0, 0
    z_t[3:, 4] = 2  # samples 3 and 4 are at right angles to the first three
    z_s[:] = z_t
    z_s[0, 3] = 1  # turns sample 0 away from 1 and 2, and leaves 3 and 4 where they were
    gram = [z / np.linalg.norm(z, axis=1, keepdims=True) for z in (z_s, z_t)]
    d = gram[0] @ gram[0].T - gram[1] @ gram[1].T
    assert not np.abs(d[3:]).any() and np.abs(d[0]).max() > 0.01
    for name in ("skd", "skd_paper"):
        terms = measure(name, PARAMS, z_s, z_t, labels)
        assert terms["dir"][0] > 0 and np.isfinite(terms["dir"][1]).all()


@pytest.mark.parametrize("name", ["skd", "skd_paper"])
def test_a_batch_of_one_has_no_relations(name: str) -> None:
    z_s, z_t, labels = random_inputs(1, 5)
    terms = measure(name, PARAMS, z_s, z_t, labels)
    close(terms["kd"][0], 0.7 * reference.soft_targets(z_s, z_t, 4.0)[0])  # the one sample is its own median
    assert abs(terms["dir"][0]) < 1e-14 and np.abs(terms["dir"][1]).max() < 1e-14


@pytest.mark.parametrize("name", ["skd", "skd_paper"])
def test_confident_networks_give_finite_numbers(name: str) -> None:
    z_s, z_t = np.full((4, 5), -200.0), np.full((4, 5), -200.0)
    z_s[:, 1], z_t[:, 3] = 200.0, 200.0  # every pair of samples is alike, for both networks
    terms = measure(name, PARAMS, z_s, z_t, np.array([0, 1, 2, 3]), dtype=torch.float32)
    assert all(np.isfinite(value) and np.isfinite(gradient).all() for value, gradient in terms.values())
    assert abs(terms["dir"][0]) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_the_direction_is_computed_in_float32(dtype: torch.dtype, autocast: bool) -> None:
    z_s, z_t, _ = (torch.from_numpy(a).to(dtype) for a in random_inputs(8, 10))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = direction_loss(z_s.requires_grad_(), z_t, 0.1, 1)
    loss.backward()
    assert loss.dtype == torch.float32 and z_s.grad.dtype == dtype
    close(loss.item(), reference.direction(z_s.detach().double().numpy(), z_t.double().numpy(), 0.1, 1)[0], 1e-5)


def test_the_factors_of_a_confident_teacher_do_not_depend_on_autocast() -> None:
    _, z_t, labels = random_inputs(64, 100, scale=2.0)
    z_t[np.arange(64), labels] += 14
    logits = torch.from_numpy(z_t).bfloat16()
    method = methods.get("skd")(reference.settings("skd", PARAMS), None, None, None)
    wanted = [float(m) for m in method.factors(logits.double())]
    assert wanted == pytest.approx([0.5, 0.5], abs=0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert [float(m) for m in method.factors(logits)] == pytest.approx(wanted, abs=0.05)


def test_float64_stays_float64() -> None:
    z_s, z_t, _ = (torch.from_numpy(a) for a in random_inputs(4, 5))
    assert direction_loss(z_s, z_t, 0.1, 1).dtype == torch.float64


def test_a_factorisation_that_fails_does_not_pass_for_a_loss() -> None:
    """A lambda that float32 cannot tell from zero next to a singular covariance: wrong by far, so not finite."""
    z_s, z_t, _ = random_inputs(64, 100)
    exact = direction_loss(torch.from_numpy(z_s), torch.from_numpy(z_t), 1e-12, 1).item()
    loss = direction_loss(torch.from_numpy(z_s).float(), torch.from_numpy(z_t).float(), 1e-12, 1).item()
    assert not math.isfinite(loss) or loss == pytest.approx(exact, rel=0.5)
