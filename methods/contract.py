"""What a distillation method is: its parameters, what it needs, its modules, and its loss terms.

A method sees networks' outputs and labels, never the trainer or the grid. `methods/README.md` shows how to add one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from methods.settings import Settings
from zoo import Outputs
from zoo.errors import choose

GROUPS = ("feature", "logit", "ours")


@dataclass(frozen=True)
class TrainSet:
    """Facts about the training set that a method may size its memory by."""

    labels: Tensor  # (N,) int64, on the training device; N is the number of distinct images
    num_classes: int


@dataclass(frozen=True)
class Batch:
    """One mini-batch as a method sees it. Everything lives on the training device."""

    labels: Tensor  # (B,) int64
    indices: Tensor  # (B,) int64, position of each sample in TrainSet.labels
    label_smoothing: float = 0.0

    def cross_entropy(self, logits: Tensor) -> Tensor:
        """The mean cross entropy of logits (B, C) with the labels, smoothed where the protocol says so: the label has
        probability 1 - s + s / C, each other class s / C (Szegedy et al., CVPR 2016). Every method takes its term of
        the labels from here.
        """
        return torch.nn.functional.cross_entropy(logits, self.labels, label_smoothing=self.label_smoothing)


@dataclass(frozen=True)
class Progress:
    """How far training is, as device scalars, so that a captured step can be replayed with new values."""

    epoch: Tensor  # float32 scalar, 1 in the first epoch (the field's convention for warm-up)

    def warm_up(self, epochs: int) -> Tensor:
        """Linear warm-up by epoch: min(epoch / epochs, 1)."""
        return torch.clamp(self.epoch / epochs, max=1.0)


class Method(nn.Module):
    """Base of every method. Parameters of its modules are trained, its buffers are checkpointed.

    Class attributes
        name: registered name, used in grids, run ids and file names.
        label: what the table prints.
        group: "feature", "logit" or "ours": the block of the table it stands in ("" for a baseline).
        row: place within its block; methods that do not say stand last.
        Params: its parameters, typed and bounded; values come from the protocol, defaults where the class has any.
        uses_teacher: False for training from labels alone.
        in_all: False leaves it out of grids that say `methods: all`, which are the target table's; others name it.

    No `.item()`, no Python branch on a tensor and no data-dependent shape inside `terms`: a step must be capturable.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    group: ClassVar[str]
    row: ClassVar[int] = 1000
    uses_teacher: ClassVar[bool] = True
    in_all: ClassVar[bool] = True

    class Params(Settings):
        """No parameters, unless a method says otherwise."""

    def __init__(self, params: Settings, student: nn.Module, teacher: nn.Module | None, train_set: TrainSet) -> None:
        super().__init__()
        self.params = params
        self.build(student, teacher, train_set)

    def build(self, student: nn.Module, teacher: nn.Module | None, train_set: TrainSet) -> None:
        """Make connectors, embeddings and memories. The networks are only looked at (`zoo.shapes`), never kept."""

    @property
    def views(self) -> Literal["paired"] | None:
        """ "paired" if each step needs a weakly and a strongly augmented view of the same images.

        Then `student.strong` and `teacher.strong` hold the second view's outputs.
        """
        return None

    @property
    def teacher_mode(self) -> Literal["eval", "train"]:
        """Mode of the teacher's BatchNorm while distilling; its weights are never trained."""
        return "eval"

    def deployed(self, student: nn.Module) -> nn.Module:
        """The network that is evaluated, kept and reported: the student itself unless the method adds to it.

        It shares its modules with the student and the method, and gives logits for images.
        """
        return student

    def watched(self) -> dict[str, Tensor]:
        """Scalars of its own state that the curve shows beside the loss terms, one value an epoch."""
        return {}

    def terms(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Loss terms, each a weighted scalar; their sum is minimised. The same keys at every step."""
        raise TypeError(f"method {self.name} does not define its loss terms")


_REGISTRY: dict[str, type[Method]] = {}
_OUTSIDE: dict[str, type[Method]] = {}  # methods from files elsewhere that are known at present


def register(cls: type[Method]) -> type[Method]:
    """Class decorator: make a method known by its name. A clash or a missing attribute is a programming error."""
    for attribute in ("name", "label", "group"):
        if not isinstance(getattr(cls, attribute, None), str):
            raise TypeError(f"{cls.__name__} must set {attribute} to a string")
    if cls.group not in ("", *GROUPS):
        raise TypeError(f"{cls.__name__}.group must be one of {GROUPS}")
    if cls.name in _REGISTRY:
        raise TypeError(f'two methods are called "{cls.name}": {_REGISTRY[cls.name].__name__} and {cls.__name__}')
    _REGISTRY[cls.name] = cls
    return cls


@contextmanager
def apart() -> Iterator[dict[str, type[Method]]]:
    """What is registered meanwhile is in this dict at the end, by name, and is known to nobody: see `bring`."""
    before, found = set(_REGISTRY), {}
    try:
        yield found
    finally:
        found.update({name: _REGISTRY.pop(name) for name in [*_REGISTRY] if name not in before})


def bring(classes: Mapping[str, type[Method]]) -> None:
    """Make methods from elsewhere known by these names, and no others."""
    _OUTSIDE.clear()
    _OUTSIDE.update(classes)


def get(name: str) -> type[Method]:
    """The method class of that name; BadInput with the nearest name otherwise."""
    known = _known()
    return known[choose("method", name, known)]


def all_names() -> tuple[str, ...]:
    """The methods that `methods: all` means in a grid, in table order."""
    return tuple(name for name in names() if name in _REGISTRY and _REGISTRY[name].in_all)


def names() -> tuple[str, ...]:
    """All known methods in table order: baselines, then feature-based, logit-based, ours."""
    order, known = ("", *GROUPS), _known()
    return tuple(sorted(known, key=lambda n: (order.index(known[n].group), known[n].row, n)))


def names_here() -> tuple[str, ...]:
    """The methods that come with the project."""
    return tuple(_REGISTRY)


def _known() -> dict[str, type[Method]]:
    return {**_OUTSIDE, **_REGISTRY}
