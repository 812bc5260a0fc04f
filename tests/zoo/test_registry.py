"""Names, sizes and costs of the architectures against published figures and closed formulas."""

from __future__ import annotations

import pytest
import torch

import zoo
from zoo.registry import build_meta

# parameters, MACs (millions), convolutions, BatchNorms, state dict entries: measured on the reference
# implementations (mdistiller @a08d46f, RepDistiller @b84f547), 100 classes.
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
    "resnet50": (23_705_252, 1298.01, 53, 53, 320),
    "mobilenetv2": (812_836, 6.52, 53, 53, 320),
    "shufflenetv1": (949_258, 38.69, 49, 49, 296),
    "shufflenetv2": (1_355_528, 44.50, 56, 56, 338),
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


def of_layers(layers: list[tuple[int, int, int, int, int]], classes: int) -> tuple[int, int]:
    """Of convolutions (inputs of an output channel, out, kernel, side of the output map, count), a norm behind each."""
    weights = sum(count * (size**2 * c_in * c + 2 * c) for c_in, c, size, _, count in layers)
    macs = sum(count * size**2 * c_in * c * side**2 for c_in, c, size, side, count in layers)
    width = layers[-1][1]
    return weights + width * classes + classes, macs + width * classes


def resnet50_cost(classes: int) -> tuple[int, int]:
    """The same for bottlenecks; the first 1x1 of a stage still sees the larger map."""
    layers, c_in = [(3, 64, 3, 32, 1)], 64
    for width, blocks, side, before in ((64, 3, 32, 32), (128, 4, 16, 32), (256, 6, 8, 16), (512, 3, 4, 8)):
        layers += [(c_in, 4 * width, 1, side, 1), (c_in, width, 1, before, 1)]
        layers += [(4 * width, width, 1, side, blocks - 1), (width, width, 3, side, blocks)]
        layers += [(width, 4 * width, 1, side, blocks)]
        c_in = 4 * width
    return of_layers(layers, classes)


def mobilenetv2_cost(classes: int) -> tuple[int, int]:
    """The same for inverted residuals, expansion 6 but for the first."""
    layers, c_in, before = [(3, 16, 3, 16, 1)], 16, 16
    for t, c, blocks, side in (
        (1, 8, 1, 16), (6, 12, 2, 16), (6, 16, 3, 8), (6, 32, 4, 4), (6, 48, 3, 4), (6, 80, 3, 2), (6, 160, 1, 2),
    ):  # fmt: skip
        layers += [(c_in, t * c_in, 1, before, 1), (1, t * c_in, 3, side, 1), (t * c_in, c, 1, side, 1)]
        layers += [(c, t * c, 1, side, blocks - 1), (1, t * c, 3, side, blocks - 1), (t * c, c, 1, side, blocks - 1)]
        c_in, before = c, side
    return of_layers([*layers, (160, 1280, 1, 2, 1)], classes)


def shufflenetv1_cost(classes: int) -> tuple[int, int]:
    """The same for three groups and a quarter of the width inside; pooled shortcuts cost nothing."""
    layers, c_in = [(3, 24, 1, 32, 1)], 24
    for c, blocks, side in ((240, 4, 16), (480, 8, 8), (960, 4, 4)):
        branch, groups = c - c_in, 1 if c_in == 24 else 3
        layers += [(c_in // groups, branch // 4, 1, 2 * side, 1), (1, branch // 4, 3, side, 1)]
        layers += [(branch // 4 // 3, branch, 1, side, 1)]
        layers += [(c // 3, c // 4, 1, side, blocks - 1), (1, c // 4, 3, side, blocks - 1)]
        layers += [(c // 4 // 3, c, 1, side, blocks - 1)]
        c_in = c
    return of_layers(layers, classes)


def shufflenetv2_cost(classes: int) -> tuple[int, int]:
    """The same for blocks that leave half of the channels alone."""
    layers, c_in = [(3, 24, 1, 32, 1)], 24
    for c, blocks, side in ((116, 4, 16), (232, 8, 8), (464, 4, 4)):
        half = c // 2
        layers += [(1, c_in, 3, side, 1), (c_in, half, 1, side, 1)]
        layers += [(c_in, half, 1, 2 * side, 1), (1, half, 3, side, 1), (half, half, 1, side, 1)]
        layers += [(half, half, 1, side, 2 * (blocks - 1)), (1, half, 3, side, blocks - 1)]
        c_in = c
    return of_layers([*layers, (464, 1024, 1, 4, 1)], classes)


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
    "resnet50": (resnet50_cost, ()),
    "mobilenetv2": (mobilenetv2_cost, ()),
    "shufflenetv1": (shufflenetv1_cost, ()),
    "shufflenetv2": (shufflenetv2_cost, ()),
}
EXACT = {  # MACs, all digits: as above
    "resnet50": 1_298_014_208,
    "mobilenetv2": 6_523_648,
    "shufflenetv1": 38_691_456,
    "shufflenetv2": 44_504_448,
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
    assert zoo.count_macs(arch) == EXACT.get(arch, zoo.count_macs(arch))
    assert kinds.count(torch.nn.Conv2d) == convs
    assert kinds.count(torch.nn.BatchNorm2d) == norms
    assert len(net.state_dict()) == entries


def test_counts_of_resnet20_by_hand() -> None:
    """A stem, 18 convolutions and 2 projections, a BatchNorm behind each, a linear layer."""
    counts = zoo.counts("resnet20")
    assert counts.layers == 2 * (1 + 18 + 2) + 1
    # stem and 6 of 16 x 32 x 32; 6 of 32 x 16 x 16, and 6 of 64 x 8 x 8, with a projection each; twice for BatchNorm
    assert counts.outputs == 2 * (7 * 16 * 32**2 + 7 * 32 * 16**2 + 7 * 64 * 8**2) + 100
    assert counts.stored == 278_324 + 2 * 784 + 21  # weights, running statistics, steps counted


LAST_MAPS = {"mobilenetv2": (1280, 2, 2), "shufflenetv2": (1024, 4, 4)}  # the others': their last features


@pytest.mark.parametrize(
    ("arch", "features", "pooled"),
    [
        ("resnet20", [(16, 32, 32), (16, 32, 32), (32, 16, 16), (64, 8, 8)], 64),
        ("resnet32x4", [(32, 32, 32), (64, 32, 32), (128, 16, 16), (256, 8, 8)], 256),
        ("wrn_40_1", [(16, 32, 32), (16, 32, 32), (32, 16, 16), (64, 8, 8)], 64),
        ("wrn_16_2", [(16, 32, 32), (32, 32, 32), (64, 16, 16), (128, 8, 8)], 128),
        ("vgg13", [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 4, 4)], 512),
        ("resnet50", [(64, 32, 32), (256, 32, 32), (512, 16, 16), (1024, 8, 8), (2048, 4, 4)], 2048),
        ("mobilenetv2", [(16, 16, 16), (12, 16, 16), (16, 8, 8), (48, 4, 4), (160, 2, 2)], 1280),
        ("shufflenetv1", [(24, 32, 32), (240, 16, 16), (480, 8, 8), (960, 4, 4)], 960),
        ("shufflenetv2", [(24, 32, 32), (116, 16, 16), (232, 8, 8), (464, 4, 4)], 1024),
    ],
)
def test_shapes_are_those_of_the_definition(arch: str, features: list, pooled: int) -> None:
    shapes = zoo.shapes(arch)
    assert list(shapes.features) == features
    assert list(shapes.preact) == features[1:]
    assert shapes.last_map == LAST_MAPS.get(arch, features[-1])
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


@pytest.mark.parametrize("arch", ["resnet20", "wrn_40_2", "vgg8", "mobilenetv2", "shufflenetv1"])
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
