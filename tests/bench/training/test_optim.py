"""The optimiser is torch's, and a step brings no compiler into the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.run import Train
from bench.training.optim import SGD, AdamW, optimizer
from methods import check
from zoo.errors import BadInput

SETTINGS = [dict(), dict(momentum=0.9, weight_decay=5e-4), dict(momentum=0.9, weight_decay=5e-4, nesterov=True)]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("settings", SETTINGS)
def test_updates_and_states_are_those_of_torch(settings, fused):
    weights = [torch.randn(3, 4, generator=torch.Generator().manual_seed(seed), requires_grad=True) for seed in (0, 1)]
    copies = [weight.detach().clone().requires_grad_() for weight in weights]
    ours, theirs = SGD(weights, 0.1, fused=fused, **settings), torch.optim.SGD(copies, 0.1, fused=fused, **settings)
    for number in range(6):
        for values, optim in ((weights, ours), (copies, theirs)):
            optim.zero_grad()
            sum((value.sin() ** 2).sum() for value in values).backward()
            optim.step()
        if number == 2:  # saved and taken over by a new one
            ours, kept = SGD(weights, 1.0, fused=fused), ours.state_dict()
            ours.load_state_dict(kept)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(weights, copies, strict=True))
    assert str(ours.state_dict()) == str(theirs.state_dict())
    assert all(weight.requires_grad and weight.is_leaf for weight in weights) and torch.is_grad_enabled()


BASE = dict(epochs=10, batch=8, lr=0.1, momentum=0.9, nesterov=False, weight_decay=0.01, milestones=(), gamma=0.1)


def train(**changes) -> Train:
    return Train(**{**BASE, "grad_clip": None, **changes})


def test_adamw_is_torchs_at_a_changing_learning_rate():
    """Also over a checkpoint that was written elsewhere; the reference has numbers where ours has a tensor."""
    weights = [torch.randn(3, 4, generator=torch.Generator().manual_seed(seed), requires_grad=True) for seed in (0, 1)]
    copies = [weight.detach().clone().requires_grad_() for weight in weights]
    settings, lr = train(optimizer="adamw", beta2=0.95, eps=1e-6), torch.full((), 0.1)
    ours = optimizer(settings, weights, lr)
    theirs = torch.optim.AdamW(copies, 0.1, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.01, fused=False, foreach=False)
    for number in range(6):
        rate = 0.1 / (number + 1)
        lr.fill_(rate)
        theirs.param_groups[0]["lr"] = rate
        for values, optim in ((weights, ours), (copies, theirs)):
            optim.zero_grad()
            sum((value.sin() ** 2).sum() for value in values).backward()
            optim.step()
        if number == 2:
            kept = ours.state_dict()
            ours = optimizer(settings, weights, lr)
            ours.load_state_dict(kept)
            ours.param_groups[0]["lr"] = lr
    for one, other in zip(weights, copies, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_adamws_defaults_are_torchs():
    weight = torch.zeros(2, requires_grad=True)
    made, usual = optimizer(train(optimizer="adamw"), [weight], torch.tensor(0.1)), torch.optim.AdamW([weight])
    assert isinstance(made, AdamW) and all(made.defaults[name] == usual.defaults[name] for name in ("betas", "eps"))
    assert made.defaults["weight_decay"] == 0.01


def test_sgd_has_no_new_words():
    """What is not said is not part of a run's identity, and "sgd" says nothing new."""
    assert train(optimizer="sgd") == train() and set(train().model_dump()) == {*BASE, "grad_clip"}
    assert isinstance(optimizer(train(), [torch.zeros(2, requires_grad=True)], torch.tensor(0.1)), SGD)


def rates(settings: Train, steps: int) -> list[float]:
    """In the middle of each step, as training sets them."""
    return [settings.lr_at(epoch, (at + 0.5) / steps) for epoch in range(1, settings.epochs + 1) for at in range(steps)]


def scheduled(make, halves: int) -> list[float]:
    """The reference's rates at every half step, the odd ones of which are the middles of steps."""
    sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    scheduler, found = make(sgd), []
    for _ in range(halves):
        found.append(sgd.param_groups[0]["lr"])
        sgd.step()
        scheduler.step()
    return found[1::2]


def test_cosine_is_torchs():
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR
    for end in (None, 0.01):
        found = rates(train(schedule="cosine", final_lr=end), 4)
        assert found == pytest.approx(scheduled(lambda sgd, end=end: cosine(sgd, 80, end or 0.0), 80), rel=1e-9)


def test_warm_up_then_cosine_is_torchs():
    from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

    def chained(sgd):
        parts = [LinearLR(sgd, 1e-12, 1.0, 16), CosineAnnealingLR(sgd, 64)]
        return SequentialLR(sgd, parts, [16])

    found = rates(train(schedule="cosine", warm_up=2), 4)
    assert found == pytest.approx(scheduled(chained, 80), rel=1e-6)


def test_warm_up_then_steps_by_hand():
    settings = train(milestones=(4, 8), warm_up=1.5)
    assert [settings.lr_at(epoch) for epoch in (1, 2, 3, 5, 9)] == pytest.approx([0.1 / 3, 0.1, 0.1, 0.01, 0.001])
    assert settings.lr_at(2, 0.25) == pytest.approx(0.1 * 1.25 / 1.5)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(schedule="cosine", milestones=(3,)), "schedule cosine has no milestones"),
        (dict(schedule="cosine", peak_at=0.3), "schedule cosine has no milestones and no peak_at"),
        (dict(schedule="cosine", final_lr=0.1), "below lr"),
        (dict(final_lr=0.01), "final_lr is where schedule cosine ends"),
        (dict(peak_at=0.3, warm_up=1), "has a warm-up of its own"),
        (dict(warm_up=10), "warm_up must end before"),
        (dict(warm_up=3, milestones=(3, 5)), "warm_up must end before"),
        (dict(optimizer="adamw", nesterov=True), "nesterov is SGD's"),
        (dict(beta2=0.9), "beta2 is AdamW's"),
        (dict(eps=1e-6), "eps is AdamW's"),
        (dict(optimizer="adam"), "optimizer"),
        (dict(schedule="linear"), "schedule"),
    ],
)
def test_settings_that_contradict_each_other_get_one_line(changes, says):
    with pytest.raises(BadInput, match=says) as caught:
        check(Train, train().model_dump() | changes, "protocol")
    assert "\n" not in str(caught.value)


def test_no_compiler_is_imported():
    code = """
import pathlib, sys, tempfile
import methods, zoo
from tests import tiny
for method in methods.names():
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        teacher = zoo.build("resnet8") if methods.get(method).uses_teacher else None
        words = "epochs: 1, milestones: []" + (", optimizer: adamw" if method == "kd" else "")
        text = tiny.PROTOCOL.replace("epochs: 2, milestones: [1]", words)
        tiny.train(tiny.run(folder, method, text=text), tiny.dataset(60), teacher, folder / "last.pt")
        assert "torch._dynamo" not in sys.modules, method
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
