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
from bench.training import capture, member, trainer
from bench.training import data as datasets
from bench.training.devices import set_precision
from tests import tiny

torch.set_num_threads(1)
NAMES = methods.names()
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: CUDA graphs exist there only")
STEPS, BATCH = 12, 8


def teacher_net() -> zoo.Net:
    with member.seeded(5, "teacher of a test"):
        return zoo.build("resnet8")


def made(tmp_path, *names: str, device: str = "cpu", precision: str = "fp32") -> trainer.Trainer:
    runs = [tiny.run(tmp_path, name).model_copy(update={"precision": precision}) for name in names]
    dataset = tiny.dataset()
    held = {f.name: getattr(dataset, f.name) for f in dataclasses.fields(dataset)}
    moved = {name: value.to(device) for name, value in held.items() if value is not None}
    dataset = dataclasses.replace(dataset, **moved)
    return trainer.Trainer.of(runs, dataset, teacher_net() if any(run.teacher for run in runs) else None)


def tensors_of(at: trainer.Trainer) -> list[torch.Tensor]:
    """Everything a step changes."""
    nets = [net for m in at.members for net in (m.student, m.method, m.drifting) if net]
    momentum = [value for m in at.members for state in m.optimizer.state.values() for value in state.values()]
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


def take(at: trainer.Trainer, step, moving=None) -> list[torch.Tensor]:
    """Steps over epochs of 80 images in batches of 8, with a new learning rate each; loss terms and gradient norms."""
    seen = []
    moving = at.members if moving is None else moving
    for epoch in (1, 2):
        run = next((m.run for m in at.members if m.paired), at.members[0].run)
        images = datasets.augmented_epoch(at.dataset, run.data, run.seed, epoch)
        for m in moving:
            m.begin_epoch(epoch)
        for number, part in enumerate(datasets.slices(78, BATCH)):  # the last one has 6
            part = slice(part.start, min(part.stop, 78))
            for m in moving:
                m.set_lr(0.05 / (1 + number + 10 * epoch))
            results = trainer.results_of(step(*images.batch(part), members=moving, measure=number == 0))
            seen += [value.clone() for result in results for value in result if value is not None]
    return seen


@pytest.mark.parametrize("name", NAMES)
def test_replayed_steps_equal_eager_ones(tmp_path, name):
    """New inputs, epoch and learning rate reach a replayed step, whole, measured or of a partial batch.

    To rounding: a replay may sum in another layout.
    """
    eager, other = made(tmp_path, name), made(tmp_path, name)
    calls, pools = [], set()

    def counted(*inputs, **options):
        calls.append((len(inputs[2]), options["measure"]))
        return other.step(*inputs, **options)

    step = capture.Captured(counted, graph=lambda pool: pools.add(id(pool)) or Tape(other))
    expected, got = take(eager, eager.step), take(other, step)
    # Three as they are, the first one measured; then each form is recorded once, and replayed.
    assert calls == [(BATCH, True), (BATCH, False), (BATCH, False), (BATCH, False), (6, False), (BATCH, True)]
    assert len(pools) == 1 and len(step.recordings) == 3
    for number, (a, b) in enumerate(zip(expected, got, strict=True)):
        assert torch.allclose(a, b, rtol=1e-5), number
    assert apart(eager, other) < 1e-2


def test_what_is_baked_in_would_show(tmp_path):
    """The stand-in can fail: a learning rate that is a number stays at what it was when the step was recorded."""
    eager, other = made(tmp_path, "vanilla"), made(tmp_path, "vanilla")

    def set_lr(lr):
        other.members[0].optimizer.param_groups[0]["lr"] = lr

    other.members[0].set_lr = set_lr
    step = capture.Captured(other.step, graph=lambda pool: Tape(other))
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


def to_meta(made: trainer.Trainer) -> None:
    """Put each tensor that `Module.to` would move, and the trainer's own, on a device without numbers."""
    fake = without_numbers
    (at,) = made.members
    made.dataset = dataclasses.replace(made.dataset, mean=fake(made.dataset.mean), std=fake(made.dataset.std))
    for net in (at.student, made.teacher, at.drifting, at.method):
        for module in net.modules() if net else ():
            for name, value in module._parameters.items():
                if value is not None:
                    module._parameters[name] = nn.Parameter(fake(value), requires_grad=value.requires_grad)
            for name, value in module._buffers.items():
                module._buffers[name] = None if value is None else fake(value)
    at.trained = [*at.student.parameters(), *at.method.parameters()]
    at.lr, at.epoch = fake(at.lr), fake(at.epoch)
    settings = at.optimizer.param_groups[0]
    kept = {name: settings[name] for name in ("momentum", "weight_decay", "nesterov")}
    at.optimizer = torch.optim.SGD(at.trained, lr=0.05, **kept, foreach=True)  # the fused one has no fake form


def fake_step(at: trainer.Trainer) -> list[str]:
    """One step of whole batch size; raises where it would wait for the device, and returns what mixes memories."""
    epoch = datasets.augmented_epoch(at.dataset, at.members[0].run.data, 0, 1)
    inputs = epoch.images, epoch.strong_images, epoch.labels, epoch.indices
    at.members[0].begin_epoch(1)
    to_meta(at)
    inputs = [None if value is None else without_numbers(value[:BATCH]) for value in inputs]
    with Watch() as watch, pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # knows no such device
        ((values, _),) = trainer.results_of(at.step(*inputs))
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
    (own,) = at.members
    terms = own.method.terms
    own.method.terms = lambda *inputs: {"ce": do(terms(*inputs)["ce"])}
    if said == "copy":
        assert fake_step(at) != []
    else:
        with pytest.raises((RuntimeError, NotImplementedError)):
            fake_step(at)


@pytest.mark.parametrize("several", [NAMES, ("vanilla", "ofd", "mlkd")])
def test_a_replayed_cohort_equals_eager_steps(tmp_path, several):
    """One recording for all; made anew when a member leaves, and not before one that joins has warmed up."""
    eager, other = made(tmp_path, *several), made(tmp_path, *several)
    calls = []

    def counted(*inputs, **options):
        calls.append(len(options["members"]))
        return other.step(*inputs, **options)

    step = capture.Captured(counted, graph=lambda pool: Tape(other))
    for count in (len(several), len(several) - 1):
        expected, got = take(eager, eager.step, eager.members[:count]), take(other, step, other.members[:count])
        for number, (a, b) in enumerate(zip(expected, got, strict=True)):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-6), number
        assert apart(eager, other) < 1e-2
        for a, b in zip(tensors_of(eager), tensors_of(other), strict=True):  # roundings do not add up
            b.detach().copy_(a)
    assert calls == [len(several)] * 6 + [len(several) - 1] * 3  # the rest are replays


def test_a_step_that_cannot_be_recorded_runs_as_it_is(tmp_path, capsys):
    """Said once; what fails is not tried again, and training is that of eager steps."""

    class Refusing:
        def __init__(self, pool):
            pass

        def record(self, work):
            raise RuntimeError("operation not permitted when stream is capturing\nmore of it")

    eager, other = made(tmp_path, "skd"), made(tmp_path, "skd")
    step = capture.Captured(other.step, graph=Refusing)
    assert all(map(torch.equal, take(eager, eager.step), take(other, step)))
    assert capsys.readouterr().err.splitlines() == [
        "steps are not recorded as a CUDA graph: operation not permitted when stream is capturing"
    ]


def test_want_of_memory_while_recording_is_everybodys(tmp_path):
    class Full:
        def __init__(self, pool):
            pass

        def record(self, work):
            raise torch.OutOfMemoryError("CUDA out of memory")

    other = made(tmp_path, "kd")
    with pytest.raises(torch.OutOfMemoryError):
        take(other, capture.Captured(other.step, graph=Full))


@CUDA
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("name", [*NAMES, "all"])
def test_captured_equals_eager_on_a_gpu(tmp_path, name, precision):
    """Single steps, each from the same state: two free runs part from rounding alone within a few steps."""
    device = torch.device("cuda")
    names = NAMES if name == "all" else (name,)
    with capture.own_stream(device):
        set_precision(precision)
        eager, other = (made(tmp_path, *names, device="cuda", precision=precision) for _ in range(2))
        step = capture.captured(other.step, device)
        rough = precision != "fp32"
        for own in other.members:
            own.begin_epoch(1)

        def both(*batch, **options):
            for a, b in zip(tensors_of(eager), tensors_of(other), strict=False):  # at first there is no momentum
                b.detach().copy_(a)
            for a, b in zip(eager.members, other.members, strict=True):
                b.epoch.copy_(a.epoch)
                b.set_lr(a.lr_now)
            expected = trainer.results_of(eager.step(*batch, members=eager.members, measure=options["measure"]))
            got = trainer.results_of(step(*batch, members=other.members, measure=options["measure"]))
            for (a, _), (b, _) in zip(expected, got, strict=True):
                assert torch.allclose(a, b, rtol=2e-2 if rough else 1e-4, atol=1e-3 if rough else 1e-5)
            assert apart(eager, other) < (0.2 if rough else 0.02)
            return got

        take(eager, both)
