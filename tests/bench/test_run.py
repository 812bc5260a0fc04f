"""Run identity: frozen ids, what is in the hash and what is not."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bench import grid as grids
from bench import protocol as protocols
from bench.run import Network, Run, Teacher, canonical_json, seed_for
from methods import check

STANDARD = protocols.load("standard")
TEACHER = protocols.resolve(STANDARD, "vanilla", "resnet56", 0)


def kd(**changes) -> Run:
    teacher = Teacher(arch="resnet56", run_id=TEACHER.run_id)
    run = protocols.resolve(STANDARD, "kd", "resnet20", 0, teacher=teacher)
    return run.model_copy(update=changes)


def test_frozen_ids():
    """An accidental change of identity would orphan every result that exists: these may change only on purpose."""
    assert TEACHER.run_id == "vanilla-resnet56-s0-8671ab25"
    assert kd().run_id == "kd-resnet56-resnet20-s0-0735dc95"
    full = grids.expand(grids.load("full"))
    assert (
        next(r for r in full.runs if r.startswith("dkd-resnet110-resnet32-s2")) == "dkd-resnet110-resnet32-s2-3a243e84"
    )
    skd = protocols.resolve(protocols.load("streamlined"), "skd", "resnet20", 0, teacher=kd().teacher)
    assert skd.run_id == "skd-resnet56-resnet20-s0-802721d5"


def test_teacher_id_is_part_of_the_students():
    other = Teacher(arch="resnet56", run_id="vanilla-resnet56-s1-00000000")
    assert kd(teacher=other).run_id != kd().run_id
    assert kd(seed=1).run_id.startswith("kd-resnet56-resnet20-s1-") and kd(seed=1).hash8 != kd().hash8
    assert kd(precision="bf16").hash8 != kd().hash8
    assert kd(train=kd().train.model_copy(update={"lr": 0.1})).hash8 != kd().hash8


def test_every_field_is_in_the_hash():
    base = kd()
    changed = {
        "method": "dkd",
        "params": {},
        "student": "resnet32",
        "teacher": None,
        "train": None,
        "seed": 3,
        "precision": "tf32",
        "data": base.data.model_copy(update={"train_images": 5000}),
        "protocol": base.protocol.model_copy(update={"version": 2}),
        "method_digest": "0" * 64,
        "networks": {"resnet20": Network(factory="torchvision.models.resnet18")},
    }
    assert set(changed) == set(Run.model_fields)
    assert len({base.hash8, *(kd(**{key: value}).hash8 for key, value in changed.items())}) == len(changed) + 1


def test_a_validation_split_is_part_of_the_identity_and_its_absence_is_not():
    base = kd()
    split = {n: kd(data=base.data.model_copy(update={"validation": n})) for n in (None, 0, 5000)}
    assert split[None].run_id == base.run_id and "validation" not in base.model_dump(mode="json")["data"]
    assert len({run.hash8 for run in split.values()}) == 3


def test_same_id_from_a_file_and_in_another_process():
    text = kd().model_dump_json()
    assert check(Run, json.loads(text), "a file") == kd()
    code = (
        "import sys, json; from bench.run import Run; from methods import check;"
        "print(check(Run, json.loads(sys.argv[1]), 'x').run_id)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, text],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": "."},
    )
    assert said.stdout.strip() == kd().run_id


def test_canonical_json():
    assert canonical_json({"b": 1.0, "a": [True, None, "é"]}) == '{"a":[true,null,"é"],"b":1.0}'
    with pytest.raises(ValueError):
        canonical_json(float("nan"))


def test_seeds_are_stable_and_apart():
    assert seed_for(0, "order", 1) == 4489457307835839548
    assert len({seed_for(s, p, e) for s in range(3) for p in ("order", "weak") for e in range(50)}) == 300
