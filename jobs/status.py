"""What `--status` says: how far the runs are, what they cost so far and in all, who does them, what went wrong."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import store
from bench.cells import RunStatus
from bench.surroundings import sources
from bench.surroundings.commandline import counted
from jobs import claims, remaining, states
from jobs.slurm import records
from jobs.states import Outline, States

MOST_RUNNING, MOST_OTHERS = 50, 10  # lines of a list, before "and 37 more"
QUIET_S = 60.0  # without a step: said instead of the time left


def report(outline: Outline, out: Path, found: States) -> str:
    """All of it, for a person."""
    running = {run_id: _holder(out, run_id) for run_id in found.of("running")}
    try:
        jobs, unread = records.submitted(out), []
    except OSError as error:  # what else there is to say does not depend on them
        jobs, unread = {}, [f"submissions: {store.Unreadable(error, Path(error.filename or out))}"]
    queued = [run_id for run_id in found.of("missing", "interrupted") if run_id in jobs]
    interrupted = [run_id for run_id in found.of("interrupted") if run_id not in jobs]
    return "\n".join(
        [
            headline(outline, found),
            *unread,
            *_hours(outline, found, running),
            *_left_in_all(outline, out, found, running),
            *_running(running),
            *_list("submitted, waiting", [f"{run_id}  job {jobs[run_id]}" for run_id in queued]),
            *_failed(out, found),
            *_blocked(outline, found),
            *_list("interrupted", [f"{run_id}  {found.statuses[run_id].reason}" for run_id in interrupted]),
            *_list("damaged", _damaged(found)),
            *other_sources(outline, found, out),
        ]
    )


def other_sources(outline: Outline, found: States, out: Path) -> list[str]:
    """Which of the selected runs are of another source of their method than today's, and how to do them again."""
    of = {run_id: found.statuses[run_id].source for run_id in found.selected if found.statuses[run_id].source}
    lines, done = [], found.of("done")
    begun = [run_id for run_id, status in found.statuses.items() if status.state != "missing"]
    for state, source, words in (
        ("done", sources.OTHER, "result{s} of another source of the method than today's; to redo"),
        ("done", sources.BOTH, "result{s} of several sources of the method, which changed half way; to redo"),
        (
            "interrupted",
            sources.OTHER,
            "half-done run{s} of another source of the method, which go on; to start over",
        ),
    ):
        if other := [run_id for run_id in found.of(state) if of.get(run_id) == source]:
            what = words.format(s="" if len(other) == 1 else "s")
            lines.append(f"{len(other)} {what}: {_some(other)}:")
            lines.append(f"  {sources.redo(outline, other, begun, out)}")
    if untold := [run_id for run_id in done if of.get(run_id) == sources.UNTOLD]:
        lines.append(
            f"{counted(len(untold), 'result')} of an earlier version, which did not record enough to tell whether the "
            f"method's file has changed since in more than comments: {_some(untold)}"
        )
    return lines


def _holder(out: Path, run_id: str) -> claims.Holder | None:
    try:
        return claims.read(store.run_folder(out, run_id).path)
    except OSError:  # it could be read a moment ago
        return None


def headline(outline: Outline, found: States) -> str:
    """One line: what was wanted, and how many runs are in each state."""
    counts = ", ".join(f"{count} {state}" for state, count in found.counts().items())
    return (
        f'grid "{outline.grid}", protocol "{outline.protocol}" v{outline.protocol_version}: '
        f"{counted(len(found.selected), 'run')}: {counts}"
    )


def duration(seconds: float) -> str:
    """A time span as a person says it: 8s, 4m12s, 3h05m, 2d4h."""
    seconds = max(0, round(seconds))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f"{days}d{hours % 24}h"
    if hours:
        return f"{hours}h{minutes % 60:02d}m"
    return f"{minutes}m{seconds % 60:02d}s" if minutes else f"{seconds}s"


@dataclass
class _Kind:
    """What runs on one kind of device have cost, in seconds of a whole GPU or of one CPU core."""

    spent_s: float = 0.0
    done_s: float = 0.0  # of those that are done and whose cost in FLOP is known
    done_flop: float = 0.0
    done: int = 0


@dataclass
class _Hours:
    kinds: dict[tuple[str, str], _Kind] = field(default_factory=lambda: defaultdict(_Kind))  # by unit and name

    def add_result(self, result: Mapping[str, Any], run: states.Wanted) -> None:
        timing, origin = result.get("timing", {}), result.get("provenance", {})
        threads = origin.get("threads")
        seconds = timing.get("device_s")
        if not isinstance(seconds, (int, float)):  # older results do not say
            seconds = timing.get("train_s", 0.0) * (threads if isinstance(threads, int) else 1)
        if not seconds > 0:  # a checkpoint: nothing was trained
            return
        kind = self.kinds["GPU" if threads is None else "CPU", str(origin.get("device", "unknown device"))]
        kind.spent_s += seconds
        if flop := run.part_flop(timing.get("together") or 1):
            kind.done_s, kind.done_flop, kind.done = kind.done_s + seconds, kind.done_flop + flop, kind.done + 1

    def add_running(self, progress: Mapping[str, Any]) -> tuple[str, str] | None:
        if "device" not in progress:
            return None
        unit = "GPU" if "gpu" in progress else "CPU", progress["device"]
        self.kinds[unit].spent_s += progress.get("wall_s", 0.0) * progress.get("devices", 1)
        return unit


def _hours(outline: Outline, found: States, running: Mapping[str, claims.Holder | None]) -> list[str]:
    """Device hours spent, and those expected in all at the speed of the finished runs on the same kind of device.

    Runs of one seed and teacher that are not done are taken to train together, all of them.
    What interrupted and failed runs have spent is in their checkpoints and logs, and not counted.
    """
    hours, ahead = _Hours(), defaultdict(float)  # FLOP still to do, by the kind of device where that is known
    to_do = [outline.runs[run_id] for run_id in found.of(*states.TO_DO)]
    company = Counter((run.seed, run.teacher) for run in to_do)
    for run_id in found.selected:
        status, run = found.statuses[run_id], outline.runs[run_id]
        if status.state == "done":
            hours.add_result(status.result, run)
        elif status.state in states.TO_DO:
            flop = run.part_flop(company[run.seed, run.teacher])
            holder = running.get(run_id)
            progress = holder.progress if holder else {}
            ahead[hours.add_running(progress)] += flop * (1 - states.fraction_done(progress))
    kinds = sorted(hours.kinds.items(), reverse=True)  # GPUs before CPUs
    spent = " and ".join(f"{kind.spent_s / 3600:.3g} {unit}-hours on {name}" for (unit, name), kind in kinds)
    if not sum(ahead.values()):  # all is done, or plan.json is of a version that says no costs
        return [f"spent: {spent}"] if spent else []
    measured = {key: kind for key, kind in hours.kinds.items() if kind.done}
    if not measured:
        return [f"spent: {spent}; no finished run yet to tell the rest from" if spent else "no finished run yet"]
    usual = max(measured, key=lambda key: measured[key].done)
    more = defaultdict(float)
    for key, flop in ahead.items():
        key = key if key in measured else usual
        more[key] += flop * measured[key].done_s / measured[key].done_flop
    total = " and ".join(
        f"{(kind.spent_s + more[key]) / 3600:.3g}" + (f" {key[0]}-hours on {key[1]}" if len(kinds) > 1 else "")
        for key, kind in kinds
    )
    runs = sum(kind.done for kind in measured.values())
    return [f"spent: {spent}; about {total} expected in all, by the speed of {counted(runs, 'finished run')}"]


def about(left: remaining.Left | None) -> str:
    """The time left, as it is said wherever it is; "" where it is not known."""
    return f"{'more than' if left.at_least else 'about'} {duration(left.seconds)}" if left else ""


def _left_in_all(outline: Outline, out: Path, found: States, running: Mapping[str, claims.Holder | None]) -> list[str]:
    """Until all is done with the processes that are at work; nothing where none is, or nothing can be told yet."""
    at_work = {run_id: holder for run_id, holder in running.items() if holder}
    pending = found.of("missing", "interrupted")
    begun = {run_id: _holder(out, run_id) for run_id in found.of("interrupted")}
    seen = {run_id: holder.progress for run_id, holder in {**at_work, **begun}.items() if holder}
    work = remaining.Work(
        outline,
        pending,
        remaining.companies(at_work),
        {run_id: remaining.carried_on(said) for run_id, said in seen.items()},
        {run_id: status.result for run_id, status in found.statuses.items() if status.result},
    )
    return [f"time left: {text}"] if at_work and (text := about(work.left())) else []


def _running(running: Mapping[str, claims.Holder | None]) -> list[str]:
    rows = [(f"running ({len(running)})", "epoch", "top-1", "images/s", "left", "where")]
    for run_id, holder in list(running.items())[:MOST_RUNNING]:
        if holder is None:  # it has just ended
            continue
        seen = remaining.carried_on(holder.progress)
        rows.append(
            (
                run_id,
                states.epochs_done(seen),
                f"{seen['top1']:.2f}" if "top1" in seen else "",
                f"{seen['images_per_s']:,.0f}" if "images_per_s" in seen else "",
                _left(seen),
                _where(holder),
            )
        )
    return [*_columns(rows), *_more(len(running) - MOST_RUNNING)] if running else []


def _left(seen: Mapping[str, Any]) -> str:
    if seen.get("idle_s", 0.0) > QUIET_S:
        return f"no step for {duration(seen['idle_s'])}"
    return duration(seen["left_s"]) if "left_s" in seen else ""


def _where(holder: claims.Holder) -> str:
    gpu, device = holder.progress.get("gpu"), holder.progress.get("device", "")
    place = f"GPU {gpu} ({device})" if gpu is not None else device
    return ", ".join(part for part in (holder.host, place, f"process {holder.pid}") if part)


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table without lines: the first column and the last to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    last = len(widths) - 1
    return [
        "  ".join(
            text.ljust(width) if column in (0, last) else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _failed(out: Path, found: States) -> list[str]:
    lines = [
        f"{run_id}  {found.statuses[run_id].reason}\n      log: {store.run_folder(out, run_id).log}"
        for run_id in found.of("failed")
    ]
    return [*_list("failed", lines), *(["  try them again with --retry-failed"] if lines else [])]


def _blocked(outline: Outline, found: States) -> list[str]:
    students, own = defaultdict(list), []
    for run_id in found.of("blocked"):
        teacher = found.statuses.get(outline.runs[run_id].teacher)
        if teacher and teacher.state in ("failed", "blocked"):
            students[teacher.run_id].append(run_id)
        else:
            own.append(f"{run_id}  {found.statuses[run_id].reason}")
    groups = [f"{counted(len(runs), 'run')} by {teacher}" for teacher, runs in students.items()]
    return _list("blocked", [*own, *groups], len(found.of("blocked")))


def _damaged(found: States) -> list[str]:
    damaged: Iterable[RunStatus] = (found.statuses[run_id] for run_id in found.of("missing"))
    return [f"{status.run_id}  {status.reason}" for status in damaged if "set aside" in status.reason]


def _list(title: str, lines: Sequence[str], count: int | None = None) -> list[str]:
    if not lines:
        return []
    shown = [f"  {line}" for line in lines[:MOST_OTHERS]]
    return [f"{title} ({len(lines) if count is None else count}):", *shown, *_more(len(lines) - MOST_OTHERS)]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _more(count: int) -> list[str]:
    return [f"  and {count} more"] if count > 0 else []
