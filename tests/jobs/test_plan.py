"""The plan: states from hand-made folders, selection, order, retry and force."""

from __future__ import annotations

import json
import os

import pytest

from bench import grid as grids
from bench import store
from bench.cost import cost_flop, shared_flop
from jobs import claims
from jobs import plan as plans
from tests import tiny
from zoo.errors import BadInput


@pytest.fixture
def grid(tmp_path):
    text = tiny.GRID.replace("[resnet8-resnet8]", "[resnet20-resnet8, wrn_16_2-resnet8]").replace(
        "seeds: 1", "seeds: 2"
    )
    return grids.expand(grids.load(str(tiny.write(tmp_path / "grid", text))))


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def find(grid, start):
    return next(run_id for run_id in grid.runs if run_id.startswith(start))


def finish(out, run_id, top1=50.0):
    folder = store.run_folder(out, run_id)
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.weights.write_bytes(b"1234")
    store.write_json(
        folder.result, {"run_id": run_id, "metrics": {"top1_last": top1}, "provenance": {"weights_bytes": 4}}
    )


def fail(out, run_id):
    folder = store.run_folder(out, run_id)
    folder.path.mkdir(parents=True, exist_ok=True)
    store.write_json(folder.error, {"message": "loss is not finite"})


def test_nothing_there(grid, out):
    plan = plans.make(grid, out)
    assert plan.counts() == {"missing": len(grid.runs)} and not out.exists()
    assert set(plan.to_do[:2]) == {find(grid, "vanilla-resnet20"), find(grid, "vanilla-wrn_16_2")}
    assert plan.to_do[0].startswith("vanilla-wrn_16_2")  # the longer teacher first
    costs = [cost_flop(grid.runs[run_id]) for run_id in plan.to_do[2:]]
    assert costs == sorted(costs, reverse=True)


def test_states_and_reasons(grid, out):
    teacher, other = find(grid, "vanilla-resnet20"), find(grid, "vanilla-wrn_16_2")
    finish(out, teacher)
    fail(out, other)
    done, running, interrupted, damaged = (
        find(grid, start)
        for start in (
            "kd-resnet20-resnet8-s0",
            "kd-resnet20-resnet8-s1",
            "fitnet-resnet20-resnet8-s0",
            "fitnet-resnet20-resnet8-s1",
        )
    )
    finish(out, done, 61.0)
    claims.acquire(store.run_folder(out, running).path)
    store.run_folder(out, interrupted).path.mkdir()
    store.run_folder(out, interrupted).last.write_bytes(b"x")
    finish(out, damaged)
    store.run_folder(out, damaged).result.write_text('{"run_id": ')
    plan = plans.make(grid, out)
    states = {run_id: plan.statuses[run_id].state for run_id in (teacher, other, done, running, interrupted, damaged)}
    assert list(states.values()) == ["done", "failed", "done", "running", "interrupted", "missing"]
    assert plan.statuses[other].reason == "loss is not finite"
    assert f"process {os.getpid()}" in plan.statuses[running].reason
    assert "result.json is damaged" in plan.statuses[damaged].reason
    blocked = [run_id for run_id, found in plan.statuses.items() if found.state == "blocked"]
    assert sorted(blocked) == sorted(r for r in grid.runs if "-wrn_16_2-resnet8-" in r)
    assert all(other in plan.statuses[run_id].reason for run_id in blocked)
    assert done not in plan.to_do and other not in plan.to_do and not set(blocked) & set(plan.to_do)
    assert {running, interrupted, damaged} <= set(plan.to_do)


def test_teacher_without_weights_is_made_again_only_where_students_wait(grid, out):
    teacher = find(grid, "vanilla-resnet20")
    finish(out, teacher)
    assert teacher not in plans.make(grid, out).to_do
    store.run_folder(out, teacher).weights.write_bytes(b"12")
    plan = plans.make(grid, out)
    assert teacher in plan.to_do and "cut short" in plan.statuses[teacher].reason
    for run_id in grid.runs:
        if "-resnet20-resnet8-" in run_id:
            finish(out, run_id)
    store.run_folder(out, teacher).weights.unlink()
    assert plans.make(grid, out).statuses[teacher].state == "done"


def test_only(grid, out):
    def chosen(*only):
        return sorted(run_id.rsplit("-", 1)[0] for run_id in plans.make(grid, out, only).selected)

    assert chosen("method=kd,teacher=resnet20,seed=1") == ["kd-resnet20-resnet8-s1", "vanilla-resnet20-s0"]
    assert chosen("method=student") == chosen("method=vanilla") == ["vanilla-resnet8-s0", "vanilla-resnet8-s1"]
    assert chosen("method=teacher") == ["vanilla-resnet20-s0", "vanilla-wrn_16_2-s0"]
    both = {*chosen("method=kd"), *chosen("method=fitnet")}
    assert set(chosen("method=kd", "method=fitnet")) == both == set(chosen("method=kd,fitnet"))
    assert chosen("method=KD,FitNet,teacher=ResNet-20,WRN-16-2,seed=0,1") == chosen("method=kd,fitnet")
    assert chosen("seed=1,method=kd,teacher=resnet20") == chosen("method=kd,teacher=resnet20,seed=1")


@pytest.mark.parametrize(
    ("only", "says"),
    [
        ("method=kdd", 'did you mean "kd"'),
        ("methods=kd", 'did you mean "method"'),
        ("kd", "key=value"),
        ("method=kd,dkdd", 'did you mean "dkd"'),
        ("method=kd,method=dkd", "for several values write method=A,B"),
        ("student=resnet56", "unknown student"),
        ("seed=7", "unknown seed"),
        ("method=dkd", "no run of grid"),
    ],
)
def test_bad_only_gets_one_line(grid, out, only, says):
    with pytest.raises(BadInput, match=says) as error:
        plans.make(grid, out, [only])
    assert "\n" not in str(error.value)


def test_retry_and_force_lose_nothing(grid, out):
    kd, teacher = find(grid, "kd-resnet20-resnet8-s0"), find(grid, "vanilla-resnet20")
    finish(out, teacher)
    fail(out, kd)
    assert plans.retry_failed(plans.make(grid, out), out) == [kd]
    assert (store.run_folder(out, kd).path / "error.json.aside-1").exists()
    assert plans.make(grid, out).statuses[kd].state == "missing"
    finish(out, kd, 77.0)
    only = ["method=kd,teacher=resnet20,seed=0"]
    assert plans.force(plans.make(grid, out, only), out, only) == [kd]
    assert plans.make(grid, out).statuses[kd].state == "missing"
    assert plans.make(grid, out).statuses[teacher].state == "done"  # not selected: left alone
    kept = json.loads((out / "aside" / f"{kd}.aside-1" / "result.json").read_text())
    assert kept["metrics"]["top1_last"] == 77.0
    claims.acquire(store.run_folder(out, kd).path)
    with pytest.raises(BadInput, match="stop it first"):
        plans.force(plans.make(grid, out, only), out, only)


def test_cost_counts_forward_teacher_and_three_students(grid):
    run = grid.runs[find(grid, "kd-resnet20-resnet8")]
    # MACs by hand: resnet20 40.82 M (published), resnet8 = stem + 3 stages
    resnet8 = (
        9 * 1024 * 3 * 16
        + 2 * 9 * 1024 * 16 * 16
        + 256 * (9 * 16 * 32 + 9 * 32 * 32 + 16 * 32)
        + 64 * (9 * 32 * 64 + 9 * 64 * 64 + 32 * 64)
        + 6400
    )
    assert cost_flop(run) == pytest.approx(2 * (40.82e6 + 3 * resnet8) * 100 * 2, rel=1e-3)


@pytest.mark.parametrize(
    ("timing", "together", "own_s"),
    [
        ({"train_s": 30.0}, 1, 30.0),  # results of earlier versions
        ({"train_s": 30.0, "together": 1.0}, 1, 30.0),
        ({"train_s": 90.0, "together": 3.0}, 3, 30.0),  # 90 are those of all three, with one pass of the teacher
    ],
)
def test_the_time_one_run_at_a_time_is_not_that_of_all_that_trained_together(grid, out, timing, together, own_s):
    run_id = find(grid, "kd")
    finish(out, run_id)
    folder = store.run_folder(out, run_id)
    result = {"run_id": run_id, "metrics": {"top1_last": 50.0}, "timing": timing}
    store.write_json(folder.result, result | {"provenance": {"weights_bytes": 4}})
    run = grid.runs[run_id]
    part = cost_flop(run) - shared_flop(run) * (1 - 1 / together)
    assert plans.measured_flop_per_s(plans.make(grid, out)) == pytest.approx(part / own_s)
