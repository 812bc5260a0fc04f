"""How far a run in hand is: what its claim carries, and `--status` and the live line show."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

from bench.experiment import Site
from bench.run import Run
from bench.surroundings.provenance import device_name


@dataclass
class Pulse:
    """Steps and batches of evaluation that a process has done, of whichever run: it tells moving from hanging."""

    ticks: int = 0


class Meter:
    """How far a run is: takes down each step as it comes, and works out the rest when the heartbeat asks for it."""

    def __init__(self, run: Run, inherited: dict[str, Any], pulse: Pulse) -> None:
        self.epochs = run.train.epochs if run.train else 0
        self.batch = run.train.batch if run.train else 0
        self.top1 = inherited.get("top1")
        self.place: dict[str, Any] = {}
        # What the last claimant said stands until the first step.
        self.inherited = {name: inherited[name] for name in ("epoch", "epochs", "step", "steps") if name in inherited}
        self.began = self.moved = time.monotonic()
        self.at: tuple[int, int, int] | None = None  # epoch under way, its steps so far and in all
        self.first: tuple[float, int] = (0.0, 0)  # when the first step was seen, and the steps of the run until then
        self.pulse, self.seen = pulse, 0

    def on_step(self, epoch: int, step: int, steps: int) -> None:
        """Called at every step: no file, no clock but once."""
        if self.at is None:
            self.first = time.monotonic(), (epoch - 1) * steps + step
        self.at = epoch, step, steps
        self.pulse.ticks += 1

    def measure(self) -> dict[str, Any]:
        """The progress that a claim carries and `--status` shows. `ticks` stands still where the process hangs."""
        now, at, ticks = time.monotonic(), self.at, self.pulse.ticks
        if ticks != self.seen:
            self.moved, self.seen = now, ticks
        known = {"ticks": ticks, "idle_s": round(now - self.moved, 1), "wall_s": round(now - self.began, 1)}
        if self.top1 is not None:
            known["top1"] = self.top1
        if at is None or not self.epochs:
            return {**self.inherited, **known, **self.place}
        epoch, step, steps = at
        done, seconds = (epoch - 1) * steps + step, now - self.first[0]
        progress = {"epoch": epoch - 1, "epochs": self.epochs, "step": step, "steps": steps, **known, **self.place}
        if done > self.first[1] and seconds > 0:
            per_s = (done - self.first[1]) / seconds  # evaluations included: what is left has them, too
            progress["images_per_s"] = round(per_s * self.batch, 1)
            progress["left_s"] = round((self.epochs * steps - done) / per_s, 1)
        return progress


def place(site: Site, together: int) -> dict[str, Any]:
    """Where a run is done, for a person; `devices` is its part of what the process has."""
    found = {"device": device_name(site.device), "devices": site.devices / together}
    if site.device.type == "cuda":
        found["gpu"] = os.environ.get("CUDA_VISIBLE_DEVICES") or str(site.device.index or 0)
    return found
