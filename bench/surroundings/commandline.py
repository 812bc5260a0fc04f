"""What the project's commands share: exit statuses, requests refused in one line, output that may be lost."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import shlex
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

DONE, INCOMPLETE, BAD_REQUEST, STOPPED_EARLY = range(4)
# What to do about an error of the system, by its kind; what is not named here may pass by itself.
REMEDIES = {
    (errno.ENOSPC, errno.EDQUOT): "make room there, or give another folder",
    (errno.EROFS, errno.ENAMETOOLONG): "give another folder",
    (errno.EACCES, errno.EPERM): "you need rights there, or another folder",
    (errno.EMFILE, errno.ENFILE): "too many files are open at once: raise `ulimit -n`",
    (errno.ENOMEM,): "the machine is out of memory: end other programs",
}
FULL = (errno.ENOSPC, errno.EDQUOT)


def program() -> str:
    """How a person calls the project's main command: as this process was started, where it is that command.

    Elsewhere, in a test or another of the project's commands, the name that an installation gives it.
    """
    started = sys.argv[0] if sys.argv else ""
    return f"python {shlex.quote(started)}" if os.path.basename(started) == "reproduce.py" else "kd-bench"


def counted(number: int, thing: str) -> str:
    """A number of things in words: "1 run", "1,000 runs"."""
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


class Narrow(argparse.RawDescriptionHelpFormatter):
    """Help that reads well at 80 columns and is the same on any terminal."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=24, width=80)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        words = super()._format_args(action, default_metavar)
        return f"{words.split()[0]} ..." if action.nargs == "+" else words  # and not `A [A ...]`, twice as long


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that takes whole option names only and answers a wrong call with one line."""

    def __init__(self, **options: object) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_REQUEST, f"error: {' '.join(message.split())} (see {self.prog} --help)\n")


def refuse(message: str) -> int:
    """Say in one line what cannot be done."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return BAD_REQUEST


def note(message: str) -> None:
    """Say in one line what went wrong beside the work, which goes on."""
    print(f"note: {' '.join(message.split())}", file=sys.stderr)


def explain(error: OSError, path: object = "") -> str:
    """An error of the system in one line: what, where, and what to do about it. `path`: where it does not say."""
    remedy = next(
        (words for kinds, words in REMEDIES.items() if error.errno in kinds), "try again, or look at its disk"
    )
    where = error.filename or path
    return f"{error.strerror or error}{f': {where}' if where else ''}; {remedy}"


class Output:
    """A stream that costs no more than what it shows: a line that cannot be written is lost, and nothing else is.

    `lost` is the first error. A disk that is full may have room again, so writing goes on; what else goes wrong, a
    reader or a terminal that left, does not come back, and further output goes nowhere.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.lost: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def end(self) -> None:
        """Write what is left; where that fails nothing is left for Python to fail with when it ends."""
        self.flush()
        if self.lost:
            self._leave()

    def _try(self, do: Any) -> None:
        try:
            do()
        except OSError as error:
            self.lost = self.lost or error
            if error.errno not in FULL:
                self._leave()
        except (ValueError, RuntimeError):
            pass  # closed; or a signal's handler writes where it has interrupted writing

    def _leave(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            self._stream.flush()


@contextlib.contextmanager
def lasting_output() -> Iterator[Output]:
    """Let standard output and error be lost without harm (`Output`); gives that of standard output."""
    for descriptor in range(3):  # a closed one would be given to the next file that is opened
        try:
            os.fstat(descriptor)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != descriptor:
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
    kept = sys.stdout, sys.stderr
    streams = [Output(open(os.devnull, "w") if stream is None else stream) for stream in kept]
    for stream in streams:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that knows no arrow must not cost hours of work
    sys.stdout, sys.stderr = streams
    try:
        yield streams[0]
    finally:
        for stream in streams:
            stream.end()
        sys.stdout, sys.stderr = kept
