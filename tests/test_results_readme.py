"""The commands of a campaign, as results/README.md prints them, are understood."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

import reproduce
from bench.measure import calibration
from bench.measure.gpu import kit
from bench.measure.gpu import program as gpu
from jobs.carry import pack

README = (Path(__file__).parents[1] / "results" / "README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.S)
KIT, CALLS = BLOCKS[0], BLOCKS[1:4]  # the first quarter of an hour
LINES = [line for block in BLOCKS[4:] for line in block.splitlines()]
RUNS = [line for line in LINES if line.startswith("python reproduce.py ")]


def test_begins_with_the_acceptance_check():
    assert LINES[0].startswith("python -m bench.acceptance ") and RUNS[0] == LINES[1] and len(RUNS) == 6


def test_the_first_quarter_of_an_hour(tmp_path):
    """The calls as a shell takes them, with a Python that only says what it is asked."""
    (tmp_path / "bin").mkdir()
    said = tmp_path / "said"
    (tmp_path / "bin" / "python3").write_text(f'#!/bin/sh\necho "$@" >> {said}\n')
    (tmp_path / "bin" / "python3").chmod(0o755)
    for part in ("1", "2/weights/sskd"):
        (tmp_path / "results" / "kit" / part).mkdir(parents=True)
    for part in "12":
        (tmp_path / "results" / "kit" / part / f"cifar100.{part}.zip").touch()
    elsewhere = tmp_path / "tmp"  # in place of /tmp
    elsewhere.mkdir()
    for number, call in enumerate(CALLS):
        out = tmp_path / f"out{number}"
        out.mkdir()
        (out / "facts.jsonl").touch()  # what the program writes
        environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "OUT": str(out)}
        script = call.replace("/tmp", str(elsewhere))
        subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, env=environment, check=True)
    assert (elsewhere / "weights" / "sskd").is_dir() and (elsewhere / "out" / "facts.jsonl").exists()
    asked = [shlex.split(line) for line in said.read_text().splitlines()]
    assert asked[0][:3] == ["-m", "pip", "install"] and kit.LACKING[0] in asked[0]
    ours = [gpu.parser().parse_args(line[2:]) for line in asked[1:] if line[:2] == ["-m", "bench.gpu"]]
    assert len(ours) == len(asked) - 1 == 4
    assert [args.sections for args in ours if args.out] == [list(gpu.SHARES), ["acceptance", "sprint"], ["sprint"]]
    assert sum(args.minutes for args in ours if args.out) <= 12  # of 15, with three starts
    restored = ours[1].restore
    assert [path.name for path in restored] == ["cifar100.1.zip", "cifar100.2.zip"]
    assert gpu.parser().parse_args(shlex.split(KIT)[3:]).kit == Path("results/kit")
    first = tmp_path / "tmp" / "cifar100.1.zip"
    assert first.exists() and restored[0] == first


@pytest.fixture(autouse=True)
def no_calibration(monkeypatch):
    monkeypatch.setattr(calibration, "CALIBRATION_S", 0.0)  # what the runs cost is another test's matter


@pytest.mark.parametrize("line", RUNS)
def test_plans(tmp_path, capsys, line):
    assert reproduce.main([*shlex.split(line)[2:], "--out", str(tmp_path), "--dry-run"]) == 0
    assert "to do: " in capsys.readouterr().out


def test_first_run_is_the_plain_student_alone(tmp_path, capsys):
    assert reproduce.main([*shlex.split(RUNS[0])[2:], "--out", str(tmp_path), "--dry-run"]) == 0
    assert "to do: 1 run," in capsys.readouterr().out


def test_packing_lines_are_understood(tmp_path, monkeypatch, capsys):
    """Without the folders that they name each is refused for that alone."""
    monkeypatch.chdir(tmp_path)
    lines = [line for line in LINES if line.startswith("python -m jobs.pack ")]
    assert len(lines) == 5 and len(lines) + len(RUNS) + 1 == len(LINES)
    for line in lines:
        assert pack.main(shlex.split(line)[3:]) == 2
        assert re.search(r"has no runs/|there is no file", capsys.readouterr().err), line
