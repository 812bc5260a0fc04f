"""What weights say beyond their accuracy: each number against a second computation, on runs of a second."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import reproduce
import zoo
from bench import store
from bench.measure import examine
from bench.report.frames import RunRow
from tests import tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, which is the student of the Student row too, and KD, trained on 100 procedural images."""
    folder = tmp_path_factory.mktemp("trained")
    grid = tiny.write(folder, tiny.GRID.replace("[vanilla, kd, fitnet]", "[vanilla, kd]"))
    status = reproduce.main(["--grid", str(grid), "--out", str(folder / "out"), "--device", "cpu", "--no-plots"])
    assert status == 0
    return folder / "out"


@pytest.fixture
def out(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "out")


def kd(out: Path) -> store.RunFolder:
    (path,) = (out / "runs").glob("kd-*")
    return store.RunFolder(path)


def call(out: Path) -> int:
    return examine.main([str(out), "--device", "cpu"])


def slow_ece(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """By its definition, a bin at a time."""
    total, confidence = 0.0, probabilities.max(axis=1)
    for m in range(1, 16):
        inside = (confidence > (m - 1) / 15) & (confidence <= m / 15)
        if inside.any():
            accuracy = (probabilities.argmax(axis=1) == labels)[inside].mean()
            total += inside.sum() / len(labels) * abs(accuracy - confidence[inside].mean())
    return 100 * total


def test_calibration_error_by_hand_and_by_its_definition():
    # Two images at confidence .8, one right: |.5 - .8|; two at .6, both right: |1 - .6|. Halves: .15 + .2.
    probabilities = np.array([[0.8, 0.2], [0.8, 0.2], [0.6, 0.4], [0.4, 0.6]])
    labels = torch.tensor([0, 1, 0, 1])
    assert examine.calibration_error(torch.tensor(probabilities).log(), labels) == pytest.approx(35.0)
    logits = 3 * torch.randn(500, 100, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 100, (500,), generator=torch.Generator().manual_seed(1))
    labels[:250] = logits[:250].argmax(dim=1)
    expected = slow_ece(torch.softmax(logits.double(), 1).numpy(), labels.numpy())
    assert examine.calibration_error(logits, labels) == pytest.approx(expected) and expected > 1


def test_agreement_by_hand():
    student, teacher = (torch.tensor(p).log() for p in ([[0.5, 0.5], [0.25, 0.75]], [[0.9, 0.1], [0.25, 0.75]]))
    same, divergence = examine.agreement(student, teacher)
    assert same == 100.0  # a tie goes to the first class, as the teacher's does
    assert divergence == pytest.approx((0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)) / 2, rel=1e-5)
    assert examine.agreement(student, student)[1] == 0.0


def test_a_run_against_a_second_computation(out: Path):
    from scipy.special import softmax
    from scipy.stats import entropy

    from bench.run import Data
    from bench.training import data

    assert call(out) == 0
    folder = kd(out)
    said, result = json.loads(folder.examined.read_text()), json.loads(folder.result.read_text())
    images = data.load(Data.model_validate(result["config"]["data"]), None, torch.device("cpu"))
    nets = []
    for run_id in (folder.run_id, result["config"]["teacher"]["run_id"]):
        net = zoo.build("resnet8", 100).eval()
        net.load_state_dict(torch.load(out / "runs" / run_id / "weights.pt", weights_only=True)["model"])
        nets.append(net)
    with torch.no_grad():
        test = images.normalise(images.test_images)
        student, teacher = (softmax(net(test).double().numpy(), axis=1) for net in nets)
        train = nets[0](images.normalise(images.train_images)).argmax(dim=1)
    assert said["metrics"] == pytest.approx(
        {
            "train_top1": 100 * (train == images.train_labels).double().mean().item(),
            "ece": slow_ece(student, images.test_labels.numpy()),
            "agreement": 100 * (student.argmax(axis=1) == teacher.argmax(axis=1)).mean(),
            "kl": entropy(teacher, student, axis=1).mean(),
        },
        rel=1e-4,
        abs=0.02,
    )
    weights = sum(p.numel() for p in nets[0].parameters())
    assert said["sizes"]["parameters"] == said["sizes"]["teacher_parameters"] == weights
    assert said["sizes"]["macs"] == said["sizes"]["teacher_macs"] == zoo.count_macs("resnet8")
    assert said["images"]["train"] == 100


def test_the_report_shows_them_on_request_and_csv_always(out: Path, capsys: pytest.CaptureFixture):
    assert call(out) == 0 and "2 runs examined" in capsys.readouterr().out
    assert call(out) == 0 and "0 runs examined, 2 were before" in capsys.readouterr().out
    assert reproduce.main(["--report", "--no-plots", "--out", str(out)]) == 0
    assert "Beyond accuracy" not in (out / "table.md").read_text()
    said = json.loads(kd(out).examined.read_text())["metrics"]
    row = pd.read_csv(out / "table.csv").set_index("label").loc["KD"]
    assert row.mean_agreement == pytest.approx(said["agreement"], abs=1e-3) and row.n_ece == 1 and row.parameters > 1e4
    assert {"train_top1", "agreement", "kl", "ece", "parameters", "macs"} <= set(pd.read_csv(out / "runs.csv").columns)
    assert reproduce.main(["--report", "--no-plots", "--out", str(out), "--columns", "ece, agreement"]) == 0
    text = (out / "table.md").read_text().split("## Beyond accuracy")[1]
    assert "Expected calibration error" in text and "Parameters" not in text
    assert f"{said['agreement']:.2f}" in text and "not examined" not in text
    assert (out / "latex" / "ece.tex").exists()


def test_weights_of_another_training_are_not_taken_for_these(out: Path, capsys: pytest.CaptureFixture):
    assert call(out) == 0
    folder, columns = kd(out), ("--columns", "all", "--report", "--no-plots", "--out", str(out))
    result = json.loads(folder.result.read_text())
    result["metrics"]["test_loss_last"] += 1e-9
    store.write_result(folder.result, result)
    assert reproduce.main([*columns]) == 0
    assert "Finished runs that are not examined: 1." in (out / "table.md").read_text()
    assert pd.read_csv(out / "runs.csv").set_index("method").loc["kd"].isna()["ece"]
    capsys.readouterr()
    saved = torch.load(folder.weights, weights_only=True)
    saved["model"]["fc.weight" if "fc.weight" in saved["model"] else list(saved["model"])[-2]].neg_()
    torch.save(saved, folder.weights)
    result["provenance"]["weights_bytes"] = folder.weights.stat().st_size
    result["metrics"]["top1_last"] = 99.0
    store.write_result(folder.result, result)
    assert call(out) == 1 and "its result says 99.00" in capsys.readouterr().out
    folder.weights.unlink()
    assert call(out) == 1 and "weights.pt is not there" in capsys.readouterr().out


def test_requests_that_are_wrong(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert call(tmp_path) == 2 and "has no runs/" in capsys.readouterr().err
    (tmp_path / "runs").mkdir()
    assert reproduce.main(["--report", "--out", str(tmp_path), "--columns", "eec"]) == 2
    assert "ece" in capsys.readouterr().err
    assert reproduce.main(["--status", "--out", str(tmp_path), "--columns", "ece"]) == 2
    assert "--columns goes with --report" in capsys.readouterr().err
    assert RunRow("", "", "", True).ece is None
