"""Facts as lines of JSON, on the disk the moment they are known: `{"fact": KIND, "at_s": SECONDS, ...}`."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

FILE = "facts.jsonl"
SHOWN = 200  # characters of a fact on the terminal

Fact = dict[str, Any]


class Facts:
    """A file that facts are added to, by several processes in turn. `began` is when the program did (`time.time`)."""

    def __init__(self, folder: Path, began: float) -> None:
        self.path, self.began = folder / FILE, began

    def add(self, kind: str, **values: Any) -> None:
        """Write a fact through to the disk, and its beginning to the terminal."""
        line = json.dumps({"fact": kind, "at_s": round(time.time() - self.began, 1), **values})
        with open(self.path, "a+b") as file:
            file.seek(max(0, file.tell() - 1))
            torn = file.read(1) not in (b"", b"\n")  # what a process wrote that was killed
            file.write(b"\n" * torn + line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        print(line[:SHOWN], flush=True)

    def read(self) -> list[Fact]:
        """All facts so far."""
        return read(self.path)


def read(path: Path) -> list[Fact]:
    """The facts of a file, oldest first; a line that was cut short, or is none, is left out."""
    if not path.exists():
        return []
    found = []
    for line in path.read_bytes().splitlines():
        try:
            fact = json.loads(line)
        except ValueError:
            continue
        if isinstance(fact, dict) and isinstance(fact.get("fact"), str):
            found.append(fact)
    return found


def one_line(error: BaseException) -> str:
    """What went wrong, short enough for a fact."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}".removesuffix(": ")
