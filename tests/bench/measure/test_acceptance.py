"""The checks of a device hold on the CPU, and fail for each of the faults that they are there for."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import zoo
from bench.measure import acceptance
from bench.run import Data, Strong
from bench.training import member
from bench.training.trainer import Trainer
from tests import tiny

BOTH = Data(dataset="cifar100", train_images=None, views="weak+strong", strong=Strong(ops=2, posterize_bits=(4, 8)))


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def train(tmp_path, method: str, dataset=None) -> acceptance.Check:
    reference = tiny.dataset(200)
    teacher = None if method == "vanilla" else zoo.build("resnet8")
    run = tiny.run(tmp_path, method)
    return acceptance.check_training(run, teacher, dataset or reference, reference, steps=3)


@pytest.mark.parametrize("method", ["vanilla", "kd", "crd", "mlkd"])
def test_training_agrees_with_one_thread(tmp_path, method):
    check = train(tmp_path, method)
    assert check.holds, check
    assert len(check.table.splitlines()) == 2 + 3 and "reference" in check.table
    assert torch.get_num_threads() == 2


def ours_only(monkeypatch, change):
    """Let `change` wrap the step of the device under test; the reference's, every other one, stays as it is."""
    step, calls = Trainer.step, []

    def patched(self, *batch):
        calls.append(self)
        return change(step, self, *batch) if len(calls) % 2 else step(self, *batch)

    monkeypatch.setattr(Trainer, "step", patched)


def tf32(tensor):
    """Ten bits of mantissa, as TensorFloat-32 multiplies them."""
    whole = tensor.detach().contiguous().view(torch.int32)
    return tensor + (((whole + 0x1000) & -0x2000).view(torch.float32) - tensor.detach())


@pytest.mark.parametrize("method", ["vanilla", "kd"])
def test_reduced_precision_is_noticed(tmp_path, monkeypatch, method):
    convolve = nn.functional.conv2d

    def rounded(step, self, *batch):
        with monkeypatch.context() as patch:
            patch.setattr(nn.functional, "conv2d", lambda x, w, *more: convolve(tf32(x), tf32(w), *more))
            return step(self, *batch)

    ours_only(monkeypatch, rounded)
    check = train(tmp_path, method)
    assert not check.holds and "tolerance" in check.found, check


@pytest.mark.parametrize("setting", ["lr", "momentum", "weight_decay"])
def test_other_optimiser_settings_are_noticed(tmp_path, monkeypatch, setting):
    def other(step, self, *batch):
        for group in self.members[0].optimizer.param_groups:
            group[setting] = group[setting] * 0.9 if setting != "weight_decay" else 0.5
        return step(self, *batch)

    ours_only(monkeypatch, other)
    assert not train(tmp_path, "vanilla").holds


def test_other_data_and_numbers_that_are_none_are_noticed(tmp_path):
    good = tiny.dataset(200)
    assert not train(tmp_path, "vanilla", dataclasses.replace(good, mean=good.mean + 0.01)).holds
    check = train(tmp_path, "vanilla", dataclasses.replace(good, mean=good.mean * float("nan")))
    assert not check.holds and "inf" in check.found


def test_steps_are_those_of_the_trainer(tmp_path):
    """From the same seed the reference sees what `train` sees: same images, same order, same losses."""
    seen, dataset = [], tiny.dataset(200)
    run = tiny.run(tmp_path, "vanilla")

    class Enough(Exception):
        pass

    step = member.Member.step

    def recorded(self, *batch, **options):
        if len(seen) == 3:
            raise Enough
        values, pulls = step(self, *batch, **options)
        seen.append(f"{values.item():.7f}")
        return values, pulls

    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Enough):
        patch.setattr(member.Member, "step", recorded)
        tiny.train(run, dataset, None, tmp_path / "last.pt")
    rows = [row.strip("| ").split("|") for row in train(tmp_path, "vanilla").table.splitlines()[2:]]
    assert [row[2].strip() for row in rows] == seen


def test_one_pixel_is_noticed():
    reference = tiny.dataset(60)
    assert acceptance.check_data(BOTH, reference, reference).holds
    images = reference.train_images.clone()
    images[7, 1, 16, 16] ^= 1
    check = acceptance.check_data(BOTH, dataclasses.replace(reference, train_images=images), reference)
    assert not check.holds and "of 120 images differ" in check.found
    labels = reference.train_labels.roll(1)
    assert not acceptance.check_data(BOTH, dataclasses.replace(reference, train_labels=labels), reference).holds


def test_known_accuracy_with_a_tolerance_of_images(tmp_path, monkeypatch):
    dataset = tiny.dataset(80)  # 40 test images
    (tmp_path / "sskd").mkdir()
    torch.save(zoo.build("wrn_16_2").state_dict(), tmp_path / "sskd" / "wrn_16_2.pth")
    monkeypatch.setattr(acceptance, "IMAGES", 1)
    monkeypatch.setattr(acceptance, "evaluate", lambda net, its: acceptance_metrics(50.0))
    for known, holds in ((50.0, True), (52.5, True), (47.5, True), (55.0, False), (45.0, False)):
        monkeypatch.setitem(acceptance.PUBLISHED, "sskd/wrn_16_2", known)
        (check,) = acceptance.check_checkpoints(tmp_path, dataset)
        assert check.holds == holds and check.name == "sskd/wrn_16_2"


def acceptance_metrics(top1: float):
    from bench.training.evaluate import Metrics

    return Metrics(top1, 100.0, 1.0)


def test_exit_status_says_whether_all_holds(monkeypatch, capsys):
    for good, status in ((True, 0), (False, 1)):
        found = [acceptance.Check("first", True, "fine"), acceptance.Check("second", good, "seen", "| table |")]
        monkeypatch.setattr(acceptance, "checks", lambda *arguments, found=found: iter(found))
        monkeypatch.delenv("KD_WEIGHTS", raising=False)
        assert acceptance.main(["--device", "cpu"]) == status
        said = capsys.readouterr().out
        assert ("FAILED  second: seen" in said) != good and "not checked: published checkpoints" in said


def test_wrong_requests_get_one_line(tmp_path, capsys, monkeypatch):
    for arguments, says in (
        (["--device", "tpu"], "choose auto, cpu or cuda"),
        (["--device", "cuda:99"], "is not there"),
        (["--device", "cpu", "--data", str(tmp_path)], "cifar-100-python"),
        (["--device", "cpu", "--methods", "kdd"], "did you mean"),
        (["--device", "cpu", "--weights", str(tmp_path)], "none of"),
        (["--device", "cpu", "--weights", str(tmp_path / "none")], "none of"),
    ):
        assert acceptance.main(arguments) == 2, arguments
        said = capsys.readouterr().err
        assert says in said and said.count("\n") == 1, said
    with pytest.raises(SystemExit) as left:
        acceptance.main(["--steps", "0"])
    assert left.value.code == 2


@pytest.mark.skipif(
    not {"CIFAR100_ROOT", "KD_WEIGHTS"} <= set(os.environ), reason="CIFAR100_ROOT and KD_WEIGHTS are not both set"
)
def test_holds_on_this_cpu_with_real_images(tmp_path, capsys):
    (tmp_path / "streamlined").mkdir()
    name = "streamlined/resnet20.pth"  # one, since each takes a minute of a core
    shutil.copy(Path(os.environ["KD_WEIGHTS"]) / name, tmp_path / name)
    command = ["--device", "cpu", "--weights", str(tmp_path), "--steps", "2", "--methods", "vanilla"]
    assert acceptance.main(command) == 0, capsys.readouterr().out
    assert "top-1 66.09" in capsys.readouterr().out
