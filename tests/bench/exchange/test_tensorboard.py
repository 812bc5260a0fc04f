"""Event files hold the curves, as TensorBoard's own reader sees them, and nothing twice."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch

from bench import store
from bench.exchange import tensorboard
from tests import tiny
from tests import trained as made

NEEDS = pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.make(tmp_path_factory.mktemp("tensorboard"))


@pytest.fixture
def out(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "out")


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of each curve in a run's folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def files(out: Path) -> dict[str, bytes]:
    folder = out / "tensorboard"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def call(out: Path, *more: str) -> int:
    return tensorboard.main(["--out", str(out), *more])


@NEEDS
def test_curves_are_those_of_the_results(out: Path, capsys: pytest.CaptureFixture) -> None:
    assert call(out) == 0 and "3 written" in capsys.readouterr().out
    for method in ("vanilla", "kd", "simkd"):
        run = made.run_of(out, method)
        rows = json.loads((run / "result.json").read_text())["curve"]
        found = events(out / "tensorboard" / run.name)
        columns = {
            "top1": "accuracy/test top-1",
            "top5": "accuracy/test top-5",
            "lr": "learning rate",
            "train_loss": "loss/train, all terms",
            "test_loss": "loss/test",
        }
        columns |= {name: f"loss term/{name}" for name in {"vanilla": ["ce"], "kd": ["ce", "kd"], "simkd": []}[method]}
        for column, tag in columns.items():
            assert [step for step, _ in found[tag]] == [1, 2]
            assert [value for _, value in found[tag]] == pytest.approx([row[column] for row in rows], rel=1e-6)
        assert any(tag.startswith("gradient norm at the logits/") for tag in found)
        assert not {"epoch", "wall_s"} & {tag.rpartition("/")[2] for tag in found}


@NEEDS
def test_again_it_writes_nothing(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert call(out) == 0
    before = files(out)
    assert call(out) == 0 and "3 unchanged" in capsys.readouterr().out
    assert files(out) == before
    assert (
        call(out, "--logdir", str(tmp_path / "elsewhere")) == 0 and len(list((tmp_path / "elsewhere").iterdir())) == 3
    )
    shutil.rmtree(out / "tensorboard")
    assert call(out) == 0 and {name.partition("/")[0] for name in files(out)} == {
        name.partition("/")[0] for name in before
    }


@NEEDS
def test_a_running_run_grows(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Its epochs so far are in its checkpoint; those that come later are added, also once it is finished."""
    run, out = tiny.run(tmp_path, "vanilla"), tmp_path / "out"
    folder = store.run_folder(out, run.run_id)
    folder.path.mkdir(parents=True)
    assert call(out) == 0 and "1 without an epoch" in capsys.readouterr().out
    _, state = tiny.train(run, tiny.dataset(), None, folder.last)
    rows = state.curve
    for epochs in (1, 2):
        saved = torch.load(folder.last, weights_only=True) if folder.last.exists() else {}
        store.write_torch(folder.last, {**saved, "state": {"curve": rows[:epochs]}})
        assert call(out) == 0
        found = events(out / "tensorboard" / run.run_id)
        assert [step for step, _ in found["learning rate"]] == [*range(1, epochs + 1)]
    result = {"run_id": run.run_id, "metrics": {"top1_last": 1.0}, "curve": rows}
    store.write_result(folder.result, result)
    folder.last.unlink()
    before = files(out)
    assert len(before) == 2 and call(out) == 0 and files(out) == before  # the same rows
    # Started over, it is another run: nothing of the first one stays.
    store.write_result(folder.result, {**result, "curve": [{**row, "top1": 50.0} for row in rows]})
    assert call(out) == 0
    assert [value for _, value in events(out / "tensorboard" / run.run_id)["accuracy/test top-1"]] == [50.0, 50.0]
    assert len(files(out)) == 1


@NEEDS
def test_what_cannot_be_read_costs_itself(out: Path, capsys: pytest.CaptureFixture) -> None:
    (made.run_of(out, "kd") / "result.json").write_text("{")
    assert call(out) == 1
    said = capsys.readouterr().out
    assert "kd-resnet8-resnet8-s0" in said and "result.json is damaged" in said and "2 written, 1 not read" in said


def test_requests_that_are_wrong(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert call(tmp_path) == 2 and "has no runs/" in capsys.readouterr().err
    monkeypatch.setattr(tensorboard.importlib.util, "find_spec", lambda name: None)
    assert call(out) == 2 and "pip install tensorboard" in capsys.readouterr().err
    assert not (out / "tensorboard").exists()
