"""What runs inside a SLURM job: one or more runs, one after another, by a worker like those of a local slot.

The process that SLURM knows stays light and free for its signals; a child (`jobs.worker`) trains. USR2, which SLURM
sends before the time limit and, where it is set up so, before preemption, ends in `checkpoint`: the child writes its
checkpoint, and the job is requeued with what is left to do. SIGTERM is the end: checkpoint, and out.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jobs import claims

# As jobs.worker says them, which imports torch and is too heavy for this process.
DONE, STOPPED, CLAIMED, FAILED = "done", "stopped", "claimed", "failed"
ATTEMPTS = 2  # of a run whose worker dies, in one job: the second goes on from the checkpoint
CLAIM_WAIT_S = claims.STALE_S + 60  # a run of this job that its crashed predecessor seems to hold is free after that
ASK_AGAIN_S = 10.0
LOOK_S = 10.0  # between looks at whether the worker gets on
MOST_STILL = 2  # time limits in a row without progress; SLURM may signal up to a minute early, one proves nothing
REQUEUE_S = 20.0  # kept of the time before the limit for asking SLURM to requeue

_NOT_YET = {"outcome": "not yet"}


@dataclass
class Task:
    """The callable of one job or array task, pickled at submission and again at each requeue."""

    code: str  # the folder of the code to run: a copy made at submission
    record: str  # the submission's record: without it this job is not wanted any more
    out: str
    device: str
    threads: int
    data: str | None
    timeout_min: int
    signal_delay_s: int
    orders: list[dict[str, Any]]  # what is left: as jobs.worker takes them, each with its "run_id" beside
    undone: list[str] = field(default_factory=list)  # runs given up, with their reason
    at_limit: str | None = None  # the run in hand and its checkpoint at the last time limit
    still: int = 0  # for how many time limits in a row that was the same

    def __call__(self) -> None:
        self._begin()
        if not Path(self.record).exists():
            print(f"{self.record} is gone: this job was cancelled or replaced, nothing to do")
            return
        if self.still == MOST_STILL:
            self._give_up_still()
        while self.orders:
            self._settle(self._do(self.orders[0]["order"]))
        self._worker.close()
        if self.undone:
            raise RuntimeError("not done: " + "; ".join(self.undone))  # exit status 1: students do not start

    def checkpoint(self) -> Any:
        """Called by submitit in its handler of USR2: stop the worker; what is left goes into the requeued job."""
        from submitit.core.utils import DelayedSubmission

        self._leaving = True
        self._worker.close()
        for answer in self._worker.last_words(max(5.0, self.signal_delay_s - REQUEUE_S)):
            self._take(answer)
        if not self.orders:
            sys.exit(1 if self.undone else 0)  # the last run ended at this very moment
        left = replace(self)
        if self._near_limit():
            mark = f"{self.orders[0]['run_id']} {_checkpoint_mark(self._folder())}"
            left.still, left.at_limit = self.still + 1 if mark == self.at_limit else 0, mark
        return DelayedSubmission(left)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if not key.startswith("_")}

    def _begin(self) -> None:
        here = Path(__file__).resolve().parents[2]
        if here != Path(self.code).resolve():
            raise RuntimeError(f"this job imports the project from {here}, not from its copy {self.code}")
        self._started = time.time()
        self._leaving = False
        self._worker = _Worker(self)
        signal.signal(signal.SIGTERM, self._end)  # submitit's own handler ignores it
        print(f"{len(self.orders)} runs on {os.uname().nodename}, code in {here}")

    def _end(self, number: int, frame: object) -> None:
        """SIGTERM: scancel, or SLURM requeues by itself. The worker writes its checkpoint, if time allows."""
        self._leaving = True
        self._worker.close()

    def _leave(self) -> None:
        if self._leaving:
            sys.exit(128 + signal.SIGTERM)

    def _do(self, order: dict[str, Any]) -> dict[str, Any]:
        """The answer on one run. One whose worker dies goes on with another, once."""
        deaths, waited_s = 0, 0.0
        while True:
            answer = self._worker.ask(order, self._folder())
            self._leave()
            if answer is None:
                deaths += 1
                how = self._worker.how_it_ended()
                print(f"{self.orders[0]['run_id']}: its worker died ({how})")
                if deaths == ATTEMPTS:
                    return self._fail(f"worker died {ATTEMPTS} times, last with {how}")
            elif answer["outcome"] == CLAIMED and waited_s < CLAIM_WAIT_S:
                time.sleep(ASK_AGAIN_S)
                self._leave()
                waited_s += ASK_AGAIN_S
            elif answer["outcome"] == STOPPED:  # somebody stopped that one process: the run goes on
                self._worker.how_it_ended()
            else:
                return answer

    def _take(self, answer: dict[str, Any]) -> None:
        """A worker's last answer, given while this job was told to go."""
        if answer["outcome"] not in (STOPPED, CLAIMED):
            self._settle(answer)

    def _settle(self, answer: dict[str, Any]) -> None:
        said = f"{self.orders[0]['run_id']} {answer['outcome']}: {answer['message']}"
        if answer["outcome"] != DONE:
            self.undone.append(said)
        self.orders.pop(0)
        print(said)

    def _fail(self, message: str) -> dict[str, Any]:
        from bench import store
        from jobs import local, worker  # and torch: only now, when no run is in hand

        folder = store.RunFolder(self._folder())
        worker.record_failure(folder, message, local.tail_of(folder.log))
        return {"outcome": FAILED, "message": message}

    def _give_up_still(self) -> None:
        self.still, self.at_limit = 0, None
        self._settle(
            self._fail(
                f"no progress in {MOST_STILL} time limits in a row: raise timeout_min in the cluster file, or its "
                "signal_delay_s if a checkpoint takes longer than that"
            )
        )

    def _near_limit(self) -> bool:
        """Whether this is the time limit's signal and not preemption's. SLURM may send it a minute early."""
        return time.time() - self._started > 60 * self.timeout_min - self.signal_delay_s - 90

    def _folder(self) -> Path:
        return Path(self.out) / "runs" / self.orders[0]["run_id"]


class _Worker:
    """The child process, started when first asked. Reads and writes are unbuffered: a signal handler may do both."""

    def __init__(self, task: Task) -> None:
        self._command = [sys.executable, "-m", "jobs.worker", "--out", task.out, "--device", task.device]
        self._command += ["--threads", str(task.threads), *(["--data", task.data] if task.data else [])]
        self._code = task.code
        self._environment = {**os.environ, "OMP_NUM_THREADS": str(task.threads), "PYTHONUNBUFFERED": "1"}
        self._process: subprocess.Popen | None = None
        self._said = b""
        self._closed = False
        self._hung = ""  # why we killed the process

    def ask(self, order: dict[str, Any], folder: Path) -> dict[str, Any] | None:
        """Give an order and wait for its answer; None if the process ended without one, or hung and was killed."""
        if self._closed:
            return None
        if self._process is None:
            self._said = b""
            self._process = subprocess.Popen(
                self._command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=self._environment,
                cwd=self._code,
                # SLURM may signal every process of a job, and USR2 would kill this one.
                preexec_fn=lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN),
            )
            if self._closed:  # by SIGTERM, while it was being started
                self.close()
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
        except (OSError, ValueError):  # it has just died, or a handler has just closed it
            pass
        watch, self._hung = claims.Watch(), ""
        while (answer := self._answer(time.monotonic() + LOOK_S)) is _NOT_YET:
            still_s = watch.still_s(folder, 2 * LOOK_S)
            if still_s > claims.HUNG_S and not self._hung:
                self._hung = f"hung: no step for {still_s / 60:.0f} min"
                self._process.kill()
        return answer

    def close(self) -> None:
        """End of orders: an idle process leaves, a busy one writes its checkpoint first."""
        self._closed = True
        if self._process:
            try:
                self._process.stdin.close()
            except OSError:
                pass

    def last_words(self, within_s: float) -> list[dict[str, Any]]:
        """What the closed process still answers; one that has not ended in time is killed."""
        answers, end = [], time.monotonic() + within_s
        while self._process and (answer := self._answer(end)):
            if answer is _NOT_YET:
                self._process.kill()
                break
            answers.append(answer)
        return answers

    def how_it_ended(self) -> str:
        code = self._process.wait()
        self._process = None
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        return self._hung or how + (" (out of memory?)" if code == -signal.SIGKILL else "")

    def _answer(self, end: float) -> dict[str, Any] | None:
        """The next answer; _NOT_YET if there is none by `end`, None at the end of the process."""
        while b"\n" not in self._said:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                return _NOT_YET
            piece = os.read(self._process.stdout.fileno(), 65536)
            if not piece:
                return None
            self._said += piece
        line, _, self._said = self._said.partition(b"\n")
        return json.loads(line)


def _checkpoint_mark(folder: Path) -> int | None:
    """Changes whenever a run gets on: a checkpoint is only written after a step."""
    try:
        return (folder / "last.pt").stat().st_mtime_ns
    except FileNotFoundError:
        return None
