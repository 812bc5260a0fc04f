"""The architectures by name, and what can be said of one without training it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from zoo import mobilenetv2, resnet, resnet50, shufflenet, vgg, wrn
from zoo.errors import BadInput, choose
from zoo.outputs import CHANNELS, SIDE, SIDE_STEP, Net
from zoo.outside import Outside, Recipe

# name -> constructor that still wants num_classes; a new family joins here.
ARCHITECTURES: dict[str, Callable[..., Net]] = {
    **resnet.ARCHITECTURES,
    **wrn.ARCHITECTURES,
    **vgg.ARCHITECTURES,
    **resnet50.ARCHITECTURES,
    **mobilenetv2.ARCHITECTURES,
    **shufflenet.ARCHITECTURES,
}
_OUTSIDE: dict[str, Recipe] = {}  # networks from elsewhere that are known at present


@dataclass(frozen=True)
class Shapes:
    """(channels, height, width) of the maps in Outputs for one image, and the width of `pooled`."""

    features: tuple[tuple[int, int, int], ...]
    preact: tuple[tuple[int, int, int], ...]
    last_map: tuple[int, int, int]
    pooled: int
    # Of a network from elsewhere: what it does not have, and the line that says so to who asks for it.
    lacks: Mapping[str, str] = field(default_factory=dict)

    def __getattribute__(self, name: str) -> Any:
        lacks = object.__getattribute__(self, "lacks") if name in ("features", "preact", "last_map") else ()
        if name in lacks:
            raise BadInput(lacks[name])
        return object.__getattribute__(self, name)


@dataclass(frozen=True)
class Counts:
    """What a network comes to, for one image. Layers are convolutions, BatchNorms and linear layers."""

    macs: int  # multiply-accumulates of convolutions and linear layers; FLOPs are twice that
    outputs: int  # numbers that its layers put out
    layers: int
    stored: int  # numbers in a file of its weights, BatchNorm's statistics included


def architectures() -> tuple[str, ...]:
    """Every name that `build` takes."""
    return (*ARCHITECTURES, *_OUTSIDE)


def bring(recipes: Mapping[str, Recipe]) -> None:
    """Make networks from elsewhere known by these names, and no others; none may be that of an architecture."""
    clash = sorted(recipes.keys() & ARCHITECTURES.keys())
    if clash:
        raise BadInput(f'network "{clash[0]}": an architecture of the project has this name: give it another')
    _OUTSIDE.clear()
    _OUTSIDE.update(recipes)


def recipe(arch: str) -> Recipe | None:
    """Of a network from elsewhere; None for the project's own architectures."""
    return _OUTSIDE.get(arch)


def build(arch: str, num_classes: int = 100, side: int = SIDE) -> Net:
    """A freshly initialised network for images (3, side, side), in train mode; its weights follow from torch's global
    seed, whatever the side.

    Raises BadInput for an unknown name, a number of classes below 1 or a side that its stages cannot halve.
    """
    arch = choose("architecture", arch, architectures())
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise BadInput(f"num_classes {num_classes!r} is not a number of classes: give an integer from 1 up")
    if isinstance(side, bool) or not isinstance(side, int) or side < SIDE or side % SIDE_STEP:
        raise BadInput(f"images of side {side!r}: give a multiple of {SIDE_STEP} from {SIDE} up")
    if arch in _OUTSIDE:
        return _OUTSIDE[arch](num_classes, side)
    net = ARCHITECTURES[arch](num_classes=num_classes)
    net.arch, net.side = arch, side
    return net


def build_meta(arch: str, num_classes: int = 100, side: int = SIDE) -> Net:
    """The network without its numbers: shapes only, in eval mode; draws nothing from any generator."""
    if arch in _OUTSIDE:  # what foreign code does without numbers nobody knows: it is made, and emptied
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            return build(arch, num_classes, side).to("meta").eval()
    with torch.device("meta"):
        return build(arch, num_classes, side).eval()


def shapes(net: Net | str) -> Shapes:
    """Shapes of all that `net`, or the architecture of that name at 32x32, gives; `net` itself is not run."""
    if isinstance(net, Outside):
        return _of_outside(net._recipe, net.head.out_features, net.side)
    if isinstance(net, str) and net in _OUTSIDE:
        return _of_outside(_OUTSIDE[net], 100, SIDE)
    return _probe(net, 100, SIDE)[0] if isinstance(net, str) else _probe(net.arch, 100, net.side)[0]


def count_macs(arch: str, num_classes: int = 100, side: int = SIDE) -> int:
    """Multiply-accumulates of the convolutions and the linear layer for one image; FLOPs are twice that."""
    return counts(arch, num_classes, side).macs


def counts(arch: str, num_classes: int = 100, side: int = SIDE) -> Counts:
    """What the architecture comes to, for one image (3, side, side)."""
    if arch in _OUTSIDE:
        facts = _OUTSIDE[arch].facts(num_classes, side)
        return Counts(facts.macs, facts.outputs, facts.layers, facts.stored)
    return _probe(arch, num_classes, side)[1]


def count_parameters(net: nn.Module) -> int:
    """Number of trainable and frozen weights; BatchNorm's running statistics are buffers and not counted."""
    return sum(parameter.numel() for parameter in net.parameters())


def _of_outside(made_by: Recipe, num_classes: int, side: int) -> Shapes:
    facts, lacks = made_by.facts(num_classes, side), {}
    if not made_by.features:
        lacks = {"features": made_by.no_features, "preact": made_by.no_features}
    if facts.last_map is None:
        lacks["last_map"] = f"{made_by.name} has no map whose mean goes into its classifier, as this method needs"
    return Shapes(facts.features, facts.preact, facts.last_map, facts.pooled, lacks)


@cache
@torch.no_grad()
def _probe(arch: str, num_classes: int, side: int) -> tuple[Shapes, Counts]:
    """Shapes and counts, from one image through the network on the CPU with all weights 0.

    On the meta device torch would import its compiler for BatchNorm, which takes seconds, as for tensors made like
    those of another device. No generator is drawn from.
    """
    net = build_meta(arch, num_classes, side)
    macs, outputs = 0, []

    def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs
        outputs.append(output.numel())
        if not isinstance(layer, nn.BatchNorm2d):
            macs += output.numel() * layer.weight[0].numel()

    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
            module.register_forward_hook(add)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several would wait for each other most of the time, for zeros and on a busy machine
    try:
        kinds = {name: (tensor.shape, tensor.dtype) for name, tensor in net.state_dict().items()}
        zeros = {name: torch.zeros(shape, dtype=dtype, device="cpu") for name, (shape, dtype) in kinds.items()}
        net.load_state_dict(zeros, assign=True)
        out = net.outputs(torch.zeros(1, CHANNELS, side, side, device="cpu"))  # also inside `with torch.device("meta")`
    finally:
        torch.set_num_threads(threads)
    shapes = Shapes(
        features=tuple(_chw(f) for f in out.features),
        preact=tuple(_chw(f) for f in out.preact),
        last_map=_chw(out.last_map),
        pooled=out.pooled.shape[1],
    )
    stored = sum(shape.numel() for shape, _ in kinds.values())
    return shapes, Counts(macs, sum(outputs), len(outputs), stored)


def _chw(batch: Tensor) -> tuple[int, int, int]:
    return tuple(batch.shape[1:])
