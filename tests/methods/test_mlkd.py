"""MLKD against a NumPy reference, against the objective of the released code, and what must hold of it."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import methods
import zoo
from bench import protocol
from bench.run import Teacher
from methods.kd import soft_target_loss
from methods.mlkd import gram_distances
from tests.methods import reference
from tests.methods.reference import close, measure, numeric_gradient, random_inputs

torch.set_num_threads(1)
ONE_VIEW = {
    "ce_weight": 0.3,
    "temperatures": [0.7, 2.0, 5.0],
    "instance_weight": 0.9,
    "batch_weight": 1.7,
    "class_weight": 0.6,
}
PAIRED = {**ONE_VIEW, "strong_instance_weight": 1.3}


# --- the reference: entry by entry, gradients by hand ---------------------------------------------------------------


def through_softmax(p: np.ndarray, slope: np.ndarray, temperature: float) -> np.ndarray:
    """dL/dz from dL/dp: p_c (g_c - sum_k g_k p_k) / T in every row."""
    gradient = np.zeros_like(p)
    for i, c in np.ndindex(p.shape):
        gradient[i, c] = p[i, c] * (slope[i, c] - sum(slope[i] * p[i])) / temperature
    return gradient


def batch_level(z_s: np.ndarray, z_t: np.ndarray, temperature: float) -> tuple[float, np.ndarray]:
    """(1/B) sum_ij (p_t,i . p_t,j - p_s,i . p_s,j)^2; dL/dp_s,i = -(4/B) sum_j d_ij p_s,j."""
    s, t = (np.array([reference.softmax(row / temperature) for row in z]) for z in (z_s, z_t))
    size, loss, slope = len(s), 0.0, np.zeros_like(s)
    for i, j in np.ndindex(size, size):
        d = sum(t[i] * t[j]) - sum(s[i] * s[j])
        loss += d**2 / size
        slope[i] -= 4 * d * s[j] / size
    return loss, through_softmax(s, slope, temperature)


def class_level(z_s: np.ndarray, z_t: np.ndarray, temperature: float) -> tuple[float, np.ndarray]:
    """(1/C) sum_ab (p_t,.a . p_t,.b - p_s,.a . p_s,.b)^2 over pairs of classes, p,.a a class over the batch."""
    s, t = (np.array([reference.softmax(row / temperature) for row in z]) for z in (z_s, z_t))
    size, loss, slope = s.shape[1], 0.0, np.zeros_like(s)
    for a, b in np.ndindex(size, size):
        d = sum(t[:, a] * t[:, b]) - sum(s[:, a] * s[:, b])
        loss += d**2 / size
        slope[:, a] -= 4 * d * s[:, b] / size
    return loss, through_softmax(s, slope, temperature)


LEVELS = {"instance": reference.soft_targets, "batch": batch_level, "class": class_level}


def over_temperatures(level: str, z_s: np.ndarray, z_t: np.ndarray, temperatures: list[float]) -> list[Any]:
    values = [LEVELS[level](z_s, z_t, temperature) for temperature in temperatures]
    return [sum(value for value, _ in values), sum((slope for _, slope in values), np.zeros_like(z_s))]


def released(
    weak: tuple[np.ndarray, np.ndarray],
    strong: tuple[np.ndarray, np.ndarray],
    labels: np.ndarray,
    slipped: tuple[float, ...] = (2.0, 6.0),
) -> tuple[float, np.ndarray, np.ndarray]:
    """The released two-view objective with its masks, CE 0.1, KD 0.9, T 4, 3, 5, 2, 6; gradients in both views."""
    samples, classes = reference.released_factors(weak[1])
    value, gradients = 0.0, [np.zeros_like(weak[0]), np.zeros_like(strong[0])]

    def add(view: int, weight: float, term: tuple[float, np.ndarray]) -> None:
        nonlocal value
        value += weight * term[0]
        gradients[view] += weight * term[1]

    for view, logits in enumerate((weak, strong)):
        add(view, 0.1, reference.cross_entropy(logits[0], labels))
    for temperature in (4.0, 3.0, 5.0, 2.0, 6.0):
        add(0, 0.9 * samples, reference.soft_targets(*weak, temperature))
        add(0, 0.9 * samples, batch_level(*weak, temperature))
        add(0, 0.9 * classes, class_level(*weak, temperature))
        view = 0 if temperature in slipped else 1
        add(view, 0.9, reference.soft_targets(*(weak, strong)[view], temperature))
    return value, *gradients


def released_one_view(z_s: np.ndarray, z_t: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """StreamLined's objective with its masks: all weights 0.5, T 4, 3, 2."""
    samples, classes = reference.released_factors(z_t)
    terms = [(0.5, reference.cross_entropy(z_s, labels))]
    for temperature in (4.0, 3.0, 2.0):
        terms += [(0.5 * samples, level(z_s, z_t, temperature)) for level in (reference.soft_targets, batch_level)]
        terms += [(0.5 * classes, class_level(z_s, z_t, temperature))]
    return sum(w * value for w, (value, _) in terms), sum(w * slope for w, (_, slope) in terms)


# --- the method -----------------------------------------------------------------------------------------------------


def make(params: dict[str, Any]) -> methods.Method:
    return methods.get("mlkd")(reference.settings("mlkd", params), None, None, None)


def measure_paired(
    params: dict[str, Any], weak: tuple[np.ndarray, np.ndarray], strong: tuple[np.ndarray, np.ndarray], labels: Any
) -> dict[str, tuple[float, np.ndarray, np.ndarray]]:
    """Terms and their gradients in the student's weak and strong logits."""
    views = [[torch.from_numpy(z.copy()) for z in view] for view in (weak, strong)]
    leaves = [view[0].requires_grad_() for view in views]
    student, teacher = (replace(reference.outputs(w), strong=reference.outputs(s)) for w, s in zip(*views, strict=True))
    terms = make(params).terms(student, teacher, reference.batch_of(labels), reference.progress(1))
    measured = {}
    for key, term in terms.items():
        gradients = torch.autograd.grad(term, leaves, retain_graph=True, allow_unused=True)
        measured[key] = term.item(), *(np.zeros_like(weak[0]) if g is None else g.numpy() for g in gradients)
    return measured


def total(terms: dict[str, tuple[Any, ...]]) -> list[Any]:
    return [sum(parts) for parts in zip(*terms.values(), strict=True)]


def paired_inputs(batch: int, classes: int) -> tuple[Any, Any, np.ndarray]:
    *weak, labels = random_inputs(batch, classes, seed=1)
    *strong, _ = random_inputs(batch, classes, seed=2)
    return tuple(weak), tuple(strong), labels


@pytest.mark.parametrize(("batch", "classes"), [(1, 3), (2, 4), (5, 7), (9, 4)])
def test_values_and_gradients(batch: int, classes: int) -> None:
    z_s, z_t, labels = random_inputs(batch, classes, seed=1)
    terms = measure("mlkd", ONE_VIEW, z_s, z_t, labels)
    assert list(terms) == ["ce", "instance", "batch", "class"]
    value, gradient = reference.cross_entropy(z_s, labels)
    close(terms["ce"][0], 0.3 * value)
    close(terms["ce"][1], 0.3 * gradient)
    for key, weight in (("instance", 0.9), ("batch", 1.7), ("class", 0.6)):
        value, gradient = over_temperatures(key, z_s, z_t, ONE_VIEW["temperatures"])
        close(terms[key][0], weight * value)
        close(terms[key][1], weight * gradient)


@pytest.mark.parametrize("level", [batch_level, class_level])
def test_reference_gradients_are_the_slopes_of_the_reference(level: Any) -> None:
    z_s, z_t, _ = random_inputs(3, 4)
    close(level(z_s, z_t, 2.5)[1], numeric_gradient(lambda z: level(z, z_t, 2.5)[0], z_s), 1e-8)


@pytest.mark.parametrize("slipped", [[], [2.0], [5.0, 0.7], [0.7, 2.0, 5.0]])
def test_two_views(slipped: list[float]) -> None:
    weak, strong, labels = paired_inputs(5, 6)
    terms = measure_paired({**PAIRED, "slipped_temperatures": slipped}, weak, strong, labels)
    assert list(terms) == ["ce", "instance", "batch", "class", "strong"]
    nothing = np.zeros_like(weak[0])

    entropies = [reference.cross_entropy(view[0], labels) for view in (weak, strong)]
    close(terms["ce"][0], 0.3 * (entropies[0][0] + entropies[1][0]))
    for view in (0, 1):
        close(terms["ce"][1 + view], 0.3 * entropies[view][1])
    one_view = measure("mlkd", ONE_VIEW, *weak, labels)
    for key in ("instance", "batch", "class"):
        np.testing.assert_array_equal(terms[key][0], one_view[key][0])
        np.testing.assert_array_equal(terms[key][1], one_view[key][1])
        np.testing.assert_array_equal(terms[key][2], nothing)

    kept = [temperature for temperature in PAIRED["temperatures"] if temperature not in slipped]
    of_weak, of_strong = (
        over_temperatures("instance", *view, part) for view, part in ((weak, slipped), (strong, kept))
    )
    close(terms["strong"][0], 1.3 * (of_weak[0] + of_strong[0]))
    close(terms["strong"][1], 1.3 * of_weak[1])
    close(terms["strong"][2], 1.3 * of_strong[1])


def test_the_released_masks_amount_to_one_half() -> None:
    """An even batch and an even number of classes without ties: 0.9 with masks is 0.45 without."""
    weak, strong, labels = paired_inputs(6, 8)
    params = {
        "ce_weight": 0.1,
        "temperatures": [2.0, 3.0, 4.0, 5.0, 6.0],
        "instance_weight": 0.45,
        "batch_weight": 0.45,
        "class_weight": 0.45,
        "strong_instance_weight": 0.9,
        "slipped_temperatures": [2.0, 6.0],
    }
    actual = total(measure_paired(params, weak, strong, labels))
    for a, b in zip(actual, released(weak, strong, labels), strict=True):
        close(a, b)


def test_an_odd_batch_would_be_masked_by_more_than_one_half() -> None:
    _, z_t, _ = random_inputs(5, 8)
    assert reference.released_factors(z_t) == (3 / 5, 1 / 2)


@pytest.mark.parametrize("batch", [2, 6])
def test_the_streamlined_protocol_is_the_released_one_view_form(batch: int) -> None:
    params = resolved("streamlined")
    assert make(params).views is None
    z_s, z_t, labels = random_inputs(batch, 8)
    actual, expected = total(measure("mlkd", params, z_s, z_t, labels)), released_one_view(z_s, z_t, labels)
    for a, b in zip(actual, expected, strict=True):
        close(a, b)


def test_the_standard_protocol_is_the_released_form() -> None:
    params = resolved("standard")
    assert make(params).views == "paired"
    weak, strong, labels = paired_inputs(4, 6)
    actual = total(measure_paired(params, weak, strong, labels))
    for a, b in zip(actual, released(weak, strong, labels, params["slipped_temperatures"]), strict=True):
        close(a, b)


def resolved(name: str) -> dict[str, Any]:
    teacher = Teacher(arch="resnet56", run_id="vanilla-resnet56-s0-00000000")
    return protocol.resolve(protocol.load(name), "mlkd", "resnet20", 0, teacher=teacher).params


# --- what must hold -------------------------------------------------------------------------------------------------


def test_the_instance_level_is_kd_at_every_temperature() -> None:
    z_s, z_t, labels = random_inputs(5, 7)
    kd = sum(soft_target_loss(torch.from_numpy(z_s), torch.from_numpy(z_t), t) for t in ONE_VIEW["temperatures"])
    close(measure("mlkd", ONE_VIEW, z_s, z_t, labels)["instance"][0], 0.9 * kd.item(), 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_logits_cost_nothing_and_pull_nowhere(dtype: torch.dtype) -> None:
    z, _, labels = random_inputs(6, 9)
    terms = measure("mlkd", ONE_VIEW, z, z, labels, dtype=dtype)
    for key in ("batch", "class"):
        assert terms[key][0] == 0 and not terms[key][1].any()
    assert terms["instance"][0] == 0 and np.abs(terms["instance"][1]).max() < 8 * torch.finfo(dtype).eps


def test_batch_and_class_level_do_not_care_who_teaches() -> None:
    z_s, z_t, labels = random_inputs(5, 7)
    forth, back = (measure("mlkd", ONE_VIEW, *pair, labels) for pair in ((z_s, z_t), (z_t, z_s)))
    for key in ("batch", "class"):
        close(forth[key][0], back[key][0], 1e-12)
    assert abs(forth["instance"][0] - back["instance"][0]) > 0.01


def test_order_of_samples_and_classes_does_not_count() -> None:
    z_s, z_t, labels = random_inputs(5, 7)
    rng = np.random.default_rng(0)
    rows, columns = rng.permutation(5), rng.permutation(7)
    moved = (z_s[rows][:, columns], z_t[rows][:, columns], np.argsort(columns)[labels[rows]])
    for (value, _), (again, _) in zip(
        measure("mlkd", ONE_VIEW, z_s, z_t, labels).values(), measure("mlkd", ONE_VIEW, *moved).values(), strict=True
    ):
        close(again, value, 1e-12)


def test_networks_that_nearly_agree_lose_no_digits() -> None:
    """The difference of two float32 Gram matrices would have three digits left here."""
    torch.manual_seed(0)
    t = torch.randn(2, 64, 100).softmax(dim=2)
    s = (t * (1 + 1e-4 * torch.randn_like(t))).requires_grad_()
    exact = s.detach().double().requires_grad_()
    for value, wanted in zip(gram_distances(s, t), gram_distances(exact, t.double()), strict=True):
        close(value.detach(), wanted.detach(), 1e-5)
        slope, wanted = (
            torch.autograd.grad(v.sum(), p, retain_graph=True)[0] for v, p in ((value, s), (wanted, exact))
        )
        assert (slope - wanted).norm() < 1e-5 * wanted.norm()


def test_confident_networks_give_finite_numbers() -> None:
    z_s, z_t = np.full((4, 5), -200.0), np.full((4, 5), -200.0)
    z_s[:, 1], z_t[:, 3] = 200.0, 200.0
    terms = measure("mlkd", {**ONE_VIEW, "temperatures": [1.0]}, z_s, z_t, np.arange(4), dtype=torch.float32)
    assert all(np.isfinite(value) and np.isfinite(gradient).all() for value, gradient in terms.values())
    assert terms["instance"][0] == pytest.approx(0.9 * 400)
    # Every entry of the 4 x 4 Gram matrices is 1; of the class matrices one entry is 4, at another place for each.
    assert terms["batch"][0] == 0
    assert terms["class"][0] == pytest.approx(0.6 * 2 * 16 / 5)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_compared_in_float32(dtype: torch.dtype, autocast: bool) -> None:
    z_s, z_t, labels = random_inputs(6, 8)
    student, teacher = (torch.from_numpy(z).to(dtype) for z in (z_s, z_t))
    method = make(ONE_VIEW)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        terms = method.terms(
            reference.outputs(student.requires_grad_()),
            reference.outputs(teacher),
            reference.batch_of(labels),
            reference.progress(1, torch.float32),
        )
    wanted = measure("mlkd", ONE_VIEW, student.detach().double().numpy(), teacher.double().numpy(), labels)
    for key in ("instance", "batch", "class"):
        assert terms[key].dtype == torch.float32
        close(terms[key].item(), wanted[key][0], 1e-5)
        (gradient,) = torch.autograd.grad(terms[key], student, retain_graph=True)
        assert gradient.dtype == dtype
        close(gradient.double(), wanted[key][1], 5e-2)


def test_the_number_of_views_follows_from_the_strong_weight() -> None:
    assert make(ONE_VIEW).views is None
    assert make(PAIRED).views == "paired"
    assert make({**PAIRED, "strong_instance_weight": 0.0}).views == "paired"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slipped_temperatures": [2.0], "strong_instance_weight": None}, "strong_instance_weight"),
        ({"slipped_temperatures": [3.0]}, "slipped_temperatures must be among temperatures"),
        ({"temperatures": [2.0, 4.0, 2.0]}, '"temperatures": must contain no temperature twice'),
        ({"temperatures": []}, "temperatures"),
        ({"temperatures": [2.0, 0.0]}, "temperatures"),
        ({"batch_weight": -1.0}, "batch_weight"),
    ],
)
def test_settings_that_mean_nothing_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(zoo.BadInput, match=message) as error:
        make({**PAIRED, **change})
    assert "\n" not in str(error.value)


def test_a_step_brings_nothing_from_the_host() -> None:
    """On a GPU without one: fake tensors know their device, and a constant of the CPU's would not go with them."""
    with FakeTensorMode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # autocast misses the GPU
        with torch.device("cuda"):
            method = make({**PAIRED, "slipped_temperatures": [2.0]})
            logits = torch.empty(4, 6, requires_grad=True)
            both = replace(reference.outputs(logits), strong=reference.outputs(logits))
            batch = methods.Batch(torch.empty(4, dtype=torch.int64), torch.empty(4, dtype=torch.int64))
            progress = methods.Progress(torch.empty(()))
        terms = method.terms(both, both, batch, progress)
    assert all(term.shape == () and term.is_cuda and term.dtype == torch.float32 for term in terms.values())
    assert not method.state_dict() and not list(method.parameters())
