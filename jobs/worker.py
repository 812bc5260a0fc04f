"""One worker process: takes orders from standard input, one JSON line each, and answers each of their runs in a line.

An order is `{"runs": [{"run": ..., "weights": path or null}, ...]}`: runs that train together (`bench.cohorts`). An
answer is `{"run_id": ..., "outcome": one of jobs.outcomes, "message": ...}`, given when that run is settled.
Its standard input is also its leash: when the driver closes it, or dies, the runs in hand are checkpointed and left.
What a run has to say is in its log.txt; what else the process prints is in that of the first.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import errno
import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch

from bench import experiment, store
from bench.run import Run
from bench.surroundings import machine
from bench.surroundings.commandline import lasting_output
from bench.training.devices import failure_of_device, parse_device
from bench.training.member import Diverged
from bench.training.trainer import CHECKPOINT_EVERY_S, Stopped
from jobs import claims
from jobs.failures import record_failure
from jobs.meter import Meter, Pulse, place
from jobs.outcomes import BLOCKED, CLAIMED, CRASHED, DONE, FAILED, NO_DEVICE, NO_MEMORY, STOPPED
from methods import check
from zoo.errors import BadInput

Order = tuple[Run, Path | None]  # a run, and the file of a checkpoint's weights
Settle = Callable[[Run, str, str], None]  # takes a run, its outcome, and one line
Work = Callable[[Sequence[Order], threading.Event, Settle], bool]  # `do` somewhere


def do(orders: Sequence[Order], site: experiment.Site, stop: threading.Event, settle: Settle) -> bool:
    """Claim runs, do them together, leave the files of each in order; `settle` hears of each as it ends.

    Never raises for what a run does. False where this process should take no other order: the device failed, or
    something on a GPU did, which may have left it unusable.
    """
    pulse = Pulse()
    tries = [Try(run, weights, settle, pulse, site.out) for run, weights in orders]
    ready = [one for one in tries if one.begin()]
    for one in ready:
        one.start(site, ready)
    ready = [one for one in ready if one.outcome is None]
    try:
        if ready:
            with _printing_to(ready[0].folder.log):
                experiment.perform([one.job for one in ready], site, should_stop=stop.is_set)
    except Exception as error:  # everybody's
        for one in ready:
            if one.outcome is None:
                one.left(error)
    unusable = (CRASHED, NO_MEMORY) if site.device.type == "cpu" else (FAILED, CRASHED, NO_MEMORY)
    return not any(one.outcome in unusable for one in tries)


class Try(experiment.Listener):
    """An attempt at one run: its claim, its log, how far it is, and what becomes of it."""

    def __init__(self, run: Run, weights: Path | None, settle: Settle, pulse: Pulse, out: Path) -> None:
        self.run, self.job = run, experiment.Job(run, self, weights)
        self.folder = store.run_folder(out, run.run_id)
        self.outcome: str | None = None
        self._settle, self._pulse = settle, pulse
        self._claim: claims.Claim | None = None
        self._unsaid = ""  # why the log has gaps

    def begin(self) -> bool:
        """Claim the run, and say whether there is anything to do."""
        try:
            self._claim = claims.acquire(self.folder.path)
            if self._claim is None:
                self.end(CLAIMED, "another process has it")
            else:
                self._look()
        except store.Unreadable as error:
            self.end(BLOCKED, f"{error}: left as it is")
        except OSError as error:
            self.end(FAILED, _not_written(self.folder, error))
        return self.outcome is None

    def _look(self) -> None:
        """Settle what was done, or failed, while we waited for the claim."""
        store.sweep(self.folder)
        done = self._whole(self.folder.result, lambda: store.read_result(self.folder, curve=False))
        if done and store.weights_fault(self.folder) is None:
            self.end(DONE, _headline(done))
        elif done:
            store.set_aside(self.folder.result)  # its weights are gone: until they are made again it is not done
        elif error := self._whole(self.folder.error, lambda: store.read_json(self.folder.error)):
            self.end(FAILED, error.get("message", ""))

    def start(self, site: experiment.Site, ready: Sequence[Try]) -> None:
        """Say in the log what begins, and keep the claim alive from now on."""
        self.say(
            f"{self.run.run_id} on {site.device}, {torch.get_num_threads()} CPU thread(s), "
            f"code in {Path(__file__).parents[1]}"
        )
        if len(ready) > 1:
            others = ", ".join(one.run.run_id for one in ready if one is not self)
            self.say(f"together with {others}; what the process prints is in {ready[0].folder.log}")
        try:
            store.write_json(self.folder.config, self.run.model_dump(mode="json"))
        except OSError as error:
            self.end(FAILED, _not_written(self.folder, error))
            return
        queued = site.device.type == "cuda"
        self._meter = Meter(self.run, self._claim.progress, self._pulse, together=len(ready), queued=queued)
        self._meter.place = place(site, len(ready))
        self._claim.keep_alive(self._meter.measure)

    def say(self, text: str) -> None:
        """A line at the end of the run's log. One that cannot be written costs itself; the answer tells of it."""
        stamp = datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S")
        try:
            with open(self.folder.log, "a", encoding="utf-8", errors="replace") as log:
                log.write(f"{stamp}  {text}\n")
        except OSError as error:
            self._unsaid = error.strerror or type(error).__name__

    def on_step(self, epoch: int, step: int, steps: int) -> None:
        self._meter.on_step(epoch, step, steps)

    def on_epoch(self, row: dict[str, Any]) -> None:
        self._claim.check()
        self._meter.on_epoch(row["epoch"], row.get("top1", row.get("val_top1")))
        self.say("  ".join(f"{key} {value:.6g}" for key, value in row.items()))

    def before_write(self) -> None:
        self._meter.done_so_far()
        self._claim.check()

    def damaged(self, damage: store.Damaged) -> None:
        self.say(f"{damage}: set aside, starting again")
        store.set_aside(self.folder.last)

    def other_source(self) -> None:
        self.say(
            f"goes on from a checkpoint that another source of {self.run.method} has made: the result will be of both; "
            "--force starts it over"
        )

    def finished(self, result: dict[str, Any]) -> None:
        if file := result.get("weights_file"):
            self.say(f"{self.job.weights}: {file['read']}; {file.get('said', 'it states no accuracy')}")
            if file.get("published"):
                self.say(f"{self.job.weights}: {file['published']}")
        self.say(f"done: {_headline(result)}")
        self.end(DONE, _headline(result))

    def left(self, error: Exception) -> None:
        failed = failure_of_device(error)
        if isinstance(error, Stopped):
            self.say("stopped, checkpoint written")
            self.end(STOPPED, "checkpoint written")
        elif isinstance(error, claims.ClaimLost):
            self.end(CLAIMED, str(error))
        elif isinstance(error, experiment.TeacherNotReady):
            self.end(BLOCKED, str(error))
        elif isinstance(error, store.Unreadable):
            self.say(f"{error}: left as it is")
            self.end(BLOCKED, f"{error}: left as it is")
        elif failed:
            self.say("".join(traceback.format_exception(error)))
            self.end(NO_MEMORY if failed == "memory" else CRASHED, _words(error, self.folder))
        else:
            message, details = _words(error, self.folder), "".join(traceback.format_exception(error))
            self.say(details)
            record_failure(self.folder, message, details)
            self.end(FAILED, message)

    def end(self, outcome: str, message: str) -> None:
        """Settled: give the claim up and say so. The first word counts."""
        if self.outcome is not None:
            return
        self.outcome = outcome
        if self._claim:
            with contextlib.suppress(OSError):
                self._claim.release()
        self._settle(self.run, outcome, message + (f" (log.txt has gaps: {self._unsaid})" if self._unsaid else ""))

    def _whole(self, path: Path, read: Callable[[], dict[str, Any] | None]) -> dict[str, Any] | None:
        """What `read` gives; a damaged file is set aside and counts as absent."""
        try:
            return read()
        except store.Damaged as damage:
            self.say(f"{damage}: set aside as {store.set_aside(path).name}")
            return None


def _headline(result: dict[str, Any]) -> str:
    file = result.get("weights_file") or {}
    but = f" ({file['said']})" if file.get("claims", {}).get("agrees") is False else ""
    return f"top-1 {result['metrics']['top1_last']:.2f}{but}"


def _not_written(folder: store.RunFolder, error: OSError) -> str:
    return f"cannot write to {error.filename or folder.path}: {error.strerror}"


def _words(error: Exception, folder: store.RunFolder) -> str:
    """One line that says what happened, in words a person can act on."""
    message = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"disk full while writing {error.filename or folder.path}: make room, then --retry-failed"
    return message if isinstance(error, (Diverged, ValueError, OSError)) else f"{type(error).__name__}: {message}"


@contextlib.contextmanager
def _printing_to(path: Path) -> Iterator[None]:
    """Send everything that this process prints, from any library, to the end of a run's log."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    try:
        try:
            target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError:
            target = os.open(os.devnull, os.O_WRONLY)
        os.dup2(target, 1)
        os.dup2(target, 2)
        os.close(target)
        yield
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        for descriptor, original in zip((1, 2), kept, strict=True):
            os.dup2(original, descriptor)
            os.close(original)


def serve(work: Work, orders: TextIO, answers: TextIO, hung_s: float) -> None:
    """Do what `orders` names until it ends, by `work`; at its end the runs in hand are stopped with a checkpoint."""
    stop, left = threading.Event(), threading.Event()
    waiting: queue.SimpleQueue[str | None] = queue.SimpleQueue()  # a signal may put
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: (stop.set(), waiting.put(None)))

    def listen() -> None:
        for line in orders:
            waiting.put(line)
        stop.set()
        waiting.put(None)
        if not left.wait(hung_s):
            os._exit(1)  # it hangs, and the driver that would see to that is gone: its claims must not live for ever

    def settle(run: Run, outcome: str, message: str) -> None:
        said = json.dumps({"run_id": run.run_id, "outcome": outcome, "message": message})
        try:
            print(said, file=answers, flush=True)
        except BrokenPipeError:
            stop.set()  # the driver is gone: the run's own files say what became of it

    threading.Thread(target=listen, name="orders", daemon=True).start()
    while not stop.is_set() and (line := waiting.get()):
        wanted = [(check(Run, one["run"], "order"), one.get("weights")) for one in json.loads(line)["runs"]]
        if not work([(run, Path(weights) if weights else None) for run, weights in wanted], stop, settle):
            break
    left.set()


def _keep_priority() -> None:
    """Let a driver's `nice` count: a session of its own, as a worker has, is weighed by itself (autogroup of Linux)."""
    with contextlib.suppress(OSError):
        if niceness := os.nice(0):
            Path("/proc/self/autogroup").write_text(str(niceness))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--per-device", type=int, default=1, help="workers that share the device")
    parser.add_argument("--slots", type=int, default=0, help="workers that the driver has; 0: not known")
    parser.add_argument("--together", type=int, default=0, help="runs that share one at most; 0: all that fit")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--checkpoint-every-s", type=float, default=CHECKPOINT_EVERY_S)
    parser.add_argument("--hung-s", type=float, default=claims.HUNG_S, help="without a step: it hangs")
    args = parser.parse_args()
    _keep_priority()
    try:
        device = parse_device(args.device)
    except BadInput as error:  # not the runs' doing
        print(error, file=sys.stderr)
        sys.exit(NO_DEVICE)
    if device.type == "cpu":
        machine.keep_memory()
    team = {"per_device": args.per_device, "slots": args.slots, "together": args.together}
    site = experiment.Site(args.out, device, args.data, args.checkpoint_every_s, **team)

    def work(orders: Sequence[Order], stop: threading.Event, settle: Settle) -> bool:
        torch.set_num_threads(args.threads)  # a resumed run may have changed it
        return do(orders, site, stop, settle)

    with lasting_output():
        serve(work, sys.stdin, os.fdopen(os.dup(1), "w"), args.hung_s)


if __name__ == "__main__":
    main()
