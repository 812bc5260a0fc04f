"""The benchmark of speed: both loops take the same steps, the floor's arithmetic, and where the time is said to go."""

from __future__ import annotations

import pytest
import torch
from torchvision.datasets import FakeData
from torchvision.transforms import ToTensor

from bench.measure import speed
from tests import tiny

torch.set_num_threads(1)


@pytest.fixture
def kd(tmp_path):
    return tiny.run(tmp_path, "kd").model_copy(update={"precision": "fp32"})


def test_both_loops_are_timed(kd):
    dataset = tiny.dataset(80)
    images = FakeData(80, (3, 32, 32), 100, transform=ToTensor())
    assert speed.plain_s(kd, speed._net(kd), images, dataset.train_labels, torch.device("cpu"), 1) > 0
    assert speed.ours_s(kd, speed._net(kd), dataset, 1) > 0


@pytest.mark.parametrize("method", ["kd", "crd", "ofd"])
def test_both_loops_agree_to_rounding(tmp_path, method):
    """The trainer's shortcuts change nothing: in double precision two loops end with the same weights."""
    run, dataset = tiny.run(tmp_path, method), tiny.dataset(80)
    assert speed.agreement(run, speed._net(run), dataset, 3, torch.float64) < (1e-9 if method == "kd" else 1e-6)
    assert 0 < speed.agreement(run, speed._net(run), dataset, 2, torch.float32) < 1e-4


def test_floor_is_the_larger_of_two_times(kd):
    """resnet8 by hand: 7 3x3 convolutions and two projections, a BatchNorm behind each, and 100 logits."""
    per_image = 2 * (3 * 16 * 32 * 32 + 3 * 32 * 16 * 16 + 3 * 64 * 8 * 8) + 100
    assert speed.step_bytes(kd) == 4 * 32 * per_image * (6 + 2)
    flop = speed.step_flop(kd)
    assert speed.Limits(1e9, 1e30).floor_s(kd) == pytest.approx(flop / 1e9)
    assert speed.Limits(1e30, 1e9).floor_s(kd) == pytest.approx(speed.step_bytes(kd) / 1e9)


def test_profile_sums_to_the_whole(kd):
    rows = speed.parts_table(kd, speed._net(kd), tiny.dataset(80), 1).splitlines()[2:]
    shares = [float(row.split("|")[3]) for row in rows]
    assert sum(shares) == pytest.approx(100, abs=0.5)
    assert all(share > 0 for row, share in zip(rows, shares, strict=True) if "convolution" in row or "Batch" in row)


def test_a_wrong_request_gets_one_line(capsys):
    assert speed.main(["--pairs", "resnet56-resnet21"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert speed.main(["--methods", "vanilla"]) == 2
