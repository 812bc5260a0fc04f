"""A private SLURM on one machine, started and stopped by tests: real slurmctld, slurmd and munged (on request slurmdbd
and MariaDB) on free ports of 127.0.0.1, with sockets of their own, so that several clusters may run side by side.

Every daemon and every job descends from one *keeper* process, which adopts orphans (PR_SET_CHILD_SUBREAPER) and ends
them all once the process that holds the cluster leaves the `with` block or dies, however it dies.

    python -m tests.jobs.cluster [--nodes N] [--accounting] [--gpus a100:2] -- COMMAND...     in a fresh cluster
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import secrets
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

_SEARCH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
_PROGRAMS = ("sbatch", "slurmctld", "slurmd", "munged", "setpriv")
_ACCOUNTING_PROGRAMS = ("slurmdbd", "mariadbd", "mariadb-install-db")

# More CPUs and memory than the machine has (config_overrides), so that small jobs start at once.
# NoCtldInAddrAny, NoInAddrAny: listen on 127.0.0.1 only.
# ReturnToService=1: a node set down stays down, one that was silent comes back by itself.
_CONF = """\
ClusterName={name}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={private}/munge.socket,cred_expire={requeue_delay_s}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={private}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
PropagateResourceLimits=NONE
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=1
KillWait=2
SlurmdTimeout={slurmd_timeout_s}
MinJobAge={min_job_age_s}
MaxArraySize={max_array_size}
PartitionName=main Nodes=ALL Default=YES PriorityTier=1
PartitionName=urgent Nodes=ALL PriorityTier=2
"""
_UP = {"idle", "mixed", "allocated"}  # `idle*` and so on: its slurmd has not answered yet, it is given no job
_NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=8 RealMemory=1000000 {gres}\n"
_NO_ACCOUNTING = "AccountingStorageType=accounting_storage/none\n"
_ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={private}/munge.socket
"""
_DBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={private}/munge.socket
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser=root
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm
"""


def available(accounting: bool = False) -> str | None:
    """Why no cluster can be started here, or None."""
    if os.geteuid() != 0:
        return "a private SLURM cluster needs root"
    programs = _PROGRAMS + (_ACCOUNTING_PROGRAMS if accounting else ())
    missing = [program for program in programs if shutil.which(program, path=_SEARCH) is None]
    return f"no {', '.join(missing)}: run tests/jobs/install_slurm.sh" if missing else None


def require(accounting: bool = False) -> None:
    """Skip the calling test or fixture, with the reason, where no cluster can be started; under CI that fails."""
    import pytest  # not at the top: the command line works without it

    if reason := available(accounting):
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


@dataclass(frozen=True)
class Job:
    """One line of `squeue -r`."""

    id: str  # 12, or 12_3 for a task of an array: what scancel, scontrol and dependencies take
    number: str  # SLURM_JOB_ID inside the job; of an array's tasks, the last to start has the array's own number
    partition: str
    state: str
    reason: str
    nodes: str
    restarts: int
    name: str


class Cluster:
    """A running cluster: nodes n1, n2..., the default partition main, and urgent, whose jobs preempt (requeue) main's.

    folder: for configuration, state, logs and job output; stays afterwards, and a later cluster there goes on with its
    jobs as after a reboot. max_array_size: one more than the largest index.
    min_job_age_s: how long finished jobs are remembered, at least. requeue_delay_s: how long a requeued job waits until
    it may start again (5 or more; SLURM's default is 120). slurmd_timeout_s: silence after which a node is down.
    gpus: TYPE:COUNT or COUNT of each node, as files that are no GPUs. conf: more lines of slurm.conf.
    partner: a running cluster with accounting, whose database this one shares, so that `--clusters` works between them.
    """

    def __init__(
        self,
        folder: Path,
        *,
        nodes: int = 1,
        accounting: bool = False,
        max_array_size: int = 1001,
        min_job_age_s: int = 300,
        requeue_delay_s: int = 5,
        slurmd_timeout_s: int = 30,
        gpus: str | None = None,
        conf: str = "",
        name: str = "test",
        partner: Cluster | None = None,
    ) -> None:
        self.folder = Path(folder).absolute()
        self.nodes = tuple(f"n{i + 1}" for i in range(nodes))
        self.environment = {"SLURM_CONF": str(self.folder / "slurm.conf")}
        self._accounting = accounting
        self.name, self._gpus, self._more, self._partner = name, gpus, conf, partner
        self._settings = {
            "max_array_size": max_array_size,
            "min_job_age_s": min_job_age_s,
            "requeue_delay_s": requeue_delay_s,
            "slurmd_timeout_s": slurmd_timeout_s,
        }

    def __enter__(self) -> Cluster:
        self._pids: dict[str, int] = {}
        # For sockets, whose paths may have 107 characters, and for what nobody reads afterwards; the keeper removes it.
        self._private = Path(tempfile.mkdtemp(prefix="slurm"))
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, "--keep", str(os.getpid()), str(self._private)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # what ends the tests' process group must not end the cleaning up
        )
        try:
            self._configure()
            self._start_munged()
            if self._accounting:
                self._start_accounting()
            elif self._partner:
                self._partner.run("sacctmgr", "--immediate", "add", "cluster", self.name)
            self.start_slurmctld()
            for node in self.nodes:
                self.start_slurmd(node)
            # Not wait_idle: jobs of a previous cluster in this folder run again.
            self.until(lambda: set(self._node_states().values()) <= _UP, "nodes")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._keeper.stdin.close()
        self._keeper.wait()
        self._keeper.stdout.close()

    def _configure(self) -> None:
        self._private.chmod(0o755)  # munged wants its socket within everybody's reach
        (self.folder / "state").mkdir(parents=True, exist_ok=True)
        host = socket.gethostname().split(".")[0]
        self._port, self._dbd_port, *node_ports = _free_ports(2 + len(self.nodes))
        places = {"host": host, "folder": self.folder, "private": self._private}
        if self._partner:
            self._dbd_port = self._partner._dbd_port
        conf = _CONF.format(**places, **self._settings, port=self._port, name=self.name) + self._more
        conf += self._describe_gpus()
        for name, port in zip(self.nodes, node_ports, strict=True):
            (self._private / name).mkdir()
            gres = f"Gres=gpu:{self._gpus}" if self._gpus else ""
            conf += _NODE.format(name=name, host=host, port=port, gres=gres)
        conf += (_ACCOUNTING if self._accounting or self._partner else _NO_ACCOUNTING).format(
            **places, port=self._dbd_port
        )
        (self.folder / "slurm.conf").write_text(conf)
        # Named, although nothing uses control groups: detecting them fails where none are mounted, as in a container.
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        dbd_conf = self.folder / "slurmdbd.conf"
        dbd_conf.touch(mode=0o600)  # slurmdbd accepts no other mode
        dbd_conf.write_text(_DBD_CONF.format(**places, port=self._dbd_port))

    def _describe_gpus(self) -> str:
        """Write gres.conf, and files for GPUs; returns a line of slurm.conf."""
        if not self._gpus:
            return ""
        kind, _, count = self._gpus.rpartition(":")
        for number in range(int(count)):
            (self.folder / f"gpu{number}").touch()
        files = f"{self.folder}/gpu[0-{int(count) - 1}]"
        (self.folder / "gres.conf").write_text(f"Name=gpu {f'Type={kind}' if kind else ''} File={files}\n")
        return "GresTypes=gpu\n"

    # Daemons

    def _start(self, name: str, *command: str) -> None:
        """Have the keeper start a daemon in the foreground; its output goes to NAME.out."""
        environment = {"PATH": _SEARCH, "MYSQL_UNIX_PORT": f"{self._private}/mariadb.socket", **self.environment}
        order = {"command": command, "log": str(self.folder / f"{name}.out"), "environment": environment}
        print(json.dumps(order), file=self._keeper.stdin, flush=True)
        self._pids[name] = int(self._keeper.stdout.readline())

    def _stop(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        pid = self._pids.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        self.until(lambda: not Path(f"/proc/{pid}").exists(), f"the end of {name}")

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
        """Wait; when the time is over, or a daemon has died, raise RuntimeError with the ends of all logs."""
        end = time.monotonic() + timeout_s
        while not condition():
            dead = [name for name, pid in self._pids.items() if not Path(f"/proc/{pid}").exists()]
            if dead or time.monotonic() > end:
                why = f"{', '.join(dead)} died" if dead else f"not within {timeout_s:g} s"
                paths = sorted([*self.folder.glob("*.log"), *self.folder.glob("*.out")])
                logs = [f"== {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in paths]
                raise RuntimeError("\n".join([f"waiting for {what}: {why}", *logs]))
            time.sleep(0.05)

    def _start_munged(self) -> None:
        key = self._private / "munge.key"
        key.touch(mode=0o600)
        theirs = self._partner._private / "munge.key" if self._partner else None
        key.write_bytes(theirs.read_bytes() if theirs else secrets.token_bytes(128))
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "seed-file": "seed"}
        paths = [f"--{option}={self._private}/munge.{suffix}" for option, suffix in files.items()]
        self._start("munged", "munged", "--foreground", *paths)
        self.until((self._private / "munge.socket").exists, "munged's socket")

    def _start_accounting(self) -> None:
        # Nothing of this database has to survive a power failure: not waiting for the disk saves 6 of 8 seconds.
        common = [f"--datadir={self._private}/mariadb", "--user=root", "--debug-no-sync", "--innodb-log-file-size=4M"]
        install = ["mariadb-install-db", "--no-defaults", "--skip-test-db", *common]
        serve = ["mariadbd", "--no-defaults", f"--socket={self._private}/mariadb.socket", "--skip-networking", *common]
        self._start("mariadbd", "sh", "-c", f"{shlex.join(install)} && exec {shlex.join(serve)}")
        self.until((self._private / "mariadb.socket").exists, "MariaDB's socket")
        self._start("slurmdbd", "slurmdbd", "-D")
        self.until(lambda: _listens(self._dbd_port), "slurmdbd to listen")
        self.run("sacctmgr", "--immediate", "add", "cluster", self.name)  # and with it root's account and association

    def start_slurmctld(self) -> None:
        self._start("slurmctld", "slurmctld", "-D")
        self.until(lambda: _listens(self._port), "slurmctld to listen")

    def stop_slurmctld(self) -> None:
        """Jobs run on; commands such as squeue fail, after 9 s."""
        self._stop("slurmctld")

    def restart_slurmctld(self) -> None:
        self.stop_slurmctld()
        self.start_slurmctld()

    def start_slurmd(self, node: str = "n1") -> None:
        self._start(f"slurmd-{node}", "slurmd", "-D", "-N", node)

    def kill_slurmd(self, node: str = "n1") -> None:
        """SIGKILL: jobs run on, and their output arrives; the node is down after slurmd_timeout_s + about 20 s."""
        self._stop(f"slurmd-{node}", signal.SIGKILL)

    def restart_slurmd(self, node: str = "n1") -> None:
        self._stop(f"slurmd-{node}")
        self.start_slurmd(node)

    def node_down(self, node: str = "n1") -> None:
        """As if the node had crashed: its jobs are ended, and requeued unless they forbid it."""
        self.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")

    def node_up(self, node: str = "n1") -> None:
        self.run("scontrol", "update", f"nodename={node}", "state=resume")
        self.until(lambda: self._node_states()[node] in _UP, f"node {node}")

    def _node_states(self) -> dict[str, str]:
        return dict(line.split() for line in self.run("sinfo", "-hNpmain", "--format=%N %T").stdout.splitlines())

    # Jobs

    def run(self, *command: str | Path, check: bool = True, **options) -> subprocess.CompletedProcess[str]:
        """A command in this cluster's environment and (unless `options` for subprocess.run say otherwise) folder."""
        # Variables of an allocation that the tests themselves run in would change what the commands do.
        own = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "SQUEUE_", "SACCT_"))}
        settings = {"cwd": self.folder, "env": own | self.environment, "capture_output": True, "text": True}
        done = subprocess.run([str(word) for word in command], **(settings | options))
        if check and done.returncode:
            raise RuntimeError(f"{shlex.join(done.args)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def sbatch(self, script: str, *options: str) -> str:
        """Submit the lines of a shell script; the job id. Output: slurm-ID.out, slurm-ID_TASK.out in `folder`."""
        return self.run("sbatch", "--parsable", *options, input=f"#!/bin/sh\n{script}\n").stdout.strip()

    def jobs(self, finished: bool = False) -> list[Job]:
        """Jobs, each array task apart; `finished`: also those that have ended and are still remembered."""
        fields = "ArrayJobID", "ArrayTaskID", "JobID", "Partition", "State", "Reason", "NodeList", "RestartCnt", "Name"
        form = "--Format=" + ",".join(f"{field}:|" for field in fields)
        jobs = []
        for line in self.run("squeue", "-rh", form, *["--states=all"] * finished).stdout.splitlines():
            array, task, number, partition, state, reason, nodes, restarts, name = line.removesuffix("|").split("|", 8)
            id = f"{array}_{task}" if task.isdigit() else number
            jobs.append(Job(id, number, partition, state, reason, nodes, int(restarts), name))
        return jobs

    def start_requeued(self) -> None:
        """Requeued jobs wait two minutes: here only until the node has forgotten that it was told to end them."""
        for job in self.jobs():
            if job.state == "PENDING" and job.reason == "BeginTime":
                self.run("scontrol", "update", f"jobid={job.id}", "starttime=now+2", check=False)

    def job(self, id: str) -> Job | None:
        """A job or a task of an array; None once it is forgotten."""
        return next((job for job in self.jobs(finished=True) if job.id == id), None)

    def wait(self, id: str, *states: str, timeout_s: float = 60) -> Job:
        """Wait until a job or a task of an array is in one of `states` (RUNNING, COMPLETED...)."""
        self.until(lambda: (job := self.job(id)) is not None and job.state in states, f"{id} {states}", timeout_s)
        return self.job(id)

    def wait_idle(self, timeout_s: float = 60) -> None:
        """Wait until every node is idle and no job is pending."""

        idle = dict.fromkeys(self.nodes, "idle")
        self.until(lambda: self._node_states() == idle and not self.jobs(), "all nodes to be idle", timeout_s)


def _free_ports(count: int) -> list[int]:
    """Below Linux's range for outgoing connections, one of which might take the port of a daemon that is down."""
    ports: set[int] = set()
    while len(ports) < count:
        port = 10_000 + secrets.randbelow(20_000)  # not `random`, which plugins of pytest seed alike in all workers
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports.add(port)
    return list(ports)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# The keeper: this file as a program.


def descendants(pid: int) -> Iterator[int]:
    """Children of a process, their children and so on, zombies included."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended since
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    waiting = [pid]
    while waiting:
        found = children.get(waiting.pop(), [])
        yield from found
        waiting += found


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _keep(holder: int, private: Path) -> None:
    """Start the daemons asked for on standard input, until that closes or `holder` ends; then end all, and tidy up."""
    set_child_subreaper = 36  # PR_SET_CHILD_SUBREAPER of linux/prctl.h
    ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        # Standard input alone does not tell: a fork of the holder may keep the other end open after the holder's death.
        watched = [sys.stdin, os.pidfd_open(holder)]
        while os.getppid() == holder:
            ready, _, _ = select.select(watched, [], [], 0.05)
            _reap()
            if sys.stdin not in ready:
                continue
            line = sys.stdin.readline()
            if not line:
                break
            order = json.loads(line)
            with Path(order["log"]).open("a") as log:
                daemon = subprocess.Popen(
                    # A killed keeper cannot clean up: then at least no daemon outlives it.
                    ["setpriv", "--pdeathsig", "KILL", *order["command"]],
                    env=order["environment"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            print(daemon.pid, flush=True)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        # Until none is left, as a process may fork between being listed and being killed.
        while pids := list(descendants(os.getpid())):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            _reap()
            time.sleep(0.01)
        shutil.rmtree(private, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.jobs.cluster", description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--accounting", action="store_true", help="with slurmdbd, so that sacct works")
    parser.add_argument("--gpus", help="of each node, such as a100:2; files that are no GPUs")
    parser.add_argument("command", nargs="+", help="after --")
    args = parser.parse_args()
    if reason := available(args.accounting):
        parser.error(reason)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # which ends the command, too
    with tempfile.TemporaryDirectory() as folder:
        settings = {"nodes": args.nodes, "accounting": args.accounting, "gpus": args.gpus}
        with Cluster(Path(folder), **settings) as cluster:
            return subprocess.run(args.command, env=os.environ | cluster.environment).returncode


if __name__ == "__main__":
    if sys.argv[1:2] == ["--keep"]:
        _keep(int(sys.argv[2]), Path(sys.argv[3]))
    else:
        sys.exit(main())
