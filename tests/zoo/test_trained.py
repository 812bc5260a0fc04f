"""What a run trained comes back as a network, with what is known of it; everything else is refused in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import zoo
from bench.datasets import ENTRIES
from bench.training import embedded
from bench.training import evaluate as evaluation
from tests import trained as made
from zoo import trained
from zoo.inputs import INPUTS
from zoo.reused import Reused


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.make(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def images() -> tuple[torch.Tensor, torch.Tensor]:
    """The test images that the runs were evaluated on, and their labels."""
    return embedded.generate("test", embedded.TEST_IMAGES_PER_CLASS)[:2]


@pytest.fixture
def kd(results: Path, tmp_path: Path) -> Path:
    """A copy of a run's folder, free to be spoilt."""
    source = made.run_of(results, "kd")
    return shutil.copytree(source, tmp_path / "runs" / source.name)


def refusal(path: Path) -> str:
    with pytest.raises(zoo.BadInput) as caught:
        zoo.load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rewritten(run: Path, change: Callable[[dict], object]) -> Path:
    saved = torch.load(run / "weights.pt", weights_only=True)
    change(saved)
    torch.save(saved, run / "weights.pt")
    return run


@pytest.mark.parametrize("method", ["vanilla", "kd", "simkd"])
def test_a_run_comes_back_as_what_was_evaluated(results: Path, images: tuple, method: str) -> None:
    """Its accuracy by a plain count over images that are normalised as it says is that of its result."""
    run = made.run_of(results, method)
    result = json.loads((run / "result.json").read_text())
    net = zoo.load(run)
    assert isinstance(net, Reused) == (method == "simkd") and not net.training
    assert result["config"]["data"]["dataset"] == "embedded-1"
    with torch.no_grad():
        logits = net(net.about.normalise(images[0]))
        assert torch.allclose(logits[:9], net(net.about.normalise(images[0][:9] / 255)), atol=1e-4)
    top1 = 100 * (logits.argmax(dim=1) == images[1]).double().mean().item()
    assert top1 == pytest.approx(result["metrics"]["top1_last"], abs=0.11) and net.about.top1 == pytest.approx(
        top1, abs=0.11
    )
    expected = ("resnet8", 100, 32, (0.433, 0.4358, 0.4275), (0.2366, 0.253, 0.2453), run.name, "embedded-1")
    about = net.about
    assert (about.arch, about.classes, about.side, about.mean, about.std, about.run_id, about.dataset) == expected


def test_the_file_alone_is_enough_and_plain(kd: Path, tmp_path: Path) -> None:
    alone = shutil.copy(kd / "weights.pt", tmp_path / "student.pt")
    saved = torch.load(alone, weights_only=True)
    assert set(saved) == {"model", "network"}
    assert json.loads(json.dumps(saved["network"])) == saved["network"]
    torch.manual_seed(3)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    net = zoo.load(alone)
    assert torch.equal(torch.rand(1), drawn)  # the reader's own random numbers are left alone
    assert net.about.run_id == kd.name
    state = zoo.read_checkpoint(alone)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("method", ["kd", "simkd"])
def test_a_file_that_does_not_say_what_it_is_is_read_with_its_result(
    results: Path, tmp_path: Path, method: str
) -> None:
    """As all runs wrote before."""
    run = shutil.copytree(made.run_of(results, method), tmp_path / "old")
    new = zoo.load(run)
    rewritten(run, lambda saved: saved.pop("network"))
    old = zoo.load(run)
    assert old.about == new.about and type(old) is type(new)
    images = torch.randn(3, 3, 32, 32)
    assert torch.equal(old(images), new(images))
    assert zoo.load(run / "weights.pt").about == new.about
    (run / "result.json").unlink()
    assert "zoo.build(ARCH, CLASSES, SIDE)" in refusal(run / "weights.pt")


def test_published_checkpoints_by_their_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo import published

    net = zoo.build("resnet8")
    torch.save({"state_dict": net.state_dict(), "acc": 12.0}, tmp_path / "any-name.pth")
    digest = zoo.sha256(tmp_path / "any-name.pth")
    entry = published.Published("ours/resnet8.pth", "resnet8", 12.0, None, "", digest, "", "us", "", "", "")
    monkeypatch.setattr(published, "published", lambda: (entry,))
    again = zoo.load(tmp_path / "any-name.pth")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(images), net.eval()(images))
    assert (again.about.mean, again.about.dataset, again.about.run_id) == (INPUTS["cifar100"].mean, "cifar100", "")


def test_what_is_no_finished_run_is_said(results: Path, kd: Path, tmp_path: Path) -> None:
    assert "did you mean" in refusal(kd.with_name(kd.name[:-1]))
    assert "give the folder of a run" in refusal(tmp_path / "nothing" / "here")
    assert "is a results folder, not one run: give one of its runs, for example" in refusal(results)
    assert "is no run's folder" in refusal(tmp_path / "runs")
    (kd / "weights.pt").rename(tmp_path / "w.pt")
    assert "has a result and no weights.pt" in refusal(kd)
    (kd / "result.json").unlink()
    assert "is not finished" in refusal(kd)
    (kd / "error.json").write_text("{}")
    assert "failed: see its error.json" in refusal(kd)


def test_damage_and_strangers_are_said(kd: Path, tmp_path: Path) -> None:
    whole = (kd / "weights.pt").read_bytes()
    (kd / "weights.pt").write_bytes(whole[: len(whole) // 2])
    assert "damaged or cut short" in refusal(kd)
    (kd / "weights.pt").write_bytes(whole)
    rewritten(kd, lambda saved: saved["network"]["build"].update(kind="quantum"))
    assert 'of kind "quantum", which is not known here (zoo, reused, deployed)' in refusal(kd)
    rewritten(kd, lambda saved: saved["network"].update(build={"kind": "zoo"}))
    assert "does not say how its network is made" in refusal(kd)
    rewritten(kd, lambda saved: saved["network"].update(build={"kind": "reused", "arch": "resnet8"}))
    assert "does not hold a whole resnet8 with its teacher's classifier" in refusal(kd)
    rewritten(
        kd, lambda saved: saved.update(network={"build": {"kind": "zoo", "arch": "resnet20", "classes": 7, "side": 32}})
    )
    assert "does not fit resnet20" in refusal(kd)
    rewritten(kd, lambda saved: saved.pop("network"))
    (kd / "result.json").write_text("{}")
    assert "does not say what weights.pt beside it is of" in refusal(kd)


def test_a_new_kind_of_network_joins_in_one_place(kd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(trained.KINDS, "linear", lambda build, state, path: torch.nn.Linear(build["from"], build["to"]))
    rewritten(kd, lambda saved: saved["network"].update(build={"kind": "linear", "from": 3, "to": 5}))
    net = zoo.load(kd)
    assert (net.in_features, net.out_features, net.about.run_id, net.training) == (3, 5, kd.name, False)
    torch.save(trained.contents(torch.nn.Linear(3, 5), mean=None, std=None, run_id=kd.name), kd / "weights.pt")
    assert "holds a network that only its method's code makes (Linear)" in refusal(kd)


def test_normalisation_is_that_of_the_data_sets() -> None:
    for name, images in INPUTS.items():
        entry = ENTRIES[name]
        assert (entry.known.side, entry.mean, entry.std) == (images.side, images.mean, images.std)
    assert [name for name, entry in ENTRIES.items() if entry.known is None] == ["image-folder"]
    measured = trained.About("resnet8", 3, 64, None, None, "a-run")
    with pytest.raises(zoo.BadInput, match="was measured on them"):
        measured.normalise(torch.zeros(1, 3, 64, 64))
    pixels = torch.full((1, 3, 2, 2), 51, dtype=torch.uint8)
    about = trained.About("resnet8", 3, 2, (0.1, 0.2, 0.3), (0.5, 0.25, 0.1), "")
    assert torch.allclose(about.normalise(pixels)[0, :, 0, 0], torch.tensor([0.2, 0.0, -1.0]), atol=1e-6)


@pytest.mark.parametrize("method", ["kd", "simkd"])
def test_evaluate_takes_a_run(results: Path, method: str, capsys: pytest.CaptureFixture) -> None:
    """Architecture, data set and normalisation are in the file, and so is what it should give."""
    run = made.run_of(results, method)
    said = json.loads((run / "result.json").read_text())["metrics"]["top1_last"]
    for weights in (run, run / "weights.pt"):
        assert evaluation.main(["--weights", str(weights), "--device", "cpu"]) == 0
        out = capsys.readouterr().out
        assert f"resnet8: top-1 {said:.2f}" in out and f"its file says top1 {said:.2f}, it gives {said:.2f}" in out
    assert evaluation.main(["--weights", str(run), "--dataset", "cifar10", "--device", "cpu"]) == 2
    assert "has 100 classes" in capsys.readouterr().err
    assert evaluation.main(["--weights", str(run.parent), "--device", "cpu"]) == 2
    assert "is no run's folder" in capsys.readouterr().err


def test_a_runs_weights_are_the_teacher_of_another(results: Path, tmp_path: Path) -> None:
    """By their path in a grid; what the file says it gives is what it gives, and its name is of its bytes."""
    weights = made.run_of(results, "kd") / "weights.pt"
    said = json.loads((weights.parent / "result.json").read_text())["metrics"]["top1_last"]
    pair = f"{{teacher: resnet8, student: resnet8, teacher_weights: '{weights}'}}"
    grid = made.GRID.replace("resnet8-resnet8", pair).replace("[vanilla, kd, simkd]", "[vanilla, kd]")
    out = made.make(tmp_path, grid)
    teacher = json.loads((made.run_of(out, "checkpoint") / "result.json").read_text())
    assert teacher["config"]["params"]["sha256"] == zoo.sha256(weights)
    assert teacher["weights_file"]["claims"] == {"key": "top1", "top1": said, "agrees": True}
    assert "published" not in teacher["weights_file"]
    again = zoo.load(made.run_of(out, "checkpoint"))
    assert again.about.run_id == made.run_of(out, "checkpoint").name and again.about.top1 == said
    student = json.loads((made.run_of(out, "kd") / "result.json").read_text())
    assert student["config"]["teacher"]["run_id"] == again.about.run_id
