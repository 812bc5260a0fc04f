from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from bench.cells import RunStatus
from bench.report import compare
from bench.report.compare import Side
from bench.report.frames import collect
from tests.bench.report.report_cases import NOW, A, B, Grid, hand_made, result


def side(grid: Grid, name: str = "here") -> Side:
    return Side(name, collect(grid.spec, grid.runs), grid.runs)


def other_ids(grid: Grid) -> Grid:
    """The same results under other run ids, as another protocol or precision would have."""
    swap = {run_id: run_id[:-8] + "ffffffff" for run_id in grid.runs}
    made = Grid(grid.protocol, grid.pairs)
    for cell in grid.cells:
        made.cells.append(type(cell)(**{**vars(cell), "run_ids": tuple(swap[i] for i in cell.run_ids)}))
    made.runs = {swap[i]: RunStatus(swap[i], run.state, run.reason, run.result) for i, run in grid.runs.items()}
    return made


def one(*states: object) -> Grid:
    grid = Grid(pairs=(A,))
    grid.add("KD", "logit", A, *states)
    return grid


def difference(ours: Grid, theirs: Grid) -> compare.Difference:
    (mine,), (other,) = (collect(grid.spec, grid.runs).cells for grid in (ours, theirs))
    return compare.difference(mine, other)


X, Y = (71.4, 71.5, 71.9), (71.0, 71.4, 71.2)


def test_the_same_runs_are_paired():
    found = difference(one(*X), one(*Y))
    theirs = stats.ttest_rel(X, Y).confidence_interval(0.95)
    assert (found.interval.low, found.interval.high) == pytest.approx(tuple(theirs))
    assert found.mean == pytest.approx(np.mean(X) - np.mean(Y)) and found.how == "paired 3"


def test_only_runs_that_both_have_are_paired():
    found = difference(one(*X, "missing", 99.0), one(Y[0], "failed: no disk", Y[2], 1.0, "missing"))
    theirs = stats.ttest_rel([X[0], X[2]], [Y[0], Y[2]]).confidence_interval(0.95)
    assert (found.interval.low, found.interval.high) == pytest.approx(tuple(theirs)) and found.how == "paired 2"


def test_other_runs_are_independent_samples():
    found = difference(one(*X), other_ids(one(*Y, 70.0)))
    theirs = stats.ttest_ind(X, (*Y, 70.0), equal_var=False).confidence_interval(0.95)
    assert (found.interval.low, found.interval.high) == pytest.approx(tuple(theirs)) and found.how == "Welch 3, 4"


@pytest.mark.parametrize(
    ("ours", "theirs", "mean", "interval"),
    [
        (one(71.0), one(70.5), 0.5, None),
        (one(71.0), other_ids(one(70.5)), 0.5, None),
        (one(71.0, 72.0), other_ids(one(70.5)), 1.0, None),
        (one("missing"), one(70.5), None, None),
        (one(71.0), one("failed: no disk"), None, None),
        (one(*X), one(*X), 0.0, (0.0, 0.0)),
        (one(71.0, 71.0), other_ids(one(70.5, 70.5)), 0.5, (0.5, 0.5)),
    ],
)
def test_one_run_and_no_spread(ours: Grid, theirs: Grid, mean: float | None, interval: tuple | None):
    found = difference(ours, theirs)
    assert found.mean == mean
    assert (found.interval and (found.interval.low, found.interval.high)) == interval


def test_runs_done_again_are_equal_or_differ_by_so_much():
    ours, theirs = one(*X), one(X[0], result(71.48, 1), result(X[2], 2) | {"curve": []})
    theirs.runs[theirs.cells[0].run_ids[2]].result["metrics"]["test_loss_last"] = 1.1 + 1e-15
    found = compare.reruns(side(ours), side(theirs))
    assert [list(rerun.differs) for rerun in found] == [[], ["top1_last", "top1_best"], ["test_loss_last"]]
    assert found[1].differs["top1_last"] == (71.5, 71.48)
    text = compare.markdown(side(ours), side(theirs, "there"), NOW)
    assert (
        "Done on both sides: 3 runs. Equal in every metric, the test loss to its last digit: 1. Different: 2." in text
    )
    assert re.search(r"-s1-00000001: top1_last 71.5 / 71.48 \(\+0.02\), top1_best", text)


def test_the_whole_comparison_as_it_is_printed():
    ours, theirs = Grid(pairs=(A, B)), Grid(pairs=(A, B))
    ours.add("Teacher", "teacher", A, 71.5)
    theirs.add("Teacher", "teacher", A, 71.5)
    ours.add("KD", "logit", A, 71.4, 71.5, 71.6)
    theirs.add("KD", "logit", A, 71.2, 71.2, 71.2)  # .2 .3 .4: .3 ± 4.303 * .1 / sqrt(3) = .248
    ours.add("KD", "logit", B, 75.0)
    theirs.add("KD", "logit", B, "failed: no disk")
    ours.add("SKD", "ours", B, 76.0)
    theirs.add("MLKD", "logit", A, 71.0)
    text = compare.markdown(side(ours, "a/one"), side(theirs, "b/two"), NOW)
    assert text.startswith("# Comparison: a/one beside b/two\n\nWhat is compared.\n\n")
    table = "\n".join(line for line in text.split("## Cell by cell")[1].splitlines() if line.startswith("|"))
    assert (
        table
        == """\
| Method                |          one |          two |      diff |         interval |      how |
|:----------------------|-------------:|-------------:|----------:|-----------------:|---------:|
| *resnet56 → resnet20* |              |              |           |                  |          |
| Teacher               |        71.50 |        71.50 |      0.00 |                — | paired 1 |
| KD                    | 71.50 ± 0.10 | 71.20 ± 0.00 | **+0.30** | \\[+0.05, +0.55\\] | paired 3 |
| *wrn_40_2 → wrn_16_2* |              |              |           |                  |          |
| KD                    |        75.00 |     ✗ failed |         — |                — |          |"""
    )
    assert "- diff: one − two." in text and "ours" not in text and "theirs" not in text
    assert "- Over 2 cells: mean difference +0.15, mean absolute difference 0.15." in text
    assert "- Bold: the interval leaves out 0: 1 of 1;" in text
    assert "- **only one**: SKD on wrn_40_2 → wrn_16_2" in text
    assert "- **only two**: MLKD on resnet56 → resnet20" in text
    assert "Done on both sides: 4 runs." in text and "Different: 3." in text
    assert text.endswith("Written 2026-01-02 03:04 UTC.\n")


def test_the_header_says_what_differs():
    ours, theirs = Grid(pairs=(A,)), Grid("standard", pairs=(A,))
    ours.add("KD", "logit", A, result(71.0, git_commit="1" * 40))
    theirs.add("KD", "logit", A, result(71.0, device="cpu", torch="2.9.0", method_sha256="b" * 64, git_commit="2" * 40))
    text = compare.markdown(side(ours), side(other_ids(theirs)), NOW)
    rows = dict(re.findall(r"^\| (\w[\w ]*?) +\|.*\| +(\w[^|]*?|) +\|$", text.split("## Cell by cell")[0], re.M))
    different = {name for name, said in rows.items() if said.startswith("differ")}
    assert different == {"Protocol", "PyTorch", "Device", "Commit", "Method sources"}
    assert rows["Method sources"] == "differ: kd"
    assert "The protocols differ" in text
    same = compare.markdown(side(ours), side(ours), NOW)
    assert "differ" not in same.split("## Cell by cell")[0]


def test_a_folder_beside_itself_and_beside_nothing():
    grid, empty = hand_made(), Grid(pairs=(A, B))
    text = compare.markdown(side(grid), side(grid), NOW)
    assert "Different: 0." in text and "**only" not in text and "mean absolute difference 0.00" in text
    text = compare.markdown(side(grid), side(empty), NOW)
    assert "No run is done on both sides." in text and text.count("**only first**") == 9
    assert compare.markdown(side(empty), side(empty), NOW)


def test_terminal_shortens_long_lists(tmp_path: Path):
    many = Grid(pairs=(A,))
    for i in range(30):
        many.add(f"M{i}", "logit", A, 71.0)
    again = Grid(pairs=(A,))
    for i in range(30):
        again.add(f"M{i}", "logit", A, 71.1)
    text = compare.terminal(side(many), side(again), 80)
    assert "and 11 more, see compare.md" in text and "Different: 30." in text
    assert "more, see" not in compare.markdown(side(many), side(again), NOW)
    assert all(len(line) <= 80 for line in text.splitlines())
