"""A training step recorded once as a CUDA graph, and replayed: one launch in place of thousands.

At batch 64 a step of these networks is bound by the launching of kernels, not by their work. Nothing else of training
knows of it: `Captured` is called as the step is.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from bench.training.devices import failure_of_device

EAGER_STEPS = 3  # of each member before a recording: momentum, cuBLAS workspaces and the like are made by then

BRANCHES = 4  # streams that members of a cohort are spread over within a graph
BRANCH_BATCH = 256  # up to this batch one student's kernels leave most of a GPU idle

T = TypeVar("T")
M = TypeVar("M")


class Graph(Protocol):
    """What records device work without doing it, and then does it again and again at the same addresses."""

    def record(self, work: Callable[[], T]) -> T: ...

    def replay(self) -> None: ...


class CudaGraph:
    """`torch.cuda.CUDAGraph` on the current stream, which must not be the default one (`own_stream`).

    Graphs with the same `pool` share their memory: it is as large as the largest of them, since only one runs at a time
    and what they return stays.
    """

    def __init__(self, pool: Any) -> None:
        self.graph, self.pool = torch.cuda.CUDAGraph(), pool

    def record(self, work: Callable[[], T]) -> T:
        with torch.cuda.graph(self.graph, pool=self.pool, stream=torch.cuda.current_stream()):
            return work()

    def replay(self) -> None:
        self.graph.replay()


class Recording:
    """One graph with the buffers that it reads and the result that each replay overwrites."""

    def __init__(self, graph: Graph, step: Callable[..., T], inputs: Sequence[Tensor | None], **options: Any) -> None:
        self.graph = graph
        self.inputs = [None if given is None else given.clone() for given in inputs]
        self.result = graph.record(lambda: step(*self.inputs, **options))

    def replay(self, inputs: Sequence[Tensor | None]) -> Any:
        for kept, given in zip(self.inputs, inputs, strict=True):
            if kept is not None:
                kept.copy_(given)
        self.graph.replay()
        return self.result


class Captured:
    """`step`, recorded once for each form that it is called in: plain, measured, and the partial batch of an epoch.

    All recordings share one pool of memory, and are made anew when other members move. The first steps of a member run
    as they are. What a recorded step reads has to lie in tensors that stay: inputs are copied into buffers here, and
    members keep epoch and learning rate as tensors. The result is overwritten by the next call.
    """

    def __init__(self, step: Callable[..., T], graph: Callable[[Any], Graph] = CudaGraph) -> None:
        self.step, self.graph = step, graph
        self.recordings: dict[tuple, Recording] = {}
        self.members: tuple[Any, ...] = ()
        self.pool: Any = None
        self.taken: Counter[Any] = Counter()  # steps of each member
        self.fails = False  # a step that cannot be recorded runs as it is

    def __call__(self, *inputs: Tensor | None, members: Sequence[Any] = (), measure: bool = False) -> Any:
        if tuple(members) != self.members:
            self._forget()
            self.members = tuple(members)
        form = len(inputs[0]), measure, inputs[1] is None
        if form not in self.recordings and not self._record(form, inputs, measure):
            self.taken.update(self.members or (None,))
            return self.step(*inputs, members=members, measure=measure)
        return self.recordings[form].replay(inputs)

    def _record(self, form: tuple, inputs: Sequence[Tensor | None], measure: bool) -> bool:
        """Record this form of the step if it is time, and say whether that was done."""
        if self.fails or min(self.taken[member] for member in self.members or (None,)) < EAGER_STEPS:
            return False
        if self.pool is None:
            self.pool = _new_pool()
        try:
            recording = Recording(self.graph(self.pool), self.step, inputs, members=self.members, measure=measure)
            if any(isinstance(result, Exception) for result in recording.result):
                raise RuntimeError("a member's step failed")
        except Exception as error:
            if failure_of_device(error) == "memory" or not _usable():
                raise
            self._forget()
            self.fails = True
            print(f"steps are not recorded as a CUDA graph: {_one_line(error)}", file=sys.stderr, flush=True)
            return False
        self.recordings[form] = recording
        return True

    def _forget(self) -> None:
        """Give the memory of all recordings back."""
        self.recordings.clear()
        self.pool = None
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def captured(step: Callable[..., T], device: torch.device) -> Callable[..., T]:
    """The step as it is to be taken on a device: captured on a GPU, as it is elsewhere."""
    return Captured(step) if device.type == "cuda" else step


def side_by_side(do: Callable[[M], T], members: Sequence[M], batch: int, device: torch.device) -> list[T]:
    """`do` for each member. While a small batch is recorded on a GPU, as branches of the graph that run at once."""
    if (
        len(members) == 1
        or batch > BRANCH_BATCH
        or device.type != "cuda"
        or not torch.cuda.is_current_stream_capturing()
    ):
        return [do(member) for member in members]
    here, branches = torch.cuda.current_stream(device), _branches(device)[: len(members)]
    results = []
    for branch in branches:
        branch.wait_stream(here)
    for number, member in enumerate(members):
        with torch.cuda.stream(branches[number % len(branches)]):
            results.append(do(member))
    for branch in branches:
        here.wait_stream(branch)
    return results


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """All work inside on one stream that can be captured, the same one for a process's life. Nothing on a CPU."""
    if device.type != "cuda":
        yield
        return
    outer, stream = torch.cuda.current_stream(device), _stream(device)
    stream.wait_stream(outer)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        outer.wait_stream(stream)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One a process: what the allocator has cached for a stream serves that stream only."""
    return torch.cuda.Stream(device)


@cache
def _branches(device: torch.device) -> list[torch.cuda.Stream]:
    return [torch.cuda.Stream(device) for _ in range(BRANCHES)]


def _new_pool() -> Any:
    """A pool for graphs, once what steps as they are have left behind is given back: memory is not held twice."""
    if not torch.cuda.is_available():
        return object()  # a stand-in's
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.graph_pool_handle()


def _usable() -> bool:
    """Whether the device still answers after something failed on it."""
    try:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return True
    except RuntimeError:
        return False


def _one_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
