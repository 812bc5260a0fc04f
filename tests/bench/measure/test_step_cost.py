"""The benchmark of a step's cost: what it times, and what it prints. The times themselves are no test's business."""

from __future__ import annotations

import torch

from bench import protocol
from bench.measure import step_cost
from bench.run import Teacher

torch.set_num_threads(1)


def resolved(name: str):
    teacher = None if name == "vanilla" else Teacher(arch="resnet20", run_id="random")
    return protocol.resolve(protocol.load("standard"), name, "resnet8", 0, teacher=teacher)


def test_the_floor_keeps_the_passes_and_drops_the_loss(monkeypatch):
    """Same networks, same views: in turns the method's own terms and the labels alone."""
    seen = []
    original = step_cost.Trainer.step

    def step(self, *inputs, **options):
        values = original(self, *inputs, **options)
        seen.append((tuple(self.members[0].term_names), inputs[1] is not None))
        return values

    monkeypatch.setattr(step_cost.Trainer, "step", step)
    times = step_cost.measure(resolved("mlkd"), torch.device("cpu"), rounds=1)
    assert all(0 < seconds < 60 for seconds in times)
    whole = ("ce", "instance", "batch", "class", "strong")
    assert seen == [(whole, True), (("ce",), True)] * 2


def test_a_row_a_method(capsys):
    assert step_cost.main(["--methods", "vanilla", "kd", "--pairs", "resnet20-resnet8", "--rounds", "1"]) == 0
    said = capsys.readouterr().out
    assert "resnet20-resnet8" in said and "| Student " in said and "| KD " in said and "ratio" in said


def test_a_wrong_name_is_one_line(capsys):
    for wrong in (["--pairs", "resnet21-resnet8"], ["--methods", "kdd"], ["--protocol", "standart"]):
        assert step_cost.main(wrong) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: unknown") and "did you mean" in said and said.count("\n") == 1
