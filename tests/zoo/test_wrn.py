"""Wide ResNets against a second forward written from the definition, and their initialisation and names."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo


def second_forward(w: dict[str, Tensor], x: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Features, pre-activations, logits.

    Bare conv stem; blocks BN-ReLU-conv-BN-ReLU-conv; a 1x1 shortcut starts behind the block's BN-ReLU.
    """

    def bn(name: str, x: Tensor) -> Tensor:
        mean, var, gamma, beta = (w[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, mean, var, gamma, beta, training=False, eps=1e-5)

    x = F.conv2d(x, w["conv1.weight"], padding=1)
    features = [x]
    for stage in (1, 2, 3):
        block = 0
        while f"block{stage}.layer.{block}.conv1.weight" in w:
            name, stride = f"block{stage}.layer.{block}", 2 if stage > 1 and block == 0 else 1
            active = bn(f"{name}.bn1", x).clamp(min=0)
            y = F.conv2d(active, w[f"{name}.conv1.weight"], stride=stride, padding=1)
            y = F.conv2d(bn(f"{name}.bn2", y).clamp(min=0), w[f"{name}.conv2.weight"], padding=1)
            shortcut = w.get(f"{name}.convShortcut.weight")
            x = y + (x if shortcut is None else F.conv2d(active, shortcut, stride=stride))
            block += 1
        features.append(x)
    following = ("block2.layer.0.bn1", "block3.layer.0.bn1", "bn1")
    preact = [bn(name, f) for name, f in zip(following, features[1:], strict=True)]
    pooled = F.avg_pool2d(preact[-1].clamp(min=0), 8).flatten(1)
    return features, preact, pooled @ w["fc.weight"].T + w["fc.bias"]


@pytest.mark.parametrize("arch", ["wrn_16_1", "wrn_16_2"])  # without and with a shortcut in the first stage
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
    for arch, n, projected in (("wrn_40_1", 6, (2, 3)), ("wrn_16_2", 2, (1, 2, 3))):
        keys = {"conv1.weight", "fc.weight", "fc.bias", *(f"bn1.{k}" for k in norm)}
        for stage in (1, 2, 3):
            for i in range(n):
                for part in (1, 2):
                    keys |= {f"block{stage}.layer.{i}.conv{part}.weight"}
                    keys |= {f"block{stage}.layer.{i}.bn{part}.{k}" for k in norm}
            if stage in projected:
                keys |= {f"block{stage}.layer.0.convShortcut.weight"}
        assert set(zoo.build(arch).state_dict()) == keys


def test_initialisation() -> None:
    """Convolutions N(0, 2 / (kh kw out)); linear layer uniform(+-1/sqrt(in)), bias 0; BatchNorm 1 and 0."""
    torch.manual_seed(0)
    net = zoo.build("wrn_40_2")
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
    assert 0.9 * bound < net.fc.weight.abs().max().item() <= bound
    assert (net.fc.bias == 0).all()


def test_the_norms_before_each_preact() -> None:
    net = zoo.build("wrn_40_1")
    names = dict(net.named_modules())
    assert net.preact_bn == (names["block2.layer.0.bn1"], names["block3.layer.0.bn1"], names["bn1"])
