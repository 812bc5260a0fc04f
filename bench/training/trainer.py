"""The training loop, one for all methods. Runs in; for each of them weights, metrics and a curve out.

Runs that see the same images and the same teacher train together (`bench.cohorts`): a batch is made and passed through
the teacher once, then each takes its own step. A run alone is a cohort of one. Nothing is selected, stopped or rolled
back on test accuracy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench import store
from bench.run import Precision, Run
from bench.training import data as datasets
from bench.training.capture import captured, side_by_side
from bench.training.clock import Clock
from bench.training.devices import autocast, failure_of_device, memory_format, set_precision
from bench.training.member import Member, Result, State, on_device, outputs_of
from zoo.inference import folded

CHECKPOINT_EVERY_S = 60.0


class Stopped(Exception):
    """Training was asked to stop; everything needed to go on is in the checkpoint."""


class Hooks:
    """What training tells of one run. What `on_epoch`, `before_write` or `done` raise makes the run leave with it."""

    def on_step(self, epoch: int, step: int, steps: int) -> None:
        """After each step, and each batch of an evaluation: epoch (from 1), its steps so far and in all. Be cheap."""

    def on_epoch(self, row: dict[str, Any]) -> None:
        """After each epoch, with its row of the curve."""

    def before_write(self) -> None:
        """Before each checkpoint; may raise to keep it from being written."""

    def damaged(self, damage: store.Damaged) -> None:
        """The checkpoint cannot be used; where this does not raise, training starts from the beginning."""
        raise damage

    def other_source(self) -> None:
        """It goes on from a checkpoint that another source of its method made."""

    def done(self, network: nn.Module, state: State) -> None:
        """All epochs are through: the network that is deployed, in most methods the student itself."""

    def left(self, error: Exception) -> None:
        """The run does not go on, for this reason; the others of its cohort do."""


@dataclass(frozen=True)
class Entrant:
    """A run that is to be trained: from `checkpoint` if it is there, else from the start."""

    run: Run
    checkpoint: Path
    hooks: Hooks


class Trainer:
    """What the members of a cohort share, images and teacher, and the single step that they take."""

    def __init__(self, dataset: datasets.Dataset, teacher: nn.Module | None, precision: Precision) -> None:
        """Without members as yet: see `admit`. `teacher` is the trained network of all that have one."""
        self.dataset, self.device = dataset, dataset.train_images.device
        self.precision, self.layout = precision, memory_format(self.device, precision)
        self.clock = Clock(self.device)
        self.members: list[Member] = []
        self.teacher: nn.Module | None = None  # as a step asks it, once a member shares it
        self._trained = teacher

    @classmethod
    def of(cls, runs: Sequence[Run], dataset: datasets.Dataset, teacher: nn.Module | None) -> Trainer:
        """With all of `runs` as members, at their start."""
        made = cls(dataset, teacher, runs[0].precision)
        for run in runs:
            made.admit(run)
        return made

    def admit(self, run: Run) -> Member:
        """Make a run a member, at its start."""
        member = Member(run, self.dataset, self._trained if run.teacher else None)
        if member.shares_teacher and self.teacher is None:
            self.teacher = on_device(folded(self._trained), self.device, self.layout)
        self.members.append(member)
        return member

    def step(
        self,
        images: Tensor,
        strong_images: Tensor | None,
        labels: Tensor,
        indices: Tensor,
        members: Sequence[Member] | None = None,
        measure: bool = False,
    ) -> list[Result | Exception]:
        """One optimiser step of each of `members` (default: all), on uint8 images (B, 3, h, w).

        Returns each one's result, or the exception that its own part of the step raised. What fails the device fails
        everybody, and is raised. Nothing here waits for the device.
        """
        members = self.members if members is None else members
        inputs = self._input(images)
        self.clock.shared(members)
        teacher, taught = None, [member for member in members if member.shares_teacher]
        paired = [member for member in members if member.paired]
        with torch.no_grad(), autocast(self.precision, self.device):
            if taught:
                teacher = outputs_of(self.teacher, inputs, None)
            self.clock.shared(taught)
            strong = self._input(strong_images) if paired else None
            self.clock.second_view(paired)
            taught = [member for member in taught if member.paired]
            if taught:
                teacher = replace(teacher, strong=outputs_of(self.teacher, strong, None))
            self.clock.second_view(taught)

        def own(member: Member) -> Result | Exception:
            try:
                shared = teacher if member.shares_teacher else None
                return member.step(inputs, strong, labels, indices, shared, measure)
            except Exception as error:
                if failure_of_device(error):
                    raise
                return error
            finally:
                self.clock.own(member)

        return side_by_side(own, members, len(labels), self.device)

    def _input(self, images: Tensor) -> Tensor:
        return self.dataset.normalise(images).contiguous(memory_format=self.layout)


def results_of(step: Sequence[Result | Exception]) -> list[Result]:
    """What a step gave each member; raises what one of them raised."""
    for result in step:
        if isinstance(result, Exception):
            raise result
    return list(step)


def train(
    entrants: Sequence[Entrant],
    dataset: datasets.Dataset,
    teacher: nn.Module | None,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    checkpoint_every_s: float = CHECKPOINT_EVERY_S,
) -> None:
    """Train runs that `bench.cohorts` lets share a process; the hooks of each hear what becomes of it.

    Each goes on from its checkpoint. Those furthest behind move, until all have met; one with fewer epochs leaves
    early. Whose loss is not finite (Diverged), or whose step or hooks raise, leaves with that; the others go on. When
    `should_stop` says so at a step, all leave with a checkpoint (Stopped). What fails the device is raised.
    On a GPU call it on a stream of its own (`capture.own_stream`).
    """
    first = entrants[0].run
    set_precision(first.precision)
    trainer = Trainer(dataset, teacher, first.precision)
    cohort = _Cohort(trainer)
    cohort.admit(entrants)
    step, batch = captured(trainer.step, trainer.device), first.train.batch
    saved_at = time.monotonic()
    while trainer.members:
        leader = min(trainer.members, key=lambda member: (*member.at, member.threads))
        number, start = leader.at
        if trainer.device.type == "cpu":
            torch.set_num_threads(leader.threads)
        epoch = cohort.augmented(number, leader.run)
        steps, moving = epoch.steps(batch), []
        for at, part in enumerate(datasets.slices(len(epoch.labels), batch, first=start), start=start):
            before, moving = moving, [m for m in trainer.members if (*m.at, m.threads) == (number, at, leader.threads)]
            for member in moving:
                if member not in before:
                    member.begin_epoch(number)
                member.set_lr(member.run.train.lr_at(number, (at + 0.5) / steps))
            cohort.took(moving, step(*epoch.batch(part), members=moving, measure=at == 0), steps)
            stop = should_stop()
            if stop or time.monotonic() - saved_at > checkpoint_every_s:
                cohort.save()
                saved_at = time.monotonic()
            if stop:
                cohort.leave(trainer.members, Stopped())
            if not any(member in trainer.members for member in moving):
                break  # all of them have left
        else:
            cohort.finish_epoch(leader, steps, len(epoch.labels))


class _Cohort:
    """What the loop does for each member. One for which it raises leaves with that; its `entrants` say whom to tell."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.clock = trainer, trainer.clock
        self.entrants: dict[Member, Entrant] = {}
        self._unsaved: set[Member] = set()
        self._epoch: datasets.Epoch | None = None
        self._made: tuple[int, bool] = (0, False)

    def admit(self, entrants: Iterable[Entrant]) -> None:
        """Make each a member, where its checkpoint is, or at the start where that is damaged."""
        for entrant in entrants:
            try:
                member = self.trainer.admit(entrant.run)
                self.entrants[member] = entrant
                try:
                    if member.restore(entrant.checkpoint) and len(member.state.sources) > 1:
                        entrant.hooks.other_source()
                except store.Damaged as damage:
                    entrant.hooks.damaged(damage)
                    self.trainer.members.remove(member)
                    self.entrants[self.trainer.admit(entrant.run)] = self.entrants.pop(member)
            except Exception as error:
                if failure_of_device(error):
                    raise
                self.trainer.members = [m for m in self.trainer.members if self.entrants.get(m) is not entrant]
                entrant.hooks.left(error)

    def augmented(self, number: int, run: Run) -> datasets.Epoch:
        """The images of an epoch for all that have its steps to take; a second view where one of them asks for it."""
        paired = [m.run.data for m in self.trainer.members if m.paired and m.state.epoch == number]
        if self._epoch is None or self._made != (number, bool(paired)):
            self._epoch = None  # two of them need not fit
            data = paired[0] if paired else run.data
            self._epoch = datasets.augmented_epoch(self.trainer.dataset, data, run.seed, number)
            self._made = number, bool(paired)
        self.clock.shared([m for m in self.trainer.members if m.state.epoch == number])
        return self._epoch

    def took(self, moving: Sequence[Member], results: Sequence[Result | Exception], steps: int) -> None:
        """Take down a step of each."""
        for member, result in zip(moving, results, strict=True):
            if isinstance(result, Exception):
                self.leave([member], result)
                continue
            member.took(result, steps, len(moving))
            self._unsaved.add(member)
            self.entrants[member].hooks.on_step(*member.at, steps)
        self.clock.tick(moving)

    def save(self) -> None:
        """Write a checkpoint of each that has moved since its last one. What has diverged is never saved."""

        def write(member: Member) -> None:
            entrant = self.entrants[member]
            member.check_finite()
            entrant.hooks.before_write()
            member.save(entrant.checkpoint)

        self._each([m for m in self.trainer.members if m in self._unsaved], write)
        self._unsaved.clear()

    def finish_epoch(self, leader: Member, steps: int, samples: int) -> None:
        """Evaluate those that have taken all steps; who has no epoch left is done."""

        number = leader.state.epoch

        def finish(member: Member) -> None:
            hooks = self.entrants[member].hooks
            hooks.on_epoch(member.finish_epoch(samples, lambda: hooks.on_step(number, steps, steps)))

        def end(member: Member) -> None:
            self.entrants[member].hooks.done(member.network, member.state)
            self.trainer.members.remove(member)

        ended = [m for m in self.trainer.members if (*m.at, m.threads) == (number, steps, leader.threads)]
        self.clock.spread(ended)
        self._each(ended, finish)
        self.clock.tick(ended)  # with the last evaluation, which the last row leaves out
        self._each([m for m in ended if m in self.trainer.members and m.state.epoch > m.run.train.epochs], end)

    def leave(self, members: Iterable[Member], error: Exception) -> None:
        """These do not go on."""
        for member in list(members):
            self.trainer.members.remove(member)
            self.entrants[member].hooks.left(error)

    def _each(self, members: Iterable[Member], do: Callable[[Member], None]) -> None:
        for member in members:
            try:
                do(member)
            except Exception as error:
                if failure_of_device(error):
                    raise
                self.leave([member], error)
            finally:
                self.clock.own(member)
