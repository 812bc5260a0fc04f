"""Whose time it was: what each member of a cohort took of the device, and what it would have taken alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from bench.cost import student_flop, teacher_flop

if TYPE_CHECKING:
    from bench.training.member import Member


class Clock:
    """Adds to the times in the members' states.

    On a CPU in core seconds, told by the process's own clock, which stands still while other processes work: each part
    of a step is timed by itself. On a GPU, where a step is one graph, an epoch's wall time is divided by FLOP.
    `device_s` gets a member's part of what is shared, `alone_s` the whole of it.
    """

    def __init__(self, device: torch.device) -> None:
        self.cpu = device.type == "cpu"
        self._now = time.process_time if self.cpu else time.monotonic
        self._ticked = time.monotonic()
        self.restart()

    def restart(self) -> None:
        """Count from now: `shared_s` and `all_s`, on a CPU the seconds of what was shared, and of everything."""
        self._lap, self.shared_s, self.all_s = self._now(), 0.0, 0.0

    def shared(self, members: Sequence[Member]) -> None:
        """All since the last call was for these together."""
        if self.cpu and members:
            seconds = self._since()
            self.shared_s += seconds
            for member in members:
                member.state.device_s += seconds / len(members)
                member.state.alone_s += seconds

    def own(self, member: Member) -> None:
        """All since the last call was for this one."""
        if self.cpu:
            seconds = self._since()
            member.state.device_s += seconds
            member.state.alone_s += seconds

    def spread(self, members: Sequence[Member]) -> None:
        """On a GPU: all since the last call was for these, in steps that cannot be timed apart."""
        if self.cpu or not members:
            return
        own = {member: student_flop(member.run) for member in members}
        teachers = {member: teacher_flop(member.run) for member in members}
        sharing = sum(member.shares_teacher for member in members)
        parts = {m: own[m] + teachers[m] / (sharing if m.shares_teacher else 1) for m in members}
        seconds = self._since() / sum(parts.values())
        for member in members:
            member.state.device_s += seconds * parts[member]
            member.state.alone_s += seconds * (own[member] + teachers[member])

    def tick(self, moving: Sequence[Member]) -> None:
        """The wall time since the last call was one in which these moved."""
        now = time.monotonic()
        for member in moving:
            member.state.wall_s += now - self._ticked
        self._ticked = now

    def _since(self) -> float:
        now = self._now()
        seconds, self._lap = now - self._lap, now
        self.all_s += seconds
        return seconds
