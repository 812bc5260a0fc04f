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
    account: Word | None = None
    qos: Word | None = None
    constraint: Word | None = None
    timeout_min: Annotated[int, Field(gt=0, le=60 * 24 * 366)] | None = None  # None: the partition's default
    mem_gb: PositiveFloat | None = None
    cpus_per_task: Annotated[int, Field(gt=0, le=4096)] = 2
    clusters: Word | None = None  # of several with one login: SLURM chooses among those named; None: this one
    gpus: int | Gpus = 1  # of a job, with their type or without
    array_parallelism: PositiveInt | None = None  # tasks of one array that may run at once
    together: PositiveInt | None = None  # runs that share a process at most; None: all that fit; never teachers
    runs_per_job: PositiveInt = 1  # cohorts follow one another in a job up to so many runs; never teachers
    hung_min: Annotated[float, Field(gt=0, le=60 * 24 * 366)] = (
        claims.HUNG_S / 60
    )  # without a step, after which a worker is killed
    signal_delay_s: Annotated[int, Field(ge=1, le=3600)] = 120  # before the time limit: stop and write the checkpoint
    setup: list[str] = []  # lines of shell that run first
    additional: dict[str, str | int | float | bool] = {}  # other options of sbatch, without the dashes

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
    teacher: str | list[str] | None = None
    student: str | list[str] | None = None

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

    def _limit_after_signal(self) -> ResourceClass:
        return self  # half of the two numbers may stand in the file's own settings: `Cluster.resources` checks both


class Cluster(Resources):
    """A cluster file as written: the settings of every job, and classes of runs that need others."""

    classes: list[ResourceClass] = []

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
