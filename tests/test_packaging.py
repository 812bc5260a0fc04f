"""The wheel holds what git holds, and works where a person has folders and files that are called like ours."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests import tiny

ROOT = Path(__file__).parents[1]
OURS = ("bench", "jobs", "methods", "zoo")
# Python's own modules that the commands import late, and names that people give to their files.
THEIRS = ("results", "random", "queue", "signal", "statistics", "train", "utils")


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip("this is no checkout")
    return [name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tracked, tmp_path_factory) -> Path:
    """Built without a network, from a copy: building leaves folders in the source."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("wheel")
    for name in tracked:
        if not name.startswith("tests/"):
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    code = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, folder], cwd=folder / "source", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The programs of a fresh environment that has the wheel, and what it depends on from ours."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    programs = folder / "bin"
    ask = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    packages = Path(subprocess.check_output([programs / "python", "-c", ask], text=True).strip())
    (packages / "ours.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n{sysconfig.get_paths()['platlib']}\n")
    install = ["-m", "pip", "--python", programs / "python", "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run([sys.executable, *map(str, install)], check=True)
    return programs


@pytest.fixture
def theirs(tmp_path) -> Path:
    """A working directory full of names like ours, each of which would end the program that imports it."""
    for name in OURS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise SystemExit('not ours: {name}')\n")
    for name in THEIRS:
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('not ours: {name}.py')\n")
    tiny.write(tmp_path / "grids")
    return tmp_path


def call(folder: Path, *command: object, **variables: str) -> tuple[int, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env={**environment, "OMP_NUM_THREADS": "1", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


def test_the_wheel_holds_what_git_holds(tracked, wheel):
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert inside == {name for name in tracked if name.split("/")[0] in OURS or name == "reproduce.py"}
    assert len(inside) > 150


def test_from_grid_to_report_among_files_called_like_ours(installed, theirs):
    """Driver, workers and report; the folder is on PYTHONPATH as well."""
    options = ["--grid", "grids/grid.yaml", "--device", "cpu", "--slots", "1", "--no-plots"]
    status, said = call(theirs, installed / "kd-bench", *options, "--only", "method=kd")
    assert status == 0 and "[2/2]" in said, said
    (theirs / "also").mkdir()
    (theirs / "also" / "methods").symlink_to(theirs / "methods")
    for command in (["--report", "--no-plots"], ["--status"], ["--list", "methods"]):
        status, said = call(theirs, installed / "kd-bench", *command, PYTHONPATH=str(theirs / "also"))
        assert status == (command[0] != "--list"), said  # FitNet was left out: some are missing
    status, said = call(theirs, installed / "kd-bench", "--report", "--out", "elsewhere")
    assert status == 2 and said.startswith('error: --out "elsewhere": there is no such folder: run a grid first (kd-b')


def test_commands_among_files_called_like_ours(installed, theirs):
    """`python -m` looks into the working directory first, which only a folder of the command's own name can win."""
    shutil.rmtree(theirs / "bench")
    assert call(theirs, installed / "python", "-m", "bench.power", "--help")[0] == 0
    shutil.rmtree(theirs / "jobs")
    status, said = call(theirs, installed / "python", "-m", "jobs.pack", "results", "x.tar")
    assert status == 2 and "has no runs/" in said, said


def test_a_checkout_is_found_without_the_working_directory(theirs):
    status, said = call(theirs, sys.executable, ROOT / "reproduce.py", "--list", "grids", PYTHONSAFEPATH="1")
    assert status == 0, said
