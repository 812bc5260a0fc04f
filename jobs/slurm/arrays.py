"""Runs grouped into job arrays: those that ask for the same and wait for the same teacher, as tasks of cohorts."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.grid import Grid
    from jobs.slurm.cluster import Resources


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

    @property
    def size(self) -> int:
        """How many runs there are in all tasks."""
        return sum(map(len, self.runs))


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
        made += [Array(wanted, after, part) for part in pieces(tasks, most_tasks)]
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


def pieces(items: Sequence, size: int) -> list[tuple]:
    return [tuple(items[start : start + size]) for start in range(0, len(items), size)]


def teacher_of(grid: Grid, run_id: str) -> str | None:
    """The run that a run learns from."""
    teacher = grid.runs[run_id].teacher
    return teacher.run_id if teacher else None
