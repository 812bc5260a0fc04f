"""What a results folder has submitted: `OUT/submitted/<token>.json`, written before sbatch is called.

A record is also the licence of its jobs: a job whose record is gone does nothing. So a driver killed at any moment, or
an sbatch that answers too late, can leave a job behind, but never one that does work nobody knows of.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bench import store

FOLDER = "submitted"


@dataclass(frozen=True)
class Record:
    """One call of sbatch: the runs of each task and, once sbatch has answered, the job id of each (`12_0`, ...).

    `clusters`: those it may go to, then the one that took it; None where there is only that of this machine.
    """

    token: str
    user: str
    tasks: tuple[tuple[str, ...], ...]
    jobs: tuple[str, ...] | None = None
    clusters: str | None = None

    @property
    def name(self) -> str:
        """The name of the job, by which squeue finds it where its id was never written down."""
        return f"kd-{self.token}"

    @property
    def ids(self) -> tuple[str, ...]:
        """The jobs as `scheduler.queue` names them: ids are a cluster's own, so with `@CLUSTER` where one is named."""
        return tuple(f"{job}@{self.clusters}" if self.clusters else job for job in self.jobs or ())

    @property
    def by_run(self) -> dict[str, str]:
        """The job of each run."""
        jobs = self.ids or [self.name] * len(self.tasks)
        return {run_id: job for job, task in zip(jobs, self.tasks, strict=True) for run_id in task}

    def without(self, run_ids: Sequence[str]) -> Record:
        """The same jobs with some of their runs forgotten, so that these may be submitted again."""
        return replace(self, tasks=tuple(tuple(r for r in task if r not in run_ids) for task in self.tasks))


def path(out: Path, token: str) -> Path:
    return out / FOLDER / f"{token}.json"


def logs(out: Path, token: str) -> Path:
    """Where submitit keeps the batch script, the tasks and their output."""
    return out / FOLDER / token


def last_words(out: Path, run_id: str) -> str | None:
    """The last line that the job of a run wrote; None where it wrote nothing."""
    for record in read(out):
        for job, task in zip(record.jobs or (), record.tasks, strict=False):
            if run_id in task:
                try:
                    text = (logs(out, record.token) / f"{job}_0_log.out").read_text(errors="replace")
                except OSError:
                    return None
                lines = [line.strip() for line in text.splitlines() if line.strip()]
                return lines[-1].removeprefix("RuntimeError: ") if lines else None
    return None


def read(out: Path) -> list[Record]:
    """All whole records. A damaged one belongs to no run, and its jobs do nothing: see `tokens`.

    Unreadable where one cannot be read now: its runs may be in the queue.
    """
    found = []
    for token in tokens(out):
        try:
            text = store.read_bytes(path(out, token))
            if text is None:  # it has just been removed
                continue
            said = json.loads(text)
            tasks = tuple(tuple(str(run_id) for run_id in task) for task in said["tasks"])
            jobs = None if said["jobs"] is None else tuple(str(job) for job in said["jobs"])
            if tasks and (jobs is None or len(jobs) == len(tasks)):
                clusters = said.get("clusters")  # older records have none
                found.append(Record(token, str(said["user"]), tasks, jobs, None if clusters is None else str(clusters)))
        except (store.Damaged, ValueError, KeyError, TypeError):
            continue
    return found


def tokens(out: Path) -> list[str]:
    try:
        names = sorted(os.listdir(out / FOLDER))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [name[:-5] for name in names if re.fullmatch(r"[0-9a-f]{12}\.json", name)]


def submitted(out: Path) -> dict[str, str]:
    """The job of each run that was submitted and not yet seen to have left the queue. Reads records only."""
    return {run_id: job for record in read(out) for run_id, job in record.by_run.items()}


def write(out: Path, record: Record) -> None:
    values = {key: value for key, value in asdict(record).items() if key != "token"}
    store.write_json(path(out, record.token), values)


def remove(out: Path, token: str, *, keep_logs: bool) -> None:
    path(out, token).unlink(missing_ok=True)
    if not keep_logs:
        shutil.rmtree(logs(out, token), ignore_errors=True)
