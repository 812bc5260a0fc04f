"""What holds for the outputs of every family."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import zoo

DEEP = ["resnet50", "mobilenetv2", "shufflenetv1", "shufflenetv2"]
FAMILIES = ["resnet20", "resnet8x4", "wrn_16_1", "wrn_16_2", "vgg8", "vgg13", *DEEP]


@pytest.fixture(scope="module", params=FAMILIES)
def net(request: pytest.FixtureRequest) -> zoo.Net:
    """A net whose BatchNorms have seen data and hold an affine part of their own."""
    torch.manual_seed(0)
    net = zoo.build(request.param, 10)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    with torch.no_grad():
        net(images(8))
    return net


def images(batch: int) -> torch.Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(batch))


@pytest.mark.parametrize("training", [False, True])
def test_call_and_outputs_agree_and_the_parts_are_consistent(net: zoo.Net, training: bool) -> None:
    net.train(training)
    x = images(4)
    kept = x.clone()
    with torch.no_grad():
        out = net.outputs(x)
        assert torch.equal(net(x), out.logits)
    assert torch.equal(x, kept)
    assert out.head is net.head and isinstance(net.head, nn.Linear)
    assert torch.equal(out.logits, out.head(out.pooled))
    assert torch.allclose(out.pooled, out.last_map.flatten(2).mean(-1), atol=1e-6)
    assert out.strong is None
    assert [tuple(f.shape[1:]) for f in out.features] == list(zoo.shapes(net).features)
    assert [tuple(p.shape[1:]) for p in out.preact] == list(zoo.shapes(net).preact)
    assert tuple(out.last_map.shape[1:]) == zoo.shapes(net).last_map


@pytest.mark.parametrize("training", [False, True])
def test_preact_is_before_the_activation(net: zoo.Net, training: bool) -> None:
    net.train(training)
    with torch.no_grad():
        out = net.outputs(images(4))
    assert all((p < 0).any() for p in out.preact)  # or an in-place ReLU has overwritten a kept tensor
    pairs = list(zip(out.preact, out.features[1:], strict=True))
    assert out.last_map.min() >= 0
    assert (out.features[0].min() >= 0) != net.arch.startswith("wrn")
    if net.arch.startswith("wrn"):
        assert all((f < 0).any() for f in out.features)
        assert torch.equal(F.relu(out.preact[-1]), out.last_map)
    elif net.arch == "mobilenetv2":  # no activation follows
        assert all(p is f for p, f in pairs)
    elif net.arch == "shufflenetv2":  # the two halves take turns
        for p, f in pairs:
            assert torch.equal(F.relu(p), torch.cat([f[:, 0::2], f[:, 1::2]], 1))
    else:
        assert all(torch.equal(F.relu(p), f) for p, f in pairs)
    if net.arch in ("mobilenetv2", "shufflenetv2"):  # a convolution of their own stands before the pooling
        assert out.last_map.shape[1] > out.features[-1].shape[1]
    elif not net.arch.startswith("wrn"):
        assert out.last_map is out.features[-1]


def test_features_and_preact_are_what_hooks_see(net: zoo.Net) -> None:
    if net.arch == "shufflenetv2":
        pytest.skip("no BatchNorm gives all of its pre-activations")
    net.eval()
    seen: dict[nn.Module, torch.Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda m, _, y: seen.__setitem__(m, y.clone()))
        for module in net.modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    with torch.no_grad():
        out = net.outputs(images(2))
    for hook in hooks:
        hook.remove()
    for bn, preact, feature in zip(net.preact_bn, out.preact, out.features[1:], strict=True):
        assert bn.num_features == preact.shape[1]
        if net.arch.startswith(("wrn", "vgg")):  # elsewhere it is this BatchNorm plus the shortcut
            assert torch.equal(seen[bn], preact)
        if net.arch.startswith("wrn"):
            with torch.no_grad():
                assert torch.equal(bn(feature), preact)


def test_a_training_step_counts_once_in_every_batchnorm(net: zoo.Net) -> None:
    net.train()
    counters = [module.num_batches_tracked for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for run in (net.outputs, net):
        before = [int(counter) for counter in counters]
        run(images(2))
        assert [int(counter) for counter in counters] == [count + 1 for count in before]


def test_running_statistics_move_by_one_momentum_step() -> None:
    net = zoo.build("wrn_16_1").train()
    x = images(8)
    with torch.no_grad():
        f3 = net.outputs(x).features[-1]
    assert torch.allclose(net.bn1.running_mean, 0.1 * f3.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(net.bn1.running_var, 0.9 + 0.1 * f3.var((0, 2, 3)), atol=1e-5)


def test_every_output_carries_gradient(net: zoo.Net) -> None:
    net.train()
    x = images(2).requires_grad_()
    out = net.outputs(x)
    for tensor in (*out.features, *out.preact, out.last_map, out.pooled, out.logits):
        (gradient,) = torch.autograd.grad(tensor.square().sum(), x, retain_graph=True)
        assert gradient.abs().sum() > 0
    loss = sum(t.square().mean() for t in (*out.features, *out.preact, out.last_map, out.pooled, out.logits))
    net.zero_grad()
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


@pytest.mark.parametrize("arch", ["resnet8", "wrn_16_1", "vgg8", "mobilenetv2", "shufflenetv1", "shufflenetv2"])
def test_gradients_agree_with_finite_differences(arch: str) -> None:
    """A kept tensor overwritten in place would give another gradient than the numbers do."""
    torch.manual_seed(1)
    net = zoo.build(arch, 5).double().eval()
    x, direction = images(1).double(), images(3)[:1].double()

    def value(step: float) -> torch.Tensor:
        out = net.outputs(x + step * direction)
        return sum(t.sin().mean() for t in (*out.features, *out.preact, out.pooled, out.logits))

    x.requires_grad_()
    (gradient,) = torch.autograd.grad(value(0.0), x)
    with torch.no_grad():
        numeric = (value(1e-6) - value(-1e-6)) / 2e-6
    assert math.isclose(float((gradient * direction).sum()), float(numeric), rel_tol=1e-4)


@pytest.mark.parametrize("arch", ["resnet20", "wrn_16_2", "vgg8", "shufflenetv2"])
def test_one_graph_without_breaks(arch: str) -> None:
    net = zoo.build(arch).eval()
    x = images(2)
    with torch.no_grad():
        compiled = torch.compile(net.outputs, fullgraph=True, backend="eager")(x)
        assert torch.allclose(compiled.logits, net(x), atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(compiled.preact, net.outputs(x).preact, strict=True))


@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (2, 3, 28, 28), (2, 1, 32, 32), (3, 32, 32)])
def test_images_of_another_size_than_it_was_built_for_are_refused(shape: tuple[int, ...]) -> None:
    for arch in ("resnet8", "wrn_16_1", "vgg8"):
        net = zoo.build(arch)
        for run in (net, net.outputs):
            with pytest.raises(zoo.BadInput, match=r"\(B, 3, 32, 32\)"):
                run(torch.zeros(shape))
