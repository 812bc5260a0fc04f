"""Files in the forms that public trainers, wrappers and frameworks save: each loads, or is refused with what works.

All are made here from fresh networks; where a form was seen is named beside it.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import functools
import gzip
import importlib
import pathlib
import random
import shlex
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import zoo
import zoo.checkpoints

ARCH = "resnet8"


def state(arch: str = ARCH, seed: int = 0, classes: int = 100) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    net = zoo.build(arch, classes)
    with torch.no_grad():
        net.bn1.running_mean.normal_()  # unlike any fresh network's
    return net.state_dict()


def behind(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in weights.items()}


def renamed(weights: dict[str, Tensor], **names: str) -> dict[str, Tensor]:
    found = {}
    for key, value in weights.items():
        words = [names.get(word, word) for word in key.split(".")]
        found[".".join(words)] = value
    return found


@functools.cache
def optimizer() -> dict[str, Any]:
    """SGD's state after a step: momentum buffers, which are tensors and no weights."""
    net = zoo.build(ARCH)
    sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.zeros(2, 3, 32, 32)).sum().backward()
    sgd.step()
    return sgd.state_dict()


class Config(dict):
    """As EasyDict, addict and the configurations of OpenMMLab: a dict with attributes."""

    def __init__(self, **values: Any) -> None:
        super().__init__(values)
        self.__dict__.update(values)


class Settings:
    """As a configuration object of OmegaConf, or a callback of Lightning."""

    def __init__(self) -> None:
        self.content = {"lr": np.float32(0.1), "milestones": collections.deque([1, 2])}


class Names(list):
    """As a list of a configuration."""


def ema(net_state: dict[str, Tensor]) -> dict[str, Tensor]:
    net = zoo.build(ARCH)
    net.load_state_dict(net_state)
    return torch.optim.swa_utils.AveragedModel(net).state_dict()


def half(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}


def channels_last(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.to(memory_format=torch.channels_last) if v.ndim == 4 else v for k, v in weights.items()}


def profiled(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return weights | {f"{name}total_{what}": torch.zeros(1, dtype=torch.float64)
                      for name in ("", "layer1.", "fc.") for what in ("ops", "params")}  # fmt: skip


TEACHER = state("resnet20", seed=5)
# Name and where it was seen -> what torch.save is given.
LOADED: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "bare: ReviewKD, chenyaofo/pytorch-cifar-models": lambda s: s,
    "RepDistiller, epoch file": lambda s: {"epoch": 240, "model": s, "accuracy": torch.tensor([70.0]),
                                           "optimizer": optimizer()},
    "RepDistiller, last file": lambda s: {"opt": argparse.Namespace(lr=0.05, path=pathlib.Path("x")), "model": s},
    "SimKD": lambda s: {"epoch": 3, "best_acc": np.float64(70.0), "model": behind("module.", s)},
    "mdistiller, whole distiller": lambda s: {"epoch": 1, "best_acc": 70.0, "optimizer": optimizer(),
        "model": behind("module.student.", s) | behind("module.teacher.", TEACHER)
        | {"module.conv_reg.0.weight": torch.ones(2)}},
    "SSKD, student": lambda s: {"epoch": 186, "state_dict": s, "acc": 70.0},
    "SSKD, wrapper with a head": lambda s: behind("backbone.", s) | {"proj_head.0.weight": torch.ones(64, 64)},
    "kuangliu/pytorch-cifar": lambda s: {"net": behind("module.", s), "acc": 70.0, "epoch": 199},
    "kuangliu/pytorch-cifar, names": lambda s: {"net": renamed(s, downsample="shortcut", fc="linear"), "acc": 70},
    "akamaster/pytorch_resnet_cifar10": lambda s: {"state_dict": behind("module.", s),
                                                   "best_prec1": torch.tensor(70.0)},
    "bearpaw/pytorch-classification": lambda s: {"epoch": 1, "state_dict": behind("module.", s), "acc": 69.0,
                                                 "best_acc": 70.0, "optimizer": optimizer()},
    "torchvision references": lambda s: {"model": s, "optimizer": optimizer(), "lr_scheduler": {"_step_count": 3},
                                         "epoch": 5, "args": argparse.Namespace(lr=0.1, device="cuda")},
    "torchdistill": lambda s: {"model": s, "optimizer": optimizer(), "best_value": 70.0, "lr_scheduler": None,
                               "args": argparse.Namespace(config="x.yaml")},
    "timm": lambda s: {"epoch": 1, "arch": "resnet20", "state_dict": s, "optimizer": optimizer(), "version": 2,
                       "args": argparse.Namespace(model="x", mean=None), "amp_scaler": {"scale": 1.0}, "metric": 70.0},
    "torch.compile": lambda s: {"model": behind("_orig_mod.", s)},
    "torch.compile in DDP": lambda s: behind("module._orig_mod.", s),
    "DDP in torch.compile": lambda s: behind("_orig_mod.module.", s),
    "torch.compile of stages": lambda s: {key.replace("layer2.", "layer2._orig_mod."): v for key, v in s.items()},
    "FSDP with checkpointing": lambda s: behind("_fsdp_wrapped_module.", {
        key.replace("layer1.", "layer1._checkpoint_wrapped_module."): v for key, v in s.items()}),
    "Lightning": lambda s: {"epoch": 3, "global_step": 9, "pytorch-lightning_version": "2.1", "loops": {"fit_loop": {}},
        "state_dict": behind("model.", s), "optimizer_states": [optimizer()], "lr_schedulers": [{"last_epoch": 3}],
        "callbacks": {"ModelCheckpoint{'monitor': 'val_acc'}": {"best_model_score": torch.tensor(0.7), "dirpath": "x"}},
        "hyper_parameters": Config(lr=0.1, net=Settings())},
    "Lightning, distillation module": lambda s: {"state_dict": behind("student.", s) | behind("teacher.", TEACHER)
        | {"criterion.weight": torch.ones(100), "val_acc.correct": torch.tensor(3)}, "hyper_parameters": Settings()},
    "mmpretrain": lambda s: {"meta": Config(epoch=3, cfg="x"), "message_hub": Settings(), "state_dict":
        {("head." if key.startswith("fc.") else "backbone.") + key: v for key, v in s.items()}},
    "accelerate, DeepSpeed": lambda s: {"module": behind("module.", s), "ds_version": "0.1", "dp_world_size": 2},
    "averaged weights (torch)": lambda s: {"model_ema": ema(s), "epoch": 2},
    "profiled by thop": profiled,
    "model_state_dict (PyTorch's tutorial)": lambda s: {"epoch": 3, "model_state_dict": s, "loss": torch.tensor(0.4),
                                                         "optimizer_state_dict": optimizer()},
    "two levels of keys": lambda s: {"state": {"weights": s}, "config": Config(a=1), "names": Names(["a"])},
    "two copies of the same": lambda s: {"model": s, "best_state": {key: v.clone() for key, v in s.items()}},
    "half precision (akamaster --half)": half,
    "channels last": channels_last,
    "counters absent (before PyTorch 0.4.1)": lambda s: {k: v for k, v in s.items() if "num_batches" not in k},
    "numpy arrays (detectron's way)": lambda s: {"model": {key: value.numpy() for key, value in s.items()}},
    "parameters": lambda s: {k: nn.Parameter(v) if v.is_floating_point() else v for k, v in s.items()},
    "a teacher beside it": lambda s: s | behind("teacher.", state(seed=9)),
    "an enumeration and a function beside it": lambda s: {"model": s, "loss": nn.functional.cross_entropy,
                                                           "when": collections.Counter("a"), "kind": type},
    "a tuple of weights and epoch": lambda s: (s, 3),
    "random states and other objects": lambda s: {"model": s, "rng": np.random.default_rng(0),
        "old": np.random.get_state(), "python": random.getstate(), "cpu": torch.get_rng_state(),
        "names": np.array(["a"]), "odd": np.array([1, "a"], dtype=object), "when": datetime.datetime(2024, 1, 1)},
    "a defaultdict of curves": lambda s: {"net": s, "log": collections.defaultdict(list, acc=[1.0, 2.0])},
}  # fmt: skip


def saved(folder: Path, content: Any, **how: Any) -> Path:
    torch.save(content, folder / "file.pth", **how)
    return folder / "file.pth"


def loads(path: Path, weights: dict[str, Tensor], atol: float = 0.0) -> Any:
    net = zoo.build(ARCH)
    source = zoo.load_weights(net, path)
    for key, value in net.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert value.is_contiguous() and torch.allclose(value, weights[key], rtol=0, atol=atol), key
    return source


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("form", LOADED)
def test_it_loads(tmp_path: Path, form: str, legacy: bool) -> None:
    weights = state()
    path = saved(tmp_path, LOADED[form](weights), _use_new_zipfile_serialization=not legacy)
    loads(path, weights, atol=2e-3 if form.startswith("half") else 0.0)


@pytest.mark.parametrize(
    ("content", "claim"),
    [
        ({"accuracy": torch.tensor([70.0])}, ("accuracy", 70.0)),
        ({"acc": np.float64(70.5), "best_acc": 72.0}, ("acc", 70.5)),
        ({"best_acc": np.float32(0.75)}, ("best_acc", 75.0)),
        ({"best_prec1": torch.tensor(70.0), "top5": 91.0}, ("best_prec1", 70.0)),
        ({"train_acc": 99.0, "test_acc@1": 71}, ("test_acc@1", 71.0)),
        ({"metrics": {"top1": 70.0, "loss": 1.0}}, ("top1", 70.0)),
        ({"accs": [1.0], "accumulate": 4, "accelerator": 3.0, "top5_acc": 90.0, "acc": 0}, None),
        ({"epoch": 70}, None),
    ],
)
def test_the_accuracy_that_a_file_claims(tmp_path: Path, content: dict[str, Any], claim: Any) -> None:
    weights = state()
    assert loads(saved(tmp_path, {"model": weights, **content}), weights).claims == claim


def test_what_is_taken_is_said(tmp_path: Path) -> None:
    weights = state()
    source = loads(saved(tmp_path, LOADED["mdistiller, whole distiller"](weights)), weights)
    assert source.part == "model/module.student"
    assert str(source).startswith("weights under model/module.student, without module.teacher.conv1.weight, ")


def test_whole_networks_are_read_without_running_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pytorch-cifar users' torch.save(net): the class is gone, or does something when it is made again."""
    net = nn.DataParallel(zoo.build(ARCH))
    weights = net.module.state_dict()
    gone = types.ModuleType("authors_models")

    class Theirs(type(net.module)):
        def __setstate__(self, values: Any) -> None:
            raise AssertionError("run")

    Theirs.__module__, Theirs.__qualname__ = "authors_models", "Theirs"
    gone.Theirs = Theirs
    monkeypatch.setitem(sys.modules, "authors_models", gone)
    net.module.__class__ = Theirs
    path = saved(tmp_path, {"net": net, "acc": 70.0})
    monkeypatch.delitem(sys.modules, "authors_models")
    assert loads(path, weights).claims == ("acc", 70.0)


def test_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate's and Hugging Face's model.safetensors."""
    save_file = pytest.importorskip("safetensors.torch", reason="safetensors is not installed").save_file
    weights = state()
    save_file(behind("module.", weights), tmp_path / "model.safetensors")
    loads(tmp_path / "model.safetensors", weights)
    assert "for example model.safetensors" in refusal(tmp_path)
    (tmp_path / "cut").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-10])
    assert "damaged safetensors file" in refusal(tmp_path / "cut")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert "pip install safetensors" in refusal(tmp_path / "model.safetensors")


def test_numpy_archives(tmp_path: Path) -> None:
    weights = state()
    np.savez(tmp_path / "w.npz", **{key: value.numpy() for key, value in weights.items()})
    loads(tmp_path / "w.npz", weights)
    np.savez(tmp_path / "w.npz", weights=np.array({"a": 1}, dtype=object))
    assert "more than plain arrays" in refusal(tmp_path / "w.npz")


def refusal(path: Path, arch: str = ARCH) -> str:
    net = zoo.build(arch)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(zoo.BadInput) as caught:
        zoo.load_weights(net, path)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def run(command: str) -> None:
    """Carry out a recipe as it is printed, in this process: `python -m zoo.extract FILE PART NEW`."""
    python, m, module, *arguments = shlex.split(command)
    assert (python, m) == ("python", "-m") and importlib.import_module(module).main(arguments) == 0


AMBIGUOUS = {
    "timm with averaged weights": lambda s, t: {"state_dict": s, "state_dict_ema": t, "args": argparse.Namespace()},
    "teacher of the same kind": lambda s, t: {"model": behind("module.student.", s) | behind("module.teacher.", t)},
    "best and last": lambda s, t: {"last": {"net": s}, "best": {"net": t}},
}


@pytest.mark.parametrize("form", AMBIGUOUS)
def test_several_networks_are_a_question_and_the_recipe_works(tmp_path: Path, form: str) -> None:
    weights = state()
    path = saved(tmp_path, AMBIGUOUS[form](weights, state(seed=3)))
    line = refusal(path)
    assert "2 different sets of weights that fit resnet8" in line
    run(line[line.index("python -m") :].replace("NEW", str(tmp_path / "new.pth")))
    loads(tmp_path / "new.pth", weights)


def test_torchscript_is_refused_and_the_recipe_works(tmp_path: Path) -> None:
    class Plain(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net.conv1(x)

    net = zoo.build(ARCH)
    old, new = tmp_path / "script.pt", tmp_path / "new.pth"
    torch.jit.save(torch.jit.trace(Plain(net).eval(), torch.zeros(1, 3, 32, 32)), old)
    line = refusal(old)
    recipe = line[line.index("torch.save(") :].replace('"OLD"', repr(str(old))).replace('"NEW"', repr(str(new)))
    eval(recipe, {"torch": torch})
    loads(new, net.state_dict())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda s: s | {"fc2.weight": torch.ones(3)}, "1 unexpected (fc2.weight)"),
        (lambda s: {k: v for k, v in s.items() if "downsample" not in k}, "option A of He et al."),
        (lambda s: {"0.mean": torch.ones(3), "0.std": torch.ones(3)} | behind("1.", s), "normalises its inputs itself"),
        (
            lambda s: {k: (v * 9).to(torch.int8) for k, v in s.items()},
            "of another kind (conv1.weight tensor (cpu, int8",
        ),
        (lambda s: {"state_dict": state(classes=10)}, "resnet8 with 10 classes instead of 100"),
        (lambda s: {"model": behind("module.student.", TEACHER)}, "this looks like resnet20"),
        (lambda s: s | {"bn1.weight": torch.full((16,), float("nan"))}, "NaN or infinity in bn1.weight"),
        (lambda s: optimizer(), "holds no weights"),
        (lambda s: {"model": argparse.Namespace(a=1)}, "holds no weights"),
        (lambda s: "resnet8", "holds a str, not a state dict"),
    ],
)
def test_refused_for_the_true_reason(tmp_path: Path, content: Any, said: str) -> None:
    assert said in refusal(saved(tmp_path, content(state())))


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    for content, said in (
        (b"<!DOCTYPE html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (gzip.compress(b"x"), "unpack it"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
    ):
        path.write_bytes(content)
        assert said in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("resnet56_vanilla/ckpt_epoch_240.pth", b"x")
    assert "resnet56_vanilla/ckpt_epoch_240.pth" in refusal(path)


def test_parts_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from zoo import extract

    path = saved(tmp_path, {"a": state(), "b": {"c": state()}, "opt": optimizer()})
    assert extract.main([str(path)]) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["a", "b/c"]
    assert extract.main([str(path), "b/d", "x"]) == 2 and 'did you mean "b/c"' in capsys.readouterr().err
    assert extract.main([]) == 2


@pytest.mark.parametrize(
    ("claims", "top1", "disagrees", "said"),
    [
        (("acc", 73.44), 73.42, False, "its file says acc 73.44, it gives 73.42"),
        (("acc", 73.44), 71.0, True, "it gives 71.00, 2.44 less: other weights, data or normalisation"),
        (("best_acc", 70.0), 71.0, True, "1.00 more: the best of another epoch, other weights"),
        (None, 71.0, False, ""),
    ],
)
def test_a_claim_beside_what_the_weights_give(claims: Any, top1: float, disagrees: bool, said: str) -> None:
    source = zoo.checkpoints.Source("", (), claims)
    assert source.disagrees(top1) == disagrees and said in source.compared(top1) and bool(said) == bool(claims)
