"""What a device does at best: the arithmetic of the floor, and how calls are timed."""

from __future__ import annotations

import pytest
import torch

from bench.cost import step_flop
from bench.measure import ceilings
from tests import tiny

CPU = torch.device("cpu")


def test_floor_is_the_larger_of_two_times(tmp_path):
    """resnet8 by hand: 7 3x3 convolutions and two projections, a BatchNorm behind each, and 100 logits."""
    kd = tiny.run(tmp_path, "kd").model_copy(update={"precision": "fp32"})
    per_image = 2 * (3 * 16 * 32 * 32 + 3 * 32 * 16 * 16 + 3 * 64 * 8 * 8) + 100
    assert ceilings.step_bytes(kd) == 4 * 32 * per_image * (6 + 2)
    assert ceilings.Limits(1e9, 1e30).floor_s(kd) == pytest.approx(step_flop(kd) / 1e9)
    assert ceilings.Limits(1e30, 1e9).floor_s(kd) == pytest.approx(ceilings.step_bytes(kd) / 1e9)


@pytest.fixture
def clock(monkeypatch):
    """A clock that calls move, how often it was looked at (each look waits for the device), and the calls."""
    seen = {"s": 0.0, "looks": 0, "calls": 0}

    def now(device):
        seen["looks"] += 1
        return seen["s"]

    monkeypatch.setattr(ceilings, "now", now)
    return seen


def test_many_calls_between_two_waits(clock):
    def work():
        clock["s"] += 1e-3
        clock["calls"] += 1

    assert ceilings.call_s(work, CPU) == pytest.approx(1e-3)
    assert clock["calls"] in (3 + 3 * 19, 3 + 3 * 20) and clock["looks"] == 2 + 2 * ceilings.TURNS


def test_a_long_call_is_made_once_a_turn(clock):
    def work():
        clock["s"] += 5.0
        clock["calls"] += 1

    assert ceilings.call_s(work, CPU) == pytest.approx(5.0)
    assert clock["calls"] == 3 + ceilings.TURNS


def test_rates_count_what_was_done(monkeypatch):
    """With a second a call a rate is the work of one call."""
    monkeypatch.setattr(ceilings, "call_s", lambda work, device: (work(), 1.0)[1])
    assert ceilings.copy(CPU, 1000) == 2000
    assert ceilings.product(CPU, "fp32", 16) == 2 * 16**3
    flop, shape = ceilings.convolution(CPU, "bf16", "NHWC", 2, ((4, 8), (8, 8)))
    assert shape == (8, 8) and flop == 2 * 9 * 8 * (2 * 8 * 8 * 8)  # two a multiply-add, 3x3 window, inputs, outputs
