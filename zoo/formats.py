"""What a file of weights holds, whatever wrote it, without running anything that the file brings along.

PyTorch's own restricted reader (`weights_only=True`) does the reading. Where a file names things that this reader does
not know (an argparse.Namespace, a numpy scalar, a configuration object, a whole pickled network), each name is bound
to a stand-in that keeps what it is given and does nothing: neither the file's code nor any library of its maker runs.
"""

from __future__ import annotations

import _compat_pickle
import errno
import io
import os
import pickletools
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.errors import BadInput

SAVE = "torch.save(net.state_dict(), NEW)"
# What a file has no honest reason to name. The stand-ins would keep it from running; a person should know all the same.
HOSTILE = re.compile(
    r"(os|posix|nt|sys|subprocess|shutil|socket|pty|runpy|importlib|ctypes|webbrowser|code|commands|timeit|pdb)(\.|$)"
    r"|builtins\.(eval|exec|compile|open|input|__import__|breakpoint)$"
)
# First bytes of files that are often given in the place of weights, and what to do about each.
STRANGERS = {
    b"\x1f\x8b": "a gzip archive: unpack it and give the file inside",
    b"BZh": "a bzip2 archive: unpack it and give the file inside",
    b"\xfd7zXZ": "an xz archive: unpack it and give the file inside",
    b"7z\xbc\xaf": "a 7z archive: unpack it and give the file inside",
    b"Rar!": "a rar archive: unpack it and give the file inside",
    b"\x89HDF": f"an HDF5 file (Keras): rebuild the network in PyTorch and save it with {SAVE}",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself: run git lfs pull where it comes from",
    b"<": "a web page, no PyTorch checkpoint: the download went wrong, fetch the file itself",
}


class Inert:
    """Stands for an object of a type that is not known here: keeps what it was given, and does nothing."""

    def __new__(cls, *given: Any, **named: Any) -> Inert:
        self = object.__new__(cls)
        self.given, self.state = given, {}
        return self

    def __init__(self, *given: Any, **named: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:  # versions of torch's reader that fill any mapping
        self.state[key] = value

    def __setstate__(self, state: Any) -> None:
        pair = isinstance(state, tuple) and len(state) == 2
        if pair and all(isinstance(half, dict | None) for half in state):  # an object with slots
            state = {**(state[0] or {}), **(state[1] or {})}
        self.state = state


class _Array(Inert):
    """A pickled numpy array: its state is (version, shape, dtype, Fortran order, bytes)."""

    def tensor(self) -> Tensor | None:
        try:
            _, shape, dtype, fortran, raw = self.state
            array = np.frombuffer(raw, _numpy_type(dtype)).reshape(shape, order="F" if fortran else "C")
            return torch.from_numpy(array.copy())
        except (ValueError, TypeError):
            return None


class _Dtype(Inert):
    """A pickled numpy dtype: given its kind and size ("f8"), its state tells the byte order."""


def _numpy_type(dtype: _Dtype) -> np.dtype:
    code = dtype.given[0] if dtype.given else ""
    code = code.decode() if isinstance(code, bytes) else code
    if not re.fullmatch(r"[biuf][1248]", code):
        raise ValueError(f"dtype {code!r}")
    order = dtype.state[1] if isinstance(dtype.state, tuple) else "="
    order = order.decode() if isinstance(order, bytes) else order
    return np.dtype(code).newbyteorder(order if order in ("<", ">") else "=")


def _numpy_scalar(dtype: Any = None, raw: Any = b"", *_: Any) -> Any:
    try:
        return np.frombuffer(raw, _numpy_type(dtype))[0].item()
    except (ValueError, TypeError, IndexError, AttributeError):
        return Inert()


def _numpy_array(*_: Any) -> _Array:
    return _Array()


NUMPY = {
    "numpy.dtype": _Dtype,
    "numpy.ndarray": _Array,
    **{f"numpy.{core}.multiarray.scalar": _numpy_scalar for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": _numpy_array for core in ("core", "_core")},
}


def read(path: str | os.PathLike[str]) -> Any:
    """What the file at `path` holds: nested mappings, tensors on the CPU, numbers, and `Inert` for all else.

    Takes what torch.save writes (today's zip form and the one before PyTorch 1.6), safetensors and numpy's .npz.
    Raises BadInput, with what to do, for a file that cannot be read, is damaged, or is something else.
    """
    try:
        with open(path, "rb") as file:
            return _read(path, file)
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: str | os.PathLike[str], error: OSError) -> BadInput:
    inside = _files_in(path) if os.path.isdir(path) else []
    remedy = f"give the file in it, for example {inside[0]}" if inside else "give the path of a checkpoint file"
    if isinstance(error, PermissionError):
        remedy = "its owner must let you read it"
    elif error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
        remedy = "that says nothing of what it holds: try again, and look at its disk"
    return BadInput(f"{path} cannot be read ({error.strerror}): {remedy}")


def tensors(values: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The named tensors among the values of a mapping; numpy arrays count."""
    found = {}
    for name, value in values.items():
        value = value.tensor() if isinstance(value, _Array) else value
        if isinstance(name, str) and isinstance(value, Tensor):
            found[name] = value.detach()
    return found


def of_module(module: Inert, prefix: str = "") -> dict[str, Tensor]:
    """The state dict of a pickled torch.nn.Module that was read as `Inert`; empty for anything else."""
    state = module.state if isinstance(module.state, Mapping) else {}
    found: dict[str, Tensor] = {}
    passing = state.get("_non_persistent_buffers_set") or ()
    for kind in ("_parameters", "_buffers"):
        own = state.get(kind)
        if isinstance(own, Mapping):
            named = tensors(own).items()
            found |= {prefix + name: value for name, value in named if kind == "_parameters" or name not in passing}
    children = state.get("_modules")
    for name, child in children.items() if isinstance(children, Mapping) else ():
        if isinstance(child, Inert):
            found |= of_module(child, f"{prefix}{name}.")
    return found


def _files_in(folder: str | os.PathLike[str]) -> list[str]:
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    return [name for name in names if name.endswith((".pth", ".pt", ".safetensors", ".ckpt", ".bin", ".tar", ".npz"))]


def _read(path: str | os.PathLike[str], file: io.BufferedReader) -> Any:
    head = file.read(64)
    file.seek(0)
    for magic, what in STRANGERS.items():
        if head.startswith(magic):
            raise BadInput(f"{path} is {what}")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < os.fstat(file.fileno()).st_size:
        return _safetensors(path)
    if head.startswith(b"PK") and zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
        file.seek(0)
        if any(name.endswith(".npy") for name in names):
            return _npz(path, file)
        script = any(name.endswith("/constants.pkl") for name in names)
        if script or not any(name.endswith("/data.pkl") for name in names):
            raise BadInput(_other_archive(path, names, script))
    file.seek(0)
    return _torch(path, file)


def _other_archive(path: str | os.PathLike[str], names: list[str], script: bool) -> str:
    if script:
        return (
            f"{path} is a TorchScript archive, a program with weights: take the weights out, where you trust it, with"
            ' torch.save(torch.jit.load("OLD", map_location="cpu").state_dict(), "NEW")'
        )
    if any(name.endswith("archive_format") for name in names):
        return (
            f"{path} is a program of torch.export: take the weights out, where you trust it, with"
            ' torch.save(dict(torch.export.load("OLD").state_dict), "NEW")'
        )
    inside = next((name for name in names if name.endswith((".pth", ".pt", ".tar", ".safetensors", ".ckpt"))), None)
    return f"{path} is a zip archive, no PyTorch checkpoint: unpack it and give the file inside ({inside or names[:1]})"


def _safetensors(path: str | os.PathLike[str]) -> Any:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise BadInput(f"{path} is a safetensors file: pip install safetensors, which reads it") from None
    try:
        return load_file(path)
    except SafetensorError as error:
        raise BadInput(f"{path} is a damaged safetensors file ({error}): fetch it again") from error


def _npz(path: str | os.PathLike[str], file: io.BufferedReader) -> Any:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (ValueError, TypeError, KeyError, zipfile.BadZipFile) as error:
        raise BadInput(
            f"{path} is a numpy archive that holds more than plain arrays, or is damaged ({_one_line(error)}):"
            " save one array per weight with numpy.savez(NEW, **{name: array})"
        ) from error


def _torch(path: str | os.PathLike[str], file: io.BufferedReader) -> Any:
    """What torch.save wrote: first as it is, then with stand-ins for the names that torch's reader does not know."""
    try:
        return _load(file, [])
    except Exception as error:  # damaged files raise half a dozen types; files with unknown names one of them
        _raise_fault_of_reading(error)
    try:
        names = sorted(_globals(file))
    except (ValueError, EOFError, IndexError, UnicodeDecodeError, KeyError, zipfile.BadZipFile):
        names = []
    for name in names:
        if HOSTILE.match(name):
            raise BadInput(
                f"{path} holds code ({name}) that would run when it is opened the usual way; nothing was run: take"
                f" the weights from a source you trust, as a plain state dict saved with {SAVE}"
            )
    kinds: dict[str, type] = {}
    while names:
        try:
            return _load(file, [(_stand_in(name, kinds), name) for name in names])
        except Exception as error:
            _raise_fault_of_reading(error)
            kind, name = _container(str(error), names)
            if name is None or name in kinds:
                raise _damaged(path, error) from error
            kinds[name] = kind
    raise _damaged(path, None)


def _load(file: io.BufferedReader, allowed: list[tuple[Any, str]]) -> Any:
    file.seek(0)
    with warnings.catch_warnings(), torch.serialization.safe_globals(allowed):
        warnings.simplefilter("ignore")  # torch warns of odd pickles, which are refused or read without harm
        return torch.load(file, map_location="cpu", weights_only=True)


def _raise_fault_of_reading(error: Exception) -> None:
    """A disk that cannot be read now is no damaged file; a damaged one makes its reader seek to nowhere (EINVAL)."""
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        raise error


def _stand_in(name: str, kinds: Mapping[str, type]) -> Any:
    if name in NUMPY:
        return NUMPY[name]
    kind = kinds.get(name)
    if kind is None:
        return type(name, (Inert,), {})
    return type(name, (), {"__new__": lambda cls, *given, **named: kind()})


def _container(message: str, names: list[str]) -> tuple[type, str | None]:
    """Which stand-in has to be a mapping or a list: torch's reader fills those of exact type only, and says so."""
    wanted = re.search(r"Can only (\w+).*but got <class '(?:\w+\.)*?formats\.(.+)'>", message)
    if not wanted or wanted[2] not in names:
        return dict, None
    return (list if wanted[1] in ("append", "extend") else OrderedDict), wanted[2]


def _globals(file: io.BufferedReader) -> set[str]:
    """Every name that the pickles of a file ask for, found without carrying any of them out."""
    return {name for pickled in _pickles(file) for name in _names(pickled)}


def _pickles(file: io.BufferedReader) -> Iterator[io.BytesIO]:
    file.seek(0)
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            yield from (io.BytesIO(archive.read(name)) for name in archive.namelist() if name.endswith("/data.pkl"))
        return
    file.seek(0)
    stream = io.BytesIO(file.read())
    for _ in range(5):  # before PyTorch 1.6: magic number, version, system, the object, names of storages; then bytes
        yield stream


def _names(pickled: io.BytesIO) -> Iterator[str]:
    strings: list[str] = []
    for code, argument, _ in pickletools.genops(pickled):
        if code.name in ("GLOBAL", "INST"):
            module, name = argument.split(" ", 1)
        elif code.name == "STACK_GLOBAL":
            module, name = strings[-2:]
        else:
            if isinstance(argument, str):
                strings.append(argument)
            continue
        module, name = _compat_pickle.NAME_MAPPING.get(
            (module, name), (_compat_pickle.IMPORT_MAPPING.get(module, module), name)
        )
        yield f"{module}.{name}"


def _damaged(path: str | os.PathLike[str], error: Exception | None) -> BadInput:
    said = re.search(r"Unsupported operand \d+|persistent_load|Only persistent", str(error or ""))
    if said:
        return BadInput(
            f"{path} is pickled in a form that cannot be read without running it: where it was made, save it again"
            f" with {SAVE}, as a plain state dict"
        )
    return BadInput(
        f"{path} is no PyTorch checkpoint of plain weights, or is damaged or cut short: fetch it"
        f" again, or re-save it as a plain state dict with {SAVE}"
    )


def _one_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
