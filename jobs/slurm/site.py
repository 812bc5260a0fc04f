"""What a cluster is like, as SLURM tells it: limits of arrays and times, the GPUs of its partitions."""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import cache
from typing import TYPE_CHECKING

from jobs.slurm import programs

if TYPE_CHECKING:
    from jobs.slurm.cluster import Resources

Found = frozenset[tuple[str, str | None]]  # pairs of a partition and a type of GPU there, None: GPUs without a type


def forget() -> None:
    """What was asked before is asked again."""
    for asked in (max_array_size, _default_minutes, _gpus):
        asked.cache_clear()


@cache
def max_array_size(clusters: str | None = None) -> int:
    """How many tasks an array may have on each of these clusters."""
    sizes = []
    for cluster in _each(clusters):
        for line in (programs.ask("scontrol", "show", "config", clusters=cluster) or "").splitlines():
            key, _, value = line.partition("=")
            if key.strip() == "MaxArraySize" and value.strip().isdigit():
                sizes.append(max(1, int(value)))
    return min(sizes, default=1001)  # SLURM's default


def minutes(wanted: Resources) -> int:
    """The time limit of a job."""
    return wanted.timeout_min or _default_minutes(wanted.partition, wanted.clusters)


@cache
def _default_minutes(partition: str | None, clusters: str | None) -> int:
    """The time limit that a job without one gets: its partition's."""
    found = []
    for cluster in _each(clusters):
        said = programs.ask("scontrol", "--oneliner", "show", "partition", clusters=cluster) or ""
        for line in said.splitlines():
            values = dict(word.partition("=")[::2] for word in line.split())
            mine = values.get("PartitionName") in partition.split(",") if partition else values.get("Default") == "YES"
            limit = values.get("DefaultTime")
            limit = limit if limit not in (None, "NONE") else values.get("MaxTime")
            if mine and limit:
                found.append(in_minutes(limit))
    return min(found, default=60)


def in_minutes(text: str) -> int:
    """[days-]hours:minutes:seconds, or UNLIMITED: a week."""
    try:
        days, _, clock = text.rpartition("-")
        hours, minutes, _seconds = clock.split(":")
        return max(1, int(days or 0) * 1440 + int(hours) * 60 + int(minutes))
    except ValueError:
        return 7 * 1440


def gpus(wanted: Resources) -> Found | None:
    """The GPUs where such a job may run; None where SLURM does not tell."""
    return _gpus(wanted.partition, wanted.clusters)


@cache
def _gpus(partition: str | None, clusters: str | None) -> Found | None:
    where = [f"--partition={partition}"] if partition else []
    said = programs.ask("sinfo", "--noheader", "--format=%P|%G", *where, clusters=clusters)
    if said is None:
        return None
    rows = [line.strip().split("|", 1) for line in said.splitlines() if "|" in line]
    if not partition:  # a star marks the default partition, where a job goes
        rows = [row for row in rows if row[0].endswith("*")] or rows
    found = set()
    for name, resources in rows:
        # gpu:a100:2(S:0-1), gpu:2, (null)
        for kind in re.findall(r"(?:^|,)gpu:(?:([^:,(]*[^:,(\d][^:,(]*|[^:,(]+(?=:\d)):)?\d", resources.strip()):
            found.add((name.rstrip("*"), kind or None))
    return frozenset(found)


def gpu_remedy(wanted: Resources, refusal: str) -> str | None:
    """What to write instead, where a job was refused for its GPUs, or None if it was not."""
    if not wanted.gpu_count or not re.search("gres|generic resource|node config|gpu", refusal, re.I):
        return None
    found = gpus(wanted)
    if found is None:
        return None
    if not found:
        where = f"partition {wanted.partition}" if wanted.partition else "this cluster"
        return f"{where} has no GPUs: add --device cpu, or write gpus: 0 in the cluster file"
    types = sorted({kind for _, kind in found if kind})
    if types and wanted.gpu_type not in types:
        return f"it has {_in_words(found)}: write gpus: {types[0]}:{wanted.gpu_count} in the cluster file"
    return None


def gpu_remark(all_wanted: Collection[Resources], device: str) -> str | None:
    """One line where jobs and GPUs do not go together as one would expect, and nothing is wrong."""
    without = [wanted for wanted in all_wanted if not wanted.gpu_count]
    if device == "cpu" or not without:
        return None
    if device == "cuda":
        return "--device cuda, and jobs ask for no GPU (gpus: 0): they train on what their node shows them, or end"
    for wanted in without:
        if found := gpus(wanted):
            kind = next((kind for _, kind in sorted(found, key=str) if kind), None)
            ask = f"gpus: {kind}:1" if kind else "gpus: 1"
            return f"jobs that ask for no GPU train on the CPU, though there are {_in_words(found)}: {ask} asks for one"
    return None


def _in_words(found: Found) -> str:
    """a100 and v100 GPUs (partition gpu), GPUs (partition old)"""
    partitions: dict[str, list[str]] = {}
    for partition, kind in sorted(found, key=str):
        partitions.setdefault(partition, []).append(kind or "")
    return ", ".join(
        f"{' and '.join(filter(None, kinds))} GPUs".strip() + f" (partition {partition})"
        for partition, kinds in partitions.items()
    )


def _each(clusters: str | None) -> list[str | None]:
    """scontrol takes one cluster at a time."""
    return [*clusters.split(",")] if clusters else [None]
