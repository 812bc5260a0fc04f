"""The cluster file: what a SLURM job asks for, in YAML, checked before anything is submitted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

import methods
import zoo
from bench.grid import Grid
from bench.protocol import CHECKPOINT
from bench.run import Run
from bench.surroundings import yamlio
from jobs import claims
from jobs.plan import ROLES
from jobs.slurm import words
from methods import Settings, check
from zoo.errors import BadInput, choose

FOLDER = Path(__file__).parent / "clusters"

Gpus = Annotated[str, Field(pattern=r"^[\w.+-]+:[1-9]\d*$")]
Word = Annotated[str, Field(min_length=1, pattern=r"^\S+$")]


class Resources(Settings):
    """What one job asks for. None leaves it to the cluster."""

    partition: Word | None = None
    """Partition, or several as a,b."""
    account: Word | None = None
    """Account that is charged."""
    qos: Word | None = None
    """Quality of service."""
    constraint: Word | None = None
    """Features that a node must have."""
    timeout_min: Annotated[int, Field(gt=0, le=60 * 24 * 366)] | None = None
    """Time limit in minutes, or as SLURM writes it (4:00:00, 1-00:00:00); null is the partition's default. A run that
    is not done by then goes on in the same job, requeued.
    """
    mem_gb: PositiveFloat | None = None
    """Memory of a job in GB, or as 16G, 16000M; null is the cluster's default."""
    cpus_per_task: Annotated[int, Field(gt=0, le=4096)] = 2
    """Cores of a job."""
    clusters: Word | None = None
    """Clusters, of several with one login, among which SLURM chooses; null is this one."""
    gpus: int | Gpus = 1
    """GPUs of a job, as a count or TYPE:COUNT (a100:1); 0 trains on the CPU. A run uses one."""
    array_parallelism: PositiveInt | None = None
    """Tasks of one array that may run at once; null is as many as the cluster lets."""
    together: PositiveInt | None = None
    """Runs of one teacher and seed that share a process at most; null is all that fit; never teachers."""
    runs_per_job: PositiveInt = 1
    """Runs of a job: groups follow one another up to so many; never teachers."""
    hung_min: Annotated[float, Field(gt=0, le=60 * 24 * 366)] = claims.HUNG_S / 60
    """Minutes without a step after which a worker is killed; its runs go on from their checkpoints."""
    signal_delay_s: Annotated[int, Field(ge=1, le=3600)] = 120
    """Seconds before the time limit at which a job writes its checkpoint and asks to be requeued."""
    setup: list[str] = []
    """Lines of shell before Python starts, as a list or a block of text."""
    additional: dict[str, str | int | float | bool] = {}
    """Other options of sbatch, without dashes: {exclude: node3}."""

    @model_validator(mode="after")
    def _limit_after_signal(self) -> Resources:
        if self.timeout_min is not None and self.signal_delay_s >= 60 * self.timeout_min:
            raise ValueError(f"signal_delay_s {self.signal_delay_s} leaves nothing of timeout_min {self.timeout_min}")
        return self

    @property
    def gpu_count(self) -> int:
        """How many GPUs a job holds. A run uses one."""
        return self.gpus if isinstance(self.gpus, int) else int(self.gpus.rpartition(":")[2])

    @property
    def gpu_type(self) -> str | None:
        return None if isinstance(self.gpus, int) else self.gpus.rpartition(":")[0]

    @field_validator("additional")
    @classmethod
    def _not_ours(cls, additional: dict[str, Any]) -> dict[str, Any]:
        for name in additional:
            if name in words.OURS:
                instead = f"use {words.OURS[name]}" if words.OURS[name] else "submission sets it"
                raise ValueError(f'"{name}" has no place in additional: {instead}')
        return additional


class Match(Settings):
    """Which runs a class is for: all conditions hold. `method: teacher` is any run that others learn from."""

    method: str | list[str] | None = None
    """Methods, or teacher: every run that others learn from, or student: the Student row."""
    teacher: str | list[str] | None = None
    """Architectures of the teacher."""
    student: str | list[str] | None = None
    """Architectures of the student."""

    def fits(self, run: Run, is_teacher: bool) -> bool:
        facts = {
            "method": {run.method, "teacher" if is_teacher else "student" if run.teacher is None else run.method},
            "teacher": {run.teacher.arch if run.teacher else None},
            "student": {run.student},
        }
        return all(facts[key] & set(_many(value)) for key, value in self if value is not None)


class ResourceClass(Resources):
    """Settings that replace the file's own for the runs that match."""

    match: Match
    """The runs that these settings are for: all conditions hold."""

    def _limit_after_signal(self) -> ResourceClass:
        return self  # half of the two numbers may stand in the file's own settings: `Cluster.resources` checks both


class Cluster(Resources):
    """A cluster file as written: the settings of every job, and classes of runs that need others."""

    classes: list[ResourceClass] = []
    """Settings of the keys above for runs that need others; all that match are laid over one another in their order."""

    def resources(self, run: Run, *, is_teacher: bool) -> Resources:
        """What the job of a run asks for: all classes that match, one laid over the other in their order."""
        values = {name: getattr(self, name) for name in Resources.model_fields}
        for entry in self.classes:
            if entry.match.fits(run, is_teacher):
                values |= {name: getattr(entry, name) for name in entry.model_fields_set - {"match"}}
        if is_teacher:
            values["runs_per_job"] = 1
        return check(Resources, values, f"cluster file, for {run.run_id}")

    def of_all(self, grid: Grid, *, device: str = "auto", **instead: Any) -> dict[str, Resources]:
        """What the job of each run of a grid asks for. Without a GPU where `device` is "cpu".

        `instead` holds settings that replace those of the file and its classes for all runs, unless they are None.
        """
        teachers = {run.teacher.run_id for run in grid.runs.values() if run.teacher}
        wanted = {run_id: self.resources(run, is_teacher=run_id in teachers) for run_id, run in grid.runs.items()}
        instead = {name: value for name, value in instead.items() if value is not None}
        if device == "cpu":
            instead["gpus"] = 0
        return {run_id: found.model_copy(update=instead) for run_id, found in wanted.items()}


def device(wanted: Resources, asked: str) -> str:
    """Where a job's worker trains: `auto` is the job's GPU if it has one."""
    part = any(words.PART_OF_A_GPU.match(one) for one in str(wanted.additional.get("gres", "")).split(","))
    return asked if asked != "auto" else "cuda" if wanted.gpu_count or part else "cpu"


def names() -> list[str]:
    """Cluster files that come with the project."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str | None) -> Cluster:
    """A cluster by name or by the path of a YAML file; None is one GPU, two cores, and the cluster's own defaults."""
    if name is None:
        return Cluster()
    path = yamlio.find(name, "cluster", FOLDER)
    cluster = check(Cluster, _as_meant(yamlio.read(path, "cluster", may_be_empty=True), path), _said(path))
    where = f"match in {_said(path)}"
    known = {"method": ("method", [*methods.names(), *ROLES, CHECKPOINT])}
    known |= dict.fromkeys(("teacher", "student"), ("architecture", zoo.architectures()))
    classes = []
    for entry in cluster.classes:
        if not entry.match.model_fields_set:
            raise BadInput(f"{where} is empty: it needs method, teacher or student")
        chosen = {}
        for key, value in entry.match:
            if value is not None:
                kind, options = known[key]
                chosen[key] = [choose(f"{kind} of {where}", name, options) for name in _many(value)]
        classes.append(entry.model_copy(update={"match": entry.match.model_copy(update=chosen)}))
    return cluster.model_copy(update={"classes": classes})


def _said(path: Path) -> str:
    return f'cluster file "{path.name}"'


def _as_meant(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """What the file says in the words of `Cluster`, its classes, too."""
    made = words.as_meant(values, _said(path), Cluster)
    if isinstance(classes := made.get("classes"), list):
        made["classes"] = [
            words.as_meant(entry, f"{_said(path)}, classes, number {number}", ResourceClass)
            if isinstance(entry, dict)
            else entry
            for number, entry in enumerate(classes, start=1)
        ]
    return made


def _many(value: str | list[str] | None) -> list[str]:
    """The names that a condition gives: one, several with commas between them, or a list."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value or []
