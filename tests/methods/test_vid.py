"""VID against loops in NumPy, its oracle values, and what it trains."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import methods
import zoo
from methods.vid import Gaussian
from tests.methods import reference
from tests.methods.reference import close, numeric_gradient, wave

torch.set_num_threads(1)
S8, T8 = wave(2, 3, 8, 0.1, 1), wave(2, 5, 8, 0.9, 1.5)


def filled(student: int, teacher: int) -> Gaussian:
    made = Gaussian(student, teacher).double()
    with torch.no_grad():
        for k, conv in enumerate(made.mean[::2]):
            numbers = torch.arange(conv.weight.numel(), dtype=torch.float64)
            conv.weight.copy_((torch.cos(0.7 * numbers + k) / 2).view_as(conv.weight))
        made.scale.fill_(math.log(math.exp(5 - 1e-5) - 1))
    return made


def by_hand(gaussian: Gaussian, student: np.ndarray, teacher: np.ndarray, scale: np.ndarray) -> float:
    """Position by position; of equal heights."""
    weights = [conv.weight.detach().numpy()[:, :, 0, 0] for conv in gaussian.mean[::2]]
    total = 0.0
    for b, y, x in np.ndindex(student.shape[0], *student.shape[2:]):
        mean = student[b, :, y, x]
        for k, weight in enumerate(weights):
            mean = weight @ (mean if k == 0 else np.maximum(mean, 0))
        for c, m in enumerate(mean):
            variance = math.log1p(math.exp(scale[c])) + 1e-5
            total += ((m - teacher[b, c, y, x]) ** 2 / variance + math.log(variance)) / 2 / teacher.size
    return total


def test_oracle_values() -> None:
    gaussian = filled(3, 5)
    student, teacher = torch.tensor(S8), torch.tensor(T8)
    assert gaussian.loss(student, teacher).item() == pytest.approx(0.919038636348, abs=5e-13)
    assert Gaussian(3, 5).scale[0].item() == pytest.approx(4.99323, abs=5e-6)
    scale = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    with torch.no_grad():
        gaussian.scale.copy_(torch.tensor(scale))
    loss = gaussian.loss(student, teacher)
    assert loss.item() == pytest.approx(1.34073521858, abs=5e-12)
    assert by_hand(gaussian, S8, T8, scale) == pytest.approx(1.34073521858, abs=5e-12)
    (gradient,) = torch.autograd.grad(loss, gaussian.scale)
    assert gradient.tolist() == pytest.approx([-0.78628659, -0.21829344, -0.04846485, 0.00876743, 0.01900089], abs=5e-9)


def test_gradients() -> None:
    rng, gaussian = np.random.default_rng(0), filled(2, 3)
    student, teacher = rng.standard_normal((2, 2, 2, 2)), rng.standard_normal((2, 3, 2, 2))
    scale = gaussian.scale.detach().numpy().copy()
    leaf = torch.tensor(student, requires_grad=True)
    loss = gaussian.loss(leaf, torch.tensor(teacher))
    close(loss.item(), by_hand(gaussian, student, teacher, scale))
    to_map, to_scale = torch.autograd.grad(loss, (leaf, gaussian.scale))
    close(to_map.numpy(), numeric_gradient(lambda s: by_hand(gaussian, s, teacher, scale), student, h=1e-3), 1e-5)
    close(to_scale.numpy(), numeric_gradient(lambda a: by_hand(gaussian, student, teacher, a), scale), 1e-6)


def test_a_large_scale_and_half_precision() -> None:
    gaussian = Gaussian(3, 5)
    with torch.no_grad():
        gaussian.scale[0] = 90.0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = gaussian.loss(torch.tensor(S8, dtype=torch.bfloat16), torch.tensor(T8, dtype=torch.bfloat16))
    assert loss.dtype == torch.float32 and torch.isfinite(loss)


@pytest.mark.parametrize(
    ("pair", "numbers"),
    [
        ("resnet56-resnet20", 16_240),
        ("resnet32x4-resnet8x4", 258_496),
        ("wrn_40_2-wrn_16_2", 64_736),
        ("wrn_40_2-wrn_40_1", 53_984),
        ("vgg13-vgg8", 1_820_032),
    ],
)
def test_what_it_trains(pair: str, numbers: int) -> None:
    teacher, student = map(zoo.build_meta, pair.split("-"))
    params = reference.settings("vid", {"ce_weight": 1.0, "vid_weight": 1.0})
    with torch.device("meta"):
        made = methods.get("vid")(params, student, teacher, None)
    assert zoo.count_parameters(made) == numbers
    assert {name for name, _ in made.named_parameters() if "scale" in name} == {
        f"levels.{k}.scale" for k in range(len(made.levels))
    }
