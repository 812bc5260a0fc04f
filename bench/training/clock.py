"""Whose time it was: what each member of a cohort took of the device, and what it would have taken alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from bench.cost import shared_step_flop, step_flop, student_flop, teacher_flop

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
        """Count from now: `shared_s` and `all_s`, on a CPU the seconds of what all shared, and of everything."""
        self._lap, self.shared_s, self.all_s = self._now(), 0.0, 0.0

    def shared(self, members: Sequence[Member]) -> None:
        """All since the last call was for these together."""
        self.shared_s += self._among(members)

    def second_view(self, members: Sequence[Member]) -> None:
        """All since the last call was for these together, which see a second view; the others do not."""
        self._among(members)

    def _among(self, members: Sequence[Member]) -> float:
        """Divide the time since the last call; returns it, 0 where there is nobody to have it, or on a GPU."""
        if not self.cpu or not members:
            return 0.0
        seconds = self._since()
        for member in members:
            member.state.device_s += seconds / len(members)
            member.state.alone_s += seconds
        return seconds

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
        parts, sharing = {}, [member for member in members if member.shares_teacher]
        for member in members:
            common = shared_step_flop(member.run)
            second = teacher_flop(member.run) - common
            if member.shares_teacher:
                common, second = common / len(sharing), second / max(1, sum(one.paired for one in sharing))
            parts[member] = student_flop(member.run) + common + second
        seconds = self._since() / sum(parts.values())
        for member in members:
            member.state.device_s += seconds * parts[member]
            member.state.alone_s += seconds * step_flop(member.run)

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
