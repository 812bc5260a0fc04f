"""Every constant of every protocol, beside its source, typed a second time: one that is changed, or new, fails here.

Sources: RD HobbitLong/RepDistiller @b84f547; MD megvii-research/mdistiller @a08d46f; SL HyunJunSik/StreamLined @e4ab795
(May 2025) and @aa6a8a6 (September 2025); OFD clovaai/overhaul-distillation @76344a8; RKD dvlab-research/ReviewKD
@cede6ea; ML Jin-Ying/Multi-Level-Logit-Distillation @5ee473f; SDD shicaiwei123/SDD-CVPR2024 @e412036.
A value of ours is called so.
"""

from __future__ import annotations

from typing import Any

import pytest

import methods
import zoo
from bench import protocol as protocols
from bench.run import Teacher, Train

SIX = (
    "resnet56-resnet20", "resnet110-resnet32", "resnet32x4-resnet8x4",
    "wrn_40_2-wrn_16_2", "wrn_40_2-wrn_40_1", "vgg13-vgg8",
)  # fmt: skip
SAME = "ours: nobody publishes this pair, the value is that of vgg13-vgg8"
MLKD_MASKS = "weight x the 1/2 that the released masks amount to"

STANDARD_TRAIN = {
    "epochs": (240, "RD and MD"),
    "batch": (64, "RD and MD"),
    "lr": (0.05, "RD and MD"),
    "momentum": (0.9, "RD and MD"),
    "nesterov": (False, "RD and MD; ReviewKD's and OFD's own code has it on"),
    "weight_decay": (5e-4, "RD and MD, on everything trainable"),
    "milestones": ((150, 180, 210), "RD and MD"),
    "gamma": (0.1, "RD and MD"),
    "grad_clip": (None, "RD and MD have none"),
    "peak_at": (None, "a step schedule"),
}
STREAMLINED_TRAIN = STANDARD_TRAIN | {
    "epochs": (250, "SL May 2025, distillation_train.py"),
    "lr": (0.1, "SL"),
    "weight_decay": (4e-5, "SL May 2025, distillation_train.py"),
}
REVISED_TRAIN = STREAMLINED_TRAIN | {
    "epochs": (240, "SL September 2025"),
    "weight_decay": (5e-4, "SL September 2025"),
}
# What a method trains by in place of the above.
TRAIN = {
    "standard": {
        "vanilla": {},
        "mlkd": {"lr": (0.025, "ML configs/cifar100/ours, all six pairs")},
        "sdd": {"grad_clip": (40.0, "SDD engine/trainer.py")},
    },
    "streamlined": {
        "vanilla": {"epochs": (240, "SL train.py"), "weight_decay": (5e-4, "SL train.py")},
        "sdd": {
            "lr": (0.01, "SL SDD_distillation_train.py"),
            "weight_decay": (5e-4, "the same"),
            "epochs": (240, "the same"),
        },
    },
}
TRAIN["streamlined-revised"] = TRAIN["streamlined"]
ALL_TRAIN = {"standard": STANDARD_TRAIN, "streamlined": STREAMLINED_TRAIN, "streamlined-revised": REVISED_TRAIN}

WEAK = {"dataset": ("cifar100", "all"), "train_images": (None, "all 50,000"), "views": ("weak", "RD and MD"),
        "strong": (None, "RD and MD")}  # fmt: skip
BOTH = WEAK | {
    "views": ("weak+strong", "SL: a weak and a strong copy of the training set, shuffled together"),
    "strong": ({"ops": 2, "posterize_bits": (0, 1)}, "SL: RandAugment n 2, its Posterize draws from 0 to 1 bits"),
}
DATA = {
    "standard": {
        "": WEAK,
        "mlkd": WEAK
        | {
            "views": ("paired", "ML dataset/cifar100.py"),
            "strong": ({"ops": 2, "posterize_bits": (4, 8)}, "ML: RandAugment n 2, Posterize [4, 8]"),
        },
    },
    "streamlined": {"": BOTH},
    "streamlined-revised": {"": BOTH},
}

PARAMS: dict[str, dict[str, dict[str, tuple[Any, str]]]] = {
    "standard": {
        "vanilla": {},
        "kd": {
            "temperature": (4.0, "RD --kd_T 4, MD"),
            "ce_weight": (0.1, "RD -r 0.1, MD"),
            "kd_weight": (0.9, "RD -a 0.9, MD"),
        },
        "dkd": {
            "temperature": (4.0, "MD configs/cifar100/dkd"),
            "ce_weight": (1.0, "MD"),
            "alpha": (1.0, "MD"),
            "beta": (6.0, "MD for most pairs"),
            "warm_up_epochs": (20, "MD"),
            "logit_clamp": (None, "SL only"),
        },
        "fitnet": {
            "ce_weight": (1.0, "RD -r 1, MD"),
            "hint_weight": (100.0, "RD -b 100, MD"),
            "hint_layer": (2, "RD --hint_layer 2, MD"),
        },
        "rkd": {
            "ce_weight": (1.0, "RD -r 1, MD"),
            "distance_weight": (25.0, "RD and MD; the paper's ratio 1 to 2"),
            "angle_weight": (50.0, "RD and MD"),
        },
        "crd": {
            "ce_weight": (1.0, "RD -r 1, MD"),
            "crd_weight": (0.8, "RD -b 0.8, MD"),
            "embedding": (128, "RD --feat_dim 128, MD"),
            "negatives": (16384, "RD --nce_k 16384, MD"),
            "temperature": (0.07, "RD --nce_t 0.07, MD; the paper prints 0.1 for CIFAR"),
            "bank_momentum": (0.5, "RD --nce_m 0.5, MD"),
        },
        "ofd": {
            "ce_weight": (1.0, "OFD, MD"),
            "feature_weight": (1e-3, "OFD: loss / 1000; MD"),
            "teacher_mode": ("train", "OFD issue 37 and its code; MD overrides train() to keep it"),
        },
        "reviewkd": {
            "ce_weight": (1.0, "RKD, MD"),
            "review_weight": (5.0, "RKD's scripts for most pairs"),
            "warm_up_epochs": (20, "RKD's scripts, MD"),
        },
        "clkd": {
            "ce_weight": (0.1, "SL; the paper's own values are not known"),
            "level_weight": (0.5, "SL"),
            "beta": (2.0, "SL"),
            "correlation_weight": (0.4, "SL"),
            "correlation": ("classes", "SL Distiller/CLKD.py: C x C, not squared"),
        },
        "mlkd": {
            "ce_weight": (0.1, "ML engine/cfg.py"),
            "temperatures": ([2.0, 3.0, 4.0, 5.0, 6.0], "ML"),
            "instance_weight": (0.45, f"ML: 0.9, {MLKD_MASKS}"),
            "batch_weight": (0.45, f"ML: 0.9, {MLKD_MASKS}"),
            "class_weight": (0.45, f"ML: 0.9, {MLKD_MASKS}"),
            "strong_instance_weight": (0.9, "ML: without masks"),
            "slipped_temperatures": ([], "ML takes weak logits at 2 and 6 by mistake, not repeated"),
        },
        "sdd": {
            "base": ("dkd", "SDD: SD-DKD"),
            "scales": ([1, 2], "SDD: networks of one family"),
            "temperature": (4.0, "SDD"),
            "ce_weight": (1.0, "SDD"),
            "complementary_weight": (2.0, "SDD"),
            "kd_weight": (None, "of base kd"),
            "alpha": (1.0, "SDD"),
            "beta": (6.0, "SDD for most pairs"),
            "warm_up_epochs": (20, "SDD's command line; its paper says 30"),
        },
        "skd": {
            "temperature": (4.0, "SL May 2025"),
            "tikhonov": (0.1, "SL"),
            "ce_weight": (0.5, "SL May 2025; 0.1 since March 2026"),
            "kd_weight": (0.5, "SL May 2025; 0.9 since March 2026"),
        },
        "skd_paper": {
            "temperature": (4.0, "SL May 2025"),
            "tikhonov": (0.1, "SL: the paper prints none"),
            "ce_weight": (0.5, "SL May 2025"),
            "kd_weight": (0.5, "SL May 2025"),
        },
    },
}
PARAMS["streamlined"] = PARAMS["standard"] | {
    "dkd": PARAMS["standard"]["dkd"]
    | {
        "ce_weight": (2.0, "SL Distiller/DKD.py"),
        "alpha": (3.0, "SL"),
        "beta": (6.0, "SL, every pair"),
        "logit_clamp": (10.0, "SL"),
    },
    "crd": PARAMS["standard"]["crd"] | {"negatives": (4096, "SL Distiller/CRD.py")},
    "ofd": PARAMS["standard"]["ofd"] | {"feature_weight": (5e-4, "SL: 0.001, its level weights end at 1/2, not 1")},
    "reviewkd": PARAMS["standard"]["reviewkd"] | {"review_weight": (1.0, "SL Distiller/ReviewKD.py, every pair")},
    "mlkd": PARAMS["standard"]["mlkd"]
    | {
        "ce_weight": (0.5, "SL Distiller/MLKD.py"),
        "temperatures": ([2.0, 3.0, 4.0], "SL"),
        "instance_weight": (0.25, f"SL: 0.5, {MLKD_MASKS}"),
        "batch_weight": (0.25, f"SL: 0.5, {MLKD_MASKS}"),
        "class_weight": (0.25, f"SL: 0.5, {MLKD_MASKS}"),
        "strong_instance_weight": (None, "SL: one view"),
    },
    "sdd": PARAMS["standard"]["sdd"]
    | {
        "scales": ([1, 2, 4], "SL SDD_Models/SPP.py"),
        "ce_weight": (2.0, "SL Distiller/SDD.py"),
        "alpha": (3.0, "SL"),
        "beta": (6.0, "SL, every pair"),
    },
}
PARAMS["streamlined-revised"] = PARAMS["streamlined"]

BETA = {
    "resnet56-resnet20": (2.0, "MD configs/cifar100/dkd/res56_res20.yaml"),
    "resnet110-resnet32": (2.0, "MD res110_res32.yaml"),
    "resnet32x4-resnet8x4": (8.0, "MD: its built-in value"),
    "wrn_40_2-wrn_16_2": (6.0, "MD wrn40_2_wrn_16_2.yaml"),
    "wrn_40_2-wrn_40_1": (6.0, "MD wrn40_2_wrn_40_1.yaml"),
    "vgg13-vgg8": (6.0, "MD vgg13_vgg8.yaml"),
    "vgg13-vgg13": (6.0, SAME),
    "vgg13-mobilenetv2": (6.0, "MD"),
    "resnet50-mobilenetv2": (8.0, "MD"),
    "resnet50-vgg8": (8.0, "MD has none: its built-in value"),
    "resnet32x4-shufflenetv1": (8.0, "MD"),
    "resnet32x4-shufflenetv2": (8.0, "MD"),
    "wrn_40_2-shufflenetv1": (8.0, "MD"),
    "resnet32x4-mobilenetv2": (6.0, "SDD's DKD configuration"),
    "wrn_40_2-mobilenetv2": (6.0, "SDD's DKD configuration, zju-SWJ/RLD"),
}
REVIEW = {
    "resnet56-resnet20": (0.6, "RKD's script"),
    "resnet110-resnet32": (1.0, "RKD's script"),
    "resnet32x4-resnet8x4": (5.0, "RKD's script, MD"),
    "wrn_40_2-wrn_16_2": (5.0, "RKD's script"),
    "wrn_40_2-wrn_40_1": (5.0, "RKD's script"),
    "vgg13-vgg8": (5.0, "MD issue 23, its maintainer"),
    "vgg13-vgg13": (5.0, SAME),
    "resnet32x4-shufflenetv1": (5.0, "RKD's script"),
    "resnet32x4-shufflenetv2": (8.0, "RKD's script"),
    "wrn_40_2-shufflenetv1": (5.0, "RKD's script"),
    "resnet50-mobilenetv2": (30.0, "MD issue 39, a user: 69.88 with it"),
    "vgg13-mobilenetv2": (5.0, "ours: none is published, another student's of the teacher"),
    "resnet50-vgg8": (30.0, "ours: none is published, another student's of the teacher"),
    "resnet32x4-mobilenetv2": (5.0, "ours: none is published, another student's of the teacher"),
    "wrn_40_2-mobilenetv2": (5.0, "ours: none is published, another student's of the teacher"),
}
OTHER_STYLE = {pair for pair in BETA if pair.endswith(("mobilenetv2", "shufflenetv1", "shufflenetv2"))} | {
    "resnet50-vgg8"
}
# Per pair, in place of the above; "resnet50-..." and its like count once the zoo has those networks.
PAIRS: dict[str, dict[str, dict[str, dict[str, tuple[Any, str]]]]] = {
    "standard": {
        "dkd": {pair: {"beta": beta} for pair, beta in BETA.items()},
        "reviewkd": {pair: {"review_weight": weight} for pair, weight in REVIEW.items()},
        "sdd": {
            pair: {"beta": beta} | ({"scales": ([1, 2, 4], "SDD: of different style")} if pair in OTHER_STYLE else {})
            for pair, beta in (BETA | {"resnet32x4-mobilenetv2": (8.0, "SDD's SD-DKD configuration")}).items()
        },
    },
    "streamlined": {},
    "streamlined-revised": {},
}

# Training settings of single networks, on top of those of the method.
SMALL = ("mobilenetv2", "shufflenetv1", "shufflenetv2")
NETWORKS = {
    "standard": {arch: {"lr": (0.01, "RD by the student's name, MD in each configuration")} for arch in SMALL},
    "sprint": {arch: {"lr": (0.4, "ours: a fifth, as in standard; not tried")} for arch in SMALL},
    "first-look": {arch: {"lr": (0.01, "as standard")} for arch in SMALL},
    "cifar10": {arch: {"lr": (0.01, "as standard")} for arch in SMALL},
    "tiny-imagenet": {arch: {"lr": (0.2, "MD, configs/tiny_imagenet")} for arch in SMALL},
    "brief": {arch: {"lr": (0.08, "ours: a fifth, as in standard")} for arch in SMALL},
}

# Protocols of ours, by what they change in the one they extend (or, for `quick`, in standard's parameters).
WARM_UP = ("dkd", "reviewkd", "sdd")
OURS: dict[str, dict[str, Any]] = {
    "sprint": {
        "train": {"epochs": 30, "batch": 1024, "lr": 2.0, "nesterov": True, "milestones": (), "peak_at": 0.25},
        "method_train": {"mlkd": {"lr": 1.0}},
        "params": {name: {"warm_up_epochs": 3} for name in WARM_UP},
        "data": {},
    },
    "first-look": {
        "train": {"epochs": 8, "milestones": (5, 6, 7)},
        "method_train": {},
        "params": {**{name: {"warm_up_epochs": 1} for name in WARM_UP}, "crd": {"negatives": 1638}},
        "data": {"train_images": 5000},
    },
    "brief": {
        "train": {"epochs": 10, "batch": 128, "lr": 0.4, "nesterov": True, "milestones": (), "peak_at": 0.25},
        "method_train": {"mlkd": {"lr": 0.2}},
        "params": {name: {"warm_up_epochs": 1} for name in WARM_UP},
        "data": {"validation": 0},
    },
    "quick": {
        "train": {"epochs": 2, "batch": 16, "lr": 0.08, "milestones": (1,), "gamma": 0.2},
        "teachers": {"epochs": 6, "lr": 0.04, "milestones": (4, 5)},
        "method_train": {"mlkd": {"lr": 0.08}, "sdd": {"grad_clip": None}},
        "params": {
            "kd": {"ce_weight": 1.0, "kd_weight": 3.0},
            "dkd": {"beta": 2.0, "warm_up_epochs": 1},
            "fitnet": {"hint_weight": 10.0},
            "crd": {"crd_weight": 0.2, "negatives": 128},
            "reviewkd": {"review_weight": 1.0, "warm_up_epochs": 1},
            "clkd": {"ce_weight": 1.0, "level_weight": 5.0},
            "mlkd": {"ce_weight": 1.0},
            "sdd": {"beta": 2.0, "warm_up_epochs": 1},
            "skd": {"ce_weight": 1.0, "kd_weight": 3.0},
            "skd_paper": {"tikhonov": 10.0, "ce_weight": 1.0, "kd_weight": 3.0},
        },
        "data": {"dataset": "embedded-1", "train_images": 800},
        "pairs": {},
    },
    "cifar10": {"train": {}, "method_train": {}, "params": {}, "data": {"dataset": "cifar10"}},
    "tiny-imagenet": {  # MD's batch, epochs, steps and learning rate, configs/tiny_imagenet
        "train": {"epochs": 200, "batch": 256, "lr": 0.2, "milestones": (60, 120, 160)},
        "method_train": {"mlkd": {"lr": 0.1}},
        "params": {},
        "data": {"dataset": "tiny-imagenet-200"},
    },
}
PUBLISHED = ("standard", "streamlined", "streamlined-revised")
KNOWN = {pair for pair in BETA if set(pair.split("-")) <= set(zoo.architectures())}
ANY = "resnet20-resnet8"  # a pair without constants of its own


def values(table: dict[str, tuple[Any, str]]) -> dict[str, Any]:
    assert all(source for _, source in table.values())
    return {key: value for key, (value, _) in table.items()}


def run_of(name: str, method: str, pair: str, **options: Any):
    teacher, student = pair.split("-")
    given = Teacher(arch=teacher, run_id="t") if methods.get(method).uses_teacher else None
    return protocols.resolve(protocols.load(name), method, student, 0, teacher=given, **options)


def params_of(name: str, method: str, pair: str) -> dict[str, Any]:
    """All parameters of a run; those that runs leave out where they are None, too."""
    cls = methods.get(method)
    return {**{key: None for key in cls.Params.model_fields}, **run_of(name, method, pair).params}


def expected(table: dict[str, Any], method: str) -> dict[str, Any]:
    return {**{key: None for key in methods.get(method).Params.model_fields}, **table}


def standard_params(method: str, pair: str) -> dict[str, Any]:
    return values(PARAMS["standard"][method] | PAIRS["standard"].get(method, {}).get(pair, {}))


def test_every_method_and_pair_is_pinned():
    """Whoever adds one adds its constants here, with their source."""
    assert set(methods.names()) == set(PARAMS["standard"])
    assert set(protocols.names()) <= {*PUBLISHED, *OURS}
    for name in protocols.names():
        recipe = protocols.load(name)
        assert set(recipe.methods) <= set(methods.names())
        for arch, settings in getattr(recipe, "networks", {}).items():
            assert settings == values(NETWORKS[name][arch]), (name, arch)
        pinned = OURS.get(name, {}).get("pairs", PAIRS.get(name, PAIRS["standard"]))
        for method, settings in recipe.methods.items():
            assert set(settings.pairs) == set(pinned.get(method, {})) & KNOWN, (name, method)


@pytest.mark.parametrize("method", PARAMS["standard"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_constants(name, method):
    for pair in (*sorted(KNOWN), ANY):
        own = PARAMS[name][method] | PAIRS[name].get(method, {}).get(pair, {})
        assert params_of(name, method, pair) == expected(values(own), method), pair
    run = run_of(name, method, SIX[0])
    train = values(ALL_TRAIN[name] | TRAIN[name].get(method, {}))
    assert run.train == Train(**train)
    data = values(DATA[name].get(method, DATA[name][""]))
    found = run.data.model_dump()
    assert {key: found.pop(key) for key in data} == data and not any(found.values())
    if method == "vanilla":
        assert run_of(name, method, SIX[0], as_teacher=True) == run


@pytest.mark.parametrize("name", [name for name in OURS if name in protocols.names()])
def test_protocols_of_ours_change_this_and_nothing_else(name):
    ours = OURS[name]
    for method in methods.names():
        changes = ours["params"].get(method, {})
        for pair in (*sorted(KNOWN), ANY):
            base = values(PARAMS["standard"][method]) if "pairs" in ours else standard_params(method, pair)
            assert params_of(name, method, pair) == expected(base | changes, method), (method, pair)
        run = run_of(name, method, SIX[0])
        train = values(STANDARD_TRAIN | TRAIN["standard"].get(method, {})) | ours["train"]
        train |= ours["method_train"].get(method, {})
        assert run.train == Train(**train), method
        data = values(DATA["standard"].get(method, WEAK)) | ours["data"]
        found = run.data.model_dump()
        assert {key: found.pop(key) for key in data} == data and not any(found.values()), method
    teacher = run_of(name, "vanilla", SIX[0], as_teacher=True)
    train = values(STANDARD_TRAIN) | ours["train"] | ours.get("teachers", {})
    assert teacher.train == Train(**train)
