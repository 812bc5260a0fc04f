"""RKD against distances and angles written as loops over samples, its oracle values and its invariances."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import methods
from bench import protocol
from bench.run import Teacher
from methods import rkd
from methods.rkd import relational_losses, relations
from tests.methods import reference
from tests.methods.reference import Array, close

torch.set_num_threads(1)
PARAMS = {"ce_weight": 0.7, "distance_weight": 25.0, "angle_weight": 50.0}


# --- the equations, one pair and one triple at a time -----------------------------------------------------------------


def huber(x: float) -> tuple[float, float]:
    """Smooth-L1 with its corner at 1, and its slope."""
    return (x * x / 2, x) if abs(x) < 1 else (abs(x) - 0.5, math.copysign(1.0, x))


def lengths(e: Array) -> tuple[Array, float]:
    """|e_i - e_j| for all pairs, and the mean over pairs of different samples."""
    n = len(e)
    d = np.array(
        [[math.sqrt(sum((a - b) ** 2 for a, b in zip(e[i], e[j], strict=True))) for j in range(n)] for i in range(n)]
    )
    return d, sum(d[i, j] for i in range(n) for j in range(n) if i != j) / (n * (n - 1))


def distance_loss(s: Array, t: Array) -> tuple[float, Array]:
    """Mean over B^2 of huber(d_ij / mean d - d'_ij / mean d'), and its gradient in s.

    dL/dd_ij = w_ij / mu - sum_kl w_kl d_kl / (mu^2 B (B - 1)) with w = huber' / B^2: the second part through mu.
    """
    n = len(s)
    (d, mu), (d_t, mu_t) = lengths(s), lengths(t)
    loss, w = 0.0, np.zeros((n, n))
    for i, j in np.ndindex(n, n):
        value, slope = huber(d[i, j] / mu - d_t[i, j] / mu_t)
        loss, w[i, j] = loss + value / n**2, slope / n**2
    through_mean = sum(w[k] * d[k] for k in np.ndindex(n, n)) / (mu**2 * n * (n - 1))
    gradient = np.zeros_like(s)
    for i, j in np.ndindex(n, n):
        if d[i, j] > 0:
            pull = (w[i, j] / mu - through_mean) * (s[i] - s[j]) / d[i, j]
            gradient[i] += pull
            gradient[j] -= pull
    return loss, gradient


def cosine(e: Array, i: int, j: int, k: int) -> tuple[float, Array, Array]:
    """Cosine at e_i between e_j and e_k, and its gradients in e_j and e_k; 0 where a side has no length."""
    a, b = e[j] - e[i], e[k] - e[i]
    p, q = math.sqrt(sum(a * a)), math.sqrt(sum(b * b))
    if p == 0 or q == 0:
        return 0.0, 0 * a, 0 * b
    c = sum(a * b) / (p * q)
    return c, (b / q - c * a / p) / p, (a / p - c * b / q) / q


def angle_loss(s: Array, t: Array) -> tuple[float, Array]:
    """Mean over B^3 of huber(cos_ijk - cos'_ijk), and its gradient in s."""
    n = len(s)
    loss, gradient = 0.0, np.zeros_like(s)
    for i, j, k in np.ndindex(n, n, n):
        c, by_j, by_k = cosine(s, i, j, k)
        value, slope = huber(c - cosine(t, i, j, k)[0])
        loss += value / n**3
        gradient[j] += slope * by_j / n**3
        gradient[k] += slope * by_k / n**3
        gradient[i] -= slope * (by_j + by_k) / n**3
    return loss, gradient


def embeddings(batch: int, width: int, seed: int, mean: float = 0.0) -> Array:
    return mean + np.random.default_rng(seed).standard_normal((batch, width))


def measure(s: Array, t: Array, dtype: torch.dtype = torch.float64) -> tuple[list[float], list[Array]]:
    """L_D and L_A, and their gradients in the student's embeddings."""
    student, teacher = torch.tensor(s, dtype=dtype, requires_grad=True), torch.tensor(t, dtype=dtype)
    losses = relational_losses(student, teacher)
    slopes = [torch.autograd.grad(loss, student, retain_graph=True)[0].double().numpy() for loss in losses]
    return [loss.item() for loss in losses], slopes


# --- values and gradients ---------------------------------------------------------------------------------------------


def far(e: Array) -> Array:
    """One sample far from the others: some normalised distances and cosines differ by more than 1 from usual ones."""
    e = e.copy()
    e[0] *= 40
    return e


CASES = {
    "three": (embeddings(3, 4, 0), embeddings(3, 4, 1)),
    "wider teacher": (embeddings(6, 3, 0), embeddings(6, 7, 1)),
    "wider student": (embeddings(5, 9, 0), embeddings(5, 2, 1)),
    "one dimension": (embeddings(5, 1, 0), embeddings(5, 1, 1)),
    "beyond the corner": (far(embeddings(6, 3, 0)), embeddings(6, 3, 1)),
    "off the origin": (embeddings(5, 3, 0, mean=30.0), embeddings(5, 3, 1, mean=-50.0)),
}


@pytest.mark.parametrize("largest", [rkd.LARGEST, 80, 1])  # all anchors at once, two or three, one
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case: str, largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rkd, "LARGEST", largest)
    losses, slopes = measure(*CASES[case])
    for loss, slope, term in zip(losses, slopes, (distance_loss, angle_loss), strict=True):
        value, gradient = term(*CASES[case])
        close(loss, value)
        # Terms of the size 1 / distance cancel in one dimension, where no angle has a slope.
        np.testing.assert_allclose(slope, gradient, rtol=1e-9, atol=1e-9 * np.abs(gradient).max() + 1e-13)


def test_the_cases_reach_both_sides_of_the_corner() -> None:
    s, t = CASES["beyond the corner"]
    (d, mu), (d_t, mu_t) = lengths(s), lengths(t)
    assert (np.abs(d / mu - d_t / mu_t) > 1).any() and (np.abs(d / mu - d_t / mu_t) < 1).any()
    gaps = [abs(cosine(s, *k)[0] - cosine(t, *k)[0]) for k in np.ndindex(6, 6, 6)]
    assert max(gaps) > 1.2 and min(gaps) == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_batch_in_parts_equals_the_whole(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also as the trainer asks for gradients: of each weighted term first, then of their sum on the same graph."""
    s, t = (torch.from_numpy(embeddings(33, width, seed)).to(dtype) for width, seed in ((20, 0), (31, 1)))

    def found(largest: int) -> list[torch.Tensor]:
        monkeypatch.setattr(rkd, "LARGEST", largest)
        student = s.clone().requires_grad_()
        terms = [weight * loss for weight, loss in zip((25, 50), relational_losses(student, t), strict=True)]
        slopes = [torch.autograd.grad(term, student, retain_graph=True)[0] for term in terms]
        torch.stack(terms).sum().backward()
        return [*terms, *slopes, student.grad]

    whole = found(33**3)
    rtol = 1e-12 if dtype == torch.float64 else 1.01 * torch.finfo(dtype).eps  # the last bit
    for anchors in (1, 5, 16, 32):
        for part, value in zip(found(anchors * 33**2), whole, strict=True):
            assert part.dtype == value.dtype
            torch.testing.assert_close(part, value, rtol=rtol, atol=1e-15)


@pytest.mark.parametrize("term", [distance_loss, angle_loss])
def test_reference_gradients_are_the_slopes_of_the_reference(term) -> None:
    s, t = embeddings(4, 3, 2), embeddings(4, 5, 3)
    slope = reference.numeric_gradient(lambda e: term(e, t)[0], s, h=0.005)
    np.testing.assert_allclose(term(s, t)[1], slope, rtol=1e-8, atol=1e-11)


def test_oracle_values() -> None:
    """Printed by the reference repositories' own functions in float64."""
    s = np.array([[math.sin(0.5 * i + 0.9 * d) + 0.1 * d for d in range(6)] for i in range(8)])
    t = np.array([[math.cos(0.4 * i - 0.3 * d) * (1 + 0.2 * d) for d in range(6)] for i in range(8)])
    (distance, angle), _ = measure(s, t)
    assert distance == pytest.approx(0.0140919828, abs=5.1e-11)
    assert angle == pytest.approx(0.0082715368, abs=5.1e-11)
    assert 25 * distance + 50 * angle == pytest.approx(0.7658764107, abs=5.1e-11)


def test_relations_of_a_known_triangle() -> None:
    """Sides 3, 4 and 5: mean 4; a right angle at the first corner, cosines 3/5 and 4/5 at the others."""
    distances, cosines = relations(torch.tensor([[7.0, 1.0], [10.0, 1.0], [7.0, 5.0]]))
    close(distances, np.array([[0, 3, 4], [3, 0, 5], [4, 5, 0]]) / 4, 1e-12)
    right, at_second, at_third = np.zeros((3, 3)), np.zeros((3, 3)), np.zeros((3, 3))
    right[1, 1] = right[2, 2] = at_second[0, 0] = at_second[2, 2] = at_third[0, 0] = at_third[1, 1] = 1
    at_second[0, 2] = at_second[2, 0] = 3 / 5
    at_third[0, 1] = at_third[1, 0] = 4 / 5
    np.testing.assert_allclose(cosines, np.stack([right, at_second, at_third]), atol=1e-12)


# --- what must hold ---------------------------------------------------------------------------------------------------


def turned(e: Array, seed: int = 5) -> Array:
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((e.shape[1], e.shape[1])))
    return e @ q


MOTIONS = {
    "rotation": turned,
    "reflection": lambda e: -e,
    "translation": lambda e: e + np.arange(1, e.shape[1] + 1),
    "shrinking": lambda e: 0.01 * e,
    "growing": lambda e: 1000 * e,
    "more dimensions": lambda e: np.concatenate([e, np.full_like(e, 3.0)], axis=1),
}


@pytest.mark.parametrize("motion", MOTIONS)
def test_neither_side_is_more_than_its_shape(motion: str) -> None:
    s, t = embeddings(6, 4, 0), embeddings(6, 4, 1)
    losses, _ = measure(s, t)
    assert min(losses) > 1e-3
    close(measure(MOTIONS[motion](s), t)[0], losses, 1e-10)
    close(measure(s, MOTIONS[motion](t))[0], losses, 1e-10)
    again, slopes = measure(MOTIONS[motion](s), s)  # the same shape: nothing to learn
    assert max(again) < 1e-25 and max(np.abs(slope).max() for slope in slopes) < 1e-12


def test_no_gradient_along_what_does_not_matter() -> None:
    """Moving all samples alike, or scaling them, changes neither term: the gradient has no part along either.

    The second holds of the distances because their mean carries a gradient, too.
    """
    s = embeddings(6, 4, 0, mean=2.0)
    for slope in measure(s, embeddings(6, 4, 1))[1]:
        assert np.abs(slope).max() > 1e-3
        assert np.abs(slope.sum(axis=0)).max() < 1e-14
        assert abs((slope * s).sum()) < 1e-14


def test_the_order_of_the_samples_does_not_matter() -> None:
    s, t = embeddings(6, 4, 0), embeddings(6, 5, 1)
    order = np.random.default_rng(2).permutation(6)
    losses, slopes = measure(s, t)
    again, permuted = measure(s[order], t[order])
    close(again, losses, 1e-12)
    for slope, other in zip(slopes, permuted, strict=True):
        close(other, slope[order], 1e-11)
    mixed, _ = measure(s[order], t)  # which teacher's sample belongs to which student's does
    assert abs(mixed[0] - losses[0]) > 1e-3 and abs(mixed[1] - losses[1]) > 1e-3


def test_equal_features_cost_nothing_and_pull_nowhere() -> None:
    s = embeddings(6, 4, 0, mean=3.0)
    losses, slopes = measure(s, s)
    assert losses == [0, 0]
    assert not any(slope.any() for slope in slopes)


# --- samples that coincide, small batches -----------------------------------------------------------------------------


@pytest.mark.parametrize("teacher_too", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_two_equal_samples(teacher_too: bool, dtype: torch.dtype) -> None:
    """Between them there is no direction: no angle, and no gradient of 1e12 as in the released code."""
    s, t = embeddings(6, 4, 0), embeddings(6, 4, 1)
    s[4] = s[1]
    if teacher_too:
        t[4] = t[1]
    losses, slopes = measure(s, t, dtype)
    rtol = 1e-9 if dtype == torch.float64 else 1e-5
    for loss, slope, term in zip(losses, slopes, (distance_loss, angle_loss), strict=True):
        value, gradient = term(s, t)
        close(loss, value, rtol)
        np.testing.assert_allclose(slope, gradient, rtol=rtol, atol=rtol * np.abs(gradient).max())


@pytest.mark.parametrize("apart", [1e-9, 1e-15])
def test_samples_equal_up_to_rounding_count_as_equal(apart: float) -> None:
    s, t = embeddings(6, 4, 0), embeddings(6, 4, 1)
    s[4] = s[1]
    losses, slopes = measure(s, t)
    s[4] += apart
    again, others = measure(s, t)
    close(again, losses, 1e-7)
    close(others[1], slopes[1], 1e-5)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_batch_of_one_point_has_no_relations(batch: int) -> None:
    same, t = np.full((batch, 3), 0.7), embeddings(batch, 3, 1)
    for s, other in ((same, t), (t, same), (same, same)):
        losses, slopes = measure(s, other)
        assert all(math.isfinite(loss) for loss in losses)
        assert all(np.isfinite(slope).all() and np.abs(slope).max() < 10 for slope in slopes)
    assert measure(same, same)[0] == [0, 0]


def test_a_batch_of_one_costs_nothing() -> None:
    losses, slopes = measure(embeddings(1, 3, 0), embeddings(1, 3, 1))
    assert losses == [0, 0] and not any(slope.any() for slope in slopes)


def test_all_pairs_of_two_samples_are_alike() -> None:
    losses, slopes = measure(embeddings(2, 3, 0), embeddings(2, 3, 1))
    assert max(losses) < 1e-25 and max(np.abs(slope).max() for slope in slopes) < 1e-12


# --- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("apart", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_float32_features_lose_nothing(mean: float, apart: float) -> None:
    """Two samples near each other, all far from the origin: where a Gram matrix in float32 has no digits left."""
    s, t = (embeddings(16, 64, seed, mean).astype(np.float32) for seed in (0, 1))
    s[1] = s[0] + np.float32(apart) * (s[1] - s[0])
    losses, slopes = measure(s, t, torch.float32)
    for loss, slope, wanted, steepness in zip(losses, slopes, *measure(s, t), strict=True):
        close(loss, wanted, 2e-7)
        np.testing.assert_allclose(slope, steepness, rtol=1e-6, atol=1e-6 * np.abs(steepness).max())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_is_computed_in_full(dtype: torch.dtype, autocast: bool) -> None:
    s, t = (torch.from_numpy(embeddings(8, 16, seed, mean=2.0)).to(dtype) for seed in (0, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        losses = relational_losses(s.requires_grad_(), t)
    sum(losses).backward()
    assert s.grad.dtype == dtype and torch.isfinite(s.grad).all()
    wanted, _ = measure(s.detach().double().numpy(), t.double().numpy())
    for loss, value in zip(losses, wanted, strict=True):
        assert loss.dtype == torch.float32
        close(loss.item(), value, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_are_of_the_features_type(dtype: torch.dtype) -> None:
    s, t = (torch.from_numpy(embeddings(4, 3, seed)).to(dtype) for seed in (0, 1))
    assert [loss.dtype for loss in relational_losses(s, t)] == [dtype, dtype]


# --- the method -------------------------------------------------------------------------------------------------------


def terms_of(params: dict[str, float]) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Terms on networks' outputs of which only logits and pooled features are there, and the latter of the student."""
    z_s, z_t, labels = reference.random_inputs(5, 4)
    method = methods.get("rkd")(reference.settings("rkd", params), None, None, None)
    assert not list(method.parameters())
    logits = torch.tensor(z_s, requires_grad=True)
    pooled, wanted = (torch.from_numpy(embeddings(5, width, seed)) for width, seed in ((3, 0), (6, 1)))
    pooled.requires_grad_()
    wanted.requires_grad_()
    student = replace(reference.outputs(logits), pooled=pooled)
    teacher = replace(reference.outputs(torch.from_numpy(z_t)), pooled=wanted)
    terms = method.terms(student, teacher, reference.batch_of(labels), reference.progress(1))
    torch.stack(list(terms.values())).sum().backward()
    assert wanted.grad is None
    close(logits.grad, params["ce_weight"] * reference.cross_entropy(z_s, labels)[1])
    close(terms["ce"].item(), params["ce_weight"] * reference.cross_entropy(z_s, labels)[0])
    return terms, pooled, wanted


@pytest.mark.parametrize("weights", [(0.7, 25.0, 50.0), (1.0, 3.0, 0.0), (0.0, 0.0, 2.0)])
def test_terms_are_weighted(weights: tuple[float, float, float]) -> None:
    terms, pooled, wanted = terms_of(dict(zip(PARAMS, weights, strict=True)))
    assert list(terms) == ["ce", "distance", "angle"]
    s, t = pooled.detach().numpy(), wanted.detach().numpy()
    parts = [(weights[1], distance_loss(s, t)), (weights[2], angle_loss(s, t))]
    for key, (weight, (value, _)) in zip(("distance", "angle"), parts, strict=True):
        close(terms[key].item(), weight * value)
    close(pooled.grad, sum(weight * gradient for weight, (_, gradient) in parts))


@pytest.mark.parametrize("name", ["standard", "streamlined"])
def test_protocols_take_the_published_weights(name: str) -> None:
    teacher = Teacher(arch="resnet56", run_id="vanilla-resnet56-s0-00000000")
    run = protocol.resolve(protocol.load(name), "rkd", "resnet20", 0, teacher=teacher)
    terms, pooled, wanted = terms_of(dict(run.params))
    s, t = pooled.detach().numpy(), wanted.detach().numpy()
    close(terms["distance"].item(), 25 * distance_loss(s, t)[0])
    close(terms["angle"].item(), 50 * angle_loss(s, t)[0])
