"""Curves of finished runs as {epoch: value}, whatever state their files are in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from bench.report.frames import CellSummary, done, number, whole

Read = Callable[[str], list[dict[str, Any]]]  # the rows of a run's curve by its id
Series = dict[int, float]
MOST_SEEDS = 10  # of a cell that are drawn over epochs: more take long to read, and show no more
KEPT = ("top1", "val_top1", "lr")  # quantities that several parts of a report draw for every run


class Curves:
    """Curves by run id, each file read once. Of a thousand runs only what is drawn for all of them stays in memory."""

    def __init__(self, read: Read) -> None:
        self.read = read
        self._known: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}

    def top1(self, run_id: str) -> Series:
        """On the images that the run was watched on: validation images where it has them, else the test set.

        The one look at the test set after the last of several epochs is no curve.
        """
        found = self._series(run_id, "val_top1") or self._series(run_id, "top1")
        return found if len(found) > 1 or len(self._series(run_id, "lr")) < 2 else {}

    def part(self, run_ids: Iterable[str]) -> str:
        """What `top1` of these runs was measured on, in words."""
        kinds = {bool(self._series(run_id, "val_top1")) for run_id in run_ids}
        return {(False,): "Test", (True,): "Validation"}.get(tuple(kinds), "Test or validation")

    def lr(self, run_id: str) -> Series:
        return self._series(run_id, "lr")

    def _series(self, run_id: str, key: str) -> Series:
        if run_id not in self._known:
            rows = self.read(run_id)
            found = {name: series(rows, name) for name in KEPT}
            self._known[run_id] = {
                name: (np.array(list(points), dtype=np.int64), np.array(list(points.values()), dtype=np.float64))
                for name, points in found.items()
            }
        epochs, values = self._known[run_id][key]
        return dict(zip(epochs.tolist(), values.tolist(), strict=True))


def series(rows: Sequence[dict[str, Any]], key: str) -> Series:
    """One quantity over rising epochs; epochs without a finite number for it are left out."""
    found = {whole(row.get("epoch")): number(row.get(key)) for row in rows}
    return {
        epoch: float(found[epoch])
        for epoch in sorted(epoch for epoch in found if epoch is not None)
        if found[epoch] is not None
    }


def of_runs(summary: CellSummary, get: Callable[[str], Series]) -> list[Series]:
    """What `get` finds for the first finished runs of a cell, MOST_SEEDS at most; runs without it are left out."""
    return [points for run in done(summary.runs)[:MOST_SEEDS] if (points := get(run.run_id))]


def mean(found: Iterable[Series]) -> Series:
    """Over runs, at the epochs that all of them have."""
    found = list(found)
    common = sorted(set.intersection(*(set(points) for points in found))) if found else []
    return {epoch: math.fsum(points[epoch] for points in found) / len(found) for epoch in common}
