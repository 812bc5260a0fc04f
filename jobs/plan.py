"""The plan: what a grid wants, minus what its folder holds, each run with a state and a reason a person can read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from bench import store
from bench.grid import Grid
from bench.surroundings.commandline import counted
from jobs import claims, states
from jobs.states import ROLES, Outline, States, Wanted, status, worker_s
from jobs.status import duration, headline, other_sources
from zoo.errors import BadInput

__all__ = [
    "ROLES",
    "Plan",
    "ahead",
    "describe",
    "force",
    "make",
    "measured_flop_per_s",
    "outline",
    "retry_failed",
    "status",
]


@dataclass(frozen=True)
class Plan(States):
    """States of all runs of a grid, and the selected ones with the teachers they need, in the order to start them."""

    grid: Grid
    outline: Outline

    @property
    def to_do(self) -> list[str]:
        """Selected runs that are neither done, failed nor blocked; longest first, each teacher before its students."""
        return self.of(*states.TO_DO)

    def flop(self, run_id: str) -> float:
        """What a run costs."""
        return self.outline.runs[run_id].flop


def make(grid: Grid, out: Path, only: Iterable[str] = ()) -> Plan:
    """Look at `out` and plan `grid`. `only` holds filters like "method=kd,student=resnet20": any of them may match."""
    short = outline(grid)
    found = states.look(short, out, only)
    return Plan(found.statuses, found.selected, grid, short)


def outline(grid: Grid) -> Outline:
    """A grid as its states need it."""
    flop = grid.flop()
    runs = {
        run_id: Wanted(run.seed, run.teacher.run_id if run.teacher else None, *flop[run_id])
        for run_id, run in grid.runs.items()
    }
    protocol = grid.protocol
    return Outline(grid.name, protocol.name, protocol.version, grid.pairs, grid.cells, runs, asked=grid.asked)


def describe(
    plan: Plan,
    *,
    each: bool = False,
    seconds: Callable[[str], float | None] = lambda run_id: None,
    out: Path | None = None,
) -> str:
    """The plan for a person: counts, runs with their reasons (`each`, or those a person may want to act on) and times.

    Then how to redo runs of another source of their method, in the folder `out`.
    """
    lines = [headline(plan.outline, plan)]
    for run_id in plan.selected:
        found = plan.statuses[run_id]
        if each or found.state in ("running", "interrupted", "failed", "blocked") or "set aside" in found.reason:
            reason = f"  ({found.reason})" if found.reason else ""
            known = seconds(run_id)
            lines.append(f"  {found.state:<11}  {run_id}{reason}{'' if known is None else f'  {duration(known)}'}")
    return "\n".join([*lines, *other_sources(plan.outline, plan, out or Path("results"))])


def ahead(plan: Plan) -> list[str]:
    """One line on what is to do, and how long it takes at the speed of the finished runs; none where all is done."""
    flop = sum(map(plan.flop, plan.to_do))
    return [f"to do: {counted(len(plan.to_do), 'run')}, {flop / 1e15:.3g} PFLOP{_guess(plan, flop)}"] if flop else []


def _guess(plan: Plan, flop: float) -> str:
    speed = measured_flop_per_s(plan)
    if not speed:
        return " (no finished run yet to tell the time from)"
    return f", about {duration(flop / speed)} one run at a time"


def retry_failed(plan: Plan, out: Path) -> list[str]:
    """Set the error.json of selected failed runs aside, so that they are tried again from their checkpoints."""
    failed = plan.of("failed")
    for run_id in failed:
        store.set_aside(store.run_folder(out, run_id).error)
    return failed


def force(plan: Plan, out: Path, only: Iterable[str]) -> list[str]:
    """Set whole folders of selected runs aside (`OUT/aside/`), so that they start over. Nothing is deleted."""
    chosen = states.select(plan.outline, only)
    for run_id in sorted(chosen):
        path = store.run_folder(out, run_id).path
        holder = claims.read(path) if path.is_dir() else None
        if holder and holder.alive:
            raise BadInput(f"--force: {run_id} is running on {holder.host}, process {holder.pid}: stop it first")
    folders = [store.run_folder(out, run_id).path for run_id in sorted(chosen)]
    folders = [path for path in folders if path.exists()]
    for path in folders:
        store.set_aside(path, out / "aside")
    return [path.name for path in folders]


def measured_flop_per_s(plan: Plan) -> float | None:
    """Speed of the finished runs of this grid, one run at a time; None before the first."""
    flop = seconds = 0.0
    for run_id, found in plan.statuses.items():
        if found.result and (took_s := worker_s(found.result)):
            flop += plan.outline.runs[run_id].part_flop(found.result["timing"].get("together") or 1)
            seconds += took_s
    return flop / seconds if seconds else None
