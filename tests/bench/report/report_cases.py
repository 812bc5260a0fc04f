"""A hand-made set of results for the report's tests: every kind of cell, numbers a reader can check.

`python -m tests.bench.report_cases` writes the golden files anew; read the difference before keeping it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bench.cells import Cell, RunStatus, TableSpec
from bench.report import writing as report

GOLDEN = Path(__file__).with_name("golden")
NOW = datetime(2026, 1, 2, 3, 4, tzinfo=timezone.utc)
PAIRS = (("resnet56", "resnet20"), ("wrn_40_2", "wrn_16_2"))
A, B = PAIRS
MEMORY = "CUDA out of memory; see runs/x_y/log.txt, then --retry-failed"


def result(top1: Any, seed: int = 0, *, best: Any = None, epochs: int = 4, **changes: str) -> dict[str, Any]:
    """A result.json, parsed; `changes`: device, torch, method_sha256, precision, protocol, dataset, git_commit."""
    usable = isinstance(top1, float)
    rise = [top1 - epochs + epoch for epoch in range(1, epochs + 1)] if usable else []
    curve = [{"epoch": i, "train_loss": 1.0, "top1": value} for i, value in enumerate(rise, start=1)]
    return {
        "schema": 1,
        "config": {
            "method": "kd",
            "params": {"temperature": 4},
            "student": "resnet20",
            "teacher": {"arch": "resnet56", "run_id": "vanilla-resnet56-s0-00000000"},
            "data": {"dataset": changes.get("dataset", "cifar100"), "train_images": None},
            "protocol": {"name": changes.get("protocol", "streamlined"), "version": 1},
            "precision": changes.get("precision", "fp32"),
            "train": {"epochs": epochs},
            "seed": seed,
        },
        "metrics": {
            "top1_last": top1,
            "top1_best": best if best is not None or not usable else top1 + 0.25,
            "best_epoch": 3,
            "top5_last": 92.0,
            "test_loss_last": 1.1,
        },
        "curve": curve,
        "timing": {"train_s": 10.0},
        "provenance": {
            "versions": {"python": "3.11.7", "torch": changes.get("torch", "2.8.0"), "torchvision": "0.23.0"},
            "device": changes.get("device", "NVIDIA H200"),
            "git_commit": changes.get("git_commit", "0123456789abcdef"),
            "git_dirty": False,
            "method_sha256": changes.get("method_sha256", "a" * 64),
        },
    }


class Grid:
    """Collects cells and the states of their runs."""

    def __init__(self, protocol: str = "streamlined", pairs: tuple[tuple[str, str], ...] = PAIRS) -> None:
        self.name, self.protocol, self.pairs = "hand", protocol, pairs
        self.cells: list[Cell] = []
        self.runs: dict[str, RunStatus] = {}

    def add(self, label: str, kind: str, pair: tuple[str, str], *states: float | str | dict[str, Any]) -> None:
        """One cell. By seed, a state is an accuracy, a result, or "missing", "failed: why" and the like."""
        role, group = (kind, "") if kind in ("teacher", "student") else ("method", kind)
        plain = "".join(char for char in label.lower() if char.isalnum() and char.isascii())
        method = plain if role == "method" else "vanilla"
        ids = tuple(f"{method}-{'-'.join(pair)}-{role}-s{seed}-0000000{seed}" for seed in range(len(states)))
        self.cells.append(Cell(label, role, group, method, *pair, ids))
        for seed, (run_id, state) in enumerate(zip(ids, states, strict=True)):
            if isinstance(state, str):
                name, _, reason = state.partition(": ")
                self.runs[run_id] = RunStatus(run_id, name, reason)
            else:
                parsed = state if isinstance(state, dict) else result(state, seed)
                self.runs[run_id] = RunStatus(run_id, "done", "", parsed)

    @property
    def spec(self) -> TableSpec:
        return TableSpec(self.name, self.protocol, 1, self.pairs, tuple(self.cells))

    def report(self, runs: Mapping[str, RunStatus] | None = None, out: Path | None = None) -> report.Report:
        return report.make(self.spec, self.runs if runs is None else runs, out, NOW)

    def write(self, out: Path, runs: Mapping[str, RunStatus] | None = None, *, plots: bool = False) -> list[Path]:
        runs = self.runs if runs is None else runs
        return report.write(out, self.report(runs), runs, plots=plots)

    def save(self, out: Path) -> None:
        """A results folder: plan.json and the files of the runs. Teachers are cells, nothing depends on them here."""
        for run_id, run in self.runs.items():
            folder = out / "runs" / run_id
            folder.mkdir(parents=True)
            if run.state == "done":
                (folder / "result.json").write_text(json.dumps({"run_id": run_id} | run.result))
            elif run.state == "failed":
                (folder / "error.json").write_text(json.dumps({"message": run.reason}))
            elif run.state == "interrupted":
                (folder / "last.pt").write_bytes(b"x")
            else:
                folder.rmdir()
        plan = {
            "grid": self.name,
            "protocol": {"name": self.protocol, "version": 1},
            "pairs": self.pairs,
            "cells": [asdict(cell) for cell in self.cells],
            "runs": {run_id: {"seed": 0, "teacher": None} for cell in self.cells for run_id in cell.run_ids},
        }
        (out / "plan.json").write_text(json.dumps(plan))


def hand_made() -> Grid:
    grid = Grid()
    # Out of printing order on purpose: methods come below the baselines, feature-based before logit-based ones.
    grid.add("SKD", "ours", A, 71.4, 71.5, 71.6)
    grid.add("SKD", "ours", B, 76.0, 76.2, 76.4)
    grid.add("Teacher", "teacher", A, 71.5)
    grid.add("Teacher", "teacher", B, 75.0)
    grid.add("Student", "student", A, 66.0, 66.3, 66.6)
    grid.add("Student", "student", B, "running: epoch 3/250", "missing", "missing")
    grid.add("FitNet", "feature", A, 68.0, 68.5, 69.0)
    grid.add("FitNet", "feature", B, "missing", "missing", "missing")
    grid.add("RKD", "feature", A, 70.0, 70.4, f"failed: {MEMORY}")
    grid.add("RKD", "feature", B, *[f"failed: {MEMORY}"] * 3)
    grid.add("KD", "logit", A, 71.0, 71.4, 71.2)
    grid.add("KD", "logit", B, *["blocked: teacher vanilla-wrn_40_2-s0 failed"] * 3)
    grid.add("MLKD", "logit", A, 71.1, 71.3, 71.5)
    grid.add("MLKD", "logit", B, 75.0, 75.2, result(75.4, 2, device="cpu", method_sha256="b" * 64))
    grid.add("A|B_c & 50% τ", "logit", A, 70.9)
    grid.add("A|B_c & 50% τ", "logit", B, result(None))
    grid.add("SDD", "logit", A, "interrupted: epoch 130/250", "missing", "missing")
    return grid


def every_state() -> Grid:
    """Two seeds a cell: complete, tied, partial, failed, blocked, running, interrupted, missing, damaged, mixed."""
    grid = Grid()
    grid.add("Teacher", "teacher", A, 71.5)
    grid.add("Teacher", "teacher", B, "failed: loss is NaN at step 7")
    grid.add("Student", "student", A, 66.0, 66.4)
    grid.add("Student", "student", B, "missing", "missing")
    grid.add("FitNet", "feature", A, 68.0, "missing")
    grid.add("FitNet", "feature", B, "failed: no disk", "failed: no disk")
    grid.add("RKD", "feature", A, 70.0, 70.2)
    grid.add("RKD", "feature", B, *["blocked: its teacher failed"] * 2)
    grid.add("KD", "logit", A, 71.0, 71.2)
    grid.add("KD", "logit", B, 72.0, result(72.4, 1, torch="2.9.0", precision="bf16"))
    grid.add("DKD", "logit", A, 71.2, 71.0)
    grid.add("DKD", "logit", B, "running: epoch 3/4", "interrupted: epoch 2/4")
    grid.add("SKD", "ours", A, 70.5, 71.3)
    grid.add("SKD", "ours", B, "missing: result.json is damaged (JSONDecodeError), will be set aside", 75.0)
    return grid


def main() -> None:
    grid = hand_made()
    with tempfile.TemporaryDirectory() as folder:
        grid.write(Path(folder))
        for name in ("table.md", "table.tex", "latex/results.tex"):
            (GOLDEN / Path(name).name).write_bytes((Path(folder) / name).read_bytes())


if __name__ == "__main__":
    main()
