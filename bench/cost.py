"""What a run costs, in operations: the same on every device, known before anything has started."""

from __future__ import annotations

import zoo
from bench.datasets import facts, train_size
from bench.run import Run

CURVE_BYTES, FILES_BYTES = 500, 20_000  # of an epoch in result.json and the log; of a run's other files


def cost_flop(run: Run) -> float:
    """Training cost in FLOP: the teacher forward, the student forward and backward (twice its forward)."""
    if run.train is None:
        return 0.0
    views = 1 if run.data.views == "weak" else 2
    return _image_flop(run) * train_size(run.data) * views * run.train.epochs


def step_flop(run: Run) -> float:
    """FLOP of one training step, as `cost_flop` counts."""
    return student_flop(run) + teacher_flop(run)


def student_flop(run: Run) -> float:
    """FLOP of a training step without its teacher: the student's forward and backward pass."""
    return 6.0 * _macs(run, run.student) * _images_a_step(run)


def teacher_flop(run: Run) -> float:
    """FLOP of the teacher's pass in a training step, over both views where there are two."""
    return 2.0 * _macs(run, run.teacher.arch) * _images_a_step(run) if run.teacher else 0.0


def shared_flop(run: Run) -> float:
    """The part of `cost_flop` that is the teacher's pass and that runs which train together have in common."""
    return cost_flop(run) * shared_step_flop(run) / step_flop(run) if run.train and run.teacher else 0.0


def shared_step_flop(run: Run) -> float:
    """FLOP of the teacher's pass that all have in common: over the first view, a second one is its run's own."""
    return teacher_flop(run) / (2 if run.data.views == "paired" else 1)


def _images_a_step(run: Run) -> int:
    return run.train.batch * (2 if run.data.views == "paired" else 1)


def steps(run: Run) -> int:
    """Training steps in all epochs."""
    if run.train is None:
        return 0
    images = train_size(run.data) * (2 if run.data.views == "weak+strong" else 1)
    return -(-images // run.train.batch) * run.train.epochs


def kept_bytes(run: Run) -> int:
    """Bytes of the folder of a finished run: its student's weights, its curve, and what else is written of it."""
    known = facts(run.data)
    stored = zoo.counts(run.student, known.classes, known.side).stored
    return 4 * stored + CURVE_BYTES * (run.train.epochs if run.train else 1) + FILES_BYTES


def evaluation_flop(run: Run, epochs: int | None = None) -> float:
    """FLOP of the student forward over all images that it is evaluated on in its first `epochs`; None: in all."""
    last, test = run.train.epochs if run.train else 1, facts(run.data).test
    epochs = last if epochs is None else epochs
    if run.train is None or run.data.validation is None:
        images = test * epochs
    else:
        images = run.data.validation * epochs + (test if epochs >= last else 0)
    return 2.0 * _macs(run, run.student) * images


def _image_flop(run: Run) -> float:
    return 2.0 * (3 * _macs(run, run.student) + (_macs(run, run.teacher.arch) if run.teacher else 0))


def _macs(run: Run, arch: str) -> int:
    known = facts(run.data)
    return zoo.count_macs(arch, known.classes, known.side)
