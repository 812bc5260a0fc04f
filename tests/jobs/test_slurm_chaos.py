"""Whatever happens to jobs, workers, daemons and drivers, in whatever order: every run is done once, bit for bit."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time

from bench import store
from jobs import claims
from tests.jobs import cluster as slurms
from tests.jobs.test_slurm import LONG, ROOT, Folder, do_here, essence, reach, start_now, until

SEED, ROUNDS, TIMEOUT_S = 5, 1, 240.0


def test_chaos(tmp_path, monkeypatch):
    slurms.require()
    chance = random.Random(SEED)
    with slurms.Cluster(tmp_path / "slurm", nodes=2) as machines:
        reach(machines, monkeypatch)
        folder = Folder(tmp_path, protocol=LONG)
        command = [sys.executable, str(ROOT / "reproduce.py"), *folder.arguments()]

        def alive() -> list[claims.Holder]:
            holders = [claims.read(path) for path in folder.out.glob("runs/*")]
            return [holder for holder in holders if holder and holder.alive]

        def one_running() -> str | None:
            running = [job.id for job in machines.jobs() if job.state == "RUNNING"]
            return chance.choice(running) if running else None

        def usr2() -> None:
            if job := one_running():
                machines.run("scancel", "--signal=USR2", "--batch", job, check=False)

        def scancel() -> None:
            if job := one_running():
                machines.run("scancel", job, check=False)

        def kill_a_worker() -> None:
            if found := alive():
                os.kill(chance.choice(found).pid, signal.SIGKILL)

        def lose_a_node() -> None:
            node = chance.choice(machines.nodes)
            machines.node_down(node)
            machines.node_up(node)

        def restart_a_daemon() -> None:
            chance.choice([machines.restart_slurmctld, machines.restart_slurmd])()

        def two_drivers_one_killed() -> None:
            pair = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(2)]
            time.sleep(2 + 3 * chance.random())
            pair[0].kill()
            assert pair[1].wait(TIMEOUT_S) in (0, 1, 2, 3)  # 1: killed twice in one job; 2: SLURM is away
            pair[0].wait()

        blows = [usr2, scancel, kill_a_worker, lose_a_node, restart_a_daemon] * ROUNDS
        chance.shuffle(blows)
        for number, blow in enumerate(blows):
            if number % 3 == 0:
                two_drivers_one_killed()
            waited_until = time.monotonic() + 10 * chance.random()
            while not alive() and time.monotonic() < waited_until:
                start_now(machines)
                time.sleep(0.1)
            with contextlib.suppress(ProcessLookupError):  # a worker that has just ended
                blow()
            time.sleep(2 * chance.random())

        for node in machines.nodes:
            machines.run("scontrol", "update", f"nodename={node}", "state=resume", check=False)

        def all_done() -> bool:
            start_now(machines)
            return folder("--retry-failed", "--wait") == 0  # failed: its worker was killed twice in one job

        until(all_done, "every run done", TIMEOUT_S)
        assert essence(folder.out) == do_here(tmp_path / "here", folder.runs().values())
        for run_id in folder.runs():
            assert len(re.findall("done: top-1", store.run_folder(folder.out, run_id).log.read_text())) == 1
        assert not alive()
