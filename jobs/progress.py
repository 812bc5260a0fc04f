"""What a person sees while runs go on: a line per state change, and on a terminal one live line below them."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from bench import store
from jobs import claims
from jobs.plan import Plan, cost_flop, measured_flop_per_s

LIVE_EVERY_S = 1.0


@dataclass
class Progress:
    """Prints to standard output. `failures` collects what is repeated at the end."""

    plan: Plan
    out: Path
    workers: int
    live: bool = field(default_factory=lambda: sys.stdout.isatty())
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    _running: dict[str, float] = field(default_factory=dict)
    _settled: int = 0
    _flop_done: float = 0.0
    _began: float = field(default_factory=time.monotonic)
    _shown: float = 0.0

    def __post_init__(self) -> None:
        self._total = len(self.plan.to_do)
        self._flop_total = sum(cost_flop(self.plan.grid.runs[run_id]) for run_id in self.plan.to_do)

    def started(self, run_id: str) -> None:
        self._running[run_id] = time.monotonic()
        self._line(f"{self._count()} {run_id}  started")

    def done(self, run_id: str, message: str) -> None:
        took = self._settle(run_id)
        self._flop_done += cost_flop(self.plan.grid.runs[run_id])
        self._line(f"{self._count()} {run_id}  done  {message}{took}")

    def failed(self, run_id: str, outcome: str, message: str) -> None:
        took = self._settle(run_id)
        self.failures.append((run_id, outcome, message))
        self._line(f"{self._count()} {run_id}  {outcome.upper()}  {message}{took}")

    def stopped(self, run_id: str, message: str) -> None:
        self._running.pop(run_id, None)
        self._line(f"{self._count()} {run_id}  stopped, {message}")

    def elsewhere(self, run_id: str, message: str) -> None:
        self._running.pop(run_id, None)
        self._line(f"{self._count()} {run_id}  waiting: {message}")

    def note(self, run_id: str, message: str) -> None:
        self._running.pop(run_id, None)
        self._line(f"{self._count()} {run_id}  {message}")

    def tick(self) -> None:
        """Redraw the live line, on a terminal only."""
        if not self.live or time.monotonic() - self._shown < LIVE_EVERY_S:
            return
        self._shown = time.monotonic()
        parts = [self._describe(run_id) for run_id in self._running]
        text = f"{self._count()} {self._left()}" + "".join(f" | {part}" for part in parts)
        width = shutil.get_terminal_size().columns - 1
        print("\r\x1b[K" + text[:width], end="", flush=True)

    def finish(self) -> None:
        """Wipe the live line; repeat failures, each with its log and the way on."""
        self._line(None)
        for run_id, outcome, message in self.failures:
            print(f"{outcome}: {run_id}: {message}")
            if outcome == "failed":
                print(f"    log: {store.run_folder(self.out, run_id).log}")
        if any(outcome == "failed" for _, outcome, _ in self.failures):
            print("retry them with the same command and --retry-failed")

    def _settle(self, run_id: str) -> str:
        self._settled += 1
        began = self._running.pop(run_id, None)
        return f"  ({duration(time.monotonic() - began)})" if began else ""

    def _count(self) -> str:
        return f"[{self._settled}/{self._total}]"

    def _describe(self, run_id: str) -> str:
        holder = claims.read(path) if (path := store.run_folder(self.out, run_id).path).is_dir() else None
        seen = holder.progress if holder else {}
        short = run_id.rsplit("-", 1)[0]
        return f"{short} {seen['epoch']}/{seen['epochs']} {seen['top1']:.1f}" if seen.get("epochs") else short

    def _left(self) -> str:
        """Time left, from the speed of this call, else of earlier runs; nothing before there is a measurement."""
        elapsed = time.monotonic() - self._began
        if self._flop_done:
            return f"{duration((self._flop_total - self._flop_done) * elapsed / self._flop_done)} left"
        speed = measured_flop_per_s(self.plan)
        return f"{duration(self._flop_total / speed / self.workers)} left" if speed else f"{duration(elapsed)} so far"

    def _line(self, text: str | None) -> None:
        if self.live:
            print("\r\x1b[K", end="")
        if text is not None:
            print(text, flush=True)


def duration(seconds: float) -> str:
    """A time span as a person says it: 8s, 4m12s, 3h05m, 2d4h."""
    seconds = max(0, round(seconds))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f"{days}d{hours % 24}h"
    if hours:
        return f"{hours}h{minutes % 60:02d}m"
    return f"{minutes}m{seconds % 60:02d}s" if minutes else f"{seconds}s"
