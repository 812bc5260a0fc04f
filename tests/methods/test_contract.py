"""What the trainer may expect of every method, whichever methods there are."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import methods
import zoo
from bench import protocol
from bench.run import Teacher
from zoo import Outputs

torch.set_num_threads(1)
PAIRS = ("resnet20-resnet8", "wrn_16_2-wrn_16_1", "vgg13-vgg8")  # teacher-student
CLASSES = 100
BATCH = 4
# Trains the teacher's embedding, whose memory the student is scored against.
INDIRECT = {("crd", "crd_teacher")}


@dataclass(frozen=True)
class Scene:
    """Two networks, four images in two views, and what the teacher says of them."""

    student: zoo.Net
    teacher: zoo.Net
    train_set: methods.TrainSet
    batch: methods.Batch
    views: tuple[Tensor, Tensor]
    teacher_outputs: Outputs


@cache
def scene(pair: str, dtype: torch.dtype = torch.float64) -> Scene:
    """Shared by the tests, which must leave it as it is: they work on `student_copy`."""
    torch.manual_seed(0)
    teacher_arch, student_arch = pair.split("-")
    student, teacher = zoo.build(student_arch, CLASSES).to(dtype), zoo.build(teacher_arch, CLASSES).to(dtype)
    for module in teacher.modules():  # a trained teacher's BatchNorms are no identity
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
    teacher.eval().requires_grad_(False)
    labels = torch.arange(170 * CLASSES) % CLASSES  # room for 16,384 negatives
    indices = torch.tensor([0, 37, 299, 137])
    views = tuple(torch.randn(BATCH, 3, 32, 32, dtype=dtype) for _ in range(2))
    with torch.no_grad():
        outputs = replace(teacher.outputs(views[0]), strong=teacher.outputs(views[1]))
    return Scene(
        student, teacher, methods.TrainSet(labels, CLASSES), methods.Batch(labels[indices], indices), views, outputs
    )


def settings(name: str, pair: str) -> methods.Settings:
    """A method's parameters on a pair under the standard protocol."""
    teacher, student = pair.split("-")
    cls = methods.get(name)
    trained = Teacher(arch=teacher, run_id=f"vanilla-{teacher}-s0-00000000") if cls.uses_teacher else None
    run = protocol.resolve(protocol.load("standard"), name, student, 0, teacher=trained)
    return methods.check(cls.Params, run.params, "test")


def make(name: str, pair: str, dtype: torch.dtype = torch.float64, seed: int = 7) -> methods.Method:
    at = scene(pair, dtype)
    torch.manual_seed(seed)
    teacher = at.teacher if methods.get(name).uses_teacher else None
    return methods.get(name)(settings(name, pair), at.student, teacher, at.train_set).to(dtype).train()


def seen_by(net: nn.Module, method: methods.Method, views: tuple[Tensor, Tensor]) -> Outputs:
    outputs = net.outputs(views[0])
    return replace(outputs, strong=net.outputs(views[1])) if method.views == "paired" else outputs


def teacher_side(method: methods.Method, outputs: Outputs) -> Outputs | None:
    if not method.uses_teacher:
        return None
    return outputs if method.views == "paired" else replace(outputs, strong=None)


def reads_logits(method: methods.Method, student: zoo.Net) -> bool:
    """Whether the student's own classifier is trained: a method that deploys another network may leave it alone."""
    return method.deployed(student) is student


def trained_by(method: methods.Method, student: zoo.Net) -> list[tuple[str, nn.Parameter]]:
    """Names and values of what has a gradient after a step."""
    idle = set() if reads_logits(method, student) else set(student.head.parameters())
    every = (*student.named_parameters(), *method.named_parameters())
    return [(name, value) for name, value in every if value not in idle]


def mapped(outputs: Outputs, change: Callable[[Tensor], Tensor]) -> Outputs:
    """`outputs` with every tensor changed."""
    return Outputs(
        logits=change(outputs.logits),
        features=tuple(change(f) for f in outputs.features),
        preact=tuple(change(p) for p in outputs.preact),
        last_map=change(outputs.last_map),
        pooled=change(outputs.pooled),
        head=outputs.head,
        strong=mapped(outputs.strong, change) if outputs.strong else None,
    )


def at_epoch(epoch: int) -> methods.Progress:
    return methods.Progress(torch.tensor(float(epoch)))


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def check_terms(terms: dict[str, Tensor]) -> None:
    assert terms and all(isinstance(key, str) for key in terms)
    for key, term in terms.items():
        assert term.shape == (), key
        assert torch.isfinite(term), key


@cache
def student_outputs(pair: str, dtype: torch.dtype = torch.float64) -> Outputs:
    """Outputs of the untouched student without a graph, as constants for tests that need no gradient."""
    at = scene(pair, dtype)
    with torch.no_grad():
        net = copy.deepcopy(at.student)
        return replace(net.outputs(at.views[0]), strong=net.outputs(at.views[1]))


def constant_terms(method: methods.Method, pair: str, epoch: int = 5) -> dict[str, Tensor]:
    """Terms on constant outputs; what a method draws in a step comes from one and the same generator state."""
    at = scene(pair)
    student = student_outputs(pair) if method.views == "paired" else replace(student_outputs(pair), strong=None)
    torch.manual_seed(11)
    return method.terms(student, teacher_side(method, at.teacher_outputs), at.batch, at_epoch(epoch))


@pytest.fixture(params=methods.names())
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def generator() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield


# --- every method, every pair ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", PAIRS)
def test_a_step_gives_gradients_to_what_is_trained_and_to_nothing_else(name: str, pair: str) -> None:
    at, method = scene(pair), make(name, pair)
    assert method.teacher_mode in ("eval", "train")
    student, teacher_before = copy.deepcopy(at.student), state_of(at.teacher)
    terms = method.terms(
        seen_by(student, method, at.views), teacher_side(method, at.teacher_outputs), at.batch, at_epoch(5)
    )
    check_terms(terms)
    torch.stack(list(terms.values())).sum().backward()
    for parameter, value in trained_by(method, student):
        assert value.requires_grad and value.grad is not None, parameter
        assert torch.isfinite(value.grad).all(), parameter
        if value.ndim > 1:  # a bias in front of a BatchNorm has a gradient of zero
            assert value.grad.any(), parameter
    assert not any(value.requires_grad or value.grad is not None for value in at.teacher.parameters())
    assert same(state_of(at.teacher), teacher_before)
    own = {id(value) for _, value in method.named_parameters()}
    assert not own & {id(value) for net in (student, at.student, at.teacher) for value in net.parameters()}


@pytest.mark.parametrize("pair", PAIRS)
def test_terms_have_the_same_keys_at_every_step(name: str, pair: str) -> None:
    method = make(name, pair)
    first, *others = (constant_terms(method, pair, epoch) for epoch in (1, 2, 40, 240))
    for terms in (first, *others):
        check_terms(terms)
        assert list(terms) == list(first)


@pytest.mark.parametrize("pair", PAIRS)
def test_building_looks_at_the_networks_and_leaves_them(name: str, pair: str) -> None:
    at = scene(pair)
    nets = copy.deepcopy(at.student).train(), copy.deepcopy(at.teacher).train()
    before = [state_of(net) for net in nets]
    method = methods.get(name)(settings(name, pair), *nets, at.train_set)
    assert all(same(state_of(net), state) for net, state in zip(nets, before, strict=True))
    assert all(net.training and all(module.training for module in net.modules()) for net in nets)
    assert not any(net._forward_hooks or net._forward_pre_hooks for part in nets for net in part.modules())
    assert not any(module in set(nets[0].modules()) | set(nets[1].modules()) for module in method.modules())


@pytest.mark.parametrize("pair", PAIRS)
def test_what_building_draws_depends_on_the_generator_alone(name: str, pair: str) -> None:
    at = scene(pair)

    def build(student: nn.Module, teacher: nn.Module, seed: int) -> tuple[dict[str, Tensor], Tensor]:
        torch.manual_seed(seed)
        method = methods.get(name)(settings(name, pair), student, teacher, at.train_set)
        return {key: value.detach().clone() for key, value in method.named_parameters()}, torch.get_rng_state()

    torch.manual_seed(3)
    before = torch.get_rng_state()
    drawn, after = build(at.student, at.teacher, seed=3)
    student, teacher = copy.deepcopy(at.student).eval(), copy.deepcopy(at.teacher).train()
    with torch.no_grad():
        for value in (*student.parameters(), *teacher.parameters()):
            value.uniform_(0.1, 1.0)
    random.seed(1)
    np.random.seed(1)
    again, after_again = build(student, teacher, seed=3)
    assert same(drawn, again)
    assert torch.equal(after, after_again)
    other, _ = build(at.student, at.teacher, seed=4)
    assert torch.equal(after, before) or not same(drawn, other)  # CTKD's temperature is drawn from nothing


@pytest.mark.parametrize("pair", PAIRS)
def test_a_copy_and_a_restored_state_go_on_alike(name: str, pair: str) -> None:
    method = make(name, pair)
    constant_terms(method, pair)  # memories and running statistics have moved
    twin, restored = copy.deepcopy(method), make(name, pair, seed=8)
    restored.load_state_dict(method.state_dict())
    assert same(state_of(twin), state_of(method)) and same(state_of(restored), state_of(method))
    for _ in range(2):
        wanted = constant_terms(method, pair)
        for other in (twin, restored):
            assert same(wanted, constant_terms(other, pair))
    assert same(state_of(twin), state_of(method)) and same(state_of(restored), state_of(method))


# --- every method, one pair, hard cases -----------------------------------------------------------------------------


def test_a_student_that_equals_its_teacher_has_finite_gradients(name: str) -> None:
    """Nothing left to learn, and two images alike: distances, norms and roots are all at zero."""
    pair = "resnet8-resnet8"
    at, method = scene(pair, torch.float32), make(name, pair, torch.float32)
    views = tuple(view[[0, 1, 1, 2]] for view in at.views)
    student = copy.deepcopy(at.teacher).requires_grad_(True)
    with torch.no_grad():
        teacher = replace(at.teacher.outputs(views[0]), strong=at.teacher.outputs(views[1]))
    outputs = seen_by(student, method, views)
    assert torch.equal(outputs.logits, teacher.logits)
    terms = method.terms(outputs, teacher_side(method, teacher), at.batch, at_epoch(20))
    check_terms(terms)
    sum(terms.values()).backward()
    for parameter, value in trained_by(method, student):
        assert torch.isfinite(value.grad).all(), parameter


def test_very_confident_networks_have_finite_gradients(name: str) -> None:
    """Logits of +-200 in float32; the two agree on one sample, and neither knows one of the labels."""
    pair = "resnet20-resnet8"
    at, method = scene(pair, torch.float32), make(name, pair, torch.float32)
    sure = torch.full((2, BATCH, CLASSES), -200.0)
    sure[0, range(BATCH), [0, 1, 2, 3]] = 200.0
    sure[1, range(BATCH), [0, 37, 99, 4]] = 200.0
    leaf = sure[0].clone().requires_grad_()
    maps = student_outputs(pair, torch.float32).last_map.clone().requires_grad_()
    student = replace(student_outputs(pair, torch.float32), logits=leaf, last_map=maps, strong=None)
    teacher = replace(at.teacher_outputs, logits=sure[1], strong=None)
    if method.views == "paired":
        student, teacher = replace(student, strong=student), replace(teacher, strong=teacher)
    terms = method.terms(student, teacher if method.uses_teacher else None, at.batch, at_epoch(20))
    check_terms(terms)
    sum(terms.values()).backward()
    assert torch.isfinite((leaf if reads_logits(method, at.student) else maps).grad).all()
    assert all(torch.isfinite(value.grad).all() for value in method.parameters() if value.grad is not None)


def test_a_last_batch_of_two_is_a_batch(name: str) -> None:
    pair = "resnet20-resnet8"
    at, method = scene(pair), make(name, pair)
    student = mapped(student_outputs(pair), lambda t: t[:2].clone().requires_grad_())
    teacher = mapped(at.teacher_outputs, lambda t: t[:2])
    if method.views != "paired":
        student = replace(student, strong=None)
    batch = methods.Batch(at.batch.labels[:2], at.batch.indices[:2])
    terms = method.terms(student, teacher_side(method, teacher), batch, at_epoch(5))
    check_terms(terms)
    sum(terms.values()).backward()
    assert torch.isfinite((student.logits if reads_logits(method, at.student) else student.last_map).grad).all()


def test_a_step_runs_under_autocast(name: str) -> None:
    """As the trainer takes it in bf16: parameters in float32, everything in the forward pass under autocast."""
    pair = "resnet20-resnet8"
    at, method = scene(pair, torch.float32), make(name, pair, torch.float32)
    student = copy.deepcopy(at.student)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.no_grad():
            teacher = seen_by(at.teacher, method, at.views)
        outputs = seen_by(student, method, at.views)
        assert outputs.logits.dtype == torch.bfloat16
        terms = method.terms(outputs, teacher_side(method, teacher), at.batch, at_epoch(5))
    check_terms(terms)
    torch.stack(list(terms.values())).sum().backward()
    for parameter, value in trained_by(method, student):
        assert value.grad.dtype == torch.float32 and torch.isfinite(value.grad).all(), parameter


def test_every_term_pulls_at_the_student(name: str) -> None:
    """A term that only trains the method's own modules would be no distillation by itself."""
    pair, leaves = "resnet20-resnet8", []

    def leaf(value: Tensor) -> Tensor:
        leaves.append(value.clone().requires_grad_())
        return leaves[-1]

    at, method = scene(pair), make(name, pair)
    student = mapped(student_outputs(pair), leaf)
    if method.views != "paired":
        student = replace(student, strong=None)
    terms = method.terms(student, teacher_side(method, at.teacher_outputs), at.batch, at_epoch(5))
    for key, term in terms.items():
        gradients = torch.autograd.grad(term, leaves, retain_graph=True, allow_unused=True)
        pulls = any(gradient is not None and gradient.any() for gradient in gradients)
        assert pulls or (name, key) in INDIRECT, key


class Watch(TorchDispatchMode):
    """Refuses every operator that hands a value to Python or whose result's shape follows from values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        tags = set(func.tags)
        if func is torch.ops.aten.index.Tensor:  # tagged for its boolean masks; an index of integers is fine
            masks = [index for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)]
            tags = tags if masks else set()
        if func is torch.ops.aten._linalg_check_errors.default:
            tags.add(torch.Tag.data_dependent_output)
        assert not tags & {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}, f"{func} waits for values"
        return func(*args, **(kwargs or {}))


def test_a_step_asks_no_tensor_for_its_value(name: str) -> None:
    """No `.item()`, no branch on a tensor, no shape from data, no error check on the host: it can be captured."""
    method = make(name, PAIRS[0])
    with Watch():
        terms = constant_terms(method, PAIRS[0])
    check_terms(terms)


@pytest.mark.parametrize(
    "step",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.sum() > 0),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.linalg.cholesky(x @ x.T),
        lambda x: x.unique(),
    ],
)
def test_the_watch_sees_what_it_watches_for(step: Callable[[Tensor], Any]) -> None:
    x = torch.eye(3)
    with Watch():
        x[torch.tensor([0, 1]), torch.tensor([1, 2])].softmax(0).median()  # what is fine
        with pytest.raises(AssertionError, match="waits for values"):
            step(x)
