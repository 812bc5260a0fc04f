"""What runs in a SLURM job, without SLURM: cohorts, workers that die or hang, claims, time limits without progress."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import store
from bench.run import Run
from jobs import claims
from jobs.child import Post
from jobs.outcomes import CLAIMED, CRASHED, DONE, STOPPED
from jobs.slurm import task
from tests import tiny
from tests.jobs.stub import DIE, HANG, Stub

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def handlers():
    """A task takes SIGTERM; give it back."""
    kept = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, kept)


def make(tmp_path: Path, *cohorts: Run | tuple[Run, ...], **changes) -> task.Task:
    """A task that does these runs, or cohorts of runs, one after another."""
    record = tmp_path / "record.json"
    record.write_text("{}")
    together = [cohort if isinstance(cohort, tuple) else (cohort,) for cohort in cohorts]
    settings = {
        "code": str(ROOT),
        "record": str(record),
        "post": Post(tmp_path, "cpu", 1),
        "timeout_min": 60,
        "signal_delay_s": 20,
        "cohorts": [[run.run_id for run in cohort] for cohort in together],
        "orders": {run.run_id: {"run": run.model_dump(mode="json")} for cohort in together for run in cohort},
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
    run = tiny.run(tmp_path, "vanilla")
    with to_each_worker(tmp_path, run, signal.SIGKILL, 1):
        make(tmp_path, run)()
    assert folder_of(tmp_path, run).result.exists()


def test_a_worker_stopped_by_somebody_else_is_not_a_death(tmp_path):
    run = tiny.run(tmp_path, "vanilla")
    with to_each_worker(tmp_path, run, signal.SIGTERM, 2):
        make(tmp_path, run)()
    assert folder_of(tmp_path, run).result.exists()


def test_a_run_that_another_process_has_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(task, "ASK_AGAIN_S", 0.1)
    run = tiny.run(tmp_path, "vanilla")
    claim = claims.acquire(folder_of(tmp_path, run).path)
    threading.Timer(2, claim.release).start()
    make(tmp_path, run)()
    assert folder_of(tmp_path, run).result.exists()
    monkeypatch.setattr(task, "CLAIM_WAIT_S", 0.3)
    other = tiny.run(tmp_path, "vanilla", seed=1)
    claims.acquire(folder_of(tmp_path, other).path)
    with pytest.raises(RuntimeError, match="another process has it"):
        make(tmp_path, other)()
    assert not folder_of(tmp_path, other).error.exists()  # it did not fail


# Cohorts, with workers that train nothing: tests/jobs/stub.py


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """Stub workers, and `job`: a task of two cohorts, four runs and two."""
    methods = "kd", "dkd", "rkd", "crd"
    four = [tiny.run(tmp_path, method) for method in methods]
    two = [tiny.run(tmp_path, method, seed=1) for method in methods[:2]]
    made = Stub(tmp_path / "stub", monkeypatch, {run.run_id: run for run in [*four, *two]})
    made.job = lambda **changes: make(tmp_path, tuple(four), tuple(two), **changes)
    return made


FOUR, TWO = "crd dkd kd rkd", "dkd kd"


def test_cohorts_follow_one_another(stub):
    stub.job()()
    assert stub.methods == [FOUR, TWO] and len(set(stub.processes)) == 1


@pytest.mark.parametrize("end", [DIE, CRASHED])
def test_after_a_death_each_alone(stub, tmp_path, end, capsys):
    stub.plan(rkd=[end], kd=[end, DONE])
    with pytest.raises(RuntimeError, match=r"not done: rkd-.* failed: ") as raised:
        stub.job()()
    assert stub.methods == [FOUR, "kd", "rkd", "rkd", TWO, "kd"] and str(raised.value).count("failed") == 1
    (error,) = tmp_path.glob("runs/*/error.json")
    expected = "crashed says the stub" if end == CRASHED else "worker died 2 times, last with signal 9 (out of memory?)"
    assert store.read_json(error)["message"] == expected and error.parent.name.startswith("rkd-")
    assert "once more from the checkpoint, alone" in capsys.readouterr().out


def test_a_hang_is_a_death(stub, monkeypatch):
    stub.watch_for_hangs(monkeypatch)
    stub.plan(crd=[HANG, DONE])
    stub.job()()
    assert stub.methods == [FOUR, "crd", TWO]


def test_without_memory_in_halves(stub):
    stub.plan(memory=2)
    stub.job()()
    assert stub.methods == [FOUR, "dkd kd", "crd rkd", TWO]


def test_stopped_runs_go_on_together(stub):
    stub.plan(**{method: [STOPPED, DONE] for method in FOUR.split()})
    stub.job()()
    assert stub.methods == [FOUR, FOUR, TWO, TWO]


def test_a_member_taken_over_is_waited_for_and_the_others_are_done(stub, tmp_path, monkeypatch):
    monkeypatch.setattr(task, "ASK_AGAIN_S", 0.05)
    stub.plan(kd=[CLAIMED, DONE], dkd=[CLAIMED])
    with pytest.raises(RuntimeError, match=r"not done: dkd-.*claimed says the stub; dkd-"):
        stub.job()()
    assert stub.methods == [FOUR, "dkd kd", TWO, "dkd kd"]  # kd of the other seed is claimed once, too


def test_usr2_hands_on_what_is_left_and_what_was_learnt(stub, monkeypatch):
    """Members that are done are not in the requeued job, and halves stay halves."""
    stub.plan(memory=2, rkd=[HANG, DONE])
    job = stub.job(signal_delay_s=1)
    left = usr2(job, lambda: stub.hangs)
    kd, dkd, rkd, crd, *two = stub.names.values()
    assert left.cohorts == [[rkd], two] and left.orders.keys() == {rkd, *two} and left.undone == []
    assert left.attempts.room == dict.fromkeys([kd, dkd, rkd, crd], 2) and left.attempts.alone == {}
    pickle.loads(pickle.dumps(left))()
    assert stub.methods == [FOUR, "dkd kd", "crd rkd", "rkd", TWO]


def at_limit(job: task.Task, minutes: float = 60) -> task.Task:
    """As submitit calls it in the job; returns what the requeued job finds."""
    job._begin()
    job._started -= 60 * minutes
    return job.checkpoint().function


def checkpoint_of(tmp_path: Path, run_id: str) -> Path:
    folder = store.run_folder(tmp_path, run_id)
    folder.path.mkdir(parents=True, exist_ok=True)
    return folder.last


def test_two_time_limits_without_progress_end_a_run(tmp_path, monkeypatch):
    run, other = tiny.run(tmp_path, "vanilla"), tiny.run(tmp_path, "vanilla", seed=1)
    Stub(tmp_path / "stub", monkeypatch, {made.run_id: made for made in (run, other)})
    job = at_limit(make(tmp_path, run, other))
    assert job.still == 0
    job = at_limit(at_limit(job), minutes=1)  # a preemption is no time limit
    assert job.still == 1
    checkpoint_of(tmp_path, run.run_id).write_bytes(b"x")  # progress
    job = at_limit(job)
    assert job.still == 0
    job = at_limit(at_limit(job))
    assert job.still == 2 and not job.undone and list(job.orders) == [run.run_id, other.run_id]
    with pytest.raises(RuntimeError, match="not done") as raised:
        job()
    assert other.run_id not in str(raised.value)  # the others of its task are done all the same
    error = store.read_json(folder_of(tmp_path, run).error)
    assert "2 time limits in a row: raise timeout_min" in error["message"]


def test_progress_of_any_member_counts_and_a_still_company_goes_apart(stub, tmp_path):
    job = at_limit(stub.job())
    kd, dkd, *_ = job.cohorts[0]
    job = at_limit(job)
    assert job.still == 1
    checkpoint_of(tmp_path, dkd).write_bytes(b"x")
    job = at_limit(job)
    assert job.still == 0
    job = at_limit(at_limit(job))
    assert job.still == 2
    job()
    assert [order for order in stub.methods if order != TWO] == ["kd", "dkd", "rkd", "crd"]
    assert not job.undone and not store.run_folder(tmp_path, kd).error.exists()


def usr2(job: task.Task, when: Callable[[], bool], before: Callable[[], None] = lambda: None) -> task.Task:
    """Do a task, with submitit's handler of USR2, which comes once `when` holds; what the requeued job finds."""

    class Requeued(Exception):
        pass

    def handler(*_: object) -> None:
        left.append(job.checkpoint().function)
        raise Requeued

    def send() -> None:
        while not when():
            time.sleep(0.01)
        before()
        os.kill(os.getpid(), signal.SIGUSR2)

    left = []
    kept = signal.signal(signal.SIGUSR2, handler)
    thread = threading.Thread(target=send)
    thread.start()
    with pytest.raises(Requeued):
        job()
    thread.join()
    signal.signal(signal.SIGUSR2, kept)
    return left[0]


@pytest.mark.parametrize("hangs", [False, True])
def test_usr2_stops_the_worker_and_hands_on_what_is_left(tmp_path, hangs):
    """As submitit's handler does it. A worker that cannot write its checkpoint in time is killed."""
    job = make(tmp_path, tiny.run(tmp_path, "vanilla"), tiny.run(tmp_path, "vanilla", seed=1), signal_delay_s=1)
    first, second = (folder_of(tmp_path, tiny.run(tmp_path, "vanilla", seed=seed)) for seed in (0, 1))

    def in_the_second_run() -> bool:
        return bool((holder := claims.read(second.path)) and holder.alive)

    def stop() -> None:
        if hangs:
            os.kill(claims.read(second.path).pid, signal.SIGSTOP)

    left = usr2(job, in_the_second_run, stop)
    assert first.result.exists() and not second.result.exists()
    assert left.cohorts == [[second.run_id]] == [list(left.orders)]
    pickle.loads(pickle.dumps(left))()
    assert second.result.exists() and second.log.read_text().count("code in") == 2


def test_a_task_elsewhere_than_its_copy_of_the_code_says_so(tmp_path):
    with pytest.raises(RuntimeError, match="not from its copy"):
        make(tmp_path, tiny.run(tmp_path, "vanilla"), code=str(tmp_path))()
