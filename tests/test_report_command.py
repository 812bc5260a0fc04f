"""`--report` and `--compare` on results folders made by hand, damaged in every way, or of another version."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import reproduce
from bench import store
from tests.bench.report.report_cases import A, B, Grid, hand_made, result

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = tmp_path / "results"
    grid().save(out)
    return out


def grid() -> Grid:
    made = Grid(pairs=(A,))
    made.add("Teacher", "teacher", A, 75.0)
    made.add("Student", "student", A, 70.0, 70.2, 70.4)
    made.add("KD", "logit", A, 71.0, 72.0, 73.0)
    made.add("SKD", "ours", A, 72.0, 72.5, 73.0)
    return made


def run(folder: Path, label: str = "kd", seed: int = 2) -> Path:
    (path,) = (folder / "runs").glob(f"{label}-*-s{seed}-*")
    return path


def report(folder: Path, *more: str) -> int:
    return reproduce.main(["--report", "--no-plots", "--out", str(folder), *more])


def row(folder: Path, label: str) -> pd.Series:
    return pd.read_csv(folder / "table.csv").set_index("label").loc[label]


def test_a_folder_is_reported_from_its_files(folder: Path, capsys: pytest.CaptureFixture):
    assert report(folder) == 0
    assert (row(folder, "KD").mean_last, row(folder, "KD").std_last, row(folder, "KD").n) == (72.0, 1.0, 3)
    said = capsys.readouterr().out
    parts = (
        "SKD leads on resnet56 → resnet20 with 72.50 % top-1.",
        "Of 1 claim of the target table, 0 hold, 1 is refuted and 0 undecided.",
        "72.00 ± 1.00",
        f"wrote table.md, table.tex, table.csv, runs.csv, published.csv, claims.csv in {folder}, ",
        f"{folder / 'latex'}\nthe whole report: {folder / 'report.html'}\n",
    )
    places = [said.find(part) for part in parts]
    assert -1 not in places and places == sorted(places)


def test_it_needs_no_torch(folder: Path):
    program = (
        "import sys, reproduce\n"
        f"assert reproduce.main(['--report', '--no-plots', '--out', {str(folder)!r}]) == 0\n"
        f"assert reproduce.main(['--compare', {str(folder)!r}, '--out', {str(folder)!r}]) == 0\n"
        "assert not {'torch', 'torchvision'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---- damage


def text(content: str | bytes) -> Callable[[Path], None]:
    return lambda path: (path / "result.json").write_bytes(content if isinstance(content, bytes) else content.encode())


def changed(**parts: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        whole = json.loads((path / "result.json").read_text())
        (path / "result.json").write_text(json.dumps({**whole, **parts}))

    return change


def folder_instead(path: Path) -> None:
    (path / "result.json").unlink()
    (path / "result.json").mkdir()


def file_instead(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("not a folder")


def dangling_link(path: Path) -> None:
    (path / "result.json").unlink()
    (path / "result.json").symlink_to(path / "nowhere")


def cut(path: Path) -> None:
    whole = json.loads((path / "result.json").read_text())
    store.write_result(path / "result.json", whole)
    content = (path / "result.json").read_bytes()
    (path / "result.json").write_bytes(content[: len(content) - 40])


def flipped(path: Path) -> None:
    """One digit of the curve's bytes becomes a bracket: the checksum before it no longer holds."""
    store.write_result(path / "result.json", json.loads((path / "result.json").read_text()))
    content = (path / "result.json").read_bytes()
    at = content.rindex(b"73.0")
    (path / "result.json").write_bytes(content[:at] + b"]" + content[at + 1 :])


GONE = {
    "empty": text(""),
    "cut short": cut,
    "one byte wrong": flipped,
    "not JSON": text("<html>502 Bad Gateway</html>"),
    "not text": text(bytes(range(256)) * 4),
    "zeros": text(bytes(4096)),
    "a list": text("[1, 2]"),
    "null": text("null"),
    "deep": text("[" * 100_000),
    "long number": text('{"metrics": {"top1_last": ' + "9" * 5000 + "}}"),
    "of another run": changed(run_id="kd-a-b-s0-00000000"),
    "of a later schema": changed(schema=99),
    "no metrics": changed(metrics=None),
    "metrics a list": changed(metrics=[73.0]),
    "text for a number": changed(metrics={"top1_last": "73.0"}),
    "true for a number": changed(metrics={"top1_last": True}),
    "NaN": changed(metrics={"top1_last": float("nan")}),
    "infinite": changed(metrics={"top1_last": float("inf")}),
    "below 0": changed(metrics={"top1_last": -1.0}),
    "above 100": changed(metrics={"top1_last": 1e9}),
    "huge": changed(metrics={"top1_last": 10**400}),
    "a folder in its place": folder_instead,
    "a dangling link": dangling_link,
    "a file in place of the run": file_instead,
    "gone": shutil.rmtree,
}
HARMLESS = {
    "curve of another shape": changed(curve={"top1": [1, 2, 3]}),
    "curve of texts": changed(curve=["a", None, 3, {"epoch": "x", "top1": []}]),
    "no curve": changed(curve=None),
    "no config": changed(config=None),
    "config a list": changed(config=[1]),
    "config of odd types": changed(
        config={"seed": 1e30, "teacher": 3, "protocol": [], "data": "x", "params": {"a": []}}
    ),
    "provenance of odd types": changed(provenance={"versions": 3, "device": {"a": 1}, "git_dirty": "maybe"}),
    "no provenance": changed(provenance={}),
    "odd other metrics": changed(
        metrics={"top1_last": 73, "top1_best": "high", "best_epoch": 10**30, "test_loss_last": float("nan"), "new": {}}
    ),
    "control characters": changed(provenance={"device": "\x1b[31m\ud800 | `x` \n <script>", "git_commit": "\u202e"}),
    "keys of a later version": changed(schema=1, audit={"by": "someone"}),
}


@pytest.mark.parametrize("damage", GONE)
def test_a_damaged_result_is_left_out_and_said(folder: Path, damage: str):
    GONE[damage](run(folder))
    assert report(folder) == 1
    kd, skd = row(folder, "KD"), row(folder, "SKD")
    assert (kd.mean_last, kd.n, kd.wanted, kd.state) == (71.5, 2, 3, "partial") and not kd.best
    assert (skd.mean_last, skd.n, skd.state) == (72.5, 3, "complete")
    table = (folder / "table.md").read_text(encoding="utf-8")
    if damage in ("gone", "a dangling link"):  # no file is no damage
        assert "71.50 ± 0.71 (2/3) |" in table
    else:
        # What cannot be read is not damaged, and left as it is.
        what = "blocked" if damage == "a file in place of the run" else "missing"
        assert "71.50 ± 0.71 (2/3)¹ |" in table and f"- ¹ {what}: result.json " in table


@pytest.mark.parametrize("oddity", HARMLESS)
def test_what_the_tables_do_not_need_may_be_anything(folder: Path, oddity: str):
    HARMLESS[oddity](run(folder))
    assert reproduce.main(["--report", "--out", str(folder)]) == 0  # with plots
    assert (row(folder, "KD").mean_last, row(folder, "KD").n) == (72.0, 3)
    for name in ("table.md", "table.tex", "report.html"):
        content = (folder / name).read_text(encoding="utf-8")
        assert "\x1b" not in content and "\u202e" not in content
        assert content.count("<script") == (name == "report.html")  # the page's own


@pytest.mark.parametrize("content", ["", "[]", "{", "null", '{"message": null}', '{"message": {"a": 1}}', "\x00"])
def test_any_error_json(folder: Path, content: str):
    path = run(folder)
    (path / "result.json").unlink()
    (path / "error.json").write_text(content)
    assert report(folder) == 1 and row(folder, "KD").n == 2


@pytest.mark.parametrize("name", ["error.json", "last.pt", "claim.json", "config.json", "log.txt"])
def test_folders_in_place_of_files(folder: Path, name: str):
    path = run(folder)
    (path / "result.json").unlink()
    (path / name).mkdir()
    assert report(folder) == 1 and row(folder, "KD").n == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_files_without_rights(folder: Path):
    (run(folder) / "result.json").chmod(0)
    assert report(folder) == 1 and row(folder, "KD").n == 2


# ---- other folders


def test_a_grid_of_a_later_version(tmp_path: Path, capsys: pytest.CaptureFixture):
    made = Grid("sprint-2", (("convnext_t", "mobilenet_v9"),))
    made.add("Teacher", "teacher", made.pairs[0], 80.0)
    made.add("Student", "student", made.pairs[0], 70.0, 70.2)
    made.add("QuantumKD", "quantum", made.pairs[0], 75.0, 75.4)
    made.save(tmp_path)
    assert reproduce.main(["--report", "--out", str(tmp_path)]) == 0
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "| QuantumKD " in table and "| *quantum* " in table and "75.20 ± 0.28" in table
    assert "No published numbers exist under protocol sprint-2" in table


def test_runs_of_other_grids_are_not_used(folder: Path):
    other = run(folder).with_name("kd-resnet56-resnet20-s2-ffffffff")
    other.mkdir()
    (other / "result.json").write_text(json.dumps({"run_id": other.name} | result(99.0, protocol="standard")))
    assert report(folder) == 0 and row(folder, "KD").mean_last == 72.0
    table = (folder / "table.md").read_text(encoding="utf-8")
    assert (
        "- Runs of other grids, protocols or versions in the same folder, not used: 1." in table and "99" not in table
    )


def test_a_folder_kept_without_weights(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    """What a teacher measured is a result, in a report and beside another folder; a student could not start from it."""
    plan = json.loads((folder / "plan.json").read_text())
    (teacher,) = next(cell["run_ids"] for cell in plan["cells"] if cell["role"] == "teacher")
    for run_id, wanted in plan["runs"].items():
        wanted["teacher"] = {"run_id": teacher} if run_id.startswith(("kd-", "skd-")) else None
    (folder / "plan.json").write_text(json.dumps(plan))
    shutil.rmtree(run(folder))  # a student waits, and no folder has weights.pt
    assert report(folder) == 1
    assert (row(folder, "Teacher").state, row(folder, "Teacher").mean_last) == ("complete", 75.0)
    shutil.copytree(folder, tmp_path / "copy")
    capsys.readouterr()
    assert reproduce.main(["--out", str(folder), "--compare", str(tmp_path / "copy")]) == 0
    assert "Done on both sides: 9 runs." in capsys.readouterr().out
    assert reproduce.main(["--status", "--out", str(folder)]) == 1
    assert "10 runs: 8 done, 2 missing" in capsys.readouterr().out


def test_only_a_plan(tmp_path: Path):
    hand_made().save(tmp_path)
    shutil.rmtree(tmp_path / "runs")
    assert report(tmp_path) == 1
    assert "Runs: 43 missing; 43 wanted." in (tmp_path / "table.md").read_text(encoding="utf-8")


def test_runs_without_a_plan_are_looked_for_in_the_full_grid(tmp_path: Path):
    (tmp_path / "runs").mkdir()
    assert report(tmp_path) == 1
    frame = pd.read_csv(tmp_path / "table.csv")
    assert len(frame) > 60 and set(frame.state) == {"missing"}


@pytest.mark.parametrize("content", ["", "[]", '{"runs": 3}', '{"grid": "x", "cells": [{"a": 1}]}'])
def test_a_damaged_plan_is_said_in_one_line(folder: Path, content: str, capsys: pytest.CaptureFixture):
    (folder / "plan.json").write_text(content)
    assert report(folder) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "plan.json" in said and "--grid" in said


ODD = (None, -1, "\ud800", [1], 10**400)


def with_one_value_odd(whole: Any, chance: random.Random | None = None) -> Iterator[Any]:
    """Copies of a value of JSON, in each of which one value at any depth is replaced: each by two of the odd ones."""
    chance = chance or random.Random(0)
    yield from chance.sample(ODD, 2)
    if isinstance(whole, (dict, list)):
        for key in whole if isinstance(whole, dict) else range(min(2, len(whole))):
            for odd in with_one_value_odd(whole[key], chance):
                changed = copy.copy(whole)
                changed[key] = odd
                yield changed


def test_any_value_anywhere_in_the_plan(folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)
    for plan in with_one_value_odd(json.loads((folder / "plan.json").read_text())):
        (folder / "plan.json").write_text(json.dumps(plan))
        for command in (["--report", "--no-plots"], ["--status"], ["--compare", str(folder)]):
            status, said = reproduce.main([*command, "--out", str(folder)]), capsys.readouterr().err
            assert status in (0, 1) if not said else status == 2 and "plan.json" in said and said.count("\n") == 1


def test_any_value_anywhere_in_a_result(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)
    path = run(folder) / "result.json"
    whole = json.loads(path.read_text())
    for parsed in with_one_value_odd({**whole, "curve": whole["curve"][:1]}):
        path.write_text(json.dumps(parsed))
        assert report(folder) in (0, 1)
        assert reproduce.main(["--status", "--out", str(folder)]) in (0, 1)


@pytest.mark.parametrize("option", [["--protocol", "standard"], ["--seeds", "2"], ["--precision", "tf32"]])
@pytest.mark.parametrize("command", [["--report"], ["--status"], ["--compare", "."]])
def test_the_kept_plan_is_shown_as_it_is(
    folder: Path, command: list[str], option: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(folder)
    assert reproduce.main([*command, *option, "--out", "."]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{option[0]} needs --grid" in said


def test_compare_two_folders(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    other = tmp_path / "other"
    changed_grid = grid()
    run_id = changed_grid.cells[2].run_ids[1]
    changed_grid.runs[run_id].result["metrics"]["top1_last"] = 72.5
    changed_grid.save(other)
    before = {path: path.read_bytes() for path in other.rglob("*") if path.is_file()}
    assert reproduce.main(["--out", str(folder), "--compare", str(other)]) == 0
    written, said = (folder / "compare.md").read_text(encoding="utf-8"), capsys.readouterr().out
    assert "Different: 1." in written and f"{run_id}: top1_last 72 / 72.5 (−0.5)" in written
    assert "compare.md" in said and "72.17 ± 1.04" in said and str(other) in said
    assert before == {path: path.read_bytes() for path in other.rglob("*") if path.is_file()}


def test_compare_with_runs_that_were_copied_without_their_plan(folder: Path, tmp_path: Path):
    shutil.copytree(folder / "runs", tmp_path / "copy" / "runs")
    assert reproduce.main(["--out", str(folder), "--compare", str(tmp_path / "copy")]) == 0
    assert "Done on both sides: 10 runs." in (folder / "compare.md").read_text(encoding="utf-8")


def test_compare_two_protocols(folder: Path, tmp_path: Path):
    other = Grid("standard", (A, B))
    other.add("KD", "logit", A, 70.0, 70.5)
    other.add("KD", "logit", B, 75.0)
    for i, cell in enumerate(other.cells):
        swapped = tuple(run_id.replace("-0000", "-aaaa") for run_id in cell.run_ids)
        for old, new in zip(cell.run_ids, swapped, strict=True):
            run = other.runs.pop(old)
            other.runs[new] = type(run)(new, run.state, run.reason, run.result)
        other.cells[i] = type(cell)(**{**vars(cell), "run_ids": swapped})
    other.save(tmp_path / "other")
    assert reproduce.main(["--out", str(folder), "--compare", str(tmp_path / "other")]) == 0
    written = (folder / "compare.md").read_text(encoding="utf-8")
    assert "Welch 3, 2" in written and "The protocols differ" in written
    assert "**only other**: KD on wrn_40_2 → wrn_16_2" in written and "No run is done on both sides." in written


def test_compare_with_what_it_cannot(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    for other in (tmp_path, tmp_path / "nowhere"):
        assert reproduce.main(["--out", str(folder), "--compare", str(other)]) == 2
        assert 'error: --compare "' in capsys.readouterr().err
    assert reproduce.main(["--out", str(folder), "--compare", str(folder), "--only", "method=kd"]) == 2
    assert "--only does not go with --compare" in capsys.readouterr().err
