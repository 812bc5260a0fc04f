"""What SLURM is told and asked: the one place that calls sbatch (through submitit), squeue, scontrol and scancel."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import BadInput

if TYPE_CHECKING:
    from jobs.slurm.cluster import Resources
    from jobs.slurm.records import Record
    from jobs.slurm.task import Task

COMMAND_S = 90.0  # SLURM's commands retry for a while where its controller is away
FOREVER = 1_000_000  # requeues: a task notices by itself when there is no progress


class Refused(Exception):
    """sbatch did not take a job; the message is one line."""

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


def available() -> bool:
    """Whether to submit rather than run here: sbatch is there and configured, and this is no allocation already."""
    if shutil.which("sbatch") is None or "SLURM_JOB_ID" in os.environ:
        return False
    return ask("sbatch", "--version") is not None


def ask(*command: str) -> str | None:
    """What a SLURM command prints; None if it fails or does not answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def queue(found: Collection[Record]) -> dict[str, Job] | None:
    """Jobs of these records that still wait or run, by id (`12`, or `12_0` in an array); None without an answer."""
    if not found:
        return {}
    users = ",".join(sorted({record.user for record in found}))
    said = ask("squeue", "--noheader", "--array", f"--user={users}", "--format=%i|%j|%T|%r")
    if said is None:
        return None
    names = {record.name for record in found}
    jobs = {}
    for line in said.splitlines():
        job, name, state, reason = line.split("|", 3)
        if name not in names:
            continue
        if state == "PENDING" and reason == "DependencyNeverSatisfied":
            ask("scancel", job)  # it waits for a teacher that failed, and SLURM has not removed it yet
            continue
        jobs[job] = Job(name, state, reason)
    return jobs


def submit(
    folder: Path, name: str, tasks: Sequence[Task], wanted: Resources, code: Path, after: str | None
) -> tuple[str, ...]:
    """One call of sbatch; returns the job id of each task. Raises Refused."""
    executor = _executor(folder)
    executor.update_parameters(**_parameters(wanted, name, code, after))
    try:
        with _no_allocation(), contextlib.redirect_stderr(io.StringIO()):  # submitit prints what it raises, too
            return tuple(job.job_id for job in executor.submit_array(tasks))
    except OSError:  # a full disk, for example: that is no refusal
        raise
    except Exception as error:
        raise Refused(_one_line(error)) from None


def check_accepted(all_wanted: Collection[Resources], folder: Path) -> None:
    """Have submitit and SLURM look at what jobs would ask for; BadInput before anything is submitted."""
    if "%" in str(folder):
        raise BadInput(f'--out "{folder}": SLURM fills in what follows a % in the names of logs; give another folder')
    for wanted in {resources.model_dump_json(): resources for resources in all_wanted}.values():
        try:
            executor = _executor(folder)
            executor.update_parameters(**_parameters(wanted, "kd-check", folder, None))
        except (TypeError, ValueError, RuntimeError) as error:
            raise BadInput(f"cluster file: {_one_line(error)}") from None
        script = executor._make_submission_file_text("true", "check")
        with _no_allocation():
            try:
                done = subprocess.run(
                    ["sbatch", "--test-only"], input=script, capture_output=True, text=True, timeout=COMMAND_S
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                raise BadInput(f"sbatch does not answer ({_one_line(error)}): try again later") from None
        # While its nodes are down SLURM says so of a job that it would queue: then sbatch itself has the last word.
        if done.returncode and not re.fullmatch(r"\s*allocation failure: Requested node config.*\s*", done.stderr):
            raise BadInput(f"SLURM refuses: {_one_line(done.stderr)}; correct --cluster, or use --executor local")


def _executor(folder: Path) -> Any:
    import submitit

    # No srun, and Python in the place of the batch shell: srun would answer SIGTERM by killing its tasks at once,
    # without the time to write a checkpoint, and gives them one core of several since SLURM 22.05.
    return submitit.SlurmExecutor(folder, max_num_timeout=FOREVER, python=f"exec {shlex.quote(sys.executable)}")


def _parameters(wanted: Resources, name: str, code: Path, after: str | None) -> dict[str, Any]:
    """The options of sbatch, as submitit takes them; None is left out."""
    return {
        "job_name": name,
        "partition": wanted.partition,
        "account": wanted.account,
        "qos": wanted.qos,
        "constraint": wanted.constraint,
        "time": minutes(wanted),
        "mem": f"{round(1024 * wanted.mem_gb)}M" if wanted.mem_gb else None,
        "cpus_per_task": wanted.cpus_per_task,
        "gpus_per_node": wanted.gpus or None,
        "array_parallelism": wanted.array_parallelism or FOREVER,
        "setup": wanted.setup or None,
        "dependency": f"afterok:{after}" if after else None,
        "wckey": None,  # submitit's own is refused where these keys are enforced
        "stderr_to_stdout": True,
        "use_srun": False,
        "additional_parameters": {
            **{option: value for option, value in wanted.additional.items() if value is not False},
            "chdir": str(code),  # `python -m` imports from there
            "signal": f"B:USR2@{wanted.signal_delay_s}",  # B: to the batch shell, whose place Python takes
            "requeue": True,
            "kill-on-invalid-dep": "yes",
        },
    }


@contextlib.contextmanager
def _no_allocation() -> Iterator[None]:
    """Hide the variables of an allocation that this may run in: jobs would inherit them as their own."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if re.match("SLURM_(?!CONF$)|SUBMITIT_", name)}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _one_line(error: object) -> str:
    """sbatch's words without its name before each of them."""
    lines = [re.sub("^((sbatch|error|fatal|allocation failure): )+", "", line) for line in str(error).splitlines()]
    return "; ".join(line.strip() for line in lines if line.strip()) or type(error).__name__


@cache
def max_array_size() -> int:
    """How many tasks an array of this cluster may have."""
    for line in (ask("scontrol", "show", "config") or "").splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "MaxArraySize" and value.strip().isdigit():
            return max(1, int(value))
    return 1001  # SLURM's default


def minutes(wanted: Resources) -> int:
    """The time limit of a job."""
    return wanted.timeout_min or _default_minutes(wanted.partition)


@cache
def _default_minutes(partition: str | None) -> int:
    """The time limit that a job without one gets: its partition's."""
    minutes = []
    for line in (ask("scontrol", "--oneliner", "show", "partition") or "").splitlines():
        said = dict(word.partition("=")[::2] for word in line.split())
        wanted = said.get("PartitionName") in partition.split(",") if partition else said.get("Default") == "YES"
        limit = said.get("DefaultTime") if said.get("DefaultTime") not in (None, "NONE") else said.get("MaxTime")
        if wanted and limit:
            minutes.append(_minutes(limit))
    return min(minutes, default=60)


def _minutes(text: str) -> int:
    """[days-]hours:minutes:seconds, or UNLIMITED: a week."""
    try:
        days, _, clock = text.rpartition("-")
        hours, minutes, _seconds = clock.split(":")
        return max(1, int(days or 0) * 1440 + int(hours) * 60 + int(minutes))
    except ValueError:
        return 7 * 1440
