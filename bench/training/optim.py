"""Stochastic gradient descent: torch's own, without its marks for torch.compile."""

from __future__ import annotations

import inspect

import torch

_TORCH = torch.optim.SGD


class SGD(_TORCH):
    """The same updates and states as `torch.optim.SGD`, in a process that starts faster.

    torch wraps these methods for torch.compile, which nothing here uses, and imports the whole compiler at the first
    call: 1.3 s of every worker, and 900 files where Python lies on a network disk.
    """

    add_param_group = inspect.unwrap(_TORCH.add_param_group)
    state_dict = inspect.unwrap(_TORCH.state_dict)
    load_state_dict = inspect.unwrap(_TORCH.load_state_dict)
    zero_grad = inspect.unwrap(_TORCH.zero_grad)
    step = torch.no_grad()(inspect.unwrap(_TORCH.step))
