"""ResNet-50 against a second forward written from the definition, its values elsewhere, names and start."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from tests.zoo.filled import batch_norm, filled, measured, waves

torch.set_num_threads(1)
BLOCKS = (3, 4, 6, 3)


def second_forward(w: dict[str, Tensor], x: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Features, pre-activations, logits. 1x1, 3x3 (with the stride), 1x1, plus shortcut, ReLU."""
    x = batch_norm(w, "bn1", F.conv2d(x, w["conv1.weight"], padding=1)).clamp(min=0)
    features, preact = [x], []
    for stage, blocks in enumerate(BLOCKS, start=1):
        for i in range(blocks):
            name, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            y = batch_norm(w, f"{name}.bn1", F.conv2d(x, w[f"{name}.conv1.weight"])).clamp(min=0)
            y = F.conv2d(y, w[f"{name}.conv2.weight"], stride=stride, padding=1)
            y = F.conv2d(batch_norm(w, f"{name}.bn2", y).clamp(min=0), w[f"{name}.conv3.weight"])
            if i == 0:
                x = batch_norm(w, f"{name}.shortcut.1", F.conv2d(x, w[f"{name}.shortcut.0.weight"], stride=stride))
            total = batch_norm(w, f"{name}.bn3", y) + x
            x = total.clamp(min=0)
        features.append(x)
        preact.append(total)
    return features, preact, F.avg_pool2d(x, 4).flatten(1) @ w["linear.weight"].T + w["linear.bias"]


@torch.no_grad()
def test_every_output_matches_a_second_forward_and_values_measured_on_repdistillers_class() -> None:
    net = filled("resnet50", 0.8)
    out = net.outputs(waves())
    expected = second_forward(net.state_dict(), waves())
    got = list(out.features), list(out.preact), out.logits
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    first, means, before = measured(out)
    assert first == pytest.approx(
        [13.3841214229, 0.3614555745, -3.6753390119, 13.7385436595, 0.7151151169, -3.5658221359], abs=1e-9
    )
    assert means == pytest.approx(
        [0.3304886674, 0.5663298445, 0.9531396320, 2.5920645100, 3.1168111539, 3.1168111539], abs=1e-9
    )
    assert before == pytest.approx([0.4383193954, 0.8151060216, 2.2090181739, 2.3009148888], abs=1e-9)


def test_names_are_those_of_published_checkpoints() -> None:
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    keys = {"conv1.weight", "linear.weight", "linear.bias", *(f"bn1.{k}" for k in norm)}
    for stage, blocks in enumerate(BLOCKS, start=1):
        for i in range(blocks):
            for part in (1, 2, 3):
                keys |= {f"layer{stage}.{i}.conv{part}.weight", *(f"layer{stage}.{i}.bn{part}.{k}" for k in norm)}
        keys |= {f"layer{stage}.0.shortcut.0.weight", *(f"layer{stage}.0.shortcut.1.{k}" for k in norm)}
    assert set(zoo.build_meta("resnet50").state_dict()) == keys


def test_initialisation() -> None:
    """Convolutions N(0, 2 / (kh kw out)), linear layer PyTorch's uniform(+-1/sqrt(in)), BatchNorm 1 and 0."""
    torch.manual_seed(0)
    net = zoo.build("resnet50")
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
    bound = net.head.in_features**-0.5
    for tensor in (net.head.weight, net.head.bias):
        assert 0.9 * bound < tensor.abs().max().item() <= bound


def test_the_norms_before_each_preact() -> None:
    net = zoo.build_meta("resnet50")
    names = dict(net.named_modules())
    assert net.preact_bn == tuple(names[f"layer{stage}.bn3"] for stage in ("1.2", "2.3", "3.5", "4.2"))
