"""What the project's commands share: exit statuses, and requests refused in one line."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

DONE, INCOMPLETE, BAD_REQUEST, STOPPED_EARLY = range(4)


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
