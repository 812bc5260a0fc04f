"""Real results with the time that is left: `reproduce.py` seed by seed, then packed into parts that can be carried."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from bench import store
from bench.measure.acceptance import WEIGHTS_VARIABLE
from bench.measure.gpu.facts import Facts
from bench.surroundings.commandline import STOPPED_EARLY

ROOT = Path(__file__).parents[3]
PACK = "sprint.tar.gz"
PART_BYTES = 15 << 20  # of a part of the pack
PACK_MIB = 58  # in all: four parts
MARGIN_S = 30.0  # for starting, ending a step, the report and the pack, beside the time that runs have
LEAST_S = 10.0  # of training that a call is worth


@dataclass(frozen=True)
class Sprint:
    """What is trained, and where it lies."""

    grid: str
    only: str  # beside the seed, "" for all
    seeds: tuple[int, ...]
    results: Path  # the results folder, apart from `--out`: it has many files
    out: Path
    device: str
    precision: str
    slots: int
    data: Path | None
    weights: Path | None


def run(sprint: Sprint, facts: Facts, seconds: float) -> str:
    """Train for at most `seconds`, pack after each seed; returns how it ended."""
    until = time.monotonic() + seconds
    for seed in sprint.seeds:
        left = until - time.monotonic() - MARGIN_S
        if left < LEAST_S:
            return "out of time"
        command = [sys.executable, str(ROOT / "reproduce.py"), "--grid", sprint.grid, "--out", str(sprint.results)]
        command += ["--only", f"seed={seed}" + (f",{sprint.only}" if sprint.only else ""), "--no-plots"]
        command += ["--device", sprint.device, "--precision", sprint.precision, "--slots", str(sprint.slots)]
        command += ["--executor", "local", "--time-budget", f"{left / 60:.3f}"]
        if sprint.data:
            command += ["--data", str(sprint.data)]
        status = _call(command, until - time.monotonic() - MARGIN_S / 3, sprint.weights)
        facts.add("sprint", seed=seed, slots=sprint.slots, precision=sprint.precision, status=status)
        _tell(sprint.results, facts)
        facts.add("pack", **_pack(sprint, until - time.monotonic()))
        if status == STOPPED_EARLY:
            return "out of time"
        if status == 2 or isinstance(status, str):
            return f"failed: reproduce.py {status}"
    return "done"


def _call(command: list[str], seconds: float, weights: Path | None = None) -> int | str:
    """The exit status, or what became of it."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, **({WEIGHTS_VARIABLE: str(weights)} if weights else {})}
    try:
        return subprocess.run(command, env=environment, timeout=max(5.0, seconds)).returncode
    except subprocess.TimeoutExpired:
        return f"killed after {seconds:.0f} s"


def _tell(results: Path, facts: Facts) -> None:
    """A fact on each run that is done or has failed and was not told of."""
    told = {fact["run_id"] for fact in facts.read() if fact["fact"] == "result" and "run_id" in fact}
    folders = sorted((results / "runs").glob("*/")) if (results / "runs").is_dir() else []
    for folder in (store.run_folder(results, path.name) for path in folders if path.name not in told):
        try:
            result, error = store.read_result(folder, curve=False), store.read_json(folder.error)
        except store.Damaged as damage:
            result, error = None, {"error": str(damage)}
        if result:
            config, timing = result.get("config", {}), result.get("timing", {})
            known = {name: config.get(name) for name in ("method", "student", "seed", "precision")}
            known |= {"top1": result["metrics"]["top1_last"], "train_s": timing.get("train_s")}
            facts.add("result", run_id=folder.run_id, **known)
        elif error:
            facts.add("result", run_id=folder.run_id, error=str(error.get("message") or error.get("error"))[:200])


def _pack(sprint: Sprint, seconds: float) -> dict:
    """Write the results folder into parts of at most PART_BYTES in `out`."""
    whole = sprint.out / PACK
    command = [sys.executable, "-m", "jobs.pack", str(sprint.results), str(whole), "--max-mib", str(PACK_MIB)]
    status = _call(command, seconds)
    if status not in (0, 1) or not whole.exists():
        return {"error": f"jobs.pack: {status}"}
    for old in sprint.out.glob(f"{PACK}.part*"):
        old.unlink()
    size, parts = whole.stat().st_size, 1
    if size > PART_BYTES:
        with open(whole, "rb") as file:
            parts = 0
            while content := file.read(PART_BYTES):
                whole.with_name(f"{PACK}.part{parts}").write_bytes(content)
                parts += 1
        whole.unlink()
    return {"mib": round(size / 2**20, 1), "parts": parts, "complete": status == 0}
