"""The mark of a failed run, `error.json`: written by its worker, or in its place where that died too often."""

from __future__ import annotations

import contextlib
import datetime
import socket
from pathlib import Path

from bench import store


def record_failure(folder: store.RunFolder, message: str, details: str) -> None:
    """Mark a run as failed; where even that cannot be written the run counts as interrupted."""
    record = {
        "run_id": folder.run_id,
        "message": message,
        "details": details,
        "host": socket.gethostname(),
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    with contextlib.suppress(OSError):
        store.write_json(folder.error, record)


def tail_of(path: Path, lines: int = 30) -> str:
    """The last lines of a log."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
