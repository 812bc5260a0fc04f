"""Two computers, each with its own name, process numbers and mount of a network disk, do one grid together.

The disk is sshfs without ssh: names and sizes may be seen up to 20 s late, locks reach nobody else, and numbers of
files are each mount's own, as with NFS at its loosest.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import grid as grids
from bench import store
from jobs import claims
from tests import tiny
from tests.jobs.results import do_here, essence

ROOT = Path(__file__).parents[2]
SERVER = Path("/usr/lib/openssh/sftp-server")
START = """
hostname "$1"; mkdir -p "$3"
sshfs -o ssh_command="$0" server:"$2" "$3" || exit 9
shift 3; exec "$@"
"""
TIMEOUT_S = 150


class Hosts:
    """Computers that see `folder` of this one at `seen`, over the network."""

    def __init__(self, path: Path) -> None:
        self.folder, self.seen, self.connect = path / "disk", path / "seen", path / "connect"
        self.folder.mkdir()
        self.connect.write_text(f"#!/bin/sh\nexec {SERVER}\n")
        self.connect.chmod(0o755)
        self.started: list[subprocess.Popen] = []

    def start(self, name: str, *command: str) -> subprocess.Popen:
        """Run a command on the computer of this name, which has one core; its end is the end of the computer."""
        core = str(len(self.started) % (os.cpu_count() or 1))
        computer = ["unshare", "--uts", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]
        computer += ["taskset", "-c", core, "bash", "-c", START, str(self.connect), name]
        inside = [str(self.folder), str(self.seen), *command]
        self.started.append(
            subprocess.Popen(
                [*computer, *inside], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
        return self.started[-1]


@pytest.fixture
def hosts(tmp_path) -> Iterator[Hosts]:
    needed = os.geteuid() == 0 and os.path.exists("/dev/fuse") and SERVER.exists() and shutil.which("sshfs")
    if not needed:
        pytest.skip("needs root, /dev/fuse, sshfs and sftp-server")
    made = Hosts(tmp_path)
    yield made
    for host in made.started:
        host.kill()
        host.wait()


def test_each_run_is_done_once_and_those_of_a_lost_host_by_the_other(hosts, tmp_path):
    epochs = tiny.PROTOCOL.replace("epochs: 2,", "epochs: 5,")
    grid = tiny.write(hosts.folder, tiny.GRID.replace("fitnet]", "dkd]").replace("seeds: 1", "seeds: 2"), epochs)
    grid.write_text(grid.read_text().replace(str(hosts.folder), str(hosts.seen)))
    options = ["--grid", str(hosts.seen / grid.name), "--out", str(hosts.seen / "out"), "--no-plots"]
    command = [sys.executable, "reproduce.py", *options, "--executor", "local", "--device", "cpu"]
    lost, left = hosts.start("alpha", *command), hosts.start("beta", *command)

    out, end, victim = hosts.folder / "out", time.monotonic() + TIMEOUT_S, None
    while victim is None:  # something that alpha has begun
        assert time.monotonic() < end and lost.poll() is None, lost.stdout.read()
        for log in out.glob("runs/*/log.txt"):
            holder = claims.read(log.parent)
            if holder and holder.host == "alpha" and " epoch 2 " in log.read_text():
                victim = log.parent
        time.sleep(0.02)
    lost.kill()
    lost.wait()
    (claim,) = victim.glob("claim*.json")
    assert claims.read(victim).alive  # as far as anybody can tell
    os.utime(claim, (time.time() - 2 * claims.STALE_S,) * 2)

    said, _ = left.communicate(timeout=TIMEOUT_S)
    assert left.returncode == 0, said
    grid.write_text(grid.read_text().replace(str(hosts.seen), str(hosts.folder)))
    wanted = grids.expand(grids.load(str(grid))).runs
    assert essence(out) == do_here(tmp_path / "here", wanted.values())
    for run_id in wanted:
        folder = store.run_folder(out, run_id)
        log = folder.log.read_text()
        assert log.count("done: top-1") == 1 and log.count("code in") == 1 + (folder.path == victim), log
        assert not [path.name for path in folder.path.iterdir() if "claim" in path.name or path.name[0] == "."]
