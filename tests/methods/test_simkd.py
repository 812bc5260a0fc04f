"""SimKD against loops in NumPy, its oracle values, and the network that it deploys."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import methods
import zoo
from tests.methods import reference
from tests.methods.reference import close, value_and_slope, wave
from zoo.reused import Frozen, Reused, projector

torch.set_num_threads(1)
STUDENT, TEACHER = np.maximum(wave(2, 3, 8, 0.1, 1), 0), np.maximum(wave(2, 4, 8, 0.9, 1.5), 0)
PARAMS = {"map_weight": 1.0, "reduction": 2}


def filled() -> methods.Method:
    """On maps of 3 and 4 channels, with the weights that the oracle values belong to."""
    cls = methods.get("simkd")
    made = cls.__new__(cls)
    nn.Module.__init__(made)
    made.params = reference.settings("simkd", PARAMS)
    made.projector, made.height = projector(3, 4, 2).double(), 8
    head = nn.Linear(4, 10).double()
    with torch.no_grad():
        for k, value in enumerate(made.projector.parameters()):
            m = torch.arange(value.numel(), dtype=torch.float64)
            filling = torch.cos(0.7 * m + k) / 2, 1 + 0.1 * torch.sin(m + k), 0.2 * torch.cos(m + k)
            value.copy_(filling[k % 3].view_as(value))
        head.weight.copy_(torch.sin(0.9 * torch.arange(40, dtype=torch.float64)).view(10, 4))
        head.bias.copy_(0.1 * torch.cos(torch.arange(10, dtype=torch.float64)))
    made.frozen = Frozen(head)
    return made.train()


class Maps(zoo.Net):
    """A student whose last map is its input."""

    def trace(self, x):
        return (x,), (x,), x


def predicted(net: Reused) -> torch.Tensor:
    """Logits for the student's maps in place of images."""
    with torch.no_grad():
        return net.head(net.trace(torch.tensor(STUDENT))[2].mean((2, 3)))


def by_hand(made: methods.Method, x: np.ndarray, teacher: np.ndarray) -> tuple[float, np.ndarray]:
    """MSE and logits in train mode, one output value after the other."""
    layers = list(made.projector)
    for conv, bn in zip(layers[::3], layers[1::3], strict=True):
        weight = conv.weight.detach().numpy()
        size = weight.shape[2] // 2
        y = np.zeros((len(x), len(weight), *x.shape[2:]))
        for b, d, i, j in np.ndindex(y.shape):
            for c, u, v in np.ndindex(weight.shape[1:]):
                at = i + u - size, j + v - size
                if min(at) >= 0 and max(at) < x.shape[2]:
                    y[b, d, i, j] += weight[d, c, u, v] * x[(b, c, *at)]
        for d in range(y.shape[1]):
            values = y[:, d]
            normal = (values - values.mean()) / np.sqrt(((values - values.mean()) ** 2).mean() + 1e-5)
            y[:, d] = np.maximum(bn.weight[d].item() * normal + bn.bias[d].item(), 0)
        x = y
    pooled = np.array([[x[b, d].sum() / x[b, d].size for d in range(x.shape[1])] for b in range(len(x))])
    logits = pooled @ made.frozen.weight.numpy().T + made.frozen.bias.numpy()
    return ((x - teacher) ** 2).sum() / teacher.size, logits


def loss_of(made: methods.Method, student: torch.Tensor, teacher: np.ndarray = TEACHER) -> torch.Tensor:
    sides = (replace(reference.outputs(torch.zeros(2, 2)), last_map=m) for m in (student, torch.tensor(teacher)))
    terms = made.terms(*sides, reference.batch_of(np.zeros(2, dtype=int)), reference.progress(1))
    assert list(terms) == ["map"]
    return terms["map"]


def test_oracle_values() -> None:
    made = filled()
    assert loss_of(made, torch.tensor(STUDENT)).item() == pytest.approx(0.468120521, abs=5e-10)
    mse, logits = by_hand(filled(), STUDENT, TEACHER)
    assert mse == pytest.approx(0.468120521, abs=5e-10)
    net = Reused(Maps(), made.projector, made.frozen, 8)
    twin = copy.deepcopy(net).train()
    assert predicted(twin)[0, :3].tolist() == pytest.approx(logits[0, :3].tolist(), rel=1e-9)
    assert logits[0, :3] == pytest.approx([1.07506359, -0.99292953, 0.86106167], abs=5e-9)
    net.eval()  # after one step of the statistics
    assert loss_of(made, torch.tensor(STUDENT)).item() == pytest.approx(0.498594713338, abs=5e-10)
    logits = predicted(net)[0, :3].tolist()
    assert logits == pytest.approx([0.10371329, -0.04858827, 0.13872004], abs=5e-9)


def test_gradients() -> None:
    """Along a few directions: the reference is too slow for all."""
    made, rng = filled(), np.random.default_rng(0)
    student, teacher = rng.random((2, 3, 2, 2)), rng.random((2, 4, 2, 2))
    value, slope = value_and_slope(lambda x: loss_of(made, x, teacher), student)
    close(value, by_hand(made, student, teacher)[0])
    for _ in range(3):
        way, h = rng.standard_normal(student.shape), 1e-5
        up, down = (by_hand(made, student + sign * h * way, teacher)[0] for sign in (1, -1))
        assert (slope * way).sum() == pytest.approx((up - down) / (2 * h), rel=1e-6)


def made_for(pair: str, **params) -> tuple[methods.Method, zoo.Net, zoo.Net]:
    teacher, student = (zoo.build(arch) for arch in pair.split("-"))
    settings = reference.settings("simkd", PARAMS | params)
    return methods.get("simkd")(settings, student, teacher, None).train(), student, teacher


@pytest.mark.parametrize(
    ("pair", "sizes", "deployed"),
    [
        ("resnet56-resnet20", (13_568, 4_544, 1_760), 291_892),
        ("resnet32x4-resnet8x4", (214_016, 70_400, 26_240), 1_447_556),
        ("wrn_40_2-wrn_16_2", (53_760, 17_792, 6_720), 757_044),
        ("wrn_40_2-wrn_40_1", (49_664, 15_744, 5_696), 625_844),
        ("vgg13-vgg8", (854_016, 280_064, 103_680), 4_819_044),
    ],
)
def test_sizes(pair: str, sizes: tuple, deployed: int) -> None:
    teacher, student = map(zoo.build_meta, pair.split("-"))
    for reduction, size in zip((2, 4, 8), sizes, strict=True):
        settings = reference.settings("simkd", PARAMS | {"reduction": reduction})
        with torch.device("meta"):
            made = methods.get("simkd")(settings, student, teacher, None)
            assert zoo.count_parameters(made) == size
            if reduction == 2:
                assert made.deployed(student).size == deployed


def test_the_deployed_network_is_backbone_projector_and_the_teachers_classifier() -> None:
    made, student, teacher = made_for("resnet8-resnet20")
    assert torch.equal(made.frozen.weight, teacher.fc.weight) and not list(made.frozen.parameters())
    with torch.no_grad():
        teacher.fc.weight.zero_()  # a copy: the teacher is not needed any more
    images = torch.randn(2, 3, 32, 32)
    net = made.deployed(student).eval()
    with torch.no_grad():
        logits = net(images)
        maps = made.projector(student.outputs(images).last_map)
        assert torch.allclose(logits, made.frozen(maps.mean((2, 3)))) and not torch.allclose(logits, student(images))
        assert torch.equal(net.outputs(images).logits, logits)
        student.fc.weight.zero_()
        assert torch.equal(net(images), logits)
        made.projector[0].weight.mul_(-1)  # parts are shared
        assert not torch.equal(net(images), logits)


def test_it_is_rebuilt_from_what_is_kept(tmp_path: Path) -> None:
    made, student, _ = made_for("resnet8x4-mobilenetv2")
    net = made.deployed(student)
    images = torch.randn(4, 3, 32, 32)
    net.train()(images)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    again = Reused.rebuilt("mobilenetv2", state)
    with torch.no_grad():
        assert torch.equal(again(images), net.eval()(images)) and again.arch == "mobilenetv2"
    torch.save({"model": state}, tmp_path / "weights.pt")
    with pytest.raises(zoo.BadInput, match="predicts with its teacher's classifier"):
        zoo.load_weights(zoo.build("mobilenetv2"), tmp_path / "weights.pt")


@pytest.mark.parametrize("pair", ["resnet8-vgg8", "vgg8-resnet8"])
def test_maps_of_unequal_height(pair: str) -> None:
    made, student, teacher = made_for(pair)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        sides = student.outputs(images), teacher.eval().outputs(images)
    (value,) = made.terms(*sides, None, None).values()
    heights = [side.last_map.shape[2] for side in sides]
    assert torch.isfinite(value) and set(heights) == {4, 8}
    assert made.deployed(student).outputs(images).last_map.shape[2] == 4 if heights[0] == 8 else heights[0]


def test_a_reduction_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(zoo.BadInput, match="reduction 65: the teacher's last map has 64 channels"):
        made_for("resnet8-resnet20", reduction=65)
