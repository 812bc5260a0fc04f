"""Commands that look at results, where there are none: one line, exit 2, nothing written, nothing slow imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import reproduce
from jobs import folders

ROOT = Path(__file__).parents[2]
COMMANDS = (["--status"], ["--report"], ["--cancel"], ["--status", "--grid", "quick"], ["--report", "--grid", "quick"])


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "mine" / "results"
    (folder / "runs" / "kd-a-b-s0-01234567").mkdir(parents=True)
    (folder / "plan.json").write_text("{}")
    return folder


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "there is no such folder: run a grid first (kd-bench --grid quick --out"),
        (lambda path: path.mkdir(), "is empty: run a grid first"),
        (lambda path: (path / "photos").mkdir(parents=True), "holds no results (no runs/, no plan.json)"),
    ],
)
def test_where_nothing_was_run(tmp_path, capsys, command, make, says):
    out = tmp_path / "out"
    make(out)
    before = sorted(tmp_path.rglob("*"))
    assert reproduce.main([*command, "--out", str(out)]) == 2
    said = capsys.readouterr()
    assert says in said.err and said.err.count("\n") == 1 and said.err.startswith("error: --out ") and not said.out
    assert sorted(tmp_path.rglob("*")) == before


def test_the_folder_that_was_meant(results, capsys):
    """Its parent, and what lies in it, are named by mistake."""
    for named in (results.parent, results / "runs", results / "runs" / "kd-a-b-s0-01234567"):
        assert reproduce.main(["--status", "--out", str(named)]) == 2
        assert f'did you mean "{results}"?' in capsys.readouterr().err
    folders.require(results, "--out")  # and this is one
    folders.require(results.parent / "results", "--out")


def test_both_sides_of_a_comparison(results, tmp_path, capsys):
    for out, other, option in ((results, tmp_path / "none", "--compare"), (tmp_path / "none", results, "--out")):
        assert reproduce.main(["--out", str(out), "--compare", str(other)]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f'error: {option} "{tmp_path / "none"}": there is no such folder')
    assert not (results / "compare.md").exists()


def test_it_is_said_at_once(tmp_path):
    """In a process of its own: what takes seconds to import is not."""
    code = (
        "import sys, reproduce\n"
        f"assert reproduce.main(['--report', '--out', {str(tmp_path)!r}]) == 2\n"
        "assert not {'torch', 'pandas', 'pydantic'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
