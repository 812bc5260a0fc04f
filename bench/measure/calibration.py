"""What runs cost in seconds of a device, told from a few training steps on random images before anything has started.

Runs of one kind (they differ in the seed, or in settings that change numbers and not work) take equal steps, and one
of them is measured, the teacher's pass apart: runs that train together have it in common. What the time does not
suffice for has the speed, in FLOP/s, of the measured kinds of the same teacher and student, else of all of them.
Augmentation and files are not in it, nor what slots of one machine take from each other.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from bench.cost import cost_flop, evaluation_flop, step_flop, steps, student_flop, teacher_flop
from bench.measure.step_cost import now, step, trainer_on_noise
from bench.run import Run
from bench.surroundings.provenance import device_name
from bench.training.capture import captured, own_stream
from bench.training.devices import set_precision

CALIBRATION_S = 20.0  # for all kinds together; the first one measured may take longer
WARM_UP = {"cpu": 1, "cuda": 10}  # steps before the clock counts
TURN = {"cpu": 1, "cuda": 10}  # steps between two looks at the clock: a GPU is not waited for after each
TURNS = 2  # the shortest counts: what else runs on the machine only ever adds
ENOUGH_S = 0.5  # on a CPU no turn after that: a long step hardly warms up, another kind is worth more than a repeat

Kind = tuple[str | int | None, ...]


@dataclass(frozen=True)
class Calibration:
    """Seconds of one CPU core, or of a whole GPU, that runs take from start to end, each in its cohort."""

    seconds: Mapping[str, float]  # by run id; empty where no step could be measured
    device: str  # its name
    cuda: bool
    kinds: int  # of training among the runs
    finished: int  # of them known from finished runs
    measured: int  # of them measured here
    took_s: float


def kind(run: Run) -> Kind:
    """What the work of a training step depends on."""
    teacher = run.teacher.arch if run.teacher else None
    return run.method, teacher, run.student, run.train.batch, run.data.views, run.precision


def calibrate(
    runs: Mapping[str, Run],
    finished: Iterable[tuple[Run, Mapping[str, Any]]],
    device: torch.device,
    cohorts: Sequence[Sequence[str]] = (),
) -> Calibration:
    """Measure steps of `runs` for at most CALIBRATION_S, the kinds with the most FLOP to do first.

    `finished` holds runs and their results: those of this device tell of their kinds, which are not measured then.
    `cohorts` says which runs, by id, train together; the others are alone.
    """
    started = time.monotonic()
    examples, flop = {}, defaultdict(float)
    for run in runs.values():
        if run.train is not None:  # a checkpoint is evaluated only
            examples.setdefault(kind(run), run)
            flop[kind(run)] += cost_flop(run)
    pace = Pace()
    for run, seconds in _finished_here(finished, device):
        pace.add(run, Step.split(seconds / _as_steps(run), run))
    known = len(examples.keys() & pace.step_s.keys())
    todo = [examples[key] for key in sorted(examples, key=flop.get, reverse=True) if key not in pace.step_s]
    if todo and sys.stderr.isatty():
        print(f"measuring a few steps of {len(todo)} kinds of run on {device_name(device)} ...", file=sys.stderr)
    measured = 0
    with _as_a_worker():
        for run in todo:
            left = started + CALIBRATION_S - time.monotonic()
            # What is known to be too slow for the rest of the time makes way for something shorter.
            if left <= 0 or (pace.step_s and pace.guess(run) > left):
                continue
            found = _try(run, device, time.monotonic() + left)
            if found is not None:
                pace.add(run, found)
                measured += 1
    together = {run_id: len(cohort) for cohort in cohorts for run_id in cohort}
    seconds = {run_id: pace.of(run, together.get(run_id, 1)) for run_id, run in runs.items()} if pace.step_s else {}
    took_s = time.monotonic() - started
    return Calibration(seconds, device_name(device), device.type == "cuda", len(examples), known, measured, took_s)


class Step(NamedTuple):
    """Seconds of a training step: the run's own part, and the teacher's pass, which a cohort has in common."""

    own_s: float
    shared_s: float

    @classmethod
    def split(cls, seconds: float, run: Run) -> Step:
        """What is known as a whole, divided by FLOP."""
        return cls(seconds * student_flop(run) / step_flop(run), seconds * teacher_flop(run) / step_flop(run))

    def among(self, together: int) -> float:
        """Of one of so many runs."""
        return self.own_s + self.shared_s / together


class Pace:
    """Seconds of a training step by kind of run, and what they say of other kinds."""

    def __init__(self) -> None:
        self.step_s: dict[Kind, Step] = {}
        self._spent: dict[Any, list[tuple[float, float]]] = defaultdict(list)  # (s, FLOP) by networks; None is all

    def add(self, run: Run, step: Step) -> None:
        """Take in a measurement; of two of the same kind the later counts."""
        self.step_s[kind(run)] = step
        for key in (_networks(run), None):
            self._spent[key].append((sum(step), step_flop(run)))

    def guess(self, run: Run) -> float:
        """Seconds of a step of a kind that was not measured."""
        return step_flop(run) * self._s_per_flop(run)

    def of(self, run: Run, together: int = 1) -> float:
        """Seconds of a whole run that is one of so many that train together; its evaluations are its own."""
        if run.train is None:
            return evaluation_flop(run) * self._s_per_flop(run)
        step = self.step_s.get(kind(run)) or Step.split(self.guess(run), run)
        return step.among(together) * steps(run) + sum(step) * evaluation_flop(run) / step_flop(run)

    def _s_per_flop(self, run: Run) -> float:
        spent = self._spent.get(_networks(run)) or self._spent[None]
        return sum(seconds for seconds, _ in spent) / sum(flop for _, flop in spent)


def _networks(run: Run) -> tuple[str | None, str]:
    return run.teacher.arch if run.teacher else None, run.student


def _as_steps(run: Run) -> float:
    """The work of a run in training steps: those it takes, and its evaluations by their FLOP."""
    return steps(run) + evaluation_flop(run) / step_flop(run)


def _finished_here(
    finished: Iterable[tuple[Run, Mapping[str, Any]]], device: torch.device
) -> Iterator[tuple[Run, float]]:
    """Runs that were trained on a device like this one, and the seconds that they took, or would have taken alone."""
    for run, result in finished:
        timing = result.get("timing", {})
        seconds = timing.get("alone_s", timing.get("device_s"))
        origin = result.get("provenance", {})
        here = origin.get("device") == device_name(device) and (origin.get("threads") is None) == (device.type != "cpu")
        if run.train is not None and here and isinstance(seconds, (int, float)) and seconds > 0:
            yield run, seconds


def _try(run: Run, device: torch.device, deadline: float) -> Step | None:
    """Seconds of a step; None where it cannot be measured, e.g. for want of memory. A plan needs no more than that."""
    try:
        return measure(run, device, deadline)
    except Exception:  # whatever is wrong with the run, its worker reports it when it fails
        return None
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()


def measure(run: Run, device: torch.device, deadline: float) -> Step:
    """Seconds of a training step, the least of warm-up and TURNS, as many as ENOUGH_S and the deadline allow.

    On a CPU it is that of the process, which other work does not disturb, and the teacher's pass is timed by itself;
    within a captured step it is told by its FLOP.
    """
    set_precision(run.precision)
    with own_stream(device):  # as training does: a step is captured within the warm-up, and replayed afterwards
        trainer = trainer_on_noise([run], device)
        take = captured(trainer.step, device)
        found, began, clock = [], time.monotonic(), trainer.clock
        for count in (WARM_UP[device.type], *[TURN[device.type]] * TURNS):
            clock.restart()
            started = now(device)
            for _ in range(count):
                step(trainer, take)
            if clock.cpu:
                found.append(Step((clock.all_s - clock.shared_s) / count, clock.shared_s / count))
            else:
                found.append(Step.split((now(device) - started) / count, run))
            if time.monotonic() > deadline or (clock.cpu and time.monotonic() - began > ENOUGH_S):
                break
    return min(found, key=sum)


@contextmanager
def _as_a_worker() -> Iterator[None]:
    """One thread, as a slot of the local executor has on a CPU; threads, precision and random numbers are put back."""
    threads, matmul = torch.get_num_threads(), torch.get_float32_matmul_precision()
    tf32 = torch.backends.cudnn.allow_tf32
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = tf32
