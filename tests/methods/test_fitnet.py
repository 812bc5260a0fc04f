"""FitNet against convolution, BatchNorm and ReLU written as loops."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import methods
import zoo
from methods import fitnet
from tests.methods import reference
from tests.methods.reference import close

torch.set_num_threads(1)
PARAMS = {"ce_weight": 1.5, "hint_weight": 100.0, "hint_layer": 2}
CASES = {  # student map, teacher map, stride, padding, transposed: what the height rule chooses
    "same channels": ((3, 4, 4), (3, 4, 4), 1, 0, False),
    "more channels": ((2, 4, 4), (5, 4, 4), 1, 0, False),
    "fewer channels": ((4, 3, 3), (2, 3, 3), 1, 0, False),
    "half the height": ((2, 6, 6), (3, 3, 3), 2, 1, False),
    "twice the height": ((2, 3, 3), (3, 6, 6), 2, 1, True),
    "a little smaller": ((2, 5, 5), (3, 3, 3), 1, 0, False),
}


def build(
    monkeypatch: pytest.MonkeyPatch, student: tuple[int, ...], teacher: tuple[int, ...], layer: int = 2
) -> methods.Method:
    """The method on networks whose maps before the hint layer are of another shape."""
    shapes = {"student": student, "teacher": teacher}
    monkeypatch.setattr(fitnet, "shapes", lambda net: SimpleNamespace(features=((7, 7, 7),) * layer + (shapes[net],)))
    torch.manual_seed(0)
    settings = reference.settings("fitnet", {**PARAMS, "hint_layer": layer})
    method = methods.get("fitnet")(settings, "student", "teacher", methods.TrainSet(torch.arange(2), 4))
    return method.double().train()


def give_weights(method: methods.Method, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw the regressor's parameters with NumPy; some BatchNorm scales negative, some shifts large."""
    conv, bn, relu = method.regressor
    assert isinstance(bn, nn.BatchNorm2d) and isinstance(relu, nn.ReLU)
    given = {}
    for name, parameter in (("weight", conv.weight), ("bias", conv.bias), ("gamma", bn.weight), ("beta", bn.bias)):
        given[name] = rng.standard_normal(tuple(parameter.shape))
        parameter.data = torch.from_numpy(given[name])
    return given


@pytest.mark.parametrize("signed", [False, True], ids=["after ReLU", "signed"])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(monkeypatch: pytest.MonkeyPatch, case: str, signed: bool) -> None:
    student, teacher, stride, padding, transposed = CASES[case]
    rng = np.random.default_rng(3)
    method = build(monkeypatch, student, teacher)
    weights = give_weights(method, rng)
    x, target = rng.standard_normal((2, *student)), rng.standard_normal((2, *teacher))
    if not signed:
        x, target = np.maximum(x, 0), np.maximum(target, 0)
    z_s, z_t, labels = reference.random_inputs(2, 4)
    logits, feature = (torch.tensor(a, requires_grad=True) for a in (z_s, x))
    unused = torch.full((1,), torch.nan)  # the other layers must not enter

    terms = method.terms(
        reference.outputs(logits, (unused, unused, feature, unused)),
        reference.outputs(torch.from_numpy(z_t), (unused, unused, torch.from_numpy(target), unused)),
        reference.batch_of(labels),
        reference.progress(1),
    )
    assert list(terms) == ["ce", "hint"]
    value, gradient = reference.cross_entropy(z_s, labels)
    close(terms["ce"].item(), 1.5 * value)
    close(torch.autograd.grad(terms["ce"], logits)[0], 1.5 * gradient)

    value, gradients = reference.hint(x, target, **weights, stride=stride, padding=padding, transposed=transposed)
    close(terms["hint"].item(), 100 * value)
    terms["hint"].backward()
    conv, bn, _ = method.regressor
    close(feature.grad, 100 * gradients["x"])
    close(conv.weight.grad, 100 * gradients["weight"])
    close(bn.weight.grad, 100 * gradients["gamma"])
    close(bn.bias.grad, 100 * gradients["beta"])
    scale = 100 * np.abs(gradients["weight"]).max()  # BatchNorm takes any bias out again: its gradient is rounding
    assert np.abs(conv.bias.grad.numpy()).max() < 1e-12 * scale > np.abs(100 * gradients["bias"]).max()
    assert logits.grad is None


@pytest.mark.parametrize("case", ["more channels", "half the height", "twice the height"])
def test_reference_gradients_are_the_slopes_of_the_reference(case: str) -> None:
    student, teacher, stride, padding, transposed = CASES[case]
    rng = np.random.default_rng(1)
    size = {"half the height": 3, "twice the height": 4}.get(case, 1)
    channels = (student[0], teacher[0]) if transposed else (teacher[0], student[0])
    given = {
        "x": rng.standard_normal((2, *student)),
        "weight": rng.standard_normal((*channels, size, size)),
        "bias": rng.standard_normal(teacher[0]),
        "gamma": rng.standard_normal(teacher[0]),
        "beta": 0.3 * rng.standard_normal(teacher[0]),
    }
    target = rng.standard_normal((2, *teacher))
    layout = {"stride": stride, "padding": padding, "transposed": transposed}
    value, gradients = reference.hint(target=target, **given, **layout)
    assert value > 0
    for name in ("x", "weight", "gamma", "beta"):
        # A step small enough not to cross a kink of the ReLU, on the first two elements.
        array = given[name]
        few = array.reshape(-1)[:2].copy()

        def loss(part: np.ndarray, name: str = name, array: np.ndarray = array) -> float:
            moved = array.copy()
            moved.reshape(-1)[:2] = part
            return reference.hint(target=target, **{**given, name: moved}, **layout)[0]

        np.testing.assert_allclose(
            gradients[name].reshape(-1)[:2], reference.numeric_gradient(loss, few, h=1e-4), rtol=1e-7, atol=1e-10
        )


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_hint_layer_is_the_one_asked_for(monkeypatch: pytest.MonkeyPatch, layer: int) -> None:
    method = build(monkeypatch, (2, 3, 3), (3, 3, 3), layer)
    nothing = torch.full((1,), torch.nan)
    rng = np.random.default_rng(0)
    s, t = (torch.from_numpy(rng.standard_normal((2, c, 3, 3))) for c in (2, 3))
    terms = method.terms(
        reference.outputs(torch.zeros(2, 4), (*[nothing] * layer, s, nothing)),
        reference.outputs(torch.zeros(2, 4), (*[nothing] * layer, t, nothing)),
        reference.batch_of([0, 1]),
        reference.progress(1),
    )
    assert torch.isfinite(terms["hint"])


def test_negative_targets_are_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """The regressor ends in a ReLU: what the teacher has below zero is a floor of the loss."""
    method = build(monkeypatch, (2, 3, 3), (2, 3, 3))
    target = torch.full((2, 2, 3, 3), -2.0, dtype=torch.float64)
    method.regressor[1].bias.data.fill_(-50.0)  # as far down as the regressor can go
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64)
    maps = [reference.outputs(torch.zeros(2, 4), (x, x, f)) for f in (x, target)]
    terms = method.terms(*maps, reference.batch_of([0, 1]), reference.progress(1))
    assert terms["hint"].item() == 100 * 4.0


@pytest.mark.parametrize(
    ("teacher", "student", "count"),
    [
        ("resnet56", "resnet20", 1_120),
        ("resnet110", "resnet32", 1_120),
        ("resnet32x4", "resnet8x4", 16_768),
        ("wrn_40_2", "wrn_16_2", 4_288),
        ("wrn_40_2", "wrn_40_1", 2_240),
        ("vgg13", "vgg8", 66_304),
        ("vgg13", "mobilenetv2", 4_864),
        ("resnet50", "mobilenetv2", 132_608),
        ("resnet50", "vgg8", 2_098_688),
        ("resnet32x4", "shufflenetv1", 983_424),
        ("resnet32x4", "shufflenetv2", 475_520),
        ("wrn_40_2", "shufflenetv1", 491_712),
        ("resnet32x4", "mobilenetv2", 33_152),
    ],
)
def test_extra_parameters(teacher: str, student: str, count: int) -> None:
    """Counts of RepDistiller's and mdistiller's regressors, measured there."""
    with torch.device("meta"):
        nets = zoo.build(student), zoo.build(teacher)
    settings = reference.settings("fitnet", PARAMS)
    method = methods.get("fitnet")(settings, *nets, methods.TrainSet(torch.arange(2), 100))
    assert zoo.count_parameters(method) == count
    assert all(parameter.requires_grad and parameter.device.type == "cpu" for parameter in method.parameters())


def test_a_height_nothing_leads_to_is_refused() -> None:
    with pytest.raises(ValueError, match="height 3 to 8"):
        fitnet.regressor((2, 3, 3), (2, 8, 8))


def test_a_layer_that_is_not_there_is_bad_input() -> None:
    with torch.device("meta"):
        nets = zoo.build("resnet8"), zoo.build("resnet20")
    settings = reference.settings("fitnet", {**PARAMS, "hint_layer": 7})
    with pytest.raises(zoo.BadInput, match="hint_layer"):
        methods.get("fitnet")(settings, *nets, methods.TrainSet(torch.arange(2), 100))
