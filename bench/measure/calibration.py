"""What runs cost in seconds of a device, told from a few training steps on random images before anything has started.

Runs of one kind (they differ in the seed, or in settings that change numbers and not work) take equal steps, and one
of them is measured, the teacher's pass apart: runs that train together have it in common, but for a second view. What
the time does not suffice for is told by FLOP: the seconds a FLOP takes on its networks, times what its method takes
beyond that elsewhere. Augmentation and files are not in it, nor what slots of one machine take from each other.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from bench.cost import cost_flop, evaluation_flop, shared_step_flop, step_flop, steps
from bench.measure.step_cost import now, step, trainer_on_noise
from bench.run import Run
from bench.surroundings import machine
from bench.surroundings.provenance import device_name
from bench.training.capture import captured, own_stream
from bench.training.devices import set_precision

CALIBRATION_S = 20.0  # for all kinds together, on a CPU of the process's own time; the first may take longer
PATIENCE = 3  # times that, where the machine is busy with other work
WARM_UP = {"cpu": 1, "cuda": 10}  # steps before the clock counts: the first finds memory, and makes what others use
TURN = {"cpu": 1, "cuda": 10}  # steps between two looks at the clock: a GPU is not waited for after each
TURNS = 2  # the shortest counts: what else runs on the machine only ever adds
ENOUGH_S = 1.5  # on a CPU no second turn after that: another kind is worth more than a repeat
ROUNDS = 20  # of the fit of speeds by networks and by method to each other

Kind = tuple[str | int | None, ...]
Networks = tuple[str | None, str]  # teacher and student


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
    rests_on: str = ""  # in words, where nothing was measured now


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
    """Measure steps of `runs` for about CALIBRATION_S: one kind of each pair, of each method, then the others.

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
    take_finished(pace, finished, lambda origin: _is_here(origin, device))
    known = len(examples.keys() & pace.step_s.keys())
    todo = _in_order([examples[key] for key in sorted(examples, key=flop.get, reverse=True) if key not in pace.step_s])
    if todo and sys.stderr.isatty():
        print(f"measuring a few steps of {len(todo)} kinds of run on {device_name(device)} ...", file=sys.stderr)
    measured, own = 0, time.process_time if device.type == "cpu" else time.monotonic
    began = own()
    with _as_a_worker():
        for run in todo:
            patience = started + PATIENCE * CALIBRATION_S - time.monotonic()
            left = min(began + CALIBRATION_S - own(), patience)
            # What is known to be too slow for the rest of the time makes way for something shorter.
            if left <= 0 or (pace and (1 + WARM_UP["cpu"]) * pace.guess(run) > left):
                continue
            found = _try(run, device, time.monotonic() + patience)
            if found is not None:
                pace.add(run, found)
                measured += 1
    together = {run_id: len(cohort) for cohort in cohorts for run_id in cohort}
    seconds = {run_id: pace.of(run, together.get(run_id, 1)) for run_id, run in runs.items()} if pace else {}
    took_s = time.monotonic() - started
    return Calibration(seconds, device_name(device), device.type == "cuda", len(examples), known, measured, took_s)


class Step(NamedTuple):
    """Seconds of a training step: the run's own part, and the teacher's pass, which a cohort has in common."""

    own_s: float
    shared_s: float

    @classmethod
    def split(cls, seconds: float, run: Run) -> Step:
        """What is known as a whole, divided by FLOP."""
        shared = seconds * shared_step_flop(run) / step_flop(run)
        return cls(seconds - shared, shared)

    def among(self, together: int) -> float:
        """Of one of so many runs."""
        return self.own_s + self.shared_s / together


class Pace:
    """Seconds of a training step by kind of run, and what they say of other kinds."""

    def __init__(self) -> None:
        self.step_s: dict[Kind, Step] = {}
        self._known: dict[Kind, tuple[Networks, str, float, float]] = {}  # networks, method, FLOP, seconds of a step
        self._fitted: tuple[dict[Networks | None, float], dict[str, float]] | None = None

    def add(self, run: Run, step: Step) -> None:
        """Take in a measurement; of two of the same kind the later counts."""
        self.step_s[kind(run)] = step
        self._known[kind(run)] = _networks(run), run.method, step_flop(run), sum(step)
        self._fitted = None

    def learn(self, key: Kind, networks: Networks, method: str, flop: float, seconds: float) -> None:
        """Take in a step of no run that is at hand: it tells of the others' speed."""
        self._known[key] = networks, method, flop, seconds
        self._fitted = None

    def __bool__(self) -> bool:
        return bool(self._known)

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
        networks, methods = self._fitted = self._fitted or self._fit()
        return networks.get(_networks(run), networks[None]) * methods.get(run.method, 1.0)

    def _fit(self) -> tuple[dict[Networks | None, float], dict[str, float]]:
        """Seconds a FLOP by networks (None: all of them), and what each method takes of that: 1 where it is usual."""
        per_flop: dict[Networks | None, float] = {}
        factors = {method: 1.0 for _, method, *_ in self._known.values()}
        for _ in range(ROUNDS):
            at: dict[Any, list[float]] = defaultdict(lambda: [0.0, 0.0])
            for networks, method, flop, seconds in self._known.values():
                for place in (networks, None):
                    _add(at[place], seconds, flop * factors[method])
            per_flop = {place: seconds / flop for place, (seconds, flop) in at.items()}
            of: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
            for networks, method, flop, seconds in self._known.values():
                _add(of[method], seconds, flop * per_flop[networks])
            factors = {method: seconds / usual for method, (seconds, usual) in of.items()}
        return per_flop, factors


def _add(total: list[float], seconds: float, flop: float) -> None:
    total[0] += seconds
    total[1] += flop


def _networks(run: Run) -> Networks:
    return run.teacher.arch if run.teacher else None, run.student


def _in_order(runs: Sequence[Run]) -> list[Run]:
    """The shortest step of each networks first, then that of each method, then the others as they come.

    So that soon all kinds can be told from what has been measured.
    """
    order: dict[Kind, Run] = {}
    for of in (_networks, lambda run: run.method):
        groups: dict[Any, list[Run]] = defaultdict(list)
        for run in runs:
            groups[of(run)].append(run)
        for group in groups.values():
            if not any(kind(run) in order for run in group):
                shortest = min(group, key=step_flop)
                order[kind(shortest)] = shortest
    return [*order.values(), *(run for run in runs if kind(run) not in order)]


def _as_steps(run: Run) -> float:
    """The work of a run in training steps: those it takes, and its evaluations by their FLOP."""
    return steps(run) + evaluation_flop(run) / step_flop(run)


def take_finished(
    pace: Pace, finished: Iterable[tuple[Run, Mapping[str, Any]]], is_there: Callable[[Mapping[str, Any]], bool]
) -> int:
    """Let a pace learn from finished runs, as each would have been alone; returns from how many.

    `is_there` says by a result's provenance whether it is of the device in question.
    """
    count = 0
    for run, result in finished:
        timing = result.get("timing", {})
        seconds = timing.get("alone_s", timing.get("device_s"))
        usable = isinstance(seconds, (int, float)) and seconds > 0
        if run.train is not None and usable and is_there(result.get("provenance", {})):
            pace.add(run, Step.split(seconds / _as_steps(run), run))
            count += 1
    return count


def _is_here(origin: Mapping[str, Any], device: torch.device) -> bool:
    return origin.get("device") == device_name(device) and (origin.get("threads") is None) == (device.type != "cpu")


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
    """Seconds of a training step, the least of TURNS after a warm-up: the first, and those that there is time for.

    On a CPU they are those of the process, which other work hardly disturbs, and the teacher's pass is timed by itself;
    within a captured step it is told by its FLOP.
    """
    set_precision(run.precision)
    with own_stream(device):  # as training does: a step is captured within the warm-up, and replayed afterwards
        trainer = trainer_on_noise([run], device)
        take = captured(trainer.step, device)
        clock, began = trainer.clock, time.monotonic()

        def turn(count: int) -> Step:
            clock.restart()
            started = now(device)
            for _ in range(count):
                step(trainer, take)
            if clock.cpu:
                return Step((clock.all_s - clock.shared_s) / count, clock.shared_s / count)
            return Step.split((now(device) - started) / count, run)

        turn(WARM_UP[device.type])
        found = [turn(TURN[device.type])]
        while len(found) < TURNS and time.monotonic() < (min(deadline, began + ENOUGH_S) if clock.cpu else deadline):
            found.append(turn(TURN[device.type]))
    return min(found, key=sum)


@contextmanager
def _as_a_worker() -> Iterator[None]:
    """One thread, as a slot of the local executor has on a CPU; threads, precision and random numbers are put back.

    That memory is kept, as a worker keeps it, stays so to the end of the process.
    """
    machine.keep_memory()
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
