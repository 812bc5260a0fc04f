"""Which network a set of named tensors is of: exact names and shapes, behind prefixes and under the field's spellings.

Wrappers' prefixes are no list, which could not be complete: a set fits where it has exactly the names and shapes of
the wanted network behind some prefix.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from zoo.outputs import Net
from zoo.registry import ARCHITECTURES, build_meta

# Files written before PyTorch 0.4.1 lack this counter, which no network of the zoo reads.
COUNTER = "num_batches_tracked"
# Left in state dicts by thop (total_*) and torch.optim.swa_utils: they count, and no network computes with them.
COUNTERS = (COUNTER, "total_ops", "total_params", "n_averaged")
# Wrappers that stand anywhere in a name: DataParallel and DDP, torch.compile, FSDP, its checkpointing, DeepSpeed.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
# Other names of one and the same layer. The classifier is the one linear layer that there is; the shortcut of a basic
# block that changes shape is a 1x1 convolution and a BatchNorm whatever its name (kuangliu/pytorch-cifar).
HEADS = ("fc", "linear", "classifier", "classifier.0", "head", "head.fc", "last_linear", "output", "logits")
SHORTCUTS = ("downsample", "shortcut")
TRUNK = "backbone."  # mmpretrain: all but the classifier stands behind it
# Modules that distillation and its trainers hang beside a network, which computes without them.
BESIDE = re.compile(
    r"(proj|proj_head|projec\w*|embed\w*|regress\w*|conv_reg|connector\w*|hint\w*|adapt\w*|teacher\w*|memory\w*|"
    r"contrast\w*|criteri\w*|loss\w*|metric\w*|aux\w*|(train|val|valid|test)_acc\w*)\.",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Fit:
    part: str
    weights: dict[str, Tensor]  # by the network's own names
    left_out: tuple[str, ...]


def unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the names of wrappers, where all names have one in the same place; as it is otherwise."""
    names = {key: key.split(".") for key in state}
    while all(len(words) > 1 and words[0] in WRAPPERS for words in names.values()):
        names = {key: words[1:] for key, words in names.items()}
    return {".".join(words): state[key] for key, words in names.items()}


def fits_of(own: Mapping[str, Tensor], parts: Mapping[str, Mapping[str, Tensor]]) -> Iterator[Fit]:
    """Every set of weights that is exactly that of a network whose state dict is `own`."""
    for keys, state in parts.items():
        for names in _spellings(state):
            found = [fit for rename in _renames(own) for fit in _fit(own, keys, state, names, rename)]
            yield from found
            if found:
                break


def _spellings(state: Mapping[str, Tensor]) -> list[dict[str, str]]:
    """Name to compare -> name in the file: as they are, and with the wrappers inside them left out."""
    plain = {".".join(word for word in key.split(".") if word not in WRAPPERS): key for key in state}
    exact = {key: key for key in state}
    return [exact] if plain == exact or len(plain) < len(state) else [exact, plain]


def _renames(own: Mapping[str, Tensor]) -> list[Callable[[str], str]]:
    """Ways to spell the network's own names, the usual one first."""
    head = next(key.removesuffix(".weight") for key, value in own.items() if value.ndim == 2)
    heads = sorted({*HEADS, head}, key=lambda name: (name != head, name))
    shortcuts = SHORTCUTS if any(".downsample." in key for key in own) else SHORTCUTS[:1]

    def rename(key: str, head_name: str, shortcut: str, trunk: str) -> str:
        if key.startswith(head + "."):
            return f"{head_name}{key.removeprefix(head)}"
        return trunk + key.replace(".downsample.", f".{shortcut}.")

    choices = product(heads, shortcuts, ("", TRUNK))
    return [lambda key, how=how: rename(key, *how) for how in choices]


def _fit(
    own: Mapping[str, Tensor],
    keys: str,
    state: Mapping[str, Tensor],
    names: Mapping[str, str],
    rename: Callable[[str], str],
) -> Iterator[Fit]:
    spelt = {rename(key): key for key in own}
    first = next(iter(spelt))
    needed = [(name, key) for name, key in spelt.items() if not key.endswith(COUNTER)]
    for prefix in sorted((name.removesuffix(first) for name in names if name.endswith(first)), key=len):
        if prefix and not prefix.endswith("."):
            continue
        if any(not _takes(own[key], state.get(names.get(prefix + name, ""))) for name, key in needed):
            continue
        others = [name for name in names if name.removeprefix(prefix) not in spelt and not name.endswith(COUNTERS)]
        if any(name.startswith(prefix) and not BESIDE.match(name.removeprefix(prefix)) for name in others):
            continue  # a larger network, of which this is a part
        weights = {key: state[names[prefix + name]] for name, key in spelt.items() if prefix + name in names}
        yield Fit("/".join(filter(None, (keys, prefix.removesuffix(".")))), weights, tuple(others))
        if not prefix:
            return  # what hangs beside the network itself, such as its teacher, is not meant


def _takes(own: Tensor, given: Tensor | None) -> bool:
    """Whether a weight is of the right shape, and of a kind that can be copied without changing what it says."""
    if given is None or given.shape != own.shape:
        return False
    return is_plain(given) and given.is_floating_point() == own.is_floating_point() and not given.is_complex()


def is_plain(value: Tensor) -> bool:
    return value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized


def distinct(fits: Iterator[Fit]) -> list[Fit]:
    """One of those that hold the same numbers."""
    kept: list[Fit] = []
    for fit in fits:
        if not any(_same(fit.weights, other.weights) for other in kept):
            kept.append(fit)
    return kept


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(
        one[key].dtype == other[key].dtype and torch.equal(one[key], other[key])
        for key in one
        if not key.endswith(COUNTER)
    )


def describe(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"tensor ({value.device.type}, {value.dtype}, {value.layout})".replace("torch.", "")


def _differences(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """What keeps `state` from being loaded into a network whose state dict is `own`, by kind."""
    return {
        "missing": [key for key in own if key not in state and not key.endswith(COUNTER)],
        "unexpected": [key for key in state if key not in own and not key.endswith(COUNTERS)],
        "of another shape": [
            f"{key} {_shape(state[key])} instead of {_shape(own[key])}"
            for key in own
            if key in state and state[key].shape != own[key].shape
        ],
        "of another kind": [
            f"{key} {describe(state[key])}"
            for key in own
            if key in state and state[key].shape == own[key].shape and not _takes(own[key], state[key])
        ],
    }


def _distance(differences: Mapping[str, list[str]]) -> tuple[int, int]:
    of = {kind: len(names) for kind, names in differences.items()}
    return sum(of.values()) - of["unexpected"], of["unexpected"]


def misfit(net: Net, parts: Mapping[str, Mapping[str, Tensor]]) -> str:
    """Why no weights of a file are of `net`, and whose they are if the zoo knows."""
    own = net.state_dict()
    candidates = [candidate for state in parts.values() for candidate in _bare(own, state)]
    differences = min((_differences(own, candidate) for candidate in candidates), key=_distance)
    listed = "; ".join(f"{len(names)} {kind} ({some(names)})" for kind, names in differences.items() if names)
    if differences["missing"] and all(".downsample." in key for key in differences["missing"]):
        if not differences["unexpected"] and not differences["of another shape"]:
            return (
                f"its shortcuts have no weights (option A of He et al.), those of {net.arch} are projections (option"
                f" B, as in RepDistiller): take weights of that kind ({listed})"
            )
    whose = next(_owners(parts), None)
    if whose is None and net.arch not in ARCHITECTURES:
        return _misfit_of_outside(net, differences, listed)
    if whose is None:
        return f"{listed}: no architecture of the zoo has these weights, check where the file comes from"
    arch, classes = whose
    wanted = net.head.out_features
    count = "" if classes == wanted else f" with {classes} classes instead of {wanted}"
    if net.arch == arch:
        return f"it is {net.arch}{count}: take weights trained on {wanted} classes ({listed})"
    return f"this looks like {arch}{count}: name that architecture or another file ({listed})"


def _misfit_of_outside(net: Net, differences: Mapping[str, list[str]], listed: str) -> str:
    """For a network that the zoo does not know: whether all but its classifier fits, as with weights of ImageNet."""
    head = {key for key, value in net.named_parameters() if value is net.head.weight or value is net.head.bias}
    wrong = [name.split()[0] for names in differences.values() for name in names]
    if wrong and set(wrong) <= head and len(wrong) == len(differences["of another shape"]):
        wanted = net.head.out_features
        return f"it is {net.arch} with another number of classes: take weights trained on {wanted} classes ({listed})"
    return f"{listed}: these are not the names that {net.arch} has: rename them, or check where the file comes from"


def _bare(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """`state` behind each of the prefixes that its names of the network's first layer have, for comparison."""
    first = next(iter(own))
    for names in _spellings(state):
        prefixes = {name.removesuffix(first) for name in names if name.endswith(first)} or {""}
        for prefix in prefixes:
            yield {name.removeprefix(prefix): state[key] for name, key in names.items() if name.startswith(prefix)}


def _owners(parts: Mapping[str, Mapping[str, Tensor]]) -> Iterator[tuple[str, int]]:
    """Architectures of the zoo, with a number of classes, that the weights of a file are of."""
    ends = tuple(f"{head}.bias" for head in HEADS)
    biases = [value for state in parts.values() for key, value in state.items() if key.endswith(ends)]
    for classes in sorted({len(bias) for bias in biases if bias.ndim == 1 and len(bias)}):
        for arch in ARCHITECTURES:
            if next(fits_of(build_meta(arch, classes).state_dict(), parts), None):
                yield arch, classes


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
