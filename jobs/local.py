"""The local executor: a queue of runs over worker processes, one per slot, reused from run to run."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench import store
from bench.grid import Grid
from jobs import claims, worker
from jobs.plan import Plan
from jobs.progress import Progress
from jobs.states import status
from jobs.status import duration

POLL_S = 0.5
ELSEWHERE_S = 2.0  # between looks at runs that another driver's workers hold
LOOK_S = 5.0  # between looks at how far our own workers are
GRACE_S = 120.0  # for workers to reach the end of an evaluation and write their checkpoints
ATTEMPTS = 2  # of a run whose worker dies, in one call: the second goes on from the checkpoint


@dataclass(frozen=True)
class Slots:
    """Where workers go: `per_device` processes on each device, CPU threads divided among them."""

    devices: tuple[str, ...]  # "cpu", or CUDA device numbers as CUDA_VISIBLE_DEVICES takes them
    per_device: int
    threads: int


def slots(device: torch.device, per_device: int | None) -> Slots:
    """All GPUs where the device is `cuda`, the one named where it is `cuda:N`; on a CPU one slot a core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
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
class _Slot:
    """A worker process, started when first needed and again after it died."""

    device: str
    command: list[str]
    environment: dict[str, str]
    answers: queue.Queue[tuple[_Slot, subprocess.Popen, str]]
    process: subprocess.Popen | None = None
    run_id: str | None = None
    watch: claims.Watch = field(default_factory=claims.Watch)
    hung: str = ""  # why we killed the process

    def start(self, run_id: str, order: dict) -> None:
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=self.environment,
                cwd=Path(__file__).parents[1],
                start_new_session=True,  # Ctrl-C is the driver's to handle: workers are told through their input
            )
            threading.Thread(target=self._listen, args=(self.process,), daemon=True).start()
        self.run_id, self.watch, self.hung = run_id, claims.Watch(), ""
        try:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
        except OSError:
            pass  # it has just died: its end of output says so

    def _listen(self, process: subprocess.Popen) -> None:
        for line in process.stdout:
            self.answers.put((self, process, line))
        process.wait()
        self.answers.put((self, process, ""))

    def kill(self) -> None:
        """End the process and all it may have started. A stopped one, too."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def close(self) -> None:
        """End of orders: an idle worker leaves, a busy one writes its checkpoint first."""
        if self.process and self.process.poll() is None:
            try:
                self.process.stdin.close()
            except OSError:
                pass


@dataclass
class _Queue:
    """What is left to do. A run starts when its teacher can serve."""

    grid: Grid
    out: Path
    pending: list[str]
    attempts: dict[str, int] = field(default_factory=dict)
    in_hand: set[str] = field(default_factory=set)  # with our workers
    elsewhere: set[str] = field(default_factory=set)  # with another process's

    def next(self) -> str | None:
        """Take the first run that can start now."""
        waiting = self.waiting
        for run_id in self.pending:
            run = self.grid.runs[run_id]
            if run.teacher is None or run.teacher.run_id not in waiting:
                self.pending.remove(run_id)
                return run_id
        return None

    @property
    def waiting(self) -> set[str]:
        return {*self.pending, *self.elsewhere, *self.in_hand}

    def drop_students(self, teacher: str) -> list[str]:
        """Take the students of a failed teacher off the queue."""
        students = [r for r in self.pending if (t := self.grid.runs[r].teacher) and t.run_id == teacher]
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
) -> str | None:
    """Do the plan's runs. Returns None when all are settled, else why it stopped early (`should_stop`'s word)."""
    todo = _Queue(plan.grid, out, plan.to_do)
    answers: queue.Queue[tuple[_Slot, subprocess.Popen, str]] = queue.Queue()
    team = _team(where, out, data_root, answers)
    looked = watched = time.monotonic()
    reason = None
    try:
        while todo.waiting:
            reason = should_stop()
            if reason:
                break
            while (slot := _idle(team)) and (run_id := todo.next()):
                todo.in_hand.add(run_id)
                progress.started(run_id)
                slot.start(run_id, order(plan.grid, run_id))
            now = time.monotonic()
            if todo.elsewhere and now - looked > ELSEWHERE_S:
                _look_elsewhere(todo, progress)
                looked = now
            if now - watched > LOOK_S:
                _kill_hung(team, out)
                watched = now
            try:
                slot, process, line = answers.get(timeout=POLL_S)
            except queue.Empty:
                progress.tick()
                continue
            if process is slot.process:  # not the late last word of one that has been replaced
                _settle(slot, line, todo, progress)
    finally:
        _dismiss(team, answers, progress)
    return reason


def _team(where: Slots, out: Path, data_root: Path | None, answers: queue.Queue) -> list[_Slot]:
    team = []
    for _ in range(where.per_device):
        for device in where.devices:
            environment = {**os.environ, "OMP_NUM_THREADS": str(where.threads), "PYTHONUNBUFFERED": "1"}
            if device != "cpu":
                environment["CUDA_VISIBLE_DEVICES"] = device
            command = [
                sys.executable,
                "-m",
                "jobs.worker",
                "--out",
                str(out.resolve()),
                "--device",
                "cpu" if device == "cpu" else "cuda",
                "--threads",
                str(where.threads),
                "--per-device",
                str(where.per_device),
            ]
            if data_root:
                command += ["--data", str(data_root.resolve())]
            team.append(_Slot(device, command, environment, answers))
    return team


def _idle(team: list[_Slot]) -> _Slot | None:
    """An idle slot of the device with the fewest busy ones: no device has two runs while another has none."""
    busy = Counter(slot.device for slot in team if slot.run_id)
    return min((slot for slot in team if not slot.run_id), key=lambda slot: busy[slot.device], default=None)


def _kill_hung(team: list[_Slot], out: Path) -> None:
    """Kill the workers whose run stands still; their end is then seen like any other death."""
    for slot in team:
        still_s = slot.watch.still_s(store.run_folder(out, slot.run_id).path, 2 * LOOK_S) if slot.run_id else 0.0
        if still_s > claims.HUNG_S:
            slot.hung = f"hung: no step for {duration(still_s)}"
            slot.kill()


def order(grid: Grid, run_id: str) -> dict[str, Any]:
    """What a worker is told of a run."""
    weights = grid.weights.get(run_id)
    return {"run": grid.runs[run_id].model_dump(mode="json"), "weights": str(weights) if weights else None}


def _settle(slot: _Slot, line: str, todo: _Queue, progress: Progress) -> None:
    """Take in what a worker said; an empty line is its death."""
    run_id, slot.run_id = slot.run_id, None
    if run_id is None:
        return
    todo.in_hand.discard(run_id)
    if not line:
        _worker_died(slot, run_id, todo, progress)
        return
    answer = json.loads(line)
    outcome, message = answer["outcome"], answer["message"]
    if outcome == worker.CLAIMED:
        todo.elsewhere.add(run_id)
        progress.elsewhere(run_id, message)
    elif outcome == worker.STOPPED:
        progress.stopped(run_id, message)
        todo.pending.insert(0, run_id)  # we did not ask: somebody stopped that one process, and the run goes on
    elif outcome == worker.DONE:
        progress.done(run_id, message)
    else:
        _give_up(run_id, outcome, message, todo, progress)


def _worker_died(slot: _Slot, run_id: str, todo: _Queue, progress: Progress) -> None:
    folder = store.run_folder(todo.out, run_id)
    code = slot.process.wait()
    how = slot.hung or (f"signal {-code}" if code < 0 else f"exit status {code}")
    todo.attempts[run_id] = todo.attempts.get(run_id, 0) + 1
    if todo.attempts[run_id] < ATTEMPTS:
        progress.note(run_id, f"its worker died ({how}), once more from the checkpoint")
        todo.pending.insert(0, run_id)
        return
    hint = " (out of memory?)" if code == -signal.SIGKILL and not slot.hung else ""
    message = f"worker died {ATTEMPTS} times, last with {how}{hint}"
    tail = tail_of(folder.log)
    worker.record_failure(folder, message, tail)
    _give_up(run_id, worker.FAILED, message, todo, progress, log_tail=tail)


def _give_up(run_id: str, outcome: str, message: str, todo: _Queue, progress: Progress, log_tail: str = "") -> None:
    progress.failed(run_id, outcome, message, log_tail)
    for student in todo.drop_students(run_id):
        progress.failed(student, worker.BLOCKED, f"its teacher {run_id} {outcome}")


def _look_elsewhere(todo: _Queue, progress: Progress) -> None:
    """See what became of runs that another process had claimed; what it left undone is ours again."""
    for run_id in sorted(todo.elsewhere):
        folder = store.run_folder(todo.out, run_id)
        found = status(folder)
        if found.state == "running":
            continue
        todo.elsewhere.discard(run_id)
        if found.state == "done" and store.weights_fault(folder) is None:
            progress.done(run_id, f"top-1 {found.result['metrics']['top1_last']:.2f} (by another process)")
        elif found.state == "failed":
            _give_up(run_id, worker.FAILED, found.reason, todo, progress)
        else:
            todo.pending.insert(0, run_id)


def _dismiss(team: list[_Slot], answers: queue.Queue, progress: Progress) -> None:
    """Close all workers' input and wait; busy ones checkpoint. A second interrupt, or the grace's end, kills them."""
    for slot in team:
        slot.close()
    deadline = time.monotonic() + GRACE_S
    busy = [slot for slot in team if slot.process]
    try:
        while busy and time.monotonic() < deadline:
            try:
                slot, _, line = answers.get(timeout=POLL_S)
            except queue.Empty:
                busy = [slot for slot in busy if slot.process.poll() is None]
                continue
            if line and slot.run_id:
                answer = json.loads(line)
                say = {
                    worker.DONE: progress.done,
                    worker.STOPPED: progress.stopped,
                    worker.CLAIMED: progress.elsewhere,
                }.get(answer["outcome"])
                if say:
                    say(slot.run_id, answer["message"])
                else:
                    progress.failed(slot.run_id, answer["outcome"], answer["message"])
                slot.run_id = None
    except KeyboardInterrupt:
        pass
    for slot in team:
        if slot.process and slot.process.poll() is None:
            slot.kill()
            slot.process.wait()


def tail_of(path: Path, lines: int = 30) -> str:
    """The last lines of a log."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
