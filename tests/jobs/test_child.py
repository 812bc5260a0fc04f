"""The worker's leash: every run of an order is answered once, whatever becomes of the process."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from bench import grid as grids
from jobs import child, claims
from jobs.child import Child, Post
from jobs.outcomes import CRASHED, DIED, DONE, FAILED, STOPPED
from tests import tiny
from tests.jobs.stub import DIE, HANG, Stub


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """A stub worker and its orders for kd and fitnet, by method."""
    runs = grids.expand(grids.load(str(tiny.write(tmp_path / "grid")))).runs
    made = Stub(tmp_path / "stub", monkeypatch, runs)
    made.given = {
        run_id: {"run": run.model_dump(mode="json"), "weights": None}
        for run_id, run in runs.items()
        if run.teacher is not None
    }
    return made


@pytest.fixture
def worker(tmp_path):
    made = Child(Post(tmp_path / "out", "cpu", 1))
    yield made
    made.kill()
    made.hear(5)


def answers(worker: Child) -> dict[str, str]:
    """Outcomes by method, in the order of the answers, once the order is over."""
    heard = []
    while worker.busy:
        heard += worker.hear(5)
        worker.end_if_hung()
    assert {answer.run_id: answer for answer in heard} == worker.answers and len(heard) == len(worker.order)
    return {run_id.partition("-")[0]: outcome for run_id, outcome, _ in heard}


def test_answers_come_in_any_order_and_the_process_stays(stub, worker, capfd):
    stub.plan(kd=[FAILED, DONE])
    worker.give(stub.given)
    first, second = stub.given
    assert list(worker.order) == [first, second]
    assert answers(worker) == {"fitnet": DONE, "kd": FAILED}
    worker.give(stub.given)
    assert answers(worker) == {"fitnet": DONE, "kd": DONE}
    assert len(set(stub.processes)) == 1
    assert "a library's remark" in capfd.readouterr().err  # which is no answer


def test_a_death_is_an_answer_for_all_that_had_none(stub, worker):
    stub.plan(kd=[DIE, DONE])
    worker.give(stub.given)
    assert answers(worker) == {"fitnet": DONE, "kd": DIED} and not worker.alive
    assert {answer.message for answer in worker.answers.values()} == {"done says the stub", "signal 9 (out of memory?)"}
    worker.give(stub.given)
    assert answers(worker) == {"fitnet": DONE, "kd": DONE}


@pytest.mark.parametrize(
    ("device", "outcome"), [("cpu", STOPPED), ("cpu", CRASHED), ("cuda", CRASHED), ("cuda", FAILED)]
)
def test_a_process_that_leaves_gets_no_more_orders(stub, tmp_path, device, outcome):
    """It has said its last words and is not gone yet, or would not go by itself: another order would be lost."""
    worker = Child(Post(tmp_path / "out", device, 1))
    stub.plan(kd=[outcome, DONE])
    for expected in (outcome, DONE):
        worker.give(stub.given)
        assert answers(worker) == {"fitnet": DONE, "kd": expected}
    assert len(set(stub.processes)) == 2
    worker.kill()


@pytest.mark.parametrize(("hung_s", "outcome"), [(900.0, DIED), (3600.0, HANG)])
def test_a_hung_process_is_killed(stub, monkeypatch, tmp_path, hung_s, outcome):
    stub.watch_for_hangs(monkeypatch)
    stub.plan(fitnet=[HANG])
    worker = Child(Post(tmp_path / "out", "cpu", 1, hung_s=hung_s))
    worker.give(stub.given)
    while not stub.hangs:
        worker.hear(0.1)
        worker.end_if_hung()
    worker._looked = 0.0
    worker.end_if_hung()
    if outcome == HANG:  # 30 minutes are not too long for this one
        assert worker.hear(0.5) == [] and worker.busy
        worker.kill()
    assert answers_of(worker) == {"kd": (DONE, "done says the stub"), "fitnet": (DIED, says(outcome))}


def says(outcome: str) -> str:
    return "signal 9 (out of memory?)" if outcome == HANG else "hung: no step for 30m00s"


def answers_of(worker: Child) -> dict[str, tuple[str, str]]:
    while worker.busy:
        worker.hear(5)
    return {run_id.partition("-")[0]: answer[1:] for run_id, answer in worker.answers.items()}


def test_steps_of_any_run_that_is_not_answered_keep_it_alive(stub, worker, monkeypatch):
    monkeypatch.setattr(child, "LOOK_S", 0.0)
    seen = []
    monkeypatch.setattr(claims.Watch, "still_s", lambda self, folder, most_s: seen.append(folder.name) or 0.0)
    stub.plan(fitnet=[HANG])
    kd, fitnet = sorted(stub.given, reverse=True)
    worker.give({kd: stub.given[kd], fitnet: stub.given[fitnet]})
    worker.end_if_hung()
    while not worker.hear(5):
        pass
    worker.end_if_hung()
    assert seen == [kd, fitnet]


def test_end_of_orders(stub, worker):
    worker.give(stub.given)
    answers(worker)
    worker.close()
    worker.hear(5)
    assert not worker.alive and not worker.busy


def test_usr2_does_not_reach_a_worker(stub, worker):
    """SLURM may send it to every process of a job."""
    stub.plan(kd=[HANG])
    worker.give(stub.given)
    while not worker.hear(5):
        pass
    os.killpg(stub.processes[0], signal.SIGUSR2)
    time.sleep(0.2)
    assert worker.hear() == [] and worker.busy
    assert signal.SIGUSR2 not in signal.pthread_sigmask(signal.SIG_BLOCK, [])  # only for the worker


def test_the_command_line_and_the_gpu_to_see(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert Post(tmp_path, "cpu", 2).environment["CUDA_VISIBLE_DEVICES"] == "7"
    post = Post(tmp_path, "cuda", 2, per_device=3, slots=6, together=4, gpu="1", data=tmp_path / "data", hung_s=60.0)
    assert post.environment["CUDA_VISIBLE_DEVICES"] == "1" and post.environment["OMP_NUM_THREADS"] == "2"
    options = dict(zip(post.command[3::2], post.command[4::2], strict=True))
    assert options == {
        "--out": str(tmp_path),
        "--device": "cuda",
        "--threads": "2",
        "--per-device": "3",
        "--slots": "6",
        "--together": "4",
        "--hung-s": "60.0",
        "--data": str(tmp_path / "data"),
    }


def test_its_errors_go_where_they_are_asked_for(tmp_path, monkeypatch):
    """Asked at each start: the display that took them may have ended since."""
    read, write = os.pipe()
    monkeypatch.setattr(child, "PROGRAM", (sys.executable, "-c", "import sys; print('a warning', file=sys.stderr)"))
    worker = Child(Post(tmp_path / "out", "cpu", 1), stderr=lambda: write)
    worker.give({"run": {}})
    while worker.alive:
        worker.hear(1.0)
    os.close(write)
    with os.fdopen(read) as errors:
        assert errors.read() == "a warning\n"
