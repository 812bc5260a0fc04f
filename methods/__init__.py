"""Distillation methods, one short file each. Every module in this folder is imported, so a new file is a new method."""

from importlib import import_module
from pkgutil import iter_modules

from methods.contract import GROUPS, Batch, Method, Progress, TrainSet, all_names, get, names, register
from methods.settings import Settings, check

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = [
    "GROUPS",
    "Batch",
    "Method",
    "Progress",
    "Settings",
    "TrainSet",
    "all_names",
    "check",
    "get",
    "names",
    "register",
]
