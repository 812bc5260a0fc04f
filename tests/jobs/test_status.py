"""`--status`: states, hours and lists from hand-made folders; from plan.json alone, and without importing torch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import reproduce
from bench import grid as grids
from bench import store
from bench.surroundings import sources
from jobs import claims, plan, states, status
from tests import tiny
from zoo.errors import BadInput

ROOT = Path(__file__).parents[2]
GRID = tiny.GRID.replace("[resnet8-resnet8]", "[resnet20-resnet8, wrn_16_2-resnet8]").replace("seeds: 1", "seeds: 3")


@pytest.fixture
def grid(tmp_path):
    return grids.expand(grids.load(str(tiny.write(tmp_path / "grid", GRID))))


@pytest.fixture
def out(tmp_path, grid):
    folder = tmp_path / "out"
    folder.mkdir()
    grids.keep(grid, folder)
    return folder


def find(grid, start, count=1):
    return [run_id for run_id in grid.runs if run_id.startswith(start)][:count]


def finish(out, run_id, *, device="GPU-Z", threads=None, **timing):
    folder = store.run_folder(out, run_id)
    folder.path.mkdir(parents=True)
    folder.weights.write_bytes(b"1234")
    store.write_result(
        folder.result,
        {
            "schema": 1,
            "run_id": run_id,
            "metrics": {"top1_last": 50.0},
            "timing": timing or {"train_s": 360.0, "device_s": 180.0},
            "provenance": {"weights_bytes": 4, "device": device, "threads": threads},
            "curve": [{"epoch": 1}],
        },
    )


def fail(out, run_id, message):
    folder = store.run_folder(out, run_id)
    folder.path.mkdir(parents=True)
    store.write_json(folder.error, {"message": message})


def hold(out, run_id, **progress):
    claim = claims.acquire(store.run_folder(out, run_id).path)
    claim.progress.update(progress)
    claim.beat()
    return claim


def said(out, *arguments, capsys):
    code = reproduce.main(["--status", "--out", str(out), *arguments])
    return code, capsys.readouterr().out


def test_everything_is_said(grid, out, capsys):
    good, bad = find(grid, "vanilla-resnet20") + find(grid, "vanilla-wrn_16_2")
    finish(out, good)
    fail(out, bad, "loss is not finite at epoch 1")
    first, second, third = find(grid, "kd-resnet20", 3)
    speed = {"images_per_s": 21300.4, "left_s": 3780.0, "wall_s": 60.0, "idle_s": 0.5, "ticks": 9}
    place = {"device": "GPU-Z", "gpu": "3", "devices": 0.5}
    hold(out, first, epoch=1, epochs=2, step=2, steps=4, top1=54.321, **speed, **place)
    hold(out, second, idle_s=400.0, ticks=7, wall_s=500.0, **place)
    hold(out, third)
    stopped, damaged = find(grid, "fitnet-resnet20", 2)
    store.run_folder(out, stopped).path.mkdir()
    store.run_folder(out, stopped).last.write_bytes(b"x")
    finish(out, damaged)
    store.run_folder(out, damaged).result.write_text('{"run_id": ')
    code, text = said(out, capsys=capsys)
    assert code == 1
    assert text.startswith('grid "tiny", protocol "tiny" v1: 17 runs: 1 done, 1 failed, 6 blocked, 3 running, 1 inter')
    rows = {line.split()[0]: line for line in text.splitlines()}
    here = f"{os.uname().nodename}, GPU 3 (GPU-Z), process {os.getpid()}"
    assert rows[first].split()[1:5] == ["1.5/2", "54.32", "21,300", "1h03m"] and rows[first].endswith(here)
    assert "no step for 6m40s" in rows[second] and rows[second].endswith(here)
    assert rows[third].endswith(f"process {os.getpid()}")
    assert re.search(
        rf"^failed \(1\):\n  {bad}  loss is not finite.*\n      log: .*{bad}/log.txt\n.*retry-f", text, re.M
    )
    assert f"blocked (6):\n  6 runs by {bad}\n" in text
    assert f"interrupted (1):\n  {stopped}  " in text
    assert re.search(rf"damaged \(1\):\n  {damaged}  result.json is damaged", text)


def test_hours(grid, out, capsys):
    """Spent: whole devices, not slots. Expected: the rest, sharing passes, at the speed of its kind of device."""
    kept = states.read_kept(out)
    assert said(out, capsys=capsys)[1].splitlines()[1] == "no finished run yet"
    teacher, other = find(grid, "vanilla-resnet20") + find(grid, "vanilla-wrn_16_2")
    finish(out, teacher, train_s=7200.0, device_s=3600.0)
    half = find(grid, "kd-resnet20")[0]
    hold(out, half, epoch=1, epochs=2, device="GPU-Z", gpu="0", devices=0.5, wall_s=1800.0)
    company = Counter((run.seed, run.teacher) for run_id, run in kept.runs.items() if run_id != teacher)
    flop = {run_id: run.part_flop(company.get((run.seed, run.teacher), 1)) for run_id, run in kept.runs.items()}
    per_hour = flop[teacher]  # one hour of a whole GPU
    spent = 1 + 0.25
    rest = (sum(flop.values()) - flop[teacher] - flop[half] / 2) / per_hour
    line = said(out, capsys=capsys)[1].splitlines()[1]
    assert line == (
        f"spent: 1.25 GPU-hours on GPU-Z; about {spent + rest:.3g} expected in all, by the speed of 1 finished run"
    )
    # A second kind of device: four cores for half an hour are two hours; older results do not say device_s.
    finish(out, other, device="CPU-Y", threads=4, train_s=1800.0)
    student = find(grid, "vanilla-resnet8")[0]
    finish(out, student, train_s=3600.0 * flop[student] / per_hour)
    line = said(out, capsys=capsys)[1].splitlines()[1]
    assert line.endswith("by the speed of 3 finished runs")
    spent, rest = spent + flop[student] / per_hour, rest - (flop[student] + flop[other]) / per_hour
    assert f"spent: {spent:.3g} GPU-hours on GPU-Z and 2 CPU-hours on CPU-Y; about " in line
    assert f"about {spent + rest:.3g} GPU-hours on GPU-Z and 2 CPU-hours on CPU-Y expected" in line


def test_all_done(grid, out, capsys):
    for run_id in grid.runs:
        finish(out, run_id)
    code, text = said(out, capsys=capsys)
    assert code == 0 and text.count("\n") == 2
    assert text.splitlines()[1] == f"spent: {0.05 * len(grid.runs):.3g} GPU-hours on GPU-Z"


def test_long_lists_are_cut(out, grid, capsys):
    for run_id in grid.runs:
        fail(out, run_id, "no\nsuch luck")
    text = said(out, capsys=capsys)[1]
    assert "failed (17):" in text and "  and 7 more\n" in text and text.count("log.txt") == 10
    held = {run_id: claims.Holder(0, True, "host", 1, {}) for run_id in map(str, range(87))}
    lines = status._running(held)
    assert len(lines) == 1 + 50 + 1 and lines[-1] == "  and 37 more"


def test_submitted_runs_say_their_job(out, grid, capsys):
    waiting, stopped = find(grid, "vanilla-resnet8", 2)
    store.run_folder(out, stopped).path.mkdir(parents=True)
    store.run_folder(out, stopped).last.write_bytes(b"x")
    (out / "submitted").mkdir()
    record = {"user": "me", "tasks": [[waiting], [stopped]], "jobs": ["12_0", "12_1"]}
    (out / "submitted" / "0123456789ab.json").write_text(json.dumps(record))
    text = said(out, capsys=capsys)[1]
    assert "submitted, waiting (2):" in text and f"  {waiting}  job 12_0\n" in text and f"{stopped}  job 12_1" in text
    assert "interrupted (" not in text


def test_kept_outline_is_the_grids(grid, out):
    assert states.read_kept(out) == plan.outline(grid)
    assert states.read_kept(out / "nowhere") is None
    kept = json.loads((out / "plan.json").read_text())
    del kept["flop"]  # as the first version wrote it
    (out / "plan.json").write_text(json.dumps(kept))
    older = states.read_kept(out)
    assert {run.flop for run in older.runs.values()} == {None} and set(older.runs) == set(grid.runs)
    finish(out, find(grid, "vanilla-resnet20")[0])
    text = status.report(older, out, states.look(older, out))
    assert "1 done, 16 missing" in text and "spent: 0.05 GPU-hours on GPU-Z\n" in text + "\n" and "expected" not in text


BROKEN = [{"runs": 3}, {"runs": {}}, {"cells": []}, {"protocol": None}, {"pairs": [1]}, {"flop": [1]}]


@pytest.mark.parametrize("change", [*BROKEN, "[]", "{"])
def test_a_broken_plan_gets_one_line(out, change, capsys):
    kept = json.loads((out / "plan.json").read_text())
    first = next(iter(kept["runs"]))
    text = change if isinstance(change, str) else json.dumps({**kept, **change})
    for flop in ("NaN", "-1", '"x"'):
        (out / "plan.json").write_text(json.dumps({**kept, "flop": {first: 0}}).replace(": 0}", f": {flop}}}"))
        with pytest.raises(BadInput, match="cannot be read"):
            states.read_kept(out)
    (out / "plan.json").write_text(text)
    assert reproduce.main(["--status", "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert "plan.json" in error and "--grid" in error and error.count("\n") == 1


def test_selection_is_the_same_with_and_without_the_grid(grid, out, tmp_path, capsys):
    chosen = ["--only", "method=kd,teacher=resnet20,seed=1"]
    short = said(out, *chosen, capsys=capsys)
    assert short == said(out, *chosen, "--grid", str(tmp_path / "grid" / "grid.yaml"), capsys=capsys)
    assert "2 runs: 2 missing" in short[1]  # and its teacher
    for wrong, says in (("method=kdd", 'did you mean "kd"'), ("method=dkd", "no run of grid"), ("seed=7", "unknown")):
        assert reproduce.main(["--status", "--out", str(out), "--only", wrong]) == 2
        assert says in capsys.readouterr().err


def test_nothing_slow_is_imported(grid, out):
    finish(out, find(grid, "vanilla-resnet20")[0])
    hold(out, find(grid, "kd-resnet20")[0], epoch=1, epochs=2)
    slow = {"torch", "torchvision", "numpy", "pandas", "matplotlib", "pydantic", "yaml", "submitit"}
    code = (
        "import sys, reproduce\n"
        f"reproduce.main(['--status', '--out', {str(out)!r}, '--only', 'method=kd'])\n"
        f"sys.exit(', '.join({slow!r} & set(sys.modules)) or None)"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "8 runs" in process.stdout


def name_source(out, run_id, **provenance):
    path = store.run_folder(out, run_id).result
    result = store.read_json(path)
    result["provenance"] |= provenance
    store.write_result(path, result)


def test_results_of_another_source_are_said_with_the_command_that_redoes_them(grid, out, capsys):
    kd, fitnet = find(grid, "kd-resnet20", 3), find(grid, "fitnet-", 2)
    for run_id in (*kd, *fitnet):
        finish(out, run_id)
        name_source(out, run_id, method_source=sources.today()[run_id.partition("-")[0]].digest)
    text = said(out, capsys=capsys)[1]
    assert "--force" not in text and "source" not in text
    for run_id in kd:
        name_source(out, run_id, method_source="source:" + "0" * 64)
    name_source(out, fitnet[0], method_source="", method_sha256="0" * 64)  # of an earlier version
    text = said(out, capsys=capsys)[1]
    assert f"3 results of another source of the method than today's; to redo: {kd[0]}, {kd[1]}" in text
    assert f"kd-bench --grid tiny --out {out} --force --only method=kd\n" in text
    assert "1 result of an earlier version" in text and fitnet[0] in text
    made = plan.describe(plan.make(grid, out), out=out)
    assert "3 results of another source" in made and "--force --only method=kd" in made


def test_a_run_that_cannot_be_looked_at_now_is_blocked_and_not_done_again(grid, out, capsys):
    teacher = find(grid, "vanilla-resnet20")[0]
    finish(out, teacher)
    path = store.run_folder(out, teacher).result
    path.rename(path.with_name("hidden"))
    path.symlink_to(path.name)
    found = plan.make(grid, out)
    assert teacher in found.of("blocked") and not {*find(grid, "kd-resnet20", 3)} & {*found.to_do}
    text = said(out, capsys=capsys)[1]
    assert f"{teacher}  result.json cannot be read now (" in text and f"runs by {teacher}" in text
