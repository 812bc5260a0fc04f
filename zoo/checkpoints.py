"""Loading published weights where they fit, and only there: every way the field wraps them, and none by guessing.

A file may hold several sets of weights, each under keys of its own and behind prefixes of the trainer's wrappers
(`module.`, `_orig_mod.`, `model.`, `student.`, ... and stacks of these). No list of such keys is complete, so none is
used: a set is taken where it has exactly the names and shapes of the wanted network behind some prefix.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zoo import formats
from zoo.errors import BadInput
from zoo.formats import SAVE, Inert
from zoo.matching import COUNTER, Fit, describe, distinct, fits_of, is_plain, misfit, some, unwrapped
from zoo.outputs import Net

DEEPEST = 4  # how many keys lead to a set of weights at most
REUSED = ("projector.0.weight", "frozen.weight")  # what a `zoo.reused.Reused` has beside its student
LONGEST = 20  # of a list, such as (state dict, epoch), how much is looked at
NEAR = 0.5  # points of accuracy between what a file claims and what it gives that other devices and rounding explain


@dataclass(frozen=True)
class Source:
    """Where in a file the weights of a network were."""

    part: str  # the keys that lead to them and the prefix of their names, "" for a plain state dict
    left_out: tuple[str, ...]  # names beside them that the network has no place for
    claims: tuple[str, float] | None  # the accuracy that the file states: its key, and the value in percent

    def __str__(self) -> str:
        taken = f"weights under {self.part}" if self.part else "a plain state dict"
        return taken + (f", without {some(list(self.left_out))}" if self.left_out else "")

    def compared(self, top1: float) -> str:
        """What the file claims beside the `top1` it gives, in percent; "" where it claims nothing."""
        if self.claims is None:
            return ""
        key, claimed = self.claims
        line = f"its file says {key} {claimed:.2f}, it gives {top1:.2f}"
        if abs(claimed - top1) <= NEAR:
            return line
        why = "the best of another epoch, other" if "best" in key.lower() else "other"
        off = f"{abs(claimed - top1):.2f} {'less' if top1 < claimed else 'more'}"
        return f"{line}, {off}: {why} weights, data or normalisation"

    def disagrees(self, top1: float) -> bool:
        """Whether the file claims another accuracy than the `top1` it gives."""
        return self.claims is not None and abs(self.claims[1] - top1) > NEAR


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The one state dict in a file: finite tensors on the CPU, without the wrappers' prefixes.

    Raises BadInput for a file that is absent, damaged, harmful, or holds no or several sets of weights.
    """
    parts = _parts(path)
    if len(parts) > 1:
        raise BadInput(
            f"{path} holds several state dicts ({', '.join(parts)}): save the right one alone, with"
            f" python -m zoo.extract {path} {next(iter(parts))} NEW"
        )
    state = next(iter(parts.values()))
    _check_finite(path, state)
    return unwrapped(state)


def load_weights(net: Net, path: str | os.PathLike[str]) -> Source:
    """Fill `net` from the weights in a checkpoint file whose names and shapes are exactly its own.

    Only BatchNorm's num_batches_tracked may be absent, and then starts at 0. Raises BadInput for any other
    file, naming what differs and whose weights they are, and leaves `net` as it was.
    """
    content = formats.read(path)
    parts = _parts(path, content)
    own = net.state_dict()
    fits = distinct(fits_of(own, parts))
    if not fits:
        raise BadInput(f"{path} does not fit {net.arch}: {misfit(net, parts)}")
    if len(fits) > 1:
        raise BadInput(
            f"{path} holds {len(fits)} different sets of weights that fit {net.arch}"
            f" ({', '.join(fit.part or 'the outermost' for fit in fits)}): save the right one alone, with"
            f" python -m zoo.extract {path} {fits[0].part or fits[1].part} NEW"
        )
    (fit,) = fits
    if set(REUSED) <= set(fit.left_out):
        raise BadInput(
            f"{path} holds a {net.arch} that predicts with its teacher's classifier (SimKD) and whose own was never "
            "trained: read the whole network with zoo.load"
        )
    _check_finite(path, fit.weights)
    _check_input(path, parts, fit)
    counters = {key: torch.zeros_like(value) for key, value in own.items() if key.endswith(COUNTER)}
    net.load_state_dict({**counters, **fit.weights})
    return Source(fit.part, fit.left_out, claimed(content))


def claimed(content: Any) -> tuple[str, float] | None:
    """The test accuracy that stands beside weights, if any: its key, and the value in percent.

    One of these weights is preferred to the best so far, which may be of another epoch. Up to 1 it is a fraction,
    but for files of this project, which say percent (`zoo.trained`).
    """
    own = content.get("network") if _is_map(content) else None
    if _is_map(own) and "build" in own:
        return ("top1", float(own["top1"])) if isinstance(own.get("top1"), int | float) else None
    found = {}
    groups = [content, *(value for value in content.values() if isinstance(value, Mapping))] if _is_map(content) else []
    for group in groups:
        for key, value in group.items():
            words = re.findall(r"[a-z]+@?\d*|\d+", str(key).lower())
            value = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if is_number and 0 < value <= 100 and _names_accuracy(words):
                found.setdefault(str(key), 100 * value if value <= 1 else float(value))
    return min(found.items(), key=lambda item: "best" in item[0].lower(), default=None)


def sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes as 64 hexadecimal digits, read in pieces; BadInput if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    except OSError as error:
        raise formats.unreadable(path, error) from error
    return digest.hexdigest()


def parts_of(path: str | os.PathLike[str]) -> dict[str, dict[str, Tensor]]:
    """Every set of weights in a file, under the keys that lead to it ("" is the outermost); BadInput if none."""
    return _parts(path)


def _names_accuracy(words: list[str]) -> bool:
    accuracy = {"acc", "accuracy", "acc1", "acc@1", "top1", "top@1", "prec1", "prec@1", "precision1", "accs"}
    other = {"train", "training", "top5", "acc5", "acc@5", "prec5", "prec@5", "top@5", "5", "loss", "epoch", "teacher"}
    return bool(accuracy & set(words)) and not other & set(words)


def _is_map(value: Any) -> bool:
    return isinstance(value, Mapping)


def _parts(path: str | os.PathLike[str], content: Any = None) -> dict[str, dict[str, Tensor]]:
    content = formats.read(path) if content is None else content
    parts = dict(_walk(content, ()))
    if not parts and not isinstance(content, Mapping | Inert):
        raise BadInput(f"{path} holds a {describe(content)}, not a state dict: save one with {SAVE}")
    # A loose tensor beside the weights, such as RepDistiller's accuracy, is no set of weights.
    large = {part: state for part, state in parts.items() if len(state) > 1} or parts
    if not large:
        held = ", ".join(f"{key!r}, a {describe(value)}" for key, value in list(_items(content))[:3])
        raise BadInput(f"{path} holds no weights ({held or 'it is empty'}): save a state dict with {SAVE}")
    return large


def _items(content: Any) -> Iterator[tuple[Any, Any]]:
    return iter((content.state if isinstance(content, Inert) and _is_map(content.state) else content or {}).items())


def _walk(value: Any, keys: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every mapping of names to tensors inside `value`, pickled modules included, optimisers left out."""
    if isinstance(value, Inert):
        if module := formats.of_module(value):
            yield "/".join(keys), module
            return
        value = value.state
    if isinstance(value, list | tuple):
        loose = enumerate(value[:LONGEST])  # without the tensors, which have no names there
        value = {str(position): inner for position, inner in loose if not isinstance(inner, Tensor)}
    if not _is_map(value) or len(keys) > DEEPEST or "param_groups" in value:
        return
    if own := formats.tensors(value):
        yield "/".join(keys), own
    for key, inner in value.items():
        if isinstance(key, str) and isinstance(inner, Mapping | list | tuple | Inert):
            yield from _walk(inner, (*keys, key))


def _check_finite(path: str | os.PathLike[str], state: Mapping[str, Tensor]) -> None:
    odd = [key for key, value in state.items() if not is_plain(value)]
    if odd:
        raise BadInput(
            f"{path} holds {odd[0]!r}, a {describe(state[odd[0]])}, where a dense tensor is expected: save a state"
            f" dict of such with {SAVE}"
        )
    broken = [key for key, value in state.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise BadInput(
            f"{path} holds NaN or infinity in {some(broken)}: its training diverged or the file is damaged,"
            " take another checkpoint"
        )


def _check_input(path: str | os.PathLike[str], parts: Mapping[str, Mapping[str, Tensor]], fit: Fit) -> None:
    """Refuse a network behind a normalisation of its own: here it would see other inputs than it learned from."""
    own = [
        name
        for name in fit.left_out
        if name.split(".")[-1] in ("mean", "std", "mu", "sigma")
        and any(state[name].numel() == 3 for state in parts.values() if name in state)
    ]
    if own:
        raise BadInput(
            f"{path} normalises its inputs itself ({some(own)}), and here they are normalised as in RepDistiller:"
            " take a network trained on those"
        )
