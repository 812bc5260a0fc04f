"""What runs in a SLURM job, without SLURM: workers that die or hang, claims, time limits without progress."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bench import store
from bench.run import Run
from jobs import claims, worker
from jobs.slurm import task
from tests import tiny

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def handlers():
    """A task takes SIGTERM; give it back."""
    kept = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, kept)


def make(tmp_path: Path, *runs: Run, **changes) -> task.Task:
    record = tmp_path / "record.json"
    record.write_text("{}")
    settings = {
        "code": str(ROOT),
        "record": str(record),
        "out": str(tmp_path),
        "device": "cpu",
        "threads": 1,
        "data": None,
        "timeout_min": 60,
        "signal_delay_s": 20,
        "orders": [{"run_id": run.run_id, "order": {"run": run.model_dump(mode="json")}} for run in runs],
    }
    return task.Task(**{**settings, **changes})


def folder_of(tmp_path: Path, run: Run) -> store.RunFolder:
    return store.run_folder(tmp_path, run.run_id)


@contextlib.contextmanager
def to_each_worker(tmp_path: Path, run: Run, number: signal.Signals, times: int):
    """Send a signal to the first so many workers that claim a run."""
    seen: set[int] = set()
    over = threading.Event()

    def watch() -> None:
        while len(seen) < times and not over.is_set():
            holder = claims.read(folder_of(tmp_path, run).path)
            if holder and holder.alive and holder.pid not in seen:
                seen.add(holder.pid)
                os.kill(holder.pid, number)
            time.sleep(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    yield seen
    over.set()
    thread.join()


def test_the_names_of_outcomes_are_the_workers():
    assert (task.DONE, task.STOPPED, task.CLAIMED, task.FAILED) == (
        worker.DONE,
        worker.STOPPED,
        worker.CLAIMED,
        worker.FAILED,
    )


def test_the_process_that_slurm_knows_stays_light():
    code = "import sys, jobs.slurm.task, submitit.core._submit; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_runs_of_a_task_are_all_tried(tmp_path):
    """A failing run keeps no other from being done, and the task says so in the end: its exit status is not 0."""
    bad = tiny.run(tmp_path / "bad", "vanilla", text=tiny.PROTOCOL.replace("batch: 32}", "batch: 32, lr: 1.0e+30}"))
    good = tiny.run(tmp_path, "vanilla")
    with pytest.raises(RuntimeError, match=r"not done: .*loss is not finite"):
        make(tmp_path, bad, good)()
    assert folder_of(tmp_path, good).result.exists() and folder_of(tmp_path, bad).error.exists()


def test_a_dying_worker_is_replaced_once(tmp_path):
    run, other = tiny.run(tmp_path, "vanilla"), tiny.run(tmp_path, "vanilla", seed=1)
    with to_each_worker(tmp_path, run, signal.SIGKILL, 1):
        make(tmp_path, run)()
    assert folder_of(tmp_path, run).result.exists()
    with to_each_worker(tmp_path, other, signal.SIGKILL, 2), pytest.raises(RuntimeError, match="not done"):
        make(tmp_path, other)()
    error = store.read_json(folder_of(tmp_path, other).error)
    assert error["message"] == "worker died 2 times, last with signal 9 (out of memory?)"
    assert other.run_id in error["details"]  # the end of its log


def test_a_worker_stopped_by_somebody_else_is_not_a_death(tmp_path):
    run = tiny.run(tmp_path, "vanilla")
    with to_each_worker(tmp_path, run, signal.SIGTERM, 2):
        make(tmp_path, run)()
    assert folder_of(tmp_path, run).result.exists()


def test_a_hung_worker_is_killed_and_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(task, "LOOK_S", 0.2)
    monkeypatch.setattr(claims, "HUNG_S", 12.0)  # longer than a worker takes to its first step on a busy machine
    run = tiny.run(tmp_path, "vanilla")
    with to_each_worker(tmp_path, run, signal.SIGSTOP, 1) as stopped:
        make(tmp_path, run)()
    assert folder_of(tmp_path, run).result.exists() and len(stopped) == 1


def test_a_run_that_another_process_has_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(task, "ASK_AGAIN_S", 0.1)
    run = tiny.run(tmp_path, "vanilla")
    claim = claims.acquire(folder_of(tmp_path, run).path)
    threading.Timer(8, claim.release).start()
    make(tmp_path, run)()
    assert folder_of(tmp_path, run).result.exists()
    monkeypatch.setattr(task, "CLAIM_WAIT_S", 0.3)
    other = tiny.run(tmp_path, "vanilla", seed=1)
    claims.acquire(folder_of(tmp_path, other).path)
    with pytest.raises(RuntimeError, match="another process has it"):
        make(tmp_path, other)()
    assert not folder_of(tmp_path, other).error.exists()  # it did not fail


def test_two_time_limits_without_progress_end_a_run(tmp_path, monkeypatch):
    run, other = tiny.run(tmp_path, "vanilla"), tiny.run(tmp_path, "vanilla", seed=1)

    def at_limit(job: task.Task, minutes: float = 60) -> task.Task:
        """As submitit calls it in the job; returns what the requeued job finds."""
        job._begin()
        job._started -= 60 * minutes
        return job.checkpoint().function

    job = at_limit(make(tmp_path, run, other))
    assert job.still == 0
    job = at_limit(at_limit(job), minutes=1)  # a preemption is no time limit
    assert job.still == 1
    folder = folder_of(tmp_path, run)
    folder.path.mkdir(parents=True)
    folder.last.write_bytes(b"x")  # progress: a checkpoint
    job = at_limit(job)
    assert job.still == 0
    job = at_limit(at_limit(job))
    assert job.still == 2 and not job.undone and [order["run_id"] for order in job.orders] == [run.run_id, other.run_id]
    with pytest.raises(RuntimeError, match="not done"):
        job()
    assert "2 time limits in a row: raise timeout_min" in store.read_json(folder.error)["message"]
    assert folder_of(tmp_path, other).result.exists()  # the others of its task are done all the same


@pytest.mark.parametrize("hangs", [False, True])
def test_usr2_stops_the_worker_and_hands_on_what_is_left(tmp_path, hangs):
    """As submitit's handler does it. A worker that cannot write its checkpoint in time is killed."""
    job = make(tmp_path, tiny.run(tmp_path, "vanilla"), tiny.run(tmp_path, "vanilla", seed=1), signal_delay_s=1)
    first, second = (folder_of(tmp_path, tiny.run(tmp_path, "vanilla", seed=seed)) for seed in (0, 1))

    class Requeued(Exception):
        pass

    def handler(*_: object) -> None:
        left.append(job.checkpoint().function)
        raise Requeued

    def signal_in_the_second_run() -> None:
        while not (holder := claims.read(second.path)) or not holder.alive:
            time.sleep(0.01)
        pids.append(holder.pid)
        if hangs:
            os.kill(holder.pid, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGUSR2)

    left, pids = [], []
    kept = signal.signal(signal.SIGUSR2, handler)
    thread = threading.Thread(target=signal_in_the_second_run)
    thread.start()
    with pytest.raises(Requeued):
        job()
    thread.join()
    signal.signal(signal.SIGUSR2, kept)
    assert first.result.exists() and not second.result.exists()
    assert [entry["run_id"] for entry in left[0].orders] == [second.run_id]
    pickle.loads(pickle.dumps(left[0]))()
    assert second.result.exists() and second.log.read_text().count("code in") == 2


def test_a_task_elsewhere_than_its_copy_of_the_code_says_so(tmp_path):
    with pytest.raises(RuntimeError, match="not from its copy"):
        make(tmp_path, tiny.run(tmp_path, "vanilla"), code=str(tmp_path))()
