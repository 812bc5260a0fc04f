"""docs/yours.md: its files are read as they stand there, and run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torchvision

import zoo
from bench import cohorts, experiment
from bench import datasets as catalogue
from bench import grid as grids
from bench.run import Train
from bench.training import data, evaluate
from tests import tiny
from tests.bench import trees as made

PAGE = (Path(__file__).parents[1] / "docs" / "yours.md").read_text()


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The page's files, a folder of images called flowers/ beside them, and the weights that they name."""
    monkeypatch.setenv("KD_BENCH_CACHE", str(tmp_path / "cache"))
    for name, text in re.findall(r"```(?:yaml|python)\n# (\S+)\n(.*?)```", PAGE, re.DOTALL):
        (tmp_path / name).write_text(text)
    torch.manual_seed(0)
    torch.save({"model": zoo.build("wrn_16_1", 3, 64).state_dict()}, tmp_path / "wrn_16_1.pth")
    torch.save(torchvision.models.resnet18(num_classes=3).state_dict(), tmp_path / "r18.pth")
    made.folder(tmp_path / "flowers", classes=3, train=8, test=2)
    (tmp_path / "tiny.yaml").write_text(tiny.PROTOCOL)
    return tmp_path


class Heard(experiment.Listener):
    def __init__(self, results: list) -> None:
        self.results = results

    def finished(self, result) -> None:
        self.results.append(result)

    def left(self, error: Exception) -> None:
        raise error


def train(grid: grids.Grid, out: Path) -> list[dict]:
    """Every run of a grid, as a worker does them; their results."""
    for run_id in grid.runs:
        (out / "runs" / run_id).mkdir(parents=True)
    grids.keep(grid, out)
    results: list[dict] = []
    teachers = {run.teacher.run_id for run in grid.runs.values() if run.teacher}
    for cohort in cohorts.group(grid.runs, alone=teachers):
        jobs = [experiment.Job(grid.runs[one], Heard(results), grid.weights.get(one)) for one in cohort]
        experiment.perform(jobs, experiment.Site(out, torch.device("cpu")))
    return results


def test_a_method_of_ones_own_trains(folder):
    """As it stands there, tried for a step on each pair, and then under a protocol and on a pair that take seconds."""
    file = grids.load(str(folder / "method.yaml"))
    labels = [cell.label for cell in grids.expand(file).cells if cell.teacher == "wrn_40_2"]
    assert labels[2:] == ["KD", "Logit MSE", "Logit MSE, w 1"]
    small = file.model_copy(update={"pairs": ["resnet8-resnet8"]})
    short = grids.expand(small, protocol=str(folder / "tiny.yaml"), seeds=[0])
    results = {one["run_id"]: one for one in train(short, folder / "out")}
    assert len(results) == len(short.runs) == 4  # the teacher is the plain student, too
    (run_id,) = [run_id for run_id, run in short.runs.items() if run.params.get("weight") == 1]
    assert run_id.startswith("logit_mse-resnet8-resnet8-") and {"ce", "mse"} <= results[run_id]["curve"][0].keys()


def test_networks_of_ones_own_train(folder):
    file = grids.load(str(folder / "network.yaml"))
    assert len(grids.expand(file).runs) == 31  # one teacher, and five rows on two pairs with three seeds
    small = file.model_copy(update={"pairs": ["r18-small"]})
    short = grids.expand(small, protocol=str(folder / "tiny.yaml"), seeds=[0])
    results = train(short, folder / "out")
    assert len(results) == len(short.runs) == 6
    assert {one["config"]["networks"].keys() >= {"small"} for one in results[1:]} == {True}


def test_a_network_of_timm_is_tried_with_each_method(folder):
    pytest.importorskip("timm", reason="timm is not installed")
    grid = grids.expand(grids.load(str(folder / "timm.yaml")))
    assert {run.teacher.arch for run in grid.runs.values() if run.teacher} == {"vit"}
    assert zoo.shapes("vit").features[-1] == (192, 8, 8)


def test_teachers_from_files_serve(folder, capsys):
    grid = grids.expand(grids.load(str(folder / "taught.yaml")), data=folder / "flowers")
    assert len(grid.runs) == 5 and len(grid.weights) == 2  # two teachers, KD of each, one plain student
    command = re.search(r"python -m bench.evaluate (--grid taught.yaml .*)", PAGE)[1]
    for name in ("taught.yaml", "r18.pth", "flowers"):
        command = re.sub(rf"(?<= ){name}", str(folder / name), command)
    assert evaluate.main(command.split()) == 0
    assert "6 test images" in capsys.readouterr().out


def test_a_protocol_of_ones_own_is_the_recipe_of_its_runs(folder):
    grid = grids.expand(grids.load("full"), protocol=str(folder / "short.yaml"), seeds=[0])
    runs = {(run.method, run.student): run for run in grid.runs.values() if run.teacher}
    assert runs["kd", "resnet20"].train.epochs == 60
    assert [runs["kd", student].params["temperature"] for student in ("resnet20", "vgg8")] == [2, 4]
    assert [runs[method, "vgg8"].train.lr for method in ("fitnet", "dkd")] == [0.02, 0.05]


def test_the_flowers_train(folder):
    whole = grids.expand(grids.load(str(folder / "grid.yaml")), data=folder / "flowers")
    assert len(whole.runs) == 13  # a teacher, and each row with each seed
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
