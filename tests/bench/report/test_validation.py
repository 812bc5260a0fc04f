"""The report of runs with a validation split: nothing in it is selected on test data, and it says so."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from bench.report import compare, tables
from bench.report.curves import Curves
from bench.report.frames import collect, curves
from bench.report.plots.curves import curves as draw_curves
from tests.bench.report.report_cases import A, Grid, result

ONCE = "The test set was looked at once a run, after its last epoch: no epoch is selected on test data."


def watched(top1: float, seed: int, validation: int) -> dict:
    """A run of four epochs whose validation accuracy is a point above its test accuracy, and best at epoch 3."""
    made = result(top1, seed)
    made["config"]["data"]["validation"] = validation
    del made["metrics"]["top1_best"], made["metrics"]["best_epoch"]
    for row in made["curve"]:
        row["lr"] = 0.1
        at = row.pop("top1")
        row |= {"val_top1": at + 1 + (row["epoch"] == 3) * 1.5, "val_loss": 1.0} if validation else {}
    made["curve"][-1] |= {"top1": top1, "test_loss": 1.1}
    if validation:
        made["metrics"] |= {"val_top1_last": top1 + 1, "val_top1_best": top1 + 1.5, "best_epoch": 3}
    return made


def grid_of(validation: int) -> Grid:
    grid = Grid("brief", pairs=(A,))
    teacher = result(73.42) | {"curve": []}
    teacher["config"] |= {"method": "checkpoint", "data": {"dataset": "cifar100", "validation": validation}}
    grid.add("Teacher", "teacher", A, teacher)
    grid.add("Student", "student", A, watched(60.0, 0, validation), watched(60.4, 1, validation))
    grid.add("KD", "logit", A, watched(62.0, 0, validation), watched(62.4, 1, validation))
    return grid


@pytest.mark.parametrize("validation", [5000, 0])
def test_the_written_report(tmp_path: Path, validation: int):
    grid_of(validation).write(tmp_path, plots=True)
    text, page = (tmp_path / "table.md").read_text(), (tmp_path / "report.html").read_text()
    best = text.split("## Best epoch\n")[1].split("\n## ")[0]
    assert ONCE in best and "optimistically biased" not in text + page and "selected on test data: " not in text
    assert ("5,000 validation images" in best) == bool(validation)
    assert ("best − last, mean over 4 runs: +0.50 points" in best) == bool(validation)
    assert "62.20 ± 0.28" in text and ONCE in (tmp_path / "table.tex").read_text()
    assert ("63.50 on validation" in page) == ("Validation top-1 over epochs" in page) == bool(validation)
    assert "Test top-1 over epochs" not in page
    assert (tmp_path / "plots" / "curves.png").exists() == bool(validation)
    frame = pd.read_csv(tmp_path / "runs.csv").set_index("run_id")
    row = frame[frame.method == "kd"].iloc[0]
    assert pd.isna(row.top1_best) and row.validation == validation
    assert (row.val_top1_best, row.val_top1_last, row.best_epoch) == (61.5, 61.0, 3) or not validation
    assert row.data == ("cifar100 (5000 held out for validation)" if validation else "cifar100")


def test_a_curve_is_of_what_was_watched():
    grid = grid_of(5000)
    read = Curves(curves(grid.runs))
    run_id = next(run_id for run_id in grid.runs if "-student-" in run_id)
    assert read.top1(run_id) == {1: 58.0, 2: 59.0, 3: 61.5, 4: 61.0}
    assert draw_curves(collect(grid.spec, grid.runs), read).get_supylabel() == "Validation top-1 (%)"
    unwatched = grid_of(0)
    assert Curves(curves(unwatched.runs)).top1(run_id) == {}


def test_runs_watched_on_the_test_set_are_told_apart():
    """One run that was watched on the test set, and the table of its best epoch stands as ever."""
    grid = grid_of(5000)
    grid.add("FitNet", "feature", A, result(61.0))
    made = grid.report()
    assert tables.looked_at_once(made.results) == []
    assert "selected on test data" in tables.best_table(made.results).caption
    assert Curves(curves(grid.runs)).part(grid.runs) == "Test or validation"


def test_comparison_sees_another_validation_accuracy():
    ours, theirs = grid_of(5000), grid_of(5000)
    (run_id,) = (run_id for run_id in ours.runs if run_id.startswith("kd-") and "-s1-" in run_id)
    theirs.runs[run_id].result["metrics"]["val_top1_best"] += 0.02
    sides = [compare.Side(name, collect(g.spec, g.runs), g.runs) for name, g in (("a", ours), ("b", theirs))]
    assert [list(rerun.differs) for rerun in compare.reruns(*sides) if rerun.differs] == [["val_top1_best"]]
