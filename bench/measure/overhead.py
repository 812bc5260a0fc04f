"""What the harness itself costs: `python -m jobs.overhead` does runs of one training step and times all around it.

Half of the runs are plain, half are distilled from the first, on embedded images; everything else is as in real work:
the command line, workers, claims, checkpoints, results synced to disk, the table at the end. Time inside training
(augmentation, step, evaluation) is taken from the results and subtracted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pstats
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import grid as grids
from bench import store
from bench.surroundings import paths

ROOT = Path(__file__).parents[2]

PROTOCOL = """\
extends: standard
name: empty
version: 1
about: "one step a run"
sources: "made up to time the harness"
data: {dataset: embedded-1, train_images: 100}
train: {epochs: 1, milestones: [], batch: 100}
"""

GRID = """\
name: empty
about: "one step a run"
protocol: PROTOCOL
pairs: [resnet8-resnet8]
methods: [vanilla, kd]
seeds: SEEDS
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200, help="default: 200")
    parser.add_argument("--slots", type=int, default=2, help="default: 2")
    parser.add_argument("--device", default="cpu", help="default: cpu")
    parser.add_argument(
        "--out", type=paths.option, help="an empty folder on the disk to time (default: a temporary one)"
    )
    parser.add_argument("--profile", action="store_true", help="say where the time of a worker's runs goes instead")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        out = args.out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        grid = write_grid(out, args.runs)
        if args.profile:
            profile(grid, out / "out", args.device)
        else:
            print(measure(grid, out / "out", args.slots, args.device))


def write_grid(folder: Path, runs: int) -> Path:
    """A grid of `runs` empty runs."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "empty.yaml").write_text(PROTOCOL)
    path = folder / "grid.yaml"
    seeds = max(1, runs // 2)
    path.write_text(GRID.replace("PROTOCOL", str((folder / "empty.yaml").resolve())).replace("SEEDS", str(seeds)))
    return path


def measure(grid: Path, out: Path, slots: int, device: str) -> str:
    """Do the grid as a person would; the figures, as lines."""
    command = [sys.executable, "reproduce.py", "--grid", grid, "--out", out, "--device", device, "--slots", slots]
    began, started = time.time(), time.monotonic()
    subprocess.run(
        [*map(str, command), "--executor", "local", "--no-plots"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return f"{slots} slots of {device}: " + figures(out, slots, began, time.monotonic() - started)


def figures(out: Path, slots: int, began: float, wall_s: float) -> str:
    """What the results of a call that began then and took so long say; they must be more than there were slots."""
    folders = [store.RunFolder(path.parent) for path in (out / "runs").glob("*/result.json")]
    folders.sort(key=lambda folder: folder.result.stat().st_mtime)
    ended = [folder.result.stat().st_mtime for folder in folders]
    train_s = [store.read_result(folder)["timing"]["train_s"] for folder in folders]
    runs = len(folders)
    whole_s = slots * wall_s - sum(train_s)
    # The first runs wait for the workers' imports and data: from when each slot has done one, only the harness is left.
    steady_s = slots * (ended[-1] - ended[slots - 1]) - sum(train_s[slots:])
    return (
        f"{runs} runs in {wall_s:.1f} s, of which a run trained {1000 * sum(train_s) / runs:.0f} ms\n"
        f"first result after {ended[0] - began:.1f} s, end {began + wall_s - ended[-1]:.1f} s after the last\n"
        f"the harness costs {1000 * steady_s / (runs - slots):.0f} ms a run, "
        f"{1000 * whole_s / runs:.0f} ms with the start-up of driver and workers and the report"
    )


def profile(grid: Path, out: Path, device: str) -> None:
    """Do the grid's runs in one worker and print where its time goes, training as one line."""
    runs = sorted(grids.expand(grids.load(str(grid))).runs.values(), key=lambda run: run.teacher is not None)
    orders = [json.dumps({"runs": [{"run": run.model_dump(mode="json"), "weights": None}]}) for run in runs]
    measured = out.parent / "worker.profile"
    command = ["-m", "cProfile", "-o", measured, "-m", "jobs.worker", "--out", out, "--device", device, "--threads", 1]
    with subprocess.Popen(
        [sys.executable, *map(str, command)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as worker:
        for order in orders:
            print(order, file=worker.stdin, flush=True)
            answer = json.loads(worker.stdout.readline())
            if answer["outcome"] != "done":
                sys.exit(f"{answer['run_id']}: {answer['outcome']}: {answer['message']}")
        worker.stdin.close()  # its leash: an idle worker leaves
    print(f"{len(orders)} runs, with the start-up of their worker")
    pstats.Stats(str(measured)).sort_stats("cumulative").print_stats(
        r"/(bench|jobs|zoo|methods)/|fsync|replace|load|save", 45
    )


if __name__ == "__main__":
    main()
