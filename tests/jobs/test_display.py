"""How the live display looks, in consoles of fixed size: what it says, and that it fits."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re

import pytest
from rich.console import Console

from jobs import display
from jobs.view import Row, View

METHODS = ("KD", "DKD", "FitNet", "RKD", "ReviewKD", "SKD")
ROWS = (
    Row("resnet32x4 → resnet8x4", "s0", METHODS, 0.52, "124.4/240", "71.2–75.9", "1,234", "3h05m"),
    Row("wrn_40_2", "s11", ("Teacher",), 0.0, "starting"),
    Row("resnet56 → resnet20", "s2", ("KD", "SKD"), 0.1, "24.0/240", "40.1", "980", "no step 6m40s"),
)


def view(rows=ROWS, **more) -> View:
    said = {
        "title": 'grid "full", protocol "streamlined" v1, in results',
        "counts": {"done": 12, "failed": 1, "running": 9, "waiting": 218},
        "elapsed": "1h12m",
        "left": "about 2d4h",
        "left_short": "2d4h",
        "fraction": 0.2,
        "rows": rows,
    }
    return View(**{**said, **more})


def drawn(view: View, width: int = 80, height: int = 24, encoding: str = "utf-8") -> list[str]:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=width, height=height, color_system=None, legacy_windows=False)
    console.print(display.render(view, width, height, ascii_only=encoding != "utf-8"))
    file.flush()
    return file.buffer.getvalue().decode(encoding).splitlines()


def filled(line: str) -> float:
    """How much of a line's bar is full, as it is drawn without colours: the rest is blank."""
    return len(re.findall("[━╸]", line))


def test_what_it_says():
    blank, title, counts, headings, *rows, last = drawn(view(), 100)
    assert not blank.strip() and title.rstrip() == 'grid "full", protocol "streamlined" v1, in results'
    assert counts.split("   ") == ["12 done, 1 failed, 9 running, 218 waiting", "1h12m so far, about 2d4h left"]
    assert headings.split() == ["pair", "seed", "methods", "epoch", "top-1", "images/s", "left"]
    assert len(rows) == 3
    assert rows[0].startswith("resnet32x4 → resnet8x4 s0") and rows[0].rstrip().endswith("3h05m")
    assert "124.4/240" in rows[0] and "71.2–75.9" in rows[0] and re.search(r"6 runs|KD.* \+\d", rows[0])
    assert "wrn_40_2" in rows[1] and "Teacher" in rows[1] and "starting" in rows[1]
    assert rows[2].rstrip().endswith("no step 6m40s") and " 40.1 " in rows[2]
    assert last.startswith("12 of 240 runs") and " 20 %" in last and last.rstrip().endswith("2d4h")


def test_bars_are_as_full_as_runs_are_through():
    wide = drawn(view([Row("a", "s0", ("KD",), part / 10, "1/9") for part in range(11)], fraction=0.5), 160)[4:]
    lengths = [filled(line) for line in wide]
    assert lengths[0] == 0 and lengths[10] == display.MOST_BAR
    assert all(length == pytest.approx(part / 10 * display.MOST_BAR, abs=1) for part, length in enumerate(lengths[:11]))
    assert lengths[11] == lengths[5]


def test_a_wide_terminal_has_every_method_and_the_speed():
    lines = drawn(view(), 160)
    assert "images/s" in lines[3] and "1,234" in lines[4]
    assert "KD, DKD, FitNet, RKD, ReviewKD, SKD" in lines[4] and "KD, SKD" in lines[6]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 132])
def test_it_fits_any_terminal(width):
    for height, count in itertools.product([6, 10, 24], [0, 1, 3, 19, 40]):
        rows = [Row(f"resnet32x4 → resnet{n}", f"s{n}", METHODS, 0.5, "1.5/9", "1.0", "9", "8s") for n in range(count)]
        lines = drawn(view(rows), width, height)
        assert len(lines) <= height and all(len(line) <= width for line in lines)
        assert any("of 240" in line for line in lines) or width < 30
        shown = sum(" 8s" in line for line in lines)
        more = [int(found[1]) for line in lines if (found := re.search(r"and (\d+) m", line))]
        assert (shown == count and not more) or shown + more[0] == count or width < 30, lines
        assert shown >= min(count, 3) or height < 10


def test_a_terminal_that_knows_no_more_than_ascii():
    lines = drawn(view(), 100, encoding="ascii")
    assert "resnet32x4 -> resnet8x4" in lines[4] and "71.2-75.9" in lines[4] and "--" in lines[4]
    assert "?" not in "".join(lines)


def test_before_anything_is_known():
    lines = drawn(view([], left="", left_short="", fraction=0.0))
    assert "left" not in "".join(lines) and lines[2].rstrip().endswith("1h12m so far")
    assert lines[-1].startswith("12 of 240 runs")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@contextlib.contextmanager
def screen():
    """A display on a terminal of this test, and what was written to it."""
    with pytest.MonkeyPatch.context() as patch:
        terminal = Terminal()
        patch.setattr("sys.stdout", terminal)
        patch.setattr("sys.stderr", terminal)
        for name, value in {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"}.items():
            patch.setenv(name, value)
        made = display.Screen()
        made.start()
        try:
            yield made, terminal
        finally:
            made.stop()


def test_what_workers_say_goes_above_in_whole_lines():
    with screen() as (made, terminal):
        made.show(view())
        os.write(made.stderr, b"a warning of a library\nhalf a li")
        made.show(view())
        assert "a warning of a library\n" in terminal.getvalue() and "half" not in terminal.getvalue()
        os.write(made.stderr, b"ne")
        made.stop()
        assert "half a line\n" in terminal.getvalue()


def test_the_cursor_is_never_hidden_and_what_is_printed_is_no_markup():
    with screen() as (made, terminal):
        made.show(view())
        made.line("[1/2] run [bold]x[/bold]  done :smile:")
        print("printed by somebody else")
    said = terminal.getvalue()
    assert "[1/2] run [bold]x[/bold]  done :smile:" in said and "printed by somebody else" in said
    assert "\x1b[?25l" not in said
