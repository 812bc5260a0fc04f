"""Which code this is: version, commit, and what it stands on. Imports nothing that takes long."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import re
from functools import cache
from pathlib import Path

import bench
from bench.surroundings import machine

SNAPSHOT = "snapshot.json"  # beside a copy of the code: the commit it was made from
PARTS = ("torch", "torchvision", "pydantic", "submitit")  # whose versions a report of a fault needs


def described() -> str:
    """One line for a person: the version, its commit in a checkout, and those of Python and what results rest on."""
    commit, dirty = code_version()
    of = f" (commit {commit[:10]}{', changed since' if dirty else ''})" if commit else ""
    return f"kd-bench {bench.__version__}{of}, Python {platform.python_version()}, {', '.join(map(_installed, PARTS))}"


def _installed(name: str) -> str:
    """Asked by name, as importing torch takes seconds. Its own file says which CUDA it is built for, too."""
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"no {name}"
    spec = importlib.util.find_spec(name)
    said = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    if said and said.is_file() and (found := re.search(r"^__version__ = '([^']+)'", said.read_text(), re.M)):
        version = found[1]
    return f"{name} {version}"


@cache
def code_version() -> tuple[str | None, bool | None]:
    """Commit of the code that runs, and whether tracked files differ from it, as it is at the first call.

    (None, None) outside a checkout; None for what git cannot tell in time.
    """
    folder = Path(__file__).parents[1]
    try:
        said = json.loads((folder.parent / SNAPSHOT).read_bytes())
        return said["git_commit"], said["git_dirty"]
    except FileNotFoundError:
        pass
    top = machine.git(folder, "rev-parse", "--show-toplevel")
    if top is None or Path(top) != folder.parent.resolve():
        return None, None  # installed somewhere inside another project's checkout
    changes = machine.git(folder, "status", "--porcelain", "--untracked-files=no")
    return machine.git(folder, "rev-parse", "HEAD"), None if changes is None else bool(changes)
