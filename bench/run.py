"""What a run is: a fully resolved, frozen description named by its content. Nothing here trains."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from methods import Settings
from methods.settings import added_later

Precision = Literal["fp32", "tf32", "bf16"]
# SHA-256 of a content.
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Datasets = Literal["cifar100", "embedded-1", "cifar10", "tiny-imagenet-200", "image-folder"]


class Strong(Settings):
    """Strong augmentation: crop and flip, RandAugment, cutout."""

    ops: PositiveInt
    """Operations of RandAugment per image."""
    posterize_bits: tuple[NonNegativeInt, NonNegativeInt] = Field(strict=False)
    """The fewest and the most bits that posterize leaves."""


class Source(Settings):
    """What was found in a folder of images, whose content no published sum vouches for: see `bench.trees`.

    The digest is of the content: of every image's bytes, its class, its name and the part it is in, and of no path.
    """

    digest: Digest
    """SHA-256 over every image's bytes, class, name and part."""
    classes: PositiveInt
    """Number of classes."""
    train: PositiveInt
    """Training images."""
    smallest: PositiveInt
    """Training images of the class with the fewest."""
    test: PositiveInt
    """Test images."""


Channels = Annotated[tuple[float, float, float], Field(strict=False)]


class Data(Settings):
    """What a run trains on and is watched on; the test set is always the whole test set."""

    dataset: Datasets
    """The data set, by the name that `--list data` gives."""
    train_images: Annotated[int, Field(gt=0, le=10_000_000)] | None
    """Train on so many images, as many of each class, of what validation leaves; null is all of that."""
    views: Literal["weak", "weak+strong", "paired"]
    """weak: crop and flip; weak+strong: a weakly and a strongly augmented copy of each image, shuffled together;
    paired: both views of an image in one step.
    """
    strong: Strong | None
    """The strong augmentation, where views names one; else null."""
    validation: Annotated[int, Field(ge=0, le=10_000_000)] | None = added_later()
    """Hold out so many training images, as many of each class: accuracy during training is measured on them, and the
    test set is looked at once, after the last epoch. 0: nothing is measured before that. Null, the field's habit:
    the test set after every epoch.
    """
    side: Annotated[int, Field(ge=32, le=1024, multiple_of=16)] | None = added_later()
    """Height and width that the images of a folder are resized to; data sets of one size take none."""
    mean: Channels | None = added_later()
    """Mean of normalisation, of each channel for pixels in 0..1; null is the data set's own. Goes with std."""
    std: Channels | None = added_later()
    """Deviation of normalisation, likewise, above 0."""
    source: Source | None = added_later()
    """Found out from the folder, never written in a protocol."""

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
    """An optimiser and its learning rate over the epochs: SGD with steps, the field's, unless it says otherwise."""

    epochs: Annotated[int, Field(gt=0, le=100_000)]
    """Number of epochs."""
    batch: Annotated[int, Field(gt=0, le=100_000)]
    """Images per step."""
    lr: PositiveFloat
    """Learning rate that the schedule starts from, or the height of its cycle."""
    momentum: Annotated[float, Field(ge=0, lt=1)]
    """Momentum of SGD; beta1 of AdamW."""
    nesterov: bool
    """Whether SGD's momentum is Nesterov's."""
    weight_decay: NonNegativeFloat
    """Weight decay of everything trainable, BatchNorm and biases included."""
    milestones: tuple[PositiveInt, ...] = Field(strict=False)
    """Epochs after which the learning rate drops, rising; [] is none."""
    gamma: PositiveFloat
    """What the learning rate is multiplied by at a milestone."""
    grad_clip: PositiveFloat | None
    """Largest L2 norm over all gradients; null is off."""
    peak_at: Annotated[float, Field(gt=0, lt=1)] | None = added_later()
    """One cycle: the learning rate rises from 0 to lr in this share of all steps, then falls to 0, both linearly. Goes
    with milestones: [].
    """
    optimizer: Annotated[Literal["adamw"] | None, BeforeValidator(lambda given: None if given == "sgd" else given)] = (
        added_later()
    )
    """adamw is that of Loshchilov and Hutter (ICLR 2019); null, or sgd, is SGD."""
    beta2: Annotated[float, Field(gt=0, lt=1)] | None = added_later()
    """beta2 of AdamW; null is 0.999."""
    eps: PositiveFloat | None = added_later()
    """epsilon of AdamW; null is 1e-8."""
    schedule: Literal["cosine"] | None = added_later()
    """cosine falls from lr to final_lr over what follows the warm-up, along half a cosine (Loshchilov and Hutter, ICLR
    2017, without restarts); null is steps at the milestones, or one cycle where peak_at is given.
    """
    final_lr: NonNegativeFloat | None = added_later()
    """Where schedule cosine ends, below lr; null is 0."""
    label_smoothing: Annotated[float, Field(gt=0, lt=1)] | None = added_later()
    """Smoothing of the labels in every method's cross entropy; null is 0. Losses on held-out images have none of it."""
    warm_up: PositiveFloat | None = added_later()
    """Epochs in which the learning rate rises from 0 to what the schedule begins with, linearly; parts of one count."""

    @model_validator(mode="after")
    def _one_schedule(self) -> Train:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError("milestones must rise strictly")
        if self.milestones and self.milestones[-1] >= self.epochs:
            raise ValueError(f"milestone {self.milestones[-1]} is never reached in {self.epochs} epochs")
        if self.milestones and self.peak_at is not None:
            raise ValueError("milestones and peak_at are two schedules: choose one (milestones: [] is none)")
        if self.schedule and (self.milestones or self.peak_at is not None):
            raise ValueError("schedule cosine has no milestones and no peak_at: write milestones: []")
        if self.final_lr is not None and not (self.schedule and self.final_lr < self.lr):
            raise ValueError("final_lr is where schedule cosine ends, below lr")
        if self.warm_up is not None and self.peak_at is not None:
            raise ValueError("one cycle (peak_at) has a warm-up of its own: leave warm_up out")
        if self.warm_up is not None and self.warm_up >= (self.milestones or (self.epochs,))[0]:
            raise ValueError("warm_up must end before the first milestone, and before the last epoch")
        return self

    @model_validator(mode="after")
    def _one_optimizer(self) -> Train:
        if self.optimizer and self.nesterov:
            raise ValueError("nesterov is SGD's: with adamw write nesterov: false")
        for name in ("beta2", "eps"):
            if getattr(self, name) is not None and not self.optimizer:
                raise ValueError(f"{name} is AdamW's: add optimizer: adamw or leave it out")
        return self

    def lr_at(self, epoch: int, within: float = 0.5) -> float:
        """Learning rate in an epoch counted from 1, at a moment `within` it (0 to 1), where that matters."""
        passed = epoch - 1 + within
        if self.peak_at is not None:
            done = passed / self.epochs
            return self.lr * min(done / self.peak_at, (1 - done) / (1 - self.peak_at))
        warm_up = self.warm_up or 0.0
        if passed < warm_up:
            return self.lr * passed / warm_up
        if self.schedule == "cosine":
            end, done = self.final_lr or 0.0, (passed - warm_up) / (self.epochs - warm_up)
            return end + (self.lr - end) * (1 + math.cos(math.pi * done)) / 2
        return self.lr * self.gamma ** sum(epoch > milestone for milestone in self.milestones)


class ProtocolRef(Settings):
    name: str
    version: PositiveInt


class Teacher(Settings):
    """A teacher is another run: trained from labels (`vanilla-...`) or a file of weights (`checkpoint-...`)."""

    arch: str
    run_id: str


class Network(Settings):
    """A network from outside the project, by what makes it and by what its layers are: see `zoo.outside.Recipe`."""

    factory: str
    """What makes it: a dotted name, as torchvision.models.resnet18, or FILE.py:NAME, a path from the grid's folder."""
    digest: Digest | None = None
    """Of that file and what it imports from its folder: found out, never written."""
    args: dict[str, Any] = {}
    """Arguments of the factory."""
    features: tuple[str, ...] = Field(default=(), strict=False)
    """Layers whose outputs are the feature maps f1, f2, ..., by their names in the network."""
    stem: str | None = None
    """The layer whose output is f0; null is what goes into the first of features."""
    preact: tuple[str, ...] = Field(default=(), strict=False)
    """Layers that give f1, f2, ... before their activation; without them they are the features."""
    head: str | None = None
    """The classifier, an nn.Linear; null is the last one with an output per class."""
    classes: str | None = "num_classes"
    """Keyword of the factory for the number of classes; null passes none."""
    side: str | None = None
    """Keyword of the factory for the side of images; null passes none."""


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
    # Of a method that comes from a file of its author's, and of networks that do not come with the project, by name.
    method_digest: Digest | None = added_later()
    networks: dict[str, Network] | None = added_later()

    @property
    def run_id(self) -> str:
        """`<method>-<teacher>-<student>-s<seed>-<hash8>`; without a teacher `vanilla-<arch>-s<seed>-<hash8>`."""
        return self._id(self.seed, self.hash8)

    @property
    def hash8(self) -> str:
        """First 8 hex digits of the SHA-256 of the canonical JSON of all fields.

        What is None is left out, so that a new optional setting leaves the ids of old runs as they are.
        """
        return _digits(canonical_json(self.model_dump(mode="json", exclude_none=True)))

    def by_seed(self, seeds: Iterable[int]) -> dict[str, Run]:
        """This run with each of the seeds, by run id: checked and written out once and not once a seed."""
        fields = self.model_dump(mode="json", exclude_none=True)
        # Keys are sorted: all that stands before the seed, and all behind it.
        before = canonical_json({name: value for name, value in fields.items() if name < "seed"}).removesuffix("}")
        behind = canonical_json({name: value for name, value in fields.items() if name > "seed"}).removeprefix("{")
        return {
            self._id(seed, _digits(f'{before},"seed":{seed},{behind}')): self.model_copy(update={"seed": seed})
            for seed in seeds
        }

    def _id(self, seed: int, hash8: str) -> str:
        parts = [self.method, self.teacher.arch if self.teacher else None, self.student, f"s{seed}", hash8]
        return "-".join(part for part in parts if part)


def _digits(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no blanks, no NaN: equal settings give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def seed_for(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed from (seed, purpose), independent of method and teacher: what pairs methods seed by seed."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
