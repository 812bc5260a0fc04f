"""The code as it was at submission: jobs import a copy, so that editing the project does not reach what waits."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from pathlib import Path

from bench.surroundings.version import SNAPSHOT, code_version

ROOT = Path(__file__).parents[2]
PARTS = ("bench", "jobs", "methods", "zoo", "reproduce.py", "pyproject.toml")


def take(out: Path) -> Path:
    """Copy the project's code to `OUT/code/<hash12>/`, named by its content and commit, if it is not there yet."""
    commit, dirty = code_version()
    version = json.dumps({"git_commit": commit, "git_dirty": dirty})
    contents = {name: (ROOT / name).read_bytes() for name in _files()}
    hashed = hashlib.sha256(version.encode())
    for name, content in contents.items():
        hashed.update(f"\0{name}\0{len(content)}\0".encode() + content)
    folder = out.resolve() / "code" / hashed.hexdigest()[:12]
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        for name, content in [*contents.items(), (SNAPSHOT, version.encode())]:
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        os.rename(temporary, folder)
    except OSError:
        if not folder.is_dir():  # somebody else has just made the same one
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _files() -> list[str]:
    found = []
    for part in PARTS:
        path = ROOT / part
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        found += [file.relative_to(ROOT) for file in files]
    return sorted(file.as_posix() for file in found if not any(p.startswith((".", "__pycache__")) for p in file.parts))
