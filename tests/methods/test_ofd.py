"""OFD against its three cases, a 1x1 convolution and BatchNorm written as loops, and margins by quadrature."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import methods
import zoo
from bench import protocol
from bench.run import Teacher
from methods import ofd
from methods.ofd import connector, margins, partial_l2
from tests.methods import reference
from tests.methods.reference import Array, close

torch.set_num_threads(1)
PARAMS = {"ce_weight": 1.5, "feature_weight": 0.02, "teacher_mode": "train"}
PAIRS = (
    ("resnet56", "resnet20", 5_600),
    ("resnet110", "resnet32", 5_600),
    ("resnet32x4", "resnet8x4", 86_912),
    ("wrn_40_2", "wrn_16_2", 21_952),
    ("wrn_40_2", "wrn_40_1", 11_200),
    ("vgg13", "vgg8", 609_024),
    ("vgg13", "vgg13", 609_024),
    ("resnet32x4", "shufflenetv2", 156_800),  # the one pair of different style that mdistiller's runs on
)


# --- the equations, one element at a time -----------------------------------------------------------------------------


def three_cases(s: float, t: float, m: float) -> tuple[float, float]:
    """Cost of one element and its slope in s, case by case as the authors write it.

    A positive response must be met; a weak negative one (m < t <= 0) and a strong one (t <= m, which counts as m)
    must not be exceeded.
    """
    if t > 0:
        return (s - t) ** 2, 2 * (s - t)
    if t > m:
        return ((s - t) ** 2, 2 * (s - t)) if s > t else (0.0, 0.0)
    return ((s - m) ** 2, 2 * (s - m)) if s > m else (0.0, 0.0)


def layer_loss(s: Array, t: Array, m: Array) -> tuple[float, Array]:
    """Sum over channels and positions, mean over the batch, and its gradient in s. Maps (B, C, h, w), margins (C,)."""
    loss, gradient = 0.0, np.zeros_like(s)
    for b, c, i, j in np.ndindex(s.shape):
        cost, slope = three_cases(s[b, c, i, j], t[b, c, i, j], m[c])
        loss += cost / len(s)
        gradient[b, c, i, j] = slope / len(s)
    return loss, gradient


def level(
    x: Array, t: Array, m: Array, weight: Array, gamma: Array, beta: Array, eps: float = 1e-5
) -> tuple[float, dict[str, Array]]:
    """`layer_loss` behind a 1x1 convolution and BatchNorm with batch statistics, and gradients by argument name.

    x (B, C, h, w), weight (D, C): y_d = sum_c W_dc x_c, n_d = (y_d - mean) / root, s_d = gamma_d n_d + beta_d.
    """
    batch, channels, height, width = x.shape
    y, normal, roots = np.zeros_like(t), np.zeros_like(t), []
    for b, d, i, j in np.ndindex(t.shape):
        y[b, d, i, j] = sum(weight[d, c] * x[b, c, i, j] for c in range(channels))
    s = np.zeros_like(t)
    for d in range(len(m)):
        n = batch * height * width
        mean = sum(y[:, d].flat) / n
        roots.append(math.sqrt(sum((v - mean) ** 2 for v in y[:, d].flat) / n + eps))
        normal[:, d] = (y[:, d] - mean) / roots[d]
        s[:, d] = gamma[d] * normal[:, d] + beta[d]
    loss, g = layer_loss(s, t, m)
    gradient = {"x": np.zeros_like(x), "weight": np.zeros_like(weight)}
    gradient["beta"] = np.array([sum(g[:, d].flat) for d in range(len(m))])
    gradient["gamma"] = np.array([sum((g[:, d] * normal[:, d]).flat) for d in range(len(m))])
    for d in range(len(m)):
        common = (gradient["beta"][d] + normal[:, d] * gradient["gamma"][d]) / n
        g_y = gamma[d] / roots[d] * (g[:, d] - common)
        for c in range(channels):
            gradient["x"][:, c] += weight[d, c] * g_y
            gradient["weight"][d, c] = sum((g_y * x[:, c]).flat)
    return loss, gradient


def mean_of_negative_part(gamma: float, beta: float) -> float:
    """E[v | v < 0] for v from N(beta, gamma^2), by the midpoint rule."""
    s = abs(gamma)
    low = min(beta, 0) - 12 * s
    v = low + (np.arange(200_000) + 0.5) * -low / 200_000
    weight = np.exp(-(((v - beta) / s) ** 2) / 2)
    return float((v * weight).sum() / weight.sum())


def batch_norm(gamma: list[float], beta: list[float], dtype: torch.dtype = torch.float64) -> nn.BatchNorm2d:
    bn = nn.BatchNorm2d(len(gamma), dtype=dtype)
    bn.weight.data, bn.bias.data = torch.tensor(gamma, dtype=dtype), torch.tensor(beta, dtype=dtype)
    return bn


# --- the margins ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gamma", "beta", "value"),
    [
        (1.0, 0.0, -0.7978845608),
        (0.5, 0.2, -0.3343780859),
        (-0.5, 0.2, -0.3343780859),
        (1.0, 2.0, -0.3732155328),
        (0.1, 1.0, -0.3),
    ],
)
def test_margins_of_the_released_code(gamma: float, beta: float, value: float) -> None:
    assert margins(batch_norm([gamma], [beta])).item() == pytest.approx(value, abs=5.1e-11)


@pytest.mark.parametrize("gamma", [1.7, -0.3, 1e-3])
@pytest.mark.parametrize("ratio", [-8.0, -2.0, -0.5, 0.0, 0.7, 2.0, 3.09])
def test_a_margin_is_the_mean_of_the_negative_part(gamma: float, ratio: float) -> None:
    beta = ratio * abs(gamma)
    close(margins(batch_norm([gamma], [beta])).item(), mean_of_negative_part(gamma, beta), 1e-8)


def test_a_channel_that_is_hardly_ever_negative_takes_three_sigma() -> None:
    """One in a thousand lies beyond 3.09023 standard deviations."""
    found = margins(batch_norm([0.5, 0.5, -0.5, 0.5, 0.5], [1.5451, 1.5452, 1.5452, 20.0, 1e300]))
    assert found[0] > -1.0 and (found[1:] == -1.5).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_channels_of_no_spread_have_margins(dtype: torch.dtype) -> None:
    """All of the channel is at beta, its negative part as well: the limit of small gamma."""
    tiny = torch.finfo(dtype).tiny
    for gamma in (0.0, -0.0, tiny, -tiny):
        found = margins(batch_norm([gamma] * 4, [0.4, 0.0, -0.4, -1e30], dtype))
        assert found.dtype == dtype
        np.testing.assert_allclose(found, np.array([0, 0, -0.4, -1e30]), rtol=1e-7, atol=4 * tiny)


def test_margins_are_of_the_teachers_type_and_never_positive() -> None:
    rng = np.random.default_rng(0)
    gamma, beta = rng.standard_normal(500), 3 * rng.standard_normal(500)
    full = margins(batch_norm(list(gamma), list(beta)))
    assert full.dtype == torch.float64 and (full < 0).all() and not full.requires_grad
    single = margins(batch_norm(list(gamma), list(beta), torch.float32))
    assert single.dtype == torch.float32
    close(single, full, 1e-4)  # next to the threshold, the rounded gamma and beta decide
    assert margins(batch_norm([0.5], [0.25], torch.bfloat16)).dtype == torch.float32


# --- the layer's loss -------------------------------------------------------------------------------------------------


def maps(shape: tuple[int, ...], seed: int = 0) -> tuple[Array, Array, Array]:
    """Maps of student and teacher with every case in them, some values on the borders, and margins (C,)."""
    rng = np.random.default_rng(seed)
    s, t = rng.standard_normal(shape), rng.standard_normal(shape)
    m = -rng.uniform(0.2, 1.0, shape[1])
    if math.prod(shape) > 60:
        t.reshape(-1)[:6] = [0.0, m[0], m[0], -0.0, 0.3, m[0] / 2]
        s.reshape(-1)[:6] = [0.0, m[0], 0.0, -1.0, 0.3, m[0] / 2]
    return s, t, m


def measure(s: Array, t: Array, m: Array) -> tuple[float, Array]:
    student = torch.tensor(s, requires_grad=True)
    loss = partial_l2(student, torch.from_numpy(t), torch.from_numpy(m))
    loss.backward()
    return loss.item(), student.grad.numpy()


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 3, 4, 4), (3, 4, 5, 2), (2, 7, 3, 3)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_layer_loss_and_gradient(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    s, t, m = maps(shape)
    value, gradient = layer_loss(s, t, m)
    student = torch.tensor(s).to(memory_format=layout).requires_grad_()
    teacher = torch.tensor(t).to(memory_format=layout).requires_grad_()
    loss = partial_l2(student, teacher, torch.from_numpy(m))
    loss.backward()
    close(loss.item(), value)
    close(student.grad, gradient)
    assert teacher.grad is None


def test_the_maps_hold_every_case() -> None:
    s, t, m = maps((3, 4, 5, 2))
    m = m[:, None, None]
    kinds = [t > 0, (t <= 0) & (t > m), t <= m]
    assert all((kind & above).sum() > 5 for kind in kinds for above in (s > np.maximum(t, m), s < np.maximum(t, m)))


def test_oracle_value() -> None:
    n = np.arange(2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
    s, t, m = np.sin(0.37 * n + 0.1), 1.5 * np.sin(0.37 * n + 0.9), np.array([-0.3, -0.6, -0.1])
    assert measure(s, t, m)[0] == pytest.approx(67.8882667896, abs=5.1e-11)


def test_what_the_teacher_allows_costs_nothing() -> None:
    s, t, m = maps((2, 3, 4, 4))
    assert measure(t, t, m)[0] == 0 and not measure(t, t, m)[1].any()
    below = np.where(t > 0, t, np.maximum(t, m[:, None, None]) - np.abs(s))
    assert measure(below, t, m)[0] == 0 and not measure(below, t, m)[1].any()


def test_a_teacher_without_negatives_asks_for_all_of_it() -> None:
    s, t, m = maps((2, 3, 4, 4))
    t = np.abs(t) + 0.1
    close(measure(s, t, m)[0], ((s - t) ** 2).sum() / 2, 1e-12)


def test_margins_are_a_channels_own() -> None:
    """Responses far below the margin: the student may go as high as the margin of its channel."""
    t, m = np.full((1, 3, 2, 2), -9.0), np.array([-0.5, -1.0, -2.0])
    for channel in range(3):
        s = np.full((1, 3, 2, 2), -9.0)
        s[:, channel] = m[channel]
        assert measure(s, t, m)[0] == 0
        s[:, channel] += 1
        assert measure(s, t, m)[0] == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_maps_are_summed_in_float32(dtype: torch.dtype, autocast: bool) -> None:
    """In half precision the sum of these 40,000 terms would stop growing, and overflow."""
    s, t, m = (torch.from_numpy(a).to(dtype) for a in maps((4, 10, 32, 32)))
    s = (s * 30).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = partial_l2(s, t, m)
    loss.backward()
    assert loss.dtype == torch.float32 and s.grad.dtype == dtype
    value, gradient = layer_loss(*(a.detach().double().numpy() for a in (s, t, m)))
    close(loss.item(), value, 1e-6)
    np.testing.assert_allclose(s.grad.double(), gradient, rtol=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_loss_is_of_the_students_type(dtype: torch.dtype) -> None:
    s, t, m = (torch.from_numpy(a) for a in maps((2, 3, 4, 4)))
    assert partial_l2(s.to(dtype), t, m).dtype == dtype


# --- the method -------------------------------------------------------------------------------------------------------


def build(
    monkeypatch: pytest.MonkeyPatch,
    student: list[tuple[int, int, int]],
    teacher: list[tuple[int, int, int]],
    params: dict[str, Any] = PARAMS,
) -> tuple[methods.Method, list[Array]]:
    """The method on networks of such pre-activation maps, connectors drawn by NumPy, and margins of all levels."""
    rng = np.random.default_rng(4)
    affine = [(rng.standard_normal(c), 0.5 * rng.standard_normal(c)) for c, _, _ in teacher]
    nets = {
        "student": SimpleNamespace(preact=tuple(student)),
        "teacher": SimpleNamespace(preact=tuple(teacher)),
    }
    monkeypatch.setattr(ofd, "shapes", lambda net: nets["teacher" if hasattr(net, "preact_bn") else "student"])
    bns = tuple(batch_norm(list(gamma), list(beta)) for gamma, beta in affine)
    method = methods.get("ofd")(
        reference.settings("ofd", params), SimpleNamespace(), SimpleNamespace(preact_bn=bns), None
    )
    method.double().train()
    for conv, bn in method.connectors:
        conv.weight.data = torch.from_numpy(rng.standard_normal(conv.weight.shape))
        bn.weight.data, bn.bias.data = (torch.from_numpy(rng.standard_normal(bn.num_features)) for _ in range(2))
    # The margin's own value is tested above; here it is only a place to look at.
    return method, [margins(bn).numpy() for bn in bns]


def draw(shapes: list[tuple[int, int, int]], seed: int) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((2, *shape)) for shape in shapes]


def run(
    method: methods.Method, student: list[Array], teacher: list[Array]
) -> tuple[dict[str, torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """Terms on given pre-activation maps, and the leaves that stand for the student's maps and logits."""
    z_s, z_t, labels = reference.random_inputs(2, 4)
    logits = torch.tensor(z_s, requires_grad=True)
    leaves = [torch.tensor(a, requires_grad=True) for a in student]
    terms = method.terms(
        replace(reference.outputs(logits), preact=tuple(leaves)),
        replace(reference.outputs(torch.from_numpy(z_t)), preact=tuple(torch.from_numpy(a) for a in teacher)),
        reference.batch_of(labels),
        reference.progress(1),
    )
    return terms, leaves, logits


def wanted(
    method: methods.Method, student: list[Array], teacher: list[Array], by_level: list[Array]
) -> tuple[float, list[dict[str, Array]]]:
    """The weighted sum over levels, half as much a level further from the end, and its gradients level by level."""
    loss, gradients = 0.0, []
    for x, t, m, (conv, bn) in zip(
        reversed(student), reversed(teacher), reversed(by_level), reversed(method.connectors), strict=True
    ):
        share = 0.5 ** len(gradients)
        given = (conv.weight.detach()[:, :, 0, 0], bn.weight.detach(), bn.bias.detach())
        value, gradient = level(x, t, m, *(a.numpy() for a in given))
        loss += share * value
        gradients.append({key: share * g for key, g in gradient.items()})
    return loss, gradients[::-1]


@pytest.mark.parametrize("levels", [1, 3, 4])
def test_values_and_gradients(monkeypatch: pytest.MonkeyPatch, levels: int) -> None:
    student = [(2, 4, 4), (3, 3, 3), (4, 2, 2), (2, 2, 2)][:levels]
    teacher = [(3, 4, 4), (2, 3, 3), (5, 2, 2), (2, 2, 2)][:levels]
    method, by_level = build(monkeypatch, student, teacher)
    s, t = draw(student, 1), draw(teacher, 2)
    terms, leaves, logits = run(method, s, t)
    value, gradients = wanted(method, s, t, by_level)

    assert list(terms) == ["ce", "feature"]
    ce, slope = reference.cross_entropy(*(reference.random_inputs(2, 4)[k] for k in (0, 2)))
    close(terms["ce"].item(), 1.5 * ce)
    close(torch.autograd.grad(terms["ce"], logits)[0], 1.5 * slope)
    close(terms["feature"].item(), 0.02 * value)
    terms["feature"].backward()
    assert logits.grad is None
    for leaf, (conv, bn), gradient in zip(leaves, method.connectors, gradients, strict=True):
        close(leaf.grad, 0.02 * gradient["x"], 1e-8)
        close(conv.weight.grad[:, :, 0, 0], 0.02 * gradient["weight"], 1e-8)
        close(bn.weight.grad, 0.02 * gradient["gamma"])
        close(bn.bias.grad, 0.02 * gradient["beta"])


def test_reference_gradients_are_the_slopes_of_the_reference() -> None:
    rng = np.random.default_rng(6)
    given = {
        "x": rng.standard_normal((2, 2, 2, 2)),
        "weight": rng.standard_normal((3, 2)),
        "gamma": rng.standard_normal(3),
        "beta": rng.standard_normal(3),
    }
    t, m = rng.standard_normal((2, 3, 2, 2)), np.array([-0.3, -0.8, -0.5])
    _, gradients = level(t=t, m=m, **given)
    for name, array in given.items():
        # Costs are smooth but for their curvature: a small step crosses no border.
        slope = reference.numeric_gradient(lambda a, name=name: level(t=t, m=m, **{**given, name: a})[0], array, h=1e-4)
        np.testing.assert_allclose(gradients[name], slope, rtol=1e-7, atol=1e-8)


def test_networks_of_different_depth_meet_at_their_last_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    deep, shallow = [(2, 4, 4), (3, 3, 3), (4, 2, 2)], [(5, 3, 3), (2, 2, 2)]
    for student, teacher in ((shallow, deep), (deep, shallow)):
        method, by_level = build(monkeypatch, student, teacher)
        s, t = draw(student, 1), draw(teacher, 2)
        if len(s) > 2:
            s[0][:] = np.nan
        else:
            t[0][:] = np.nan
        terms, _, _ = run(method, s, t)
        close(terms["feature"].item(), 0.02 * wanted(method, s[-2:], t[-2:], by_level[-2:])[0])


def test_a_larger_map_of_the_teacher_is_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    method, by_level = build(monkeypatch, [(2, 3, 3), (3, 2, 2)], [(2, 6, 6), (3, 2, 2)])
    s, t = draw([(2, 3, 3), (3, 2, 2)], 1), draw([(2, 6, 6), (3, 2, 2)], 2)
    terms, _, _ = run(method, s, t)
    small = np.zeros_like(s[0])
    for b, c, i, j in np.ndindex(small.shape):
        small[b, c, i, j] = t[0][b, c, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean()
    close(terms["feature"].item(), 0.02 * wanted(method, s, [small, t[1]], by_level)[0])


@pytest.mark.parametrize(("ce", "feature"), [(1.0, 1e-3), (0.0, 3.0), (2.0, 0.0)])
def test_terms_are_weighted(monkeypatch: pytest.MonkeyPatch, ce: float, feature: float) -> None:
    shapes = [(2, 3, 3), (3, 2, 2)]
    params = {"ce_weight": ce, "feature_weight": feature, "teacher_mode": "eval"}
    found = []
    for given in (params, {**params, "ce_weight": 1.0, "feature_weight": 1.0}):
        method, _ = build(monkeypatch, shapes, shapes, given)
        found.append(run(method, draw(shapes, 1), draw(shapes, 2))[0])
    close(found[0]["ce"].item(), ce * found[1]["ce"].item(), 1e-12)
    close(found[0]["feature"].item(), feature * found[1]["feature"].item(), 1e-12)


def on_meta(teacher: str, student: str, mode: str = "train") -> methods.Method:
    settings = reference.settings("ofd", {**PARAMS, "teacher_mode": mode})
    with torch.device("meta"):
        nets = zoo.build_meta(student), zoo.build_meta(teacher)
        return methods.get("ofd")(settings, *nets, methods.TrainSet(torch.arange(2), 100))


@pytest.mark.parametrize(("teacher", "student", "count"), PAIRS)
def test_extra_parameters(teacher: str, student: str, count: int) -> None:
    """Counts of mdistiller's connectors, measured there."""
    method = on_meta(teacher, student)
    assert zoo.count_parameters(method) == count
    assert all(value.is_meta for value in method.state_dict().values())
    assert method.margins.shape == (sum(c for c, _, _ in zoo.shapes(teacher).preact),)


def test_every_two_networks_of_the_zoo_go_together() -> None:
    students = ("vgg8", "resnet8", "wrn_16_1", "resnet50", "mobilenetv2", "shufflenetv1", "shufflenetv2")
    for teacher in set(students) - {"shufflenetv2"}:
        for student in students:
            levels = min(len(zoo.shapes(net).preact) for net in (teacher, student))
            assert len(on_meta(teacher, student).connectors) == levels


def test_a_teacher_without_norms_over_all_channels_is_refused() -> None:
    with pytest.raises(zoo.BadInput, match=r"shufflenetv2 has no BatchNorm over all channels .*choose another teacher"):
        on_meta("shufflenetv2", "resnet8")


@pytest.mark.parametrize(
    ("teacher", "student", "layers"),
    [
        ("resnet20", "resnet8", ["layer1.2.bn2", "layer2.2.bn2", "layer3.2.bn2"]),
        ("wrn_16_2", "wrn_16_1", ["block2.layer.0.bn1", "block3.layer.0.bn1", "bn1"]),
        ("vgg13", "vgg8", ["block1.4", "block2.4", "block3.4", "block4.4"]),
        ("vgg13", "resnet8", ["block2.4", "block3.4", "block4.4"]),
        ("shufflenetv1", "mobilenetv2", ["layer1.3.bn3", "layer2.7.bn3", "layer3.3.bn3"]),
    ],
)
def test_margins_are_a_buffer_taken_from_the_teacher_once(teacher: str, student: str, layers: list[str]) -> None:
    nets = zoo.build(student), zoo.build(teacher).double()
    for module in nets[1].modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    method = methods.get("ofd")(reference.settings("ofd", PARAMS), *nets, None)
    state = nets[1].state_dict()
    expected = [
        margins(batch_norm(state[f"{layer}.weight"].tolist(), state[f"{layer}.bias"].tolist())) for layer in layers
    ]
    assert torch.equal(method.margins, torch.cat(expected)) and method.margins.dtype == torch.float64
    assert "margins" in method.state_dict() and "margins" not in dict(method.named_parameters())
    before = method.margins.clone()
    for module in nets[1].modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    assert torch.equal(method.margins, before)


def test_connectors_start_as_published() -> None:
    """Weights from N(0, 2 / teacher's channels); BatchNorm 1 and 0."""
    torch.manual_seed(0)
    conv, bn = connector(64, 512)
    assert conv.bias is None and conv.weight.shape == (512, 64, 1, 1)
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / 512), rel=0.02)
    assert conv.weight.abs().max() > 3.5 * math.sqrt(2 / 512)  # no uniform distribution
    assert (bn.weight == 1).all() and (bn.bias == 0).all()


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_teachers_mode_is_a_setting(mode: str) -> None:
    assert on_meta("resnet20", "resnet8", mode).teacher_mode == mode


def test_another_mode_is_refused() -> None:
    with pytest.raises(zoo.BadInput, match="teacher_mode"):
        reference.settings("ofd", {**PARAMS, "teacher_mode": "frozen"})


@pytest.mark.parametrize(("name", "weight"), [("standard", 1e-3), ("streamlined", 5e-4)])
def test_protocols_take_the_published_settings(monkeypatch: pytest.MonkeyPatch, name: str, weight: float) -> None:
    teacher = Teacher(arch="resnet56", run_id="vanilla-resnet56-s0-00000000")
    resolved = protocol.resolve(protocol.load(name), "ofd", "resnet20", 0, teacher=teacher)
    shapes = [(2, 3, 3), (3, 2, 2)]
    method, by_level = build(monkeypatch, shapes, shapes, dict(resolved.params))
    assert method.teacher_mode == "train"
    s, t = draw(shapes, 1), draw(shapes, 2)
    terms, _, _ = run(method, s, t)
    ce, _ = reference.cross_entropy(*(reference.random_inputs(2, 4)[k] for k in (0, 2)))
    close(terms["ce"].item(), ce)
    close(terms["feature"].item(), weight * wanted(method, s, t, by_level)[0])
