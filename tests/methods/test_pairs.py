"""Every method on every real pair: the shapes fit, and each term's gradient is finite."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import methods
import zoo
from bench import protocol
from bench.run import Run, Teacher
from zoo import Outputs

torch.set_num_threads(1)
PAIRS = (
    "resnet56-resnet20",
    "resnet110-resnet32",
    "resnet32x4-resnet8x4",
    "wrn_40_2-wrn_16_2",
    "wrn_40_2-wrn_40_1",
    "vgg13-vgg8",
    "vgg13-vgg13",
)
DIFFERENT_STYLE = (  # tests/bench/test_grid.py has the rest: all protocols have parameters for them
    "vgg13-mobilenetv2",
    "resnet50-mobilenetv2",
    "resnet50-vgg8",
    "resnet32x4-shufflenetv1",
    "resnet32x4-shufflenetv2",
    "wrn_40_2-shufflenetv1",
    "resnet32x4-mobilenetv2",
    "wrn_40_2-mobilenetv2",
    "shufflenetv1-resnet20",  # nobody's: the small networks as teachers
    "mobilenetv2-shufflenetv2",
)
BATCH, FEW, CLASSES, IMAGES = 64, 3, 100, 50_000  # the real batch size, and what shows as much of wide networks


class Scene:
    """Two untrained networks and what they say of a batch; the student's outputs are leaves, so nothing runs twice."""

    def __init__(self, pair: str) -> None:
        torch.manual_seed(0)
        self.pair = pair
        teacher, student = pair.split("-")
        self.teacher, self.student = zoo.build(teacher).eval().requires_grad_(False), zoo.build(student)
        generator = torch.Generator().manual_seed(1)
        self.train_set = methods.TrainSet(torch.arange(IMAGES) % CLASSES, CLASSES)
        batch = FEW if pair in DIFFERENT_STYLE else BATCH
        indices = torch.randperm(IMAGES, generator=generator)[:batch]
        self.batch = methods.Batch(self.train_set.labels[indices], indices)
        images = torch.randn(batch, 3, 32, 32, generator=generator)
        with torch.no_grad():
            self.teachers_view, self.students_view = self.teacher.outputs(images), self.student.outputs(images)

    def resolve(self, name: str, recipe: str) -> Run:
        arch, student = self.pair.split("-")
        teacher = Teacher(arch=arch, run_id="any") if methods.get(name).uses_teacher else None
        return protocol.resolve(protocol.load(recipe), name, student, 0, teacher=teacher)


def leaves(outputs: Outputs) -> tuple[Outputs, list[Tensor]]:
    """Outputs that gather gradients and lead no further back, and the tensors that gather them."""
    made: list[Tensor] = []

    def leaf(value: Tensor) -> Tensor:
        made.append(value.clone().requires_grad_())
        return made[-1]

    new = replace(
        outputs,
        logits=leaf(outputs.logits),
        features=tuple(map(leaf, outputs.features)),
        preact=tuple(map(leaf, outputs.preact)),
        last_map=leaf(outputs.last_map),
        pooled=leaf(outputs.pooled),
    )
    return new, made


@pytest.fixture(scope="module", params=[*PAIRS, *DIFFERENT_STYLE])
def scene(request: pytest.FixtureRequest) -> Scene:
    return Scene(request.param)


@pytest.mark.parametrize("name", methods.names())
def test_a_step_fits(scene: Scene, name: str) -> None:
    run = scene.resolve(name, "standard")
    cls = methods.get(name)
    teacher = scene.teacher if cls.uses_teacher else None
    method = cls(methods.check(cls.Params, run.params, "test"), scene.student, teacher, scene.train_set).train()
    student, gathered = leaves(scene.students_view)
    seen = scene.teachers_view if cls.uses_teacher else None
    if method.views == "paired":
        student, seen = replace(student, strong=scene.students_view), replace(seen, strong=scene.teachers_view)
    assert run.data.views == (method.views or "weak")
    terms = method.terms(student, seen, scene.batch, methods.Progress(torch.tensor(20.0)))
    sum(terms.values()).backward()
    assert all(torch.isfinite(term) for term in terms.values())
    reached = [value.grad for value in gathered if value.grad is not None]
    assert reached and all(torch.isfinite(gradient).all() for gradient in reached)
    for parameter, value in method.named_parameters():
        assert value.grad is not None and torch.isfinite(value.grad).all(), parameter


@pytest.mark.parametrize("recipe", protocol.names())
@pytest.mark.parametrize("name", methods.names())
@pytest.mark.parametrize("scene", PAIRS, indirect=True)
def test_every_protocol_has_parameters_for_the_pair(scene: Scene, name: str, recipe: str) -> None:
    """What is not a default of the class comes from the protocol, and the views it trains on are those it needs."""
    cls = methods.get(name)
    if not cls.in_all and recipe.startswith("streamlined"):  # whose authors have nothing for it
        with pytest.raises(zoo.BadInput, match=f'protocol "{recipe}" has no parameters for method "{name}"'):
            scene.resolve(name, recipe)
        return
    run = scene.resolve(name, recipe)
    params = methods.check(cls.Params, run.params, "test")
    networks = [zoo.build_meta(arch, CLASSES) for arch in reversed(scene.pair.split("-"))]
    with torch.device("meta"):
        views = cls(params, *networks, methods.TrainSet(torch.zeros(IMAGES, dtype=torch.int64), CLASSES)).views
    assert views is None or run.data.views == views
