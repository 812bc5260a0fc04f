"""Submitted runs followed to their end: by their own files, and by asking SLURM now and then if they still come."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

from bench import store
from bench.surroundings.commandline import counted
from jobs.slurm import records, scheduler
from jobs.slurm.arrays import teacher_of
from jobs.states import status

if TYPE_CHECKING:
    from jobs.plan import Plan
    from jobs.progress import Progress

NOT_ALL = "not all runs were submitted"
LOOK_S, ASK_S = 2.0, 30.0  # between looks at the files and questions to SLURM


def follow(
    plan: Plan, out: Path, run_ids: Collection[str], progress: Progress, should_stop: Callable[[], str | None]
) -> str | None:
    """Watch submitted runs by their files until all are settled; returns why not all are, or None."""
    pending, running = dict.fromkeys(run_ids), set()
    missed: set[str] = set()  # not in the queue when last asked: the files on a network disk may be late
    blocked: set[str] = set()
    left = 0
    look_at = ask_at = -math.inf
    while pending:
        if reason := should_stop():
            return reason
        if time.monotonic() < look_at:
            time.sleep(0.2)
            progress.tick()
            continue
        began = time.monotonic()
        for run_id in [*pending]:
            if run_id not in pending:  # its teacher has just failed
                continue
            found = status(store.run_folder(out, run_id))
            if found.state == "running":
                if run_id not in running:
                    running.add(run_id)
                    progress.started(run_id)
                continue
            if run_id in running and found.state in ("interrupted", "missing"):
                progress.stopped(run_id, found.reason)
            running.discard(run_id)
            if found.state == "done":
                pending.pop(run_id)
                progress.done(run_id, f"top-1 {found.result['metrics']['top1_last']:.2f}")
            elif found.state == "failed":
                pending.pop(run_id)
                progress.failed(run_id, "failed", found.reason)
                for student in [r for r in plan.to_do if teacher_of(plan.grid, r) == run_id]:
                    pending.pop(student, None)
                    progress.failed(student, "blocked", f"its teacher {run_id} failed")
                    blocked.add(student)
        now = time.monotonic()
        look_at = now + max(LOOK_S, 10 * (now - began))
        if now > ask_at:
            ask_at = now + ASK_S
            gone = _not_queued(out, pending.keys() - running)
            for run_id in sorted(gone & missed):
                pending.pop(run_id)
                left += 1
                said = records.last_words(out, run_id)
                words = f"left the queue without a result{f' ({said})' if said else ''}"
                progress.note(run_id, f"{words}: output of its job in {out / records.FOLDER}")
            missed = gone
    if left:
        return f"{counted(left, 'run')} left the queue without a result"
    return NOT_ALL if set(plan.to_do) - set(run_ids) - blocked else None


def _not_queued(out: Path, run_ids: Collection[str]) -> set[str]:
    try:
        found = records.read(out)
    except store.Unreadable:  # nothing is known now; it is asked again
        return set()
    queue = scheduler.queue(found)
    if queue is None:
        return set()
    return set(run_ids) - {run_id for record in found for run_id, job in record.by_run.items() if job in queue}
