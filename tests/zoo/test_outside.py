"""Networks from elsewhere: one of the zoo, taken for foreign, is what it is; foreign ones give what they give."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import torchvision
from torch import nn

import zoo
from zoo import registry
from zoo.inference import folded
from zoo.outside import Outside, Recipe
from zoo.tried import tried


def brought(factory, **options) -> Recipe:
    """A recipe that is known as "mine"."""
    recipe = Recipe("mine", "a factory", factory, tried, **options)
    registry.bring({"mine": recipe})
    return recipe


@pytest.fixture(autouse=True)
def _forget():
    yield
    registry.bring({})


def images(side: int = 32, seed: int = 1) -> torch.Tensor:
    return torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(seed))


NORMS = tuple(f"block{stage}.1" for stage in (1, 2, 3, 4))


def test_a_network_of_the_zoo_is_seen_as_it_sees_itself():
    """Its own code is the second source: logits, pooled features, head, maps, sizes and names of weights."""
    own = zoo.build("vgg8", 10)
    brought(registry.ARCHITECTURES["vgg8"], features=NORMS, preact=NORMS)
    net = zoo.build("mine", 10)
    net.load_state_dict(own.state_dict())
    assert list(net.state_dict()) == list(own.state_dict()) and net.head is net._inner.head
    expected, found = own.eval().outputs(images()), net.eval().outputs(images())
    assert torch.equal(found.logits, expected.logits) and torch.equal(net(images()), expected.logits)
    assert torch.equal(found.pooled, expected.pooled)
    assert all(torch.equal(one, other) for one, other in zip(found.preact, expected.preact, strict=True))
    assert [*map(id, net.preact_bn)] == [id(layer) for layer in net._inner.preact_bn]
    assert zoo.count_macs("mine", 10) == zoo.count_macs("vgg8", 10)
    assert zoo.count_parameters(net) == zoo.count_parameters(own)
    assert zoo.shapes(net).preact == zoo.shapes("vgg8").preact and zoo.shapes(net).pooled == zoo.shapes("vgg8").pooled


def test_torchvisions_resnet_is_torchvisions(tmp_path):
    """Same numbers for the same seed and from a checkpoint of it; frozen, moved and copied it stays the same."""
    brought(torchvision.models.resnet18, features=("layer1", "layer2", "layer3", "layer4"))
    torch.manual_seed(3)
    net = zoo.build("mine", 10, 64)
    torch.manual_seed(3)
    theirs = torchvision.models.resnet18(num_classes=10)
    x = images(64)
    assert torch.equal(net(x), theirs(x)) and isinstance(net, Outside)  # in train mode: statistics move alike
    torch.save({"state_dict": {f"module.{k}": v for k, v in theirs.state_dict().items()}}, tmp_path / "it.pth")
    loaded = zoo.build("mine", 10, 64)
    zoo.load_weights(loaded, tmp_path / "it.pth")
    theirs.eval()
    expected = theirs(x)
    for one in (loaded.eval(), folded(loaded), copy.deepcopy(loaded)):
        assert torch.equal(one.outputs(x).logits, expected)
    frozen = folded(loaded)
    loaded.head.weight.data.zero_()
    assert torch.equal(frozen(x), expected) and not any(p.requires_grad for p in frozen.parameters())
    assert torch.equal(theirs.layer2(theirs.layer1(theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x)))))),
                       frozen.outputs(x).features[2])  # fmt: skip
    assert torch.equal(frozen.outputs(x).last_map, frozen.outputs(x).features[4])
    torch.testing.assert_close(frozen.outputs(x).last_map.mean((2, 3)), frozen.outputs(x).pooled)
    last = loaded.to(memory_format=torch.channels_last).outputs(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(last.features[0], frozen.outputs(x).features[0], rtol=1e-4, atol=1e-4)
    facts = loaded.facts
    norms = [layer for layer in theirs.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert facts.layers == 2 * len(norms) + 1  # each convolution has its BatchNorm, and there is the classifier
    assert facts.stored == sum(value.numel() for value in theirs.state_dict().values())
    meta = zoo.build_meta("mine", 10, 64)
    assert all(value.is_meta for value in meta.state_dict().values()) and not meta.training


def test_weights_that_do_not_fit_say_what_to_take(tmp_path):
    """As those of ImageNet, and those whose classifier stands elsewhere."""
    brought(torchvision.models.resnet18)
    net, theirs = zoo.build("mine", 10), torchvision.models.resnet18(num_classes=1000).state_dict()
    torch.save(theirs, tmp_path / "imagenet.pth")
    with pytest.raises(zoo.BadInput, match=r"it is mine with another number of classes: .* on 10 classes"):
        zoo.load_weights(net, tmp_path / "imagenet.pth")
    torch.save({key.replace("fc.", "fc.1."): value for key, value in theirs.items()}, tmp_path / "other.pth")
    with pytest.raises(zoo.BadInput, match=r"fc.1.bias\): these are not the names that mine has"):
        zoo.load_weights(net, tmp_path / "other.pth")


def test_looking_at_one_draws_nothing_and_follows_no_device():
    recipe = brought(torchvision.models.resnet18)
    before = torch.get_rng_state()
    with torch.device("meta"):
        assert zoo.count_macs("mine", 10) == recipe.facts(10, 32).macs > 0
        zoo.build_meta("mine", 10)
    assert torch.equal(torch.get_rng_state(), before)


class Layers(nn.Module):
    """Whatever `layers` give, then the mean and a classifier."""

    def __init__(self, num_classes, *layers, width=8, after=lambda logits: logits):
        super().__init__()
        self.layers, self.fc, self.after = nn.Sequential(*layers), nn.Linear(width, num_classes), after

    def forward(self, x):
        x = self.layers(x)
        return self.after(self.fc(x.flatten(2).mean(2) if x.ndim == 4 else x[:, 0]))


class As(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.form = form

    def forward(self, x):
        return self.form(x)


def _tokens(x):
    maps = x.flatten(2).transpose(1, 2)
    return torch.cat([maps.mean(1, keepdim=True), maps], dim=1)


@pytest.mark.parametrize("form", [_tokens, lambda x: x.permute(0, 2, 3, 1)], ids=["tokens", "channels last"])
def test_other_layouts_become_maps(form):
    """A class token and 16 tokens, and (B, h, w, c), are the map that the convolution made."""

    def build(num_classes):
        return Layers(num_classes, nn.Conv2d(3, 8, 8, 8), As(form), As(lambda x: x if x.ndim == 3 else x.movedim(3, 1)))

    brought(build, features=("layers.0", "layers.1"))
    net = zoo.build("mine", 5).eval()
    found = net.outputs(images())
    assert torch.equal(found.features[1], found.features[2]) and found.features[2].shape == (4, 8, 4, 4)


def test_what_is_written_over_is_seen_as_it_was():
    """BatchNorm before an activation in place; so OFD finds the margins, too."""

    def build(num_classes):
        return Layers(num_classes, nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True))

    brought(build, features=("layers.2",), preact=("layers.1",))
    net = zoo.build("mine", 5)
    found = net.outputs(images())
    assert (found.preact[0] < 0).any() and torch.equal(found.preact[0].relu(), found.features[1])
    assert (found.features[0] < 0).any()  # what goes into the activation, before it
    assert net.preact_bn == (net._inner.layers[1],)
    found.features[1].sum().backward()


def test_code_that_takes_no_channels_last_is_given_none():
    def build(num_classes):
        return Layers(num_classes, nn.Conv2d(3, 8, 3), As(lambda x: x.view(len(x), 2, 4, -1).view(len(x), 8, -1, 30)))

    brought(build)
    net = zoo.build("mine", 5).to("cpu", memory_format=torch.channels_last)
    x = images().contiguous(memory_format=torch.channels_last)
    assert net.outputs(x).logits.shape == net(x).shape == (4, 5)


def test_what_it_lacks_is_said_to_who_asks():
    brought(torchvision.models.mobilenet_v3_small)
    shapes = zoo.shapes(zoo.build("mine", 5))
    assert shapes.pooled == 1024
    for name, words in (("features", "add `features`"), ("preact", "add `features`"), ("last_map", "has no map")):
        with pytest.raises(zoo.BadInput, match=words):
            getattr(shapes, name)
    with pytest.raises(zoo.BadInput, match="name them as `preact`"):
        _ = zoo.build("mine", 5).preact_bn
    with pytest.raises(zoo.BadInput, match=r"built for \(B, 3, 32, 32\)"):
        zoo.build("mine", 5)(images(64))


RESNET = torchvision.models.resnet18


@pytest.mark.parametrize(
    ("factory", "options", "words"),
    [
        (RESNET, {"features": ("layer1", "laier2")}, r'features "laier2": .* nearest are layer2'),
        (RESNET, {"features": ("layer1.0.relu",)}, "is called 2 times"),
        (RESNET, {"features": ("layer1",), "preact": ("bn1", "bn1")}, "give each feature its own"),
        (RESNET, {"head": "conv1"}, "must be an nn.Linear"),
        (RESNET, {"head": "fcc"}, "nearest are fc"),
        (RESNET, {"classes": None}, r"no nn.Linear with 10 outputs.*fc \(1000\)"),
        (RESNET, {"classes": "n"}, "TypeError: .*'n'; see its arguments"),
        (RESNET, {"args": {"num_classes": 5}}, "passed by itself"),
        (lambda num_classes: None, {}, "gives a NoneType"),
        (partial(torchvision.models.googlenet, init_weights=False), {}, "GoogLeNetOutputs, not one tensor"),
        (lambda num_classes: Layers(num_classes, nn.Conv2d(3, 8, 3), after=lambda z: z.softmax(1)), {}, "softmax"),
        (lambda num_classes: Layers(num_classes, nn.Conv2d(3, 8, 3), after=lambda z: z[:, :4]), {}, "2x4 for 2 images"),
        (lambda num_classes: Layers(num_classes, nn.Conv2d(4, 8, 3)), {}, "forward pass fails: RuntimeError"),
        (
            lambda num_classes: Layers(num_classes, nn.Conv2d(3, 8, (3, 5))),
            {"features": ("layers.0",)},
            "2x8x30x28, which is no square map",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(factory, options, words):
    recipe = brought(factory, **options)
    with pytest.raises(zoo.BadInput, match=words) as fault:
        recipe.facts(10, 32)
    assert str(fault.value).startswith('network "mine": ') and "\n" not in str(fault.value)


def test_names_of_the_zoo_stay_its_own():
    with pytest.raises(zoo.BadInput, match="give it another"):
        registry.bring({"resnet20": Recipe("resnet20", "a factory", RESNET, tried)})
    assert zoo.architectures() == tuple(registry.ARCHITECTURES)
