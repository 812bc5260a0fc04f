"""Runs whose process failed under them: apart after a death, halves where memory was short, given up only alone."""

from __future__ import annotations

import pytest

from jobs.attempts import Attempts
from jobs.outcomes import CRASHED, DIED, NO_MEMORY, Answer

FOUR = ["a", "b", "c", "d"]


def charge(attempts: Attempts, order: list[str], **outcomes: str) -> dict[str, tuple[bool, str]]:
    said = attempts.charge(order, [Answer(run_id, outcome, f"{run_id} word") for run_id, outcome in outcomes.items()])
    return {run_id: (again, message) for run_id, again, message in said}


@pytest.mark.parametrize("outcome", [DIED, CRASHED])
def test_a_company_goes_apart_and_none_is_given_up_for_another(outcome):
    attempts = Attempts()
    said = charge(attempts, FOUR, **dict.fromkeys("abd", outcome))  # c had ended before
    assert all(again and message.endswith("once more from the checkpoint, alone") for again, message in said.values())
    assert attempts.parts(FOUR) == [["a"], ["b"], ["d"], ["c"]]
    assert charge(attempts, ["a"], a=outcome)["a"][0]  # the first time alone
    again, message = charge(attempts, ["a"], a=outcome)["a"]
    assert not again and message == ("worker died 2 times, last with a word" if outcome == DIED else "a word")
    assert charge(attempts, ["b"], b=outcome)["b"][0]


def test_without_memory_halves_until_alone():
    attempts = Attempts()
    five = [*FOUR, "e"]
    said = charge(attempts, five, **dict.fromkeys(five, NO_MEMORY))
    assert said["a"] == (True, "out of GPU memory, once more from the checkpoint, in a company of 3")
    assert attempts.parts(five) == [["a", "b", "c"], ["d", "e"]]
    charge(attempts, ["d", "e"], d=NO_MEMORY, e=DIED)  # the process had no word for e: it was the memory, too
    assert attempts.parts(five) == [["a", "b", "c"], ["d"], ["e"]]
    charge(attempts, ["a", "b", "c"], a=NO_MEMORY, b=NO_MEMORY)  # c was done by then
    assert attempts.parts(["a", "b"]) == [["a"], ["b"]]
    assert charge(attempts, ["a"], a=NO_MEMORY)["a"] == (True, "out of GPU memory, once more from the checkpoint")
    again, message = charge(attempts, ["a"], a=NO_MEMORY)["a"]
    assert not again and message == "out of GPU memory: use fewer --slots or --together (a word)"


def test_who_crashed_beside_one_without_memory_goes_alone():
    attempts = Attempts()
    charge(attempts, FOUR, a=CRASHED, b=NO_MEMORY, c=NO_MEMORY, d=NO_MEMORY)
    assert attempts.parts(FOUR) == [["a"], ["b", "c"], ["d"]]


def test_undisturbed_runs_stay_together():
    assert Attempts().parts(FOUR) == [FOUR] and Attempts().parts([]) == []
    assert Attempts().charge(FOUR, []) == []
