"""VGGs against a second forward written from the definition, and their initialisation and names."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo


def second_forward(w: dict[str, Tensor], x: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Features, pre-activations, logits.

    conv-BN-ReLU throughout; 2x2 max pool behind blocks 0, 1 and 2; mean over 4x4 positions; linear.
    """
    features, preact = [], []
    for block in range(5):
        i = 0
        while f"block{block}.{i}.weight" in w:
            conv, norm = f"block{block}.{i}", f"block{block}.{i + 1}"
            x = F.conv2d(x, w[f"{conv}.weight"], w[f"{conv}.bias"], padding=1)
            mean, var, gamma, beta = (w[f"{norm}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
            normed = F.batch_norm(x, mean, var, gamma, beta, training=False, eps=1e-5)
            x = normed.clamp(min=0)
            i += 3
        features.append(x)
        preact.append(normed)
        if block < 3:
            x = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).amax((3, 5))
    assert x.shape[2:] == (4, 4)
    return features, preact[1:], x.sum((2, 3)) / 16 @ w["classifier.weight"].T + w["classifier.bias"]


@pytest.mark.parametrize("arch", ["vgg8", "vgg16"])
def test_every_output_matches_a_second_forward_in_float64(arch: str) -> None:
    torch.manual_seed(0)
    net = zoo.build(arch, 10).double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            for tensor in (module.running_var, module.weight, module.bias):
                nn.init.uniform_(tensor, 0.5, 1.5)
        elif isinstance(module, nn.Conv2d):
            nn.init.normal_(module.bias)
    with torch.no_grad():
        out = net.eval().outputs(x)
        expected = second_forward(net.state_dict(), x)
    got = list(out.features), list(out.preact), out.logits
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_names_are_those_of_published_checkpoints() -> None:
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    for arch, convs in (("vgg8", (1, 1, 1, 1, 1)), ("vgg13", (2, 2, 2, 2, 2)), ("vgg19", (2, 2, 4, 4, 4))):
        keys = {"classifier.weight", "classifier.bias"}
        for block, count in enumerate(convs):
            for m in range(count):
                keys |= {f"block{block}.{3 * m}.weight", f"block{block}.{3 * m}.bias"}
                keys |= {f"block{block}.{3 * m + 1}.{k}" for k in norm}
        assert set(zoo.build(arch).state_dict()) == keys


def test_initialisation() -> None:
    """Convolutions N(0, 2 / (kh kw out)), the linear layer N(0, 0.01^2), BatchNorm 1 and 0, every bias 0."""
    torch.manual_seed(0)
    net = zoo.build("vgg13")
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            out, _, kh, kw = module.weight.shape
            expected, error = (2 / (kh * kw * out)) ** 0.5, (1 / module.weight.numel()) ** 0.5
            assert (module.bias == 0).all()
            assert abs(module.weight.std().item() / expected - 1) < 4 * error
            assert abs(module.weight.mean().item()) < 5 * expected * error
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all()
            assert (module.eps, module.momentum) == (1e-5, 0.1)
    assert abs(net.classifier.weight.std().item() / 0.01 - 1) < 0.02
    assert (net.classifier.bias == 0).all()


def test_the_norms_before_each_preact() -> None:
    net = zoo.build("vgg13")
    names = dict(net.named_modules())
    assert net.preact_bn == tuple(names[f"block{b}.4"] for b in (1, 2, 3, 4))
