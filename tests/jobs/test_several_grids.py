"""One results folder used for several grids: no report is lost, and none stands beside another one's pictures."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

import reproduce
from bench import store
from jobs import states
from jobs.carry import merge, pack
from tests.bench.report.report_cases import A, B, Grid


def grid(name: str, protocol: str, pair: tuple[str, str], top1: float) -> Grid:
    made = Grid(protocol, (pair,))
    made.name = name
    made.add("Student", "student", pair, top1 - 4, top1 - 4.2)
    made.add("KD", "logit", pair, top1, top1 + 0.2)
    return made


def use(out: Path, made: Grid) -> None:
    """As `reproduce.py` leaves a folder that it was used for, before it reports."""
    out.mkdir(exist_ok=True)
    kept = out / store.KEPT
    before = kept.read_bytes() if kept.exists() else None
    made.save(out)
    plan = store.read_json(kept)
    if before:
        kept.write_bytes(before)
    else:
        kept.unlink()
    store.keep_plan(out, plan)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Used for grid "first" with plots, then for "second" without."""
    folder = tmp_path / "results"
    use(folder, grid("first", "streamlined", A, 71.0))
    assert reproduce.main(["--report", "--out", str(folder)]) == 0
    use(folder, grid("second", "quick", B, 75.0))
    assert reproduce.main(["--report", "--no-plots", "--out", str(folder)]) == 0
    return folder


def title(folder: Path) -> str:
    return re.search("grid (\\w+), protocol (\\w+)", (folder / "table.md").read_text())[0]


def test_the_folder_shows_the_last_grid_and_keeps_the_others(out: Path):
    first = out / "reports" / "first-streamlined"
    assert (title(out), title(first)) == ("grid second, protocol quick", "grid first, protocol streamlined")
    assert not list(out.glob("plots/*")) and not list(out.glob("latex/published-1*"))  # nothing of the first grid
    assert not (out / "reports" / "second-quick").exists()  # nothing twice
    page = (first / "report.html").read_text()
    links = re.findall(r'href="([^"#]*/result.json)"', page)
    assert len(links) == 4 and all((first / link).resolve().is_file() for link in links)


def test_going_back_to_a_grid_puts_it_on_top_again(out: Path):
    use(out, grid("third", "quick", ("vgg13", "vgg8"), 75.0))
    plan = store.read_json(out / "reports" / "first-streamlined" / store.KEPT)
    store.keep_plan(out, plan)
    assert reproduce.main(["--report", "--no-plots", "--out", str(out)]) == 0
    assert title(out) == "grid first, protocol streamlined"
    assert {path.name for path in (out / "reports").iterdir()} == {"second-quick", "third-quick"}
    assert all((path / "table.md").exists() for path in (out / "reports").iterdir())


def test_status_and_report_know_them_all(out: Path, capsys: pytest.CaptureFixture):
    assert reproduce.main(["--status", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.startswith('grid "second"') and 'also here: grid "first", protocol "streamlined" v1: 4 runs' in said
    (out / "reports" / "first-streamlined" / "table.md").unlink()
    assert reproduce.main(["--report", "--no-plots", "--out", str(out)]) == 0
    assert title(out / "reports" / "first-streamlined") == "grid first, protocol streamlined"
    (out / "reports" / "first-streamlined" / store.KEPT).write_text("[]")
    assert reproduce.main(["--report", "--no-plots", "--out", str(out)]) == 0
    assert "not made again" in capsys.readouterr().err
    assert reproduce.main(["--status", "--out", str(out)]) == 0


def test_a_grid_that_is_named_is_reported_beside_the_last_one(out: Path, capsys: pytest.CaptureFixture):
    assert reproduce.main(["--report", "--no-plots", "--grid", "quick", "--out", str(out)]) == 1
    assert title(out) == "grid second, protocol quick"
    assert "grid quick" in (out / "reports" / "quick" / "table.md").read_text()
    said, place = capsys.readouterr().out, out / "reports" / "quick"
    assert f" in {place}, " in said and said.endswith(f"the whole report: {place / 'report.html'}\n")
    assert len(states.other_grids(out)) == 2


def test_packs_and_kept_results_carry_every_grid(out: Path, tmp_path: Path):
    pack.pack(out, tmp_path / "pack.tar.gz")
    merge.unpack(tmp_path / "pack.tar.gz", tmp_path / "there")
    for folder in (tmp_path / "there", tmp_path / "kept"):
        if folder.name == "kept":
            assert pack.main([str(out), "--keep", str(folder)]) == 0
            assert title(folder / "reports" / "first-streamlined") == "grid first, protocol streamlined"
        assert states.read_kept(folder).grid == "second"
        assert [found.grid for _, found in states.other_grids(folder)] == ["first"]
    use(tmp_path / "third", grid("third", "quick", B, 75.0))
    merge.unpack(tmp_path / "pack.tar.gz", tmp_path / "third")
    assert states.read_kept(tmp_path / "third").grid == "third"
    assert {found.grid for _, found in states.other_grids(tmp_path / "third")} == {"first", "second"}


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "x" * 300, "naïve grid", ""])
def test_any_name_of_a_grid_is_a_folder_below(name: str, tmp_path: Path):
    place = store.report_folder(tmp_path, name, "quick")
    assert place.parent == tmp_path / "reports" and not place.name.startswith(".") and len(place.name) < 120
    assert os.fsencode(place.name).isascii()
    assert place != store.report_folder(tmp_path, name + "_", "quick")


def test_an_old_folder_stays_as_it_is(tmp_path: Path):
    """Before grids had reports of their own a folder had one plan and one report, and still has."""
    grid("first", "streamlined", A, 71.0).save(tmp_path)
    assert reproduce.main(["--report", "--no-plots", "--out", str(tmp_path)]) == 0
    assert not (tmp_path / "reports").exists() and json.loads((tmp_path / store.KEPT).read_text())["grid"] == "first"
