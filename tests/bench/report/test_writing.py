from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bench.cells import RunStatus, TableSpec
from bench.report import markup, published_tables, tables
from bench.report import writing as report
from bench.report.frames import DAMAGED, collect
from bench.report.ranking import BOLD_RULE, UNSEPARATED_RULE
from bench.surroundings.sources import OTHER
from tests.bench.report.report_cases import GOLDEN, NOW, A, B, Grid, every_state, hand_made, result

FILES = {"table.md", "table.tex", "table.csv", "runs.csv", "published.csv", "claims.csv", "report.html"}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    grid = hand_made()
    grid.write(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["table.md", "table.tex", "latex/results.tex"])
def test_golden(written: Path, name: str):
    assert (written / name).read_text(encoding="utf-8") == (GOLDEN / Path(name).name).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("label", "pair", "expected"),
    [
        # By hand. FitNet: (68 + 68.5 + 69)/3 = 68.5, deviations -.5 0 .5, variance .5/2. RKD: two runs .4
        # apart, so .4/sqrt(2) = .28. KD: 71.2 and deviations -.2 .2 0. MLKD and SKD alike. One run: no ±.
        ("FitNet", A, "68.50 ± 0.50"),
        ("RKD", A, "70.20 ± 0.28 (2/3)¹"),
        # SKD - KD is .3 and SKD - FitNet 3.0. Six rows, one with two seeds, have 9 degrees of freedom and a pooled
        # deviation of about .2: with q = 4.76 for five methods, differences up to about .55 are not separated.
        ("KD", A, "71.20 ± 0.20†"),
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
    first_table = (written / "table.md").read_text(encoding="utf-8").split("## Over all pairs")[0]
    (row,) = [line for line in first_table.splitlines() if line.startswith(f"| {label} ")]
    entries = [entry.strip() for entry in row.replace(r"\|", "\0").strip("|").split("|")]
    assert entries[1 + (A, B).index(pair)] == expected


def test_the_whole_table_as_it_is_printed():
    # By hand: Student .4/sqrt(2) = .28; KD and DKD tie at 71.10. Five rows with two seeds have four degrees of freedom;
    # half the differences of the seeds, .2 .1 .1 -.1 .4, are .14 in the mean, so the squares of what is left add up to
    # 2 * .132 and the pooled variance is .066. KD - RKD is 1.0, and takes 5.757 (q for four methods) * .257 / sqrt(2) =
    # 1.05 even by that. On the other pair no two methods are complete: nothing is bold.
    expected = f"""\
Top-1 accuracy (%) at the last epoch, mean ± std over seeds (grid hand, protocol streamlined v1).

| Method          |   resnet56 → resnet20 |   wrn_40_2 → wrn_16_2 |
|:----------------|----------------------:|----------------------:|
| Teacher         |                 71.50 |             ✗ failed¹ |
| Student         |          66.20 ± 0.28 |                     — |
| *Feature-based* |                       |                       |
| FitNet          |           68.00 (1/2) |             ✗ failed² |
| RKD             |         70.10 ± 0.14† |            ⊘ blocked³ |
| *Logit-based*   |                       |                       |
| KD              |      **71.10 ± 0.14** |         72.20 ± 0.28§ |
| DKD             |      **71.10 ± 0.14** |             … running |
| SKD             |         70.90 ± 0.57† |          75.00 (1/2)⁴ |

- ¹ failed: loss is NaN at step 7 (vanilla-wrn_40_2-wrn_16_2-teacher-s0-00000000)
- ² failed: no disk (fitnet-wrn_40_2-wrn_16_2-method-s0-00000000, fitnet-wrn_40_2-wrn_16_2-method-s1-00000001)
- ³ blocked: its teacher failed (rkd-wrn_40_2-wrn_16_2-method-s0-00000000, rkd-wrn_40_2-wrn_16_2-method-s1-00000001)
- ⁴ missing: result.json is damaged (JSONDecodeError), will be set aside (skd-wrn_40_2-wrn_16_2-method-s0-00000000)
- § not one measurement, its runs mix PyTorch versions (2.8.0, 2.9.0); precisions (bf16, fp32): \
KD on wrn_40_2 → wrn_16_2.
- Sample standard deviation (ddof 1) over seeds; a single run has none. (n/m): n of m wanted runs have finished. \
Only finished runs enter a mean. —: not started.
- {BOLD_RULE}
- † {UNSEPARATED_RULE} (4 degrees of freedom).
"""
    made = every_state().report()
    assert markup.markdown(tables.last_table(made.results, made.ranking)) + "\n" == expected


def test_best_epochs_beside_what_they_add():
    grid = Grid(pairs=(A, B))
    grid.add("KD", "logit", A, result(71.0, 0, best=71.1), result(72.0, 1, best=72.5))  # +0.1 and +0.5
    grid.add("KD", "logit", B, result(70.0, 0, best=70.0), "missing")
    grid.add("DKD", "logit", A, result(70.0, best="?"), result(70.0, 1, best=70.8))  # one best epoch is unknown
    grid.add("DKD", "logit", B, "failed: no disk")
    table = tables.best_table(grid.report().results)
    ((_, lines),) = table.sections
    assert [[entry.body for entry in line.entries] for line in lines] == [
        ["71.80 ± 0.99", "+0.30", "70.00 (1/2)", "0.00"],
        ["70.80 (1/2)", "+0.80", "✗ failed", ""],
    ]
    notes = [note.body for note in table.notes]
    assert "selected on test data" in table.caption and notes[0].startswith("The epoch is chosen by the test accuracy")
    assert notes[1] == "Best − last, mean over 3 cells: +0.37 points, from 0.00 to +0.80."
    assert notes[-1] == "Finished runs without a recorded best epoch, left out here: 1."


def test_over_all_pairs():
    made = hand_made().report()
    table = tables.aggregate_table(made.results, made.aggregates)
    rows = {line.label: [entry.body for entry in line.entries] for _, lines in table.sections for line in lines}
    # By hand, on the one pair whose Student row is finished, gains by seed: SKD 5.4 5.2 5.0, 5.2 ± 4.303 * .2 / sqrt(3)
    # = .497; the teacher is 71.5 - 66.3 = 5.2 above the Student row, so all of the gap is closed.
    assert rows["SKD"][:4] == ["1/2", "+5.20", "[+4.70, +5.70]", "100 %"]
    assert rows["A|B_c & 50% τ"] == ["1/2", "+4.90", "—", "89 %", "—"]  # 70.9 - 66.0 by seed 0, 4.9 / 5.5
    assert "RKD" not in rows  # unfinished


def test_claims_stand_in_every_text(written: Path):
    made = hand_made().report()
    verdicts = made.verdicts
    text, frame = (written / "table.md").read_text(encoding="utf-8"), pd.read_csv(written / "claims.csv")
    assert len(verdicts) == len(frame) > 1
    for verdict in verdicts:
        assert f"- **{verdict.verdict}**: {verdict.text}" in text
    # Two are made under the table's protocol; what another training gives cannot settle the third.
    own, others = text.split("## Claims\n\n")[1].split("## Best epoch")[0].split("## Claims of other protocols\n\n")
    assert own.startswith("- Claims made under protocol streamlined: 0 confirmed, 0 refuted, 2 undecided.\n")
    count = "Made under other protocols, for orientation only: 0 confirmed, 0 refuted, 1 undecided"
    assert others.startswith(f"<details><summary>{count}</summary>\n")
    assert (own.count("Under protocol streamlined, where"), others.count("Under protocol streamlined, where")) == (0, 1)
    said = "Of 2 claims of the target table, 0 hold, 0 are refuted and 2 undecided."
    assert said in report.terminal(made) and said in text.split("## ")[0]
    assert list(frame.protocol) == ["streamlined", "streamlined", "streamlined-revised"]


def test_published_csv_has_every_number_of_its_cells(written: Path):
    frame = pd.read_csv(written / "published.csv")
    kd = frame[(frame.label == "KD") & (frame.teacher == "resnet56")].set_index("source")
    same = kd.loc["StreamLined README, May 2025"]
    assert same.same_protocol and same.top1 == 69.34 and same.difference == pytest.approx(1.86) and same.far
    other = kd.loc["RepDistiller README"]
    assert not other.same_protocol and (other.protocol, other.statistic, other.seeds) == ("standard", "last", 5)
    assert np.isnan(other.difference) and np.isnan(other.measured_mean)


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
    grid.write(tmp_path)
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "71.50 ± 0.71 (2/3)¹" in text and f"failed: {DAMAGED}" in text.replace(r"\_", "_")


def test_everything_but_the_metrics_may_be_missing_or_odd(tmp_path: Path):
    grid = Grid(pairs=(A,))
    bare = {"metrics": {"top1_last": 71}}
    odd = result(72.0, 1) | {"config": {"seed": "x", "teacher": None, "protocol": 3, "data": [], "params": None}}
    odd |= {"provenance": None, "timing": 4, "curve": [None, {"epoch": 1}, {"epoch": 2, "top1": "x"}]}
    grid.add("KD", "logit", A, bare, odd, result(73.0, 2))
    assert grid.write(tmp_path, plots=True)
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
    files = grid.write(tmp_path, states(grid, state), plots=True)
    assert {path.name for path in files if path.parent == tmp_path} == FILES
    text = (tmp_path / "table.md").read_text(encoding="utf-8").split("## Claims")[0]
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert not any("±" in row or "**" in row for row in rows) and "**No run has finished yet.**" in text
    assert "Bold:" not in text and "43 of 43 wanted runs are not finished" in text
    assert "## Over all pairs" not in text
    assert pd.read_csv(tmp_path / "table.csv").mean_last.isna().all()


def test_no_runs_known_at_all(tmp_path: Path):
    grid = hand_made()
    grid.write(tmp_path, {})
    assert set(pd.read_csv(tmp_path / "table.csv").state) == {"missing"}
    assert "Runs: 43 missing; 43 wanted." in (tmp_path / "table.md").read_text(encoding="utf-8")


def test_an_empty_grid(tmp_path: Path):
    spec = TableSpec("none", "sprint", 1, (), ())
    made = report.make(spec, {}, now=NOW)
    assert {path.name for path in report.write(tmp_path, made, {}) if path.parent == tmp_path} == FILES
    assert "Runs: none; 0 wanted." in (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "No run has finished yet." in report.terminal(made)


def test_a_protocol_without_published_numbers_says_so_and_subtracts_nothing(tmp_path: Path):
    grid = hand_made()
    grid.protocol = "sprint"
    grid.write(tmp_path)
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "No published numbers exist under protocol sprint" in text
    assert "standard, standard-480, standard-960, standard-sd-kd, streamlined, streamlined-revised" in text
    assert "ImageNet" not in text and published_tables.FAR not in text
    assert "Published under other protocols" in text and "69.34" in text  # shown with its mark, for orientation
    assert not [name for name in pd.read_csv(tmp_path / "table.csv").columns if "difference" in name]


def test_where_no_claim_can_be_checked_they_are_counted_with_the_reason():
    grid = Grid()
    for label in ("SKD", "Teacher"):
        grid.add(label, "ours" if label == "SKD" else "teacher", A, result(70.0, dataset="embedded"))
    text = report.markdown_report(grid.report())
    (line,) = text.split("## Claims\n\n")[1].split("\n\n## ")[0].splitlines()
    assert line.startswith("- Claims not checked here: ") and "did not use CIFAR-100 as published" in line


def test_folders_of_other_grids_are_counted_and_not_read(tmp_path: Path):
    grid = Grid(pairs=(A,))
    grid.add("KD", "logit", A, 71.0)
    for name in (*grid.runs, "kd-resnet56-resnet20-s0-ffffffff", "sdd-a-b-s0-00000000"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    (tmp_path / "runs" / "notes.txt").write_text("not a run")
    lines = tables.footer(grid.report(out=tmp_path).results, NOW)
    assert "Runs of other grids, protocols or versions in the same folder, not used: 2." in lines
    assert not [line for line in tables.footer(grid.report().results, NOW) if "not used" in line]


def test_runs_outside_the_table_are_counted_apart(tmp_path: Path):
    grid = Grid(pairs=(A,))
    grid.add("KD", "logit", A, 71.0)
    grid.runs["vanilla-vgg13-s0-12345678"] = RunStatus("vanilla-vgg13-s0-12345678", "failed", "no disk")
    grid.write(tmp_path)
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "Runs: 1 done; 1 wanted." in text and "not part of this table: 1." in text
    frame = pd.read_csv(tmp_path / "runs.csv").set_index("run_id")
    assert not frame.loc["vanilla-vgg13-s0-12345678", "in_table"]


# ---- files


def test_writing_is_whole_or_not_at_all(written: Path, monkeypatch: pytest.MonkeyPatch):
    before = {path.name: path.read_bytes() for path in written.rglob("*.*")}

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    grid = Grid(pairs=(A,))
    with pytest.raises(OSError, match="no space"):
        grid.write(written)
    assert {path.name: path.read_bytes() for path in written.rglob("*.*")} == before


def test_the_same_results_give_the_same_files(tmp_path: Path):
    grid = Grid(pairs=(A,))
    grid.add("KD", "logit", A, 71.0, 72.0)
    first = {path: path.read_bytes() for path in grid.write(tmp_path, plots=True)}
    reread = {run_id: replace(run, result=json.loads(json.dumps(run.result))) for run_id, run in grid.runs.items()}
    second = {path: path.read_bytes() for path in grid.write(tmp_path, reread, plots=True)}
    assert first == second and len(first) == len(FILES) + sum(
        len(list(tmp_path.glob(kind))) for kind in ("plots/*", "latex/*")
    )


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_terminal_keeps_to_the_width_and_loses_no_column(width: int):
    text = report.terminal(hand_made().report(), width)
    wide = [line for line in text.splitlines() if len(line) > width]
    assert all(" " not in line.strip() for line in wide)  # a run id that is longer than a line
    assert all(text.count(name) >= 1 for name in ("→ resnet20", "→ wrn_16_2"))
    said = " ".join(text.split())
    assert "SKD leads on both pairs." in said and "17 of 43 wanted runs are not finished (5 failed, 3 blocked" in said
    rows = [line for line in text.splitlines() if line.startswith("MLKD ")]
    assert " ".join(rows).count("71.30 ± 0.20†") == 1 and " ".join(rows).count("75.20 ± 0.20§") == 1


def test_terminal_shows_the_selected_cells_alone():
    """All of them: SKD, too, which other grids than `full` count among the logit methods."""
    grid = hand_made()
    selected = {cell for cell in grid.cells if cell.label in ("KD", "SKD") and (cell.teacher, cell.student) == A}
    text = report.terminal(grid.report(), 100, selected)
    rows = [line.split()[0] for line in text.splitlines() if re.match(r"\S+ .*\d\d\.\d\d ± ", line)]
    assert sorted(rows) == ["KD", "SKD"] and "→ wrn_16_2" not in text


def test_terminal_is_plain_text_with_the_same_numbers():
    grid = hand_made()
    text = report.terminal(grid.report())
    for part in (
        "*71.50 ± 0.10",
        "70.20 ± 0.28 (2/3)¹",
        "⊘ blocked²",
        "→ wrn_16_2",
        "A|B_c & 50% τ",
        "17 of 43 wanted runs are not finished (5 failed, 3 blocked, 1 running, 1 interrupted, 7 missing)",
    ):
        assert part in text
    assert "\\" not in text and "**" not in text


# ---- what only shows costs itself


def test_a_picture_or_page_that_fails_costs_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    grid = Grid(pairs=(A,))
    grid.add("Student", "student", A, 66.0, 66.3)
    grid.add("KD", "logit", A, 71.0, 72.0)
    files = {path.name for path in grid.write(tmp_path, plots=True)}

    def fail(*_):
        raise ValueError("no such backend")

    monkeypatch.setattr("bench.report.plots.accuracy", fail)
    left = {path.name for path in grid.write(tmp_path, plots=True)}
    assert files - left == {"accuracy.png", "accuracy.pdf"} and not (tmp_path / "plots" / "accuracy.png").exists()
    assert capsys.readouterr().err == "note: plot accuracy left out: ValueError: no such backend\n"
    monkeypatch.setattr(report, "page", fail)
    assert {path.name for path in grid.write(tmp_path) if path.parent == tmp_path} == FILES - {"report.html"}
    assert "note: report.html left out: ValueError" in capsys.readouterr().err


def test_one_table_that_cannot_be_written_leaves_the_others(tmp_path: Path):
    grid = Grid(pairs=(A,))
    grid.add("KD", "logit", A, 71.0)
    (tmp_path / "table.tex" / "in the way").mkdir(parents=True)
    with pytest.raises(OSError):
        grid.write(tmp_path)
    assert {"table.md", "table.csv", "runs.csv", "claims.csv"} <= {path.name for path in tmp_path.iterdir()}


# ---- another source of a method


def test_results_of_another_source_are_marked_with_the_command_that_redoes_them(tmp_path: Path):
    grid = Grid(pairs=(A,))
    grid.add("KD", "logit", A, 71.0, 71.4)
    grid.add("DKD", "logit", A, 70.0, 70.2)
    before = markdown_of(grid, tmp_path)
    assert "‖" not in before and "--force" not in before
    kd = next(run_id for run_id in grid.runs if run_id.startswith("kd-") and "-s1-" in run_id)
    grid.runs[kd] = replace(grid.runs[kd], source=OTHER)
    text = markdown_of(grid, tmp_path)
    assert re.search(r"KD +\| +\**71.20 ± 0.28\**†?‖", text) or "71.20 ± 0.28‖" in text.replace("*", "")
    assert "marked ‖: 1" in text and text.count("--force") >= 1
    assert "--only method=kd,teacher=resnet56,student=resnet20,seed=1" in text.replace("\\", "")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "‖" in page and "--force --only method=kd" in page and "another source" in page
    assert r"$\parallel$" in (tmp_path / "table.tex").read_text(encoding="utf-8")
    frame = pd.read_csv(tmp_path / "runs.csv").set_index("run_id")
    assert frame.loc[kd, "source"] == OTHER


def markdown_of(grid: Grid, folder: Path) -> str:
    grid.write(folder)
    return (folder / "table.md").read_text(encoding="utf-8")


def test_comments_do_not_make_runs_of_one_cell_unlike():
    grid = Grid(pairs=(A,))
    grid.add("KD", "logit", A, 71.0, 71.4)
    runs = list(grid.runs.values())
    for run, sha256 in zip(runs, ("a" * 64, "b" * 64), strict=True):
        run.result["provenance"] |= {"method_source": "source:" + "c" * 64, "method_sha256": sha256}
    assert grid.report().results.cells[0].mixed == ""
    runs[0].result["provenance"]["method_source"] = "source:" + "d" * 64
    assert "method's source (cccccccc, dddddddd)" in grid.report().results.cells[0].mixed
