"""What SLURM is told and asked about jobs: the batch script, submission, the queue, cancelling."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.slurm import programs, site
from zoo.errors import BadInput

if TYPE_CHECKING:
    from jobs.slurm.cluster import Resources
    from jobs.slurm.records import Record
    from jobs.slurm.task import Task

FOREVER = 1_000_000  # requeues: a task notices by itself when there is no progress


class Refused(Exception):
    """sbatch did not take a job; the message is one line. `silent`: SLURM did not answer, which is no refusal."""

    def __init__(self, message: str, silent: bool = False) -> None:
        super().__init__(message)
        self.silent = silent

    @property
    def too_many(self) -> bool:
        """Whether a smaller array might be taken: there are limits on how many jobs a user may have in the queue."""
        return "limit" in str(self) or "policy" in str(self)


@dataclass(frozen=True)
class Job:
    """A job, or one task of an array, that still waits or runs."""

    name: str
    state: str
    reason: str = ""

    @property
    def held(self) -> bool:
        """Whether it waits for a person."""
        return self.state == "PENDING" and ("Held" in self.reason or "held" in self.reason)


def split(job: str) -> tuple[str, str | None]:
    """The id by which SLURM's programs know a job of ours (`12_0@big`), and its cluster; None: that of this machine."""
    number, _, cluster = job.partition("@")
    return number, cluster or None


def queue(found: Collection[Record]) -> dict[str, Job] | None:
    """Jobs of these records that still wait or run, by id (`12`, or `12_0` in an array; with `@CLUSTER` where the
    record names clusters); None where one of the clusters does not answer.
    """
    if not found:
        return {}
    users = ",".join(sorted({record.user for record in found}))
    names: dict[str | None, set[str]] = {}
    for record in found:
        for cluster in record.clusters.split(",") if record.clusters else (None,):
            names.setdefault(cluster, set()).add(record.name)
    jobs = {}
    for cluster, mine in names.items():  # one at a time: without a header squeue does not say which cluster has a job
        said = programs.ask(
            *("squeue", "--noheader", "--array", f"--user={users}", "--format=%i|%j|%T|%r"), clusters=cluster
        )
        if said is None:
            return None
        for line in said.splitlines():
            if line.count("|") < 3:
                continue
            number, name, state, reason = line.split("|", 3)
            if name not in mine:
                continue
            job = f"{number}@{cluster}" if cluster else number
            if state == "PENDING" and reason == "DependencyNeverSatisfied":
                cancel([job])  # it waits for a teacher that failed, and SLURM has not removed it yet
                continue
            jobs[job] = Job(name, state, reason)
    return jobs


def cancel(jobs: Collection[str]) -> str | None:
    """End jobs; one line where SLURM says that it could not, or None."""
    by_cluster: dict[str | None, list[str]] = {}
    for job in jobs:
        number, cluster = split(job)
        by_cluster.setdefault(cluster, []).append(number)
    replies = [programs.call("scancel", *numbers, clusters=cluster) for cluster, numbers in by_cluster.items()]
    return "; ".join(reply.failed for reply in replies if reply.failed) or None


def submit(
    folder: Path, name: str, tasks: Sequence[Task], wanted: Resources, code: Path, after: str | None
) -> tuple[tuple[str, ...], str | None]:
    """One call of sbatch; returns the job id of each task, and the cluster that took them. Raises Refused.

    What submitit's own `submit_array` does, with a time-out, an environment of ours, and the cluster's name.
    """
    from submitit.core.utils import DelayedSubmission, JobPaths

    executor = _executor(folder, wanted, name, code, after)
    folder.mkdir(parents=True, exist_ok=True)
    waiting = [folder / f"task-{number}.pkl" for number in range(len(tasks))]
    for task, path in zip(tasks, waiting, strict=True):
        delayed = DelayedSubmission(task)
        delayed.set_timeout(site.minutes(wanted), FOREVER)
        delayed.dump(path)
    if len(tasks) > 1:
        executor.parameters["map_count"] = len(tasks)
    script = folder / "submission.sh"
    script.write_text(executor._make_submission_file_text(executor._submitit_command_str, name))
    reply = programs.call("sbatch", str(script), clusters=wanted.clusters)
    if reply.failed:
        raise Refused(reply.failed, reply.silent)
    said = re.search(r"batch job (\d+)(?: on cluster (\S+))?", reply.out)
    if not said:
        raise Refused(f"sbatch answers {' '.join(reply.out.split())[:200]!r}, without the number of a job")
    jobs = tuple(f"{said[1]}_{number}" for number in range(len(tasks))) if len(tasks) > 1 else (said[1],)
    for job, path in zip(jobs, waiting, strict=True):
        JobPaths(folder, job).move_temporary_file(path, "submitted_pickle")
    return jobs, said[2] or wanted.clusters


def check_accepted(all_wanted: Collection[Resources], folder: Path) -> None:
    """Have submitit and SLURM look at what jobs would ask for; BadInput before anything is submitted."""
    if "%" in str(folder):
        raise BadInput(f'--out "{folder}": SLURM fills in what follows a % in the names of logs; give another folder')
    for wanted in {resources.model_dump_json(): resources for resources in all_wanted}.values():
        try:
            executor = _executor(folder, wanted, "kd-check", folder, None)
            script = executor._make_submission_file_text("true", "check")
        except (TypeError, ValueError, RuntimeError) as error:
            raise BadInput(f"cluster file: {programs.one_line(error)}") from None
        reply = programs.call("sbatch", "--test-only", text=script, clusters=wanted.clusters)
        if reply.silent:
            raise BadInput(f"SLURM does not answer ({reply.failed}): try again later, or use --executor local")
        if not reply.failed:
            continue
        # While its nodes are down SLURM says so of a job that it would queue: then sbatch itself has the last word.
        maybe_down = re.fullmatch("Requested node config.*", reply.failed)
        remedy = site.gpu_remedy(wanted, reply.failed)
        if remedy or not maybe_down:
            raise BadInput(f"SLURM refuses: {reply.failed}; {remedy or 'correct --cluster, or use --executor local'}")


def _executor(folder: Path, wanted: Resources, name: str, code: Path, after: str | None) -> Any:
    import submitit

    # No srun, and Python in the place of the batch shell: srun would answer SIGTERM by killing its tasks at once,
    # without the time to write a checkpoint, and gives them one core of several since SLURM 22.05.
    executor = submitit.SlurmExecutor(folder, max_num_timeout=FOREVER, python=f"exec {shlex.quote(sys.executable)}")
    executor.update_parameters(**_parameters(wanted, name, code, after))
    return executor


def _parameters(wanted: Resources, name: str, code: Path, after: str | None) -> dict[str, Any]:
    """The options of sbatch, as submitit takes them; None is left out.

    All that a job's course depends on is given, so that no default of a person or a site stands in for it.
    """
    return {
        "job_name": name,
        "partition": wanted.partition,
        "account": wanted.account,
        "qos": wanted.qos,
        "constraint": wanted.constraint,
        "time": site.minutes(wanted),
        "mem": f"{round(1024 * wanted.mem_gb)}M" if wanted.mem_gb else None,
        "cpus_per_task": wanted.cpus_per_task,
        "gpus_per_node": wanted.gpus if wanted.gpu_count else None,
        "array_parallelism": wanted.array_parallelism or FOREVER,
        "setup": wanted.setup or None,
        "dependency": f"afterok:{split(after)[0]}" if after else None,
        "wckey": None,  # submitit's own is refused where these keys are enforced
        "stderr_to_stdout": True,
        "use_srun": False,
        "additional_parameters": {
            "propagate": "NONE",  # of the limits (ulimit) of the shell that submits; a login node's are low
            **{option: value for option, value in wanted.additional.items() if value is not False},
            "ntasks": 1,
            "chdir": str(code),  # `python -m` imports from there
            "signal": f"B:USR2@{wanted.signal_delay_s}",  # B: to the batch shell, whose place Python takes
            "requeue": True,
            "export": "ALL",  # what of the environment that is: `programs.environment`
            "kill-on-invalid-dep": "yes",
        },
    }
