"""What a plan costs: who shares a process, when the last run ends, and what a dry run says of it."""

from __future__ import annotations

import re

import pytest
import torch

from bench import grid as grids
from bench.measure.calibration import Calibration
from jobs import forecast, local
from jobs import plan as plans
from tests import tiny
from tests.jobs.test_plan import finish


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    text = tiny.GRID.replace("[resnet8-resnet8]", "[resnet20-resnet8, wrn_16_2-resnet8]").replace(
        "seeds: 1", "seeds: 3"
    )
    text = text.replace("fitnet]", "fitnet, {method: kd, label: KD T=2, params: {temperature: 2}}]")
    return grids.expand(grids.load(str(tiny.write(tmp_path_factory.mktemp("grid"), text))))


@pytest.fixture
def plan(grid, tmp_path):
    return plans.make(grid, tmp_path)


def by_hand(plan, seconds=60.0, **more):
    """A forecast of so many seconds a run."""
    found = Calibration(dict.fromkeys(plan.to_do, seconds), "a device", False, 9, 0, 4, 20.0)
    values = {"lanes": 2, "where": "2 slots of this machine", "wall_s": 725.0, "kept": 5_000_000, "more": 2_100_000_000}
    return forecast.Forecast(found, **{**values, **more})


@pytest.mark.parametrize("lanes", [1, 2, 3])
@pytest.mark.parametrize("together", [None, 1, 2])
def test_parts_hold_every_run_once_and_as_many_as_may(plan, lanes, together):
    parts = list(forecast.parts(plan, lanes, together))
    assert sorted(run_id for part in parts for run_id in part) == sorted(plan.to_do)
    assert max(map(len, parts)) <= (together or 99)
    assert [run_id for part in parts[:2] for run_id in part] == plan.to_do[:2]  # the teachers, each alone
    assert len(parts) < len(plan.to_do) or together == 1


@pytest.mark.parametrize("lanes", [1, 2])
def test_parts_are_those_of_the_local_executor(plan, tmp_path, lanes):
    """Where lanes finish in the order in which they began."""
    queue, taken = local._Queue(plan, tmp_path, lanes, None, plan.to_do), []
    while queue.pending:
        taken.append(queue.next())
        if len(taken) >= lanes:
            queue.in_hand.difference_update(taken[len(taken) - lanes])
    assert taken == list(forecast.parts(plan, lanes, None))


def test_wall_time_waits_for_teachers_and_for_lanes(plan):
    teachers, students = plan.to_do[:2], [run_id for run_id in plan.to_do[2:] if not run_id.startswith("vanilla")]
    mine = [run_id for run_id in students if plan.grid.runs[run_id].teacher.run_id == teachers[1]][:2]
    seconds = {teachers[0]: 10.0, teachers[1]: 4.0, mine[0]: 5.0, mine[1]: 7.0}
    ordered = [[teachers[0]], [teachers[1]], [mine[0]], [mine[1]]]
    assert forecast.wall(plan, ordered, 1, seconds) == pytest.approx(26.0)
    assert forecast.wall(plan, ordered, 2, seconds) == pytest.approx(16.0)  # 4 + 5 + 7 beside 10
    assert forecast.wall(plan, ordered, 4, seconds) == pytest.approx(11.0)  # 4 + 7: the second lane waits
    assert forecast.wall(plan, [ordered[0], ordered[1], mine], 2, seconds) == pytest.approx(16.0)
    assert forecast.wall(plan, [], 2, {}) == 0.0


def test_a_dry_run_is_a_table_that_adds_up(plan, tmp_path):
    said = forecast.dry_run(plan, by_hand(plan), each=False, out=tmp_path)
    rows = {
        name.strip(): (int(runs), float(minutes))
        for name, runs, minutes in re.findall(r"^(.+?) +(\d+) +([\d.]+)$", said, re.M)
    }
    assert rows["teachers"] == (2, 2.0) and rows["Student row"] == (3, 3.0) and rows["in all"] == (23, 23.0)
    assert rows["resnet20-resnet8"] == rows["wrn_16_2-resnet8"] == (9, 9.0)
    assert rows["KD"] == rows["FitNet"] == rows["KD T=2"] == (6, 6.0)
    assert "runs  core-minutes" in said and "missing" not in said.partition("\n")[2]
    assert re.search(
        r"^to do: 23 runs, \S+ PFLOP: 23.0 core-minutes on a device, about 12m05s with 2 slots", said, re.M
    )
    assert "disk: 5 MB in the end, up to 2.1 GB more while it runs" in said
    assert "rests on: 4 of 9 kinds of run measured in 20 s, the others by their FLOP" in said
    assert re.search(r"^not counted: ", said, re.M) and said.endswith("--dry-run=runs")


def test_what_is_done_is_not_counted(grid, tmp_path):
    run_id = next(run_id for run_id in grid.runs if run_id.startswith("kd-resnet20"))
    finish(tmp_path, run_id)
    plan = plans.make(grid, tmp_path)
    said = forecast.dry_run(plan, by_hand(plan), each=False, out=tmp_path)
    assert "22 missing" in said and "1 done" in said and re.search(r"^  resnet20-resnet8 +8 +8.0$", said, re.M)


def test_each_run_is_shown_when_asked_or_when_they_are_few(grid, plan, tmp_path):
    said = forecast.dry_run(plan, by_hand(plan), each=True, out=tmp_path)
    assert len(re.findall(r"^  missing +\S+  \(.*\)  1m00s$", said, re.M)) == 23 and "per pair" not in said
    few = plans.make(grid, tmp_path, ["method=student"])
    said = forecast.dry_run(few, by_hand(few), each=False, out=tmp_path)
    assert len(re.findall(r"^  missing +vanilla-\S+  \(not started\)  1m00s$", said, re.M)) == 3
    assert "per pair" not in said and "--dry-run=runs" not in said


def test_nothing_to_do_costs_nothing(grid, tmp_path):
    for run_id in grid.runs:
        finish(tmp_path, run_id)
    plan = plans.make(grid, tmp_path)
    found = forecast.on(plan, "h100", None, None)
    assert found.found is None
    assert forecast.dry_run(plan, found, each=False, out=tmp_path).endswith("23 runs: 23 done")


def test_here_and_elsewhere(plan, monkeypatch):
    monkeypatch.setattr(forecast.calibration, "calibrate", lambda runs, *_: Calibration(
        dict.fromkeys(runs, 1.0), "this", False, 9, 0, 9, 1.0))  # fmt: skip
    here = forecast.here(plan, torch.device("cpu"), 3, None)
    assert (here.lanes, here.where) == (3, "3 slots of this machine") and here.wall_s == pytest.approx(23 / 3, rel=0.3)
    # ResNet8 has 84,468 weights with 100 classes and some 900 statistics, in 4 bytes each.
    assert here.kept > 21 * 4 * 84_000
    one, cores = (forecast.on(plan, *given, None) for given in (("h100", 4), ("avx512", 4)))
    assert (one.lanes, one.where, one.found.cuda) == (1, "one H100 SXM 80 GB", True)
    assert (cores.lanes, cores.where) == (4, "4 such cores")
    assert one.wall_s == pytest.approx(sum(one.found.seconds.values())) and cores.wall_s < sum(
        cores.found.seconds.values()
    )
