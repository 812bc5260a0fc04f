"""The optimiser is torch's, and a step brings no compiler into the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.training.optim import SGD

SETTINGS = [dict(), dict(momentum=0.9, weight_decay=5e-4), dict(momentum=0.9, weight_decay=5e-4, nesterov=True)]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("settings", SETTINGS)
def test_updates_and_states_are_those_of_torch(settings, fused):
    weights = [torch.randn(3, 4, generator=torch.Generator().manual_seed(seed), requires_grad=True) for seed in (0, 1)]
    copies = [weight.detach().clone().requires_grad_() for weight in weights]
    ours, theirs = SGD(weights, 0.1, fused=fused, **settings), torch.optim.SGD(copies, 0.1, fused=fused, **settings)
    for number in range(6):
        for values, optimizer in ((weights, ours), (copies, theirs)):
            optimizer.zero_grad()
            sum((value.sin() ** 2).sum() for value in values).backward()
            optimizer.step()
        if number == 2:  # saved and taken over by a new one
            ours, kept = SGD(weights, 1.0, fused=fused), ours.state_dict()
            ours.load_state_dict(kept)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(weights, copies, strict=True))
    assert str(ours.state_dict()) == str(theirs.state_dict())
    assert all(weight.requires_grad and weight.is_leaf for weight in weights) and torch.is_grad_enabled()


def test_no_compiler_is_imported():
    code = """
import pathlib, sys, tempfile
import methods, zoo
from tests import tiny
for method in methods.names():
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        teacher = zoo.build("resnet8") if methods.get(method).uses_teacher else None
        text = tiny.PROTOCOL.replace("epochs: 2, milestones: [1]", "epochs: 1, milestones: []")
        tiny.train(tiny.run(folder, method, text=text), tiny.dataset(60), teacher, folder / "last.pt")
        assert "torch._dynamo" not in sys.modules, method
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
