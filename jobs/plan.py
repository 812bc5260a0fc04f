"""The plan: what a grid wants, minus what its folder holds, each run with a state and a reason a person can read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from bench import cohorts, store
from bench.cost import cost_flop, shared_flop
from bench.grid import Grid
from bench.measure import calibration
from bench.measure.calibration import Calibration
from jobs import claims, states
from jobs.states import ROLES, Outline, States, Wanted, status
from jobs.status import duration, headline, other_sources
from zoo.errors import BadInput

__all__ = [
    "ROLES",
    "Plan",
    "calibrate",
    "cost_flop",
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
    runs = {
        run_id: Wanted(run.seed, run.teacher.run_id if run.teacher else None, cost_flop(run), shared_flop(run))
        for run_id, run in grid.runs.items()
    }
    protocol = grid.protocol
    return Outline(grid.name, protocol.name, protocol.version, grid.pairs, grid.cells, runs, asked=grid.asked)


def calibrate(plan: Plan, device: torch.device, together: int | None = None) -> Calibration | None:
    """What the runs to do cost on this device, by a short measurement; None where none is to be trained.

    At most `together` of them share a process, and with it the teacher's pass; None: all that fit.
    """
    to_do = {run_id: plan.grid.runs[run_id] for run_id in plan.to_do}
    if not any(map(plan.flop, to_do)):
        return None
    finished = [(plan.grid.runs[run_id], found.result) for run_id, found in plan.statuses.items() if found.result]
    teachers = {run.teacher.run_id for run in to_do.values() if run.teacher}
    found = [] if together == 1 else cohorts.group(to_do, alone=teachers)
    parts = [
        part
        for cohort in found
        for part in cohorts.split(cohort, -(-len(cohort) // (together or len(cohort))), plan.flop)
    ]
    return calibration.calibrate(to_do, finished, device, parts)


def describe(plan: Plan, *, verbose: bool, calibrated: Calibration | None = None, out: Path | None = None) -> str:
    """The plan for a person: counts, runs with their reasons (all, or those a person may want to act on), cost.

    Then how to redo runs of another source of their method, in the folder `out`. A calibration adds the device time of
    each run to do, from its start to its end whatever it has behind it.
    """
    lines = [headline(plan.outline, plan)]
    seconds = calibrated.seconds if calibrated else {}
    for run_id in plan.selected:
        found = plan.statuses[run_id]
        if verbose or found.state in ("running", "interrupted", "failed", "blocked") or "set aside" in found.reason:
            reason = f"  ({found.reason})" if found.reason else ""
            cost = f"  {duration(seconds[run_id])}" if run_id in seconds else ""
            lines.append(f"  {found.state:<11}  {run_id}{reason}{cost}")
    lines += other_sources(plan.outline, plan, out or Path("results"))
    flop = sum(map(plan.flop, plan.to_do))
    if flop:
        guess = _measured(calibrated) if calibrated else _guess(plan, flop)
        lines.append(f"to do: {len(plan.to_do)} runs, {flop / 1e15:.3g} PFLOP{guess}")
    return "\n".join(lines)


def _guess(plan: Plan, flop: float) -> str:
    speed = measured_flop_per_s(plan)
    if not speed:
        return " (no finished run yet to tell the time from)"
    return f", about {duration(flop / speed)} one run at a time"


def _measured(found: Calibration) -> str:
    """The device time of all runs to do, and what it rests on."""
    if not found.seconds:
        return f" (no step could be measured on {found.device}: no time)"
    total_s = sum(found.seconds.values())
    unit, place = ("GPU", "one GPU") if found.cuda else ("CPU", "one CPU core")
    basis = [f"{found.measured} of {found.kinds} kinds of run measured in {found.took_s:.0f} s"]
    if found.finished:
        basis.insert(0, f"{found.finished} of {found.kinds} kinds of run known from finished runs")
    return (
        f", about {duration(total_s)} of {place} = {total_s / 3600:.3g} {unit}-hours "
        f"(calibrated on {found.device}: {', '.join(basis)})"
    )


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
    flop = train_s = 0.0
    for run_id, found in plan.statuses.items():
        seconds = found.result.get("timing", {}).get("train_s") if found.result else None
        if seconds:
            flop += plan.flop(run_id)
            train_s += seconds
    return flop / train_s if train_s else None
