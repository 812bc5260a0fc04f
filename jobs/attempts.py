"""What becomes of runs whose process failed under them: again in smaller company, then alone, then no more.

In company a failure says nothing of any one run, so it costs the company and no run: where memory was short they go
on in two halves, else each alone. Alone it costs the run one of its `ATTEMPTS`. So no run holds others for more than
one failure, and none is given up for what another did.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from jobs.outcomes import CRASHED, DIED, NO_MEMORY, Answer

ATTEMPTS = 2  # of a run alone, in one call or job: the second goes on from the checkpoint


class Verdict(NamedTuple):
    """Whether a run is tried again, and the line that says so, or why not."""

    run_id: str
    again: bool
    message: str


@dataclass
class Attempts:
    """The failures so far. `room`: with how many runs at most, itself included, a run may share a process."""

    alone: dict[str, int] = field(default_factory=dict)
    room: dict[str, int] = field(default_factory=dict)

    def charge(self, order: Collection[str], interrupted: Collection[Answer]) -> list[Verdict]:
        """Take down that a process which was given `order` together failed under some of these runs, or all."""
        short = any(answer.outcome == NO_MEMORY for answer in interrupted)
        half = -(-len(interrupted) // 2)
        verdicts = []
        for run_id, outcome, message in interrupted:
            if short and outcome == DIED:  # without memory a process has no word for all of its runs
                outcome = NO_MEMORY
            again, company = True, ""
            if len(order) > 1:
                room = self.room[run_id] = half if outcome == NO_MEMORY else 1
                company = ", alone" if room == 1 else f", in a company of {room}"
            else:
                self.alone[run_id] = self.alone.get(run_id, 0) + 1
                again = self.alone[run_id] < ATTEMPTS
            once_more = f"{_what(outcome, message)}, once more from the checkpoint{company}"
            verdicts.append(Verdict(run_id, again, once_more if again else _last(outcome, message)))
        return verdicts

    def parts(self, cohort: Sequence[str]) -> list[list[str]]:
        """A cohort cut so that each member has the room it needs; order is kept in each part."""
        by_room: dict[int, list[str]] = {}
        for run_id in cohort:
            by_room.setdefault(self.room.get(run_id, len(cohort)), []).append(run_id)
        return [
            members[start : start + room] for room, members in by_room.items() for start in range(0, len(members), room)
        ]


def _what(outcome: str, message: str) -> str:
    return {CRASHED: message, NO_MEMORY: "out of GPU memory", DIED: f"its worker died ({message})"}[outcome]


def _last(outcome: str, message: str) -> str:
    if outcome == NO_MEMORY:
        return f"out of GPU memory: use fewer --slots or --together ({message})"
    return f"worker died {ATTEMPTS} times, last with {message}" if outcome == DIED else message
