from __future__ import annotations

from pathlib import Path

import pytest

from bench import store
from bench.measure import report_cost
from jobs import states


def test_the_folder_it_makes_is_one_the_report_reads(tmp_path: Path):
    report_cost.make(tmp_path, seeds=1, epochs=3)
    wanted = store.read_json(tmp_path / store.KEPT)["runs"]
    made = [path.name for path in (tmp_path / "runs").iterdir()]
    assert len(wanted) - len(made) == sum((i + 1) % report_cost.UNFINISHED_EVERY == 0 for i in range(len(wanted)))
    assert set(made) < set(wanted) == set(states.read_kept(tmp_path).runs)
    for run_id in made:
        folder = store.run_folder(tmp_path, run_id)
        head, whole = store.read_result(folder, curve=False), store.read_result(folder)
        assert [row["epoch"] for row in whole.pop("curve")] == [1, 2, 3] and head == whole
        assert store.weights_fault(folder) is None
        assert head["config"] == wanted[run_id]


def test_what_a_process_costs():
    idle = report_cost.measure("-c", "pass")
    busy = report_cost.measure("-c", "x = b'1' * 200_000_000; sum(range(2 * 10**7))")
    assert 0 < idle.cpu_s < busy.cpu_s and busy.peak_mb > idle.peak_mb + 150
    assert report_cost.measure("-c", "raise SystemExit(1)")
    with pytest.raises(RuntimeError, match="exit 2"):
        report_cost.measure("-c", "raise SystemExit(2)")
