"""How far the runs of a grid are, from the files of its results folder alone.

Nothing here imports torch, which takes seconds: `--status` answers at once, for a thousand runs as for ten.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from bench import store
from bench.cells import STATES, Cell, RunStatus, TableSpec
from bench.surroundings import sources
from bench.surroundings.commandline import DONE, INCOMPLETE
from jobs import claims
from zoo.errors import BadInput, choose

ONLY_KEYS = ("method", "teacher", "student", "seed")
ROLES = ("teacher", "student")  # `method=teacher` selects the Teacher row, `method=student` the Student row
TO_DO = ("missing", "interrupted", "running")


@dataclass(frozen=True)
class Wanted:
    """What is to be known of a run to say how far it is."""

    seed: int
    teacher: str | None  # the run id of its teacher
    flop: float | None  # its cost; None where plan.json does not say
    shared_flop: float = 0.0  # of it the teacher's pass, which runs that train together have in common

    def part_flop(self, together: float) -> float:
        """Its part of the cost of so many that train together, who share the teacher's pass; 0: not known."""
        return 0.0 if self.flop is None else self.flop - self.shared_flop * (1 - 1 / together)


@dataclass(frozen=True)
class Outline(TableSpec):
    """A grid without its settings: what plan.json says of it in a few milliseconds."""

    runs: Mapping[str, Wanted]  # by run id, teachers before their students


@dataclass(frozen=True)
class States:
    """States of all runs of a grid, and the selected ones with the teachers they need, in the order to start them."""

    statuses: Mapping[str, RunStatus]
    selected: tuple[str, ...]

    def of(self, *states: str) -> list[str]:
        """The selected runs in one of these states, in order."""
        return [run_id for run_id in self.selected if self.statuses[run_id].state in states]

    def counts(self) -> dict[str, int]:
        """How many selected runs are in each state."""
        counted = Counter(self.statuses[run_id].state for run_id in self.selected)
        return {state: counted[state] for state in STATES if counted[state]}


def read_kept(out: Path) -> Outline | None:
    """The grid that `out` was last used for, None where there is none. BadInput where plan.json cannot be read."""
    path = out / store.KEPT
    try:
        kept = store.read_json(path)
        if kept is None:
            return None
        flop, shared = kept.get("flop", {}), kept.get("shared_flop", {})  # not in files of earlier versions
        runs = {
            _text(run_id): Wanted(
                int(run["seed"]),
                run["teacher"] and run["teacher"]["run_id"],
                flop.get(run_id),
                shared.get(run_id, 0.0),
            )
            for run_id, run in kept["runs"].items()
        }
        cells = tuple(map(_cell, kept["cells"]))
        pairs = tuple((_text(teacher), _text(student)) for teacher, student in kept["pairs"])
        named = {run_id for cell in cells for run_id in cell.run_ids}
        if not named or not {*named, *(run.teacher for run in runs.values() if run.teacher)} <= set(runs):
            raise ValueError("its cells and runs do not fit together")
        if not all(run.flop is None or 0 <= run.shared_flop <= run.flop < float("inf") for run in runs.values()):
            raise ValueError("a cost is not a number")
        protocol = kept["protocol"]
        asked = tuple(map(_text, kept.get("asked", ())))
        name, version = _text(protocol["name"]), int(protocol["version"])
        return Outline(_text(kept["grid"]), name, version, pairs, cells, runs, asked=asked)
    except (store.Damaged, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BadInput(f'"{path}" cannot be read ({error}): name the grid with --grid') from None


def report_place(outline: Outline, out: Path) -> Path:
    """Where a grid's report lies: in `out` itself for the grid that it was last used for, else below reports/."""
    place = store.report_folder(out, outline.grid, outline.protocol)
    try:
        latest = store.read_json(out / store.KEPT)
    except store.Damaged:
        latest = None
    return place if latest and store.report_folder_of(out, latest) not in (None, place) else out


def other_grids(out: Path) -> list[tuple[Path, Outline | BadInput]]:
    """The grids that `out` was used for before the last one: the folder of each one's report, and what it is of."""
    found = []
    for path in sorted((out / store.REPORTS).glob(f"*/{store.KEPT}")):
        try:
            outline = read_kept(path.parent)
        except BadInput as fault:
            found.append((path.parent, fault))
            continue
        if outline and report_place(outline, out) != out:
            found.append((path.parent, outline))
    return found


def _cell(entry: Mapping[str, Any]) -> Cell:
    texts = {name: _text(value) for name, value in entry.items() if name != "run_ids"}
    cell = Cell(**texts, run_ids=tuple(map(_text, entry["run_ids"])))
    if cell.role not in (*ROLES, "method"):
        raise ValueError(f"no role is called {cell.role!r}")
    return cell


def _text(value: object) -> str:
    """The value if it is a text that can be written to a file."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no text")
    value.encode()  # a lone surrogate, which JSON can hold, is a ValueError
    return value


def look(outline: Outline, out: Path, only: Iterable[str] = (), *, to_start: bool = True) -> States:
    """The state of every run. `only` holds filters like "method=kd,student=resnet20": any of them may match.

    A teacher that students wait for and whose weights are gone is to be made again, and so not done; but not where
    nothing is going `to_start`: what it measured is a result all the same.
    """
    sources.today.cache_clear()  # of this look, and not of when a driver began
    statuses = _survey(outline.runs, out)
    selected = select(outline, only)
    teachers = {teacher for run_id in selected if (teacher := outline.runs[run_id].teacher)}
    wanted = selected | teachers
    unserved = {outline.runs[run_id].teacher for run_id in wanted if statuses[run_id].state != "done"}
    for run_id in teachers & unserved if to_start else ():
        if statuses[run_id].state != "done":
            continue
        try:
            if fault := store.weights_fault(store.run_folder(out, run_id)):
                statuses[run_id] = RunStatus(run_id, "missing", f"{fault}: made again, its students need it")
        except store.Unreadable as error:  # its students are told so when they ask for it
            statuses[run_id] = RunStatus(run_id, "blocked", f"{error}: left as it is", statuses[run_id].result)
    in_grid_order = [run_id for run_id in outline.runs if run_id in wanted]
    # Teachers first, since students wait for them; then the longest, so that the slots stay busy to the end.
    order = sorted(in_grid_order, key=lambda run_id: (run_id not in teachers, -(outline.runs[run_id].flop or 0)))
    return States(statuses, tuple(order))


def _survey(runs: Mapping[str, Wanted], out: Path) -> dict[str, RunStatus]:
    """The state of each run from its files; students of a failed teacher are blocked."""
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
            teacher = statuses.get(run.teacher)
            if teacher and teacher.state == "failed":
                statuses[run_id] = RunStatus(run_id, "blocked", f"its teacher {run.teacher} failed")
            elif teacher and teacher.state == "blocked":
                statuses[run_id] = RunStatus(run_id, "blocked", f"its teacher {run.teacher}: {teacher.reason}")
            elif teacher and teacher.state != "done" and found.state == "missing":
                statuses[run_id] = RunStatus(run_id, "missing", f"waits for its teacher {run.teacher}")
    return statuses


def status(folder: store.RunFolder) -> RunStatus:
    """The state of one run folder. A damaged file counts as absent, and the reason says so.

    Where a file cannot be read now, nothing is known of the run and nothing is done to it: it is blocked. Its result
    comes without the curve, which takes most of the time to read.
    """
    try:
        return _status(folder)
    except OSError as error:
        unreadable = error if isinstance(error, store.Unreadable) else store.Unreadable(error, folder.path)
        return RunStatus(folder.run_id, "blocked", f"{unreadable}: left as it is")


def _status(folder: store.RunFolder) -> RunStatus:
    run_id, notes = folder.run_id, []
    try:
        result = store.read_result(folder, curve=False)
        if result:
            return RunStatus(run_id, "done", "", result, sources.compare(_method(run_id), result.get("provenance", {})))
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
    if store.patiently(folder.last.stat, folder.last):
        done = _progress(holder.progress if holder else {})
        now = sources.today().get(_method(run_id))
        other = now is not None and bool({*sources.of_checkpoint(folder.last)} - {now.digest})
        whose = ", made with another source of its method than today's" if other else ""
        reason = "; ".join([*notes, f"{done}goes on from its checkpoint{whose}"])
        return RunStatus(run_id, "interrupted", reason, source=sources.OTHER if other else "")
    return RunStatus(run_id, "missing", "; ".join(notes) or ("started, no checkpoint yet" if holder else "not started"))


def _method(run_id: str) -> str:
    return run_id.partition("-")[0]


def exit_status(found: States) -> int:
    """What a command says of these states: DONE where every selected run is."""
    return DONE if set(found.counts()) <= {"done"} else INCOMPLETE


def epochs_done(progress: Mapping[str, Any]) -> str:
    """How far a claim says its run is, as "12.4/240"; "" where it does not say."""
    if not progress.get("epochs"):
        return ""
    done = progress.get("epoch", 0)
    if progress.get("steps"):
        done = f"{done + progress.get('step', 0) / progress['steps']:.1f}"
    return f"{done}/{progress['epochs']}"


def worker_s(result: Mapping[str, Any]) -> float:
    """Seconds of a worker that a finished run took: its part of the time of all that shared it."""
    timing = result.get("timing", {})
    seconds, together = timing.get("train_s"), timing.get("together") or 1
    return seconds / together if isinstance(seconds, (int, float)) and seconds > 0 else 0.0


def fraction_done(progress: Mapping[str, Any]) -> float:
    """How much of its run a claim says is done, 0 to 1."""
    if not progress.get("epochs"):
        return 0.0
    within = progress.get("step", 0) / progress["steps"] if progress.get("steps") else 0.0
    return min(1.0, max(0.0, (progress.get("epoch", 0) + within) / progress["epochs"]))


def places(outline: Outline) -> dict[str, Cell]:
    """The first cell that each run is of."""
    found: dict[str, Cell] = {}
    for cell in outline.cells:
        for run_id in cell.run_ids:
            found.setdefault(run_id, cell)
    return found


def names(outline: Outline, places: Mapping[str, Cell], run_ids: Sequence[str]) -> tuple[str, str, list[str]]:
    """Runs that train together, for a person: their pair (or teacher), their seed, and their rows of the table."""
    cells = [places[run_id] for run_id in run_ids if run_id in places]
    methods = [cell.label for cell in cells]
    taught = [cell for cell in cells if cell.role == "method"] or cells
    if taught and all(cell.role == "teacher" for cell in taught):
        pair = taught[0].teacher
    elif {cell.role for cell in taught} == {"student"}:
        pair = taught[0].student
    else:
        ends = [{*map(attrgetter(name), taught)} for name in ("teacher", "student")]
        pair = " → ".join(next(iter(some)) if len(some) == 1 else f"{len(some)} networks" for some in ends)
    seeds = sorted({outline.runs[run_id].seed for run_id in run_ids})
    return pair, "s" + ",".join(map(str, seeds)), methods


def _progress(progress: Mapping[str, Any]) -> str:
    top1 = f", top-1 {progress['top1']:.1f}" if "top1" in progress else ""
    return f"epoch {done}{top1}, " if (done := epochs_done(progress)) else ""


def select(outline: Outline, only: Iterable[str]) -> set[str]:
    """The runs of the cells that match any of the filters, all runs of the table without a filter."""
    return {run_id for _, run_id in _matches(outline, only)}


def select_cells(outline: Outline, only: Iterable[str]) -> set[Cell]:
    """The cells of which a run matches. A Student row's run is of every pair of that student."""
    return {cell for cell, _ in _matches(outline, only)}


def _matches(outline: Outline, only: Iterable[str]) -> list[tuple[Cell, str]]:
    only = list(only)
    filters = [_parse_filter(text, outline) for text in only]
    chosen = []
    for cell in outline.cells:
        for run_id in cell.run_ids:
            facts = {
                "method": cell.role if cell.role in ROLES else cell.method,
                "teacher": cell.teacher,
                "student": cell.student,
                "seed": str(outline.runs[run_id].seed),
            }
            if not filters or any(all(facts[key] in values for key, values in wanted.items()) for wanted in filters):
                chosen.append((cell, run_id))
    if not chosen:
        raise BadInput(f'--only {" ".join(only)}: no run of grid "{outline.grid}" matches; drop a condition')
    return chosen


def _parse_filter(text: str, outline: Outline) -> dict[str, set[str]]:
    """Conditions like "method=kd,dkd,student=resnet20": of each key the values of which one must be a run's."""
    wanted: dict[str, set[str]] = {}
    key = ""
    for part in text.split(","):
        name, equals, value = (side.strip() for side in part.partition("="))
        if equals:
            key = choose("key of --only", name, ONLY_KEYS)
            if key in wanted:
                raise BadInput(f'--only "{text}": {key} is given twice; for several values write {key}=A,B')
        else:
            value = name
        if not key:
            raise BadInput(f'--only "{text}": write conditions as key=value, for example method=kd,student=resnet20')
        wanted.setdefault(key, set()).add(_known_value(key, value, outline))
    return wanted


def _known_value(key: str, value: str, outline: Outline) -> str:
    if key == "method" and value.lower() == "vanilla":
        value = "student"
    known = _values(key, outline)
    if key == "method" and value not in known:
        import methods  # slow, and only to tell a method that this grid leaves out from a misspelt one

        known.update(methods.names())
    return choose(f"{key} of --only", value, known)


def _values(key: str, outline: Outline) -> set[str]:
    if key == "method":
        return {*ROLES, *(cell.method for cell in outline.cells if cell.role not in ROLES)}
    if key == "seed":
        return {str(run.seed) for run in outline.runs.values()}
    return {teacher if key == "teacher" else student for teacher, student in outline.pairs}
