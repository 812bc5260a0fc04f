"""Networks from elsewhere as networks of the zoo: torchvision's, timm's, a person's own.

A `Recipe` says how one is made and which of its layers are what `Outputs` holds. What can be wrong with it is found by
running it once on two random images, before anything trains.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import BadInput, in_a_line
from zoo.outputs import Net, Outputs

STEM = ""  # stands for what goes into the first feature's layer, among names of layers
MOST_TOKENS = 8  # that may stand before those of the image: class, distillation, registers


@dataclass(frozen=True)
class Facts:
    """What a trial has shown of a network."""

    features: tuple[tuple[int, int, int], ...]  # (channels, height, width)
    preact: tuple[tuple[int, int, int], ...]
    last_map: tuple[int, int, int] | None
    pooled: int
    macs: int  # of one image: multiply-accumulates of all convolutions and products of matrices
    outputs: int  # of one image: numbers that its convolutions, BatchNorms and linear layers put out
    layers: int  # how many calls of these that is
    stored: int  # numbers in a file of its weights
    map_layer: str | None  # whose output's mean over height and width goes into the classifier
    changed: frozenset[str]  # layers whose output a later one writes over: it is copied
    contiguous: bool  # its code takes no images in channels_last


@dataclass(frozen=True, eq=False)
class Recipe:
    """How a network is made: `factory(**args)`, with the number of classes, and the side of images where it wants that.

    `features` name the layers whose outputs are f1 ... fL; f0 is what goes into the first of them, or the output of
    `stem`. `preact` name layers whose outputs are f1 ... fL before their activation. `head` is the classifier, an
    nn.Linear; without it the last one with as many outputs as classes.
    """

    name: str
    said: str  # the factory as a person wrote it
    factory: Callable[..., nn.Module]
    trial: Callable[[Recipe, Outside, int], Facts]  # `zoo.tried.tried`, which knows these classes
    args: Mapping[str, Any] = field(default_factory=dict)
    features: tuple[str, ...] = ()
    stem: str | None = None
    preact: tuple[str, ...] = ()
    head: str | None = None
    classes: str | None = "num_classes"  # keyword of the factory; None passes none
    side: str | None = None  # keyword of the factory; None passes none
    files: Mapping[str, str] = field(default_factory=dict)  # of a factory's own code: how its files are named in errors
    _facts: dict[tuple[int, int], Facts] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict) -> Recipe:
        return self

    def __call__(self, num_classes: int, side: int) -> Outside:
        """A freshly initialised network, in train mode; its weights follow from torch's global seed."""
        keywords = {self.classes: num_classes, self.side: side}
        keywords.pop(None, None)
        if twice := sorted(keywords.keys() & self.args.keys()):
            raise self.fault(f'args has "{twice[0]}", which is passed by itself: leave it out')
        with self.telling(f"{self.said} fails", "see its arguments: `args`, `classes` and `side` of the network"):
            inner = self.factory(**self.args, **keywords)
        if not isinstance(inner, nn.Module):
            raise self.fault(f"{self.said} gives a {type(inner).__name__}, not an nn.Module: name what builds one")
        net = Outside(self, inner, self._head(inner, num_classes))
        net.arch, net.side = self.name, side
        return net.train()

    def facts(self, num_classes: int, side: int) -> Facts:
        """What its trial shows, once; BadInput where it does not fit in here. Draws nothing from any generator."""
        known = self._facts.get((num_classes, side))
        if known is None:
            here = torch.device("cpu"), torch.no_grad(), torch.autocast("cpu", enabled=False)
            with torch.random.fork_rng(devices=[]), here[0], here[1], here[2]:
                known = self._facts[num_classes, side] = self.trial(self, self(num_classes, side), num_classes)
        return known

    @property
    def no_features(self) -> str:
        """What is said to who asks for features of a network that names none."""
        return f"{self.name} names no layers for features: add `features` to the network"

    def fault(self, text: str) -> BadInput:
        return BadInput(f'network "{self.name}": {text}')

    @contextmanager
    def telling(self, what: str, remedy: str) -> Iterator[None]:
        """Turn whatever foreign code raises into one line."""
        try:
            yield
        except BadInput:
            raise
        except Exception as error:
            raise self.fault(f"{what}: {in_a_line(error, self.files)}; {remedy}") from error

    def _head(self, inner: nn.Module, num_classes: int) -> str:
        """The name of the classifier. All names that the recipe gives are checked here."""
        layers = dict(inner.named_modules())
        for kind, names in (("features", self.features), ("stem", self.stem), ("preact", self.preact)):
            for name in (names,) if isinstance(names, str) else names or ():
                if not name or name not in layers:
                    raise self.fault(f'{kind} "{name}": {_nearest(name, layers)}')
        if self.preact and len(self.preact) != len(self.features):
            raise self.fault(
                f"preact names {len(self.preact)} layers, features {len(self.features)}: give each feature its own"
            )
        linear = {name: layer for name, layer in layers.items() if isinstance(layer, nn.Linear)}
        if self.head is not None:
            if self.head not in layers:
                raise self.fault(f'head "{self.head}": {_nearest(self.head, linear or layers)}')
            if self.head not in linear:
                raise self.fault(f'head "{self.head}" is a {type(layers[self.head]).__name__}: it must be an nn.Linear')
            return self.head
        fits = [name for name, layer in linear.items() if layer.out_features == num_classes]
        if not fits:
            has = ", ".join(f"{name} ({layer.out_features})" for name, layer in list(linear.items())[-3:]) or "none"
            raise self.fault(
                f"it has no nn.Linear with {num_classes} outputs, one a class (its last ones: {has}): pass the number "
                "of classes under the keyword that its factory knows (`classes: KEYWORD`)"
            )
        return fits[-1]


class Absent(tuple):
    """In place of feature maps that a network does not have: BadInput, with the reason, for whatever looks for one."""

    def __new__(cls, reason: str) -> Absent:
        made = super().__new__(cls)
        made.reason = reason
        return made

    def __getitem__(self, index: Any) -> Any:
        raise BadInput(self.reason)

    def __iter__(self) -> Any:
        raise BadInput(self.reason)

    __len__ = __iter__


class Outside(Net):
    """A network of a recipe. Its weights have the names that they have where it comes from."""

    def __init__(self, recipe: Recipe, inner: nn.Module, head: str) -> None:
        super().__init__()
        # Two modules over one set of layers: this one is looked at, trained and saved, that one runs.
        for name in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
            self.__dict__[name] = getattr(inner, name)
        self.__dict__.update(_inner=inner, _recipe=recipe, _head=head)

    @property
    def head(self) -> nn.Linear:
        return self._inner.get_submodule(self._head)

    @property
    def preact_bn(self) -> tuple[nn.BatchNorm2d, ...]:
        layers = tuple(map(self._inner.get_submodule, self._recipe.preact))
        if not layers or not all(isinstance(layer, nn.BatchNorm2d) for layer in layers):
            raise BadInput(
                f"{self.arch} does not say which BatchNorms stand before its activations: name them as `preact` of the "
                "network, one a feature"
            )
        return layers

    @property
    def facts(self) -> Facts:
        """What is known of networks of this recipe with as many classes, at this side."""
        return self._recipe.facts(self.head.out_features, self.side)

    def train(self, mode: bool = True) -> Outside:
        self.training = mode
        self._inner.train(mode)
        return self

    def to(self, *args: Any, **kwargs: Any) -> Outside:
        if kwargs.get("memory_format") is torch.channels_last and self.facts.contiguous:
            kwargs = {name: value for name, value in kwargs.items() if name != "memory_format"}
        return super().to(*args, **kwargs) if args or kwargs else self

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        return self._inner(x.contiguous() if self.facts.contiguous else x)

    def trace(self, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]:
        found = self.outputs(x)
        return found.features, found.preact, found.last_map

    def outputs(self, x: Tensor) -> Outputs:
        self._check(x)
        facts = self.facts
        return self.seen(x.contiguous() if facts.contiguous else x, facts.map_layer, facts.changed)[0]

    def seen(self, x: Tensor, map_layer: str | None, copied: frozenset[str]) -> tuple[Outputs, frozenset[str]]:
        """Outputs for images, and the layers whose output was written over after it was looked at."""
        recipe = self._recipe
        wanted = {*recipe.features, *recipe.preact, *filter(None, (recipe.stem, map_layer))}
        made: dict[str, list[Any]] = {name: [] for name in wanted}
        into: list[Any] = []  # the inputs of the classifier
        versions: dict[str, int] = {}

        def keep(name: str) -> Callable[..., None]:
            def hook(layer: nn.Module, inputs: Any, output: Any) -> None:
                output = output.clone() if name in copied and isinstance(output, Tensor) else output
                made[name].append(output)
                versions[name] = getattr(output, "_version", 0)

            return hook

        layer_of = self._inner.get_submodule
        hooks = [layer_of(name).register_forward_hook(keep(name)) for name in wanted]
        hooks.append(layer_of(self._head).register_forward_pre_hook(lambda _, given: into.append(given)))
        if recipe.features and recipe.stem is None:
            first, made[STEM] = layer_of(recipe.features[0]), []
            hooks.append(
                first.register_forward_pre_hook(lambda _, given: keep(STEM)(first, (), next(iter(given), None)))
            )
        try:
            logits = self._inner(x)
        finally:
            for hook in hooks:
                hook.remove()
        if not isinstance(logits, Tensor):
            raise recipe.fault(
                f"it gives a {type(logits).__name__}, not one tensor of logits: switch other outputs off in its `args`"
            )
        changed = frozenset(name for name, all_made in made.items() if _version(all_made) != versions.get(name, 0))
        only = {name: self._one(name or recipe.features[0], all_made) for name, all_made in made.items()}
        pooled = self._one(self._head, into)
        pooled = pooled[0] if pooled else None
        if not isinstance(pooled, Tensor) or pooled.ndim != 2:
            raise recipe.fault(
                f"what goes into its classifier {self._head} is no vector per image: name another as `head`"
            )
        features: tuple[Tensor, ...] = Absent(recipe.no_features)
        if recipe.features:
            said = f"stem {recipe.stem}" if recipe.stem else f"what goes into {recipe.features[0]}"
            named = [(said, only[recipe.stem or STEM]), *((f"feature {name}", only[name]) for name in recipe.features)]
            features = tuple(self._map(what, value, len(x)) for what, value in named)
        preact = tuple(self._map(f"preact {name}", only[name], len(x)) for name in recipe.preact)
        preact = preact or (features[1:] if recipe.features else features)
        last_map = only[map_layer] if map_layer else pooled[:, :, None, None]
        return Outputs(logits, features, preact, last_map, pooled, self.head), changed

    def _one(self, name: str, calls: list[Any]) -> Any:
        if len(calls) != 1:
            how = "is not used" if not calls else f"is called {len(calls)} times"
            raise self._recipe.fault(f"its layer {name} {how} in a forward pass: name one that is called once")
        return calls[0]

    def _map(self, what: str, value: Any, images: int) -> Tensor:
        """A layer's output as a map (B, c, h, w)."""
        if not isinstance(value, Tensor):
            raise self._recipe.fault(f"{what} is a {type(value).__name__}, not a tensor: name a layer inside it")
        shape = "x".join(map(str, value.shape))
        if value.ndim < 2 or value.shape[0] != images or not value.is_floating_point():
            raise self._recipe.fault(f"{what} is of shape {shape} for {images} images: the first number must be theirs")
        if value.ndim == 2:
            return value[:, :, None, None]
        if value.ndim == 3:  # (B, N, c): a sequence of tokens
            side, front = _square(value.shape[1])
            if not side:
                raise self._recipe.fault(
                    f"{what} has {value.shape[1]} tokens, which are no square map with up to {MOST_TOKENS} others in "
                    "front: name another layer"
                )
            return value[:, front:].transpose(1, 2).unflatten(2, (side, side))
        if value.ndim == 4 and value.shape[1] == value.shape[2] != value.shape[3]:  # (B, h, w, c)
            return value.permute(0, 3, 1, 2)
        if value.ndim != 4 or value.shape[2] != value.shape[3]:
            raise self._recipe.fault(f"{what} is of shape {shape}, which is no square map: name another layer")
        return value


def _version(made: list[Any]) -> int:
    return getattr(made[-1], "_version", 0) if made else 0


def _square(tokens: int) -> tuple[int, int]:
    """The side of the map that tokens make, and how many stand in front of it; (0, 0) where they make none."""
    for front in range(min(MOST_TOKENS, tokens - 1) + 1):
        side = round((tokens - front) ** 0.5)
        if side * side == tokens - front:
            return side, front
    return 0, 0


def _nearest(name: str, layers: Mapping[str, nn.Module]) -> str:
    """That there is no such layer, and those with names like it."""
    known = [layer for layer in layers if layer]
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.5) or [layer for layer in known if "." not in layer]
    more = " ..." if len(near) > 12 else ""
    return f"it has no such layer; the nearest are {', '.join(near[:12])}{more}"
