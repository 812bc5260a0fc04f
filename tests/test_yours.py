"""docs/yours.md: its files are read as they stand there, and run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import zoo
from bench import datasets as catalogue
from bench import grid as grids
from bench.run import Train
from bench.training import data
from tests import tiny
from tests.bench import trees as made

PAGE = (Path(__file__).parents[1] / "docs" / "yours.md").read_text()


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The page's files, and a folder of images called flowers/ beside them."""
    monkeypatch.setenv("KD_BENCH_CACHE", str(tmp_path / "cache"))
    for name, text in re.findall(r"```yaml\n# (\S+)\n(.*?)```", PAGE, re.DOTALL):
        (tmp_path / name).write_text(text)
    torch.manual_seed(0)
    torch.save({"model": zoo.build("wrn_16_1", 3, 64).state_dict()}, tmp_path / "wrn_16_1.pth")
    made.folder(tmp_path / "flowers", classes=3, train=8, test=2)
    return tmp_path


def test_every_example_runs(folder):
    for name, runs in (("grid.yaml", 13), ("taught.yaml", 3)):
        grid = grids.expand(grids.load(str(folder / name)), data=folder / "flowers")
        assert len(grid.runs) == runs  # a teacher, and each row with each seed
    whole = grids.expand(grids.load(str(folder / "grid.yaml")), data=folder / "flowers")
    run = next(run for run in whole.runs.values() if run.method == "crd")
    assert (run.train.optimizer, run.train.label_smoothing, run.data.side) == ("adamw", 0.1, 64)
    loaded = data.load(run.data, folder / "flowers", torch.device("cpu"))
    _, state = tiny.train(run, loaded, zoo.build("wrn_16_1", 3, 64), folder / "last.pt")
    assert len(state.curve) == 2 and state.curve[-1]["lr"] < run.train.lr


def test_the_page_names_every_data_set_and_setting():
    for name, entry in catalogue.ENTRIES.items():
        assert entry.variable is None or {f"`{name}`", f"`{entry.variable}`"} <= set(re.findall(r"`[^`\n]+`", PAGE))
    said = set(re.findall(r"\w+", " ".join(re.findall(r"`[^`\n]+`", PAGE.rpartition("## Optimisers")[2]))))
    plain = {"epochs", "batch", "lr", "nesterov", "weight_decay"}
    assert set(Train.model_fields) - plain <= said
