"""Networks of the benchmark, the features methods distil from, and the loading of published checkpoints."""

from zoo.checkpoints import load_weights, read_checkpoint, sha256
from zoo.errors import BadInput, choose
from zoo.outputs import Net, Outputs
from zoo.registry import Shapes, architectures, build, build_meta, count_macs, count_parameters, shapes

__all__ = [
    "BadInput",
    "Net",
    "Outputs",
    "Shapes",
    "architectures",
    "build",
    "build_meta",
    "choose",
    "count_macs",
    "count_parameters",
    "load_weights",
    "read_checkpoint",
    "sha256",
    "shapes",
]
