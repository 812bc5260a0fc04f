"""Devices and precision: what is there, and the switches that a run's precision stands for."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from bench.run import Precision
from zoo.errors import BadInput

# In the words of errors that have no type of their own.
NO_MEMORY = ("DefaultCPUAllocator: can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
BROKEN = ("CUDA error", "CUBLAS_STATUS_", "CUDNN_STATUS_", "cuDNN error", "cusolver error", "CUDA driver error")


def parse_device(name: str) -> torch.device:
    """auto (CUDA where there is a GPU), cpu, cuda or cuda:N; BadInput where it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise BadInput(f'unknown device "{name}": choose auto, cpu or cuda')
    if device.type == "cuda" and not 0 <= (device.index or 0) < torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise BadInput(
            f'device "{name}" is not there ({found or "no"} GPU{"s" if found != 1 else ""} found): '
            "use --device cpu, or run where there is one"
        )
    return device


# Channels-last makes a step 1.3 to 1.5 times as fast on a CPU (oneDNN), measured; on a GPU it is what tensor cores
# read, and what BatchNorm of few channels wants least: believed until `bench.gpu` has measured it.
CHANNELS_LAST = {("cpu", "fp32"), ("cpu", "bf16"), ("cuda", "tf32"), ("cuda", "bf16")}


def memory_format(device: torch.device, precision: Precision = "fp32") -> torch.memory_format:
    """Layout of images and weights."""
    return torch.channels_last if (device.type, precision) in CHANNELS_LAST else torch.contiguous_format


def failure_of_device(error: BaseException) -> Literal["memory", "device"] | None:
    """What failed if it was not the run's own doing: there was no memory, or the device or its libraries broke.

    After an error of CUDA nothing works any more in the process that met it.
    """
    said = str(error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(words in said for words in NO_MEMORY):
        return "memory"
    broken = isinstance(error, getattr(torch, "AcceleratorError", ())) or any(words in said for words in BROKEN)
    return "device" if isinstance(error, RuntimeError) and broken else None


def check_precision(precision: Precision, device: torch.device) -> None:
    """BadInput where a device does not know a precision."""
    if precision == "tf32" and device.type != "cuda":
        raise BadInput("--precision tf32 exists on NVIDIA GPUs only: use fp32 or bf16 on a CPU")


def set_precision(precision: Precision) -> None:
    """TensorFloat-32 only where a run says so: PyTorch leaves it on for convolutions, which is not fp32."""
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager:
    """bfloat16 for the forward passes and the loss where a run says so."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()
