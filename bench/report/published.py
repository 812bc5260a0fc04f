"""Published top-1 accuracies (published.csv, explained in PUBLISHED.md), looked up by protocol."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bench.cells import Cell

PATH = Path(__file__).with_name("published.csv")
STATISTICS = ("last", "best", "unstated")

# Labels of the rows that published numbers are for. A row of the same method under another label (an ablation, other
# parameters) is another thing, and no number is its own.
LABELS: Mapping[str, str] = {
    "fitnet": "FitNet", "rkd": "RKD", "crd": "CRD", "ofd": "OFD", "reviewkd": "ReviewKD", "kd": "KD", "clkd": "CLKD",
    "dkd": "DKD", "mlkd": "MLKD", "sdd": "SDD", "skd": "SKD", "at": "AT", "sp": "SP", "vid": "VID", "pkt": "PKT",
    "simkd": "SimKD", "cat_kd": "CAT-KD", "dist": "DIST", "nkd": "NKD", "ctkd": "CTKD",
}  # fmt: skip
# (method, label) of rows that are a method with other parameters, by the names that protocols and published.csv have.
ROWS: Mapping[str, tuple[str, str]] = {
    "crd_kd": ("crd", "CRD+KD"), "lskd": ("kd", "KD+LS"), "lskd_dkd": ("dkd", "DKD+LS"),
    "lskd_mlkd": ("mlkd", "MLKD+LS"), "lskd_ctkd": ("ctkd", "CTKD+LS"),
}  # fmt: skip
# Names in published.csv by the labels of rows, which stand for one thing each.
NAMES: Mapping[str, str] = {
    "Teacher": "teacher",
    "Student": "student",
    **{label: name for name, label in LABELS.items()},
    **{label: name for name, (_, label) in ROWS.items()},
}
# What a reader must know about a source as a whole; shown wherever its numbers are.
SOURCE_NOTES: Mapping[str, str] = {
    "Logit Standardization README": (
        "Its temperature and weight were chosen for each pair on test accuracy; "
        "the rows that it sets them beside were copied from tables of the last epoch."
    ),
    "StreamLined README, May 2025": (
        "The source's heading says ImageNet and its last student VGG13; both are slips of its authors: "
        "the data set is CIFAR-100 and the student VGG8 (bench/PUBLISHED.md)."
    ),
}


@dataclass(frozen=True)
class Published:
    """One printed number; `top1` in percent. `seeds` is None where the source does not say."""

    source: str
    protocol: str
    statistic: str
    seeds: int | None
    teacher: str
    student: str
    method: str  # name of a method or of a row of `ROWS`, or "teacher" / "student" for the baselines
    top1: float
    confirmed: bool
    note: str

    @property
    def key(self) -> tuple[str, str, str]:
        return self.teacher, self.student, self.method


@dataclass(frozen=True)
class Reference:
    """All numbers of one source under one protocol that are the same statistic."""

    source: str
    protocol: str
    statistic: str
    numbers: Mapping[tuple[str, str, str], Published]

    @property
    def name(self) -> str:
        """Unambiguous even where one source prints both statistics."""
        return f"{self.source} ({self.statistic_words})"

    @property
    def statistic_words(self) -> str:
        return "statistic not stated" if self.statistic == "unstated" else f"{self.statistic} epoch"

    def find(self, cell: Cell) -> Published | None:
        """The number for a cell; baselines go by role, as a teacher may be trained or read from a file."""
        row = cell.role
        if cell.role == "method":
            row = NAMES.get(cell.label)
            if row is None or ROWS.get(row, (row,))[0] != cell.method:
                return None
        return self.numbers.get((cell.teacher, cell.student, row))


@cache
def load() -> tuple[Published, ...]:
    """Every row of published.csv, in its order."""
    texts = ("source", "protocol", "statistic", "teacher", "student", "method")
    with PATH.open(encoding="utf-8", newline="") as file:
        return tuple(
            Published(
                **{name: row[name] for name in texts},
                seeds=int(row["seeds"]) if row["seeds"] else None,
                top1=float(row["top1"]),
                confirmed=row["confirmed"] == "yes",
                note=row["note"],
            )
            for row in csv.DictReader(file)
        )


def protocols() -> tuple[str, ...]:
    """Protocols that have published numbers, sorted."""
    return tuple(sorted({number.protocol for number in load()}))


def references(protocol: str) -> tuple[Reference, ...]:
    """The sources that publish numbers under exactly this protocol, in the order of the file."""
    return tuple(reference for reference in all_references() if reference.protocol == protocol)


@cache
def all_references() -> tuple[Reference, ...]:
    """Every source, once for each protocol and statistic it has numbers of, in the order of the file."""
    by_source: dict[tuple[str, str, str], dict[tuple[str, str, str], Published]] = {}
    for number in load():
        by_source.setdefault((number.source, number.protocol, number.statistic), {})[number.key] = number
    return tuple(Reference(*key, numbers) for key, numbers in by_source.items())
