"""The local executor: where workers go, what each is pinned to, and what becomes of one that dies or hangs."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch

from bench import grid as grids
from bench import store
from jobs import child, claims, local, plan, progress
from jobs.child import Post
from jobs.outcomes import BLOCKED, CLAIMED, CRASHED, DONE, FAILED, NO_MEMORY, STOPPED
from tests import tiny
from tests.jobs.stub import DIE, HANG, Stub

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def machine(monkeypatch):
    """A machine with so many GPUs and cores, and CUDA_VISIBLE_DEVICES as given."""

    def make(gpus: int, cores: int, visible: str | None = None) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return make


@pytest.mark.parametrize(
    ("gpus", "visible", "device", "names"),
    [
        (2, None, "cuda", ("0", "1")),
        (2, None, "cuda:1", ("1",)),
        (2, "3,5", "cuda", ("3", "5")),
        (2, "3,5", "cuda:1", ("5",)),
        (2, "GPU-8f6d, MIG-41c0/1/0", "cuda", ("GPU-8f6d", "MIG-41c0/1/0")),
        (2, "GPU-8f6d, MIG-41c0/1/0", "cuda:1", ("MIG-41c0/1/0",)),
        (1, "0,-1,1", "cuda", ("0",)),  # CUDA stops at the first name it does not know
    ],
)
def test_all_gpus_or_the_one_named(machine, gpus, visible, device, names):
    machine(gpus, 16, visible)
    assert local.slots(torch.device(device), None).devices == names


def test_threads_are_divided_among_slots(machine):
    machine(2, 12)
    assert local.slots(CUDA, None) == local.Slots(("0", "1"), per_device=1, threads=6)
    assert local.slots(CUDA, 3) == local.Slots(("0", "1"), per_device=3, threads=2)
    assert local.slots(CUDA, 100).threads == 1  # more slots than cores
    assert local.slots(CPU, None) == local.Slots(("cpu",), per_device=12, threads=1)
    assert local.slots(CPU, 5) == local.Slots(("cpu",), per_device=5, threads=2)


def test_each_worker_is_pinned_to_its_device(machine, tmp_path, monkeypatch):
    machine(2, 12)
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    team = local._team(local.slots(CUDA, 3), tmp_path, None, 60.0)
    assert [worker.post.environment["CUDA_VISIBLE_DEVICES"] for worker in team] == ["0", "1"] * 3
    for worker in team:
        # On its own the worker sees one GPU, whatever its number on the machine.
        assert worker.post == Post(tmp_path, "cuda", 2, per_device=3, slots=6, gpu=worker.post.gpu, hung_s=60.0)
        assert worker.post.environment["OMP_NUM_THREADS"] == "2"
    machine(2, 12, visible="7")
    for worker in local._team(local.slots(CPU, 2), tmp_path, None, 60.0):
        assert worker.post.device == "cpu" and worker.post.gpu is None
        assert worker.post.environment["CUDA_VISIBLE_DEVICES"] == "7"  # a worker on the CPU leaves it as it was


def test_runs_spread_over_devices_before_they_share_one(machine, tmp_path):
    machine(2, 12)
    team = local._team(local.slots(CUDA, 3), tmp_path, None, 60.0)

    def take() -> str:
        worker = local._idle(team)
        worker.order = ("some run",)
        return worker.post.gpu

    assert [take() for _ in range(4)] == ["0", "1", "0", "1"]
    for worker in team:
        if worker.post.gpu == "1":
            worker.order = ()
    assert [take() for _ in range(4)] == ["1", "1", "0", "1"]  # 0 has two already; then it is its turn; full at three
    assert local._idle(team) is None


class Clock:
    """time.monotonic, moved by hand."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def test_only_steps_are_progress(tmp_path, monkeypatch):
    clock = Clock(monkeypatch)
    claim, watch = claims.acquire(tmp_path / "run"), claims.Watch()

    def look(after_s: float, **said: object) -> float:
        clock.now += after_s
        claim.progress.update(said)
        claim.beat()  # in every case: a worker that hangs goes on beating
        return watch.still_s(tmp_path / "run", most_s=10.0)

    look(5)
    assert look(5, ticks=0) == 0
    assert [look(5, ticks=1), look(5, ticks=2), look(5), look(5)] == [0, 0, 5, 10]
    assert look(5, wall_s=25, idle_s=10) == 15  # a clock that goes on is no step
    assert look(3600) == 25  # we slept, and so may have the worker
    assert look(5, ticks=3) == 0
    claim.release()
    clock.now += 5
    assert watch.still_s(tmp_path / "run", most_s=10.0) == 0  # another state is news, and from now on there is none
    clock.now += 5
    assert watch.still_s(tmp_path / "run", most_s=10.0) == 5


# The queue, with workers that train nothing: tests/jobs/stub.py

METHODS = ["kd", "fitnet", "dkd", "rkd", "crd", "skd", "sdd", "clkd"]
GRID = tiny.GRID.replace("[vanilla, kd, fitnet]", f"[vanilla, {', '.join(METHODS)}]")
ALL = " ".join(sorted(METHODS))


class Bench:
    """A grid of eight students of one teacher, or two of each, and a queue with stub workers."""

    def __init__(self, tmp_path, monkeypatch, text: str = GRID):
        self.grid = grids.expand(grids.load(str(tiny.write(tmp_path / "grid", text))))
        self.out = tmp_path / "out"
        self.stub = Stub(tmp_path / "stub", monkeypatch, self.grid.runs)

    def do(self, slots: int = 1, **options) -> progress.Progress:
        made = plan.make(self.grid, self.out)
        self.shown = progress.Progress(made, self.out, workers=slots, live=False)
        where = local.Slots(("cpu",), per_device=slots, threads=1)
        options = {"data_root": None, "should_stop": lambda: None, **options}
        assert local.execute(made, self.out, where, progress=self.shown, **options) is None
        return self.shown

    @property
    def failures(self) -> dict[str, str]:
        return {run_id.partition("-")[0]: message for run_id, _, message, _ in self.shown.failures}


@pytest.fixture
def bench(tmp_path, monkeypatch):
    return Bench(tmp_path, monkeypatch)


def test_students_of_a_teacher_share_a_process_once_it_is_done(bench, capsys):
    bench.do()
    assert bench.stub.methods == ["vanilla", ALL] and bench.failures == {}
    said = capsys.readouterr().out
    assert said.count("  started\n") == 9 and said.count("  done  ") == 9 and "[9/9]" in said
    assert said.count("[1/9] 8 runs share a process:\n") == 1 == said.count("share")


def test_each_alone(bench, capsys):
    bench.do(together=1)
    assert bench.stub.methods[0] == "vanilla" and sorted(bench.stub.methods[1:]) == sorted(METHODS)
    assert len(set(bench.stub.processes)) == 1 and "share" not in capsys.readouterr().out


def test_at_most_so_many(bench):
    bench.do(together=3)
    assert sorted(map(len, bench.stub.orders)) == [1, 2, 3, 3]


def test_every_slot_has_work(bench):
    bench.do(slots=2)
    assert sorted(map(len, bench.stub.orders)) == [1, 4, 4]


def queue_of(tmp_path, monkeypatch, lanes: int, text: str) -> local._Queue:
    here = Bench(tmp_path, monkeypatch, text)
    made = plan.make(here.grid, here.out)
    todo = local._Queue(made, here.out, lanes, None, made.to_do)
    todo.pending = [run_id for run_id in todo.pending if here.grid.runs[run_id].teacher]
    return todo


def test_cohorts_stay_whole_while_there_is_enough_else_to_do(tmp_path, monkeypatch):
    """Three cohorts of two lanes: two whole ones, and the third is halved when the first two come to their end."""
    todo = queue_of(tmp_path, monkeypatch, 2, GRID.replace("seeds: 1", "seeds: 3"))
    first, second = todo.next(), todo.next()
    assert len(first) == len(second) == 8
    todo.in_hand -= set(first)
    with monkeypatch.context() as patch:
        patch.setattr(local._Queue, "_fraction_done", lambda self, run_id: 0.9)
        third = todo.next()
    assert len(third) == 4
    todo.in_hand -= set(second)
    assert len(todo.next()) == 4 and todo.next() is None


def test_how_far_a_run_is_stands_in_its_claim(tmp_path, monkeypatch):
    todo = queue_of(tmp_path, monkeypatch, 2, GRID)
    cohort = todo.next()
    folder = store.run_folder(todo.out, cohort[0]).path
    assert todo._fraction_done(cohort[0]) == 0
    claim = claims.acquire(folder)
    claim.progress.update(epoch=1, epochs=2, step=1, steps=2)
    claim.beat()
    assert todo._fraction_done(cohort[0]) == 0.75
    claim.release()


def test_lanes(machine):
    machine(4, 12)
    assert local.slots(CPU, 3).lanes == 3
    assert local.slots(CUDA, 3).lanes == 4  # workers of one GPU are in each other's way


@pytest.mark.parametrize(
    ("end", "says", "at_last"),
    [
        (
            DIE,
            "its worker died (signal 9 (out of memory?))",
            "worker died 2 times, last with signal 9 (out of memory?)",
        ),
        (CRASHED, "crashed says the stub", "crashed says the stub"),
    ],
)
def test_after_a_death_each_alone(bench, capsys, end, says, at_last):
    """One bad method holds the others for one attempt, and is given up after two more of its own."""
    bench.stub.plan(rkd=[end])
    bench.do()
    assert bench.stub.methods == ["vanilla", ALL, "rkd", "rkd"] and list(bench.failures) == ["rkd"]
    said = capsys.readouterr().out
    assert f"{says}, once more from the checkpoint, alone" in said
    error = store.read_json(store.run_folder(bench.out, bench.shown.failures[0][0]).error)
    assert error["message"] == at_last


def test_what_a_death_interrupts_goes_on_alone(bench):
    bench.stub.plan(**{method: [DIE, DONE] for method in METHODS[:4]})
    bench.do()
    assert bench.failures == {}
    assert bench.stub.methods[:2] == ["vanilla", ALL] and sorted(bench.stub.methods[2:]) == sorted(METHODS[:4])


def test_a_hang_is_a_death(bench, monkeypatch, capsys):
    bench.stub.watch_for_hangs(monkeypatch)
    bench.stub.plan(sdd=[HANG, DONE])
    bench.do()
    assert bench.stub.methods == ["vanilla", ALL, "sdd"] and bench.failures == {}
    assert "its worker died (hung: no step for 30m00s), once more from the checkpoint, alone" in capsys.readouterr().out


def test_hung_twice_is_failed_with_the_end_of_its_log(bench, monkeypatch, capsys):
    bench.stub.watch_for_hangs(monkeypatch)
    bench.stub.plan(vanilla=[HANG])
    folder = store.run_folder(bench.out, next(iter(bench.grid.runs)))
    folder.path.mkdir(parents=True)
    folder.log.write_text("the last line\n")
    bench.do().finish()
    error = store.read_json(folder.error)
    assert error["message"] == "worker died 2 times, last with hung: no step for 30m00s"
    assert error["details"] == "the last line" and bench.stub.methods == ["vanilla"] * 2
    said = capsys.readouterr().out
    assert f"log: {folder.log}" in said and "      the last line" in said and "--retry-failed" in said
    assert said.count("BLOCKED") == 8  # its students


def test_without_memory_in_halves(bench, capsys):
    bench.stub.plan(memory=2)
    bench.do()
    assert [len(order) for order in bench.stub.orders] == [1, 8, 4, 2, 2, 4, 2, 2]
    assert bench.failures == {}
    assert "out of memory, once more from the checkpoint, in a company of 4" in capsys.readouterr().out
    bench.stub.plan(kd=[NO_MEMORY])
    bench.do()
    assert list(bench.failures) == ["kd"] and bench.stub.methods[-2:] == ["kd"] * 2
    assert bench.failures["kd"].startswith("out of memory: use fewer --slots or --together (out of")


def test_a_process_that_somebody_stopped_is_replaced(bench, capsys):
    bench.stub.plan(**{method: [STOPPED, STOPPED, STOPPED, DONE] for method in METHODS})
    bench.do()
    assert bench.stub.methods == ["vanilla", *[ALL] * 4] and bench.failures == {}
    assert capsys.readouterr().out.count("stopped, ") == 24


def test_a_run_that_another_process_gave_up_is_ours_again(bench, monkeypatch, capsys):
    monkeypatch.setattr(local, "ELSEWHERE_S", 0.1)
    bench.stub.plan(kd=[CLAIMED, DONE], fitnet=[CLAIMED, DONE])
    bench.do()
    assert bench.stub.methods[:2] == ["vanilla", ALL] and bench.failures == {}
    assert sorted(" ".join(bench.stub.methods[2:]).split()) == ["fitnet", "kd"]  # together, if seen at the same look
    assert capsys.readouterr().out.count("waiting: ") == 2


def test_failed_and_blocked_members_leave_the_others_alone(bench):
    bench.stub.plan(kd=[FAILED], dkd=[BLOCKED])
    bench.do()
    assert bench.stub.methods == ["vanilla", ALL] and bench.failures.keys() == {"kd", "dkd"}


def test_stopping_early_closes_the_workers(bench, capsys):
    bench.stub.plan(kd=[HANG])
    made = plan.make(bench.grid, bench.out)
    shown = progress.Progress(made, bench.out, workers=1, live=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "GRACE_S", 0.5)
        reason = local.execute(
            made,
            bench.out,
            local.Slots(("cpu",), 1, 1),
            data_root=None,
            should_stop=lambda: "time budget used up" if bench.stub.hangs else None,
            progress=shown,
        )
    assert reason == "time budget used up" and shown.failures == [] and not bench.stub.hangs


def test_a_real_worker_that_stands_still_is_killed_and_its_run_goes_on(tmp_path, monkeypatch, capsys):
    """Stopped, it lives and does nothing: its claim stands, and only its steps tell."""
    grid = grids.expand(grids.load(str(tiny.write(tmp_path / "grid"))))
    made = plan.make(grid, tmp_path / "out", ["method=teacher"])
    folder = store.run_folder(tmp_path / "out", made.to_do[0])
    stopped: list[int] = []

    def still_s(*_: object) -> float:
        holder = claims.read(folder.path) if folder.path.is_dir() else None
        if holder and holder.alive and not stopped:
            stopped.append(holder.pid)
            os.kill(holder.pid, signal.SIGSTOP)
        return 1e4 if holder and holder.alive and holder.pid in stopped else 0.0

    monkeypatch.setattr(child, "LOOK_S", 0.05)
    monkeypatch.setattr(claims.Watch, "still_s", still_s)
    shown = progress.Progress(made, tmp_path / "out", workers=1, live=False)
    where = local.Slots(("cpu",), per_device=1, threads=1)
    assert (
        local.execute(made, tmp_path / "out", where, data_root=None, should_stop=lambda: None, progress=shown) is None
    )
    assert shown.failures == [] and len(stopped) == 1
    assert plan.make(grid, tmp_path / "out", ["method=teacher"]).counts() == {"done": 1}
    assert "its worker died (hung: no step for" in capsys.readouterr().out
