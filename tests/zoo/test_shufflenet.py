"""ShuffleNets against a second forward written from the definitions, their values elsewhere, names and start."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from tests.zoo.filled import batch_norm, filled, measured, waves

torch.set_num_threads(1)
NORM = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
BLOCKS = (4, 8, 4)


def shuffled(x: Tensor, groups: int) -> Tensor:
    """Output channel j is input channel (j mod g) (C / g) + j // g."""
    count = x.shape[1]
    return x[:, [j % groups * (count // groups) + j // groups for j in range(count)]]


class Layers:
    """Convolution n of a block with the BatchNorm n behind it, from a state dict."""

    def __init__(self, weights: dict[str, Tensor], block: str) -> None:
        self.weights, self.block = weights, block

    def __call__(self, n: int, x: Tensor, stride: int = 1) -> Tensor:
        weight = self.weights[f"{self.block}conv{n}.weight"]
        groups = x.shape[1] // weight.shape[1]
        y = F.conv2d(x, weight, None, stride, weight.shape[2] // 2, 1, groups)
        return batch_norm(self.weights, f"{self.block}bn{n}", y)


def v1_forward(w: dict[str, Tensor], x: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """Features, pre-activations, last map, logits; groups follow from the shapes of the weights."""
    x = Layers(w, "")(1, x).clamp(min=0)
    features, preact = [x], []
    for stage, blocks in enumerate(BLOCKS, start=1):
        for i in range(blocks):
            layer, stride = Layers(w, f"layer{stage}.{i}."), 2 if i == 0 else 1
            y = layer(1, x).clamp(min=0)
            y = shuffled(y, 1 if (stage, i) == (1, 0) else 3)
            y = layer(3, layer(2, y, stride).clamp(min=0))
            if i == 0:
                padded = F.pad(x, (1, 1, 1, 1)).unfold(2, 3, 2).unfold(3, 3, 2)
                y = torch.cat([y, padded.mean((4, 5))], 1)  # zeros of the padding count
            else:
                y = y + x
            x = y.clamp(min=0)
        features.append(x)
        preact.append(y)
    return features, preact, x, F.avg_pool2d(x, 4).flatten(1) @ w["linear.weight"].T + w["linear.bias"]


def v2_forward(w: dict[str, Tensor], x: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """The same; a down block's first two convolutions are its left branch, the other three its right."""
    x = Layers(w, "")(1, x).clamp(min=0)
    features, preact = [x], []
    for stage, blocks in enumerate(BLOCKS, start=1):
        for i in range(blocks):
            layer = Layers(w, f"layer{stage}.{i}.")
            if i == 0:
                left = layer(2, layer(1, x, 2)).clamp(min=0)
                right = layer(5, layer(4, layer(3, x).clamp(min=0), 2))
            else:
                half = x.shape[1] // 2
                left, right = x[:, :half], layer(3, layer(2, layer(1, x[:, half:]).clamp(min=0)))
            x = shuffled(torch.cat([left, right.clamp(min=0)], 1), 2)
        features.append(x)
        preact.append(torch.cat([left, right], 1))
    x = Layers(w, "")(2, x).clamp(min=0)
    return features, preact, x, F.avg_pool2d(x, 4).flatten(1) @ w["linear.weight"].T + w["linear.bias"]


MEASURED = {  # gain; logits; means of features and pooled; means of pre-activations
    "shufflenetv1": (
        0.9,
        [0.3838325358, 13.0968484225, -36.2417574370, -0.0549296701, 12.3010485014, -36.5591698425],
        [0.3816737324, 1.4335298568, 9.8530229707, 12.7887979596, 12.7887979596],
        [1.0762400895, 7.0428337821, 9.8718888202],
    ),
    "shufflenetv2": (
        1.0,
        [-57.8538274632, -2.2271639190, 27.2061025738, -56.7345893466, -1.3870808165, 30.9719699387],
        [0.3855795389, 0.7650904782, 3.7813237247, 10.0367916449, 11.9853424827],
        [0.2879398662, 1.7256263839, 4.3315153010],
    ),
}


@pytest.mark.parametrize(("arch", "second_forward"), [("shufflenetv1", v1_forward), ("shufflenetv2", v2_forward)])
@torch.no_grad()
def test_every_output_matches_a_second_forward_and_values_measured_on_repdistillers_class(arch, second_forward) -> None:
    gain, *values = MEASURED[arch]
    net = filled(arch, gain)
    out = net.outputs(waves())
    got = list(out.features), list(out.preact), out.last_map, out.logits
    torch.testing.assert_close(got, second_forward(net.state_dict(), waves()), rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(measured(out), values, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-9)


def test_names_are_those_of_published_checkpoints() -> None:
    def layers(block: str, count: int) -> set[str]:
        return {
            f"{block}{part}" for n in range(1, count + 1) for part in (f"conv{n}.weight", *(f"bn{n}.{k}" for k in NORM))
        }

    head = {"linear.weight", "linear.bias"}
    v1, v2 = layers("", 1) | head, layers("", 2) | head
    for stage, blocks in enumerate(BLOCKS, start=1):
        for i in range(blocks):
            v1 |= layers(f"layer{stage}.{i}.", 3)
            v2 |= layers(f"layer{stage}.{i}.", 3 if i else 5)
    assert set(zoo.build("shufflenetv1").state_dict()) == v1
    assert set(zoo.build("shufflenetv2").state_dict()) == v2


@pytest.mark.parametrize("arch", MEASURED)
def test_initialisation(arch: str) -> None:
    """All PyTorch's own: uniform(+-1/sqrt(inputs of an output)) in convolutions and the linear layer with its bias."""
    torch.manual_seed(0)
    net = zoo.build(arch)
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound, count = module.weight[0].numel() ** -0.5, module.weight.numel()
            assert bound * (1 - 12 / count) < module.weight.abs().max().item() <= bound
            assert abs(module.weight.std().item() * 3**0.5 / bound - 1) < 3 / count**0.5
            assert (module.bias is None) == isinstance(module, nn.Conv2d)
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all()
            assert (module.eps, module.momentum) == (1e-5, 0.1)
    assert net.head.bias.std() > 0


def test_the_norms_before_each_preact() -> None:
    net = zoo.build("shufflenetv1")
    names = dict(net.named_modules())
    assert net.preact_bn == tuple(names[f"layer{stage}.bn3"] for stage in ("1.3", "2.7", "3.3"))
    with pytest.raises(zoo.BadInput, match="no BatchNorm over all channels"):
        _ = zoo.build("shufflenetv2").preact_bn
