"""How far a run in hand is: what its claim carries, and `--status` and the live display show."""

from __future__ import annotations

import os
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from bench import cost
from bench.datasets import facts
from bench.experiment import Site
from bench.run import Run
from bench.surroundings.provenance import device_name
from bench.training.evaluate import BATCH, due

LEAST_S = 2.0  # of steps, before they tell a speed
EVALUATION = 0.5  # of its FLOP in steps, before one is measured: no gradients, larger batches
WINDOW_S = 120.0  # the speed is that of so long: a machine gets more or less busy


@dataclass
class Pulse:
    """Steps and batches of evaluation that a process has done, of whichever run: it tells moving from hanging."""

    ticks: int = 0


class Mark(NamedTuple):
    """Where a run was at a time."""

    at_s: float
    steps: int
    evaluations: float  # in steps, by their FLOP


class Meter:
    """How far a run is: takes down each step as it comes, and works out the rest when the heartbeat asks for it.

    On a GPU steps are queued and done later. What was told is certain only where training has waited for the device:
    after an epoch and before a checkpoint (`done_so_far`). The speed there is from one such moment to another.
    """

    def __init__(
        self, run: Run, inherited: dict[str, Any], pulse: Pulse, *, together: int = 1, queued: bool = False
    ) -> None:
        self.epochs = run.train.epochs if run.train else 0
        self.batch = run.train.batch if run.train else 0
        self.run, self.queued = run, queued
        self.together, self.step_flop = together, 1.0
        self.top1 = inherited.get("top1")
        self.place: dict[str, Any] = {}
        # What the last claimant said stands until the first step.
        self.inherited = {name: inherited[name] for name in ("epoch", "epochs", "step", "steps") if name in inherited}
        self.began = self.moved = time.monotonic()
        self.at: tuple[int, int, int] | None = None  # epoch under way, its steps so far and in all
        self.marks: deque[Mark] = deque()
        self.evaluated = 0  # epochs that are through with their evaluation
        self.batches = 0  # of the evaluation under way
        self.epoch_began = self.epoch_ended = 0.0  # the first and the last step of the epoch under way, on a CPU
        self.evaluation = EVALUATION
        self.pulse, self.seen = pulse, 0

    def on_step(self, epoch: int, step: int, steps: int) -> None:
        """Called at every step: no file, no clock but once."""
        before = self.at
        if before is None:  # the heartbeat's thread finds a mark wherever it finds `at`
            # A step's own part and its part of the teacher's pass: an evaluation is so many of them. Not before the
            # first step, when networks that a grid brings are known.
            if self.run.train:
                self.step_flop = cost.student_flop(self.run) + cost.teacher_flop(self.run) / self.together
            self.evaluated, self.epoch_began = epoch - 1, time.monotonic() if step == 1 else 0.0
            self.marks.append(self._mark(epoch, step, steps))
        elif before[0] != epoch:
            self._begin_epoch(steps)
        elif step == steps:
            if before == (epoch, step, steps):
                self.batches += 1
            else:
                self.epoch_ended = time.monotonic()
        self.at = epoch, step, steps
        self.pulse.ticks += 1

    def _begin_epoch(self, steps: int) -> None:
        """The first step of an epoch: what came since the last one's steps was evaluation, of this run and others."""
        now, began, ended = time.monotonic(), self.epoch_began, self.epoch_ended
        by_flop = self._evaluations(self.evaluated) - self._evaluations(self.evaluated - 1)
        if 0 < began < ended and steps > 1 and by_flop and not self.queued:
            self.evaluation = (now - ended) / ((ended - began) / (steps - 1)) / by_flop
        self.epoch_began, self.epoch_ended = now, 0.0

    def on_epoch(self, epoch: int, top1: float | None) -> None:
        """Its evaluation is done, too; `top1` is None where there was none."""
        self.batches, self.evaluated = 0, epoch
        self.top1 = self.top1 if top1 is None else top1
        self.done_so_far()

    def done_so_far(self) -> None:
        """All steps that were told are done."""
        if self.at is not None and self.queued:
            self._remember()

    def measure(self) -> dict[str, Any]:
        """The progress that a claim carries and `--status` shows. `ticks` stands still where the process hangs."""
        now, at, ticks = time.monotonic(), self.at, self.pulse.ticks
        if ticks != self.seen:
            self.moved, self.seen = now, ticks
        known = {"ticks": ticks, "idle_s": round(now - self.moved, 1), "wall_s": round(now - self.began, 1)}
        known["said_at"] = round(time.time(), 1)
        if self.top1 is not None:
            known["top1"] = self.top1
        if at is None or not self.epochs:
            return {**self.inherited, **known, **self.place}
        epoch, step, steps = at
        progress = {"epoch": epoch - 1, "epochs": self.epochs, "step": step, "steps": steps, **known, **self.place}
        if not self.queued:
            self._remember()
        first, last = self.marks[0], self.marks[-1]
        done = self._work(last) - self._work(first)
        if done > 0 and last.at_s - first.at_s >= LEAST_S:
            per_s = done / (last.at_s - first.at_s)
            whole = self.epochs * steps + self.evaluation * self._evaluations(self.epochs)
            progress["images_per_s"] = round(per_s * self.batch, 1)
            progress["whole_s"] = round(whole / per_s, 1)
            progress["left_s"] = round(max(0.0, (whole - self._work(last)) / per_s - (now - last.at_s)), 1)
        return progress

    def _mark(self, epoch: int, step: int, steps: int) -> Mark:
        done = (epoch - 1) * steps + step
        work, batches = self._evaluations(self.evaluated), self.batches
        if batches:
            part = batches / self._batches(self.evaluated + 1)
            work += min(1.0, part) * (self._evaluations(self.evaluated + 1) - work)
        return Mark(time.monotonic(), done, work)

    def _work(self, mark: Mark) -> float:
        """What was done until then, in steps."""
        return mark.steps + self.evaluation * mark.evaluations

    def _evaluations(self, epochs: int) -> float:
        """Those of so many epochs, in steps by their FLOP."""
        return cost.evaluation_flop(self.run, epochs) / self.step_flop if epochs > 0 else 0.0

    def _batches(self, epoch: int) -> int:
        """Those of the evaluation after an epoch."""
        sizes = {"test": facts(self.run.data).test, "val": self.run.data.validation or 0}
        return sum(-(-sizes[part] // BATCH["cuda" if self.queued else "cpu"]) for part in due(self.run, epoch)) or 1

    def _remember(self) -> None:
        marks, mark = self.marks, self._mark(*self.at)
        marks.append(mark)
        while len(marks) > 2 and mark.at_s - marks[1].at_s >= WINDOW_S:
            marks.popleft()


def place(site: Site, together: int) -> dict[str, Any]:
    """Where a run is done, and with how many others; `devices` is its part of what the process has."""
    found: dict[str, Any] = {"device": device_name(site.device), "devices": site.devices / together}
    if site.device.type == "cpu":
        found["threads"] = torch.get_num_threads()
    found |= {name: count for name in ("slots", "together") if (count := getattr(site, name))}
    if site.device.type == "cuda":
        found["gpu"] = os.environ.get("CUDA_VISIBLE_DEVICES") or str(site.device.index or 0)
    return found
