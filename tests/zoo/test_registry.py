"""Names, sizes and costs of the architectures against published figures and closed formulas."""

from __future__ import annotations

import pytest
import torch

import zoo
from zoo.registry import build_meta

# parameters, MACs (millions), convolutions, BatchNorms, state dict entries: measured on the reference
# implementation (mdistiller @a08d46f), 100 classes.
MEASURED = {
    "resnet20": (278_324, 40.82, 21, 21, 128),
    "resnet32": (472_756, 69.13, 33, 33, 200),
    "resnet56": (861_620, 125.75, 57, 57, 344),
    "resnet110": (1_736_564, 253.16, 111, 111, 668),
    "resnet8x4": (1_233_540, 177.07, 10, 10, 62),
    "resnet32x4": (7_433_860, 1083.04, 34, 34, 206),
    "wrn_16_2": (703_284, 101.12, 16, 13, 83),
    "wrn_40_1": (569_780, 83.29, 39, 37, 226),
    "wrn_40_2": (2_255_156, 327.61, 40, 37, 227),
    "vgg8": (3_965_028, 96.19, 5, 5, 37),
    "vgg13": (9_462_180, 284.94, 10, 10, 72),
}


def resnet_cost(depth: int, stem: int, widths: tuple[int, int, int], classes: int) -> tuple[int, int]:
    """Parameters and MACs of a CIFAR ResNet, summed by hand; (weights of a conv) x (its output positions)."""
    n = (depth - 2) // 6
    weights, macs, side, c_in = 27 * stem + 2 * stem, 27 * stem * 32**2, 32, stem
    for stage, c in enumerate(widths):
        side = 32 >> stage
        convs = 9 * c_in * c + (2 * n - 1) * 9 * c * c
        convs += c_in * c if c_in != c else 0
        norms = 2 * c * (2 * n + (c_in != c))
        weights, macs, c_in = weights + convs + norms, macs + convs * side**2, c
    return weights + c_in * classes + classes, macs + c_in * classes


def wrn_cost(depth: int, k: int, classes: int) -> tuple[int, int]:
    """The same for WRN-depth-k: the first norm of a stage has the incoming width, shortcuts have none."""
    n = (depth - 4) // 6
    weights, macs, c_in = 27 * 16, 27 * 16 * 32**2, 16
    for stage in range(3):
        c = 16 * k * 2**stage
        convs = 9 * c_in * c + (2 * n - 1) * 9 * c * c + (c_in * c if c_in != c else 0)
        norms = 2 * (c_in + (2 * n - 1) * c)
        weights, macs, c_in = weights + convs + norms, macs + convs * (32 >> stage) ** 2, c
    return weights + 2 * c_in + c_in * classes + classes, macs + c_in * classes


def vgg_cost(convs: tuple[int, ...], classes: int) -> tuple[int, int]:
    """The same for VGG-BN: every conv has a bias and a norm, sides 32, 16, 8, 4, 4."""
    weights, macs, c_in = 0, 0, 3
    for c, side, count in zip((64, 128, 256, 512, 512), (32, 16, 8, 4, 4), convs, strict=True):
        kernels = 9 * c_in * c + (count - 1) * 9 * c * c
        weights, macs, c_in = weights + kernels + 3 * count * c, macs + kernels * side**2, c
    return weights + c_in * classes + classes, macs + c_in * classes


THIN, X4 = (16, (16, 32, 64)), (32, (64, 128, 256))
COSTS = {
    **{f"resnet{d}": (resnet_cost, (d, *THIN)) for d in (8, 20, 32, 44, 56, 110)},
    **{f"resnet{d}x4": (resnet_cost, (d, *X4)) for d in (8, 32)},
    **{f"wrn_{d}_{k}": (wrn_cost, (d, k)) for d in (16, 40) for k in (1, 2)},
    "vgg8": (vgg_cost, ((1, 1, 1, 1, 1),)),
    "vgg11": (vgg_cost, ((1, 1, 2, 2, 2),)),
    "vgg13": (vgg_cost, ((2, 2, 2, 2, 2),)),
    "vgg16": (vgg_cost, ((2, 2, 3, 3, 3),)),
    "vgg19": (vgg_cost, ((2, 2, 4, 4, 4),)),
}


def test_the_zoo_is_exactly_the_architectures_with_a_formula() -> None:
    assert sorted(zoo.architectures()) == sorted(COSTS)


@pytest.mark.parametrize("classes", [100, 10])
@pytest.mark.parametrize("arch", COSTS)
def test_parameters_and_macs_match_the_closed_formula(arch: str, classes: int) -> None:
    formula, settings = COSTS[arch]
    assert (zoo.count_parameters(build_meta(arch, classes)), zoo.count_macs(arch, classes)) == formula(
        *settings, classes
    )


@pytest.mark.parametrize("arch", MEASURED)
def test_counts_match_the_reference_implementation(arch: str) -> None:
    parameters, mega_macs, convs, norms, entries = MEASURED[arch]
    net = build_meta(arch)
    kinds = [type(module) for module in net.modules()]
    assert zoo.count_parameters(net) == parameters
    assert round(zoo.count_macs(arch) / 1e6, 2) == mega_macs
    assert kinds.count(torch.nn.Conv2d) == convs
    assert kinds.count(torch.nn.BatchNorm2d) == norms
    assert len(net.state_dict()) == entries


@pytest.mark.parametrize(
    ("arch", "features", "pooled"),
    [
        ("resnet20", [(16, 32, 32), (16, 32, 32), (32, 16, 16), (64, 8, 8)], 64),
        ("resnet32x4", [(32, 32, 32), (64, 32, 32), (128, 16, 16), (256, 8, 8)], 256),
        ("wrn_40_1", [(16, 32, 32), (16, 32, 32), (32, 16, 16), (64, 8, 8)], 64),
        ("wrn_16_2", [(16, 32, 32), (32, 32, 32), (64, 16, 16), (128, 8, 8)], 128),
        ("vgg13", [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 4, 4)], 512),
    ],
)
def test_shapes_are_those_of_the_definition(arch: str, features: list, pooled: int) -> None:
    shapes = zoo.shapes(arch)
    assert list(shapes.features) == features
    assert list(shapes.preact) == features[1:]
    assert shapes.last_map == features[-1]
    assert shapes.pooled == pooled


def test_shapes_of_a_net_leave_it_and_the_generator_alone() -> None:
    net = zoo.build("wrn_16_1")
    before = {key: value.clone() for key, value in net.state_dict().items()}
    generator = torch.get_rng_state()
    zoo.registry._probe.cache_clear()
    assert zoo.shapes(net) == zoo.shapes("wrn_16_1")
    assert net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize("arch", ["resnet20", "wrn_40_2", "vgg8"])
def test_build_follows_the_seed_and_remembers_its_name(arch: str) -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(zoo.build(arch).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert zoo.build(arch).arch == arch


def test_an_unknown_architecture_is_refused_with_the_nearest() -> None:
    with pytest.raises(zoo.BadInput, match='did you mean "resnet56"'):
        zoo.build("resnet-55")


@pytest.mark.parametrize("classes", [0, -1, True, 10.0, "100", None])
def test_a_wrong_number_of_classes_is_refused(classes: object) -> None:
    with pytest.raises(zoo.BadInput, match="num_classes"):
        zoo.build("resnet8", classes)
