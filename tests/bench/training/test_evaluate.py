"""Evaluation against a plain count, and published checkpoints on the real test images."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import zoo
from bench.training import evaluate as evaluation
from tests import tiny

# Published checkpoints, top-1 in fp32; resnet56 is measured by tests/test_readme.py.
MEASURED = {"wrn_16_2": 71.49}


def test_metrics_are_plain_counts(monkeypatch):
    dataset = tiny.dataset(80)
    net = zoo.build("resnet8").train()
    with torch.no_grad():
        logits = net.eval()(dataset.normalise(dataset.test_images)).double()
    top1 = top5 = loss = 0.0
    for row, label in zip(logits.tolist(), dataset.test_labels.tolist(), strict=True):
        order = sorted(range(100), key=lambda k: -row[k])
        top1 += order[0] == label
        top5 += label in order[:5]
        loss -= float(torch.log_softmax(torch.tensor(row, dtype=torch.float64), 0)[label])
    net.train()
    monkeypatch.setitem(evaluation.BATCH, "cpu", 16)  # 40 images: a partial last batch
    got = evaluation.evaluate(net, dataset)
    assert (got.top1, got.top5) == (100 * top1 / 40, 100 * top5 / 40)
    assert got.loss == pytest.approx(loss / 40, rel=1e-5)
    assert net.training


@pytest.mark.skipif(
    not {"CIFAR100_ROOT", "KD_WEIGHTS"} <= set(os.environ), reason="CIFAR100_ROOT and KD_WEIGHTS are not both set"
)
@pytest.mark.parametrize("arch", MEASURED)
def test_published_checkpoints(arch):
    weights = Path(os.environ["KD_WEIGHTS"]) / "streamlined" / f"{arch}.pth"
    command = [
        sys.executable,
        "-m",
        "bench.evaluate",
        "--arch",
        arch,
        "--weights",
        weights,
        "--device",
        "cpu",
        "--data",
        os.environ["CIFAR100_ROOT"],
    ]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert float(re.search(r"top-1 ([\d.]+)", said)[1]) == pytest.approx(MEASURED[arch], abs=0.02)


def test_wrong_requests_get_one_line(tmp_path, capsys):
    weights = tmp_path / "w.pt"
    torch.save(zoo.build("resnet8").state_dict(), weights)
    for arguments, says in (
        (["--arch", "resnet9", "--weights", str(weights)], "did you mean"),
        (["--arch", "resnet20", "--weights", str(weights)], "looks like resnet8"),
        (["--arch", "resnet8", "--weights", str(weights), "--data", str(tmp_path)], "cifar-100-python"),
        (["--arch", "resnet8", "--weights", str(weights), "--device", "tpu"], "choose auto, cpu or cuda"),
    ):
        assert evaluation.main(arguments) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1
