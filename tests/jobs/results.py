"""What has to be equal of two results folders, however their runs were done."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

import torch

from bench import experiment, store
from bench.run import Run
from jobs import worker
from jobs.outcomes import DONE


def essence(out: Path) -> dict:
    """Everything of all results but clocks and places, and the weights."""
    found = {}
    for path in sorted(out.glob("runs/*/result.json")):
        folder = store.RunFolder(path.parent)
        result = store.read_result(folder)
        curve = [{key: value for key, value in row.items() if key != "wall_s"} for row in result["curve"]]
        weights = store.read_torch(folder.weights)["model"]
        found[folder.run_id] = result["config"], result["metrics"], curve, {k: v.tolist() for k, v in weights.items()}
    return found


def do_here(out: Path, runs: Iterable[Run]) -> dict:
    """The results of runs done in this process, without interruption."""
    said: list[str] = []
    for run in runs:
        site = experiment.Site(out, torch.device("cpu"))
        worker.do([(run, None)], site, threading.Event(), lambda _, outcome, message: said.append(outcome))
    assert set(said) == {DONE}
    return essence(out)
