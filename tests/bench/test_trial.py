"""A step before anything trains: what foreign code gets wrong is one line, what it gets right passes."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from bench import grid as grids
from tests import tiny
from zoo import BadInput

METHOD = """\
import torch
from methods import Method, register


@register
class Mine(Method):
    name, label, group = "mine", "Mine", "logit"

    def terms(self, student, teacher, batch, progress):
        BODY
"""
GRID = """\
name: own
about: "made up for tests"
protocol: tiny.yaml
networks:
  small: {factory: torchvision.models.mobilenet_v3_small, features: [features.1, features.3, features.8, features.12]}
pairs: [PAIR]
methods: [METHODS]
seeds: 1
"""


def expand(folder: Path, methods: str, pair: str = "small-resnet8", body: str = "") -> grids.Grid:
    (folder / "tiny.yaml").write_text(tiny.PROTOCOL)
    (folder / "mine.py").write_text(METHOD.replace("BODY", body))
    (folder / "grid.yaml").write_text(GRID.replace("PAIR", pair).replace("METHODS", methods))
    return grids.expand(grids.load(str(folder / "grid.yaml")))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return batch.cross_entropy(student.logits)", "terms gives Tensor: it must give a dict"),
        ("return {}", "terms gives {}: it must give a dict of names and scalar tensors"),
        ("return {'x': student.logits}", r"term x is of shape \(4, 100\): it must give"),
        ("return {'x': 1.0}", "term x is a float: it must give"),
        ("return {'x': student.logits.mean() / 0}", "its term x is (inf|-inf|nan) on random images"),
        ("return {'x': student.logits.detach().mean()}", "does not depend on the student's weights"),
        ("return {'x': torch.nope(student.logits)}", "a step fails: mine.py:10: AttributeError: .*nope"),
        ("return {'x': (student.pooled - teacher.pooled).mean()}", "a step fails: mine.py:10: RuntimeError"),
    ],
)
def test_a_step_that_fails_says_where(tmp_path, body, words):
    with pytest.raises(BadInput, match=words) as fault:
        expand(tmp_path, "{file: mine.py}", body=body)
    assert str(fault.value).startswith('method "mine" on small-resnet8: ') and "\n" not in str(fault.value)


@pytest.mark.parametrize("method", ["fitnet", "reviewkd", "vid", "at", "sp"])
def test_methods_on_features_ask_for_them(tmp_path, monkeypatch, method):
    monkeypatch.setattr(sys.modules[__name__], "GRID", re.sub(r", features: .*]}", "}", GRID))
    for pair in ("small-resnet8", "resnet8-small"):
        with pytest.raises(BadInput, match=f'method "{method}" on {pair}: small names no layers for features: add'):
            expand(tmp_path, method, pair)


def test_methods_of_the_project_take_foreign_networks_or_say_why(tmp_path):
    """Each in a line where a network lacks what it needs; no generator has moved."""
    takes = "kd, dkd, mlkd, fitnet, crd, reviewkd, rkd, at, sp, pkt, dist, vid"
    before = torch.get_rng_state()
    assert len(expand(tmp_path, takes, "small-resnet8").runs) == 14
    assert torch.equal(torch.get_rng_state(), before)
    for method, words in (
        ("ofd", "name them as `preact`"),
        ("sdd", "no map whose mean goes into its classifier"),
        ("simkd", "no map whose mean"),
        ("cat_kd", "no map whose mean"),
    ):
        with pytest.raises(BadInput, match=f'method "{method}" on small-resnet8: small .*{words}'):
            expand(tmp_path, method)
