"""Every constant of every protocol, beside its source, typed a second time: one that is changed, or new, fails here.

Sources: RD HobbitLong/RepDistiller @b84f547; MD megvii-research/mdistiller @a08d46f; SL HyunJunSik/StreamLined @e4ab795
(May 2025) and @aa6a8a6 (September 2025); OFD clovaai/overhaul-distillation @76344a8; RKD dvlab-research/ReviewKD
@cede6ea; ML Jin-Ying/Multi-Level-Logit-Distillation @5ee473f; SDD shicaiwei123/SDD-CVPR2024 @e412036; DIST
hunto/DIST_KD @2418f18; NKD yzd-v/cls_KD @1e5d48f; SIM DefangChen/SimKD @2b389c3; CAT GzyAftermath/CAT-KD @4467073; CTKD
zhengli97/CTKD @7d52522; LS sunshangquan/logit-standardization-KD @f6e5aa5, names of its logs.
A value of ours is called so.
"""

from __future__ import annotations

from typing import Any

import pytest

import methods
import zoo
from bench import protocol as protocols
from bench.run import Teacher, Train
from zoo.errors import BadInput

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
        "at": {"ce_weight": (1.0, "RD -r 1, MD"), "attention_weight": (1000.0, "RD -b 1000, MD")},
        "sp": {"ce_weight": (1.0, "RD -r 1, MD"), "similarity_weight": (3000.0, "RD -b 3000, MD")},
        "vid": {"ce_weight": (1.0, "RD -r 1, MD"), "vid_weight": (1.0, "RD -b 1, MD")},
        "pkt": {"ce_weight": (1.0, "RD -r 1, MD"), "neighbour_weight": (30000.0, "RD -b 30000, MD")},
        "simkd": {"map_weight": (1.0, "SIM; CE 0, KL 0"), "reduction": (2, "SIM: its factor 2")},
        "cat_kd": {
            "ce_weight": (1.0, "CAT"),
            "beta": (4.5, "ours: the middle of the six, for another pair"),
            "cells": (2, "CAT: pooled to 2 x 2"),
            "normalise": (False, "CAT: off in the six pairs' configurations"),
        },
        "dist": {
            "temperature": (4.0, "DIST's CIFAR-100 configuration"),
            "ce_weight": (1.0, "DIST"),
            "inter_weight": (2.0, "DIST: 2 x beta 1"),
            "intra_weight": (2.0, "DIST: 2 x gamma 1"),
        },
        "nkd": {
            "temperature": (3.0, "NKD's CIFAR-100 configuration, of a pair of its own"),
            "ce_weight": (1.0, "NKD"),
            "target_weight": (1.0, "NKD"),
            "gamma": (3.5, "NKD, the same configuration"),
        },
        "ctkd": {
            "ce_weight": (0.1, "CTKD's scripts"),
            "kd_weight": (0.9, "CTKD's scripts"),
            "temperature_least": (1.0, "CTKD: 1 + 20 sigmoid"),
            "temperature_range": (20.0, "CTKD"),
            "ramp_epochs": (10, "CTKD: ten loops"),
        },
    },
}
# StreamLined has none of these, and its protocols refuse them.
LATER = ("at", "sp", "vid", "pkt", "simkd", "cat_kd", "dist", "nkd", "ctkd")
PARAMS["streamlined"] = {name: table for name, table in PARAMS["standard"].items() if name not in LATER} | {
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
CAM = {
    "resnet56-resnet20": (0.7, "CAT configs, as all of these"),
    "resnet110-resnet32": (1.8, "CAT"),
    "resnet32x4-resnet8x4": (15.0, "CAT"),
    "wrn_40_2-wrn_16_2": (12.0, "CAT"),
    "wrn_40_2-wrn_40_1": (1.5, "CAT"),
    "vgg13-vgg8": (4.5, "CAT"),
}
# Rows of their own: (method, label, parameters, those per pair).
USUAL_LS = "LS: T 2 and weight 9 unless its log says otherwise"
LS_MLKD = f"LS: 9, {MLKD_MASKS}"
ROWS: dict[str, tuple[str, str, dict[str, tuple[Any, str]], dict[str, dict[str, tuple[Any, str]]]]] = {
    "crd_kd": (
        "crd",
        "CRD+KD",
        {"kd_weight": (1.0, "RD -a 1"), "kd_temperature": (4.0, "RD --kd_T 4")},
        {},
    ),
    "lskd": (
        "kd",
        "KD+LS",
        {"standardize": (True, "LS"), "temperature": (2.0, USUAL_LS), "kd_weight": (9.0, USUAL_LS)},
        {"vgg13-vgg8": {"temperature": (3.0, "LS")}},
    ),
    "lskd_dkd": (
        "dkd",
        "DKD+LS",
        {
            "standardize": (True, "LS"),
            "temperature": (2.0, USUAL_LS),
            "alpha": (12.0, "ours: that of WRN, for another pair"),
            "beta": (24.0, "ours: that of WRN, for another pair"),
        },
        {
            "resnet56-resnet20": {
                "temperature": (3.0, "LS"), "alpha": (18.0, "LS"), "beta": (36.0, "LS: 18 x 2"),
            },
            "resnet110-resnet32": {"alpha": (15.0, "LS"), "beta": (30.0, "LS: 15 x 2")},
            "resnet32x4-resnet8x4": {"alpha": (9.0, "LS"), "beta": (72.0, "LS: 9 x 8")},
            "wrn_40_2-wrn_16_2": {"alpha": (12.0, "LS"), "beta": (24.0, "LS: 12 x 2; its yaml says 6")},
            "wrn_40_2-wrn_40_1": {"alpha": (12.0, "LS"), "beta": (24.0, "LS: 12 x 2; its yaml says 6")},
            "vgg13-vgg8": {"alpha": (15.0, "LS"), "beta": (30.0, "LS: 15 x 2; its yaml says 6")},
        },
    ),
    "lskd_mlkd": (
        "mlkd",
        "MLKD+LS",
        {
            "standardize": (True, "LS"),
            "temperatures": ([2.0, 2.0, 3.0, 5.0, 6.0], "LS: the base 2 in MLKD's place for 4"),
            "instance_weight": (4.5, LS_MLKD),
            "batch_weight": (4.5, LS_MLKD),
            "class_weight": (4.5, LS_MLKD),
            "strong_instance_weight": (9.0, "LS: without masks"),
        },
        {
            "vgg13-vgg8": {
                "instance_weight": (3.0, "LS: 6 x 1/2"),
                "batch_weight": (3.0, "LS: 6 x 1/2"),
                "class_weight": (3.0, "LS: 6 x 1/2"),
                "strong_instance_weight": (6.0, "LS"),
            }
        },
    ),
    "lskd_ctkd": (
        "ctkd",
        "CTKD+LS",
        {
            "standardize": (True, "LS"),
            "kd_weight": (9.0, "LS"),
            "temperature_least": (2.0, "LS: the lower bound; no range is published"),
        },
        {},
    ),
}  # fmt: skip
OTHER_STYLE = {pair for pair in BETA if pair.endswith(("mobilenetv2", "shufflenetv1", "shufflenetv2"))} | {
    "resnet50-vgg8"
}
# Per pair, in place of the above; "resnet50-..." and its like count once the zoo has those networks.
PAIRS: dict[str, dict[str, dict[str, dict[str, tuple[Any, str]]]]] = {
    "standard": {
        "dkd": {pair: {"beta": beta} for pair, beta in BETA.items()},
        "reviewkd": {pair: {"review_weight": weight} for pair, weight in REVIEW.items()},
        "cat_kd": {pair: {"beta": beta} for pair, beta in CAM.items()},
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
        "params": {**{name: {"warm_up_epochs": 3} for name in WARM_UP}, "ctkd": {"ramp_epochs": 1}},
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
        "params": {**{name: {"warm_up_epochs": 1} for name in WARM_UP}, "ctkd": {"ramp_epochs": 1}},
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
            "ctkd": {"ce_weight": 1.0, "kd_weight": 3.0, "ramp_epochs": 1},
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
    if method not in PARAMS[name]:
        with pytest.raises(BadInput, match=f'protocol "{name}" has no parameters for method "{method}": choose one'):
            run_of(name, method, ANY)
        return
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


@pytest.mark.parametrize("name", protocols.names())
def test_rows_of_their_own(name):
    """Those of `standard` wherever its methods are; `quick` has the values for any pair."""
    found = protocols.load(name).rows
    if name in ("streamlined", "streamlined-revised"):
        assert found == {}
        return
    for key, (method, label, params, pairs) in ROWS.items():
        row = found[key]
        assert (row.method, row.label, row.params) == (method, label, values(params))
        assert row.pairs == ({} if name == "quick" else {pair: values(own) for pair, own in pairs.items()})
    assert set(found) == set(ROWS)


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
