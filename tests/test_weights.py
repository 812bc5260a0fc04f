"""docs/weights.md: each of its commands is run as it stands there, and its Python example."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

import zoo
from bench.exchange import export, tensorboard
from bench.training import evaluate
from tests import trained as made
from zoo import published

PAGE = (Path(__file__).parents[1] / "docs" / "weights.md").read_text()
COMMANDS = [
    line.split("#")[0].strip() for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S) for line in block.splitlines()
]
DOORS = {
    "zoo.published": published.main,
    "bench.evaluate": evaluate.main,
    "bench.export": export.main,
    "bench.tensorboard": tensorboard.main,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with results/ in it."""
    folder = tmp_path_factory.mktemp("page")
    made.make(folder).rename(folder / "results")
    return folder


@pytest.fixture
def listed(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one checkpoint that the page names is one of ours, at an address that can be had here."""
    torch.manual_seed(0)
    torch.save(zoo.build("resnet8").state_dict(), tmp_path / "w.pth")
    digest, address = zoo.sha256(tmp_path / "w.pth"), (tmp_path / "w.pth").as_uri()
    entry = published.Published("streamlined/resnet20.pth", "resnet8", 1.0, None, "", digest, "", "us", address, "", "")
    monkeypatch.setattr(published, "published", lambda: (entry,))
    monkeypatch.setattr(published, "DATASET", "embedded-1")  # of whose images every machine has some
    monkeypatch.chdir(place)


@pytest.mark.usefixtures("listed")
def test_every_command_runs(place: Path, capsys: pytest.CaptureFixture) -> None:
    """In the order of the page, for KD's run in the place of RUN."""
    kinds = set()
    for line in COMMANDS:
        program, dash, door, *arguments = shlex.split(line.replace("RUN", made.run_of(place / "results", "kd").name))
        assert (program, dash) == ("python", "-m")
        if "--onnx" in arguments:
            pytest.importorskip("onnxruntime", reason="onnx, onnxscript and onnxruntime are not installed")
        if door == "bench.tensorboard":
            pytest.importorskip("tensorboard", reason="tensorboard is not installed")
        assert DOORS[door](arguments) == 0, (line, capsys.readouterr().err)
        kinds.add(door)
    assert kinds == set(DOORS)
    assert {path.name for path in place.iterdir()} >= {"W", "student.onnx", "student.pt", "resnet20.onnx", "curves"}
    assert (place / "results" / "tensorboard").is_dir()


@pytest.mark.usefixtures("listed")
def test_the_example_runs(place: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    code = code.replace("RUN", made.run_of(place / "results", "simkd").name)
    found = {"pixels": torch.from_numpy(np.zeros((2, 3, 32, 32), np.uint8))}
    exec(code, found)
    assert found["logits"].shape == (2, 100)
    words = re.search(r"# (arch.*)", code)[1].split(", ")
    assert words == [name for name in vars(found["about"])]
