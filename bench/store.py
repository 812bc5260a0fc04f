"""The folder of a run: its files, written so that a crash at any moment leaves each one whole or absent."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import secrets
import shutil
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# torch takes seconds to import: it is imported where tensors are read or written, so that states are told without it.

KEPT = "plan.json"  # in the results folder: the grid it was last used for, so that it can be read without the grid
SOURCES = "sources"  # in the results folder: Python files of their authors' own that its runs use, by their content
REPORTS = "reports"  # in the results folder: reports of other grids that it was used for, each with its plan.json
SCHEMA = 1  # of result.json
CURVE = b'\n "curve": '  # where the last and by far the largest part of a result.json begins


# Reading again after so long may help: a network disk that was away, a descriptor or memory that another has freed.
READ_AGAIN_S = (0.2, 1.0)
TIRED_S = 10.0  # after a file for which that did not help: a thousand files of a dead disk are not waited for each
_gave_up = -TIRED_S
PASSING = {
    getattr(errno, name)
    for name in (
        *(
            "EIO",
            "ESTALE",
            "EMFILE",
            "ENFILE",
            "ENOMEM",
            "EAGAIN",
            "EINTR",
            "EBUSY",
            "ETIMEDOUT",
            "ENOTCONN",
            "EREMOTEIO",
        ),
        *("ECONNRESET", "ECONNABORTED", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ENODEV", "ENXIO"),
    )
    if hasattr(errno, name)
}
UNSYNCED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)  # a file system that knows no fsync


class Damaged(Exception):
    """What a file of a run holds is not what was written; the message names it."""


class Unreadable(OSError):
    """A file is there and cannot be read now, whatever it holds: nothing follows from that for what it holds."""

    def __init__(self, error: OSError, path: Path) -> None:
        super().__init__(error.errno, error.strerror or str(error), str(path))

    def __str__(self) -> str:
        return f"{Path(self.filename).name} cannot be read now ({self.strerror})"


@dataclass(frozen=True)
class RunFolder:
    """Paths in `OUT/runs/<run_id>/`. State is told from these files alone."""

    path: Path

    @property
    def run_id(self) -> str:
        return self.path.name

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def result(self) -> Path:
        """Written last: it exists exactly when the run is done."""
        return self.path / "result.json"

    @property
    def examined(self) -> Path:
        """What the weights say beyond the result, where somebody asked: see bench.measure.examine."""
        return self.path / "examined.json"

    @property
    def error(self) -> Path:
        return self.path / "error.json"

    @property
    def last(self) -> Path:
        """Resumable checkpoint; removed once the run is done."""
        return self.path / "last.pt"

    @property
    def weights(self) -> Path:
        return self.path / "weights.pt"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"


def run_folder(out: Path, run_id: str) -> RunFolder:
    return RunFolder(out / "runs" / run_id)


def report_folder(out: Path, grid: str, protocol: str) -> Path:
    """Where the report of a grid lies while the results folder itself has another grid's: by grid and protocol."""
    name = grid if grid == protocol else f"{grid}-{protocol}"
    plain = re.sub(r"[^\w.-]|^\.", "_", name, flags=re.ASCII)[:100]
    return out / REPORTS / (plain if plain == name else f"{plain}-{zlib.crc32(name.encode('utf-8', 'replace')):08x}")


def report_folder_of(out: Path, plan: dict[str, Any]) -> Path | None:
    """The same for a parsed plan.json; None where it does not say which grid it is of."""
    protocol = plan.get("protocol")
    names = plan.get("grid"), protocol.get("name") if isinstance(protocol, dict) else None
    return report_folder(out, *names) if all(isinstance(name, str) for name in names) else None


def keep_plan(out: Path, plan: dict[str, Any]) -> None:
    """Write plan.json; one that is there and of another grid goes to the folder of that grid's report."""
    try:
        old = read_json(out / KEPT)
    except Damaged:
        old = None
    place = report_folder_of(out, old) if old else None
    if place and place != report_folder_of(out, plan):
        place.mkdir(parents=True, exist_ok=True)
        write_json(place / KEPT, old)
    write_json(out / KEPT, plan)


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, sync it and rename it into place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        write(temporary)
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_folder(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files, by their paths within it, into a folder that is not there yet: whole, or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        for name, content in contents.items():
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        os.rename(temporary, folder)
    except OSError:
        if not folder.is_dir():  # somebody else has just made the same one
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync(path: Path) -> None:
    """Have the disk keep what a file holds, where it can promise that."""
    with open(path, "rb+") as file:
        try:
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in UNSYNCED:
                raise


def sweep(folder: RunFolder) -> None:
    """Remove what a process killed while writing left half done; only for the one that has claimed the run."""
    targets = (folder.config, folder.last, folder.weights, folder.result, folder.error, folder.examined)
    begins = tuple(f".{target.name}." for target in targets)
    for name in os.listdir(folder.path):
        if name.startswith(begins) and name.endswith(".tmp"):
            (folder.path / name).unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    text = _dump(value) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Like write_json, a line an epoch. The curve comes last, after a checksum of it: see `read_result`."""
    rows = ",\n  ".join(_dump(row, None) for row in result["curve"])
    tail = CURVE + f"[\n  {rows}\n ]\n}}\n".encode()
    head = {**{name: value for name, value in result.items() if name != "curve"}, "curve_crc32": zlib.crc32(tail)}
    text = _dump(head).encode().removesuffix(b"\n}") + b"," + tail
    write_atomically(path, lambda temporary: temporary.write_bytes(text))


def _dump(value: Any, indent: int | None = 1) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)


def write_torch(path: Path, value: Any) -> None:
    import torch

    buffer = io.BytesIO()  # through memory, so that a full disk is an OSError that says so
    torch.save(value, buffer)
    write_atomically(path, lambda temporary: temporary.write_bytes(buffer.getbuffer()))


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is no file; Damaged where there is no object in it.

    Unreadable where the file cannot be read, also after some tries.
    """
    text = read_bytes(path)
    return None if text is None else _parse(path, text)


def read_bytes(path: Path) -> bytes | None:
    """What a file holds; None where there is no file. Damaged where a folder has its name, else Unreadable."""
    return patiently(path.read_bytes, path)


def patiently(read: Callable[[], Any], path: Path) -> Any:
    """What `read` gives of `path`; None where it is not there. What may pass is tried again, then Unreadable."""
    global _gave_up
    tired = time.monotonic() - _gave_up < TIRED_S
    for pause_s in (*(() if tired else READ_AGAIN_S), None):
        try:
            return read()
        except FileNotFoundError:
            return None
        except IsADirectoryError:
            raise Damaged(f"{path.name} is damaged (a folder)") from None
        except OSError as error:
            if error.errno not in PASSING:
                raise Unreadable(error, path) from None
            if pause_s is None:
                _gave_up = time.monotonic()
                raise Unreadable(error, path) from None
            time.sleep(pause_s)


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path.name} is damaged ({type(error).__name__})") from None
    if not isinstance(value, dict):
        raise Damaged(f"{path.name} is damaged (not an object)")
    return value


def read_torch(path: Path) -> dict[str, Any] | None:
    """Like read_json for tensors and plain containers; never runs code from the file."""
    import torch

    content = read_bytes(path)  # through memory, so that an error of the disk is not taken for one of the file
    if content is None:
        return None
    try:
        value = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen types for a broken file
        raise Damaged(f"{path.name} is damaged ({type(error).__name__})") from None
    if not isinstance(value, dict):
        raise Damaged(f"{path.name} is damaged (not an object)")
    return value


def read_result(folder: RunFolder, *, curve: bool = True) -> dict[str, Any] | None:
    """A valid result, None where there is none, Damaged where it is not this run's or has no finite headline number.

    Without its `curve` it is read 40 times as fast and checked as well: where the checksum holds, the curve is as it
    was written and need not be parsed to see that the file is whole; where it does not, the file is parsed.
    """
    text = read_bytes(folder.result)
    if text is None:
        return None
    result = None if curve else _head(text)
    if result is None:
        result = _parse(folder.result, text)
    if not curve:
        result.pop("curve", None)
    metrics = result.get("metrics")
    top1 = metrics.get("top1_last") if isinstance(metrics, dict) else None
    if result.get("run_id") != folder.run_id:
        raise Damaged(f'result.json belongs to another run ("{result.get("run_id")}")')
    if isinstance(top1, bool) or not isinstance(top1, (int, float)) or not 0 <= top1 <= 100:
        raise Damaged("result.json is damaged (no top1_last)")
    if result.get("schema", SCHEMA) != SCHEMA:
        raise Damaged(f"result.json is of schema {result['schema']!r}, not {SCHEMA}")
    for part in ("timing", "provenance"):
        if not isinstance(result.get(part, {}), dict):
            raise Damaged(f"result.json is damaged ({part} is not an object)")
    for name in ("train_s", "device_s"):
        seconds = result.get("timing", {}).get(name, 0.0)
        if not isinstance(seconds, (int, float)) or not 0 <= seconds < 1e12:
            raise Damaged(f"result.json is damaged ({name} is no time)")
    return result


def fingerprint(result: dict[str, Any]) -> dict[str, Any]:
    """What two trainings of one run hardly ever share: the test loss to its last digit, the curve with its times."""
    metrics = result.get("metrics")
    metrics = metrics if isinstance(metrics, dict) else {}
    return {
        **{name: metrics.get(name) for name in ("top1_last", "test_loss_last")},
        "curve_crc32": result.get("curve_crc32"),
    }


def _head(text: bytes) -> dict[str, Any] | None:
    """All of a result.json but its curve, where the curve's checksum holds."""
    begin = text.find(CURVE)
    try:
        head = json.loads(text[:begin].removesuffix(b",") + b"}") if begin > 0 else None
    except (ValueError, RecursionError):
        return None
    whole = isinstance(head, dict) and head.get("curve_crc32") == zlib.crc32(memoryview(text)[begin:])
    return head if whole else None


def weights_fault(folder: RunFolder) -> str | None:
    """Why a run cannot serve as a teacher yet, or None: it is done and its weights are there, as long as written.

    Unreadable where that cannot be told now.
    """
    try:
        result = read_result(folder, curve=False)
    except Damaged as damage:
        return str(damage)
    if result is None:
        return "not done"
    size = patiently(lambda: folder.weights.stat().st_size, folder.weights) or 0
    if size != result.get("provenance", {}).get("weights_bytes", size) or not size:
        return f"weights.pt is {'cut short' if size else 'missing'}"
    return None


def set_aside(path: Path, folder: Path | None = None) -> Path:
    """Move a file or folder out of the way and keep it: `x` becomes `x.aside-<n>`, in `folder` or where it was."""
    folder = folder or path.parent
    folder.mkdir(parents=True, exist_ok=True)
    n = 1
    while (aside := folder / f"{path.name}.aside-{n}").exists():
        n += 1
    os.replace(path, aside)
    return aside
