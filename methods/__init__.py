"""Distillation methods, one short file each. Every module in this folder is imported, so a new file is a new method."""

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import zoo  # noqa: F401 (first, as it imports torch: the files below are read and imported within milliseconds)


def _read() -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))}


_before = _read()

from methods.contract import (  # noqa: E402
    GROUPS,
    Batch,
    Method,
    Progress,
    TrainSet,
    all_names,
    apart,
    bring,
    get,
    names,
    names_here,
    register,
)
from methods.settings import Settings, check  # noqa: E402

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

# The source that this process runs, by module name: the files may change while it runs. One that changed while it was
# being imported is left out.
FILES = {name: text for name, text in _read().items() if _before.get(name) == text}

__all__ = [
    "FILES",
    "GROUPS",
    "Batch",
    "Method",
    "Progress",
    "Settings",
    "TrainSet",
    "all_names",
    "apart",
    "bring",
    "check",
    "get",
    "names",
    "names_here",
    "register",
]
