"""Protocols: the recipes as their sources state them, extension, and resolution into runs."""

from __future__ import annotations

import pytest

import methods
from bench import protocol as protocols
from bench.run import Teacher
from tests import tiny
from zoo.errors import BadInput

PAIRS = {
    "resnet56-resnet20": 2,
    "resnet110-resnet32": 2,
    "resnet32x4-resnet8x4": 8,
    "wrn_40_2-wrn_16_2": 6,
    "wrn_40_2-wrn_40_1": 6,
    "vgg13-vgg8": 6,
}


def resolve(name, method, pair="resnet56-resnet20"):
    teacher, student = pair.split("-")
    given = Teacher(arch=teacher, run_id="t") if methods.get(method).uses_teacher else None
    return protocols.resolve(protocols.load(name), method, student, 0, teacher=given)


def test_all_load_and_resolve_every_method():
    assert set(protocols.names()) >= {"standard", "streamlined", "streamlined-revised", "quick", "sprint", "brief"}
    for name in protocols.names():
        # Of the longer table's methods the streamlined protocols know nothing: tests/bench/test_protocol_constants.py.
        for method in methods.all_names() if name.startswith("streamlined") else methods.names():
            for pair in PAIRS:
                assert resolve(name, method, pair).protocol.name == name


def test_published_recipes():
    """The table of design and facts, typed a second time."""
    expected = {  # lr, weight decay, epochs of a distilled run; the same of vanilla; views
        "standard": ((0.05, 5e-4, 240), (0.05, 5e-4, 240), "weak"),
        "streamlined": ((0.1, 4e-5, 250), (0.1, 5e-4, 240), "weak+strong"),
        "streamlined-revised": ((0.1, 5e-4, 240), (0.1, 5e-4, 240), "weak+strong"),
    }
    for name, (distilled, vanilla, views) in expected.items():
        for method, wanted in (("kd", distilled), ("vanilla", vanilla)):
            run = resolve(name, method)
            assert (run.train.lr, run.train.weight_decay, run.train.epochs) == wanted
            assert run.train.milestones == (150, 180, 210)
            assert (run.train.batch, run.train.momentum, run.train.nesterov, run.train.gamma) == (
                64,
                0.9,
                False,
                0.1,
            )
            assert run.data.views == views and run.data.dataset == "cifar100" and run.data.train_images is None


@pytest.mark.parametrize("pair", PAIRS)
def test_dkd_beta_is_per_pair_in_standard_only(pair):
    assert resolve("standard", "dkd", pair).params["beta"] == PAIRS[pair]
    assert resolve("streamlined", "dkd", pair).params == {
        "temperature": 4.0,
        "ce_weight": 2.0,
        "alpha": 3.0,
        "beta": 6.0,
        "warm_up_epochs": 20,
        "logit_clamp": 10.0,
    }


# DKD's and SDD's beta, ReviewKD's weight.
DIFFERENT_STYLE = {
    "vgg13-mobilenetv2": (6, 6, 5),
    "resnet50-mobilenetv2": (8, 8, 30),
    "resnet50-vgg8": (8, 8, 30),
    "resnet32x4-shufflenetv1": (8, 8, 5),
    "resnet32x4-shufflenetv2": (8, 8, 8),
    "wrn_40_2-shufflenetv1": (8, 8, 5),
    "resnet32x4-mobilenetv2": (6, 8, 5),
    "wrn_40_2-mobilenetv2": (6, 6, 5),
}


@pytest.mark.parametrize("pair", DIFFERENT_STYLE)
def test_weights_per_pair_of_different_style(pair):
    dkd, sdd, review = (resolve("standard", method, pair).params for method in ("dkd", "sdd", "reviewkd"))
    assert (dkd["beta"], sdd["beta"], review["review_weight"]) == DIFFERENT_STYLE[pair]
    assert sdd["scales"] == [1, 2, 4] and resolve("standard", "sdd", "vgg13-vgg8").params["scales"] == [1, 2]
    assert (dkd["alpha"], dkd["temperature"], dkd["warm_up_epochs"]) == (1, 4, 20)


@pytest.mark.parametrize("student", ["mobilenetv2", "shufflenetv1", "shufflenetv2"])
def test_the_small_networks_have_a_learning_rate_of_their_own(student):
    """Before a method's own, as MLKD has one, and wherever they are trained."""
    for name, lr in (("standard", 0.01), ("brief", 0.08), ("sprint", 0.4)):
        for method in ("vanilla", "kd", "mlkd"):
            assert resolve(name, method, f"vgg13-{student}").train.lr == lr
    recipe = protocols.load("standard")
    assert protocols.resolve(recipe, "vanilla", student, 0, as_teacher=True).train.lr == 0.01
    assert resolve("standard", "mlkd", f"{student}-vgg8").train.lr == 0.025
    assert resolve("standard", "kd", "resnet50-vgg8").train.lr == 0.05


@pytest.mark.parametrize("method", methods.names())
def test_brief_is_standard_in_ten_epochs_of_all_images(method):
    """Only what a short schedule asks for differs, and it is the same for all methods but MLKD's learning rate."""
    run, whole, plain = resolve("brief", method), resolve("standard", method), resolve("brief", "vanilla")
    assert run.data.train_images is None and run.data.validation == 0 and run.train.epochs == 10
    assert run.data.model_copy(update={"validation": None}) == whole.data
    short = {"warm_up_epochs": 20, "ramp_epochs": 10}
    assert {**run.params, **short} == {**whole.params, **short}
    assert run.params.get("warm_up_epochs", 1) == 1
    share = run.train.lr / plain.train.lr
    assert share == (0.5 if method == "mlkd" else 1) == whole.train.lr / resolve("standard", "vanilla").train.lr
    same = {"lr": plain.train.lr, "grad_clip": plain.train.grad_clip}
    assert run.train.model_copy(update=same) == plain.train and run.train.grad_clip == whole.train.grad_clip


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("epochs: 2", "epochs: 0"), "train.epochs"),
        (("epochs: 2", "epoch: 2"), 'did you mean "epochs"'),
        (("batch: 32", "batch: 32.5"), "train.batch"),
        (("batch: 32", "lr: 1e-4"), r"write 0\.0001 \(YAML|YAML reads 1e-4 as text"),
        (("batch: 32", "nesterov: no"), "train.nesterov"),
        (("milestones: [1]", "milestones: [2]"), "never reached"),
        (("milestones: [1]", "milestones: [1, 1]"), "rise"),
        (("embedded-1", "cifar1000"), "data.dataset"),
        (("train_images: 100", "train_images: -5"), "data.train_images"),
        (("train_images: 100", "views: paired"), "strong"),
        (("extends: standard", "extends: standrad"), 'did you mean "standard"'),
        (("name: tiny", "name: standard"), "comes with the project"),
        (("dkd:", "dkdd:"), 'did you mean "dkd"'),
        (("version: 1", "version: '1'"), "version"),
        (("sources: ", "source: "), 'did you mean "sources"'),
        (("train:", "networks: {mobilenet2: {lr: 0.01}}\ntrain:"), 'did you mean "mobilenetv2"'),
        (("train:", "networks: {vgg8: {momentun: 0.01}}\ntrain:"), 'networks, vgg8: .*did you mean "momentum"'),
    ],
)
def test_bad_protocols_get_one_line(tmp_path, change, says):
    with pytest.raises(BadInput, match=says) as error:
        tiny.recipe(tmp_path, tiny.PROTOCOL.replace(*change, 1))
    assert "\n" not in str(error.value)


def test_bad_method_parameters_name_protocol_method_and_key(tmp_path):
    text = tiny.PROTOCOL.replace("{warm_up_epochs: 1}", "{warm_up_epoch: 1}")
    with pytest.raises(BadInput, match=r'protocol "tiny", method "dkd".*did you mean "warm_up_epochs"'):
        tiny.run(tmp_path, "dkd", text=text)
    with pytest.raises(BadInput, match="temperature"):
        teacher = Teacher(arch="resnet8", run_id="t")
        protocols.resolve(tiny.recipe(tmp_path), "kd", "resnet8", 0, teacher=teacher, params={"temperature": "hot"})


def test_extension_in_a_circle(tmp_path, monkeypatch):
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / f"{name}.yaml").write_text(f"extends: {other}\nname: {name}\n")
    monkeypatch.setattr(protocols, "FOLDER", tmp_path)
    with pytest.raises(BadInput, match="extends itself"):
        protocols.load("a")


def test_a_method_may_train_differently_from_its_protocol(tmp_path):
    text = (
        tiny.PROTOCOL + "  kd: {train: {lr: 0.01}, data: {views: paired, strong: {ops: 2, posterize_bits: [4, 8]}}}\n"
    )
    run, other = tiny.run(tmp_path, "kd", text=text), tiny.run(tmp_path, "fitnet", text=text)
    assert (run.train.lr, run.data.views, run.data.train_images) == (0.01, "paired", 100)
    assert (other.train.lr, other.data.views) == (0.05, "weak")


def test_teachers_may_train_longer_than_the_student_row(tmp_path):
    recipe = tiny.recipe(tmp_path, tiny.PROTOCOL + "teachers: {epochs: 5, milestones: [3]}\n")
    student = protocols.resolve(recipe, "vanilla", "resnet8", 0)
    teacher = protocols.resolve(recipe, "vanilla", "resnet8", 0, as_teacher=True)
    assert (student.train.epochs, teacher.train.epochs) == (2, 5) and student.run_id != teacher.run_id
