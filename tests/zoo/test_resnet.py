"""ResNets against a second forward written from the definition, and their initialisation and names."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo


def second_forward(w: dict[str, Tensor], x: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Features, pre-activations, logits.

    conv-BN-ReLU stem; blocks conv-BN-ReLU-conv-BN, plus shortcut, ReLU; 8x8 average pool; linear.
    """

    def bn(name: str, x: Tensor) -> Tensor:
        mean, var, gamma, beta = (w[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, mean, var, gamma, beta, training=False, eps=1e-5)

    x = bn("bn1", F.conv2d(x, w["conv1.weight"], padding=1)).clamp(min=0)
    features, preact = [x], []
    for stage in (1, 2, 3):
        block = 0
        while f"layer{stage}.{block}.conv1.weight" in w:
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = F.conv2d(x, w[f"{name}.conv1.weight"], stride=stride, padding=1)
            y = F.conv2d(bn(f"{name}.bn1", y).clamp(min=0), w[f"{name}.conv2.weight"], padding=1)
            y = bn(f"{name}.bn2", y)
            if f"{name}.downsample.0.weight" in w:
                x = F.conv2d(x, w[f"{name}.downsample.0.weight"], stride=stride)
                x = bn(f"{name}.downsample.1", x)
            total = y + x
            x = total.clamp(min=0)
            block += 1
        features.append(x)
        preact.append(total)
    return features, preact, F.avg_pool2d(x, 8).flatten(1) @ w["fc.weight"].T + w["fc.bias"]


@pytest.mark.parametrize("arch", ["resnet20", "resnet8x4"])
def test_every_output_matches_a_second_forward_in_float64(arch: str) -> None:
    torch.manual_seed(0)
    net = zoo.build(arch, 10).double()
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            for tensor in (module.running_var, module.weight, module.bias):
                nn.init.uniform_(tensor, 0.5, 1.5)
    with torch.no_grad():
        out = net.eval().outputs(x)
        expected = second_forward(net.state_dict(), x)
    got = list(out.features), list(out.preact), out.logits
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_names_are_those_of_published_checkpoints() -> None:
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    for arch, n, projected in (("resnet20", 3, (2, 3)), ("resnet8x4", 1, (1, 2, 3))):
        keys = {"conv1.weight", "fc.weight", "fc.bias", *(f"bn1.{k}" for k in norm)}
        for stage in (1, 2, 3):
            for i in range(n):
                for part in (1, 2):
                    keys |= {f"layer{stage}.{i}.conv{part}.weight"}
                    keys |= {f"layer{stage}.{i}.bn{part}.{k}" for k in norm}
            if stage in projected:
                keys |= {f"layer{stage}.0.downsample.0.weight"}
                keys |= {f"layer{stage}.0.downsample.1.{k}" for k in norm}
        assert set(zoo.build(arch).state_dict()) == keys


def test_initialisation() -> None:
    """Convolutions N(0, 2 / (kh kw out)), linear layer PyTorch's uniform(+-1/sqrt(in)), BatchNorm 1 and 0."""
    torch.manual_seed(0)
    net = zoo.build("resnet32x4")
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
    bound = net.fc.in_features**-0.5
    for tensor in (net.fc.weight, net.fc.bias):
        assert 0.9 * bound < tensor.abs().max().item() <= bound


def test_the_norms_before_each_preact() -> None:
    net = zoo.build("resnet56")
    names = dict(net.named_modules())
    assert net.preact_bn == tuple(names[f"layer{s}.8.bn2"] for s in (1, 2, 3))
