"""What a device does at best, measured, and the least time that this leaves a training step.

The floor of a step is the larger of two times: its FLOP (`bench.cost`) at the device's best measured convolution or
matrix product, and its bytes at the measured bandwidth. Bytes: each output of a convolution, BatchNorm or linear layer
written and read once in a forward pass, and twice that again in the student's backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

import zoo
from bench.cost import step_flop
from bench.datasets import facts
from bench.measure.step_cost import now
from bench.run import Precision, Run
from bench.training.devices import set_precision

LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
WIDE = ((64, 32), (128, 16), (256, 8))  # channels and side of images: the stages of the wider networks
THIN = ((16, 32), (32, 16), (64, 8))  # and those of resnet8 to resnet110
BATCH = 64
MATRIX = {"cuda": 8192, "cpu": 2048}  # rows and columns
COPIED = {"cuda": 1 << 29, "cpu": 1 << 28}  # bytes: far more than any cache
TURN_S, MOST, TURNS = 0.02, 200, 3  # a turn is as many calls as take that long, at most so many


@dataclass(frozen=True)
class Limits:
    """What the device does at best."""

    flop_per_s: float
    bytes_per_s: float

    def floor_s(self, run: Run) -> float:
        """The least that a step of a run takes."""
        return max(step_flop(run) / self.flop_per_s, step_bytes(run) / self.bytes_per_s)


def limits(device: torch.device, precision: Precision) -> Limits:
    """The best of 3x3 convolutions of 64 images in both layouts and a matrix product, and a copy."""
    products = [product(device, precision), *(convolution(device, precision, layout, BATCH)[0] for layout in LAYOUTS)]
    return Limits(max(products), copy(device))


def copy(device: torch.device, size: int | None = None) -> float:
    """Bytes per second of a copy on the device, read and written; `size` is that of the source in bytes."""
    source = torch.empty(size or COPIED[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / call_s(lambda: target.copy_(source), device)


def product(device: torch.device, precision: Precision, rows: int | None = None) -> float:
    """FLOP per second of a product of two square matrices."""
    set_precision(precision)
    rows = rows or MATRIX[device.type]
    a = torch.randn(rows, rows, device=device, dtype=_dtype(precision))
    return 2 * rows**3 / call_s(lambda: a @ a, device)


@torch.no_grad()
def convolution(
    device: torch.device, precision: Precision, layout: str, batch: int, shapes: tuple = WIDE
) -> tuple[float, tuple[int, int]]:
    """FLOP per second of the fastest 3x3 convolution of `batch` images, and its channels and side."""
    set_precision(precision)
    found = {}
    with autotuned(True):  # the most that cuDNN has
        for channels, side in shapes:
            x = torch.randn(batch, channels, side, side, device=device, dtype=_dtype(precision))
            w = torch.randn(channels, channels, 3, 3, device=device, dtype=_dtype(precision))
            x, w = (tensor.contiguous(memory_format=LAYOUTS[layout]) for tensor in (x, w))
            seconds = call_s(lambda x=x, w=w: nn.functional.conv2d(x, w, padding=1), device)
            found[channels, side] = 2 * 9 * channels * x.numel() / seconds
    best = max(found, key=found.get)
    return found[best], best


@contextmanager
def autotuned(wanted: bool) -> Iterator[None]:
    """Inside cuDNN times its algorithms for each new shape, or takes the one it thinks best."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = wanted
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def call_s(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call, the least of TURNS turns. The device is waited for once a turn and not after each call."""
    for _ in range(2):  # the first one finds or compiles what the second one uses
        work()
    started = now(device)
    work()
    count = max(1, min(MOST, int(TURN_S / max(now(device) - started, 1e-9))))
    times = []
    for _ in range(TURNS):
        started = now(device)
        for _ in range(count):
            work()
        times.append((now(device) - started) / count)
    return min(times)


def _dtype(precision: Precision) -> torch.dtype:
    return torch.bfloat16 if precision == "bf16" else torch.float32


def step_bytes(run: Run) -> float:
    """Bytes of a step, as the module says; in bfloat16 half of them."""
    known = facts(run.data)
    student, teacher = (
        zoo.counts(arch, known.classes, known.side).outputs if arch else 0
        for arch in (run.student, run.teacher and run.teacher.arch)
    )
    passes = 6 * student + 2 * teacher
    views = 2 if run.data.views == "paired" else 1
    return passes * run.train.batch * views * (2 if run.precision == "bf16" else 4)
