"""What a run trained, as a network that is ready to be used: `zoo.load("results/runs/<run id>")`.

A run's weights.pt is `{"model": state dict, "network": what it is}`. The second part is plain values (JSON): `build`,
which says how the network is made, and the fields of `About`. Files written before it had one are read with the
run's result.json beside them, published checkpoints by what the project knows of them (`zoo.published`).
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo import formats, published, registry
from zoo.checkpoints import load_weights
from zoo.errors import BadInput
from zoo.inputs import INPUTS, Channels
from zoo.outputs import Net
from zoo.reused import Reused

MODEL, NETWORK = "model", "network"  # the keys of weights.pt
WEIGHTS, RESULT = "weights.pt", "result.json"
State = Mapping[str, Tensor]


@dataclass(frozen=True)
class About:
    """What a trained network is, and what its images are.

    Images go in as (B, 3, side, side), pixels in 0..1 normalised as (pixel - mean) / std by channel; `normalise` does
    that. `top1` is its accuracy in percent on the test set of `dataset` after the last epoch. `run_id` is "" for a
    published checkpoint. What an old file does not tell is None.
    """

    arch: str
    classes: int | None
    side: int | None
    mean: Channels | None
    std: Channels | None
    run_id: str
    dataset: str | None = None
    top1: float | None = None

    def normalise(self, images: Tensor) -> Tensor:
        """Images (B, 3, side, side), uint8 or floating point in 0..1, as the network takes them: float32."""
        if self.mean is None or self.std is None:
            raise BadInput(
                f"{self.run_id or self.arch}: the normalisation of its images was measured on them and is not in its "
                "file: give (pixel - mean) / std yourself"
            )
        pixels = images.float() if images.is_floating_point() else images.float() / 255
        mean, std = (pixels.new_tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std


# How a network is made from its `build`, by kind: (build, state dict, file) -> the network with these weights. A kind
# that joins here is told apart in `build_of`.
def _from_zoo(build: Mapping[str, Any], state: State, path: Path) -> nn.Module:
    if build["arch"] not in registry.architectures():
        raise BadInput(
            f'{path} is of "{build["arch"]}", a network that a grid brought along: load it with bench.outside.load'
        )
    net = registry.build(build["arch"], build["classes"], build["side"])
    load_weights(net, path)
    return net


def _reused(build: Mapping[str, Any], state: State, path: Path) -> nn.Module:
    try:
        return Reused.rebuilt(build["arch"], state)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        raise BadInput(f"{path} does not hold a whole {build['arch']} with its teacher's classifier ({why})") from None


def _deployed(build: Mapping[str, Any], state: State, path: Path) -> nn.Module:
    raise BadInput(
        f"{path} holds a network that only its method's code makes ({build['arch']}): make it there, and give it "
        f'torch.load("{path}")["{MODEL}"]'
    )


KINDS: dict[str, Callable[[Mapping[str, Any], State, Path], nn.Module]] = {
    "zoo": _from_zoo,
    "reused": _reused,
    "deployed": _deployed,
}


def build_of(net: nn.Module) -> dict[str, Any]:
    """How `net` is made, as plain values: what `build` is in a file of weights.

    What a method of one's own deploys may be any module, of which the class alone is known.
    """
    if isinstance(net, Net):
        kind = "reused" if isinstance(net, Reused) else "zoo"
        return {"kind": kind, "arch": net.arch, "classes": net.head.out_features, "side": net.side}
    return {"kind": "deployed", "arch": type(net).__name__, "classes": None, "side": None}


def contents(net: nn.Module, **about: Any) -> dict[str, Any]:
    """What weights.pt holds: the state dict on the CPU, and what the network is. `about`: the other fields of About."""
    build = build_of(net)
    said = About(**{name: build[name] for name in ("arch", "classes", "side")}, **about)
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(said).items()}
    state = {name: value.cpu() for name, value in net.state_dict().items()}
    return {MODEL: state, NETWORK: {"build": build, **plain}}


def load(path: str | os.PathLike[str]) -> nn.Module:
    """The network of a run (its folder or its weights.pt) or of a known published checkpoint: on the CPU, in eval mode.

    `net.about` is an `About`. Images (B, 3, side, side), normalised as it says, give logits (B, classes):
    `net(net.about.normalise(pixels))`. Where the method deploys another network than the student alone (SimKD), that
    one comes. Raises BadInput, in one line with the remedy, for anything that is no finished run with its weights.
    """
    given = Path(path).expanduser()
    file = _weights_of(given) if given.is_dir() else given
    if not file.exists():
        raise BadInput(_not_there(given))
    content = formats.read(file)
    build, about = _told(content, file)
    return network(file, build, content, about)


def network(file: Path, build: Mapping[str, Any], content: Any = None, about: About | None = None) -> nn.Module:
    """The network that a file of weights holds, in eval mode: of the kind that the file says, and else as in `build`.

    Torch's random numbers are left as they were. BadInput where its weights are not those of `build`.
    """
    content = formats.read(file) if content is None else content
    state, build = _mapping(content, MODEL), {**_mapping(_mapping(content, NETWORK), "build"), **build}
    # Files written before they said what they are: SimKD's have its teacher's classifier.
    kind = build.get("kind") or ("reused" if "frozen.weight" in state else "zoo")
    make = KINDS.get(kind)
    if make is None:
        raise BadInput(
            f'{file} is a network of kind "{kind}", which is not known here ({", ".join(KINDS)}): read it with the'
            " version of the project that wrote it"
        )
    try:
        with torch.random.fork_rng(devices=[]):
            net = make(build, state, file)
    except (KeyError, TypeError) as error:
        raise BadInput(f"{file} does not say how its network is made ({error}): fetch or train it again") from None
    net.about = about
    return net.eval()


def _told(content: Any, file: Path) -> tuple[Mapping[str, Any], About]:
    """How the network of a file is made, and what it is: from the file, its run's result, or the published list."""
    own = _mapping(content, NETWORK)
    if build := _mapping(own, "build"):
        values = {field.name: own.get(field.name) for field in fields(About)}
        for name in ("mean", "std"):
            values[name] = tuple(values[name]) if isinstance(values[name], list | tuple) else None
        return build, About(**values)
    about = _by_result(content, file) or _by_list(file)
    if about is None:
        raise BadInput(
            f"{file} does not say which network it is of, and no {RESULT} stands beside it: make it with"
            " net = zoo.build(ARCH, CLASSES, SIDE), and fill it with zoo.load_weights(net, FILE)"
        )
    return {"arch": about.arch, "classes": about.classes, "side": about.side}, about


def _mapping(content: Any, key: str) -> Mapping[str, Any]:
    """The mapping under a key; an empty one for anything else."""
    found = content.get(key) if isinstance(content, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _by_result(content: Any, file: Path) -> About | None:
    """What the result of an older run says of the weights beside it."""
    place = file.with_name(RESULT)
    if not place.is_file():
        return None
    try:
        result = json.loads(place.read_bytes())
        config, data = result["config"], result["config"]["data"]
        known = INPUTS.get(data["dataset"])
        mean, std = (data.get(name) or getattr(known, name, None) for name in ("mean", "std"))
        return About(
            config["student"],
            _classes(content[MODEL]),
            data.get("side") or known.side,
            tuple(mean) if mean else None,
            tuple(std) if std else None,
            result["run_id"],
            data["dataset"],
            result["metrics"]["top1_last"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        raise BadInput(
            f"{place} does not say what {file.name} beside it is of ({type(error).__name__}: {error}): make the network"
            " with zoo.build(ARCH, CLASSES, SIDE), and fill it with zoo.load_weights(net, FILE)"
        ) from None


def _classes(state: State) -> int:
    """The rows of the classifier, the one linear layer that predicts."""
    if "frozen.weight" in state:
        return len(state["frozen.weight"])
    return next(len(value) for value in state.values() if value.ndim == 2)


def _by_list(file: Path) -> About | None:
    entry = published.identified(file)
    if entry is None:
        return None
    images = INPUTS[published.DATASET]
    return About(entry.arch, 100, images.side, images.mean, images.std, "", published.DATASET, entry.top1)


def _weights_of(folder: Path) -> Path:
    """The weights in the folder of a finished run."""
    if (folder / "runs").is_dir():
        runs = sorted(path.parent.name for path in folder.glob(f"runs/*/{WEIGHTS}"))
        remedy = (
            f"give one of its runs, for example {folder / 'runs' / runs[0]}" if runs else "no run in it has weights"
        )
        raise BadInput(f"{folder} is a results folder, not one run: {remedy}")
    if (folder / RESULT).is_file():
        if (folder / WEIGHTS).is_file():
            return folder / WEIGHTS
        raise BadInput(
            f"{folder} has a result and no {WEIGHTS} (kept results go without): take the folder that the run was made"
            " in, or train it again there"
        )
    if (folder / "error.json").is_file():
        raise BadInput(f"{folder} is a run that failed: see its error.json, and try it again with --retry-failed")
    if (folder / "config.json").is_file() or (folder / "last.pt").is_file():
        raise BadInput(f"{folder} is a run that is not finished: give the command that started it again, which goes on")
    raise BadInput(f"{folder} is no run's folder, it has no {RESULT}: give results/runs/<run id>, or its {WEIGHTS}")


def _not_there(path: Path) -> str:
    """Words for a path where nothing is."""
    remedy = "give the folder of a run (results/runs/<run id>) or its weights.pt"
    try:
        near = difflib.get_close_matches(path.name, os.listdir(path.parent), n=1, cutoff=0.7)
    except OSError:
        near = []
    if near:
        remedy = f"did you mean {path.parent / near[0]}?"
    return f"{path} is not there: {remedy}{published.where_to_get(path)}"
