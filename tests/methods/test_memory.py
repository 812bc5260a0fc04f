"""Memory of every method's loss terms, forward and backward, counted on a device without numbers.

Counted are the tensors that exist at once beyond the networks' outputs: what the terms make, what autograd keeps of it,
and the gradients. On a GPU this comes on top of the networks' own passes.
"""

from __future__ import annotations

import copy
import weakref
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import methods
import zoo
from bench import protocol
from bench.run import Teacher
from methods import rkd
from zoo import Outputs
from zoo.outputs import IMAGE

MIB = 2**20


class Live(TorchDispatchMode):
    """Bytes of the storages made inside that are alive, and their peak. What came from outside counts nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.known: set[int] = set()
        self.live_bytes = self.peak_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        self._meet((args, kwargs), counts=False)
        result = func(*args, **(kwargs or {}))
        self._meet(result, counts=True)
        self.peak_bytes = max(self.peak_bytes, self.live_bytes + inside(func, args))
        return result

    def _meet(self, tree: Any, counts: bool) -> None:
        for tensor in tree_leaves(tree):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.known:
                    size = storage.nbytes() if counts else 0
                    self.known.add(storage._cdata)
                    self.live_bytes += size
                    weakref.finalize(storage, self._forget, storage._cdata, size)

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live_bytes -= size


def inside(func: Any, args: tuple[Any, ...]) -> int:
    """Bytes that an operator holds while it runs, of those where it matters."""
    aten = torch.ops.aten
    if func in (aten.smooth_l1_loss.default, aten.mse_loss.default):  # the elements before their mean
        return args[0].nbytes
    if func is aten._cdist_backward.default:  # on a GPU: each pair's part of the gradient, (rows, B, D)
        return args[0].nbytes * args[1].shape[1]
    return 0


@cache
def net(arch: str) -> zoo.Net:
    return zoo.build(arch)


@cache
def outputs(arch: str, batch: int) -> Outputs:
    with torch.no_grad():
        return copy.deepcopy(net(arch)).to("meta").outputs(torch.empty(batch, *IMAGE, device="meta"))


def leaves(seen: Outputs) -> Outputs:
    """The student's side: gradients go this far."""

    def leaf(value: Tensor) -> Tensor:
        return value.detach().requires_grad_()

    return replace(
        seen,
        logits=leaf(seen.logits),
        features=tuple(leaf(f) for f in seen.features),
        preact=tuple(leaf(p) for p in seen.preact),
        last_map=leaf(seen.last_map),
        pooled=leaf(seen.pooled),
    )


@cache
def peak_mib(name: str, batch: int, pair: str = "resnet56-resnet20") -> float:
    """Peak of one step's terms and their backward pass in MiB, float32, parameters of `standard`."""
    teacher_arch, student_arch = pair.split("-")
    cls = methods.get(name)
    trained = Teacher(arch=teacher_arch, run_id=f"vanilla-{teacher_arch}-s0-00000000") if cls.uses_teacher else None
    run = protocol.resolve(protocol.load("standard"), name, student_arch, 0, teacher=trained)
    params = methods.check(cls.Params, run.params, "test")
    train_set = methods.TrainSet(torch.arange(50_000) % 100, 100)
    method = cls(params, net(student_arch), net(teacher_arch) if trained else None, train_set).to("meta").train()
    student = leaves(outputs(student_arch, batch))
    teacher = outputs(teacher_arch, batch) if trained else None
    if method.views == "paired":
        student = replace(student, strong=leaves(student))
        teacher = teacher and replace(teacher, strong=teacher)
    whole = methods.Batch(*(torch.empty(batch, dtype=torch.int64, device="meta") for _ in range(2)))
    progress = methods.Progress(torch.empty((), device="meta"))
    with Live() as live, pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # knows no such device
        terms = method.terms(student, teacher, whole, progress)
        torch.stack(list(terms.values())).sum().backward()
    assert student.logits.grad is not None
    return live.peak_bytes / MIB


# --- every method -----------------------------------------------------------------------------------------------------

STATED = {  # MiB at batch 64 and at 1024
    "vanilla": (0.07, 1.2),
    "fitnet": (8, 128),
    "rkd": (10.3, 202),
    "crd": (61, 973),
    "ofd": (24, 384),
    "reviewkd": (123, 1972),
    "kd": (0.15, 2.3),
    "clkd": (0.29, 3.5),
    "dkd": (0.24, 3.9),
    "mlkd": (1.6, 91),
    "sdd": (1.6, 25),
    "skd": (0.23, 34),
    "skd_paper": (0.23, 34),
}


@pytest.mark.parametrize("name", methods.names())
def test_no_method_grows_with_the_cube_of_the_batch(name: str) -> None:
    small, large = peak_mib(name, 64), peak_mib(name, 1024)
    assert (small, large) == pytest.approx(STATED.get(name, (small, large)), rel=0.1)
    assert large / small < 1.05 * (1024 / 64) ** 2
    assert large < peak_mib("kd", 1024) + 4 * 1024


def test_the_larger_parts_of_a_gpu_fit_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rkd, "LARGEST", rkd.LARGEST_ON_GPU)
    assert 202 < peak_mib.__wrapped__("rkd", 1024) < 2 * 1024


def test_all_angles_at_once_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rkd, "LARGEST", 2**40)
    small, large = (peak_mib.__wrapped__("rkd", batch) for batch in (64, 1024))
    assert large > 5 * 8 * 1024 and large / small > 3000


@pytest.mark.parametrize("width", [64, 512])
def test_a_gpu_holds_no_difference_of_every_pair(width: int) -> None:
    """The gradient of `cdist` there would hold (1024, 1024, width) numbers: 4 GiB for VGG's features."""
    embeddings = torch.empty(1024, width, dtype=torch.float64, device="meta", requires_grad=True)
    with Live() as live:
        rkd.relative_distances(embeddings).sum().backward()
    assert live.peak_bytes < 100 * MIB


# --- the count --------------------------------------------------------------------------------------------------------


def test_the_count_knows_what_autograd_keeps() -> None:
    x = torch.empty(MIB // 4, device="meta", requires_grad=True)
    with Live() as live:
        z = x.exp().cos()
        assert live.live_bytes == 2 * MIB  # the exponential is kept for the gradient
        view = z[1:].view(3, -1)
        z.mul_(2)
        assert live.live_bytes == 2 * MIB
        del z
        assert live.live_bytes == 2 * MIB  # the view holds all of it
        view.sum().backward()
        del view
        assert live.live_bytes == x.grad.nbytes == MIB
    assert 3 * MIB <= live.peak_bytes < 7 * MIB


def test_the_count_sees_inside_operators_where_it_matters() -> None:
    x = torch.empty(16, 2, dtype=torch.float64, device="meta", requires_grad=True)
    with Live() as live, torch.no_grad():
        torch.nn.functional.smooth_l1_loss(x, x)
        assert live.peak_bytes == x.nbytes + 8
    distances = torch.cdist(x, x)
    with Live() as live:
        distances.sum().backward()
    assert live.peak_bytes > 16 * 16 * 2 * 8
