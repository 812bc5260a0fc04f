"""Whether a run's method fits its networks and data: built on networks without storage, before anything starts."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

import methods
import zoo
from bench import outside, trial
from bench.datasets import facts, train_size
from bench.run import Run, canonical_json
from methods import check
from zoo.errors import BadInput


def check_fit(run: Run) -> None:
    """Build a run's method on networks without storage, so that what does not fit is said before anything starts."""
    if not run.teacher:
        return
    known = facts(run.data)
    nets, size = (run.teacher.arch, run.student), (known.classes, known.side, train_size(run.data))
    params = canonical_json(run.params)
    views = trial.views(run) if outside.of(run) else _build_unstored(run.method, params, *nets, *size)
    if views and views != run.data.views:
        raise BadInput(
            f'protocol "{run.protocol.name}", method "{run.method}": its parameters need {views} views, '
            f"not {run.data.views}: write into the protocol "
            f"methods: {{{run.method}: {{data: {{views: {views}, strong: {{ops: 2, posterize_bits: [4, 8]}}}}}}}}"
        )


@cache
def _build_unstored(
    method: str, params: str, teacher: str, student: str, classes: int, side: int, images: int
) -> str | None:
    """The views that the method asks for."""
    cls = methods.get(method)
    where = f'method "{method}" on {teacher}-{student}'
    # Networks are built, and what they give is found out, before torch is made to look at each of its calls.
    networks = [_unstored(arch, role, classes, side) for arch, role in ((student, "student"), (teacher, "teacher"))]
    for network in networks:
        zoo.shapes(network)
    with torch.device("meta"), _Drawn():
        train_set = methods.TrainSet(torch.zeros(images, dtype=torch.int64), classes)
        try:
            return cls(check(cls.Params, json.loads(params), where), *networks, train_set).views
        except BadInput as fault:
            raise BadInput(f"{where}: {fault}") from None


class _Drawn(TorchFunctionMode):
    """Whole numbers without storage need not be drawn: torch would import sympy for it, a third of a second."""

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.randint and isinstance(args[-1], tuple | list):
            return torch.empty(args[-1], dtype=kwargs.get("dtype", torch.int64))
        return function(*args, **kwargs)


@cache
def _unstored(arch: str, role: str, classes: int, side: int) -> nn.Module:
    """One for all methods, which look at it and leave it as it is; a teacher of the same architecture is another."""
    return zoo.build_meta(arch, classes, side)
