"""The captured step without a GPU: a stand-in for the graph, and every method's step on a device that does not exist.

The stand-in (`Tape`) does what a CUDA graph does: recording leaves everything as it was, replaying does the recorded
operations again on the same tensors, and no Python of the step runs. What would be baked in by mistake shows.
"""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import methods
import zoo
from bench.training import capture, trainer
from bench.training import data as datasets
from tests import tiny

torch.set_num_threads(1)
NAMES = methods.names()
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: CUDA graphs exist there only")
STEPS, BATCH = 12, 8


def teacher_net() -> zoo.Net:
    with trainer.seeded(5, "teacher of a test"):
        return zoo.build("resnet8")


def made(tmp_path, name: str, device: str = "cpu") -> trainer.Trainer:
    run, dataset = tiny.run(tmp_path, name), tiny.dataset()
    dataset = dataclasses.replace(
        dataset, **{f.name: getattr(dataset, f.name).to(device) for f in dataclasses.fields(dataset)}
    )
    return trainer.Trainer(run, dataset, teacher_net() if run.teacher else None)


def tensors_of(at: trainer.Trainer) -> list[torch.Tensor]:
    """Everything a step changes."""
    nets = [at.student, at.method, *([at.teacher] if at.teacher else [])]
    momentum = [value for state in at.optimizer.state.values() for value in state.values()]
    return [*(value for net in nets for value in net.state_dict().values()), *momentum]


def apart(one: trainer.Trainer, other: trainer.Trainer) -> float:
    """The largest relative distance of two tensors that should be equal. Rounding that switches a ReLU gives 1e-3."""
    both = zip(tensors_of(one), tensors_of(other), strict=True)
    return max(float((a - b).double().norm() / (1e-9 + b.double().norm())) for a, b in both)


class Tape(TorchDispatchMode):
    """Stands in for a CUDA graph: records the operations of a step, and replays them without the step's Python."""

    def __init__(self, at: trainer.Trainer) -> None:
        super().__init__()
        self.at, self.operations = at, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        # Storage that autograd would hand on is kept, as a graph keeps its pool.
        self.operations.append((function, args, kwargs or {}, result))
        return result

    def record(self, work):
        before = [tensor.clone() for tensor in tensors_of(self.at)]
        with self:
            result = work()
        for tensor, value in zip(tensors_of(self.at), before, strict=True):
            tensor.detach().copy_(value)
        return result

    @torch.no_grad()
    def replay(self):
        for function, args, kwargs, results in self.operations:
            again = function(*args, **kwargs)
            for old, new in zip(tree_leaves(results), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.detach().copy_(new)


def take(at: trainer.Trainer, step, device: str = "cpu") -> list[torch.Tensor]:
    """Steps over epochs of 80 images in batches of 8, with a new learning rate each; their loss terms."""
    losses = []
    for epoch in (1, 2):
        images = datasets.augmented_epoch(at.dataset, at.run.data, at.run.seed, epoch)
        at.begin_epoch(epoch)
        for number, part in enumerate(datasets.slices(78, BATCH)):  # the last one has 6
            part = slice(part.start, min(part.stop, 78))
            at.set_lr(0.05 / (1 + number + 10 * epoch))
            strong = None if images.strong_images is None else images.strong_images[part]
            values, _ = step(
                images.images[part], strong, images.labels[part], images.indices[part], measure=number == 0
            )
            losses.append(values.clone())
    return losses


@pytest.mark.parametrize("name", NAMES)
def test_replayed_steps_equal_eager_ones(tmp_path, name):
    """New inputs, epoch and learning rate reach a replayed step; partial batches stand apart.

    To rounding: a replay may sum in another layout.
    """
    eager, other = made(tmp_path, name), made(tmp_path, name)
    calls = []

    def counted(*inputs, **options):
        calls.append(len(inputs[2]))
        return other.step(*inputs, **options)

    step = capture.Captured(counted, BATCH, graph=lambda: Tape(other))
    expected, got = take(eager, eager.step), take(other, step)
    # Measured, three as they are, one recorded, then replays; of the second epoch the measured and the partial one.
    assert calls == [BATCH] * 5 + [6, BATCH, 6]
    for number, (a, b) in enumerate(zip(expected, got, strict=True)):
        assert torch.allclose(a, b, rtol=1e-5), number
    assert apart(eager, other) < 1e-2


def test_what_is_baked_in_would_show(tmp_path):
    """The stand-in can fail: a learning rate that is a number stays at what it was when the step was recorded."""
    eager, other = made(tmp_path, "vanilla"), made(tmp_path, "vanilla")

    def set_lr(lr):
        other.optimizer.param_groups[0]["lr"] = lr

    other.set_lr = set_lr
    step = capture.Captured(other.step, BATCH, graph=lambda: Tape(other))
    take(eager, eager.step)
    take(other, step)
    assert not all(
        torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(tensors_of(eager), tensors_of(other), strict=True)
    )


class Watch(TorchDispatchMode):
    """Takes down operations that mix memory of the host with that of the device, and copies between them."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
        counts = [x for x in tensors if x.dim() or "copy" in str(function)]  # a scalar of the host goes as a number
        if any(tensor.device.type != "meta" for tensor in counts):
            self.mixed.append(str(function))
        return result


def without_numbers(value: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def to_meta(at: trainer.Trainer) -> None:
    """Put each tensor that `Module.to` would move, and the trainer's own, on a device without numbers."""
    fake = without_numbers
    for net in (at.student, at.teacher, at.method):
        for module in net.modules() if net else ():
            for name, value in module._parameters.items():
                if value is not None:
                    module._parameters[name] = nn.Parameter(fake(value), requires_grad=value.requires_grad)
            for name, value in module._buffers.items():
                module._buffers[name] = None if value is None else fake(value)
    at.trained = [*at.student.parameters(), *at.method.parameters()]
    at.lr, at.epoch = fake(at.lr), fake(at.epoch)
    at.dataset = dataclasses.replace(at.dataset, mean=fake(at.dataset.mean), std=fake(at.dataset.std))
    settings = at.optimizer.param_groups[0]
    kept = {name: settings[name] for name in ("momentum", "weight_decay", "nesterov")}
    at.optimizer = torch.optim.SGD(at.trained, lr=0.05, **kept, foreach=True)  # the fused one has no fake form


def fake_step(at: trainer.Trainer) -> list[str]:
    """One step of whole batch size; raises where it would wait for the device, and returns what mixes memories."""
    epoch = datasets.augmented_epoch(at.dataset, at.run.data, 0, 1)
    inputs = epoch.images, epoch.strong_images, epoch.labels, epoch.indices
    at.begin_epoch(1)
    to_meta(at)
    inputs = [None if value is None else without_numbers(value[:BATCH]) for value in inputs]
    with Watch() as watch, pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # knows no such device
        values, _ = at.step(*inputs)
    assert values.device.type == "meta"
    return watch.mixed


@pytest.mark.parametrize("name", NAMES)
def test_no_step_waits_for_the_device(tmp_path, name):
    """An `.item()`, a shape that follows from numbers, a copy from the host: without numbers none can be done."""
    assert fake_step(made(tmp_path, name)) == []


@pytest.mark.parametrize(
    ("said", "do"),
    [
        ("item", lambda x: x * x.detach().item()),
        ("shape", lambda x: x + x.new_zeros(4).nonzero().sum()),
        ("copy", lambda x: x + torch.ones(1).to(x.device).sum()),
    ],
)
def test_what_waits_would_show(tmp_path, said, do):
    at = made(tmp_path, "vanilla")
    terms = at.method.terms
    at.method.terms = lambda *inputs: {"ce": do(terms(*inputs)["ce"])}
    if said == "copy":
        assert fake_step(at) != []
    else:
        with pytest.raises((RuntimeError, NotImplementedError)):
            fake_step(at)


@CUDA
@pytest.mark.parametrize("name", NAMES)
def test_captured_equals_eager_on_a_gpu(tmp_path, name):
    """200 steps in fp32, to rounding: of the weights, and of the loss terms on the way."""
    device = torch.device("cuda")
    with capture.own_stream(device):
        eager, other = (made(tmp_path, name, "cuda") for _ in range(2))
        expected, got = [], []
        for _ in range(10):
            expected += take(eager, eager.step)
        step = capture.captured(other.step, BATCH, device)
        for _ in range(10):
            got += take(other, step)
        for number, (a, b) in enumerate(zip(expected, got, strict=True)):
            assert torch.allclose(a, b, rtol=1e-3, atol=1e-4), number
        assert apart(eager, other) < 0.05
