"""Networks of the benchmark, the features methods distil from, and the loading of published checkpoints."""

import os
import sys

if sys.argv[:1] == ["-m"] and sys.path[0] == os.getcwd() != os.path.dirname(os.path.dirname(os.path.abspath(__file__))):
    del sys.path[0]  # `python -m zoo.extract` looks for nothing in the working directory: see `bench/__init__.py`

from importlib import import_module

from zoo.errors import BadInput, choose

_MODULES = {
    "Net": "outputs",
    "Outputs": "outputs",
    "Shapes": "registry",
    "architectures": "registry",
    "build": "registry",
    "build_meta": "registry",
    "count_macs": "registry",
    "counts": "registry",
    "count_parameters": "registry",
    "load": "trained",
    "load_weights": "checkpoints",
    "read_checkpoint": "checkpoints",
    "sha256": "checkpoints",
    "shapes": "registry",
}

__all__ = ["BadInput", "choose", *_MODULES]


def __getattr__(name: str) -> object:
    """Import the rest when it is first asked for: torch takes seconds, and what needs the errors alone has not them."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value
