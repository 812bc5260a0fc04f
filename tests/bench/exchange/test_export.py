"""Exported files give the network's logits in another program, whatever the batch; one that does not is not kept."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import zoo
from bench.exchange import export
from tests import trained as made
from zoo import trained

ONNX = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in export.NEEDED),
    reason=f"{', '.join(export.NEEDED)} are not all installed",
)
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
KINDS = ["torchscript", pytest.param("onnx", marks=ONNX)]
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.make(tmp_path_factory.mktemp("export"))


def network(arch: str, side: int = 32, classes: int = 5) -> torch.nn.Module:
    """One that nobody trained, with statistics of its BatchNorms that are not 0 and 1."""
    torch.manual_seed(0)
    net = zoo.build(arch, classes, side).train()
    with torch.no_grad():
        net(torch.randn(8, 3, side, side))
    net.about = trained.About(arch, classes, side, MEAN, STD, "a-run")
    return net.eval()


def logits_of(kind: str, path: Path, images: torch.Tensor) -> np.ndarray:
    """By a reader of its own."""
    if kind == "torchscript":
        with torch.no_grad():
            return torch.jit.load(str(path))(images).numpy()
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    (given,), (gives,) = session.get_inputs(), session.get_outputs()
    assert (given.name, gives.name) == ("images", "logits") and isinstance(given.shape[0], str)
    return session.run(None, {"images": images.numpy()})[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["kd", "simkd"])
def test_a_run_in_another_program(
    results: Path, tmp_path: Path, method: str, kind: str, capsys: pytest.CaptureFixture
) -> None:
    run, path = made.run_of(results, method), tmp_path / "model"
    assert export.main([str(run), f"--{kind}", str(path), "--normalise"]) == 0
    assert "pixels in 0..1 (B, 3, 32, 32); logits differ" in capsys.readouterr().out
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]  # one file
    net, pixels = zoo.load(run), torch.rand(5, 3, 32, 32)
    with torch.no_grad():
        wanted = net(net.about.normalise(pixels)).numpy()
    for batch in (1, 5):
        assert np.allclose(logits_of(kind, path, pixels[:batch]), wanted[:batch], atol=1e-4 * np.abs(wanted).max())
    if kind == "torchscript":
        files = {export.FACTS: ""}
        torch.jit.load(str(path), _extra_files=files)
        facts = files[export.FACTS]
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
        facts = session.get_modelmeta().custom_metadata_map[export.FACTS]
    said = json.loads(facts)
    assert said["run_id"] == run.name and said["classes"] == 100 and said["takes"] == "pixels in 0..1"


@pytest.mark.parametrize(("arch", "side"), [("shufflenetv2", 32), ("vgg8", 64), ("mobilenetv2", 32)])
def test_families_and_sides(tmp_path: Path, arch: str, side: int) -> None:
    net = network(arch, side)
    assert export.export(net, "torchscript", tmp_path / "m.pt") <= export.MOST
    images = torch.randn(3, 3, side, side)
    with torch.no_grad():
        assert np.allclose(logits_of("torchscript", tmp_path / "m.pt", images), net(images).numpy(), atol=1e-4)


@ONNX
def test_a_network_with_shuffled_channels_as_onnx(tmp_path: Path) -> None:
    assert export.export(network("shufflenetv1"), "onnx", tmp_path / "m.onnx") <= export.MOST


def test_what_an_exporter_raises_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no operator\nand forty lines more")

    monkeypatch.setitem(export.FORMATS, "torchscript", (fails, export.read_torchscript))
    with pytest.raises(zoo.BadInput, match=r"RuntimeError: no operator.*try --onnx FILE") as refused:
        export.export(network("resnet8"), "torchscript", tmp_path / "x.pt")
    assert "\n" not in str(refused.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("off", [3e-4, float("nan")])
def test_a_file_that_differs_is_not_kept(
    results: Path, tmp_path: Path, off: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def read(path: Path) -> export.Run:
        whole = torch.jit.load(str(path))
        return lambda images: whole(images) * (1 + off)

    run, path = made.run_of(results, "kd"), tmp_path / "model.pt"
    monkeypatch.setitem(export.FORMATS, "torchscript", (export.write_torchscript, read))
    assert export.main([str(run), "--torchscript", str(path)]) == 1
    error = capsys.readouterr().err
    assert "was not written: its logits differ" in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_requests_that_are_wrong(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run = made.run_of(results, "kd")
    weights = run / "weights.pt"
    before = weights.read_bytes()
    monkeypatch.setattr(export, "NEEDED", ("onnx", "no_such_package"))
    unknown = network("resnet8")
    unknown.about = trained.About("resnet8", 5, 32, None, None, "a-run")
    for arguments, says in (
        ([str(run)], "give --onnx FILE or --torchscript FILE"),
        ([str(run), "--torchscript", str(weights)], "is there already"),
        ([str(run), "--torchscript", str(tmp_path / "no" / "m.pt")], "there is no folder"),
        ([str(run), "--onnx", str(tmp_path / "m.onnx")], "pip install onnx no_such_package"),
        ([str(tmp_path), "--torchscript", str(tmp_path / "m.pt")], "is no run's folder"),
    ):
        assert export.main(arguments) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1
    with pytest.raises(zoo.BadInput, match="was measured on them"):
        export.export(unknown, "torchscript", tmp_path / "m.pt", normalise=True)
    assert weights.read_bytes() == before and list(tmp_path.iterdir()) == []
