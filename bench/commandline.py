"""What the project's commands share: arguments refused in one line, with exit status 2."""

from __future__ import annotations

import argparse
from typing import NoReturn

BAD_REQUEST = 2


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that takes whole option names only and answers a wrong call with one line."""

    def __init__(self, **options: object) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_REQUEST, f"error: {' '.join(message.split())} (see {self.prog} --help)\n")
