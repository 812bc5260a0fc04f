"""What planning and reporting cost: `python -m bench.report_cost`.

Makes a results folder of 10,000 finished runs as large as real ones (the full grid with 128 seeds, curves of 240 epochs
with 15 numbers each: 1 GB, removed afterwards) and runs the commands on it, each in a process of its own.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import grid as grids
from bench import store
from bench.surroundings import paths
from bench.surroundings.commandline import Parser

ROOT = Path(__file__).parents[2]
NUMBERS = ("lr", "train_loss", "ce", "kd", "dir", "top5", "test_loss", "wall_s")
NORMS = ("grad_norm_ce", "grad_norm_kd", "grad_norm_dir", "a", "b")
UNFINISHED_EVERY = 50  # of these runs one is missing: a report of whole cells only would be too easy


@dataclass(frozen=True)
class Cost:
    """Of one process: wall time, processor time of user and system together, and peak memory."""

    wall_s: float
    cpu_s: float
    peak_mb: float


def make(out: Path, seeds: int, epochs: int) -> None:
    """A results folder of the full grid. Accuracies are drawn, curves are the same in every run."""
    grid = grids.expand(grids.load("full"), seeds=list(range(seeds)))
    out.mkdir(parents=True, exist_ok=True)
    grids.keep(grid, out)
    template = out / "template.json"
    store.write_result(template, {"curve": _curve(epochs, random.Random(0))})
    text = template.read_bytes()
    template.unlink()
    tail = text[text.index(store.CURVE) :]
    teachers = {run.teacher.run_id for run in grid.runs.values() if run.teacher}
    for i, (run_id, run) in enumerate(grid.runs.items()):
        if run_id in teachers or (i + 1) % UNFINISHED_EVERY:
            _write(store.run_folder(out, run_id), run.model_dump(mode="json"), tail, random.Random(run_id))


def _curve(epochs: int, chance: random.Random) -> list[dict[str, Any]]:
    names = (*NUMBERS, *NORMS)
    return [
        {"epoch": epoch, "top1": round(70 * chance.random(), 2), **{name: 5 * chance.random() for name in names}}
        for epoch in range(1, epochs + 1)
    ]


def _write(folder: store.RunFolder, config: dict[str, Any], tail: bytes, chance: random.Random) -> None:
    """As store.write_result, without waiting for the disk."""
    last = round(70 + chance.gauss(0, 1), 2)
    head = {
        "schema": store.SCHEMA,
        "run_id": folder.run_id,
        "config": config,
        "metrics": {"top1_last": last, "top1_best": last + 0.2, "best_epoch": 230, "top5_last": 92.0},
        "timing": {"train_s": 3600.0, "images_per_s": 4000.0},
        "provenance": {
            "versions": {"python": "3.11.7", "torch": "2.8.0", "torchvision": "0.23.0"},
            "device": "NVIDIA H200",
            "git_commit": "0123456789abcdef0123456789abcdef01234567",
            "git_dirty": False,
            "method_sha256": f"{zlib.crc32(config['method'].encode()):08x}" * 8,
            "weights_bytes": 4,
        },
        "curve_crc32": zlib.crc32(tail),
    }
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.weights.write_bytes(b"1234")
    folder.result.write_bytes(json.dumps(head, indent=1).encode().removesuffix(b"\n}") + b"," + tail)


def measure(*command: str) -> Cost:
    """Run a command to its end; RuntimeError where its status is not 0 or 1 (some runs are unfinished)."""
    started, peak_mb, ended = time.monotonic(), 0.0, 0
    process = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not ended:
        time.sleep(0.01)
        peak_mb = max(peak_mb, _peak_mb(process.pid))
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 1):
        raise RuntimeError(f"{' '.join(command)}: exit {process.returncode}")
    return Cost(time.monotonic() - started, usage.ru_utime + usage.ru_stime, peak_mb)


def _peak_mb(pid: int) -> float:
    """What the process has had in memory at once, so far. The ru_maxrss of a child counts its parent's memory, too."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:  # ended, or not Linux
        found = None
    return int(found[1]) / 1024 if found else 0.0


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(prog="python -m bench.report_cost", description=__doc__)
    parser.add_argument("--seeds", type=int, default=128, help="78 runs each (default: 128, about 10,000 runs)")
    parser.add_argument("--epochs", type=int, default=240, help="rows of a curve (default: 240)")
    parser.add_argument(
        "--folder", type=paths.option, help="where the temporary folder is made (default: the system's)"
    )
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        out = Path(name)
        make(out, args.seeds, args.epochs)
        sizes = [path.stat().st_size for path in out.glob("runs/*/result.json")]
        print(f"{len(sizes)} finished runs, {sum(sizes) / 1e6:.0f} MB of result.json, {os.cpu_count()} cores")
        at = ("--grid", "full", "--seeds", str(args.seeds), "--out", name)
        plan = ("--dry-run", "--on", "h100")  # without the 20 seconds of steps that a plain dry run takes
        commands = {
            "start Python, torch": ("-c", "import torch, methods, jobs.plan, bench.experiment"),
            "plan, nothing there": ("reproduce.py", *at[:-1], f"{name}/none", *plan),
            "plan, as it is": ("reproduce.py", *at, *plan),
            "--status": ("reproduce.py", "--status", "--out", name),
            "start Python, pandas": ("-c", "import bench.report"),
            "--report --no-plots": ("reproduce.py", "--report", "--no-plots", "--out", name),
        }
        print(f"{'':<30}{'wall s':>8}{'CPU s':>8}{'peak MB':>9}")
        for words, command in commands.items():
            cost = measure(*command)
            print(f"{words:<30}{cost.wall_s:>8.1f}{cost.cpu_s:>8.1f}{cost.peak_mb:>9.0f}", flush=True)


if __name__ == "__main__":
    main()
