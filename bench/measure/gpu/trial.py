"""What is tried in the sections: sizes, runs on random images, and the settings that are compared."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import methods
from bench import protocol
from bench.cost import step_flop
from bench.measure import ceilings, step_cost
from bench.measure.ceilings import THIN, WIDE
from bench.run import Precision, Run, Teacher
from bench.training import devices, evaluate, member, trainer
from bench.training.capture import captured
from bench.training.devices import set_precision

LARGE = 512  # from this batch on a run is one of `sprint`, below it one of `standard`


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    pairs: tuple[str, ...] = ("resnet56-resnet20", "wrn_40_2-wrn_16_2", "resnet32x4-resnet8x4")
    batches: tuple[int, ...] = (64, 1024)
    methods: tuple[str, ...] = tuple(methods.names())
    precisions: tuple[Precision, ...] = ("fp32", "tf32", "bf16")
    agreeing_pair: str = "resnet20-resnet8"  # chaos grows with depth, and faults of a capture do not
    agreeing_batch: int = 64
    agreeing_steps: int = 8  # captured ones, beside the warm-up
    agreeing_methods: tuple[str, ...] = ("kd", "crd", "mlkd", "skd")  # in the other precisions
    matrix: int | None = None  # rows; the default of `ceilings`
    copied: int | None = None  # bytes; likewise
    convolved: tuple[tuple[int, int], ...] = (THIN[0], *WIDE)  # channels and side
    processes: tuple[int, ...] = (1, 2, 4)
    stepping_s: float = 4.0  # of the processes of a count
    plain_pairs: tuple[str, ...] = ("resnet56-resnet20", "wrn_40_2-wrn_16_2")
    plain_steps: int = 40
    images: int = 50_000  # of an epoch
    profiled_steps: int = 5
    accepting: bool = True  # the checks of `bench.acceptance`, minutes on a CPU


SMALL = Sizes(
    pairs=("resnet8-resnet8",),
    batches=(8,),
    methods=("vanilla", "kd", "mlkd"),
    precisions=("fp32", "bf16"),
    agreeing_pair="resnet8-resnet8",
    agreeing_batch=8,
    agreeing_steps=2,
    agreeing_methods=("kd",),
    matrix=64,
    copied=1 << 20,
    convolved=THIN[:1],
    processes=(1, 2),
    stepping_s=0.2,
    plain_pairs=("resnet8-resnet8",),
    plain_steps=2,
    images=100,
    profiled_steps=2,
    accepting=False,
)


def run_of(name: str, pair: str, batch: int, precision: Precision = "fp32") -> Run:
    """A run of a method on a pair at a batch; its teacher is random."""
    recipe = protocol.load("standard" if batch < LARGE else "sprint")
    arch, _, student = pair.partition("-")
    teacher = Teacher(arch=arch, run_id="random") if methods.get(name).uses_teacher else None
    run = protocol.resolve(recipe, name, student, 0, teacher=teacher, precision=precision)
    return run.model_copy(update={"train": run.train.model_copy(update={"batch": batch})})


def work_of(run: Run) -> dict[str, float]:
    """What a step of a run has to do at least."""
    return {"flop": step_flop(run), "bytes": ceilings.step_bytes(run)}


def stepper(runs: Sequence[Run], device: torch.device) -> Callable[[], object]:
    """The next step of runs on noise that train together, as training takes it: captured on a GPU.

    To be called on a stream of its own.
    """
    set_precision(runs[0].precision)
    at = step_cost.trainer_on_noise(runs, device)
    taken = captured(at.step, device)
    return lambda: step_cost.step(at, taken)


def tensors(at: trainer.Trainer) -> list[Tensor]:
    """Everything that a step changes."""
    nets = [net for own in at.members for net in (own.student, own.method, own.drifting) if net]
    momentum = [value for own in at.members for state in own.optimizer.state.values() for value in state.values()]
    return [*(value for net in nets for value in net.state_dict().values()), *momentum]


def default_layout(precision: Precision, device: torch.device) -> str:
    """The name of the layout that training has today."""
    chosen = devices.memory_format(device, precision)
    return next(name for name, layout in ceilings.LAYOUTS.items() if layout == chosen)


@contextmanager
def layout(name: str) -> Iterator[None]:
    """Inside, training has that layout whatever the device and the precision."""
    places = (trainer, member, evaluate)
    before = [place.memory_format for place in places]
    for place in places:
        place.memory_format = lambda *given: ceilings.LAYOUTS[name]
    try:
        yield
    finally:
        for place, function in zip(places, before, strict=True):
            place.memory_format = function


@contextmanager
def deterministic() -> Iterator[None]:
    """Inside, kernels that give the same bits each time, where there are such: what differs is then a fault."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.deterministic
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.deterministic = cudnn


@contextmanager
def memory(device: torch.device) -> Iterator[dict[str, Any]]:
    """GiB at the peak of what is done inside, as allocated and as reserved; nothing on a CPU."""
    found: dict[str, Any] = {}
    gc.collect()
    if device.type != "cuda":
        yield found
        return
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    try:
        yield found
    finally:
        found["allocated_gib"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 3)
        found["reserved_gib"] = round(torch.cuda.max_memory_reserved(device) / 2**30, 3)
