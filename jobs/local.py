"""The local executor: a queue of runs over worker processes, one per slot, reused from order to order.

Runs that can share their images and their teacher's pass go to a worker together, as a cohort (`bench/cohorts.py`).
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bench import cohorts, store
from bench.surroundings import machine
from jobs import child, claims, outcomes
from jobs.attempts import Attempts
from jobs.child import Child, Post
from jobs.failures import record_failure, tail_of
from jobs.outcomes import Answer
from jobs.plan import Plan
from jobs.progress import Progress
from jobs.states import fraction_done, status

POLL_S = 0.5
ELSEWHERE_S = 2.0  # between looks at runs that another driver's workers hold
GRACE_S = 120.0  # for workers to reach the end of an evaluation and write their checkpoints


@dataclass(frozen=True)
class Slots:
    """Where workers go: `per_device` processes on each device, CPU threads divided among them."""

    devices: tuple[str, ...]  # "cpu", or CUDA device numbers as CUDA_VISIBLE_DEVICES takes them
    per_device: int
    threads: int

    @property
    def lanes(self) -> int:
        """How many cohorts can be done at once without being in each other's way: one a GPU, one a slot of a CPU."""
        return self.per_device if self.devices == ("cpu",) else len(self.devices)


def slots(device: torch.device, per_device: int | None) -> Slots:
    """All GPUs where the device is `cuda`, the one named where it is `cuda:N`; on a CPU one slot a core."""
    cores = machine.cores()
    if device.type == "cpu":
        count = per_device or cores
        return Slots(("cpu",), count, max(1, cores // count))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = torch.cuda.device_count()  # CUDA takes the names in the variable up to the first it does not know
    names = [name.strip() for name in visible.split(",")] if visible else [str(index) for index in range(found)]
    names = names[:found] if device.index is None else [names[device.index]]
    count = per_device or 1
    return Slots(tuple(names), count, max(1, cores // (count * len(names))))


@dataclass
class _Queue:
    """What is left to do. A run starts when its teacher can serve, together with those that fit it by then."""

    plan: Plan
    out: Path
    lanes: int
    together: int | None  # how many runs at most share a process
    pending: list[str]
    attempts: Attempts = field(default_factory=Attempts)
    in_hand: set[str] = field(default_factory=set)  # with our workers
    elsewhere: set[str] = field(default_factory=set)  # with another process's

    def next(self) -> list[str] | None:
        """Take the runs that the next idle worker does together; None where none can start now."""
        waiting, runs = self.waiting, self.plan.grid.runs
        teachers = {run_id: teacher.run_id for run_id in self.pending if (teacher := runs[run_id].teacher)}
        startable = {run_id: runs[run_id] for run_id in self.pending if teachers.get(run_id) not in waiting}
        if not startable:
            return None
        cohort = [*startable][:1]
        if self.together != 1:  # a teacher that others wait for is alone: it is the sooner done
            cohort = cohorts.group(startable, alone=set(teachers.values()))[0]
        cohort = self.attempts.parts(cohort)[0]
        pieces = max(self._shares(cohort), -(-len(cohort) // (self.together or len(cohort))))
        cohort = cohorts.split(cohort, pieces, self.plan.flop)[0]
        self.pending = [run_id for run_id in self.pending if run_id not in cohort]
        self.in_hand.update(cohort)
        return cohort

    def _shares(self, cohort: list[str]) -> int:
        """In how many pieces to do a cohort, so that no lane stands idle in the end.

        It stays whole unless it is more than a lane's part of all that is left, what our workers have begun included.
        """
        left = sum(map(self.plan.flop, self.pending))
        left += sum(self.plan.flop(run_id) * (1 - self._fraction_done(run_id)) for run_id in self.in_hand)
        return round(self.lanes * sum(map(self.plan.flop, cohort)) / left) if left else 1

    def _fraction_done(self, run_id: str) -> float:
        try:
            holder = claims.read(store.run_folder(self.out, run_id).path)
        except OSError:  # it is to share the work out, and half of that is as good a guess
            return 0.5
        return fraction_done(holder.progress) if holder else 0.0

    @property
    def waiting(self) -> set[str]:
        return {*self.pending, *self.elsewhere, *self.in_hand}

    def again(self, run_ids: list[str]) -> None:
        """Put runs that were begun back, before all others."""
        self.in_hand.difference_update(run_ids)
        self.elsewhere.difference_update(run_ids)
        self.pending[:0] = run_ids

    def drop_students(self, teacher: str) -> list[str]:
        """Take the students of a failed teacher off the queue."""
        students = [r for r in self.pending if (t := self.plan.grid.runs[r].teacher) and t.run_id == teacher]
        self.pending = [run_id for run_id in self.pending if run_id not in students]
        return students


def execute(
    plan: Plan,
    out: Path,
    where: Slots,
    *,
    data_root: Path | None,
    should_stop: Callable[[], str | None],
    progress: Progress,
    together: int | None = None,
    hung_s: float = claims.HUNG_S,
) -> str | None:
    """Do the plan's runs. Returns None when all are settled, else why it stopped early (`should_stop`'s word).

    At most `together` runs share a process; None: all that fit, as long as every slot has work.
    """
    todo = _Queue(plan, out, where.lanes, together, plan.to_do)
    team = _team(where, out, data_root, hung_s, together or 0, lambda: progress.stderr)
    looked = time.monotonic()
    reason = None
    try:
        while todo.waiting:
            reason = should_stop()
            if reason:
                break
            while (worker := _idle(team)) and (cohort := todo.next()):
                worker.give({run_id: child.order(plan.grid, run_id) for run_id in cohort})
                progress.started_together(cohort)
            if todo.elsewhere and time.monotonic() - looked > ELSEWHERE_S:
                _look_elsewhere(todo, progress)
                looked = time.monotonic()
            for worker in child.ready([worker for worker in team if worker.busy], POLL_S):
                for answer in worker.hear():
                    _settle(answer, todo, progress)
                if not worker.busy:
                    _put_back(worker, todo, progress)
            for worker in team:
                worker.end_if_hung()
            progress.tick()
    finally:
        _dismiss(team, progress)
    return reason


def _team(
    where: Slots,
    out: Path,
    data_root: Path | None,
    hung_s: float,
    together: int = 0,
    stderr: Callable[[], int | None] = lambda: None,
) -> list[Child]:
    return [
        Child(
            Post(
                out=out,
                device="cpu" if device == "cpu" else "cuda",
                gpu=None if device == "cpu" else device,
                threads=where.threads,
                per_device=where.per_device,
                slots=where.per_device * len(where.devices),
                together=together,
                data=data_root,
                hung_s=hung_s,
            ),
            stderr=stderr,
        )
        for _ in range(where.per_device)
        for device in where.devices
    ]


def _idle(team: list[Child]) -> Child | None:
    """An idle worker of the device with the fewest busy ones: no device has two while another has none."""
    busy = Counter(worker.post.gpu for worker in team if worker.busy)
    return min((worker for worker in team if not worker.busy), key=lambda worker: busy[worker.post.gpu], default=None)


def _settle(answer: Answer, todo: _Queue, progress: Progress) -> None:
    """Take in what became of a run, unless it goes on: see `_put_back`."""
    run_id, outcome, message = answer
    if outcome in outcomes.SETTLED:
        todo.in_hand.discard(run_id)
        if outcome == outcomes.DONE:
            progress.done(run_id, message)
        else:
            _give_up(run_id, outcome, message, todo, progress)
    elif outcome == outcomes.CLAIMED:
        todo.in_hand.discard(run_id)
        todo.elsewhere.add(run_id)
        progress.elsewhere(run_id, message)


def _put_back(worker: Child, todo: _Queue, progress: Progress) -> None:
    """An order is over: queue those of its runs again that go on, all at once, so that they can share again."""
    again = []
    answers = [worker.answers[run_id] for run_id in worker.order]
    for run_id, outcome, message in answers:
        if outcome == outcomes.STOPPED:  # we did not ask: somebody stopped that one process
            progress.stopped(run_id, message)
            again.append(run_id)
    interrupted = [answer for answer in answers if answer.outcome in outcomes.INTERRUPTED]
    for run_id, goes_on, message in todo.attempts.charge(worker.order, interrupted):
        if goes_on:
            progress.note(run_id, message)
            again.append(run_id)
        else:
            todo.in_hand.discard(run_id)
            folder = store.run_folder(todo.out, run_id)
            tail = tail_of(folder.log)
            record_failure(folder, message, tail)
            _give_up(run_id, outcomes.FAILED, message, todo, progress, log_tail=tail)
    todo.again(again)


def _give_up(run_id: str, outcome: str, message: str, todo: _Queue, progress: Progress, log_tail: str = "") -> None:
    progress.failed(run_id, outcome, message, log_tail)
    for student in todo.drop_students(run_id):
        progress.failed(student, outcomes.BLOCKED, f"its teacher {run_id} {outcome}")


def _look_elsewhere(todo: _Queue, progress: Progress) -> None:
    """See what became of runs that another process had claimed; what it left undone is ours again."""
    again = []
    for run_id in sorted(todo.elsewhere):
        folder = store.run_folder(todo.out, run_id)
        found = status(folder)
        if found.state == "running":
            continue
        todo.elsewhere.discard(run_id)
        if found.state == "blocked":
            _give_up(run_id, outcomes.BLOCKED, found.reason, todo, progress)
        elif found.state == "done" and _serves(folder):
            progress.done(run_id, f"top-1 {found.result['metrics']['top1_last']:.2f} (by another process)")
        elif found.state == "failed":
            _give_up(run_id, outcomes.FAILED, found.reason, todo, progress)
        else:
            again.append(run_id)
    todo.again(again)


def _serves(folder: store.RunFolder) -> bool:
    """Whether a run that is done has its weights. A worker asks again, and says so where that cannot be told."""
    try:
        return store.weights_fault(folder) is None
    except store.Unreadable:
        return False


def _dismiss(team: list[Child], progress: Progress) -> None:
    """Close all workers' input and wait; busy ones checkpoint. A second interrupt, or the grace's end, kills them."""
    for worker in team:
        worker.close()
    say = {
        outcomes.DONE: progress.done,
        outcomes.STOPPED: progress.stopped,
        outcomes.CLAIMED: progress.elsewhere,
        **dict.fromkeys(outcomes.INTERRUPTED, lambda run_id, message: progress.note(run_id, f"interrupted: {message}")),
    }
    deadline = time.monotonic() + GRACE_S
    try:
        while (left := [worker for worker in team if worker.alive]) and time.monotonic() < deadline:
            progress.tick()
            for worker in child.ready(left, POLL_S):
                for run_id, outcome, message in worker.hear():
                    if outcome in say:
                        say[outcome](run_id, message)
                    else:
                        progress.failed(run_id, outcome, message)
    except KeyboardInterrupt:
        pass
    for worker in team:
        worker.kill()
        worker.hear(POLL_S)  # its end
