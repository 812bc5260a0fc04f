"""Where a result comes from: versions, device, commit, source of the method. Recorded, never part of the run id."""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import json
import platform
import socket
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import torch

import methods

SNAPSHOT = "snapshot.json"  # beside a copy of the code: the commit it was made from


def provenance(method: str, device: torch.device, threads: int) -> dict[str, Any]:
    """A JSON-ready record. `method_sha256` is of the source file of the method's class ("" for a checkpoint)."""
    commit, dirty = code_version()
    return {
        "versions": _versions(),
        "device": device_name(device),
        "threads": threads if device.type == "cpu" else None,
        "host": socket.gethostname(),
        "git_commit": commit,
        "git_dirty": dirty,
        "method_sha256": _source_sha256(method),
    }


def device_name(device: torch.device) -> str:
    """The device as a person knows it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _cpu_name()


@cache
def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)
    return model or platform.processor() or platform.machine()


@cache
def _versions() -> dict[str, str]:
    # Asked by name: importing torchvision would cost every worker a second that most runs do not need.
    torchvision = importlib.metadata.version("torchvision")
    return {"python": platform.python_version(), "torch": str(torch.__version__), "torchvision": torchvision}


@cache
def code_version() -> tuple[str | None, bool | None]:
    """Commit of the code that runs, and whether tracked files differ from it; (None, None) outside a checkout."""
    folder = Path(__file__).parent
    try:
        said = json.loads((folder.parent / SNAPSHOT).read_bytes())
        return said["git_commit"], said["git_dirty"]
    except FileNotFoundError:
        pass

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", folder, *arguments], check=True, capture_output=True, text=True).stdout

    try:
        if Path(git("rev-parse", "--show-toplevel").strip()) != folder.parent.resolve():
            return None, None  # installed somewhere inside another project's checkout
        return git("rev-parse", "HEAD").strip(), bool(git("status", "--porcelain", "--untracked-files=no").strip())
    except (OSError, subprocess.CalledProcessError):
        return None, None


@cache
def _source_sha256(method: str) -> str:
    if method not in methods.names():
        return ""
    source = inspect.getsourcefile(methods.get(method))
    return hashlib.sha256(Path(source).read_bytes()).hexdigest() if source else ""
