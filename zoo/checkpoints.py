"""Reading published weights without running anything a file holds, and loading them only where they fit."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.errors import BadInput
from zoo.outputs import Net
from zoo.registry import architectures, build_meta

# Where the field keeps the state dict: RepDistiller and mdistiller, SSKD, others; ReviewKD saves it bare.
WRAPPERS = ("model", "state_dict", "net")
# Files written before PyTorch 0.4.1 lack this counter, which no network of the zoo reads.
COUNTER = "num_batches_tracked"
SAVE = "torch.save(net.state_dict(), NEW)"
# Other repositories' names for a layer of the zoo: SSKD has the linear layer of MobileNetV2 bare.
RENAMED = {"mobilenetv2": {"classifier.weight": "classifier.0.weight", "classifier.bias": "classifier.0.bias"}}
HEAD_BIASES = ("fc.bias", "classifier.bias", "classifier.0.bias", "linear.bias")  # of whatever network


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The state dict in a checkpoint file: finite tensors on the CPU, under the names of a bare network.

    Takes a state dict, bare or under "model", "state_dict" or "net", with or without DataParallel's `module.`
    prefix. Raises BadInput for a file that is absent, damaged, holds code, or anything but weights.
    """
    state = _unwrap(path, _load(path))
    if not state:
        raise BadInput(f"{path} holds an empty state dict: save it again with {SAVE}")
    for key, value in state.items():
        if not isinstance(key, str) or not _is_plain_tensor(value):
            raise BadInput(
                f"{path} holds {key!r}, a {_describe(value)}, where a named dense tensor is expected: save a"
                f" state dict, bare or under one of the keys {', '.join(WRAPPERS)}"
            )
    if any(key.startswith(("module.student.", "student.")) for key in state):
        raise BadInput(
            f"{path} holds a whole distiller (keys module.student.* and others), not one network: take"
            " mdistiller's student_best or student_latest from the same folder"
        )
    broken = [key for key, value in state.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise BadInput(
            f"{path} holds NaN or infinity in {_some(broken)}: its training diverged or the file is damaged,"
            " take another checkpoint"
        )
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return {key: value.detach() for key, value in state.items()}


def load_weights(net: Net, path: str | os.PathLike[str]) -> None:
    """Fill `net` from a checkpoint file whose names and shapes are exactly its own, or those of `RENAMED`.

    Only BatchNorm's num_batches_tracked may be absent, and then starts at 0. Raises BadInput for any other
    file, naming what differs and whose weights they are, and leaves `net` as it was.
    """
    read = read_checkpoint(path)
    state, own = _renamed(net.arch, read), net.state_dict()
    differences = _differences(own, state)
    if differences:
        raise BadInput(f"{path} does not fit {net.arch}: {_misfit(net, read, differences)}")
    counters = {key: torch.zeros_like(value) for key, value in own.items() if key.endswith(COUNTER)}
    net.load_state_dict({**counters, **state})


def sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes as 64 hexadecimal digits, read in pieces; BadInput if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    except OSError as error:
        raise _unreadable(path, error) from error
    return digest.hexdigest()


def _load(path: str | os.PathLike[str]) -> Any:
    try:
        file = open(path, "rb")
    except OSError as error:
        raise _unreadable(path, error) from error
    with file:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns of odd pickles, which are refused below anyway
                return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged files raise half a dozen types, all of them a fault of the file
            code = re.search(r"GLOBAL ([\w.]+)", str(error))
            if code:
                raise BadInput(
                    f"{path} holds code ({code[1]}), which is never run here: if you trust its source,"
                    " re-save it as a plain state dict (for RepDistiller's *_last.pth:"
                    ' torch.save(torch.load(OLD, weights_only=False)["model"], NEW))'
                ) from error
            raise BadInput(
                f"{path} is no PyTorch checkpoint of plain weights, or is damaged or cut short: fetch it"
                f" again, or re-save it as a plain state dict with {SAVE}"
            ) from error


def _unwrap(path: str | os.PathLike[str], content: Any) -> dict[Any, Any]:
    if not isinstance(content, Mapping):
        raise BadInput(f"{path} holds a {_describe(content)}, not a state dict: save one with {SAVE}")
    wrapped = [key for key in WRAPPERS if isinstance(content.get(key), Mapping)]
    if len(wrapped) > 1:
        raise BadInput(f"{path} holds several state dicts ({', '.join(wrapped)}): save the right one alone")
    return dict(content[wrapped[0]] if wrapped else content)


def _is_plain_tensor(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def _describe(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"tensor ({value.device.type}, {value.dtype}, {value.layout})".replace("torch.", "")


def _differences(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """What keeps `state` from being loaded into a network whose state dict is `own`, a phrase per kind."""
    missing = [key for key in own if key not in state and not key.endswith(COUNTER)]
    unexpected = [key for key in state if key not in own]
    misshaped = [
        f"{key} {_shape(state[key])} instead of {_shape(own[key])}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": misshaped}
    return [f"{len(names)} {kind} ({_some(names)})" for kind, names in kinds.items() if names]


def _renamed(arch: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` under the zoo's names; what would meet a name that is there already keeps its own."""
    names = {old: new for old, new in RENAMED.get(arch, {}).items() if new not in state}
    return {names.get(key, key): value for key, value in state.items()}


def _misfit(net: Net, state: Mapping[str, Tensor], differences: list[str]) -> str:
    """Why the weights are not of `net`, and whose they are if the zoo knows."""
    listed = "; ".join(differences)
    bias = next((state[key] for key in HEAD_BIASES if key in state), None)
    classes = len(bias) if bias is not None and bias.ndim == 1 else 0
    known = architectures() if classes else ()
    fits = [arch for arch in known if not _differences(build_meta(arch, classes).state_dict(), _renamed(arch, state))]
    if not fits:
        return f"{listed}: no architecture of the zoo has these weights, check where the file comes from"
    wanted = net.head.out_features
    count = "" if classes == wanted else f" with {classes} classes instead of {wanted}"
    if net.arch in fits:
        return f"it is {net.arch}{count}: take weights trained on {wanted} classes ({listed})"
    return f"this looks like {fits[0]}{count}: name that architecture or another file ({listed})"


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _unreadable(path: str | os.PathLike[str], error: OSError) -> BadInput:
    return BadInput(f"{path} cannot be read ({error.strerror}): give the path of a checkpoint file")
