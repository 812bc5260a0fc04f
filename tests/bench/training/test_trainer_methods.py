"""Every method in the training loop: what is trained, what is left alone, and resuming to the bit."""

from __future__ import annotations

import pytest
import torch

import methods
import zoo
from bench.training import data as datasets
from bench.training import member, trainer
from tests import tiny

torch.set_num_threads(1)
NAMES = methods.names()
DISTILLING = [name for name in NAMES if methods.get(name).uses_teacher]


def teacher_net() -> zoo.Net:
    with member.seeded(5, "teacher of a test"):
        return zoo.build("resnet8")


def made(tmp_path, name: str) -> tuple[trainer.Trainer, datasets.Epoch]:
    run, dataset = tiny.run(tmp_path, name), tiny.dataset()
    made = trainer.Trainer.of([run], dataset, teacher_net() if run.teacher else None)
    made.members[0].begin_epoch(1)
    return made, datasets.augmented_epoch(dataset, run.data, run.seed, 1)


def take_steps(at: trainer.Trainer, epoch: datasets.Epoch, steps: int, batch: int = 8) -> None:
    for part in list(datasets.slices(len(epoch.labels), batch))[:steps]:
        trainer.results_of(at.step(*epoch.batch(part)))


def states(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("name", NAMES)
def test_the_optimizer_holds_student_and_modules_and_a_step_moves_them(tmp_path, name):
    trained, epoch = made(tmp_path, name)
    (at,) = trained.members
    held = {id(value) for group in at.optimizer.param_groups for value in group["params"]}
    own = [*at.student.parameters(), *at.method.parameters()]
    assert held == {id(value) for value in own} and len(at.optimizer.param_groups) == 1
    before = {key: value.detach().clone() for key, value in at.method.named_parameters()}
    first = next(at.student.parameters()).detach().clone()
    take_steps(trained, epoch, 1)
    assert not torch.equal(first, next(at.student.parameters()))
    for key, value in at.method.named_parameters():
        # a bias in front of a BatchNorm has no gradient and stays at most where weight decay takes it
        assert value in at.optimizer.state and (value.ndim == 1 or not torch.equal(value, before[key])), key


@pytest.mark.parametrize("name", DISTILLING)
def test_ten_steps_leave_the_teacher_as_it_was(tmp_path, name):
    """Every parameter to the bit, and every buffer unless the method runs its teacher in train mode."""
    trained, epoch = made(tmp_path, name)
    (at,) = trained.members
    teacher = at.drifting or trained.teacher
    before = states(teacher)
    take_steps(trained, epoch, 10)
    parameters = dict(teacher.named_parameters())
    for key, value in teacher.state_dict().items():
        drifts = at.method.teacher_mode == "train" and key not in parameters
        assert torch.equal(value, before[key]) != drifts, key
    assert not any(value.requires_grad or value.grad is not None for value in teacher.parameters())
    assert not {id(value) for value in teacher.parameters()} & {id(value) for value in at.trained}


@pytest.mark.parametrize("name", NAMES)
def test_a_stop_in_the_middle_of_an_epoch_changes_nothing(tmp_path, name):
    run, dataset = tiny.run(tmp_path, name), tiny.dataset()
    teacher = lambda: teacher_net() if run.teacher else None  # noqa: E731
    whole, whole_state = tiny.train(run, dataset, teacher(), tmp_path / "whole.pt")
    calls = iter(range(1, 100))
    with pytest.raises(trainer.Stopped):
        tiny.train(run, dataset, teacher(), tmp_path / "cut.pt", should_stop=lambda: next(calls) == 2)
    net, state = tiny.train(run, dataset, teacher(), tmp_path / "cut.pt")
    for row, other in zip(whole_state.curve, state.curve, strict=True):
        assert {**row, "wall_s": 0} == {**other, "wall_s": 0}
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in whole.state_dict().items())
