"""The SLURM executor: job arrays, students after their teachers' tasks, nothing submitted twice.

The driver keeps no state: what it submitted is in `OUT/submitted/`, what became of it in the runs' own files, and
squeue says what is still to come. sacct is never asked.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench import store
from bench.surroundings.commandline import counted
from jobs import claims
from jobs.slurm import given, records, scheduler, site
from jobs.slurm.arrays import Array, arrays, pieces, teacher_of
from zoo.errors import BadInput

if TYPE_CHECKING:
    from bench.grid import Grid
    from jobs.plan import Plan
    from jobs.slurm.cluster import Resources

CLAIM_WAIT_S = claims.STALE_S + 20  # for another driver's submission into the same folder, or to see that it is dead
COMPLETING_WAIT_S = 40.0  # for jobs that end: SLURM kills them 30 s (its KillWait) after it told them to


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
        held = [r for r in wanted if teacher_of(plan.grid, r) in elsewhere]
        if elsewhere:
            yield f"in work by processes that this folder did not submit: {counted(len(elsewhere), 'run')}"
        if held:
            yield f"to be submitted by the same command when their teachers are done: {counted(len(held), 'run')}"
        wanted = [r for r in wanted if r not in held]
        if not wanted:
            return
        ready = {run_id for run_id, found in plan.statuses.items() if found.state == "done"}
        most = min(site.max_array_size(clusters) for clusters in {resources[run_id].clusters for run_id in wanted})
        todo = arrays(plan.grid, wanted, resources, ready=ready, most_tasks=most)
        code = snapshot.take(self.out)
        while todo:
            array = todo.pop(0)
            if away := self._teacher_elsewhere(array):
                yield f"{counted(array.size, 'run')} {away}: the same command submits them when it is done"
                continue
            try:
                yield from self._submit_array(plan.grid, array, code, device, data_root)
            except scheduler.Refused as refusal:
                if refusal.too_many and len(array.tasks) > 1:
                    todo[:0] = [replace(array, tasks=part) for part in pieces(array.tasks, -(-len(array.tasks) // 2))]
                    continue
                if not self.queued:
                    if refusal.silent:
                        raise BadInput(f"SLURM does not answer ({refusal}): try again later") from None
                    remedy = site.gpu_remedy(array.resources, str(refusal))
                    raise BadInput(f"SLURM refuses the job: {refusal}" + (f"; {remedy}" if remedy else "")) from None
                left = sum(len(runs) for one in (array, *todo) for runs in one.runs)
                why = "does not answer" if refusal.silent else "takes no more"
                yield f"SLURM {why} ({refusal}): the same command submits the other {counted(left, 'run')} later"
                return
            except claims.ClaimLost:
                raise BadInput(f"another process submits into {self.out}: run the command again") from None

    def _teacher_elsewhere(self, array: Array) -> str | None:
        """Why an array cannot wait for its teacher: no job waits for one of another cluster."""
        after, asked = self.queued.get(array.after) if array.after else None, array.resources.clusters
        cluster = scheduler.split(after)[1] if after else None
        if not after or cluster == asked or (cluster and asked and cluster in asked.split(",")):
            return None
        return f"with a teacher on another cluster, as job {after}"

    def _submit_array(self, grid: Grid, array: Array, code: Path, device: str, data_root: Path | None) -> Iterator[str]:
        """Record, submit, record the job ids; yields a line that says so, and one on what SLURM changed."""
        from jobs.child import Post, order
        from jobs.slurm import cluster
        from jobs.slurm.task import Task

        wanted = array.resources
        after = self.queued.get(array.after) if array.after else None
        if after:  # a job waits for those of its own cluster
            wanted = wanted.model_copy(update={"clusters": scheduler.split(after)[1]})
        record = records.Record(secrets.token_hex(6), str(os.getuid()), array.runs, clusters=wanted.clusters)
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
                timeout_min=site.minutes(wanted),
                signal_delay_s=wanted.signal_delay_s,
                cohorts=[*map(list, task)],
                orders={run_id: order(grid, run_id) for run_id in runs},
            )
            for task, runs in zip(array.tasks, array.runs, strict=True)
        ]
        self.claim.check()
        records.write(self.out, record)
        logs = records.logs(self.out, record.token)
        try:
            jobs, taken_by = scheduler.submit(logs, record.name, tasks, wanted, code, after)
        except scheduler.Refused:
            # Should SLURM have made the job all the same (sbatch may time out): without its record it does nothing.
            records.remove(self.out, record.token, keep_logs=False)
            if after and store.weights_fault(store.run_folder(self.out, array.after)) is None:
                yield from self._submit_array(grid, replace(array, after=None), code, device, data_root)
                return
            raise
        record = replace(record, jobs=jobs, clusters=taken_by)
        records.write(self.out, record)
        self.queued |= record.by_run
        name = jobs[0] if len(jobs) == 1 else f"{jobs[0].partition('_')[0]}_[0-{len(jobs) - 1}]"
        waits = f", after {after}" if after else ""
        where = f" on {wanted.partition}" if wanted.partition else ""
        where += f" of cluster {taken_by}" if taken_by else ""
        yield f"submitted {counted(array.size, 'run')} as {name}{where}, {site.minutes(wanted)} min{waits}"
        if changed := given.differences(record.ids[0], wanted):
            yield changed


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
            f"squeue does not answer: {counted(len(desk.queued), 'run')} submitted earlier counted as queued "
            "(--cancel forgets them)"
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
    runs = {job: task for record in found for job, task in zip(record.ids, record.tasks, strict=False)}
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
        (first, cluster), count = scheduler.split(mine[0]), len(record.tasks)
        main = first.partition("_")[0]
        jobs = tuple(f"{main}_{index}" for index in range(count)) if count > 1 else (main,)
        if all((records.logs(out, record.token) / f"{job}_submitted.pkl").exists() for job in jobs):
            healed = replace(record, jobs=jobs, clusters=cluster)
            records.write(out, healed)
            return healed
        scheduler.cancel([_main(mine[0])])  # submission was not through: some tasks would not find what to do
    records.remove(out, record.token, keep_logs=False)
    return None


def _main(job: str) -> str:
    """The job that a task of an array belongs to: `12_0@big` is of `12@big`."""
    number, cluster = scheduler.split(job)
    return number.partition("_")[0] + (f"@{cluster}" if cluster else "")


def cancel(out: Path) -> str:
    """End what this folder has submitted, and forget it; waits for the jobs' checkpoints. Returns one line."""
    if not records.tokens(out):
        return "nothing to cancel: no submission is recorded"
    with desk(out) as made:
        found = records.read(made.out)
        jobs = sorted({_main(job) for job in made.queued.values() if job[0].isdigit()})
        failed = scheduler.cancel(jobs)
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
        still = f"; SLURM has not ended {', '.join(left)} yet" + (f" ({failed})" if failed else "") if left else ""
        return f"cancelled {counted(len(made.queued), 'run')} in {counted(len(jobs), 'job')}{still}"
