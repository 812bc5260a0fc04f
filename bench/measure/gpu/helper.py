"""A process of its own that answers one request after another, and that may hang or die without harm."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

PATIENCE_S = 5.0  # for a process to end that was asked to


class Gone(Exception):
    """The process is no more; the message says why."""


class Helper:
    """Runs `serve(connection, *given)` in a fresh Python. `serve` must be a function of a module."""

    def __init__(self, serve: Callable[..., None], *given: Any) -> None:
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        self.ours, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, *given))
        self.process.start()
        theirs.close()

    def send(self, request: Any) -> None:
        """Ask for something; Gone where nobody listens."""
        try:
            self.ours.send(request)
        except OSError:
            raise Gone(self._end()) from None

    def receive(self, seconds: float) -> Any:
        """The answer; Gone where the process died or the seconds are over, and then the process is, too."""
        try:
            if self.ours.poll(max(0.0, seconds)):
                return self.ours.recv()
            why = f"killed: no answer in {seconds:.0f} s"
        except (EOFError, OSError):
            why = ""
        raise Gone(self._end(why))

    def close(self) -> None:
        """End the process: it sees the connection close; what does not listen is killed."""
        self.ours.close()
        self.process.join(PATIENCE_S)
        self._end()

    def _end(self, why: str = "") -> str:
        """Kill what is left of the process; returns why it is gone."""
        if not why:
            self.process.join(PATIENCE_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        return why or f"died (exit status {self.process.exitcode})"


def requests(connection: Connection):
    """What is asked of this process, until nobody is left to ask."""
    while True:
        try:
            yield connection.recv()
        except (EOFError, OSError):
            return
