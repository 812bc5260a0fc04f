"""The local executor: where workers go, what each is pinned to, and what becomes of one that dies or hangs."""

from __future__ import annotations

import os
import queue
import re
import signal
import threading
import time

import pytest
import torch

from bench import grid as grids
from bench import store
from jobs import claims, local, plan, progress
from tests import tiny

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
    team = local._team(local.slots(CUDA, 3), tmp_path, None, queue.Queue())
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in team] == ["0", "1"] * 3
    for slot in team:
        options = dict(zip(slot.command[3::2], slot.command[4::2], strict=True))
        # On its own the worker sees one GPU, whatever its number on the machine.
        assert options["--device"] == "cuda" and options["--threads"] == slot.environment["OMP_NUM_THREADS"] == "2"
        assert options["--per-device"] == "3"
    machine(2, 12, visible="7")
    for slot in local._team(local.slots(CPU, 2), tmp_path, None, queue.Queue()):
        assert slot.environment["CUDA_VISIBLE_DEVICES"] == "7"  # a worker on the CPU leaves it as it was
        assert slot.command[slot.command.index("--device") + 1] == "cpu"


def test_runs_spread_over_devices_before_they_share_one(machine, tmp_path):
    machine(2, 12)
    team = local._team(local.slots(CUDA, 3), tmp_path, None, queue.Queue())

    def take() -> str:
        slot = local._idle(team)
        slot.run_id = "some run"
        return slot.device

    assert [take() for _ in range(4)] == ["0", "1", "0", "1"]
    for slot in team:
        if slot.device == "1":
            slot.run_id = None
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


@pytest.fixture
def teacher_plan(tmp_path):
    grid = grids.expand(grids.load(str(tiny.write(tmp_path / "grid"))))
    return plan.make(grid, tmp_path / "out", ["method=teacher"])


def execute(teacher_plan, out, monkeypatch, hangs: int) -> progress.Progress:
    """Do the plan, while its workers are stopped (SIGSTOP: they live and do nothing) the first `hangs` times."""
    monkeypatch.setattr(local, "LOOK_S", 0.2)
    shown = progress.Progress(teacher_plan, out, workers=1, live=False)
    folder = store.run_folder(out, teacher_plan.to_do[0])

    def stop_workers() -> None:
        stopped = set()
        while len(stopped) < hangs:
            holder = claims.read(folder.path)
            begun = folder.log.read_text().count(folder.run_id) if folder.log.exists() else 0
            if holder and holder.alive and holder.pid not in stopped and begun > len(stopped):
                os.kill(holder.pid, signal.SIGSTOP)
                stopped.add(holder.pid)
                monkeypatch.setattr(claims, "HUNG_S", 1.0)  # not before: the start of a worker takes longer
                while claims._started(holder.pid):
                    time.sleep(0.02)
                monkeypatch.setattr(claims, "HUNG_S", 1e9)
            time.sleep(0.01)

    thread = threading.Thread(target=stop_workers)
    thread.start()
    where = local.Slots(("cpu",), per_device=1, threads=1)
    reason = local.execute(teacher_plan, out, where, data_root=None, should_stop=lambda: None, progress=shown)
    thread.join()
    assert reason is None
    return shown


def test_hung_worker_is_killed_and_its_run_goes_on(teacher_plan, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    shown = execute(teacher_plan, out, monkeypatch, hangs=1)
    assert shown.failures == []
    assert plan.make(teacher_plan.grid, out, ["method=teacher"]).counts() == {"done": 1}
    said = capsys.readouterr().out
    assert re.search(r"its worker died \(hung: no step for \d+s\), once more from the checkpoint", said)


def test_hung_twice_is_failed_with_the_end_of_its_log(teacher_plan, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    execute(teacher_plan, out, monkeypatch, hangs=2).finish()
    folder = store.run_folder(out, teacher_plan.to_do[0])
    error = store.read_json(folder.error)
    assert error["message"].startswith("worker died 2 times, last with hung: no step for")
    assert "out of memory" not in error["message"]
    last = folder.log.read_text().splitlines()[-1]
    assert error["details"].splitlines()[-1] == last
    said = capsys.readouterr().out
    assert f"log: {folder.log}" in said and last in said and "--retry-failed" in said
    assert plan.make(teacher_plan.grid, out, ["method=teacher"]).counts() == {"failed": 1}
