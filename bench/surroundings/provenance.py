"""Where a result comes from: versions, device, commit, source of the method. Recorded, never part of the run id."""

from __future__ import annotations

import importlib.metadata
import platform
import socket
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

import methods
from bench.surroundings import sources
from bench.surroundings.version import code_version


def provenance(
    method: str, device: torch.device, threads: int, packages: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """A JSON-ready record. `packages` holds versions of what else takes part.

    `method_source` is the digest of what this process has imported (`sources`), `method_sha256` that of the method's
    whole file then; both "" for a checkpoint.
    """
    commit, dirty = code_version()
    source = _sources().get(method)
    return {
        "versions": {**(packages or {}), **_versions()},
        "device": device_name(device),
        "threads": threads if device.type == "cpu" else None,
        "host": socket.gethostname(),
        "git_commit": commit,
        "git_dirty": dirty,
        "method_source": source_of(method),
        "method_sha256": source.sha256 if source else "",
    }


def source_of(method: str) -> str:
    """The digest of a method's source as this process has imported it; "" where it has no file of `methods`."""
    source = _sources().get(method)
    return source.digest if source else ""


def device_name(device: torch.device) -> str:
    """The device as a person knows it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _cpu_name()


@cache
def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
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
def _sources() -> dict[str, sources.Source]:
    return sources.of_methods(methods.FILES)
