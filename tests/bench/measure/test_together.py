"""The benchmark of cohorts: what it counts, on small networks."""

from __future__ import annotations

import pytest
import torch

import methods
from bench import cohorts
from bench.cost import student_flop, teacher_flop
from bench.measure import together

torch.set_num_threads(1)
PAIR = "resnet20-resnet8"


def test_what_is_timed_together_may_be_together():
    logit = [together.resolved(PAIR, name, changes) for name, changes in together.LOGIT]
    assert len({run.run_id for run in logit}) == 8 and len(cohorts.group({run.run_id: run for run in logit})) == 1
    assert all(methods.get(run.method).group in ("logit", "ours") and run.data.views == "weak" for run in logit)


def test_figures_and_their_bound():
    runs = [together.resolved(PAIR, name, {}) for name in ("kd", "dkd")]
    found = together.measure(runs, rounds=1, plainly=True)
    teacher, student = teacher_flop(runs[0]), student_flop(runs[0])
    assert found.bound == pytest.approx(2 * (teacher + student) / (teacher + 2 * student))
    assert 0 < found.together_s < found.alone_s and found.plain_s > 0 and found.runs == 2


def test_own_memory_by_hand():
    """resnet8 has 82,244 weights with momentum; 9 BatchNorms keep two numbers a channel and a count."""
    (run,) = [together.resolved(PAIR, "kd", {})]
    channels = 16 * 3 + 32 * 2 + 64 * 2 + 32 + 64
    expected = 4 * 2 * 82_244 + 4 * 2 * channels + 8 * 9
    assert together.own_mib([run]) * 2**20 == pytest.approx(expected, rel=0.02)
