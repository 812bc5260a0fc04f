from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bench import report, tables
from bench.cells import RunStatus, TableSpec
from bench.frames import DAMAGED, collect
from tests.bench.report_cases import GOLDEN, NOW, A, B, Grid, hand_made, result


@pytest.fixture
def written(tmp_path: Path) -> Path:
    grid = hand_made()
    report.write(tmp_path, grid.spec, grid.runs, plots=False, now=NOW)
    return tmp_path


@pytest.mark.parametrize("name", ["table.md", "table.tex"])
def test_golden(written: Path, name: str):
    assert (written / name).read_text(encoding="utf-8") == (GOLDEN / name).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("label", "pair", "expected"),
    [
        # By hand. FitNet: (68 + 68.5 + 69)/3 = 68.5, deviations -.5 0 .5, variance .5/2. RKD: two runs .4
        # apart, so .4/sqrt(2) = .28. KD: 71.2 and deviations -.2 .2 0. MLKD and SKD alike. One run: no ±.
        ("FitNet", A, "68.50 ± 0.50"),
        ("RKD", A, "70.20 ± 0.28 (2/3)¹"),
        # SKD - KD by seed: .4 .1 .4, mean .3, sd .173, so .3 ± 4.303 * .173/sqrt(3) = .3 ± .43: holds 0.
        ("KD", A, "71.20 ± 0.20†"),
        # SKD - MLKD: .3 .2 .1, .2 ± 4.303 * .1/sqrt(3) = .2 ± .248: holds 0; FitNet's 3.0 ± .99 does not.
        ("MLKD", A, "71.30 ± 0.20†"),
        ("SKD", A, "**71.50 ± 0.10**"),
        # On this pair SKD is exactly 1 above MLKD for every seed: separated.
        ("MLKD", B, "75.20 ± 0.20§"),
        ("Teacher", A, "71.50"),
        ("Student", A, "66.30 ± 0.30"),
        ("Student", B, "… running"),
        ("FitNet", B, "—"),
        ("RKD", B, "✗ failed¹"),
        ("KD", B, "⊘ blocked²"),
        (r"A\|B_c &amp; 50% τ", A, "70.90"),
        (r"A\|B_c &amp; 50% τ", B, "✗ failed³"),
        ("SDD", A, "… interrupted"),
        ("SDD", B, ""),
    ],
)
def test_cells_by_hand(written: Path, label: str, pair: tuple[str, str], expected: str):
    first_table = (written / "table.md").read_text(encoding="utf-8").split("## Best epoch")[0]
    (row,) = [line for line in first_table.splitlines() if line.startswith(f"| {label} ")]
    entries = [entry.strip() for entry in row.replace(r"\|", "\0").strip("|").split("|")]
    assert entries[1 + (A, B).index(pair)] == expected


def test_table_csv_has_a_row_for_every_cell(written: Path):
    grid, frame = hand_made(), pd.read_csv(written / "table.csv")
    assert len(frame) == len(grid.cells)
    by_cell = frame.set_index(["label", "teacher"])
    fitnet = by_cell.loc["FitNet", "resnet56"]
    assert (fitnet.mean_last, fitnet.std_last, fitnet.mean_best) == (68.5, 0.5, 68.75)
    assert (fitnet.state, fitnet.n, fitnet.wanted) == ("complete", 3, 3)
    rkd = by_cell.loc["RKD", "resnet56"]
    assert (rkd.state, rkd.n, rkd.wanted, rkd.n_failed) == ("partial", 2, 3, 1)
    assert rkd.std_last == pytest.approx(np.std([70.0, 70.4], ddof=1), abs=1e-4)
    assert set(frame.label[frame.best]) == {"SKD"} and set(frame.label[frame.unseparated]) == {"KD", "MLKD"}
    column = "StreamLined README, May 2025 (statistic not stated)"
    kd = by_cell.loc["KD", "resnet56"]
    assert kd[f"published: {column}"] == 69.34 and kd[f"difference: {column}"] == pytest.approx(1.86)
    assert np.isnan(by_cell.loc["KD", "wrn_40_2"][f"difference: {column}"])


def test_runs_csv_has_a_row_for_every_run(written: Path):
    grid, frame = hand_made(), pd.read_csv(written / "runs.csv")
    assert sorted(frame.run_id) == sorted(grid.runs)
    damaged = frame[frame.run_id.str.startswith("abc50-wrn")].iloc[0]
    assert (damaged.state, damaged.reason) == ("failed", DAMAGED)
    one = frame[frame.run_id.str.startswith("skd-resnet56")].iloc[1]
    assert (one.seed, one.top1_last, one.precision, one.torch, one.epochs) == (1, 71.5, "fp32", "2.8.0", 4)
    assert one.protocol == "streamlined v1" and one.params == '{"temperature": 4}'


# ---- damaged and odd input


@pytest.mark.parametrize(
    "broken",
    [
        None,
        {},
        {"metrics": None},
        {"metrics": {}},
        {"metrics": []},
        {"metrics": {"top1_last": "73.1"}},
        {"metrics": {"top1_last": True}},
        {"metrics": {"top1_last": float("nan")}},
        {"metrics": {"top1_last": 101.0}},
        "not a dict",
    ],
)
def test_a_damaged_result_is_a_failure_and_enters_no_mean(broken, tmp_path: Path):
    grid = Grid(pairs=(A,))
    grid.add("KD", "logit", A, 71.0, 72.0, 73.0)
    last = grid.cells[0].run_ids[2]
    grid.runs[last] = RunStatus(last, "done", "", broken)
    (summary,) = collect(grid.spec, grid.runs).cells
    assert (summary.last.mean, summary.last.n, summary.state) == (71.5, 2, "partial")
    report.write(tmp_path, grid.spec, grid.runs, plots=False, now=NOW)
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "71.50 ± 0.71 (2/3)¹" in text and f"failed: {DAMAGED}" in text.replace(r"\_", "_")


def test_everything_but_the_metrics_may_be_missing_or_odd(tmp_path: Path):
    grid = Grid(pairs=(A,))
    bare = {"metrics": {"top1_last": 71}}
    odd = result(72.0, 1) | {
        "config": {"seed": "x", "teacher": None, "protocol": 3, "data": [], "params": None}
    }
    odd |= {"provenance": None, "timing": 4, "curve": [None, {"epoch": 1}, {"epoch": 2, "top1": "x"}]}
    grid.add("KD", "logit", A, bare, odd, result(73.0, 2))
    assert report.write(tmp_path, grid.spec, grid.runs, now=NOW)
    (summary,) = collect(grid.spec, grid.runs).cells
    assert summary.last.mean == 72.0 and summary.by_seed() == {
        0: 71.0,
        1: 72.0,
        2: 73.0,
    }  # seeds from the run ids
    assert summary.best.n == 2


def test_results_of_unfinished_runs_are_ignored():
    grid = Grid(pairs=(A,))
    grid.add("KD", "logit", A, 71.0, 72.0)
    second = grid.cells[0].run_ids[1]
    grid.runs[second] = RunStatus(second, "running", "epoch 3/4", result(99.0, 1))
    (summary,) = collect(grid.spec, grid.runs).cells
    assert (summary.last.mean, summary.last.n) == (71.0, 1)


# ---- honest degradation


def states(grid: Grid, state: str) -> dict[str, RunStatus]:
    return {run_id: RunStatus(run_id, state, "why") for run_id in grid.runs}


@pytest.mark.parametrize("state", ["failed", "blocked", "running", "interrupted", "missing", "gone mad"])
def test_a_grid_without_a_finished_run(state: str, tmp_path: Path):
    grid = hand_made()
    files = report.write(tmp_path, grid.spec, states(grid, state), now=NOW)
    assert sorted(path.name for path in files) == ["runs.csv", "table.csv", "table.md", "table.tex"]
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "±" not in text.split("- ")[0].split("|", 1)[1] and "**" not in text and "nothing is bold" in text
    assert pd.read_csv(tmp_path / "table.csv").mean_last.isna().all()


def test_no_runs_known_at_all(tmp_path: Path):
    grid = hand_made()
    report.write(tmp_path, grid.spec, {}, now=NOW)
    assert set(pd.read_csv(tmp_path / "table.csv").state) == {"missing"}
    assert "Runs: 43 missing; 43 wanted." in (tmp_path / "table.md").read_text(encoding="utf-8")


def test_an_empty_grid(tmp_path: Path):
    spec = TableSpec("none", "sprint", 1, (), ())
    assert len(report.write(tmp_path, spec, {}, now=NOW)) == 4
    assert "Runs: none; 0 wanted." in report.terminal(spec, {}, now=NOW)


def test_a_protocol_without_published_numbers_says_so_and_subtracts_nothing(tmp_path: Path):
    grid = hand_made()
    grid.protocol = "sprint"
    report.write(tmp_path, grid.spec, grid.runs, plots=False, now=NOW)
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "No published numbers exist under protocol sprint" in text
    assert "standard, standard-480, standard-sd-kd, streamlined, streamlined-revised" in text
    assert "ImageNet" not in text and tables.UNSTATED not in text
    assert not [name for name in pd.read_csv(tmp_path / "table.csv").columns if "difference" in name]


def test_runs_outside_the_table_are_counted_apart(tmp_path: Path):
    grid = Grid(pairs=(A,))
    grid.add("KD", "logit", A, 71.0)
    grid.runs["vanilla-vgg13-s0-12345678"] = RunStatus("vanilla-vgg13-s0-12345678", "failed", "no disk")
    report.write(tmp_path, grid.spec, grid.runs, plots=False, now=NOW)
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "Runs: 1 done; 1 wanted." in text and "not part of this table: 1." in text
    frame = pd.read_csv(tmp_path / "runs.csv").set_index("run_id")
    assert not frame.loc["vanilla-vgg13-s0-12345678", "in_table"]


# ---- files


def test_writing_is_whole_or_not_at_all(written: Path, monkeypatch: pytest.MonkeyPatch):
    before = {path.name: path.read_bytes() for path in written.iterdir()}

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    grid = Grid(pairs=(A,))
    with pytest.raises(OSError, match="no space"):
        report.write(written, grid.spec, grid.runs, plots=False, now=NOW)
    assert {path.name: path.read_bytes() for path in written.iterdir()} == before


def test_the_same_results_give_the_same_files(tmp_path: Path):
    grid = Grid(pairs=(A,))
    grid.add("KD", "logit", A, 71.0, 72.0)
    first = {path: path.read_bytes() for path in report.write(tmp_path, grid.spec, grid.runs, now=NOW)}
    reread = {
        run_id: replace(run, result=json.loads(json.dumps(run.result))) for run_id, run in grid.runs.items()
    }
    second = {path: path.read_bytes() for path in report.write(tmp_path, grid.spec, reread, now=NOW)}
    assert first == second and len(first) == 4 + 3 * 2


def test_terminal_is_plain_text_with_the_same_numbers():
    grid = hand_made()
    text = report.terminal(grid.spec, grid.runs, now=NOW)
    for part in (
        "*71.50 ± 0.10",
        "70.20 ± 0.28 (2/3)¹",
        "⊘ blocked²",
        "→ wrn_16_2",
        "A|B_c & 50% τ",
        "26 done",
    ):
        assert part in text
    assert "\\" not in text and "**" not in text
