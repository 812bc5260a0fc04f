"""The SLURM executor: job arrays, students after their teachers' tasks, nothing submitted twice.

The driver keeps no state: what it submitted is in `OUT/submitted/`, what became of it in the runs' own files, and
squeue says what is still to come. sacct is never asked.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench import store
from jobs import claims
from jobs.slurm import records, scheduler
from jobs.states import status
from zoo.errors import BadInput

if TYPE_CHECKING:
    from bench.grid import Grid
    from jobs.plan import Plan
    from jobs.progress import Progress
    from jobs.slurm.cluster import Resources

CLAIM_WAIT_S = claims.STALE_S + 20  # for another driver's submission into the same folder, or to see that it is dead
COMPLETING_WAIT_S = 40.0  # for jobs that end: SLURM kills them 30 s (its KillWait) after it told them to
NOT_ALL = "not all runs were submitted"
LOOK_S, ASK_S = 2.0, 30.0  # between looks at the files and questions to SLURM, while following


@dataclass(frozen=True)
class Array:
    """One call of sbatch: tasks of runs that ask for the same resources and, if so, wait for the same teacher.

    A task is one or more cohorts of runs, done one after another; a cohort's runs are done together.
    """

    resources: Resources
    after: str | None  # run id of the teacher that is not done yet
    tasks: tuple[tuple[tuple[str, ...], ...], ...]

    @property
    def runs(self) -> tuple[tuple[str, ...], ...]:
        """The runs of each task."""
        return tuple(tuple(itertools.chain(*task)) for task in self.tasks)


def arrays(
    grid: Grid,
    run_ids: Collection[str],
    resources: Mapping[str, Resources],
    *,
    ready: Collection[str],
    most_tasks: int,
) -> list[Array]:
    """Group runs, which come teachers first, into arrays of at most `most_tasks` tasks; the order is kept.

    A teacher has a task to itself, since its students wait for that task; the runs of any task share one teacher.
    `ready` names the teachers that nobody has to wait for.
    """
    from bench import cohorts
    from bench.cost import cost_flop

    def together(run_ids: Sequence[str], most: int | None) -> list[tuple[str, ...]]:
        """Cohorts of at most so many runs."""
        parts = []
        for cohort in cohorts.group({run_id: grid.runs[run_id] for run_id in run_ids}):
            count = -(-len(cohort) // (most or len(cohort)))
            parts += cohorts.split(cohort, count, lambda run_id: cost_flop(grid.runs[run_id]))
        return [*map(tuple, parts)]

    teachers = {run.teacher.run_id for run in grid.runs.values() if run.teacher}
    groups: dict[tuple[str, str | None], dict[str | None, list[str]]] = {}
    for run_id in run_ids:
        run = grid.runs[run_id]
        teacher = run.teacher.run_id if run.teacher else None
        after = teacher if teacher not in ready else None
        by_teacher = groups.setdefault((resources[run_id].model_dump_json(), after), {})
        by_teacher.setdefault(run_id if run_id in teachers else teacher, []).append(run_id)
    made = []
    for (_, after), by_teacher in groups.items():
        wanted = resources[next(iter(by_teacher.values()))[0]]
        tasks = [
            task
            for members in by_teacher.values()
            for task in _filled(together(members, wanted.together), wanted.runs_per_job)
        ]
        made += [Array(wanted, after, part) for part in _pieces(tasks, most_tasks)]
    return made


def _filled(cohorts: Sequence[tuple[str, ...]], most_runs: int) -> list[tuple[tuple[str, ...], ...]]:
    """Tasks of consecutive cohorts: one, and more as long as they are at most so many runs."""
    tasks: list[list[tuple[str, ...]]] = []
    for cohort in cohorts:
        if tasks and sum(map(len, tasks[-1])) + len(cohort) <= most_runs:
            tasks[-1].append(cohort)
        else:
            tasks.append([cohort])
    return [*map(tuple, tasks)]


def _pieces(items: Sequence, size: int) -> list[tuple]:
    return [tuple(items[start : start + size]) for start in range(0, len(items), size)]


@dataclass
class Desk:
    """The submissions of a folder, in the hand of this process alone. `queued`: the job of each run still to come."""

    out: Path
    claim: claims.Claim
    queued: dict[str, str] = field(default_factory=dict)
    answered: bool = True  # whether squeue did; if not, all recorded runs count as queued
    notes: list[str] = field(default_factory=list)

    def forget(self, run_ids: Collection[str]) -> None:
        """Let runs be submitted again although their job may still be busy with others."""
        for record in records.read(self.out):
            if any(run_id in record.by_run for run_id in run_ids):
                records.write(self.out, record.without(run_ids))
        self.queued = {run_id: job for run_id, job in self.queued.items() if run_id not in run_ids}

    def submit(
        self, plan: Plan, resources: Mapping[str, Resources], *, device: str, data_root: Path | None
    ) -> Iterator[str]:
        """Submit what the plan has to do and the queue has not; yields a line for each array and each obstacle.

        Raises BadInput if SLURM takes nothing; what it took stays submitted where it takes no more.
        """
        from jobs.slurm import snapshot

        elsewhere = {r for r in plan.to_do if plan.statuses[r].state == "running" and r not in self.queued}
        wanted = [r for r in plan.to_do if r not in self.queued and r not in elsewhere]
        held = [r for r in wanted if _teacher(plan.grid, r) in elsewhere]
        if elsewhere:
            yield f"{len(elsewhere)} runs are in work by processes that this folder did not submit"
        if held:
            yield f"{len(held)} runs have their teacher among those: the same command submits them when it is done"
        wanted = [r for r in wanted if r not in held]
        if not wanted:
            return
        ready = {run_id for run_id, found in plan.statuses.items() if found.state == "done"}
        todo = arrays(plan.grid, wanted, resources, ready=ready, most_tasks=scheduler.max_array_size())
        code = snapshot.take(self.out)
        while todo:
            array = todo.pop(0)
            try:
                yield self._submit_array(plan.grid, array, code, device, data_root)
            except scheduler.Refused as refusal:
                if refusal.too_many and len(array.tasks) > 1:
                    todo[:0] = [replace(array, tasks=part) for part in _pieces(array.tasks, -(-len(array.tasks) // 2))]
                    continue
                if not self.queued:
                    raise BadInput(f"SLURM refuses the job: {refusal}") from None
                left = sum(len(runs) for one in (array, *todo) for runs in one.runs)
                yield f"SLURM takes no more ({refusal}): the same command submits the other {left} runs later"
                return
            except claims.ClaimLost:
                raise BadInput(f"another process submits into {self.out}: run the command again") from None

    def _submit_array(self, grid: Grid, array: Array, code: Path, device: str, data_root: Path | None) -> str:
        """Record, submit, record the job ids; returns a line that says so."""
        from jobs.child import Post, order
        from jobs.slurm import cluster
        from jobs.slurm.task import Task

        wanted = array.resources
        record = records.Record(secrets.token_hex(6), str(os.getuid()), array.runs)
        post = Post(
            out=self.out,
            device=cluster.device(wanted, device),
            threads=wanted.cpus_per_task,
            data=data_root.resolve() if data_root else None,
            hung_s=60 * wanted.hung_min,
        )
        tasks = [
            Task(
                code=str(code),
                record=str(records.path(self.out, record.token)),
                post=post,
                timeout_min=scheduler.minutes(wanted),
                signal_delay_s=wanted.signal_delay_s,
                cohorts=[*map(list, task)],
                orders={run_id: order(grid, run_id) for run_id in runs},
            )
            for task, runs in zip(array.tasks, array.runs, strict=True)
        ]
        after = self.queued.get(array.after) if array.after else None
        self.claim.check()
        records.write(self.out, record)
        logs = records.logs(self.out, record.token)
        try:
            jobs = scheduler.submit(logs, record.name, tasks, wanted, code, after)
        except scheduler.Refused:
            # Should SLURM have made the job all the same (sbatch may time out): without its record it does nothing.
            records.remove(self.out, record.token, keep_logs=False)
            if after and store.weights_fault(store.run_folder(self.out, array.after)) is None:
                return self._submit_array(grid, replace(array, after=None), code, device, data_root)
            raise
        record = replace(record, jobs=jobs)
        records.write(self.out, record)
        self.queued |= record.by_run
        name = jobs[0] if len(jobs) == 1 else f"{jobs[0].partition('_')[0]}_[0-{len(jobs) - 1}]"
        waits = f", after {after}" if after else ""
        where = f" on {wanted.partition}" if wanted.partition else ""
        return f"submitted {sum(map(len, array.runs))} runs as {name}{where}, {scheduler.minutes(wanted)} min{waits}"


def _teacher(grid: Grid, run_id: str) -> str | None:
    teacher = grid.runs[run_id].teacher
    return teacher.run_id if teacher else None


@contextlib.contextmanager
def desk(out: Path) -> Iterator[Desk]:
    """Take the folder's submissions in hand: of two drivers one waits, and then finds submitted what the other did."""
    out = out.resolve()
    began, said = time.monotonic(), False
    while (claim := claims.acquire(out / records.FOLDER)) is None:
        holder, waited_s = claims.read(out / records.FOLDER), time.monotonic() - began
        who = f"process {holder.pid} on {holder.host}" if holder else "another process"
        if waited_s > CLAIM_WAIT_S:
            raise BadInput(f"{who} has been submitting into {out} for {CLAIM_WAIT_S:g} s: wait for it, or end it")
        if waited_s > 2 and not said:
            print(f"waiting for {who}, which submits into {out}", flush=True)
            said = True
        time.sleep(0.2)
    claim.keep_alive()
    try:
        made = Desk(out, claim)
        _reconcile(made)
        yield made
    finally:
        claim.release()


def _reconcile(desk: Desk) -> None:
    """See which recorded jobs are still to come; heal what a killed driver left half recorded."""
    found = records.read(desk.out)
    for token in set(records.tokens(desk.out)) - {record.token for record in found}:
        desk.notes.append(f"{records.path(desk.out, token)} is damaged: removed, and its jobs will do nothing")
        records.remove(desk.out, token, keep_logs=True)
    queue = _settled_queue(desk.out, found)
    if queue is None:
        desk.answered = False
        for record in found:
            desk.queued |= record.by_run
        desk.notes.append(
            f"squeue does not answer: {len(desk.queued)} runs submitted earlier count as queued (--cancel forgets them)"
        )
        return
    held = {job.reason: job_id for job_id, job in queue.items() if job.held}
    for reason, job in held.items():
        desk.notes.append(f"SLURM holds jobs back, such as {job}: {reason}; scontrol release them, or --cancel")
    for record in found:
        record = record if record.jobs else _heal(desk.out, record, queue)
        waiting = {run_id: job for run_id, job in record.by_run.items() if job in queue} if record else {}
        desk.queued |= waiting
        if record and not waiting:
            done = all(store.run_folder(desk.out, run_id).result.exists() for run_id in record.by_run)
            records.remove(desk.out, record.token, keep_logs=not done)


def _settled_queue(out: Path, found: Collection[records.Record]) -> dict[str, scheduler.Job] | None:
    """The queue, once no job ends with work undone: a cancelled one still in it would count as going to do its runs."""
    runs = {job: task for record in found for job, task in zip(record.jobs or (), record.tasks, strict=False)}
    end = time.monotonic() + COMPLETING_WAIT_S
    while queue := scheduler.queue(found):
        ending = [run_id for job in queue if queue[job].state == "COMPLETING" for run_id in runs.get(job, ())]
        folders = [store.run_folder(out, run_id) for run_id in ending]
        if time.monotonic() > end or all(folder.result.exists() or folder.error.exists() for folder in folders):
            break
        time.sleep(0.5)
    return queue


def _heal(out: Path, record: records.Record, queue: Mapping[str, scheduler.Job]) -> records.Record | None:
    """A record without ids: its driver died around sbatch. Its job is taken over if it is whole, else ended."""
    mine = [job_id for job_id, job in queue.items() if job.name == record.name]
    if mine:
        main, count = mine[0].partition("_")[0], len(record.tasks)
        jobs = tuple(f"{main}_{index}" for index in range(count)) if count > 1 else (main,)
        if all((records.logs(out, record.token) / f"{job}_submitted.pkl").exists() for job in jobs):
            healed = replace(record, jobs=jobs)
            records.write(out, healed)
            return healed
        scheduler.ask("scancel", main)  # submitit was not through: some tasks would not find what to do
    records.remove(out, record.token, keep_logs=False)
    return None


def cancel(out: Path) -> str:
    """End what this folder has submitted, and forget it; waits for the jobs' checkpoints. Returns one line."""
    if not records.tokens(out):
        return "nothing to cancel: no submission is recorded"
    with desk(out) as made:
        found = records.read(made.out)
        jobs = sorted({main for job in made.queued.values() if (main := job.partition("_")[0]).isdigit()})
        if jobs:
            scheduler.ask("scancel", *jobs)
        for record in found:
            records.remove(made.out, record.token, keep_logs=True)
        if not made.answered:
            return (
                f"SLURM does not answer: {len(found)} submissions are forgotten, so that their waiting jobs will do "
                f"nothing; running ones go on until you scancel {' '.join(jobs)}"
            )
        end = time.monotonic() + COMPLETING_WAIT_S
        while (left := scheduler.queue(found)) and time.monotonic() < end:
            time.sleep(0.5)
        still = f"; SLURM has not ended {', '.join(left)} yet" if left else ""
        return f"cancelled {len(made.queued)} runs in {len(jobs)} jobs{still}"


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
                for student in [r for r in plan.to_do if _teacher(plan.grid, r) == run_id]:
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
                progress.note(run_id, f"left the queue without a result: output of its job in {out / records.FOLDER}")
            missed = gone
    if left:
        return f"{left} runs left the queue without a result"
    return NOT_ALL if set(plan.to_do) - set(run_ids) - blocked else None


def _not_queued(out: Path, run_ids: Collection[str]) -> set[str]:
    found = records.read(out)
    queue = scheduler.queue(found)
    if queue is None:
        return set()
    return set(run_ids) - {run_id for record in found for run_id, job in record.by_run.items() if job in queue}
