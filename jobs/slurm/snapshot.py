"""The code as it was at submission: jobs import a copy, so that editing the project does not reach what waits."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from bench import store
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
    store.write_folder(folder, {**contents, SNAPSHOT: version.encode()})
    return folder


def _files() -> list[str]:
    found = []
    for part in PARTS:
        path = ROOT / part
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        found += [file.relative_to(ROOT) for file in files]
    return sorted(file.as_posix() for file in found if not any(p.startswith((".", "__pycache__")) for p in file.parts))
