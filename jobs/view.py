"""What a person is shown while runs are under way, in words: `jobs.progress` makes it, `jobs.display` draws it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """Runs that train together."""

    pair: str
    seed: str
    methods: Sequence[str]
    fraction: float = 0.0
    epoch: str = ""  # as "12.4/240", or what they do before the first step
    top1: str = ""
    images_per_s: str = ""
    left: str = ""


@dataclass(frozen=True)
class View:
    """Everything that is shown at a moment."""

    title: str
    counts: Mapping[str, int]  # of runs by state
    elapsed: str
    left: str  # "about 5m00s"; "" where it is not known
    left_short: str
    fraction: float
    rows: Sequence[Row]
