"""A trained network for other programs: `python -m bench.export RUN --onnx model.onnx --torchscript model.pt`.

RUN is the folder of a finished run, its weights.pt, or a published checkpoint that is known (docs/weights.md). The file
takes images (B, 3, side, side) of any batch size B, called `images`, and gives `logits` (B, classes). With --normalise
pixels in 0..1 go in, else images that are normalised already. It is loaded again, and its logits on random images are
held against those of the network: a file that differs is not kept. Exit status: 0 written, 1 it differs, 2 the request
is wrong.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from bench import outside
from bench.surroundings import paths
from bench.surroundings.commandline import DONE, INCOMPLETE, Parser, explain, refuse
from zoo.errors import BadInput, in_a_line
from zoo.trained import About

MOST = 1e-4  # of the largest logit, between the network and the file: float32 in another order of summation
BATCHES = (1, 2, 7)  # that the file is tried with
INPUT, OUTPUT = "images", "logits"
NEEDED = ("onnx", "onnxscript", "onnxruntime")  # by torch to write ONNX, and to try what it wrote
FACTS = "kd-bench.json"  # in a TorchScript file, and the key in an ONNX one: what the network is

Run = Callable[[Tensor], Tensor]  # images -> logits


class WithPixels(nn.Module):
    """A network behind its normalisation: pixels (B, 3, side, side) in 0..1 go in."""

    def __init__(self, net: nn.Module, about: About) -> None:
        super().__init__()
        if about.mean is None or about.std is None:
            about.normalise(torch.zeros(1, 3, 1, 1))  # says why
        self.net = net
        self.register_buffer("mean", torch.tensor(about.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(about.std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.net((images - self.mean) / self.std)


def write_onnx(net: nn.Module, example: Tensor, facts: str, path: Path) -> None:
    """One file, by torch's exporter of torch.export graphs; batch size is left open."""
    program = torch.onnx.export(
        net,
        (example,),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=[INPUT],
        output_names=[OUTPUT],
        verbose=False,
    )
    program.model.metadata_props[FACTS] = facts
    program.save(path, external_data=False)


def read_onnx(path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


def write_torchscript(net: nn.Module, example: Tensor, facts: str, path: Path) -> None:
    """A trace, which needs neither this project nor Python."""
    torch.jit.save(torch.jit.trace(net, example, check_trace=False), str(path), _extra_files={FACTS: facts})


def read_torchscript(path: Path) -> Run:
    return torch.jit.load(str(path), map_location="cpu")


FORMATS = {"onnx": (write_onnx, read_onnx), "torchscript": (write_torchscript, read_torchscript)}


class Differs(Exception):
    """The file gives other logits than the network; one line."""


@torch.no_grad()
def export(net: nn.Module, kind: str, path: Path, *, normalise: bool = False) -> float:
    """Write a network of `zoo.load` to a new file; how far the file's logits are off, relative to the largest.

    `kind` is one of FORMATS. With `normalise` the file takes pixels in 0..1.

    Raises BadInput where packages are missing, something is at `path` or torch cannot export it, and Differs beyond
    MOST: no file is left.
    """
    about: About = net.about
    if kind == "onnx" and (missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]):
        raise BadInput(f"--onnx needs {' and '.join(missing)}: pip install {' '.join(NEEDED)}")
    if path.exists():
        raise BadInput(f"{path} is there already: remove it or give another name")
    if not path.absolute().parent.is_dir():
        raise BadInput(f"{path}: there is no folder {path.absolute().parent}: make it, or give another name")
    whole = (WithPixels(net, about) if normalise else net).eval()
    write, read = FORMATS[kind]
    random = torch.Generator().manual_seed(0)

    def images(batch: int) -> Tensor:
        drawn = torch.rand(batch, 3, about.side, about.side, generator=random)
        return drawn if normalise else (drawn - 0.5) / 0.25

    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    facts = json.dumps({**asdict(about), "takes": "pixels in 0..1" if normalise else "normalised images"})
    try:
        with _quiet():
            whole(images(2))  # what a network of a grid's own learns of itself on its first images, no exporter sees
            try:
                write(whole, images(2), facts, temporary)
            except Exception as error:  # whatever an exporter raises on what it does not know
                other = next(one for one in FORMATS if one != kind)
                raise BadInput(
                    f"{path} was not written: torch cannot export {about.arch} so ({in_a_line(error, {})}); "
                    f"try --{other} FILE, or another version of torch"
                ) from None
            again = read(temporary)
            largest = max(_difference(whole(some), again(some)) for some in map(images, BATCHES))
        if not largest <= MOST:
            raise Differs(
                f"{path} was not written: its logits differ from the network's by {largest:.1e} of the largest, more "
                f"than {MOST:.0e}: try another version of torch or of its exporter"
            )
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return largest


def _difference(wanted: Tensor, found: Tensor) -> float:
    """The largest difference over the largest value; infinite where shapes or kinds of numbers differ."""
    if wanted.shape != found.shape or not torch.isfinite(found).all():
        return float("inf")
    return float((wanted - found).abs().max() / wanted.abs().max())


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters warn of their own future, and of checks of shapes that hold in every batch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = Parser(prog="python -m bench.export", description=__doc__)
    parser.add_argument(
        "run", type=paths.option, metavar="RUN", help="folder of a finished run, its weights.pt, or a known checkpoint"
    )
    for kind, name in (("onnx", "ONNX"), ("torchscript", "TorchScript")):
        parser.add_argument(f"--{kind}", type=paths.option, metavar="FILE", help=f"write {name} to this new file")
    parser.add_argument("--normalise", action="store_true", help="include the normalisation: pixels in 0..1 go in")
    args = parser.parse_args(arguments)
    wanted = {kind: path for kind in FORMATS if (path := getattr(args, kind))}
    if not wanted:
        return refuse(f"nothing to write: give {' or '.join(f'--{kind} FILE' for kind in FORMATS)}")
    try:
        net = outside.load(args.run)
        for kind, path in wanted.items():
            largest = export(net, kind, path, normalise=args.normalise)
            takes = "pixels in 0..1" if args.normalise else "normalised images"
            about = net.about
            print(
                f"{path}: {about.arch}, {about.classes} classes, {takes} (B, 3, {about.side}, {about.side}); logits "
                f"differ from the network's by at most {largest:.1e} of the largest"
            )
    except Differs as error:
        print(f"error: {error}", file=sys.stderr)
        return INCOMPLETE
    except BadInput as error:
        return refuse(str(error))
    except OSError as error:
        return refuse(explain(error, args.run))
    return DONE


if __name__ == "__main__":
    sys.exit(main())
