"""A time budget ends wherever it ends: nothing is lost, and the same command goes on to the same results."""

from __future__ import annotations

import re

import pytest
import torch

import reproduce
from bench import store
from bench.training import member
from jobs.outcomes import DONE, STOPPED
from tests import tiny
from tests.jobs.test_worker import do, essence, here, teacher_run
from tests.test_reproduce import results


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    options = ["--grid", str(tiny.write(folder / "grid")), "--slots", "2", "--no-plots"]
    assert reproduce.main([*options, "--out", str(folder / "out")]) == 0
    return options, folder / "out"


def test_in_the_start_of_several_workers(undisturbed, tmp_path, capsys):
    """Too little for a single step, then what is left: with two slots the three runs are done once each."""
    options, out = undisturbed
    assert reproduce.main([*options, "--out", str(tmp_path), "--time-budget", "0.001"]) == 3
    said = capsys.readouterr().out
    assert "time budget used up" in said and not re.search(r"\] \S+  failed", said)
    assert not list(tmp_path.glob("runs/*/claim*")) and not list(tmp_path.glob("runs/*/error.json"))
    assert reproduce.main([*options, "--out", str(tmp_path)]) == 0
    assert results(tmp_path) == results(out)


@pytest.mark.parametrize("last", [False, True])
def test_in_an_evaluation(tmp_path, monkeypatch, last):
    """The evaluation is finished; after the last one the run is done, else a checkpoint is written at the next step."""
    run, evaluate, seen = teacher_run(tmp_path), member.evaluate, []
    torch.set_num_threads(1)
    site, stop = here(tmp_path / "stopped")

    def ending(*given, **named):
        seen.append(None)
        if len(seen) == (2 if last else 1):
            stop.set()  # as the end of orders does, while the evaluation is under way
        return evaluate(*given, **named)

    monkeypatch.setattr(member, "evaluate", ending)
    outcome, message = do(run, site, stop)
    folder = store.run_folder(site.out, run.run_id)
    if last:
        assert outcome == DONE and not folder.last.exists()
    else:
        assert (outcome, message) == (STOPPED, "checkpoint written")
        state = store.read_torch(folder.last)["state"]
        assert (state["epoch"], state["step"], len(state["curve"])) == (2, 1, 1)
        stop.clear()
        assert do(run, site, stop)[0] == DONE
    monkeypatch.setattr(member, "evaluate", evaluate)
    whole, stop = here(tmp_path / "whole")
    assert do(run, whole, stop)[0] == DONE
    assert essence(site.out, run) == essence(whole.out, run)


def test_before_the_first_step(tmp_path):
    """Asked while data and networks are made ready: one step, a checkpoint, and on from there."""
    run = teacher_run(tmp_path)
    site, stop = here(tmp_path / "out", stop=True)
    assert do(run, site, stop)[0] == STOPPED
    assert store.read_torch(store.run_folder(site.out, run.run_id).last)["state"]["step"] == 1
