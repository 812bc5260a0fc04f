"""What is said while runs go on: lines, and what the display is given, from claims and results of a made-up folder."""

from __future__ import annotations

import io
import re
import sys
import time

import pytest

from bench import grid as grids
from bench import store
from jobs import claims, display, plan, progress, states, status
from tests import tiny

GRID = tiny.GRID.replace("[resnet8-resnet8]", "[resnet20-resnet8]").replace("seeds: 1", "seeds: 2")


@pytest.fixture
def grid(tmp_path):
    return grids.expand(grids.load(str(tiny.write(tmp_path / "grid", GRID))))


@pytest.fixture
def out(tmp_path, grid):
    folder = tmp_path / "out"
    folder.mkdir()
    grids.keep(grid, folder)
    return folder


def find(grid, start) -> list[str]:
    return [run_id for run_id in grid.runs if run_id.startswith(start)]


def hold(out, run_id, **said):
    claim = claims.acquire(store.run_folder(out, run_id).path)
    claim.progress.update(said)
    claim.beat()
    return claim


def finish(out, run_id, train_s=60.0):
    folder = store.run_folder(out, run_id)
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.weights.write_bytes(b"1234")
    result = {"schema": 1, "run_id": run_id, "metrics": {"top1_last": 50.0}, "curve": [{"epoch": 1}]}
    provenance = {"weights_bytes": 4, "device": "CPU-X", "threads": 1}
    store.write_result(folder.result, {**result, "timing": {"train_s": train_s}, "provenance": provenance})


PLACE = {"device": "CPU-X", "devices": 0.5, "threads": 1, "slots": 1, "ticks": 9, "idle_s": 0.0}
HALF = {"epoch": 1, "epochs": 2, "step": 0, "steps": 4, "left_s": 40.0, "whole_s": 80.0, "images_per_s": 100.4}


def begin(grid, out, **options) -> progress.Progress:
    return progress.Progress(plan.make(grid, out), out, workers=1, **options)


def test_what_is_shown_and_what_status_says_is_the_same(grid, out, capsys):
    """The teacher is done; the students of one seed are half through, of the other one nothing has begun."""
    for teacher in find(grid, "vanilla-resnet20"):
        finish(out, teacher)
    shown = begin(grid, out, live=False)
    first = [run_id for run_id in grid.runs if "-s0-" in run_id and "resnet8" in run_id]
    shown.started_together(first)
    assert [row.epoch for row in shown.view().rows] == ["starting"]
    for top1, run_id in enumerate(first):
        hold(out, run_id, **HALF, **PLACE, top1=40.0 + top1, said_at=time.time() + 60)
    view = shown.view()
    assert view.title == f'grid "tiny", protocol "tiny" v1, in {out}'
    assert view.counts == {"done": 1, "failed": 0, "running": 3, "waiting": 3}
    (row,) = view.rows
    assert (row.pair, row.seed, row.epoch, row.top1) == ("resnet20 → resnet8", "s0", "1.0/2", "40.0–42.0")
    assert (sorted(row.methods), row.fraction, row.images_per_s) == (["FitNet", "KD", "Student"], 0.5, "100")
    assert row.left == "40s"
    # The other three take as long as these: 80 s.
    assert (view.left, view.left_short) == ("about 2m00s", "2m00s")
    found = states.look(shown.plan.outline, out)
    assert "\ntime left: about 2m00s\n" in status.report(shown.plan.outline, out, found)
    flop = {run_id: run.flop for run_id, run in shown.plan.outline.runs.items()}
    done = sum(flop[run_id] for run_id in find(grid, "vanilla-resnet20")) + sum(flop[run_id] for run_id in first) / 2
    assert view.fraction == pytest.approx(done / sum(flop.values()))


def test_runs_of_one_process_have_one_row_whoever_started_them(grid, out):
    """Followed on a cluster, runs start one by one; their claims say which share a process."""
    shown = begin(grid, out, live=False)
    one, other = find(grid, "vanilla-resnet8")
    shown.started(one)
    shown.started(other)
    assert [row.pair for row in shown.view().rows] == ["resnet8", "resnet8"]
    for run_id in (one, other):
        hold(out, run_id, **{**PLACE, "epoch": 0, "epochs": 6, "idle_s": 400.0})
    (row,) = shown.view().rows
    assert row.seed == "s0,1" and row.left == "no step 6m40s" and row.methods == ["Student", "Student"]


def test_lines_of_a_log(grid, out, capsys, monkeypatch):
    """No control characters; how far all is is said now and then, ever more seldom."""
    shown = begin(grid, out, live=False)
    now = [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    run_id, other = find(grid, "vanilla-resnet20") + find(grid, "vanilla-resnet8")[:1]
    with shown:
        shown.started_together([run_id])
        hold(out, run_id, **HALF, **PLACE)
        for _ in range(3600):
            now[0] += 1
            shown.tick()
        finish(out, run_id)
        shown.done(run_id, "top-1 50.00")
        shown.failed(other, "failed", "it broke")
    shown.finish()
    said = capsys.readouterr().out
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", said)
    lines = said.splitlines()
    assert lines[0] == f"[0/7] {run_id}  started"
    summary = [line for line in lines if "so far" in line]
    assert summary[0].startswith("[0/7] 1 running, 6 waiting; 30s so far, more than")
    assert summary[0].endswith(" left; resnet20 s0 epoch 1.0/2")
    assert [line.partition(" so far")[0].rpartition(" ")[2] for line in summary][:4] == [
        "30s",
        "1m30s",
        "3m30s",
        "7m30s",
    ]
    assert len(summary) == 9  # then every ten minutes
    assert f"[1/7] {run_id}  done  top-1 50.00  (1h00m)" in lines
    assert f"[2/7] {other}  FAILED  it broke" in lines and lines[-1].startswith("retry them")


@pytest.fixture
def terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for name in ("CI", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    return Terminal()


def test_where_it_is_live(terminal, monkeypatch):
    assert progress.usable({"TERM": "xterm"}, terminal) and not progress.usable({"TERM": "xterm"}, io.StringIO())
    for name, value in (("TERM", "dumb"), ("NO_COLOR", "1"), ("CI", "true")):
        assert not progress.usable({"TERM": "xterm", name: value}, terminal)
    assert not progress.usable({}, None)


def test_a_display_that_fails_gives_way_to_lines(grid, out, terminal, monkeypatch):
    """Nothing that only shows may cost what was done."""
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    shown = begin(grid, out)
    assert shown.live
    run_id, other = find(grid, "vanilla-resnet20") + find(grid, "vanilla-resnet8")[:1]
    with shown:
        assert shown.stderr is not None
        shown.started_together([run_id])
        shown.tick()
        assert "started" not in terminal.getvalue() and "resnet20" in terminal.getvalue()
        monkeypatch.setattr(display, "render", lambda *_: 1 / 0)
        shown._looked = 0.0
        shown.tick()
        assert shown.stderr is None
        shown.started_together([other])
    said = terminal.getvalue()
    assert "no live display: ZeroDivisionError" in said and f"[0/7] {other}  started\n" in said


def test_a_signal_is_answered_above_the_display(grid, out, terminal, monkeypatch):
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    shown = begin(grid, out)
    with shown:
        shown.tick()
        before = terminal.getvalue()
        shown.stopping("stopping: wait")
        assert terminal.getvalue() == before  # its handler may have interrupted drawing
        shown.tick()
        assert "stopping: wait\n" in terminal.getvalue()
        assert shown.view().left == ""
