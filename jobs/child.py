"""A worker process on its leash: orders down its standard input, answers up its output, an end for one that hangs.

The local queue holds one a slot, a SLURM task holds one. Nothing here imports torch, and no read or write is buffered,
so that a signal handler can go on where it interrupted.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import store
from bench.surroundings import machine
from jobs import claims
from jobs.outcomes import DIED, FAILED, LAST_WORDS, NO_DEVICE, Answer
from jobs.status import duration

if TYPE_CHECKING:
    from bench.grid import Grid

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = (sys.executable, "-m", "jobs.worker")
LOOK_S = 5.0  # between looks at whether a worker gets on
END_S = 60.0  # for a process to end once it has closed its output


@dataclass(frozen=True)
class Post:
    """Where a worker stands and what it works with: its command line and its environment."""

    out: Path
    device: str  # "cpu" or "cuda"
    threads: int
    per_device: int = 1  # workers that share the device
    slots: int = 0  # workers in all, for whoever works out the time left; 0: not known
    together: int = 0  # runs that share one at most; 0: all that fit
    gpu: str | None = None  # the one it is to see, as CUDA_VISIBLE_DEVICES names it; None: as they are
    data: Path | None = None
    hung_s: float = claims.HUNG_S  # without a step, after which it counts as hung

    @property
    def command(self) -> list[str]:
        options = {
            "--out": self.out.resolve(),
            "--device": self.device,
            "--threads": self.threads,
            "--per-device": self.per_device,
            "--slots": self.slots,
            "--together": self.together,
            "--hung-s": self.hung_s,
            **({"--data": self.data.resolve()} if self.data else {}),
        }
        return [*PROGRAM, *(str(word) for option in options.items() for word in option)]

    @property
    def environment(self) -> dict[str, str]:
        pinned = {} if self.gpu is None else {"CUDA_VISIBLE_DEVICES": self.gpu}
        return {**machine.worker_environment(os.environ, self.threads), **pinned}


def order(grid: Grid, run_id: str) -> dict[str, Any]:
    """What a worker is told of a run."""
    weights = grid.weights.get(run_id)
    return {"run": grid.runs[run_id].model_dump(mode="json"), "weights": str(weights) if weights else None}


@dataclass
class Child:
    """The process, started with the first order and again after it ended. It is given one order at a time.

    Every run of an order is answered once: by the worker, or as DIED here, where that ended without a word on it.
    """

    post: Post
    stderr: Callable[[], int | None] = lambda: None  # a descriptor for its errors; None: where ours go
    order: tuple[str, ...] = ()
    answers: dict[str, Answer] = field(default_factory=dict)  # on the runs of the order, by run id
    no_device: bool = False  # it ended because its device is not there
    _process: subprocess.Popen | None = None
    _said: bytes = b""  # the beginning of a line
    _leaving: bool = False  # it has said a last word
    _closed: bool = False
    _watch: claims.Watch = field(default_factory=claims.Watch)
    _looked: float = 0.0
    _hung: str = ""  # why we killed the process

    @property
    def alive(self) -> bool:
        """Whether there is a process whose end was not seen yet."""
        return self._process is not None

    @property
    def busy(self) -> bool:
        """Whether its order is not over. One that has said its last words is waited for, which frees what it holds."""
        return bool(self._unanswered) or (self.alive and self._leaving)

    def give(self, orders: Mapping[str, dict[str, Any]]) -> None:
        """Have runs done together, by run id; only when it is not busy."""
        if self._process is None or self._process.poll() is not None:
            self._start()
        self.order, self.answers = tuple(orders), {}
        self._watch, self._looked = claims.Watch(), time.monotonic()
        line = json.dumps({"runs": list(orders.values())}).encode() + b"\n"
        try:
            while line:
                line = line[self._process.stdin.write(line) :]
        except (OSError, ValueError):
            pass  # it has just died, or a handler has closed it: its end of output says so

    def hear(self, within_s: float = 0.0) -> list[Answer]:
        """What it has said, waiting for it so long at most."""
        if not self.alive or not ready([self], within_s):
            return []
        piece = os.read(self.fileno(), 1 << 16)
        if not piece:
            return self._ended()
        *lines, self._said = (self._said + piece).split(b"\n")
        heard = [answer for line in lines for answer in self._read(line)]
        if self._leaving and not self._unanswered:
            self._end_orders()
        return heard

    def end_if_hung(self) -> None:
        """Kill it where its runs stand still for too long; its end is then seen like any other. Costs little."""
        now = time.monotonic()
        if self._hung or not self.busy or now - self._looked < LOOK_S:
            return
        self._looked = now
        watched = (self._unanswered or self.order)[0]  # all of them move, or none
        still_s = self._watch.still_s(store.run_folder(self.post.out, watched).path, 2 * LOOK_S)
        if still_s > self.post.hung_s:
            self._hung = f"hung: no step for {duration(still_s)}"
            self.kill()

    def close(self) -> None:
        """End of orders: an idle process leaves, a busy one writes its checkpoints first."""
        self._closed = True
        self._end_orders()

    def kill(self) -> None:
        """End the process and all it may have started. A stopped one, too."""
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def fileno(self) -> int:
        return self._process.stdout.fileno()

    def _end_orders(self) -> None:
        if self._process:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    @property
    def _unanswered(self) -> list[str]:
        return [run_id for run_id in self.order if run_id not in self.answers]

    def _start(self) -> None:
        self._said, self._hung, self._leaving = b"", "", False
        # SLURM may signal every process of a job, and USR2 would kill this one: it inherits that it is blocked.
        with _blocked(signal.SIGUSR2):
            self._process = subprocess.Popen(
                self.post.command,
                bufsize=0,
                pipesize=1 << 20,  # where the system knows it: an order need not wait until the worker reads
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.stderr(),
                env=self.post.environment,
                cwd=ROOT,
                start_new_session=True,  # Ctrl-C is the driver's to handle: workers are told through their input
            )
        if self._closed:  # by a signal handler, while it was being started
            self.close()

    def _read(self, line: bytes) -> Iterator[Answer]:
        """The answer in a line. What some library prints is none, and goes to where the rest of it is."""
        try:
            said = json.loads(line)
            answer = Answer(said["run_id"], said["outcome"], said["message"])
        except (ValueError, KeyError, TypeError):
            print(line.decode(errors="replace"), file=sys.stderr)
            return
        if answer.run_id in self._unanswered:
            self.answers[answer.run_id] = answer
            self._leaving |= answer.outcome in LAST_WORDS or (answer.outcome == FAILED and self.post.device != "cpu")
            yield answer

    def _ended(self) -> list[Answer]:
        """Take in that the process has ended."""
        try:
            # Without a time a signal handler that waits, too, would wait for ever for what it interrupted.
            code = self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.kill()
            code = -signal.SIGKILL
        self.no_device = code == NO_DEVICE
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        how += " (its device is not there)" if self.no_device else ""
        how = self._hung or how + (" (out of memory?)" if code == -signal.SIGKILL else "")
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()
        self._process = None
        died = {run_id: Answer(run_id, DIED, how) for run_id in self._unanswered}
        self.answers |= died
        return list(died.values())


def ready(children: Collection[Child], within_s: float) -> list[Child]:
    """Those of these living children that have something to say, waiting for the first so long at most."""
    with selectors.DefaultSelector() as selector:
        for child in children:
            selector.register(child, selectors.EVENT_READ)
        return [key.fileobj for key, _ in selector.select(max(0.0, within_s))]


@contextlib.contextmanager
def _blocked(number: signal.Signals) -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
