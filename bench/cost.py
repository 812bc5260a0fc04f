"""What a run costs, in operations: the same on every device, known before anything has started."""

from __future__ import annotations

import zoo
from bench.datasets import facts, train_size
from bench.run import Run


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
    """FLOP of the teacher's pass in a training step, which runs that train together have in common."""
    return 2.0 * _macs(run, run.teacher.arch) * _images_a_step(run) if run.teacher else 0.0


def shared_flop(run: Run) -> float:
    """The part of `cost_flop` that is the teacher's pass."""
    return cost_flop(run) * teacher_flop(run) / step_flop(run) if run.train and run.teacher else 0.0


def _images_a_step(run: Run) -> int:
    return run.train.batch * (2 if run.data.views == "paired" else 1)


def steps(run: Run) -> int:
    """Training steps in all epochs."""
    if run.train is None:
        return 0
    images = train_size(run.data) * (2 if run.data.views == "weak+strong" else 1)
    return -(-images // run.train.batch) * run.train.epochs


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
