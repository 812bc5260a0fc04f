"""A real time limit of SLURM's: the run goes on from its checkpoint, and one that never gets on fails and says so."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

import reproduce
from bench import store
from jobs import claims
from tests import tiny
from tests.jobs import cluster as slurms
from tests.jobs.chaos import retold
from tests.jobs.slurm.test_submission import ENDLESS, SETTINGS, Folder, reach

SHORT = SETTINGS.replace("timeout_min: 60", "timeout_min: 1")  # SLURM's shortest, and it signals 30 s before its end
TIMEOUT_S = 400


@contextlib.contextmanager
def hanging(folder: store.RunFolder):
    """Stop every process that takes this run up before it makes a step."""
    over, stopped = threading.Event(), set()

    def watch() -> None:
        while not over.wait(0.005):
            holder = claims.read(folder.path) if folder.path.is_dir() else None
            if holder and holder.alive and holder.pid not in stopped:
                stopped.add(holder.pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(holder.pid, signal.SIGSTOP)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield stopped
    finally:
        over.set()
        thread.join()


def test_a_run_goes_on_from_limit_to_limit_and_one_that_hangs_fails(tmp_path, monkeypatch):
    slurms.require()
    with slurms.Cluster(tmp_path / "slurm") as machines:
        reach(machines, monkeypatch)
        folder = Folder(tmp_path, tiny.GRID.replace("seeds: 1", "seeds: [1, 2]"), ENDLESS, SHORT)
        good, still = folder.folder("vanilla-resnet8-s1"), folder.folder("vanilla-resnet8-s2")
        with hanging(still) as stopped:
            assert folder("--only", "method=student") == 3
            end = time.monotonic() + TIMEOUT_S
            while not still.error.exists():
                assert time.monotonic() < end
                machines.start_requeued()
                time.sleep(4)  # a job whose start is put off again does not start
            assert len(stopped) == 3  # the first limit tells where the run is, two more that it is still there
        assert "no progress in 2 time limits in a row: raise timeout_min" in store.read_json(still.error)["message"]
        log = good.log.read_text()
        assert log.count("stopped, checkpoint written") >= 2 and retold(log, deaths=0, damages=0) == []
        assert not good.error.exists() and {job.restarts for job in machines.jobs()} & {2, 3}
        assert reproduce.main(["--cancel", "--out", str(folder.out)]) == 0
