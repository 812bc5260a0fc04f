"""Distillation methods, one short file each. Every module in this folder is imported, so a new file is a new method.

They are imported all at once, when the first of the names below is asked for: torch takes seconds, and what needs the
settings alone has not them.
"""

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules


def _read() -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))}


_before = _read()

from methods.settings import Settings, check  # noqa: E402

_OF_CONTRACT = (
    *("GROUPS", "Batch", "Method", "Progress", "TrainSet"),
    *("all_names", "apart", "bring", "get", "names", "names_here", "register"),
)

__all__ = ["FILES", "Settings", "check", *_OF_CONTRACT]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _load()
    return globals()[name]


def _load() -> None:
    import_module("torch")  # first, so that the files are read and imported within milliseconds
    for module in iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")
    contract = import_module(f"{__name__}.contract")
    globals().update({name: getattr(contract, name) for name in _OF_CONTRACT})
    # The source that this process runs, by module name: the files may change while it runs. One that changed before it
    # was imported is left out.
    globals()["FILES"] = {name: text for name, text in _read().items() if _before.get(name) == text}
