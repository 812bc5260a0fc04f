"""The help, the version, and what the program calls itself."""

from __future__ import annotations

import re
import shlex
import sys

import pytest

import bench
import reproduce
from bench.surroundings import commandline
from jobs import options


@pytest.mark.parametrize(
    ("started", "name"),
    [
        ("/usr/bin/kd-bench", "kd-bench"),
        ("reproduce.py", "python reproduce.py"),
        ("../my code/reproduce.py", "python '../my code/reproduce.py'"),
        ("/x/pytest", "kd-bench"),  # another program: what an installation calls it
        ("-c", "kd-bench"),
    ],
)
def test_it_is_called_as_it_was_started(monkeypatch, started, name):
    monkeypatch.setattr(sys, "argv", [started])
    assert commandline.program() == name and reproduce.parser().prog == name


@pytest.mark.parametrize("started", ["kd-bench", "reproduce.py"])
def test_help_fits_80_columns(monkeypatch, started):
    monkeypatch.setattr(sys, "argv", [started])
    monkeypatch.setenv("COLUMNS", "300")
    lines = reproduce.parser().format_help().splitlines()
    assert max(map(len, lines)) <= 80
    options = [line for line in lines if re.match(r"  --?\w", line)]
    assert all(re.match(r"  (-h, )?--[\w-]+ ?\S*( \.\.\.)?  +\w", line) for line in options), options
    assert {line.split()[0].strip(",") for line in options} == {
        action.option_strings[0] for action in reproduce.parser()._actions
    }


def test_examples_of_the_help_are_understood():
    for words, _ in options.EXAMPLES:
        assert reproduce.parser().parse_args(shlex.split(words))


def test_a_wrong_option_names_the_program(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["reproduce.py"])
    with pytest.raises(SystemExit):
        reproduce.main(["--grdi"])
    assert "(see python reproduce.py --help)" in capsys.readouterr().err


def test_version(capsys):
    import torch

    assert reproduce.main(["--version"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"kd-bench {bench.__version__}") and said.count("\n") == 1
    assert f"torch {torch.__version__}" in said and f"Python {sys.version.split()[0]}" in said
