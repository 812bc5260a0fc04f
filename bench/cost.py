"""What a run costs, in operations: the same on every device, known before anything has started."""

from __future__ import annotations

import zoo
from bench.data import train_size
from bench.run import Run


def cost_flop(run: Run) -> float:
    """Training cost in FLOP: the teacher forward, the student forward and backward (twice its forward)."""
    if run.train is None:
        return 0.0
    macs = 3 * zoo.count_macs(run.student) + (zoo.count_macs(run.teacher.arch) if run.teacher else 0)
    views = 1 if run.data.views == "weak" else 2
    return 2.0 * macs * train_size(run.data) * views * run.train.epochs
