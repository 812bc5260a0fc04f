"""The benchmark of the harness: its arithmetic on hand-made results, and that its grid is what it says."""

from __future__ import annotations

import os

from bench import grid as grids
from bench import store
from bench.measure import overhead


def test_figures_by_hand(tmp_path):
    """Two slots, six runs of 1 s that end every 1.1 s in pairs, the first pair at 10 s; the call takes 15 s."""
    for number in range(6):
        folder = store.run_folder(tmp_path, f"run-{number}")
        folder.path.mkdir(parents=True)
        result = {"run_id": folder.run_id, "metrics": {"top1_last": 1.0}, "timing": {"train_s": 1.0}, "curve": []}
        store.write_result(folder.result, result)
        os.utime(folder.result, (0, 1010 + 1.1 * (number // 2)))
    said = overhead.figures(tmp_path, slots=2, began=1000.0, wall_s=15.0)
    assert "6 runs in 15.0 s, of which a run trained 1000 ms" in said
    assert "first result after 10.0 s, end 2.8 s after the last" in said
    # Of 2 x 2.2 s of slot time 4 s were training: 0.4 s over 4 runs; of 2 x 15 s six were: 24 s over 6 runs.
    assert "costs 100 ms a run, 4000 ms with the start-up" in said


def test_grid_is_of_so_many_runs_of_one_step(tmp_path):
    grid = grids.expand(grids.load(str(overhead.write_grid(tmp_path, 8))))
    assert len(grid.runs) == 8 and sum(run.teacher is not None for run in grid.runs.values()) == 4
    for run in grid.runs.values():
        assert run.train.epochs == 1 and run.train.batch >= run.data.train_images


def test_profile_does_the_runs(tmp_path, capsys):
    overhead.profile(overhead.write_grid(tmp_path, 4), tmp_path / "out", "cpu")
    said = capsys.readouterr().out
    assert "4 runs" in said and "(perform)" in said and "(train)" in said
    assert len(list(tmp_path.glob("out/runs/*/result.json"))) == 4
