"""What can befall a results folder while runs are done in it, for tests/jobs/chaos.py.

Each fault picks its victim by a seeded generator, writes down what it may explain afterwards, and does its harm.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench import store
from jobs import claims
from jobs.slurm import records
from tests.jobs import cluster as slurms


@dataclass
class Hit:
    """What a fault found: a run (under way or not, where it is a file of one), and how long its log was then."""

    fault: str
    run_id: str
    alive: bool
    log_bytes: int


@dataclass
class Arena:
    """A results folder, the commands that work on it, and the faults so far."""

    folder: Path
    code: Path
    grid: Path
    chance: random.Random
    machines: slurms.Cluster | None = None
    out: Path = field(init=False)
    drivers: list[subprocess.Popen] = field(default_factory=list)
    said: dict[int, Path] = field(default_factory=dict)  # output of drivers, by process id
    signalled: dict[int, int] = field(default_factory=dict)  # what was sent to drivers
    counts: Counter = field(default_factory=Counter)
    hits: list[Hit] = field(default_factory=list)
    deaths: Counter = field(default_factory=Counter)  # of each run: faults that may end it without a checkpoint
    damages: Counter = field(default_factory=Counter)  # of each run: checkpoints and results that were spoilt
    exits: Counter = field(default_factory=Counter)
    upkeep_at: float = 0.0
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.out = self.folder / "disk" / "out"
        self.out.mkdir(parents=True)

    # The command

    def drive(
        self, *more: str, onto: int | None = None, variables: Mapping[str, str] | None = None
    ) -> subprocess.Popen:
        """Start the command; with its output somewhere else than in its file, or with more variables."""
        where = ["--executor", "slurm", "--cluster", str(self.folder / "cluster.yaml")]
        where = where if self.machines else ["--executor", "local"]
        options = ["--grid", str(self.grid), "--out", str(self.out), "--no-plots", "--retry-failed", *where, *more]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        environment |= self.machines.environment if self.machines else {"SLURM_CONF": os.devnull}
        environment |= variables or {}
        with (self.folder / f"driver-{len(self.exits)}-{time.monotonic_ns()}.txt").open("wb") as said:
            driver = subprocess.Popen(
                [sys.executable, "reproduce.py", *options],
                cwd=self.code,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=said if onto is None else onto,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.drivers.append(driver)
        self.said[driver.pid] = Path(said.name)
        return driver

    def reap(self) -> list[subprocess.Popen]:
        """Take down how drivers ended; those still alive."""
        for driver in [driver for driver in self.drivers if driver.poll() is not None]:
            self.drivers.remove(driver)
            text = self.said[driver.pid].read_text(errors="replace")
            self.exits[driver.returncode] += 1
            # One that only submits leaves SIGTERM to the system.
            expected = {0, 1, 2, 3, -self.signalled.get(driver.pid, 0)}
            if driver.returncode not in expected or "Traceback" in text:
                self.complaints.append(f"a driver ended with {driver.returncode}:\n{text[-3000:]}")
        return self.drivers

    def end(self) -> None:
        """Ask all drivers to stop, and wait for them."""
        for driver in self.reap():
            self.signalled[driver.pid] = signal.SIGTERM
            driver.terminate()
        for driver in list(self.drivers):
            driver.wait(150)
        self.reap()

    # What there is to hit

    def runs(self) -> list[store.RunFolder]:
        return [store.RunFolder(path) for path in sorted(self.out.glob("runs/*")) if path.is_dir()]

    def alive(self) -> list[tuple[store.RunFolder, int]]:
        """Runs under way, with their workers' process ids."""
        held = [(folder, claims.read(folder.path)) for folder in self.runs()]
        return [(folder, holder.pid) for folder, holder in held if holder and holder.alive]

    def in_hand(self, pid: int) -> list[store.RunFolder]:
        """The runs that a process has under way."""
        return [folder for folder, holder in self.alive() if holder == pid]

    def pick(self, found: list):
        return self.chance.choice(found) if found else None

    def working(self) -> subprocess.Popen | None:
        """A driver that has come to its plan."""
        return self.pick([driver for driver in self.reap() if b" runs" in self.said[driver.pid].read_bytes()])

    def job(self) -> slurms.Job | None:
        return self.pick([job for job in self.machines.jobs() if job.state == "RUNNING"])

    def mark(self, fault: str, folders: list[store.RunFolder], *, deadly: bool = False, damage: bool = False) -> None:
        for folder in folders:
            size = folder.log.stat().st_size if folder.log.exists() else 0
            holder = claims.read(folder.path)
            self.hits.append(Hit(fault, folder.run_id, bool(holder and holder.alive), size))
            self.deaths[folder.run_id] += deadly
            self.damages[folder.run_id] += damage

    def mark_alive(self, fault: str, *, deadly: bool = False) -> None:
        self.mark(fault, [folder for folder, _ in self.alive()], deadly=deadly)

    # Upkeep: what a user, a scheduler's timer or an administrator would do

    def upkeep(self) -> None:
        if self.machines and time.monotonic() > self.upkeep_at:
            self.upkeep_at = time.monotonic() + 5  # not before the last one's requeued jobs have started
            with contextlib.suppress(RuntimeError):  # its controller is being restarted
                self.machines.start_requeued()
                for job in self.machines.jobs():
                    if "eld" in job.reason:
                        self.machines.run("scontrol", "release", job.id, check=False)
        if not self.reap():
            self.drive(*(["--wait"] if self.machines and self.chance.random() < 0.7 else []))

    def until(self, condition: Callable[[], bool], within_s: float) -> None:
        end = time.monotonic() + within_s
        while not condition() and time.monotonic() < end:
            self.upkeep()
            time.sleep(0.2)

    def done(self, run_ids: list[str]) -> int:
        """How many of these runs have a result that can be read."""
        count = 0
        for run_id in run_ids:
            with contextlib.suppress(store.Damaged, store.Unreadable):
                count += store.read_result(store.run_folder(self.out, run_id), curve=False) is not None
        return count


# Faults: each does its harm to an arena. The name says what; the third says where it makes sense.

FAULTS: dict[str, tuple[Callable[[Arena, str], None], str]] = {}


def fault(name: str, where: str = "both") -> Callable:
    def keep(function: Callable[[Arena, str], None]) -> Callable:
        FAULTS[name] = function, where
        return function

    return keep


def _signal_driver(number: signal.Signals) -> Callable[[Arena, str], None]:
    def harm(arena: Arena, name: str) -> None:
        if driver := arena.working():
            arena.mark_alive(name)  # not deadly: local workers see their input end, and write a checkpoint
            arena.signalled[driver.pid] = number
            driver.send_signal(number)

    return harm


fault("driver: SIGKILL")(_signal_driver(signal.SIGKILL))
fault("driver: SIGINT")(_signal_driver(signal.SIGINT))
fault("driver: SIGTERM")(_signal_driver(signal.SIGTERM))


@fault("two drivers at once")
def second_driver(arena: Arena, name: str) -> None:
    arena.mark_alive(name)
    arena.drive()
    time.sleep(4)


@fault("worker: SIGKILL")
def kill_worker(arena: Arena, name: str) -> None:
    if found := arena.pick(arena.alive()):
        arena.mark(name, arena.in_hand(found[1]), deadly=True)
        os.kill(found[1], signal.SIGKILL)


@fault("worker: SIGTERM")
def stop_worker(arena: Arena, name: str) -> None:
    if found := arena.pick(arena.alive()):
        arena.mark(name, arena.in_hand(found[1]))
        os.kill(found[1], signal.SIGTERM)


@fault("job: SIGKILL of the process SLURM knows", "slurm")
def kill_task(arena: Arena, name: str) -> None:
    if found := arena.pick(arena.alive()):
        parent = int(Path(f"/proc/{found[1]}/stat").read_text().rpartition(")")[2].split()[1])
        if b"submitit" in Path(f"/proc/{parent}/cmdline").read_bytes():
            arena.mark(name, arena.in_hand(found[1]), deadly=True)  # slurmd then kills what is left of the job
            os.kill(parent, signal.SIGKILL)


def _on_a_job(*command: str, deadly: bool) -> Callable[[Arena, str], None]:
    def harm(arena: Arena, name: str) -> None:
        if job := arena.job():
            arena.mark_alive(name, deadly=deadly)  # which of them the job has is not asked: any may be the one
            arena.machines.run(*command, job.id, check=False)

    return harm


# Two seconds (KillWait) after SIGTERM comes SIGKILL, which a busy machine may not be quick enough for.
fault("scancel", "slurm")(_on_a_job("scancel", deadly=True))
fault("scontrol requeue", "slurm")(_on_a_job("scontrol", "requeue", deadly=True))
fault("scancel --signal=USR2", "slurm")(_on_a_job("scancel", "--signal=USR2", "--batch", deadly=False))


@fault("node down and up", "slurm")
def lose_node(arena: Arena, name: str) -> None:
    arena.mark_alive(name, deadly=True)
    node = arena.chance.choice(arena.machines.nodes)
    arena.machines.node_down(node)
    time.sleep(1)
    arena.machines.node_up(node)


@fault("slurmctld restarted", "slurm")
def restart_controller(arena: Arena, name: str) -> None:
    arena.mark_alive(name)
    arena.machines.stop_slurmctld()
    time.sleep(2)
    arena.machines.start_slurmctld()


@fault("slurmd restarted", "slurm")
def restart_slurmd(arena: Arena, name: str) -> None:
    arena.mark_alive(name)
    arena.machines.restart_slurmd(arena.chance.choice(arena.machines.nodes))


def _cut(path: Path, chance: random.Random) -> bool:
    """Leave a random part of a file, in place: what a crash of a machine does to files that were not synced."""
    with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
        file.truncate(chance.randrange(path.stat().st_size or 1))
        return True
    return False


def _cut_file(name: str, *, deadly: bool, damage: bool) -> Callable[[Arena, str], None]:
    def harm(arena: Arena, fault_name: str) -> None:
        found = [folder for folder in arena.runs() if (folder.path / name).exists()]
        if name == "config.json":  # of a run under way, which writes it anew when it goes on
            found = [folder for folder in found if not folder.result.exists()]
        if folder := arena.pick(found):
            arena.mark(fault_name, [folder], deadly=deadly, damage=damage)
            _cut(folder.path / name, arena.chance)

    return harm


fault("cut short: last.pt")(_cut_file("last.pt", deadly=False, damage=True))
fault("cut short: result.json")(_cut_file("result.json", deadly=False, damage=True))
fault("cut short: config.json")(_cut_file("config.json", deadly=False, damage=False))
# Until its next beat its worker counts as dead, so that another may take the run over.
fault("cut short: claim.json")(_cut_file("claim.json", deadly=True, damage=False))


@fault("cut short: a record of a submission", "slurm")
def cut_record(arena: Arena, name: str) -> None:
    if token := arena.pick(records.tokens(arena.out)):
        arena.mark_alive(name)
        _cut(records.path(arena.out, token), arena.chance)


@fault("disk full for some seconds")
def fill_disk(arena: Arena, name: str) -> None:
    known = {folder.run_id for folder, _ in arena.alive()}
    arena.mark_alive(name, deadly=True)  # a run ends where its checkpoint cannot be written
    ballast = arena.out.parent / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 12))
    time.sleep(1 + 2 * arena.chance.random())
    ballast.unlink()
    for folder in arena.runs():  # those that were taken up meanwhile
        if folder.run_id not in known and folder.last.exists():
            arena.deaths[folder.run_id] += 1


def _exchange(one: Path, other: Path) -> None:
    """Swap two files at once (renameat2 with RENAME_EXCHANGE): at no moment is one of them missing."""
    if ctypes.CDLL(None, use_errno=True).renameat2(-100, os.fsencode(one), -100, os.fsencode(other), 2):
        raise OSError(ctypes.get_errno(), "renameat2", str(one))


def _hide_file(name: str) -> Callable[[Arena, str], None]:
    """In its place stands for some seconds what is there and cannot be read, by root either (ELOOP)."""

    def harm(arena: Arena, fault_name: str) -> None:
        found = [folder for folder in arena.runs() if (folder.path / name).is_file()]
        if not (folder := arena.pick(found)):
            return
        path, hidden = folder.path / name, folder.path / ".hidden"
        hidden.symlink_to(path.name)  # once in the place of what it names, it names itself
        arena.mark(fault_name, [folder])
        _exchange(path, hidden)
        arena.until(lambda: False, 3 + 3 * arena.chance.random())
        if path.is_symlink():
            _exchange(path, hidden)
        hidden.unlink()  # the link, or what a new checkpoint has replaced

    return harm


fault("result.json unreadable for some seconds")(_hide_file("result.json"))
fault("last.pt unreadable for some seconds")(_hide_file("last.pt"))


def _relieve(arena: Arena, name: str, **options: object) -> None:
    """Another driver takes the place of the one at work."""
    arena.mark_alive(name)
    if driver := arena.working():
        arena.signalled[driver.pid] = signal.SIGTERM
        driver.terminate()
    arena.drive(**options)
    time.sleep(4)


@fault("driver's output onto a full disk")
def full_output(arena: Arena, name: str) -> None:
    with open("/dev/full", "wb") as full:
        _relieve(arena, name, onto=full.fileno())


@fault("driver's output into a pipe that nobody reads")
def no_reader(arena: Arena, name: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    _relieve(arena, name, onto=writer)
    os.close(writer)


HOSTILE = {  # each would stop a command, change results in their last bits, or leave a process behind
    "MPLBACKEND": "module://none",
    "MATPLOTLIBRC": "/none",
    "GIT_DIR": "/none",
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_CBWR": "COMPATIBLE",
    "OMP_NUM_THREADS": "2",
    "OMP_PROC_BIND": "true",
    "PYTHONOPTIMIZE": "2",
    "LC_ALL": "C",
    "TZ": "Nowhere/Atall",
}


@fault("driver with variables that mean something")
def hostile_driver(arena: Arena, name: str) -> None:
    _relieve(arena, name, variables=HOSTILE)


@fault("no hard links for some seconds")
def no_links(arena: Arena, name: str) -> None:
    mark = arena.out / "no-links"  # what the copy under test looks for, see SHORTENED
    mark.touch()
    _relieve(arena, name)
    arena.until(lambda: False, 4)
    mark.unlink()
