"""Who is doing a run: at most one live process, on a local disk and on a network file system, without file locks.

A claim is a file made with `link`, which is atomic everywhere and fails if the name exists. Taking over a dead
claim makes the next generation (`claim.json`, `claim.1.json`, ...), so of two that try exactly one succeeds, and a
claimant that was only asleep sees a higher generation and gives up.

Some disks know no `link`: exFAT, many that are mounted over FUSE (Google Drive, gcsfuse, rclone), shared folders of
virtual machines. There the file is made by open with O_EXCL and filled afterwards, and a claim that is empty counts as
held for as long as DAMAGED_S. That is as good on one computer. Between two it is as good as the disk: one that keeps
files of its own and sends them on later, as Google Drive does, may let both have a run. Either then sees at its next
look that the claim is not its own any more, and the later one keeps it: work is lost, no result is.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.store import patiently

FIRST_HEARTBEAT_S, HEARTBEAT_S = 1.0, 10.0  # after each beat the next is twice as long in coming, up to HEARTBEAT_S
HUNG_S = 900.0  # without a step: longer than any start, data set, first step or batch of an evaluation takes
TEXTS = ("device", "gpu")  # in a claim's progress; everything else in it is a number
STALE_S = 180.0  # without a heartbeat, for a claimant whose process cannot be looked at (another host)
DAMAGED_S = 3 * HEARTBEAT_S  # without one, for a claim that says nothing
# How disks say that they know no hard links (link(2)); others have been seen to say so by EACCES, or EIO.
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EINVAL, errno.ENOTTY)
ODD_NO_LINKS = (errno.EACCES, errno.EIO, errno.EXDEV)


class ClaimLost(Exception):
    """Another process took this run over; what it finds in the folder is its own from now on."""


@dataclass(frozen=True)
class Holder:
    """What the newest claim of a run says, and whether its process lives."""

    generation: int
    alive: bool
    host: str
    pid: int
    progress: dict[str, Any]


@dataclass
class Claim:
    """A held claim. `beat` keeps it alive (a thread calls it), `check` raises ClaimLost, `release` gives it up."""

    folder: Path
    generation: int
    me: dict[str, Any]
    progress: dict[str, Any] = field(default_factory=dict)
    _done: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)  # a beat may not write what a release removes

    def beat(self) -> None:
        """Write the heartbeat with the progress so far."""
        with self._lock:
            if self._done.is_set():
                return
            self.check()
            _replace(_path(self.folder, self.generation), {**self.me, "progress": self.progress})

    def check(self) -> None:
        """Raise ClaimLost where the newest claim is another's. One that says nothing is ours: we write it anew."""
        newest = patiently(lambda: _newest(self.folder), self.folder)
        if newest != self.generation or not self._ours():
            raise ClaimLost(f"{self.folder.name} was taken over by another process")

    def _ours(self) -> bool:
        try:
            said = json.loads(_path(self.folder, self.generation).read_bytes())
        except (OSError, ValueError):
            return True
        return not isinstance(said, dict) or said.get("token", self.me["token"]) == self.me["token"]

    def keep_alive(self, measure: Callable[[], dict[str, Any]] | None = None) -> threading.Thread:
        """Start the thread that beats until release, each time with the progress that `measure` gives.

        It beats as long as the process lives, also when the run hangs: only progress tells the two apart. A full disk
        or a lost claim ends the beating, not the process.
        """

        def run() -> None:
            pause_s = min(FIRST_HEARTBEAT_S, HEARTBEAT_S)
            while not self._done.wait(pause_s):
                pause_s = min(2 * pause_s, HEARTBEAT_S)
                try:
                    if measure:
                        self.progress = measure()
                    self.beat()
                except ClaimLost:
                    return
                except OSError:
                    continue  # the disk may be free again at the next beat

        thread = threading.Thread(target=run, name="heartbeat", daemon=True)
        thread.start()
        return thread

    def release(self) -> None:
        """Remove all generations, our own last: as long as it stands, nobody starts over at a lower one."""
        with self._lock:
            self._done.set()
            if patiently(lambda: _newest(self.folder), self.folder) != self.generation or not self._ours():
                return
            for generation in range(self.generation + 1):
                _path(self.folder, generation).unlink(missing_ok=True)


@dataclass
class Watch:
    """Tells a run that goes on from one that hangs, by what its claims say from look to look.

    Its worker beats in both cases, and in neither when it was stopped; only steps are progress.
    """

    _mark: tuple[object, ...] | None = None
    _still_s: float = 0.0
    _looked: float = field(default_factory=time.monotonic)

    def still_s(self, folder: Path, most_s: float) -> float:
        """For how long no step was seen. Between two looks at most `most_s` counts, as who looks may have slept."""
        now = time.monotonic()
        try:
            holder = read(folder)
        except OSError:  # nothing is to be seen now: neither that it moves nor that it does not
            self._looked = now
            return self._still_s
        mark = (holder.generation, holder.pid, holder.progress.get("ticks")) if holder else None
        self._still_s = self._still_s + min(now - self._looked, most_s) if mark == self._mark else 0.0
        self._mark, self._looked = mark, now
        return self._still_s


def acquire(folder: Path) -> Claim | None:
    """Claim a run folder (made if missing); None while another live process holds it. OSError where that fails."""
    folder.mkdir(parents=True, exist_ok=True)
    holder = read(folder)
    if holder and holder.alive:
        return None
    # How far the dead one came stands until there is something newer to say.
    claim = Claim(folder, holder.generation + 1 if holder else 0, _identity(), holder.progress if holder else {})
    temporary = folder / f".claim.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    try:
        temporary.write_text(json.dumps({**claim.me, "progress": claim.progress}))
        return claim if _put(temporary, _path(folder, claim.generation)) else None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _put(temporary: Path, path: Path) -> bool:
    """Give a file its name where nobody has it yet, and say whether it is there."""
    try:
        os.link(temporary, path)
        return True
    except FileExistsError:
        return _same_file(temporary, path)
    except OSError as error:
        if error.errno not in (*NO_LINKS, *ODD_NO_LINKS):
            raise
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except FileExistsError:
        return False
    try:
        os.replace(temporary, path)  # the name is ours: whole at once for who looks
    except OSError:
        with contextlib.suppress(OSError):
            path.unlink()
        raise
    return True


def links_fault(folder: Path) -> str | None:
    """How the disk of a folder says that it knows no hard links; None where it does. OSError where it takes no file."""
    one, other = (folder / f".link.{os.getpid()}.{secrets.token_hex(4)}.tmp" for _ in range(2))
    try:
        one.touch()
        os.link(one, other)
    except OSError as error:
        if one.exists() and error.errno in (*NO_LINKS, *ODD_NO_LINKS):
            return error.strerror
        raise
    finally:
        for path in (one, other):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
    return None


def read(folder: Path) -> Holder | None:
    """The newest claim on a run, or None. OSError where the folder cannot be looked at."""
    generation, gone = _newest(folder), None
    while generation is not None:
        path = _path(folder, generation)
        try:
            said = json.loads(path.read_bytes())
            alive = _alive(said, path)
            return Holder(generation, alive, str(said["host"]), int(said["pid"]), _checked(said.get("progress")))
        except FileNotFoundError:
            if path.is_symlink():
                return Holder(generation, False, "?", 0, {})
            if generation == gone:  # a network disk may list for half a minute what another host has removed
                return None
            generation, gone = _newest(folder), generation  # released or taken over while we looked
        except OSError:  # another user's, or a disk that is away: only its age tells
            return Holder(generation, _younger(path, STALE_S), "?", 0, {})
        except (ValueError, KeyError, TypeError):
            # Damaged, or half seen on a network disk; who lives writes it anew at the next beat.
            return Holder(generation, _younger(path, DAMAGED_S), "?", 0, {})
    return None


def _checked(progress: object) -> dict[str, Any]:
    """Progress without what is not of its kind: it is for showing, and who shows it need not ask again."""
    items = progress.items() if isinstance(progress, dict) else ()
    return {
        name: value
        for name, value in items
        if (isinstance(value, str) if name in TEXTS else isinstance(value, (int, float)) and abs(value) < 1e15)
    }


def _identity() -> dict[str, Any]:
    pid = os.getpid()
    place = {"host": socket.gethostname(), "boot": _boot(), "pid": pid, "started": _started(pid)}
    return {**place, "token": secrets.token_hex(8)}  # of this claim and no other


def _alive(said: dict[str, Any], path: Path) -> bool:
    if said["host"] == socket.gethostname() and said["boot"] == _boot():
        started = _started(said["pid"])
        return started is not None and started == said["started"]
    return _younger(path, STALE_S)


def _boot() -> str:
    """Names this boot and process-number space: two containers may share a host name, never both of these."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + " " + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """When a process started, so that a reused process number is not taken for it; None if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    except (OSError, IndexError):
        pass
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return ""


def _younger(path: Path, than_s: float) -> bool:
    """Whether a file is written anew from time to time, by the disk's own clock: those of two hosts need not agree."""
    probe = path.with_name(f".clock.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        probe.touch()
        now = probe.stat().st_mtime
    except OSError:
        now = time.time()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
    try:
        return abs(now - path.stat().st_mtime) < than_s  # from the future: that clock was set back since
    except OSError:
        return True  # just being written anew, or gone: to be looked at again


def _path(folder: Path, generation: int) -> Path:
    return folder / (f"claim.{generation}.json" if generation else "claim.json")


def _newest(folder: Path) -> int | None:
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return None
    found = [re.fullmatch(r"claim(?:\.(\d+))?\.json", name) for name in names]
    return max((int(match[1] or 0) for match in found if match), default=None)


def _same_file(one: Path, other: Path) -> bool:
    """Whether a link is there although making it failed: NFS asks again where an answer was lost (open(2), O_EXCL)."""
    try:
        return one.samefile(other)
    except OSError:
        return False


def _replace(path: Path, value: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        temporary.write_text(json.dumps(value))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
