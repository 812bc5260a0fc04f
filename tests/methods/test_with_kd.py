"""KD beside a feature method: the same term for each, and nothing where it is not asked for."""

from __future__ import annotations

import pytest
import torch

import methods
from methods.kd import WithKD, soft_target_loss
from tests.methods import reference, test_contract
from zoo import BadInput

torch.set_num_threads(1)
PAIR = "resnet20-resnet8"
TAKES_KD = [name for name in methods.names() if issubclass(methods.get(name).Params, WithKD)]


def test_who_takes_it() -> None:
    assert set(TAKES_KD) == {name for name in methods.names() if methods.get(name).group == "feature"} - {"simkd"}


@pytest.mark.parametrize("name", TAKES_KD)
def test_kd_is_one_more_term(name: str) -> None:
    at, plain = test_contract.scene(PAIR), test_contract.make(name, PAIR)
    torch.manual_seed(7)
    given = plain.params.model_dump() | {"kd_weight": 0.8, "kd_temperature": 3.0}
    both = methods.get(name)(reference.settings(name, given), at.student, at.teacher, at.train_set).double().train()
    without, found = (test_contract.constant_terms(method, PAIR) for method in (plain, both))
    kd = found.pop("kd")
    assert found == without and not plain.params.model_dump(mode="json").keys() & {"kd_weight", "kd_temperature"}
    logits = test_contract.student_outputs(PAIR).logits, at.teacher_outputs.logits
    assert float(kd) == pytest.approx(0.8 * float(soft_target_loss(*logits, 3.0)), rel=1e-12)


def test_half_of_it_is_refused() -> None:
    given = {"ce_weight": 1.0, "distance_weight": 25.0, "angle_weight": 50.0, "kd_weight": 1.0}
    with pytest.raises(BadInput, match="give both or neither"):
        reference.settings("rkd", given)
