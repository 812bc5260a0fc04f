"""What a person sees while runs go on: a line per state change, and below them, on a terminal, a live display.

Where output is a file or a pipe there are lines only, and now and then one that says how far all is.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import store
from jobs import claims, remaining, states
from jobs.plan import Plan
from jobs.status import QUIET_S, about, duration
from jobs.view import Row, View

if TYPE_CHECKING:
    from jobs.display import Screen

LIVE_EVERY_S = 1.0
LOOK_SHARE = 10  # a look at all claims takes at most such a part of the time: on a network disk it may be slow
SAY_FIRST_S, SAY_MOST_S = 30.0, 600.0  # between lines that say how far all is: each time twice as long
SAID_COHORTS = 3  # in such a line
LOG_LINES = 5  # of a log, at the end
SHOWN = ("done", "failed", "blocked", "running", "waiting")


def usable(environment: Mapping[str, str], stream: Any) -> bool:
    """Whether a display can be redrawn on a stream, and is wanted: a person looks at it, and not a log."""
    plain = environment.get("TERM") in ("dumb", "unknown") or any(environment.get(name) for name in ("NO_COLOR", "CI"))
    return bool(stream) and stream.isatty() and not plain


@dataclass
class Progress:
    """Prints to standard output. `failures` collects what is repeated at the end. As a context: the live display."""

    plan: Plan
    out: Path
    workers: int
    live: bool = field(default_factory=lambda: usable(os.environ, sys.stdout))
    failures: list[tuple[str, str, str, str]] = field(default_factory=list)
    _running: dict[str, float] = field(default_factory=dict)
    _company: dict[str, int] = field(default_factory=dict)  # by run id: the number of the order that it is in
    _state: dict[str, str] = field(default_factory=dict)  # of selected runs
    _settled: int = 0
    _began: float = field(default_factory=time.monotonic)
    _looked: float = 0.0
    _pause_s: float = LIVE_EVERY_S
    _say_s: float = SAY_FIRST_S
    _notice: str = ""
    _stopping: bool = False
    _screen: Screen | None = None

    def __post_init__(self) -> None:
        self._total, self._said = len(self.plan.to_do), self._began
        kept = {"done", "failed", "blocked"}
        found = {run_id: self.plan.statuses[run_id] for run_id in self.plan.selected}
        self._state = {run_id: one.state if one.state in kept else "waiting" for run_id, one in found.items()}
        self._results = {run_id: one.result for run_id, one in self.plan.statuses.items() if one.result}
        self._seen: dict[str, dict[str, Any]] = {}  # what claims said last
        for run_id, one in found.items():
            if one.state == "interrupted" and (holder := self._holder(run_id)):
                self._seen[run_id] = holder.progress
        self._places = states.places(self.plan.outline)

    def __enter__(self) -> Progress:
        if self.live:
            try:
                from jobs import display

                self._screen = display.Screen()
                self._screen.start()
            except Exception as error:
                self._without(error)
        return self

    def __exit__(self, *exception: object) -> None:
        screen, self._screen = self._screen, None
        if screen:
            with contextlib.suppress(Exception):  # nothing that only shows may cost what was done
                screen.stop()
        self._pass_notice()

    @property
    def stderr(self) -> int | None:
        """Where workers are to write what they have to say beside their logs; None: where we do."""
        return self._screen.stderr if self._screen else None

    def started(self, run_id: str) -> None:
        self._running[run_id] = time.monotonic()
        self._state[run_id] = "running"
        if not self._screen:  # it has a bar
            self._line(f"{self._count()} {run_id}  started")

    def started_together(self, run_ids: Sequence[str]) -> None:
        """Runs that share a process, or one that has it to itself."""
        number = max(self._company.values(), default=0) + 1
        self._company.update(dict.fromkeys(run_ids, number))
        if len(run_ids) > 1 and not self._screen:
            self._line(f"{self._count()} {len(run_ids)} runs share a process:")
        for run_id in run_ids:
            self.started(run_id)

    def done(self, run_id: str, message: str) -> None:
        took = self._settle(run_id, "done")
        with contextlib.suppress(OSError, store.Damaged, store.Unreadable):  # for the time left
            if result := store.read_result(store.run_folder(self.out, run_id), curve=False):
                self._results[run_id] = result
        self._line(f"{self._count()} {run_id}  done  {message}{took}")

    def failed(self, run_id: str, outcome: str, message: str, log_tail: str = "") -> None:
        """`log_tail` is shown at the end, where the message does not say what happened."""
        took = self._settle(run_id, outcome)
        self.failures.append((run_id, outcome, message, log_tail))
        self._line(f"{self._count()} {run_id}  {outcome.upper()}  {message}{took}")

    def stopped(self, run_id: str, message: str) -> None:
        self._leave(run_id, f"stopped, {message}")

    def elsewhere(self, run_id: str, message: str) -> None:
        self._leave(run_id, f"waiting: {message}")

    def note(self, run_id: str, message: str) -> None:
        self._leave(run_id, message)

    def stopping(self, text: str) -> None:
        """A line from a signal's handler: at once, or above the display when that is not being drawn."""
        self._stopping = True
        if self._screen:
            self._notice = text
        else:
            print(f"\n{text}", flush=True)

    def tick(self) -> None:
        """Say how far all is: on a terminal every second, else now and then."""
        self._pass_notice()
        now = time.monotonic()
        if not self._screen:
            if now - self._said >= self._say_s:
                self._said, self._say_s = now, min(2 * self._say_s, SAY_MOST_S)
                with contextlib.suppress(OSError):
                    self._line(f"{self._count()} {self._summary()}")
        elif now - self._looked >= self._pause_s:
            self._looked = now
            try:
                self._screen.show(self.view())
            except OSError:  # a claim that cannot be looked at now
                pass
            except Exception as error:
                self._without(error)
            self._pause_s = max(LIVE_EVERY_S, LOOK_SHARE * (time.monotonic() - now))

    def view(self) -> View:
        """What there is to show now."""
        outline, work = self.plan.outline, self._work()
        flop = {run_id: outline.runs[run_id].flop or 0.0 for run_id in self.plan.selected}
        done = {
            run_id: 1.0 if self._state[run_id] == "done" else states.fraction_done(work.seen.get(run_id, {}))
            for run_id in flop
        }
        total, left = sum(flop.values()), None if self._stopping else work.left()
        return View(
            title=f'grid "{outline.grid}", protocol "{outline.protocol}" v{outline.protocol_version}, in {self.out}',
            counts=self._counts(),
            elapsed=duration(time.monotonic() - self._began),
            left=about(left),
            left_short=f"{'>' if left.at_least else ''}{duration(left.seconds)}" if left else "",
            fraction=sum(flop[run_id] * done[run_id] for run_id in flop) / total if total else 0.0,
            rows=[self._row(group, work) for group in work.at_work],
        )

    def finish(self) -> None:
        """Wipe the display; repeat failures, each with its log, what they block, and the way on."""
        self.__exit__()
        if self.failures:
            print()
        blocked: dict[str, list[str]] = {}
        for run_id, outcome, message, log_tail in self.failures:
            if outcome == "blocked":
                blocked.setdefault(message, []).append(run_id)
                continue
            print(f"{outcome}: {run_id}: {message}")
            if outcome == "failed":
                print(f"    log: {store.run_folder(self.out, run_id).log}")
            for line in log_tail.splitlines()[-LOG_LINES:]:
                print(f"      {line}")
        for message, run_ids in blocked.items():
            print(f"blocked: {run_ids[0]}{f' and {len(run_ids) - 1} more' if len(run_ids) > 1 else ''}: {message}")
        if any(outcome == "failed" for _, outcome, _, _ in self.failures):
            print("retry them with the same command and --retry-failed")

    def _settle(self, run_id: str, state: str) -> str:
        self._settled += 1
        self._state[run_id] = state
        began = self._running.pop(run_id, None)
        return f"  ({duration(time.monotonic() - began)})" if began else ""

    def _leave(self, run_id: str, message: str) -> None:
        self._running.pop(run_id, None)
        self._state[run_id] = "waiting"
        self._line(f"{self._count()} {run_id}  {message}")

    def _count(self) -> str:
        return f"[{self._settled}/{self._total}]"

    def _counts(self) -> dict[str, int]:
        counts = Counter(self._state.values())
        return {state: counts[state] for state in SHOWN if counts[state] or state != "blocked"}

    def _work(self) -> remaining.Work:
        """What is left, and how far runs are, by their claims now."""
        holders = {run_id: self._holder(run_id) for run_id in self._running}
        self._seen |= {run_id: holder.progress for run_id, holder in holders.items() if holder}
        companies: dict[Any, list[str]] = {}
        for run_id, holder in holders.items():  # in one of whom nothing is known yet: as they were ordered
            alive = holder and holder.alive
            key = (holder.host, holder.pid) if alive else self._company.get(run_id, run_id)
            companies.setdefault(key, []).append(run_id)
        return remaining.Work(
            self.plan.outline,
            pending=[run_id for run_id in self.plan.to_do if self._state[run_id] == "waiting"],
            at_work=[*companies.values()],
            seen={run_id: remaining.carried_on(seen) for run_id, seen in self._seen.items()},
            results=self._results,
            workers=self.workers,
        )

    def _holder(self, run_id: str) -> claims.Holder | None:
        path = store.run_folder(self.out, run_id).path
        return claims.read(path) if path.is_dir() else None

    def _row(self, group: Sequence[str], work: remaining.Work) -> Row:
        seen = [said for run_id in group if (said := work.seen.get(run_id))]
        behind = min(seen, key=states.fraction_done, default={})
        left = work.left_of(group) if any("left_s" in said for said in seen) else None
        idle_s = min((said.get("idle_s", 0.0) for said in seen), default=0.0)
        speed = max((said.get("images_per_s", 0.0) for said in seen), default=0.0)
        pair, seed, methods = states.names(self.plan.outline, self._places, group)
        return Row(
            pair=pair,
            seed=seed,
            methods=methods,
            fraction=sum(map(states.fraction_done, seen)) / len(group),
            epoch=states.epochs_done(behind) or "starting",
            top1=_range([said["top1"] for said in seen if "top1" in said]),
            images_per_s=f"{speed:,.0f}" if speed else "",
            left=f"no step {duration(idle_s)}" if idle_s > QUIET_S else duration(left) if left else "",
        )

    def _summary(self) -> str:
        """How far all is, in one line."""
        view = self.view()
        counts = ", ".join(f"{count} {state}" for state, count in view.counts.items() if count)
        times = f"{view.elapsed} so far" + (f", {view.left} left" if view.left else "")
        rows = [f"{row.pair} {row.seed} epoch {row.epoch}" for row in view.rows if row.epoch != "starting"]
        more = [f"{len(rows) - SAID_COHORTS} more"] if len(rows) > SAID_COHORTS else []
        return f"{counts}; " + "; ".join([times, *rows[:SAID_COHORTS], *more])

    def _pass_notice(self) -> None:
        text, self._notice = self._notice, ""
        if text:
            self._line(text)

    def _line(self, text: str) -> None:
        if not self._screen:
            print(text, flush=True)
            return
        try:
            self._screen.line(text)
        except Exception as error:
            self._without(error)
            print(text, flush=True)

    def _without(self, error: Exception) -> None:
        """The display is given up: lines go on."""
        self.__exit__()
        self.live = False
        print(f"no live display: {type(error).__name__}: {error}", flush=True)


def _range(values: Sequence[float]) -> str:
    """Of the accuracies of runs that train together: the least and the greatest."""
    if not values:
        return ""
    least, most = (f"{value:.1f}" for value in (min(values), max(values)))
    return least if least == most else f"{least}–{most}"
