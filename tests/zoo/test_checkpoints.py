"""Checkpoint files of every published form load; everything else is refused in one line with a remedy."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import zoo

PUBLISHED = {
    "streamlined/resnet20.pth": "resnet20",
    "streamlined/resnet56.pth": "resnet56",
    "streamlined/wrn_16_2.pth": "wrn_16_2",
    "streamlined/shufflenetv1.pth": "shufflenetv1",
    "sskd/resnet56.pth": "resnet56",
    "sskd/wrn_16_2.pth": "wrn_16_2",
}


def state(arch: str = "resnet8", classes: int = 100, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return zoo.build(arch, classes).state_dict()


def prefixed(weights: dict[str, Tensor], prefix: str = "module.") -> dict[str, Tensor]:
    return {prefix + key: value for key, value in weights.items()}


def refusal(path: Path, call: Callable[[Path], object] = zoo.read_checkpoint) -> str:
    with pytest.raises(zoo.BadInput) as caught:
        call(path)
    line = str(caught.value)
    assert "\n" not in line and line.startswith(str(path)) and ": " in line
    return line


def saved(folder: Path, content: object, **how: object) -> Path:
    torch.save(content, folder / "file.pth", **how)
    return folder / "file.pth"


WRAPPED = {
    "bare": lambda s: s,
    "mdistiller student": lambda s: {"model": s},
    "RepDistiller": lambda s: {"epoch": 240, "model": s, "accuracy": torch.ones(1), "optimizer": {}},
    "SSKD": lambda s: {"epoch": 186, "state_dict": s, "acc": 73.44},
    "net": lambda s: {"net": s, "model": "resnet8"},
    "DataParallel": prefixed,
    "DataParallel under a key": lambda s: {"state_dict": prefixed(s)},
    "parameters": lambda s: {k: nn.Parameter(v) if v.is_floating_point() else v for k, v in s.items()},
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("form", WRAPPED)
def test_every_form_of_file_gives_the_weights_back(tmp_path: Path, form: str, legacy: bool) -> None:
    weights = state()
    path = saved(tmp_path, WRAPPED[form](weights), _use_new_zipfile_serialization=not legacy)
    read = zoo.read_checkpoint(path)
    assert list(read) == list(weights)
    assert all(torch.equal(read[key], weights[key]) and not read[key].requires_grad for key in weights)
    net = zoo.build("resnet8")
    zoo.load_weights(net, str(path))
    assert all(torch.equal(value, weights[key]) for key, value in net.state_dict().items())


def test_module_prefix_stays_unless_every_key_has_it(tmp_path: Path) -> None:
    path = saved(tmp_path, {"module.a": torch.ones(1), "b": torch.ones(1)})
    assert list(zoo.read_checkpoint(path)) == ["module.a", "b"]


def test_absent_batch_counters_are_tolerated_and_start_at_zero(tmp_path: Path) -> None:
    old = {key: value for key, value in state().items() if not key.endswith("num_batches_tracked")}
    net = zoo.build("resnet8")
    net(torch.randn(2, 3, 32, 32))
    zoo.load_weights(net, saved(tmp_path, old))
    assert torch.equal(net.conv1.weight, old["conv1.weight"])
    assert net.bn1.num_batches_tracked == 0


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    for call in (zoo.read_checkpoint, zoo.sha256):
        assert "No such file" in refusal(tmp_path / "absent.pth", call)
        assert "directory" in refusal(tmp_path, call)


@pytest.mark.parametrize("content", [b"", b"<html>Not Found</html>", bytes(range(256)) * 20, b"PK\x03\x04"])
def test_not_a_torch_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.pth"
    path.write_bytes(content)
    assert "no PyTorch checkpoint" in refusal(path)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("kept", [0.001, 0.1, 0.5, 0.99])
def test_a_truncated_file(tmp_path: Path, legacy: bool, kept: float) -> None:
    path = saved(tmp_path, state(), _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    assert "cut short" in refusal(path)


class Bomb:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_code_in_a_pickle_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "file.pth"
    path.write_bytes(pickle.dumps({"model": Bomb()}, protocol=protocol))
    assert "plain state dict" in refusal(path)
    torch.save({"model": state(), "extra": Bomb()}, path)
    line = refusal(path)
    assert "holds code" in line and "mkdir" in line and "plain state dict" in line
    assert not (tmp_path / "exploded").exists()


def test_a_file_that_cannot_be_read_is_no_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, state())

    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(torch, "load", fails)
    assert "cannot be read (Input/output error)" in refusal(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "empty"),
        ({"model": {}}, "holds no weights ('model', a dict)"),
        (torch.ones(3), "not a state dict"),
        ([torch.ones(3)], "not a state dict"),
        ({"epoch": 3, "weights": {}}, "'epoch', a int"),
        ({"model": {"b": [1.0]}}, "holds no weights"),
        ({0: torch.ones(1)}, "holds no weights (0, a tensor"),
        ({"a": torch.eye(3).to_sparse()}, "sparse"),
        ({"a": torch.empty(3, device="meta")}, "meta"),
        ({"model": {"a": torch.ones(1)}, "net": {"a": torch.ones(1)}}, "several state dicts (model, net)"),
        ({"a": torch.ones(2), "b": torch.tensor([1.0, float("nan")])}, "NaN or infinity in b"),
        ({"a": torch.tensor(float("-inf"))}, "NaN or infinity in a"),
    ],
)
def test_anything_but_finite_weights(tmp_path: Path, content: object, said: str) -> None:
    assert said in refusal(saved(tmp_path, content))


@pytest.mark.parametrize(
    ("arch", "classes", "whose", "differences"),
    [
        ("resnet20", 100, "looks like resnet20:", "60 unexpected (layer1.1.conv1.weight, "),
        ("resnet8x4", 100, "looks like resnet8x4:", "conv1.weight 32x3x3x3 instead of 16x3x3x3"),
        # resnet8 has 56 entries, of which 9 are counters that may be absent; resnet20 has 60 more and 12 counters
        ("vgg8", 7, "looks like vgg8 with 7 classes instead of 100", "47 missing (conv1.weight, "),
        ("resnet8", 10, "it is resnet8 with 10 classes instead of 100", "fc.weight 10x64 instead of 100x64"),
    ],
)
def test_another_network_is_recognised(tmp_path: Path, arch: str, classes: int, whose: str, differences: str) -> None:
    path = saved(tmp_path, {"model": state(arch, classes)})
    net = zoo.build("resnet8")
    before = {key: value.clone() for key, value in net.state_dict().items()}
    line = refusal(path, lambda p: zoo.load_weights(net, p))
    assert "does not fit resnet8" in line and whose in line and differences in line
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("arch", ["mobilenetv2", "shufflenetv1", "shufflenetv2", "resnet50"])
def test_weights_of_each_head_are_recognised(tmp_path: Path, arch: str) -> None:
    shapes = {key: (value.shape, value.dtype) for key, value in zoo.build_meta(arch, 5).state_dict().items()}
    # A single zero, spread out, so that the file stays small.
    weights = {key: torch.zeros((), dtype=dtype).expand(shape) for key, (shape, dtype) in shapes.items()}
    line = refusal(saved(tmp_path, weights), lambda p: zoo.load_weights(zoo.build("resnet8"), p))
    assert f"this looks like {arch} with 5 classes instead of 100" in line


def test_sskds_name_of_the_linear_layer_of_mobilenetv2(tmp_path: Path) -> None:
    weights = state("mobilenetv2")
    theirs = {key.replace("classifier.0.", "classifier."): value for key, value in weights.items()}
    path = saved(tmp_path, {"epoch": 240, "state_dict": theirs, "acc": 65.79})
    net = zoo.build("mobilenetv2")
    zoo.load_weights(net, path)
    assert all(torch.equal(value, weights[key]) for key, value in net.state_dict().items())
    assert "looks like mobilenetv2:" in refusal(path, lambda p: zoo.load_weights(zoo.build("resnet8"), p))
    both = saved(tmp_path, {**weights, "classifier.bias": torch.ones(100)})
    assert "1 unexpected (classifier.bias)" in refusal(both, lambda p: zoo.load_weights(net, p))


def test_weights_of_no_known_network(tmp_path: Path) -> None:
    weights = state()
    weights["fc.extra"] = torch.ones(2)
    del weights["bn1.running_mean"]
    line = refusal(saved(tmp_path, weights), lambda p: zoo.load_weights(zoo.build("resnet8"), p))
    assert "1 missing (bn1.running_mean); 1 unexpected (fc.extra): no architecture of the zoo" in line


def test_sha256_of_a_file_larger_than_a_piece(tmp_path: Path) -> None:
    content = os.urandom(1 << 20) * 2 + b"tail"
    (tmp_path / "file").write_bytes(content)
    assert zoo.sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_checkpoints_load(name: str) -> None:
    if "KD_WEIGHTS" not in os.environ:
        pytest.skip("KD_WEIGHTS names no folder of published checkpoints")
    path = Path(os.environ["KD_WEIGHTS"]) / name
    net = zoo.build(PUBLISHED[name])
    zoo.load_weights(net, path)
    weights = zoo.read_checkpoint(path)
    assert all(torch.equal(value, weights[key]) for key, value in net.state_dict().items() if key in weights)
    other = zoo.build("resnet32")
    assert f"looks like {PUBLISHED[name]}" in refusal(path, lambda p: zoo.load_weights(other, p))
