"""What a run is: a fully resolved, frozen description named by its content. Nothing here trains."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from methods import Settings
from methods.settings import added_later

Precision = Literal["fp32", "tf32", "bf16"]
Datasets = Literal["cifar100", "embedded-1", "cifar10", "tiny-imagenet-200", "image-folder"]


class Strong(Settings):
    """Strong augmentation: crop and flip, RandAugment, cutout."""

    ops: PositiveInt
    posterize_bits: tuple[NonNegativeInt, NonNegativeInt] = Field(strict=False)


class Source(Settings):
    """What was found in a folder of images, whose content no published sum vouches for: see `bench.trees`.

    The digest is of the content: of every image's bytes, its class, its name and the part it is in, and of no path.
    """

    digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    classes: PositiveInt
    train: PositiveInt  # images
    smallest: PositiveInt  # training images of the class with the fewest
    test: PositiveInt


Channels = Annotated[tuple[float, float, float], Field(strict=False)]


class Data(Settings):
    """What a run trains on and is watched on; the test set is always the whole test set."""

    dataset: Datasets
    # A class-balanced subset of that size; None is the whole training set.
    train_images: Annotated[int, Field(gt=0, le=10_000_000)] | None
    views: Literal["weak", "weak+strong", "paired"]
    strong: Strong | None
    # So many training images, class-balanced, are held out: accuracy during training is measured on them, and the test
    # set is looked at once, after the last epoch. With 0 nothing is measured before that. None is the field's habit:
    # the test set after every epoch. `train_images` is drawn from what is left.
    validation: Annotated[int, Field(ge=0, le=10_000_000)] | None = added_later()
    # Height and width that the images of a folder are resized to; a data set of one size has none to give.
    side: Annotated[int, Field(ge=32, le=1024, multiple_of=16)] | None = added_later()
    # Of normalisation, for pixels in 0..1; None is the data set's own.
    mean: Channels | None = added_later()
    std: Channels | None = added_later()
    # Filled in when a folder has been read (`bench.datasets.identified`), never written in a protocol.
    source: Source | None = added_later()

    @model_validator(mode="after")
    def _a_whole_normalisation(self) -> Data:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std go together: give both or neither")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError("std must be above 0 in each channel")
        return self

    @model_validator(mode="after")
    def _strong_where_used(self) -> Data:
        if (self.views == "weak") != (self.strong is None):
            raise ValueError("views 'weak+strong' and 'paired' need a `strong` section, 'weak' has none")
        return self


class Train(Settings):
    """SGD with a step schedule, the field's optimiser, or with a one-cycle schedule."""

    epochs: Annotated[int, Field(gt=0, le=100_000)]
    batch: Annotated[int, Field(gt=0, le=100_000)]
    lr: PositiveFloat
    momentum: Annotated[float, Field(ge=0, lt=1)]
    nesterov: bool
    weight_decay: NonNegativeFloat  # applies to everything trainable, BatchNorm and biases included
    milestones: tuple[PositiveInt, ...] = Field(strict=False)  # epochs after which the learning rate drops
    gamma: PositiveFloat
    grad_clip: PositiveFloat | None  # L2 norm over all gradients; None is off
    # One cycle: the learning rate rises from 0 to `lr` in this share of all steps, then falls to 0, both linearly.
    peak_at: Annotated[float, Field(gt=0, lt=1)] | None = added_later()

    @model_validator(mode="after")
    def _rising_milestones(self) -> Train:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError("milestones must rise strictly")
        if self.milestones and self.milestones[-1] >= self.epochs:
            raise ValueError(f"milestone {self.milestones[-1]} is never reached in {self.epochs} epochs")
        if self.milestones and self.peak_at is not None:
            raise ValueError("milestones and peak_at are two schedules: choose one (milestones: [] is none)")
        return self

    def lr_at(self, epoch: int, within: float = 0.5) -> float:
        """Learning rate in an epoch counted from 1, at a moment `within` it (0 to 1), where that matters."""
        if self.peak_at is not None:
            done = (epoch - 1 + within) / self.epochs
            return self.lr * min(done / self.peak_at, (1 - done) / (1 - self.peak_at))
        return self.lr * self.gamma ** sum(epoch > milestone for milestone in self.milestones)


class ProtocolRef(Settings):
    name: str
    version: PositiveInt


class Teacher(Settings):
    """A teacher is another run: trained from labels (`vanilla-...`) or a file of weights (`checkpoint-...`)."""

    arch: str
    run_id: str


class Run(Settings):
    """Everything that can change a result, and nothing else: no path, device, executor or thread count."""

    method: str  # registered name, or "checkpoint": weights from a file, evaluated and offered as a teacher
    params: dict[str, Any]
    student: str
    teacher: Teacher | None
    data: Data
    train: Train | None  # None for a checkpoint
    protocol: ProtocolRef
    precision: Precision
    seed: NonNegativeInt

    @property
    def run_id(self) -> str:
        """`<method>-<teacher>-<student>-s<seed>-<hash8>`; without a teacher `vanilla-<arch>-s<seed>-<hash8>`."""
        return self._id(self.seed, self.hash8)

    @property
    def hash8(self) -> str:
        """First 8 hex digits of the SHA-256 of the canonical JSON of all fields.

        What is None is left out, so that a new optional setting leaves the ids of old runs as they are.
        """
        return _hash8(self.model_dump(mode="json", exclude_none=True))

    def by_seed(self, seeds: Iterable[int]) -> dict[str, Run]:
        """This run with each of the seeds, by run id: checked and written out once and not once a seed."""
        fields = self.model_dump(mode="json", exclude_none=True)
        return {
            self._id(seed, _hash8({**fields, "seed": seed})): self.model_copy(update={"seed": seed}) for seed in seeds
        }

    def _id(self, seed: int, hash8: str) -> str:
        parts = [self.method, self.teacher.arch if self.teacher else None, self.student, f"s{seed}", hash8]
        return "-".join(part for part in parts if part)


def _hash8(fields: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(fields).encode()).hexdigest()[:8]


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no blanks, no NaN: equal settings give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def seed_for(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed from (seed, purpose), independent of method and teacher: what pairs methods seed by seed."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
