"""Random faults on a grid of tiny runs, then: is every run done, once, to the bit as if nothing had happened?

    python -m tests.jobs.chaos --faults 60 --seed 1 --write tests/CHAOS.md

Runs the command and its workers from a copy of the code that differs in `SHORTENED` alone: with a checkpoint after
every step a log tells exactly what may be done again after a death (`retold`). Needs root: for the small disk, which
is mounted where no other process sees it, and for SLURM.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from bench import grid as grids
from bench import store
from jobs.slurm import snapshot
from tests import tiny
from tests.jobs import cluster as slurms
from tests.jobs.faults import FAULTS, Arena
from tests.jobs.results import do_here, essence

ROOT = Path(__file__).parents[2]
SHORTENED = {  # file -> (as it stands, as it is in the copy under test)
    "bench/training/trainer.py": ("CHECKPOINT_EVERY_S = 60.0", "CHECKPOINT_EVERY_S = 0.0"),
    "jobs/claims.py": (
        "        os.link(temporary, path)\n",
        "        if (path.parents[2] / 'no-links').exists():\n"
        "            raise OSError(errno.EOPNOTSUPP, 'no links')\n"
        "        os.link(temporary, path)\n",
    ),
    "jobs/slurm/follow.py": ("LOOK_S, ASK_S = 2.0, 30.0", "LOOK_S, ASK_S = 0.5, 3.0"),
}
PROTOCOL = tiny.PROTOCOL.replace("epochs: 2, milestones: [1]", "epochs: 8, milestones: [5]")
SIZES = {  # name -> (teachers of student resnet8, methods); teachers but resnet8 itself are runs of their own
    "full": ("resnet8 wrn_16_1 resnet20 wrn_16_2", "vanilla kd fitnet dkd rkd crd"),  # 24 runs
    "small": ("resnet8 wrn_16_1", "vanilla kd"),  # 4
}
# One job a node, as two or three keep the cores busy; longer to write a checkpoint than a busy machine needs.
CLUSTER = "gpus: 0\ncpus_per_task: 1\ntimeout_min: 60\nsignal_delay_s: 50\nadditional: {exclusive: true}\n"
DISK_MB = 128
END_S = 600.0  # for all runs to be done once the faults are over

STEP = re.compile(r"  epoch (\d+)  lr ")
BEGIN, STOPPED, DONE, ASIDE = " CPU thread(s), code in ", "stopped, checkpoint written", "  done: top-1", "set aside"


# What must hold


def attempts(log: str) -> list[tuple[list[int], str]]:
    """The epochs finished by each process that took a run up, and how it ended: stopped, done, or "" (no word)."""
    found: list[tuple[list[int], str]] = []
    for line in log.splitlines():
        if BEGIN in line:
            found.append(([], ""))
        elif found and (match := STEP.search(line)):
            found[-1][0].append(int(match[1]))
        elif found and (STOPPED in line or DONE in line):
            found[-1] = found[-1][0], "stopped" if STOPPED in line else "done"
    return [(epochs, end) for epochs, end in found if epochs or end == "stopped"]


def retold(log: str, deaths: int, damages: int) -> list[str]:
    """Epochs that were done again without a reason, a line each.

    There is a checkpoint after every step, so a process that goes on from one does no step again. A checkpoint or
    result that was spoilt (`damages`) explains one new start each. A death (`deaths`) explains that the epoch just
    finished is finished once more, as its evaluation comes after its last step. Nothing else is explained.
    """
    wrong, last = [], 0
    for number, (epochs, end) in enumerate(attempts(log), 1):
        for epoch in epochs:
            if epoch <= last:
                if epoch == last and deaths > 0:
                    deaths -= 1
                elif epoch == 1 and damages > 0:
                    damages -= 1
                else:
                    wrong.append(f"process {number} did epoch {epoch} after epoch {last} ({end or 'no last word'})")
            last = epoch
    return wrong


COLUMNS = "went on", "from its checkpoint", "from the start", "hit again first"


def went_on(log: bytes, begin: int, end: int | None, *, at_rest: bool = False) -> str:
    """Which of `COLUMNS` a log tells of a fault at byte `begin`; from `end` on it is the next fault's.

    `at_rest`: the next fault met the run while nobody was doing it.
    """
    before, since = (part.decode(errors="replace") for part in (log[:begin], log[begin:end]))
    if BEGIN not in since:
        return COLUMNS[3] if at_rest and DONE not in since else COLUMNS[0]
    earlier, again, *_ = (
        log[begin:].decode(errors="replace").split(BEGIN)
    )  # what the next process said may be after `end`
    epochs, match = STEP.findall(before + earlier), STEP.search(again)
    return COLUMNS[2] if ASIDE in again or (match and epochs and int(match[1]) < int(epochs[-1])) else COLUMNS[1]


# The program


def prepare(folder: Path, size: str) -> tuple[Path, Path]:
    """The copy of the code, and the grid."""
    code = folder / "code"
    for part in snapshot.PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        (code / part).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / part, code / part)
    for name, (stands, wanted) in SHORTENED.items():
        text = (code / name).read_text()
        assert text.count(stands) == 1, f"{name} does not say {stands}"
        (code / name).write_text(text.replace(stands, wanted))
    teachers, methods = (words.split() for words in SIZES[size])
    grid = tiny.GRID.replace("[vanilla, kd, fitnet]", f"[{', '.join(methods)}]")
    grid = grid.replace("[resnet8-resnet8]", f"[{', '.join(f'{teacher}-resnet8' for teacher in teachers)}]")
    return code, tiny.write(folder / "grid", grid, PROTOCOL)


@contextlib.contextmanager
def arena(folder: Path, code: Path, grid: Path, where: str, seed: int) -> Iterator[Arena]:
    """A results folder on a small disk, and for `slurm` a cluster of three nodes."""
    (folder / "disk").mkdir(parents=True)
    (folder / "cluster.yaml").write_text(CLUSTER)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}M", "none", folder / "disk"], check=True)
    try:
        with slurms.Cluster(folder / "slurm", nodes=3) if where == "slurm" else contextlib.nullcontext() as machines:
            made = Arena(folder, code, grid, random.Random(f"{where} {seed}"), machines)
            try:
                yield made
            finally:
                made.end()
    finally:
        subprocess.run(["umount", "--lazy", folder / "disk"], check=True)


def rage(here: Arena, where: str, count: int, run_ids: list[str]) -> None:
    """Let faults loose: all kinds in random order, then again, as many as asked for.

    The runs get the time to keep pace, within bounds, so that the faults meet all parts of the grid.
    """
    kinds = [name for name, (_, place) in FAULTS.items() if place in ("both", where)]
    order: list[str] = []
    while len(order) < count:
        order += here.chance.sample(kinds, len(kinds))
    for number, name in enumerate(order[:count]):
        pace = 0.8 * len(run_ids) * number / count
        here.until(lambda pace=pace: here.alive() and here.done(run_ids) >= pace, 12)
        time.sleep(1.5 * here.chance.random())
        here.counts[name] += 1
        before = len(here.hits)
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # the victim has just ended by itself
            FAULTS[name][0](here, name)
        print(f"{where}: {name}: {', '.join(hit.run_id for hit in here.hits[before:]) or 'nothing to hit'}", flush=True)


def settle(here: Arena, run_ids: list[str]) -> None:
    """Until every run is done; then the command once more, which has to find them so."""
    end = time.monotonic() + END_S
    while here.alive() or here.done(run_ids) < len(run_ids):
        here.upkeep()
        time.sleep(0.5)
        if time.monotonic() > end:
            here.complaints.append(f"not all runs were done {END_S:g} s after the last fault")
            return
    here.end()
    status = here.drive().wait(END_S)
    here.reap()
    if status:
        here.complaints.append(f"all runs are done, and the command ends with {status}")


def judge(here: Arena, undisturbed: Mapping[str, object]) -> tuple[list[str], list[str]]:
    """What is wrong, a line each, and what to write down of the round."""
    got = essence(here.out)
    wrong = [*here.complaints]
    wrong += [f"{run_id} is not done" for run_id in undisturbed if run_id not in got]
    wrong += [f"{run_id} differs" for run_id, value in got.items() if undisturbed.get(run_id) != value]
    finished = again = 0
    for folder in here.runs():
        log = folder.log.read_text(errors="replace")
        epochs = [epoch for done, _ in attempts(log) for epoch in done]
        finished += len(epochs)
        again += len(epochs) - len(set(epochs))
        unexplained = retold(log, here.deaths[folder.run_id], here.damages[folder.run_id])
        wrong += [f"{folder.run_id}: {line}" for line in unexplained]
    exits = ", ".join(f"{count} with {status}" for status, count in sorted(here.exits.items()))
    equal = sum(undisturbed.get(run_id) == value for run_id, value in got.items())
    notes = [
        f"{len(got)} of {len(undisturbed)} runs done, {equal} equal to the undisturbed ones to the bit",
        f"{finished} epochs finished, {again} of them again because of a death or of a file cut short",
        f"drivers ended: {exits}",
    ]
    return wrong, notes


def table(here: Arena) -> list[str]:
    """A row for each fault: how often, and what its victims' logs say of the time after."""
    outcomes = {name: Counter() for name in here.counts}
    for number, hit in enumerate(here.hits):
        log = store.run_folder(here.out, hit.run_id).log.read_bytes()
        later = next((other for other in here.hits[number + 1 :] if other.run_id == hit.run_id), None)
        end, at_rest = (later.log_bytes, not later.alive) if later else (None, False)
        outcomes[hit.fault][went_on(log, hit.log_bytes, end, at_rest=at_rest)] += 1
    rows = [["fault", "times", "runs hit", *COLUMNS], ["---", *["--:"] * (2 + len(COLUMNS))]]
    for name in FAULTS:
        if name in here.counts:
            found = outcomes[name]
            rows.append([name, *map(str, (here.counts[name], found.total(), *(found[column] for column in COLUMNS)))])
    return [f"| {' | '.join(row)} |" for row in rows]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.jobs.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=60, help="in each place")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--where", choices=("local", "slurm", "both"), default="both")
    parser.add_argument("--size", choices=SIZES, default="full", help="24 runs, or 4")
    parser.add_argument("--write", type=Path, metavar="FILE.md")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where to leave the files of a round gone wrong")
    args = parser.parse_args()
    if reason := slurms.available():
        parser.error(reason)
    if "KD_CHAOS_MOUNTS" not in os.environ:  # once more, where mounts are our own and end with us
        again = [sys.executable, "-m", "tests.jobs.chaos", *sys.argv[1:]]
        os.environ["KD_CHAOS_MOUNTS"] = "own"
        os.execvp("unshare", ["unshare", "--mount", "--propagation", "private", *again])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # which leaves nothing behind
    torch.set_num_threads(1)
    text, failed = [], False
    with tempfile.TemporaryDirectory(prefix="chaos") as name:
        folder = Path(name)
        code, grid = prepare(folder, args.size)
        runs = grids.expand(grids.load(str(grid))).runs
        undisturbed = do_here(folder / "undisturbed", runs.values())
        for where in ("local", "slurm") if args.where == "both" else (args.where,):
            began = time.monotonic()
            with arena(folder / where, code, grid, where, args.seed) as here:
                rage(here, where, args.faults, list(runs))
                settle(here, list(runs))
                wrong, notes = judge(here, undisturbed)
                rows = table(here)
                if wrong and args.keep:
                    shutil.copytree(here.folder, args.keep / where)
            failed |= bool(wrong)
            notes = [f"{args.faults} faults, {time.monotonic() - began:.0f} s", *notes]
            notes.append("nothing wrong" if not wrong else "WRONG: " + "; ".join(wrong))
            text += [f"## {where}", "", *rows, "", *(f"- {note}" for note in notes), ""]
    print("\n".join(text))
    if args.write:
        args.write.write_text("\n".join([*heading(args), *text]).rstrip() + "\n")
    return int(failed)


def heading(args: argparse.Namespace) -> list[str]:
    version = subprocess.run(["slurmctld", "-V"], capture_output=True, text=True).stdout.strip()
    cores = len(os.sched_getaffinity(0))
    options = f"--faults {args.faults} --seed {args.seed} --where {args.where} --size {args.size}"
    return [
        "# Chaos",
        "",
        f"    python -m tests.jobs.chaos {options}",
        "",
        f"Written by that command (`--write`), with torch {torch.__version__}, {version}, {cores} cores. A grid of",
        "tiny runs is done while random faults befall it. Where a fault chooses no run, each one under way counts as",
        "hit. The last columns say what the run's log shows until the next fault hit the same run: the process at",
        "work, if any, went on; another took the run up from its checkpoint; another began it at epoch 1 again; or",
        "the next fault came before anybody had taken it up. Which moment a fault meets depends on the machine: the",
        "same seed gives the same faults in the same order, not the same counts.",
        "",
    ]


if __name__ == "__main__":
    sys.exit(main())
