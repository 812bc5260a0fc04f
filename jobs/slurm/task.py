"""What runs inside a SLURM job: cohorts of runs, one after another, by a worker like those of a local slot.

The process that SLURM knows stays light and free for its signals; a child (`jobs.worker`) trains. USR2, which SLURM
sends before the time limit and, where it is set up so, before preemption, ends in `checkpoint`: the child writes its
checkpoints, and the job is requeued with what is left to do. SIGTERM is the end: checkpoints, and out.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench import store
from bench.surroundings.commandline import counted
from jobs import child, claims
from jobs.attempts import Attempts
from jobs.child import Child, Post
from jobs.failures import record_failure, tail_of
from jobs.outcomes import CLAIMED, DONE, FAILED, INTERRUPTED, SETTLED, Answer

CLAIM_WAIT_S = claims.STALE_S + 60  # a run of this job that its crashed predecessor seems to hold is free after that
ASK_AGAIN_S = 10.0
MOST_STILL = 2  # time limits in a row without progress; SLURM may signal up to a minute early, one proves nothing
REQUEUE_S = 20.0  # kept of the time before the limit for asking SLURM to requeue
NO_GPU = ("", "-1", "NoDevFiles")  # in CUDA_VISIBLE_DEVICES


@dataclass
class Task:
    """The callable of one job or array task, pickled at submission and again at each requeue."""

    code: str  # the folder of the code to run: a copy made at submission
    record: str  # the submission's record: without it this job is not wanted any more
    post: Post
    timeout_min: int
    signal_delay_s: int
    cohorts: list[list[str]]  # run ids, the first in hand; each is done together
    orders: dict[str, dict[str, Any]]  # of what is left, by run id, as jobs.worker takes them
    attempts: Attempts = field(default_factory=Attempts)
    undone: list[str] = field(default_factory=list)  # runs given up, with their reason
    at_limit: str | None = None  # the runs in hand and their checkpoints at the last time limit
    still: int = 0  # for how many time limits in a row that was the same

    def __call__(self) -> None:
        self._begin()
        if not Path(self.record).exists():
            print(f"{self.record} is gone: this job was cancelled or replaced, nothing to do")
            return
        if self.still == MOST_STILL:
            self._give_up_still()
        while self.cohorts:
            self._do(self.cohorts[0])
        self._child.close()
        if self.undone:
            raise RuntimeError("not done: " + "; ".join(self.undone))  # exit status 1: students do not start

    def checkpoint(self) -> Any:
        """Called by submitit in its handler of USR2: stop the worker; what is left goes into the requeued job."""
        from submitit.core.utils import DelayedSubmission

        self._leaving = True
        self._child.close()
        end = time.monotonic() + max(5.0, self.signal_delay_s - REQUEUE_S)
        while self._child.alive and (left_s := end - time.monotonic()) > 0:
            for answer in self._child.hear(left_s):
                if answer.outcome in SETTLED:
                    self._settle(answer)
        self._child.kill()
        if not self.orders:
            sys.exit(1 if self.undone else 0)  # the last run ended at this very moment
        left = replace(self, cohorts=[*filter(None, map(self._left, self.cohorts))])
        left.attempts = Attempts(room=self.attempts.room)
        if self._near_limit():
            mark = self._mark(left.cohorts[0])
            left.still, left.at_limit = self.still + 1 if mark == self.at_limit else 0, mark
        return DelayedSubmission(left)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if not key.startswith("_")}

    def _begin(self) -> None:
        if child.ROOT != Path(self.code).resolve():
            raise RuntimeError(f"this job imports the project from {child.ROOT}, not from its copy {self.code}")
        self._started = time.time()
        self._leaving = False
        self._lost: set[str] = set()  # runs that another process has, which we have waited for
        self._child = Child(self.post)
        self._limit_s = _time_limit_s() or 60 * self.timeout_min
        self._gpus = gpus_given()
        signal.signal(signal.SIGTERM, self._end)  # submitit's own handler ignores it
        print(f"{counted(len(self.orders), 'run')} on {os.uname().nodename}, code in {child.ROOT}")
        if odd := self._odd_device():
            print(odd)

    def _end(self, number: int, frame: object) -> None:
        """SIGTERM: scancel, or SLURM requeues by itself. The worker writes its checkpoints, if time allows."""
        self._leaving = True
        self._child.close()

    def _leave(self) -> None:
        if self._leaving:
            sys.exit(128 + signal.SIGTERM)

    def _do(self, cohort: Sequence[str]) -> None:
        """Have runs done together. Those that go on come first in what is left, in the company they may have."""
        self._wait_for_others(cohort)
        self._leave()
        for run_id in cohort:
            self._tell(run_id)
        self._child.give({run_id: self.orders[run_id] for run_id in cohort})
        while self._child.busy:
            for answer in self._child.hear(child.LOOK_S):
                self._take(answer)
            self._child.end_if_hung()
        self._leave()
        if self._child.no_device:
            raise RuntimeError(
                f"no run of this job was done: it is to train on a GPU, and PyTorch finds none on {os.uname().nodename}"
                f" (SLURM gave it {self._gpus or 'none'}); see the node's driver, or use --device cpu"
            )
        answers = [self._child.answers[run_id] for run_id in cohort]
        interrupted = [answer for answer in answers if answer.outcome in INTERRUPTED]
        for run_id, again, message in self.attempts.charge(cohort, interrupted):
            if again:
                print(f"{run_id}: {message}")
            else:
                self._fail(run_id, message)
        self.cohorts[0:1] = self.attempts.parts(self._left(cohort))

    def _odd_device(self) -> str | None:
        """One line where the GPUs that SLURM gave this job and the device it trains on do not go together."""
        if self.post.device == "cpu" and self._gpus:
            return f"SLURM gave this job {self._gpus} GPU(s), and it trains on the CPU, as it was submitted for"
        if self.post.device != "cpu" and not self._gpus and "SLURM_JOB_ID" in os.environ:
            return "SLURM gave this job no GPU, and it trains on what its node shows, as it was submitted for"
        return None

    def _tell(self, run_id: str) -> None:
        """Say in the log of a run, too, what is odd about its device."""
        if odd := self._odd_device():
            with contextlib.suppress(OSError):
                folder = self._folder(run_id)
                folder.path.mkdir(parents=True, exist_ok=True)
                with open(folder.log, "a", encoding="utf-8") as log:
                    print(odd, file=log)

    def _wait_for_others(self, cohort: Sequence[str]) -> None:
        """Give whoever seems to hold one of these runs the time to end, or to be seen to be dead."""
        end = time.monotonic() + CLAIM_WAIT_S
        while held := [r for r in cohort if (holder := claims.read(self._folder(r).path)) and holder.alive]:
            if time.monotonic() > end:
                self._lost.update(held)
                break
            time.sleep(ASK_AGAIN_S)
            self._leave()

    def _take(self, answer: Answer) -> None:
        """Take in what became of a run, unless it goes on."""
        if answer.outcome in SETTLED or (answer.outcome == CLAIMED and answer.run_id in self._lost):
            self._settle(answer)
        elif answer.outcome == CLAIMED:  # since we looked: to be waited for
            self._lost.add(answer.run_id)

    def _settle(self, answer: Answer) -> None:
        said = f"{answer.run_id} {answer.outcome}: {answer.message}"
        if answer.outcome != DONE:
            self.undone.append(said)
        del self.orders[answer.run_id]
        print(said)

    def _fail(self, run_id: str, message: str) -> None:
        folder = self._folder(run_id)
        record_failure(folder, message, tail_of(folder.log))
        self._settle(Answer(run_id, FAILED, message))

    def _give_up_still(self) -> None:
        """The runs in hand stood still for too long: those of a company go on alone, one alone has failed."""
        self.still, self.at_limit = 0, None
        cohort = self.cohorts[0]
        said = f"no progress in {MOST_STILL} time limits in a row"
        if len(cohort) > 1:
            print(f"{said}: {len(cohort)} runs go on one by one")
            self.cohorts[0:1] = [[run_id] for run_id in cohort]
            return
        hint = "raise timeout_min in the cluster file, or its signal_delay_s if a checkpoint takes longer than that"
        self._fail(cohort[0], f"{said}: {hint}")
        del self.cohorts[0]

    def _near_limit(self) -> bool:
        """Whether this is the time limit's signal and not preemption's. SLURM may send it a minute early."""
        return time.time() - self._started > self._limit_s - self.signal_delay_s - 90

    def _left(self, cohort: Sequence[str]) -> list[str]:
        return [run_id for run_id in cohort if run_id in self.orders]

    def _mark(self, cohort: Sequence[str]) -> str:
        """Changes whenever one of these runs gets on: a checkpoint is only written after a step."""
        return " ".join(f"{run_id} {_written(self._folder(run_id).last)}" for run_id in cohort)

    def _folder(self, run_id: str) -> store.RunFolder:
        return store.run_folder(self.post.out, run_id)


def _written(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def gpus_given() -> int:
    """How many GPUs SLURM gave this job, as its own variables say."""
    if (count := os.environ.get("SLURM_GPUS_ON_NODE", "")).isdigit():
        return int(count)
    ranges = re.findall(r"(\d+)(?:-(\d+))?", os.environ.get("SLURM_JOB_GPUS", ""))
    # Part of a GPU (mps, shard) is told by this one alone; that of the shell that submitted did not reach the job.
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name not in NO_GPU]
    return sum(int(last or first) - int(first) + 1 for first, last in ranges) or len(visible)


def _time_limit_s() -> float | None:
    """What the job has, where SLURM tells it (since 23.02): a site may have made less of what was asked for."""
    begin, end = (os.environ.get(f"SLURM_JOB_{which}_TIME", "") for which in ("START", "END"))
    return float(end) - float(begin) if begin.isdigit() and end.isdigit() and end > begin else None
