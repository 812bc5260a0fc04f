"""A short round of tests/jobs/chaos.py, and that its judgement of a log can go against the run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.jobs import cluster as slurms
from tests.jobs.chaos import ASIDE, BEGIN, COLUMNS, DONE, STOPPED, attempts, retold, went_on

ROOT = Path(__file__).parents[2]


def log(*lines: int | str) -> str:
    """As workers write it: numbers are finished epochs."""
    return "".join(f"12:00:00  {f'epoch {line}  lr 0.05  ...' if isinstance(line, int) else line}\n" for line in lines)


AGAIN = f"kd-x on cpu, 1{BEGIN}/code"
TOLD = {  # what happened -> (log, deaths, damages, whether all is explained)
    "undisturbed": (log(AGAIN, 1, 2, 3, "done: top-1"), 0, 0, True),
    "stopped": (log(AGAIN, 1, 2, STOPPED, AGAIN, 3, "done: top-1"), 0, 0, True),
    "killed after the last step": (log(AGAIN, 1, 2, AGAIN, 2, 3), 1, 0, True),
    "killed, nobody knows by whom": (log(AGAIN, 1, 2, AGAIN, 2, 3), 0, 0, False),
    "killed, and a checkpoint forgotten": (log(AGAIN, 1, 2, 3, AGAIN, 2, 3), 1, 0, False),
    "killed once, twice again": (log(AGAIN, 1, 2, AGAIN, 2, AGAIN, 2, 3), 1, 0, False),
    "checkpoint cut short": (log(AGAIN, 1, 2, AGAIN, 1, 2, 3), 0, 1, True),
    "checkpoint cut short, but not so": (log(AGAIN, 1, 2, 3, AGAIN, 2, 3), 0, 1, False),
    "done twice": (log(AGAIN, 1, 2, "done: top-1", AGAIN, 1, 2, "done: top-1"), 1, 0, False),
    "two at once": (log(AGAIN, 1, AGAIN, 1, 2, 2), 0, 0, False),
}


@pytest.mark.parametrize("name", TOLD)
def test_what_a_log_may_tell(name):
    text, deaths, damages, explained = TOLD[name]
    assert (retold(text, deaths, damages) == []) == explained


def test_a_log_in_parts():
    text = log(AGAIN, 1, 2, STOPPED, AGAIN, 3, "done: top-1 5.00")
    assert attempts(text) == [([1, 2], "stopped"), ([3], "done")] and DONE.strip() in text
    first = log(AGAIN, 1, 2).encode()
    assert went_on(first + log(3).encode(), len(first), None) == COLUMNS[0]
    assert went_on(first + log(AGAIN, 3).encode(), len(first), None) == COLUMNS[1]
    assert went_on(first + log(AGAIN, 1).encode(), len(first), None) == COLUMNS[2]
    assert went_on(first + log(AGAIN, 1).encode(), len(first), len(first)) == COLUMNS[0]  # the next fault's
    assert went_on(first, len(first), len(first), at_rest=True) == COLUMNS[3]
    assert went_on(first + log("done: top-1").encode(), len(first), len(text), at_rest=True) == COLUMNS[0]
    spoilt = f"last.pt is damaged: {ASIDE}, starting again"
    assert went_on(first + log(AGAIN, spoilt, AGAIN, 1).encode(), len(first), None) == COLUMNS[2]
    assert went_on(first + log(AGAIN, AGAIN, spoilt, 1).encode(), len(first), None) == COLUMNS[1]


def test_a_short_round():
    slurms.require()
    command = [sys.executable, "-m", "tests.jobs.chaos", "--where", "slurm", "--size", "small", "--seed", "3"]
    done = subprocess.run([*command, "--faults", "3"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("4 of 4 runs done, 4 equal") == done.stdout.count("nothing wrong") == 1
