"""One worker process: takes runs from standard input, one JSON line each, and answers each with one line.

Its standard input is also its leash: when the driver closes it, or dies, the run in hand is checkpointed and left.
Everything a run prints goes to that run's log.txt.
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
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import torch

from bench import experiment, store
from bench.provenance import device_name
from bench.run import Run
from bench.training.devices import parse_device
from bench.training.trainer import CHECKPOINT_EVERY_S, Diverged, Stopped
from jobs import claims
from methods import check

DONE, FAILED, BLOCKED, CLAIMED, STOPPED = "done", "failed", "blocked", "claimed", "stopped"


def do(run: Run, site: experiment.Site, stop: threading.Event) -> tuple[str, str]:
    """Claim a run, do it, leave its files in order; returns (outcome, one line). Never raises for a failed run."""
    folder = store.run_folder(site.out, run.run_id)
    try:
        claim = claims.acquire(folder.path)
    except OSError as error:
        return FAILED, f"cannot write to {folder.path}: {error.strerror}"
    if claim is None:
        return CLAIMED, "another process has it"
    try:
        with _log(folder.log):
            return _attempt(run, site, folder, claim, stop)
    except OSError as error:
        return FAILED, f"cannot write to {error.filename or folder.path}: {error.strerror}"
    finally:
        with contextlib.suppress(OSError):
            claim.release()


def _attempt(
    run: Run, site: experiment.Site, folder: store.RunFolder, claim: claims.Claim, stop: threading.Event
) -> tuple[str, str]:
    _say(f"{run.run_id} on {site.device}, {torch.get_num_threads()} CPU thread(s), code in {Path(__file__).parents[1]}")
    store.sweep(folder)
    meter = _Meter(run, claim.progress)
    claim.keep_alive(meter.measure)

    def on_epoch(row: dict[str, Any]) -> None:
        claim.check()
        meter.top1 = row["top1"]
        _say("  ".join(f"{key} {value:.6g}" for key, value in row.items()))

    def perform() -> dict[str, Any]:
        return experiment.perform(
            run,
            site,
            should_stop=stop.is_set,
            on_step=meter.on_step,
            on_epoch=on_epoch,
            before_write=claim.check,
        )

    try:
        done = _whole(folder.result, lambda: store.read_result(folder, curve=False))
        if done and store.weights_fault(folder) is None:
            return DONE, _headline(done)  # finished by another process while we waited for the claim
        if done:
            store.set_aside(folder.result)  # its weights are gone: until they are made again it is not done
        if error := _whole(folder.error, lambda: store.read_json(folder.error)):
            return FAILED, error.get("message", "")
        store.write_json(folder.config, run.model_dump(mode="json"))
        meter.place = _place(site)
        try:
            result = perform()
        except store.Damaged as damage:
            _say(f"{damage}: set aside, starting again")
            store.set_aside(folder.last)
            result = perform()
        if file := result.get("weights_file"):
            _say(f"{site.weights}: {file['read']}; {file.get('said', 'it states no accuracy')}")
        _say(f"done: {_headline(result)}")
        return DONE, _headline(result)
    except Stopped:
        _say("stopped, checkpoint written")
        return STOPPED, "checkpoint written"
    except claims.ClaimLost as lost:
        return CLAIMED, str(lost)
    except experiment.TeacherNotReady as reason:
        return BLOCKED, str(reason)
    except Exception as error:
        return FAILED, _fail(folder, error)


class _Meter:
    """How far a run is: takes down each step as it comes, and works out the rest when the heartbeat asks for it."""

    def __init__(self, run: Run, inherited: dict[str, Any]) -> None:
        self.epochs = run.train.epochs if run.train else 0
        self.batch = run.train.batch if run.train else 0
        self.top1 = inherited.get("top1")
        self.place: dict[str, Any] = {}
        # What the last claimant said stands until the first step.
        self.inherited = {name: inherited[name] for name in ("epoch", "epochs", "step", "steps") if name in inherited}
        self.began = self.moved = time.monotonic()
        self.at: tuple[int, int, int] | None = None  # epoch under way, its steps so far and in all
        self.first: tuple[float, int] = (0.0, 0)  # when the first step was seen, and the steps of the run until then
        self.ticks = self.seen = 0

    def on_step(self, epoch: int, step: int, steps: int) -> None:
        """Called at every step: no file, no clock but once."""
        if self.at is None:
            self.first = time.monotonic(), (epoch - 1) * steps + step
        self.at = epoch, step, steps
        self.ticks += 1

    def measure(self) -> dict[str, Any]:
        """The progress that a claim carries and `--status` shows. `ticks` stands still where a run hangs."""
        now, at, ticks = time.monotonic(), self.at, self.ticks
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


def _place(site: experiment.Site) -> dict[str, Any]:
    """Where a run is done, for a person."""
    place = {"device": device_name(site.device), "devices": site.devices}
    if site.device.type == "cuda":
        place["gpu"] = os.environ.get("CUDA_VISIBLE_DEVICES") or str(site.device.index or 0)
    return place


def _headline(result: dict[str, Any]) -> str:
    file = result.get("weights_file") or {}
    but = f" ({file['said']})" if file.get("claims", {}).get("agrees") is False else ""
    return f"top-1 {result['metrics']['top1_last']:.2f}{but}"


def _fail(folder: store.RunFolder, error: Exception) -> str:
    """Write error.json; the line that says what happened, in words a person can act on."""
    text = str(error).strip() or type(error).__name__
    message = text.splitlines()[0]
    if isinstance(error, torch.OutOfMemoryError):
        message = f"out of GPU memory: use fewer --slots ({message})"
    elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
        message = f"disk full while writing {error.filename or folder.path}: make room, then --retry-failed"
    elif not isinstance(error, (Diverged, ValueError, OSError)):
        message = f"{type(error).__name__}: {message}"
    _say(traceback.format_exc())
    record_failure(folder, message, traceback.format_exc())
    return message


def record_failure(folder: store.RunFolder, message: str, details: str) -> None:
    """Mark a run as failed; where even that cannot be written the run counts as interrupted."""
    record = {
        "run_id": folder.run_id,
        "message": message,
        "details": details,
        "host": socket.gethostname(),
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    with contextlib.suppress(OSError):
        store.write_json(folder.error, record)


def _whole(path: Path, read: Callable[[], dict[str, Any] | None]) -> dict[str, Any] | None:
    """What `read` gives; a damaged file is set aside and counts as absent."""
    try:
        return read()
    except store.Damaged as damage:
        _say(f"{damage}: set aside as {store.set_aside(path).name}")
        return None


@contextlib.contextmanager
def _log(path: Path) -> Iterator[None]:
    """Send everything this process prints, from any library, to the end of a run's log."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    try:
        target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
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


def _say(text: str) -> None:
    stamp = datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S")
    with contextlib.suppress(OSError):
        os.write(1, f"{stamp}  {text}\n".encode())


def serve(site_of: Any, orders: TextIO, answers: TextIO) -> None:
    """Do the runs that `orders` names until it ends; at its end the run in hand is stopped with a checkpoint."""
    stop, left = threading.Event(), threading.Event()
    waiting: queue.SimpleQueue[str | None] = queue.SimpleQueue()  # a signal may put
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: (stop.set(), waiting.put(None)))

    def listen() -> None:
        for line in orders:
            waiting.put(line)
        stop.set()
        waiting.put(None)
        if not left.wait(claims.HUNG_S):
            os._exit(1)  # it hangs, and the driver that would see to that is gone: its claim must not live for ever

    threading.Thread(target=listen, name="orders", daemon=True).start()
    while not stop.is_set() and (line := waiting.get()):
        order = json.loads(line)
        run = check(Run, order["run"], "order")
        outcome, message = do(run, site_of(order.get("weights")), stop)
        said = json.dumps({"run_id": run.run_id, "outcome": outcome, "message": message})
        try:
            print(said, file=answers, flush=True)
        except BrokenPipeError:
            break  # the driver is gone: the run's own files say what became of it
    left.set()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--per-device", type=int, default=1, help="workers that share the device")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--checkpoint-every-s", type=float, default=CHECKPOINT_EVERY_S)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = parse_device(args.device)
    answers = os.fdopen(os.dup(1), "w")

    def site_of(weights: str | None) -> experiment.Site:
        torch.set_num_threads(args.threads)  # a resumed run may have changed it
        file = Path(weights) if weights else None
        return experiment.Site(args.out, device, args.data, file, args.checkpoint_every_s, args.per_device)

    serve(site_of, sys.stdin, answers)


if __name__ == "__main__":
    main()
