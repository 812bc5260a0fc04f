"""Names of networks as papers print them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial

FAMILIES = {
    "resnet": "ResNet",
    "vgg": "VGG",
    "mobilenet": "MobileNet",
    "shufflenet": "ShuffleNet",
}


def printed(arch: str) -> str:
    """WRN-40-2 for wrn_40_2, ResNet32x4 for resnet32x4, MobileNetV2 for mobilenetv2; any other name as it is."""
    if re.fullmatch(r"wrn(_\d+)+", arch):
        return arch.upper().replace("_", "-")
    for family, name in FAMILIES.items():
        if re.fullmatch(rf"{family}(v?\d+(x\d+)?)", arch):
            return name + arch.removeprefix(family).replace("v", "V")
    return arch


def in_text(text: str, archs: Iterable[str]) -> str:
    """The text with these architectures as papers print them, where they stand alone: ids of runs stay as they are."""
    for arch in sorted(set(archs), key=len, reverse=True):
        text = re.sub(rf"(?<![\w/-]){re.escape(arch)}(?![\w/-])", partial(_name, arch), text)
    return text


def _name(arch: str, found: re.Match[str]) -> str:
    return printed(arch)
