"""CLKD in its three forms against NumPy loops, and what must hold of its terms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import zoo
from bench import protocol
from bench.run import Teacher
from methods.clkd import correlation_loss, normalised_mse
from tests.methods import reference
from tests.methods.reference import Array, close, measure, random_inputs

torch.set_num_threads(1)
FORMS = ("classes", "samples", "classes-raw")
PARAMS = {"ce_weight": 0.3, "level_weight": 0.7, "beta": 1.5, "correlation_weight": 0.9, "correlation": "classes"}


# --- from the equations, with gradients by hand -----------------------------------------------------------------------


def nmse(x: Array, y: Array) -> tuple[float, Array]:
    """Mean of (x_i/|x_i| - y_i/|y_i|)^2 over all elements, and its gradient in x: (I - u u^T) dL/du / |x| per row."""
    loss, gradient = 0.0, np.zeros_like(x)
    for i in range(len(x)):
        length = np.sqrt(sum(x[i] ** 2))
        u, v = x[i] / length, y[i] / np.sqrt(sum(y[i] ** 2))
        loss += sum((u - v) ** 2) / x.size
        slope = 2 * (u - v) / x.size
        gradient[i] = (slope - u * sum(u * slope)) / length
    return loss, gradient


def products(z: Array, centred: bool) -> tuple[Array, Array]:
    """(sum over samples of z_i z_i^T, sum over classes of z_j z_j^T), after taking off each class's mean or not."""
    if centred:
        z = z - [sum(z[:, j]) / len(z) for j in range(z.shape[1])]
    by_class = sum(np.outer(z[i], z[i]) for i in range(len(z)))
    return by_class, sum(np.outer(z[:, j], z[:, j]) for j in range(z.shape[1]))


def correlation(z_s: Array, z_t: Array, form: str) -> tuple[float, Array]:
    """L_cc and its gradient in z_s."""
    batch, c = z_s.shape
    side = 1 if form == "samples" else 0
    s, t = (products(z, form != "classes-raw")[side] for z in (z_s, z_t))
    if form == "classes-raw":
        value, slope = nmse(s, t)
        return value / c**2, z_s @ (slope + slope.T) / c**2
    difference = (s - t) / (c - 1)
    squares = sum(v * v for v in difference.flat)
    centring = np.eye(batch) - np.full((batch, batch), 1 / batch)
    if form == "classes":
        return squares**0.5 / c**2, 2 * centring @ z_s @ difference / (squares**0.5 * c**2 * (c - 1))
    return squares / c**2, 4 * centring @ difference @ centring @ z_s / (c**2 * (c - 1))


@pytest.mark.parametrize("form", FORMS)
def test_reference_gradients_are_the_slopes_of_the_reference(form: str) -> None:
    z_s, z_t, _ = random_inputs(3, 5, seed=1)
    for term in (nmse, lambda a, b: correlation(a, b, form)):
        slope = reference.numeric_gradient(lambda z, term=term: term(z, z_t)[0], z_s)
        close(term(z_s, z_t)[1], slope, 1e-7)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("batch", "classes"), [(2, 3), (3, 7), (6, 4), (5, 2)])
def test_values_and_gradients(batch: int, classes: int, form: str) -> None:
    z_s, z_t, labels = random_inputs(batch, classes, seed=3)
    terms = measure("clkd", {**PARAMS, "correlation": form}, z_s, z_t, labels)
    assert list(terms) == ["ce", "instance", "class", "correlation"]
    by_class = nmse(z_s.T, z_t.T)
    for key, weight, (value, gradient) in (
        ("ce", 0.3, reference.cross_entropy(z_s, labels)),
        ("instance", 0.7, nmse(z_s, z_t)),
        ("class", 0.7 * 1.5, (by_class[0], by_class[1].T)),
        ("correlation", 0.9, correlation(z_s, z_t, form)),
    ):
        close(terms[key][0], weight * value)
        close(terms[key][1], weight * gradient)


@pytest.mark.parametrize("form", FORMS)
def test_the_size_of_a_training_step(form: str) -> None:
    z_s, z_t, labels = random_inputs(64, 100)
    value, gradient = measure("clkd", {**PARAMS, "correlation": form}, z_s, z_t, labels)["correlation"]
    wanted = correlation(z_s, z_t, form)
    close(value, 0.9 * wanted[0])
    close(gradient, 0.9 * wanted[1])


@pytest.mark.parametrize("name", ["standard", "streamlined"])
def test_the_weights_of_the_protocols_reach_the_loss(name: str) -> None:
    teacher = Teacher(arch="resnet56", run_id="vanilla-resnet56-s0-00000000")
    params = protocol.resolve(protocol.load(name), "clkd", "resnet20", 0, teacher=teacher).params
    z_s, z_t, labels = reference.oracle_inputs()
    terms = measure("clkd", params, z_s, z_t, labels)
    close(terms["ce"][0], 0.1 * reference.cross_entropy(z_s, labels)[0])
    close(terms["instance"][0], 0.5 * nmse(z_s, z_t)[0])
    close(terms["class"][0], 0.5 * 2.0 * nmse(z_s.T, z_t.T)[0])
    close(terms["correlation"][0], 0.4 * correlation(z_s, z_t, "classes")[0])


@pytest.mark.parametrize(
    ("weight", "moved"),
    [
        ("ce_weight", {"ce"}),
        ("level_weight", {"instance", "class"}),
        ("beta", {"class"}),
        ("correlation_weight", {"correlation"}),
    ],
)
def test_terms_are_linear_in_their_weights(weight: str, moved: set[str]) -> None:
    inputs = random_inputs(4, 6)
    plain, tripled, none = (measure("clkd", {**PARAMS, weight: PARAMS[weight] * k}, *inputs) for k in (1, 3, 0))
    for key in plain:
        close(tripled[key][0], plain[key][0] * (3 if key in moved else 1), 1e-12)
        assert (none[key][0] == 0) == (key in moved)


# --- identities -------------------------------------------------------------------------------------------------------


def tensors(batch: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.from_numpy(a) for a in random_inputs(batch, classes, seed=seed)[:2])


def test_the_class_term_is_the_instance_term_of_the_transposed_logits() -> None:
    z_s, z_t, labels = random_inputs(6, 6, seed=5)
    terms, turned = (measure("clkd", PARAMS, a, b, labels) for a, b in ((z_s, z_t), (z_s.T.copy(), z_t.T.copy())))
    close(terms["class"][0] / 1.5, turned["instance"][0], 1e-12)
    assert terms["instance"][0] != pytest.approx(turned["instance"][0], rel=1e-2)


def test_only_directions_of_rows_count() -> None:
    z_s, z_t = tensors(5, 7)
    scale = torch.tensor([[1e-6], [0.5], [1.0], [10.0], [1e4]], dtype=torch.float64)
    close(normalised_mse(z_s * scale, z_t / scale), normalised_mse(z_s, z_t), 1e-12)
    close(normalised_mse(z_s, -z_s), 4 / 7, 1e-12)  # the largest value there is: 4 over the row's length
    close(correlation_loss(z_s * 30, z_t, "classes-raw"), correlation_loss(z_s, z_t, "classes-raw"), 1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_what_a_constant_per_class_changes(form: str) -> None:
    """The centred forms see no class's mean over the batch; the raw one does, and all see a sample's own mean."""
    z_s, z_t = tensors(5, 7)
    per_class, per_sample = torch.randn(7, dtype=torch.float64), torch.randn(5, 1, dtype=torch.float64)
    value = correlation_loss(z_s, z_t, form).item()
    moved = correlation_loss(z_s + 4 * per_class, z_t - per_class, form).item()
    assert (moved == pytest.approx(value, rel=1e-10)) == (form != "classes-raw")
    assert correlation_loss(z_s + 4 * per_sample, z_t, form).item() != pytest.approx(value, rel=1e-3)


def test_the_matrices_of_classes_and_of_samples_are_equally_long() -> None:
    """|Z^T Z| = |Z Z^T|: beside a teacher without any logits the two forms differ by the square alone."""
    z, _ = tensors(5, 7)
    classes, samples = (correlation_loss(z, torch.zeros_like(z), form) for form in ("classes", "samples"))
    close(samples, (classes * 7**2) ** 2 / 7**2, 1e-12)
    other = tensors(5, 7, seed=1)[0]
    classes, samples = (correlation_loss(z, other, form) for form in ("classes", "samples"))
    assert samples.item() != pytest.approx((classes.item() * 7**2) ** 2 / 7**2, rel=1e-3)


def test_the_correlation_of_classes_is_a_covariance() -> None:
    z_s, z_t = (z.numpy() for z in tensors(9, 6))
    difference = (np.cov(z_s.T) - np.cov(z_t.T)) * (9 - 1) / (6 - 1)
    close(correlation_loss(*tensors(9, 6), "classes"), np.linalg.norm(difference) / 6**2, 1e-12)


@pytest.mark.parametrize(("form", "power"), [("classes", 2), ("samples", 4), ("classes-raw", 0)])
def test_how_the_correlation_grows_with_the_logits(form: str, power: int) -> None:
    z_s, z_t = tensors(5, 7)
    close(correlation_loss(3 * z_s, 3 * z_t, form), 3**power * correlation_loss(z_s, z_t, form), 1e-12)


# --- edges ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 2, 64])
def test_equal_logits_cost_nothing_and_pull_nowhere(batch: int, dtype: torch.dtype, form: str) -> None:
    z, _, labels = random_inputs(batch, 100)
    terms = measure("clkd", {**PARAMS, "correlation": form}, z, z, labels, dtype=dtype)
    for key in ("instance", "class", "correlation"):
        assert terms[key][0] == 0 and not terms[key][1].any(), key


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_of_one_varies_in_no_class(form: str) -> None:
    z_s, z_t, labels = random_inputs(1, 5)
    terms = measure("clkd", {**PARAMS, "correlation": form}, z_s, z_t, labels)
    assert all(np.isfinite(value) and np.isfinite(gradient).all() for value, gradient in terms.values())
    close(terms["instance"][0], 0.7 * nmse(z_s, z_t)[0])
    assert np.abs(terms["class"][1]).max() < 1e-14  # a single number has no direction but its sign
    if form != "classes-raw":
        assert terms["correlation"][0] == 0 and not terms["correlation"][1].any()


@pytest.mark.parametrize("form", FORMS)
def test_rows_and_columns_of_zeros_give_finite_numbers(form: str) -> None:
    z_s, z_t, labels = random_inputs(5, 6)
    z_s[1], z_s[:, 2], z_t[2], z_t[:, 4] = 0, 0, 0, 0
    terms = measure("clkd", {**PARAMS, "correlation": form}, z_s, z_t, labels, dtype=torch.float32)
    assert all(np.isfinite(value) and np.isfinite(gradient).all() for value, gradient in terms.values())
    unit = [z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12) for z in (z_s, z_t)]
    close(terms["instance"][0], 0.7 * np.mean((unit[0] - unit[1]) ** 2), 1e-5)


def test_very_short_rows_are_still_rows() -> None:
    """The floor of a norm is 1e-12: logits of 1e-9 keep their direction."""
    z_s, z_t = tensors(3, 4)
    close(normalised_mse(1e-9 * z_s, z_t), normalised_mse(z_s, z_t), 1e-9)
    short = torch.full((1, 4), 1e-13, dtype=torch.float64)
    close(normalised_mse(short, torch.zeros(1, 4, dtype=torch.float64)), 0.1**2, 1e-9)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_products_are_computed_in_float32(dtype: torch.dtype, autocast: bool, form: str) -> None:
    inputs = random_inputs(64, 100, scale=20.0)  # squares summed over a batch are beyond float16
    z_s, z_t = (torch.from_numpy(a).to(dtype).double().numpy() for a in inputs[:2])
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        terms = measure("clkd", {**PARAMS, "correlation": form}, z_s, z_t, inputs[2], dtype=dtype)
    for key, weight, value in (
        ("instance", 0.7, nmse(z_s, z_t)[0]),
        ("class", 0.7 * 1.5, nmse(z_s.T, z_t.T)[0]),
        ("correlation", 0.9, correlation(z_s, z_t, form)[0]),
    ):
        close(terms[key][0], weight * value, 1e-5)
        assert np.isfinite(terms[key][1]).all()


def test_a_form_nobody_wrote_is_bad_input() -> None:
    with pytest.raises(zoo.BadInput, match="correlation"):
        reference.settings("clkd", {**PARAMS, "correlation": "sample"})
