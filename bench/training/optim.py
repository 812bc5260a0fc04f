"""The optimisers: torch's own, without their marks for torch.compile."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from bench.run import Train

_SGD, _ADAMW = torch.optim.SGD, torch.optim.AdamW


class SGD(_SGD):
    """The same updates and states as `torch.optim.SGD`, in a process that starts faster.

    torch wraps these methods for torch.compile, which nothing here uses, and imports the whole compiler at the first
    call: 1.3 s of every worker, and 900 files where Python lies on a network disk.
    """

    add_param_group = inspect.unwrap(_SGD.add_param_group)
    state_dict = inspect.unwrap(_SGD.state_dict)
    load_state_dict = inspect.unwrap(_SGD.load_state_dict)
    zero_grad = inspect.unwrap(_SGD.zero_grad)
    step = torch.no_grad()(inspect.unwrap(_SGD.step))


class AdamW(_ADAMW):
    """The same updates and states as `torch.optim.AdamW`, as above."""

    add_param_group = inspect.unwrap(_ADAMW.add_param_group)
    state_dict = inspect.unwrap(_ADAMW.state_dict)
    load_state_dict = inspect.unwrap(_ADAMW.load_state_dict)
    zero_grad = inspect.unwrap(_ADAMW.zero_grad)
    step = torch.no_grad()(inspect.unwrap(_ADAMW.step))


def optimizer(settings: Train, parameters: Iterable[nn.Parameter], lr: Tensor) -> SGD | AdamW:
    """The optimiser of a run. `lr` is read at every step, also at one that is captured and replayed."""
    if settings.optimizer is None:
        return SGD(
            parameters,
            lr=lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=settings.nesterov,
            fused=True,
        )
    return AdamW(
        parameters,
        lr=lr,
        betas=(settings.momentum, 0.999 if settings.beta2 is None else settings.beta2),
        eps=1e-8 if settings.eps is None else settings.eps,
        weight_decay=settings.weight_decay,
        capturable=lr.is_cuda,
        fused=True,
    )
