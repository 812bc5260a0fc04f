"""The benchmark of speed: both loops take the same steps, the floor's arithmetic, and where the time is said to go."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType
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
    assert speed.plain_s(kd, speed.random_teacher(kd), images, dataset.train_labels, torch.device("cpu"), 1) > 0
    assert speed.ours_s(kd, speed.random_teacher(kd), dataset, 1) > 0


@pytest.mark.parametrize("method", ["kd", "crd", "ofd"])
def test_both_loops_agree_to_rounding(tmp_path, method):
    """The trainer's shortcuts change nothing: in double precision two loops end with the same weights."""
    run, dataset = tiny.run(tmp_path, method), tiny.dataset(80)
    assert speed.agreement(run, speed.random_teacher(run), dataset, 3, torch.float64) < (
        1e-9 if method == "kd" else 1e-6
    )
    assert 0 < speed.agreement(run, speed.random_teacher(run), dataset, 2, torch.float32) < 1e-4


def test_random_images_cost_what_real_ones_do():
    """Without the data set: as many PIL images through the same transforms, one or two views of each."""
    one, two = (speed.pil_images(views, None, images=30) for views in ("weak", "paired"))
    assert len(one) == 30 and one[3][0].shape == (3, 32, 32) and one[3][1] == 3
    weak, strong = two[0][0]
    assert weak.shape == strong.shape and not torch.equal(weak, strong)


def test_profile_sums_to_the_whole(kd):
    rows = speed.parts_table(kd, speed.random_teacher(kd), tiny.dataset(80), 1).splitlines()[2:]
    shares = [float(row.split("|")[3]) for row in rows]
    assert sum(shares) == pytest.approx(100, abs=0.5)
    assert all(share > 0 for row, share in zip(rows, shares, strict=True) if "convolution" in row or "Batch" in row)


def test_a_kernel_counts_once():
    """Its launch has its time, too, and so has what was annotated around it."""
    kernel = dict(key="bn", device_type=DeviceType.CUDA, count=10, self_device_time_total=4000.0)
    events = [
        SimpleNamespace(**{**kernel, "key": "copy", "self_device_time_total": 1000.0}),
        SimpleNamespace(**kernel),
        SimpleNamespace(**{**kernel, "key": "cudaGraphLaunch", "device_type": DeviceType.CPU}),
        SimpleNamespace(**{**kernel, "key": "Optimizer.step"}, is_user_annotation=True),
    ]
    assert speed.longest_first(events, True, 5) == [("bn", 2.0, 0.8), ("copy", 2.0, 0.2)]


def test_a_wrong_request_gets_one_line(capsys):
    assert speed.main(["--pairs", "resnet56-resnet21"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert speed.main(["--methods", "vanilla"]) == 2
