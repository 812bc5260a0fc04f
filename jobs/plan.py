"""The plan: what a grid wants, minus what its folder holds, each run with a state and a reason a person can read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import methods
import zoo
from bench import experiment, store
from bench.cells import STATES, RunStatus
from bench.data import train_size
from bench.grid import Grid
from bench.run import Run
from jobs import claims
from zoo.errors import BadInput, choose

ONLY_KEYS = ("method", "teacher", "student", "seed")
ROLES = ("teacher", "student")  # `method=teacher` selects the Teacher row, `method=student` the Student row


@dataclass(frozen=True)
class Plan:
    """States of all runs of a grid, and the selected ones with the teachers they need, in the order to start them."""

    grid: Grid
    statuses: Mapping[str, RunStatus]
    selected: tuple[str, ...]

    @property
    def to_do(self) -> list[str]:
        """Selected runs that are neither done, failed nor blocked; longest first, each teacher before its students."""
        return [
            run_id for run_id in self.selected if self.statuses[run_id].state in ("missing", "interrupted", "running")
        ]

    def counts(self) -> dict[str, int]:
        counted = Counter(self.statuses[run_id].state for run_id in self.selected)
        return {state: counted[state] for state in STATES if counted[state]}


def make(grid: Grid, out: Path, only: Iterable[str] = ()) -> Plan:
    """Look at `out` and plan `grid`. `only` holds filters like "method=kd,student=resnet20": any of them may match."""
    statuses = survey(grid.runs, out)
    selected = _select(grid, list(only))
    teachers = {grid.runs[run_id].teacher.run_id for run_id in selected if grid.runs[run_id].teacher}
    wanted = selected | teachers
    for run_id in teachers:
        folder = store.run_folder(out, run_id)
        if statuses[run_id].state == "done" and _students_wait(grid, wanted, statuses, run_id):
            fault = experiment.weights_fault(folder)
            if fault:
                statuses[run_id] = RunStatus(run_id, "missing", f"{fault}: made again, its students need it")
    in_grid_order = [run_id for run_id in grid.runs if run_id in wanted]
    # Teachers first, since students wait for them; then the longest, so that the slots stay busy to the end.
    order = sorted(in_grid_order, key=lambda run_id: (run_id not in teachers, -cost_flop(grid.runs[run_id])))
    return Plan(grid, statuses, tuple(order))


def survey(runs: Mapping[str, Run], out: Path) -> dict[str, RunStatus]:
    """The state of each run from its files alone; students of a failed teacher are blocked."""
    folder = out / "runs"
    present = set(os.listdir(folder)) if folder.is_dir() else set()
    statuses = {
        run_id: status(store.run_folder(out, run_id))
        if run_id in present
        else RunStatus(run_id, "missing", "not started")
        for run_id in runs
    }
    for run_id, run in runs.items():
        found = statuses[run_id]
        if run.teacher and found.state in ("missing", "interrupted"):
            teacher = statuses.get(run.teacher.run_id)
            if teacher and teacher.state == "failed":
                statuses[run_id] = RunStatus(run_id, "blocked", f"its teacher {run.teacher.run_id} failed")
            elif teacher and teacher.state != "done" and found.state == "missing":
                statuses[run_id] = RunStatus(run_id, "missing", f"waits for its teacher {run.teacher.run_id}")
    return statuses


def status(folder: store.RunFolder) -> RunStatus:
    """The state of one run folder. A file that cannot be read counts as absent, and the reason says so."""
    run_id, notes = folder.run_id, []
    try:
        result = store.read_result(folder)
        if result:
            return RunStatus(run_id, "done", "", result)
    except store.Damaged as damage:
        notes.append(f"{damage}, will be set aside")
    holder = claims.read(folder.path)
    if holder and holder.alive:
        where = f"on {holder.host}, process {holder.pid}"
        return RunStatus(run_id, "running", "; ".join([*notes, _progress(holder.progress) + where]))
    try:
        error = store.read_json(folder.error)
        if error:
            return RunStatus(run_id, "failed", str(error.get("message", "no message")))
    except store.Damaged as damage:
        notes.append(f"{damage}, will be set aside")
    if folder.last.exists():
        done = _progress(holder.progress if holder else {})
        return RunStatus(run_id, "interrupted", "; ".join([*notes, f"{done}goes on from its checkpoint"]))
    return RunStatus(run_id, "missing", "; ".join(notes) or ("started, no checkpoint yet" if holder else "not started"))


def retry_failed(plan: Plan, out: Path) -> list[str]:
    """Set the error.json of selected failed runs aside, so that they are tried again from their checkpoints."""
    failed = [run_id for run_id in plan.selected if plan.statuses[run_id].state == "failed"]
    for run_id in failed:
        store.set_aside(store.run_folder(out, run_id).error)
    return failed


def force(plan: Plan, out: Path, only: Iterable[str]) -> list[str]:
    """Set whole folders of selected runs aside (`OUT/aside/`), so that they start over. Nothing is deleted."""
    chosen = _select(plan.grid, list(only))
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


def cost_flop(run: Run) -> float:
    """Training cost in FLOP: the teacher forward, the student forward and backward (twice its forward)."""
    if run.train is None:
        return 0.0
    macs = 3 * zoo.count_macs(run.student) + (zoo.count_macs(run.teacher.arch) if run.teacher else 0)
    views = 1 if run.data.views == "weak" else 2
    return 2.0 * macs * train_size(run.data) * views * run.train.epochs


def measured_flop_per_s(plan: Plan) -> float | None:
    """Speed of the finished runs of this grid, one run at a time; None before the first."""
    flop = train_s = 0.0
    for run_id, found in plan.statuses.items():
        seconds = found.result.get("timing", {}).get("train_s") if found.result else None
        if seconds:
            flop += cost_flop(plan.grid.runs[run_id])
            train_s += seconds
    return flop / train_s if train_s else None


def _select(grid: Grid, only: list[str]) -> set[str]:
    filters = [_parse_filter(text, grid) for text in only]
    chosen = set()
    for cell in grid.cells:
        for run_id in cell.run_ids:
            facts = {
                "method": cell.role if cell.role in ROLES else cell.method,
                "teacher": cell.teacher,
                "student": cell.student,
                "seed": str(grid.runs[run_id].seed),
            }
            if not filters or any(all(facts[key] == value for key, value in wanted.items()) for wanted in filters):
                chosen.add(run_id)
    if not chosen:
        raise BadInput(f'--only {" ".join(only)}: no run of grid "{grid.name}" matches; drop a condition')
    return chosen


def _parse_filter(text: str, grid: Grid) -> dict[str, str]:
    known: dict[str, Callable[[], Iterable[str]]] = {
        "method": lambda: [*methods.names(), *ROLES],
        "teacher": lambda: {teacher for teacher, _ in grid.pairs},
        "student": lambda: {student for _, student in grid.pairs},
        "seed": lambda: {str(run.seed) for run in grid.runs.values()},
    }
    wanted = {}
    for condition in text.split(","):
        key, equals, value = condition.strip().partition("=")
        if not equals:
            raise BadInput(f'--only "{text}": write conditions as key=value, for example method=kd,student=resnet20')
        choose("key of --only", key, ONLY_KEYS)
        if key in wanted:
            raise BadInput(f'--only "{text}": {key} is given twice; a run has one, so give two filters')
        wanted[key] = choose(
            f"{key} of --only", "student" if (key, value) == ("method", "vanilla") else value, known[key]()
        )
    return wanted


def _students_wait(grid: Grid, wanted: set[str], statuses: Mapping[str, RunStatus], teacher: str) -> bool:
    return any(
        grid.runs[run_id].teacher and grid.runs[run_id].teacher.run_id == teacher and statuses[run_id].state != "done"
        for run_id in wanted
    )


def _progress(progress: Mapping[str, object]) -> str:
    if not progress.get("epochs"):
        return ""
    return f"epoch {progress['epoch']}/{progress['epochs']}, top-1 {progress['top1']:.1f}, "
