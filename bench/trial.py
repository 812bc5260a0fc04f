"""One step of a run on a few random images, before anything trains: what foreign code does nobody else has tested."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

import methods
import zoo
from bench import outside
from bench.datasets import facts, train_size
from bench.run import Run, canonical_json
from methods import check
from zoo import registry
from zoo.errors import BadInput, in_a_line

IMAGES = 4


def views(run: Run) -> str | None:
    """Which views the method of a run asks for; BadInput, with the line where there is one, where its step fails."""
    known = facts(run.data)
    made_by = methods.get(run.method), *(registry.recipe(arch) for arch in (run.teacher.arch, run.student))
    where = f'method "{run.method}" on {run.teacher.arch}-{run.student}'
    sizes = known.classes, known.side, train_size(run.data)
    return _views(made_by, run.method, run.teacher.arch, run.student, canonical_json(run.params), where, sizes)


@cache
def _views(
    made_by: Any, method: str, teacher_arch: str, student_arch: str, params: str, where: str, sizes: tuple[int, ...]
) -> str | None:
    """`made_by` tells apart what had the same names before."""
    cls, (classes, side, images) = methods.get(method), sizes
    source = outside.source_of(method)
    files = dict(source.said) if source else {}
    for arch in (teacher_arch, student_arch):
        files |= dict(made.files) if (made := registry.recipe(arch)) else {}
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(0)
        student, teacher = (zoo.build(arch, classes, side) for arch in (student_arch, teacher_arch))
        train_set = methods.TrainSet(torch.arange(images) % classes, classes)
        with _telling(where, "it cannot be made", files):
            made = cls(check(cls.Params, json.loads(params), where), student, teacher, train_set).train()
            asked, mode = made.views, made.teacher_mode
        labels = torch.arange(IMAGES) % min(images, classes)
        pictures = [torch.randn(IMAGES, 3, side, side) for _ in range(2 if asked else 1)]
        teacher.train(mode == "train")
        with _telling(where, "a step fails", files):
            with torch.no_grad():
                taught = _outputs(teacher, pictures)
            terms = made.terms(
                _outputs(student, pictures),
                taught,
                methods.Batch(labels, torch.arange(IMAGES) % images),
                methods.Progress(torch.ones(())),
            )
        _check_terms(terms, where)
        loss = torch.stack(list(terms.values())).sum()
        if not loss.requires_grad:
            raise BadInput(f"{where}: its loss does not depend on the student's weights: see what it detaches")
        with _telling(where, "its gradients fail", files):
            loss.backward()
        with _telling(where, "what it deploys fails", files):
            made.deployed(student).eval()(pictures[0])
    return asked


def _outputs(net: zoo.Net, pictures: list[Tensor]) -> zoo.Outputs:
    first, *others = (net.outputs(one) for one in pictures)
    return dataclasses.replace(first, strong=others[0] if others else None)


def _check_terms(terms: Any, where: str) -> None:
    must = "it must give a dict of names and scalar tensors"
    if not isinstance(terms, dict) or not terms or not all(isinstance(name, str) for name in terms):
        raise BadInput(f"{where}: terms gives {'{}' if terms == {} else type(terms).__name__}: {must}")
    if odd := [name for name, one in terms.items() if not isinstance(one, Tensor) or one.ndim]:
        one = terms[odd[0]]
        what = f"of shape {tuple(one.shape)}" if isinstance(one, Tensor) else f"a {type(one).__name__}"
        raise BadInput(f"{where}: its term {odd[0]} is {what}: {must}")
    if odd := [name for name, one in terms.items() if not bool(torch.isfinite(one))]:
        raise BadInput(f"{where}: its term {odd[0]} is {terms[odd[0]].item()} on random images: see its formula")


@contextmanager
def _telling(where: str, what: str, files: dict[str, str]) -> Iterator[None]:
    try:
        yield
    except BadInput as fault:
        raise BadInput(f"{where}: {fault}") from None
    except Exception as error:
        said = in_a_line(error, files)
        theirs = said.startswith(tuple(f"{name}:" for name in files.values()))
        remedy = "correct that line" if theirs else "the method and these networks do not go together"
        raise BadInput(f"{where}: {what}: {said}; {remedy}") from None
