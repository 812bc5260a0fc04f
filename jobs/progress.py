"""What a person sees while runs go on: a line per state change, and on a terminal one live line below them."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import store
from jobs import claims
from jobs.plan import Plan, measured_flop_per_s
from jobs.states import epochs_done
from jobs.status import duration

LIVE_EVERY_S = 1.0
LOG_LINES = 5  # of a log, at the end


@dataclass
class Progress:
    """Prints to standard output. `failures` collects what is repeated at the end."""

    plan: Plan
    out: Path
    workers: int
    live: bool = field(default_factory=lambda: sys.stdout.isatty())
    failures: list[tuple[str, str, str, str]] = field(default_factory=list)
    _running: dict[str, float] = field(default_factory=dict)
    _settled: int = 0
    _flop_done: float = 0.0
    _began: float = field(default_factory=time.monotonic)
    _shown: float = 0.0

    def __post_init__(self) -> None:
        self._total = len(self.plan.to_do)
        self._flop_total = sum(map(self.plan.flop, self.plan.to_do))

    def started(self, run_id: str) -> None:
        self._running[run_id] = time.monotonic()
        self._line(f"{self._count()} {run_id}  started")

    def started_together(self, run_ids: Sequence[str]) -> None:
        """Runs that share a process, or one that has it to itself."""
        if len(run_ids) > 1:
            self._line(f"{self._count()} {len(run_ids)} runs share a process:")
        for run_id in run_ids:
            self.started(run_id)

    def done(self, run_id: str, message: str) -> None:
        took = self._settle(run_id)
        self._flop_done += self.plan.flop(run_id)
        self._line(f"{self._count()} {run_id}  done  {message}{took}")

    def failed(self, run_id: str, outcome: str, message: str, log_tail: str = "") -> None:
        """`log_tail` is shown at the end, where the message does not say what happened."""
        took = self._settle(run_id)
        self.failures.append((run_id, outcome, message, log_tail))
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
        with contextlib.suppress(OSError):  # a claim that cannot be looked at now
            self._draw()

    def _draw(self) -> None:
        parts = [self._describe(run_id) for run_id in self._running]
        text = f"{self._count()} {self._left()}" + "".join(f" | {part}" for part in parts)
        width = shutil.get_terminal_size().columns - 1
        print("\r\x1b[K" + text[:width], end="", flush=True)

    def finish(self) -> None:
        """Wipe the live line; repeat failures, each with its log, what they block, and the way on."""
        self._line(None)
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
        top1 = f"{seen['top1']:.1f}" if "top1" in seen else ""
        return " ".join(part for part in (short, epochs_done(seen), top1) if part)

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
