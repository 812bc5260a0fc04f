"""What a plan costs before it has started: device time, wall time and disk; and the dry run that says so."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bench import cohorts
from bench.cost import kept_bytes
from bench.measure import calibration, elsewhere
from bench.measure.calibration import Calibration
from bench.surroundings.commandline import counted
from bench.training.devices import check_precision
from jobs import local
from jobs import plan as plans
from jobs.plan import Plan
from jobs.status import duration

FEW = 12  # runs that are shown one by one unasked
CHECKPOINT = 2  # times the weights: with their momentum


@dataclass(frozen=True)
class Forecast:
    """What the runs to do of a plan cost, each from its start to its end whatever it has behind it."""

    found: Calibration | None  # None where nothing is to be trained
    lanes: int  # that do them at once
    where: str  # these lanes in words
    wall_s: float
    kept: int  # bytes on disk in the end
    more: int  # beside that while it runs, of checkpoints

    def seconds(self, run_id: str) -> float | None:
        """Of a core or a GPU, None where it is not known."""
        return self.found.seconds.get(run_id) if self.found else None


def here(plan: Plan, device: torch.device, slots: int | None, together: int | None) -> Forecast:
    """The cost on this machine, by a measurement of some 20 seconds; `slots` and `together` as for a real call."""
    place = local.slots(device, slots)
    if device.type == "cpu":
        where = f"{place.lanes} slot{'s' * (place.lanes != 1)} of this machine"
    else:
        where = f"{len(place.devices)} GPU{'s' * (len(place.devices) != 1)} of this machine"

    def calibrate(*given: object) -> Calibration:
        to_do, finished, parts = given
        return calibration.calibrate(to_do, finished, device, parts)

    return _forecast(plan, place.lanes, where, together, calibrate)


def on(plan: Plan, name: str, slots: int | None, together: int | None) -> Forecast:
    """The cost on one device of a kind (`elsewhere.known`); with a CPU `slots` is the number of cores."""
    device = elsewhere.DEVICES[name]
    if not device.cuda:
        check_precision(next(iter(plan.grid.runs.values())).precision, torch.device("cpu"))
    lanes = 1 if device.cuda else slots or 1
    where = f"one {device.words}" if device.cuda else f"{lanes} such core{'s' * (lanes != 1)}"

    def calibrate(*given: object) -> Calibration:
        to_do, finished, parts = given
        return elsewhere.calibrate(to_do, finished, name, parts)

    return _forecast(plan, lanes, where, together, calibrate)


def _forecast(plan: Plan, lanes: int, where: str, together: int | None, calibrate) -> Forecast:
    runs = {run_id: plan.grid.runs[run_id] for run_id in plan.to_do}
    sizes = {run_id: kept_bytes(run) for run_id, run in runs.items()}
    ordered = list(parts(plan, lanes, together))
    found = None
    if any(map(plan.flop, runs)):
        finished = [(plan.grid.runs[run_id], known.result) for run_id, known in plan.statuses.items() if known.result]
        found = calibrate(runs, finished, ordered)
    wall_s = wall(plan, ordered, lanes, found.seconds) if found and found.seconds else 0.0
    largest = sorted((sum(CHECKPOINT * sizes[run_id] for run_id in part) for part in ordered), reverse=True)
    return Forecast(found, lanes, where, wall_s, sum(sizes.values()), sum(largest[:lanes]))


def parts(plan: Plan, lanes: int, together: int | None) -> Iterator[list[str]]:
    """Which runs to do share a process, in the order in which they start: as the local executor has it.

    At most `together` of them; None: all that fit, as long as every lane has work.
    """
    runs, to_do = plan.grid.runs, plan.to_do
    waiting = {run_id: teacher.run_id for run_id in to_do if (teacher := runs[run_id].teacher)}
    pending, teachers = set(to_do), set(waiting.values())
    sharing = _Sharing(plan, lanes, together, sum(map(plan.flop, to_do)))
    now = [run_id for run_id in to_do if waiting.get(run_id) not in pending]
    first = [[run_id] for run_id in now if run_id in teachers]
    for part in first:
        yield sharing.take(part)
    others = [run_id for run_id in now if run_id not in teachers]
    if len(now) < len(to_do):  # lanes that have no teacher to make begin with what waits for none
        more = list(itertools.islice(sharing.parts(others), max(0, lanes - len(first))))
        yield from more
        first += more
    begun = {run_id for part in first for run_id in part}
    yield from sharing.parts([run_id for run_id in to_do if run_id not in begun])


@dataclass
class _Sharing:
    """Splits cohorts so that no lane stands idle in the end: one stays whole unless it is more than a lane's part."""

    plan: Plan
    lanes: int
    together: int | None
    left: float  # FLOP of all that has not begun
    in_hand: deque[float] = field(default_factory=deque)  # of the parts that the other lanes are at

    def take(self, part: list[str]) -> list[str]:
        self.in_hand.append(sum(map(self.plan.flop, part)))
        self.left -= self.in_hand[-1]
        if len(self.in_hand) >= self.lanes:
            self.in_hand.popleft()
        return part

    def parts(self, run_ids: Sequence[str]) -> Iterator[list[str]]:
        """Of these runs, each no larger than `together`."""
        runs = {run_id: self.plan.grid.runs[run_id] for run_id in run_ids}
        for cohort in [[run_id] for run_id in runs] if self.together == 1 else cohorts.group(runs):
            while cohort:
                flop, ahead = sum(map(self.plan.flop, cohort)), self.left + sum(self.in_hand)
                shares = round(self.lanes * flop / ahead) if ahead else 1
                pieces = max(shares, -(-len(cohort) // (self.together or len(cohort))))
                part = cohorts.split(cohort, pieces, self.plan.flop)[0]
                taken = set(part)
                cohort = [run_id for run_id in cohort if run_id not in taken]
                yield self.take(part)


def wall(plan: Plan, ordered: Sequence[Sequence[str]], lanes: int, seconds: Mapping[str, float]) -> float:
    """Seconds from the start of the first to the end of the last, where each begins once a lane is free and its
    teacher is done."""
    runs = plan.grid.runs
    needed = [{teacher.run_id for run_id in part if (teacher := runs[run_id].teacher)} for part in ordered]
    done_at: dict[str, float] = {}
    free, pending, last = [0.0] * lanes, list(range(len(ordered))), 0.0
    while pending:
        start = heapq.heappop(free)
        begins = {}
        for number in pending:
            begins[number] = max((done_at.get(teacher, 0.0) for teacher in needed[number]), default=0.0)
            if begins[number] <= start:
                break  # the first that can begin at once; else the one that can soonest
        number = min(begins, key=begins.get)
        pending.remove(number)
        end = max(start, begins[number]) + sum(seconds.get(run_id, 0.0) for run_id in ordered[number])
        done_at.update(dict.fromkeys(ordered[number], end))
        heapq.heappush(free, end)
        last = max(last, end)
    return last


def dry_run(plan: Plan, forecast: Forecast, *, each: bool, out: Path) -> str:
    """What `--dry-run` prints: states, cost by pair and by method; with `each`, or where they are few, run by run."""
    each = each or len(plan.selected) <= FEW
    lines = [plans.describe(plan, each=each, seconds=forecast.seconds, out=out)]
    if forecast.found is None:
        return lines[0]
    found = forecast.found
    total_s, flop = sum(found.seconds.values()), sum(map(plan.flop, plan.to_do))
    unit = _Unit.fit(total_s, found.cuda)
    work = f"{flop / 1e15:.3g} PFLOP" if flop < 1e18 else f"{flop / 1e18:.3g} EFLOP"
    what = f"to do: {counted(len(plan.to_do), 'run')}, {work}"
    if not each:
        lines += ["", *_table(plan, forecast, unit), ""]
    if found.seconds:
        lines.append(
            f"{what}: {unit.of(total_s)} {unit.name} on {found.device}, "
            f"about {duration(forecast.wall_s)} with {forecast.where}"
        )
    else:
        lines.append(f"{what}; no step could be measured on {found.device}: no time")
    lines += [
        f"disk: {_size(forecast.kept)} in the end, up to {_size(forecast.more)} more while it runs",
        f"rests on: {_rests_on(found)}",
        f"not counted: {_not_counted(plan, found)}",
    ]
    if not each:
        lines.append("each run with its state, reason and time: --dry-run=runs")
    return "\n".join(lines)


def _rests_on(found: Calibration) -> str:
    if found.rests_on:
        return found.rests_on
    basis = [f"{found.measured} of {found.kinds} kinds of run measured in {found.took_s:.0f} s"]
    if found.finished:
        basis.insert(0, f"{found.finished} of {found.kinds} kinds known from finished runs")
    if found.measured + found.finished < found.kinds:
        basis.append("the others by their FLOP")
    return ", ".join(basis)


def _not_counted(plan: Plan, found: Calibration) -> str:
    words = ["fetching the data", "starting processes (seconds each)", "augmentation", "the report"]
    if not found.rests_on:
        words.append("what slots take from each other")
    if plan.of("interrupted", "running"):
        words.append("what begun runs have behind them (they count as a whole)")
    return ", ".join(words)


@dataclass
class _Sum:
    runs: int = 0
    seconds: float = 0.0


class _Sums:
    """Subtotals by name, in the order of the table."""

    def __init__(self) -> None:
        self.of: dict[str, _Sum] = {}

    def add(self, name: str, seconds: float) -> None:
        one = self.of.setdefault(name, _Sum())
        one.runs, one.seconds = one.runs + 1, one.seconds + seconds


@dataclass(frozen=True)
class _Unit:
    """What device time is told in."""

    name: str
    seconds: float

    @classmethod
    def fit(cls, total_s: float, cuda: bool) -> _Unit:
        """Hours, or minutes where there is less than one."""
        part, seconds = ("hours", 3600.0) if total_s >= 3600 else ("minutes", 60.0)
        return cls(f"{'GPU' if cuda else 'core'}-{part}", seconds)

    def of(self, seconds: float) -> str:
        count = seconds / self.seconds
        return f"{count:,.0f}" if count >= 100 else f"{count:.1f}" if count >= 1 else f"{count:.2g}"


def _table(plan: Plan, forecast: Forecast, unit: _Unit) -> list[str]:
    """Runs to do and their time per pair and per method; teachers and the Student row, which serve several, apart."""
    to_do, counted = set(plan.to_do), set()
    apart, pairs, methods, all_of_them = _Sums(), _Sums(), _Sums(), _Sum()
    for cell in plan.grid.cells:
        for run_id in cell.run_ids:
            if run_id not in to_do or run_id in counted:
                continue
            counted.add(run_id)
            seconds = forecast.seconds(run_id) or 0.0
            if cell.role == "method":
                pairs.add(f"{cell.teacher}-{cell.student}", seconds)
                methods.add(cell.label, seconds)
            else:
                apart.add("teachers" if cell.role == "teacher" else "Student row", seconds)
            all_of_them.runs, all_of_them.seconds = all_of_them.runs + 1, all_of_them.seconds + seconds
    blocks = [("", apart.of), ("per pair", pairs.of), ("per method", methods.of), ("", {"in all": all_of_them})]
    rows = [("", "runs", unit.name)]
    for title, sums in blocks:
        rows += [(title, "", "")] if title and sums else []
        rows += [("  " * bool(title) + name, f"{one.runs:,}", unit.of(one.seconds)) for name, one in sums.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [f"{name:<{widths[0]}}  {runs:>{widths[1]}}  {hours:>{widths[2]}}".rstrip() for name, runs, hours in rows]


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(1, count / 1e6):.0f} MB"
