"""What the report is given: the cells a grid wants, and how far each of their runs has come. Plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

STATES = ("done", "failed", "blocked", "running", "interrupted", "missing")


@dataclass(frozen=True)
class Cell:
    """One cell of the results table: a row (method or baseline) on one teacher-student pair, over seeds."""

    label: str  # what the table prints, e.g. "ReviewKD"
    role: str  # "teacher", "student" (trained from labels alone) or "method"
    group: str  # "" for the two baselines, else "feature", "logit" or "ours"
    method: str  # registered method name; "vanilla" or "checkpoint" for the baselines
    teacher: str  # architecture
    student: str  # architecture
    run_ids: tuple[str, ...]  # one per wanted seed


@dataclass(frozen=True)
class TableSpec:
    """The layout of one table: cells in printing order (rows as they first appear, columns as in `pairs`)."""

    grid: str
    protocol: str
    protocol_version: int
    pairs: tuple[tuple[str, str], ...]  # (teacher, student) architectures
    cells: tuple[Cell, ...]
    asked: tuple[str, ...] = field(default=(), kw_only=True)  # words of the command line that ask for this grid


@dataclass(frozen=True)
class RunStatus:
    """State of one run as its files tell it; `result` is the parsed result.json of a done run, else None."""

    run_id: str
    state: str  # one of STATES
    reason: str  # one line a person can act on; "" for done
    result: dict[str, Any] | None = None
    source: str = ""  # of its method beside today's, as bench.surroundings.sources says it; "" for the same
