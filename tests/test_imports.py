"""The directions of imports, as pyproject.toml states them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("zoo", "methods", "bench", "jobs")


def lint(config: Path) -> subprocess.CompletedProcess:
    command = "import sys; from importlinter.cli import lint_imports_command; lint_imports_command()"
    arguments = ["--config", str(config), "--no-cache", "--no-logo"]
    return subprocess.run([sys.executable, "-c", command, *arguments], cwd=ROOT, capture_output=True, text=True)


def test_directions_are_kept():
    done = lint(ROOT / "pyproject.toml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(
    ("low", "high"), [("bench.report", "bench.training"), ("zoo", "methods"), ("bench.run", "bench.grid")]
)
def test_an_arrow_back_would_show(tmp_path, low, high):
    """The contracts can fail: turned round, they are broken."""
    text = (ROOT / "pyproject.toml").read_text()
    contracts = text[text.index("[tool.importlinter]") : text.index("[[tool.importlinter.contracts]]")]
    contracts += f'[[tool.importlinter.contracts]]\nname = "turned"\ntype = "layers"\nlayers = ["{low}", "{high}"]\n'
    (tmp_path / "pyproject.toml").write_text(contracts)
    assert ("0 broken" in lint(tmp_path / "pyproject.toml").stdout) == (low == "bench.report")


def test_nothing_imports_the_command_line():
    """`reproduce.py` is a file and no package, which the linter leaves out."""
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert len(files) > 80
    assert [path for path in files if re.search(r"^\s*(import|from) reproduce\b", path.read_text(), re.M)] == []


def test_each_wing_says_what_lives_there():
    wings = [path for package in ("bench", "jobs") for path in (ROOT / package).rglob("__init__.py")]
    assert len(wings) > 6
    assert [wing for wing in wings if not wing.read_text().startswith('"""')] == []
