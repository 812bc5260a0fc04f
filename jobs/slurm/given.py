"""What SLURM made of a job, compared with what the cluster file says.

Plug-ins, defaults and limits of a site may change a job, and no program says so.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from jobs.slurm import programs, site
from jobs.slurm.scheduler import split

if TYPE_CHECKING:
    from jobs.slurm.cluster import Resources

UNITS = {"": 1 / 1024, "K": 1 / 1024**2, "M": 1 / 1024, "G": 1.0, "T": 1024.0}  # of SLURM's sizes, in GiB


def differences(job: str, wanted: Resources) -> str | None:
    """One line on how a job that was just submitted differs from what was asked for; None if it does not."""
    number, cluster = split(job)
    said = programs.call("scontrol", "--oneliner", "show", "job", number.partition("_")[0], clusters=cluster)
    if said.failed or not said.out.strip():
        return f"job {number} was not compared with the cluster file: {said.failed or 'scontrol does not know it'}"
    found = compare(fields(said.out.splitlines()[0]), wanted)
    return f"SLURM made of job {number}: {'; '.join(found)}" if found else None


def fields(line: str) -> dict[str, str]:
    """The values of a line of `scontrol --oneliner show job`. Values with blanks (paths, commands) lose their ends."""
    return dict(found.groups() for found in re.finditer(r"(?:^|\s)([A-Za-z][\w/:]*)=(\S*)", line))


def compare(job: dict[str, str], wanted: Resources) -> list[str]:
    """Differences, each as what it is and what was asked for."""
    found = []

    def note(name: str, is_now: str, asked: object) -> None:
        found.append(f"{name} {is_now} (asked for {asked})")

    partitions = job.get("Partition", "")
    if wanted.partition and not set(partitions.split(",")) <= set(wanted.partition.split(",")):
        note("partition", partitions, wanted.partition)
    if wanted.account and job.get("Account", wanted.account).lower() != wanted.account.lower():
        note("account", job["Account"], wanted.account)
    if wanted.qos and job.get("QOS", wanted.qos) != wanted.qos:
        note("qos", job["QOS"], wanted.qos)
    if wanted.constraint and job.get("Features", wanted.constraint) != wanted.constraint:
        note("constraint", job["Features"], wanted.constraint)
    limit = job.get("TimeLimit", "")
    if wanted.timeout_min and limit and limit != "Partition_Limit" and site.in_minutes(limit) != wanted.timeout_min:
        note("time limit", limit, f"{wanted.timeout_min} min")
    cpus = job.get("CPUs/Task", "")
    if cpus.isdigit() and int(cpus) != wanted.cpus_per_task:
        note("cores", cpus, wanted.cpus_per_task)
    memory = job.get("MinMemoryNode")
    if wanted.mem_gb and memory and (size := _gigabytes(memory)) is not None:
        if abs(size - wanted.mem_gb) > 0.01 * wanted.mem_gb + 1 / 1024:
            note("memory", memory, f"{wanted.mem_gb:g}G")
    count, types = gpus(job)
    if count is not None and count != wanted.gpu_count:
        trains = "trains on the CPU" if not wanted.gpu_count else "was to train on a GPU" if not count else ""
        note("GPUs", str(count), wanted.gpus)
        found[-1] += f", {trains}" if trains else ""
    elif wanted.gpu_type and types and wanted.gpu_type not in types:
        note("GPUs", ", ".join(sorted(types)), wanted.gpus)
    if job.get("Requeue") == "0":
        found.append("no requeue: at its time limit it ends, and the same command goes on with what is left")
    reservation = wanted.additional.get("reservation")
    if reservation and job.get("Reservation", reservation) != reservation:
        note("reservation", job["Reservation"], reservation)
    return found


def gpus(job: dict[str, str]) -> tuple[int | None, set[str]]:
    """How many GPUs a job on one node asks for, and their types; None where SLURM does not say what it asks for."""
    types, counts = set(), []
    for name in ("ReqTRES", "AllocTRES", "TRES"):  # cpu=2,mem=4G,node=1,billing=2,gres/gpu=1,gres/gpu:a100=1
        for kind, count in re.findall(r"gres/gpu(?::([^=,]+))?=(\d+)", job.get(name, "")):
            types.add(kind)
            counts.append(int(count))
    for name in ("TresPerNode", "TresPerJob", "TresPerTask", "TresPerSocket"):  # gres:gpu:a100:1, gres/gpu:1, gres:gpu
        for part in job.get(name, "").split(","):
            if found := re.fullmatch(r"(?:gres[:/])?gpu(?:[:=]([^:=]*[^:=\d][^:=]*))?(?:[:=](\d+))?", part):
                types.add(found[1])
                counts.append(int(found[2] or 1))
    told = any(name in job for name in ("ReqTRES", "TRES", "TresPerNode", "TresPerJob", "NumCPUs"))
    return (max(counts, default=0) if told else None), {kind for kind in types if kind}


def _gigabytes(text: str) -> float | None:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)", text)
    return float(found[1]) * UNITS[found[2]] if found else None
