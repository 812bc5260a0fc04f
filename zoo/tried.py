"""A network from elsewhere run on two random images: what it gives, and whether that is what is needed here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from zoo.outputs import CHANNELS, Outputs
from zoo.outside import Facts, Outside, Recipe

IMAGES = 2  # in train mode BatchNorm wants more than one


def tried(recipe: Recipe, net: Outside, num_classes: int) -> Facts:
    """Run a network on random images in eval mode, in train mode, and in channels_last."""
    from torch.utils.flop_counter import FlopCounterMode  # here, as it imports much that other commands need not

    side = net.side
    x = torch.randn(IMAGES, CHANNELS, side, side, generator=torch.Generator().manual_seed(0))
    remedy = f"it must take images (B, {CHANNELS}, {side}, {side}), in `args` too where it asks for their size"
    with recipe.telling("a forward pass fails", remedy):
        net.eval()
        plain, changed = net.seen(x, None, frozenset())
        if changed:
            plain, _ = net.seen(x, None, changed)
        _check_logits(recipe, net, plain, num_classes)
        map_layer = _map_layer(net, x, plain.pooled)
        found, changed_map = net.seen(x, map_layer, changed)
        changed |= changed_map
        sizes: list[int] = []
        hooks = [
            layer.register_forward_hook(lambda *seen: sizes.append(seen[2].numel()))
            for layer in net._inner.modules()
            if isinstance(layer, nn.Conv2d | nn.BatchNorm2d | nn.Linear)
        ]
        with FlopCounterMode(display=False) as counter:
            net._inner(x)
        for hook in hooks:
            hook.remove()
    with recipe.telling("a forward pass in train mode fails", "training needs one"):
        trained, _ = net.train().seen(x, map_layer, changed)
        _check_logits(recipe, net, trained, num_classes)
    net.eval()
    return Facts(
        features=tuple(map(_chw, found.features)) if recipe.features else (),
        preact=tuple(map(_chw, found.preact)) if recipe.features else (),
        last_map=_chw(found.last_map) if map_layer else None,
        pooled=found.pooled.shape[1],
        macs=counter.get_total_flops() // 2 // IMAGES,
        outputs=sum(sizes) // IMAGES,
        layers=len(sizes),
        stored=sum(value.numel() for value in net.state_dict().values()),
        map_layer=map_layer,
        changed=changed,
        contiguous=_takes_contiguous_only(net, x),
    )


def _check_logits(recipe: Recipe, net: Outside, outputs: Outputs, num_classes: int) -> None:
    if outputs.logits.shape != (IMAGES, num_classes):
        shape = "x".join(map(str, outputs.logits.shape))
        raise recipe.fault(
            f"its logits are of shape {shape} for {IMAGES} images and {num_classes} classes, not {IMAGES}x{num_classes}"
            ": pass the number of classes under the keyword that its factory knows (`classes: KEYWORD`)"
        )
    if not _close(net.head(outputs.pooled), outputs.logits):
        raise recipe.fault(
            f"its logits are not what its classifier {net._head} gives: let it return them as they are, without a "
            "softmax or a scale, or name another classifier (`head`)"
        )


def _map_layer(net: Outside, x: Tensor, pooled: Tensor) -> str | None:
    """The layer whose map the classifier sees the mean of; the largest such map, from the outermost layer."""
    best: tuple[int, str | None] = (0, None)
    calls: dict[str, int] = {}

    def hook(name: str) -> Callable[..., None]:
        def look(layer: nn.Module, inputs: Any, output: Any) -> None:
            nonlocal best
            calls[name] = calls.get(name, 0) + 1
            if isinstance(output, Tensor) and output.ndim == 4 and output.shape[:2] == pooled.shape:
                size = output.shape[2] * output.shape[3]
                square = output.shape[2] == output.shape[3]
                if square and size >= best[0] and calls[name] == 1 and _close(output.mean((2, 3)), pooled):
                    best = size, name

        return look

    hooks = [layer.register_forward_hook(hook(name)) for name, layer in net._inner.named_modules() if name]
    try:
        net._inner(x)
    finally:
        for one in hooks:
            one.remove()
    return best[1] if calls.get(best[1] or "", 0) == 1 else None


def _takes_contiguous_only(net: Outside, x: Tensor) -> bool:
    """Whether its code fails where images and weights lie in channels_last, as on most devices here."""
    nn.Module.to(net, memory_format=torch.channels_last)
    try:
        net._inner(x.contiguous(memory_format=torch.channels_last))
    except Exception:
        return True
    return False


def _close(one: Tensor, other: Tensor) -> bool:
    scale = float(other.abs().max())
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5 * max(scale, 1e-6))


def _chw(batch: Tensor) -> tuple[int, int, int]:
    return tuple(batch.shape[1:])
