"""MobileNetV2 against a second forward written from the table of its layers, its values elsewhere, names and start."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from tests.zoo.filled import batch_norm, filled, measured, waves

torch.set_num_threads(1)
BLOCKS = (1, 2, 3, 4, 3, 3, 1)
STRIDES = (1, 1, 2, 2, 1, 2, 1)


def second_forward(w: dict[str, Tensor], x: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
    """Features, last map, logits; strides and shortcuts from the table of layers, widths from the weights."""

    def conv_bn(conv: str, norm: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = w[f"{conv}.weight"]
        groups = x.shape[1] // weight.shape[1]
        return batch_norm(w, norm, F.conv2d(x, weight, None, stride, weight.shape[2] // 2, 1, groups))

    x = conv_bn("conv1.0", "conv1.1", x, 2).clamp(min=0)
    features = [x]
    for stage, (blocks, first) in enumerate(zip(BLOCKS, STRIDES, strict=True)):
        for i in range(blocks):
            name, stride = f"blocks.{stage}.{i}.conv", first if i == 0 else 1
            y = conv_bn(f"{name}.0", f"{name}.1", x).clamp(min=0)
            y = conv_bn(f"{name}.3", f"{name}.4", y, stride).clamp(min=0)
            y = conv_bn(f"{name}.6", f"{name}.7", y)
            x = x + y if i > 0 else y  # every first block changes the channels
        if stage in (1, 2, 4, 6):
            features.append(x)
    x = conv_bn("conv2.0", "conv2.1", x).clamp(min=0)
    assert x.shape[1:] == (1280, 2, 2)
    return features, x, F.avg_pool2d(x, 2).flatten(1) @ w["classifier.0.weight"].T + w["classifier.0.bias"]


@torch.no_grad()
def test_every_output_matches_a_second_forward_and_values_measured_on_repdistillers_class() -> None:
    net = filled("mobilenetv2", 0.9)
    out = net.outputs(waves())
    features, last_map, logits = second_forward(net.state_dict(), waves())
    got = list(out.features), list(out.preact), out.last_map, out.logits
    torch.testing.assert_close(got, (features, features[1:], last_map, logits), rtol=1e-10, atol=1e-10)
    first, means, before = measured(out)
    assert first == pytest.approx(
        [6.9481702160, -4.7317269223, 1.1595718258, 6.3688276852, -3.9021990487, 0.8959666483], abs=1e-9
    )
    assert means == pytest.approx(
        [0.2849199592, -0.0019038202, -0.3933495209, -0.1645415444, 0.2350912656, 2.9346751564], abs=1e-9
    )
    assert before == means[1:5]


def test_names_are_those_of_published_checkpoints() -> None:
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    keys = {"classifier.0.weight", "classifier.0.bias"}
    layers = ["conv1", "conv2"]
    for stage, blocks in enumerate(BLOCKS):
        for i in range(blocks):
            for n in (0, 3, 6):
                keys |= {f"blocks.{stage}.{i}.conv.{n}.weight"}
                keys |= {f"blocks.{stage}.{i}.conv.{n + 1}.{k}" for k in norm}
    for name in layers:
        keys |= {f"{name}.0.weight", *(f"{name}.1.{k}" for k in norm)}
    assert set(zoo.build("mobilenetv2").state_dict()) == keys


def test_initialisation() -> None:
    """Convolutions N(0, 2 / (kh kw out)), depthwise ones, too; the linear layer N(0, 0.01^2), bias 0."""
    torch.manual_seed(0)
    net = zoo.build("mobilenetv2")
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            out, _, kh, kw = module.weight.shape
            expected, error = (2 / (kh * kw * out)) ** 0.5, (1 / module.weight.numel()) ** 0.5
            assert module.bias is None
            assert abs(module.weight.std().item() / expected - 1) < 4 * error
            assert abs(module.weight.mean().item()) < 5 * expected * error
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all()
            assert (module.eps, module.momentum) == (1e-5, 0.1)
    assert abs(net.head.weight.std().item() / 0.01 - 1) < 0.02
    assert (net.head.bias == 0).all()


def test_the_norms_before_each_preact() -> None:
    net = zoo.build("mobilenetv2")
    names = dict(net.named_modules())
    assert net.preact_bn == tuple(names[f"blocks.{block}.conv.7"] for block in ("1.1", "2.2", "4.2", "6.0"))


def test_no_dropout_and_no_relu6() -> None:
    kinds = {type(module) for module in zoo.build("mobilenetv2").modules() if not list(module.children())}
    assert kinds == {nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Linear}
