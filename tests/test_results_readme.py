"""The commands of a campaign, as results/README.md prints them, are understood."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import reproduce
from bench.measure import calibration
from jobs.carry import pack

README = (Path(__file__).parents[1] / "results" / "README.md").read_text()
LINES = [line for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.splitlines()]
RUNS = [line for line in LINES if line.startswith("python reproduce.py ")]


def test_begins_with_the_acceptance_check():
    assert LINES[0].startswith("python -m bench.acceptance ") and RUNS[0] == LINES[1] and len(RUNS) == 6


@pytest.fixture(autouse=True)
def no_calibration(monkeypatch):
    monkeypatch.setattr(calibration, "CALIBRATION_S", 0.0)  # what the runs cost is another test's matter


@pytest.mark.parametrize("line", RUNS)
def test_plans(tmp_path, capsys, line):
    assert reproduce.main([*shlex.split(line)[2:], "--out", str(tmp_path), "--dry-run"]) == 0
    assert "to do: " in capsys.readouterr().out


def test_first_run_is_the_plain_student_alone(tmp_path, capsys):
    assert reproduce.main([*shlex.split(RUNS[0])[2:], "--out", str(tmp_path), "--dry-run"]) == 0
    assert "to do: 1 runs" in capsys.readouterr().out


def test_packing_lines_are_understood(tmp_path, monkeypatch, capsys):
    """Without the folders that they name each is refused for that alone."""
    monkeypatch.chdir(tmp_path)
    lines = [line for line in LINES if line.startswith("python -m jobs.pack ")]
    assert len(lines) == 5 and len(lines) + len(RUNS) + 1 == len(LINES)
    for line in lines:
        assert pack.main(shlex.split(line)[3:]) == 2
        assert re.search(r"has no runs/|there is no file", capsys.readouterr().err), line
