"""The time left until a grid is done: from how far the runs at work are, how fast they go, and what others took.

The queue is played through as `jobs.local` works it off: teachers by themselves and first, then cohorts of students,
cut so that no worker stands idle. The same files give the same answer to the live display and to `--status`.
"""

from __future__ import annotations

import heapq
import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from jobs.states import Outline, fraction_done, worker_s

AHEAD_S = 15.0  # so long, at most, a run is taken to have gone on since its claim spoke: a heartbeat and a half

Progress = Mapping[str, Any]  # of a claim


@dataclass(frozen=True)
class Left:
    """Seconds until all is done."""

    seconds: float
    at_least: bool = False  # no student's speed is known yet: teachers are quicker for their size


@dataclass(frozen=True)
class Work:
    """What is left to do, and what is known of what it takes."""

    outline: Outline
    pending: Sequence[str]  # runs that no process has, in the order in which they start
    at_work: Sequence[Sequence[str]]  # runs that share a process
    seen: Mapping[str, Progress]  # what the claims of these say, and of interrupted ones
    results: Mapping[str, Mapping[str, Any]]  # of finished runs
    workers: int = 0  # processes at once, as far as the caller knows

    def left(self) -> Left | None:
        """None where nothing can be told yet."""
        return self._estimate.left()

    def left_of(self, group: Sequence[str]) -> float | None:
        """Of runs that share a process."""
        return self._estimate.group_left(group)

    @cached_property
    def _estimate(self) -> _Estimate:
        return _Estimate(self)


def carried_on(progress: Progress, now: float | None = None) -> dict[str, Any]:
    """What a claim said, as far as it has come since then at its speed. `now` as time.time()."""
    seen, left = dict(progress), progress.get("left_s", 0.0)
    if left <= 0 or not progress.get("steps") or "said_at" not in progress:
        return seen
    age = min(max(0.0, (time.time() if now is None else now) - progress["said_at"]), AHEAD_S, left)
    done = fraction_done(progress) + (1 - fraction_done(progress)) * age / left
    epoch, within = divmod(done * progress["epochs"], 1)
    return seen | {"epoch": int(epoch), "step": within * progress["steps"], "left_s": left - age}


def companies(holders: Mapping[str, Any]) -> list[list[str]]:
    """Runs by the process that has them (`claims.Holder` by run id)."""
    found: dict[Any, list[str]] = defaultdict(list)
    for run_id, holder in holders.items():
        found[holder and (holder.host, holder.pid)].append(run_id)
    return list(found.values())


@dataclass
class _Estimate:
    work: Work
    places: dict[str, tuple] = field(default_factory=dict)  # by run id: what its speed depends on
    spent: dict[tuple, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0.0]))  # seconds, FLOP
    at_least: bool = False

    def __post_init__(self) -> None:
        self.waiting = {*self.work.pending}
        for cell in self.work.outline.cells:
            place = ("teacher", cell.teacher) if cell.role == "teacher" else ("student", cell.teacher, cell.student)
            for run_id in cell.run_ids:
                self.places.setdefault(run_id, place)
        kinds = {_kind(self.work.seen[r]) for group in self.work.at_work for r in group if r in self.work.seen}
        measured = [(run_id, result) for run_id, result in self.work.results.items() if worker_s(result)]
        here = [(run_id, result) for run_id, result in measured if _kind_of(result) in kinds]
        for run_id, result in here or ([] if kinds - {None} else measured):
            together = result["timing"].get("together") or 1
            self._learn(run_id, worker_s(result), self._flop([run_id], together))
        for group in self.work.at_work:
            moving = [r for r in group if self._seen(r).get("whole_s")]
            if moving:
                whole_s = sum(self._seen(r)["whole_s"] for r in moving) / len(moving)
                done = 1 - sum(self._seen(r)["left_s"] for r in moving) / whole_s / len(moving)
                for run_id in moving:
                    flop = self._flop([run_id], len(group))
                    share = flop / (self._flop(moving, len(group)) or 1.0)
                    self._learn(run_id, max(done, 0.01) * whole_s * share, max(done, 0.01) * flop)

    def left(self) -> Left | None:
        """Play the queue through."""
        work, todo = self.work, self._todo()
        said = [self._seen(r) for group in work.at_work for r in group]
        lanes = max(work.workers, len(work.at_work), *(int(s.get("slots", 0)) for s in said), 0)
        at_all = {*work.pending, *(r for group in work.at_work for r in group)}
        if not lanes or any(work.outline.runs[r].flop is None for r in at_all):
            return None
        ends: dict[str, float] = {}
        free = [0.0] * (lanes - len(work.at_work))
        for group in work.at_work:
            left_s = self.group_left(group)
            if left_s is None:
                return None
            free.append(left_s)
            ends.update(dict.fromkeys(group, left_s))
        costs = [self._seconds(members) for members in todo]
        if None in costs:
            return None
        cap = max((int(s.get("together", 0)) for s in said), default=0)
        if not cap and not any(s.get("slots") for s in said) and work.at_work:  # SLURM: a task has so many at most
            cap = max(map(len, work.at_work))
        last, rest, waiting = max(free), sum(costs), list(zip(todo, costs, strict=True))
        heapq.heapify(free)
        while waiting:
            now = heapq.heappop(free)
            at = next((n for n, (members, _) in enumerate(waiting) if self._ready_at(members, ends) <= now), None)
            if at is None:
                later = min(self._ready_at(members, ends) for members, _ in waiting)
                if later == math.inf:  # their teacher is not to be done: not for now
                    break
                heapq.heappush(free, later)
                continue
            ready, cost = waiting.pop(at)
            left = rest + sum(max(0.0, end - now) for end in free)
            pieces = max(round(lanes * cost / left) if left else 1, -(-len(ready) // (cap or len(ready))))
            part, kept = ready[: (size := -(-len(ready) // max(pieces, 1)))], ready[size:]
            rest -= cost
            if kept:
                waiting.insert(at, (kept, self._seconds(kept)))
                rest += waiting[at][1]
            end = now + self._seconds(part)
            ends.update(dict.fromkeys(part, end))
            last = max(last, end)
            heapq.heappush(free, end)
        return Left(last, self.at_least)

    def _todo(self) -> list[list[str]]:
        """Pending runs as they start together: teachers alone, then those of a seed and a teacher."""
        runs, groups = self.work.outline.runs, {}
        teachers = {runs[run_id].teacher for run_id in self.work.pending}
        without = []
        for run_id in self.work.pending:
            run = runs[run_id]
            if run_id in teachers or (self.places.get(run_id, ("",))[0] == "teacher"):
                groups[run_id] = [run_id]
            elif run.teacher:
                groups.setdefault((run.seed, run.teacher), []).append(run_id)
            else:
                without.append(run_id)
        for run_id in without:  # with any of their seed
            seed = runs[run_id].seed
            key = next((key for key in groups if key[0] == seed and isinstance(key, tuple)), (seed, None))
            groups.setdefault(key, []).append(run_id)
        return list(groups.values())

    def _ready_at(self, members: Sequence[str], ends: Mapping[str, float]) -> float:
        """When the teacher of these can serve; for ever where it is itself waiting."""
        teacher = next((t for r in members if (t := self.work.outline.runs[r].teacher)), None)
        return ends.get(teacher, math.inf if teacher in self.waiting else 0.0)

    def group_left(self, group: Sequence[str]) -> float | None:
        """Of runs at work: what all have left, by the speed of those that move; others wait for them to catch up."""
        speed, left = 0.0, 0.0
        for run_id in group:
            seen, flop = self._seen(run_id), self._flop([run_id], len(group))
            if whole_s := seen.get("whole_s"):
                speed += flop / whole_s
                left += flop * min(1.0, seen["left_s"] / whole_s)
            else:
                left += flop * (1 - fraction_done(seen))
        return left / speed if speed else self._seconds(group)

    def _seconds(self, members: Sequence[str]) -> float | None:
        """What runs take together that are not under way, but for what they have behind them."""
        total = 0.0
        for run_id in members:
            flop = self._flop([run_id], len(members)) * (1 - fraction_done(self._seen(run_id)))
            per_flop = self._per_flop(run_id)
            if flop and per_flop is None:
                return None
            total += flop * (per_flop or 0.0)
        return total

    def _flop(self, members: Sequence[str], together: float) -> float:
        """Of runs that are among so many."""
        return sum(self.work.outline.runs[run_id].part_flop(together) for run_id in members)

    def _seen(self, run_id: str) -> Progress:
        return self.work.seen.get(run_id, {})

    def _learn(self, run_id: str, seconds: float, flop: float) -> None:
        place = self.places.get(run_id, ("student",))
        for key in (place, place[:1], ()):
            self.spent[key][0] += seconds
            self.spent[key][1] += flop

    def _per_flop(self, run_id: str) -> float | None:
        """Seconds of a worker, from runs of the same networks, else of the same role, else of any."""
        place = self.places.get(run_id, ("student",))
        for key in (place, place[:1], ()):
            seconds, flop = self.spent.get(key, (0.0, 0.0))
            if flop:
                self.at_least |= key == () and place[0] == "student"
                return seconds / flop
        return None


def _kind(progress: Progress) -> tuple | None:
    """Of what a worker is."""
    return (progress["device"], progress.get("threads")) if "device" in progress else None


def _kind_of(result: Mapping[str, Any]) -> tuple | None:
    origin = result.get("provenance", {})
    return origin.get("device"), origin.get("threads")
