"""A training step recorded once as a CUDA graph, and replayed: one launch in place of a thousand.

At batch 64 a step of these networks is bound by the launching of kernels, not by their work. Nothing else of training
knows of it: `Captured` is called as the step is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

EAGER_STEPS = 3  # before the recording: lazily made things (momentum, cuBLAS workspaces) must exist by then

Result = tuple[Tensor, Tensor | None]


class Graph(Protocol):
    """What records device work without doing it, and then does it again and again at the same addresses."""

    def record(self, work: Callable[[], Result]) -> Result: ...

    def replay(self) -> None: ...


class CudaGraph:
    """`torch.cuda.CUDAGraph` on the current stream, which must not be the default one (`own_stream`)."""

    def __init__(self) -> None:
        self.graph = torch.cuda.CUDAGraph()

    def record(self, work: Callable[[], Result]) -> Result:
        with torch.cuda.graph(self.graph, stream=torch.cuda.current_stream()):
            return work()

    def replay(self) -> None:
        self.graph.replay()


class Captured:
    """`step`, captured for whole batches of `batch` samples.

    The first steps, the last partial batch of an epoch and steps that also measure run as they are: they are few.
    What a captured step reads has to lie in tensors that stay: the inputs are copied into buffers here, and the
    trainer keeps epoch and learning rate as tensors. The result is overwritten by the next call.
    """

    def __init__(self, step: Callable[..., Result], batch: int, graph: Callable[[], Graph] = CudaGraph) -> None:
        self.step, self.batch, self.graph = step, batch, graph()
        self.inputs: list[Tensor | None] = []
        self.result: Result | None = None
        self.eager_left = EAGER_STEPS

    def __call__(
        self, images: Tensor, strong_images: Tensor | None, labels: Tensor, indices: Tensor, measure: bool = False
    ) -> Result:
        inputs = images, strong_images, labels, indices
        if measure or len(labels) != self.batch:
            return self.step(*inputs, measure=measure)
        if self.eager_left:
            self.eager_left -= 1
            return self.step(*inputs)
        if self.result is None:
            self.inputs = [None if given is None else given.clone() for given in inputs]
            self.result = self.graph.record(lambda: self.step(*self.inputs))
        for kept, given in zip(self.inputs, inputs, strict=True):
            if kept is not None:
                kept.copy_(given)
        self.graph.replay()
        return self.result


def captured(step: Callable[..., Result], batch: int, device: torch.device) -> Callable[..., Result]:
    """The step as it is to be taken on a device: captured on a GPU, as it is elsewhere."""
    return Captured(step, batch) if device.type == "cuda" else step


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """All work inside on one stream that can be captured; runs of one process then overlap, too. Nothing on a CPU."""
    if device.type != "cuda":
        yield
        return
    outer, stream = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    stream.wait_stream(outer)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        outer.wait_stream(stream)
