"""What the README says is run: its commands, its example of a new method, and the names it gives."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import methods
import reproduce
from bench import grid as grids
from bench import protocol as protocols
from bench.measure import calibration
from tests.jobs import cluster as slurms
from tests.jobs.results import essence
from zoo import architectures, build

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCS = README + "".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))
METHODS = (ROOT / "methods" / "README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.S)
LINES = [line.split("#")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]
SETUP = ["pip install -e . && python reproduce.py --grid quick", "pip install -e '.[test]' && pytest"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def python(line: str, *more: str) -> subprocess.CompletedProcess:
    """Run a README line with this interpreter, from the project's folder."""
    program, *arguments = shlex.split(line)
    assert program == "python"
    return subprocess.run(
        [sys.executable, *arguments, *more], cwd=ROOT, capture_output=True, text=True, env=ENVIRONMENT
    )


def test_set_up_lines_stand_as_promised():
    assert LINES[:2] == SETUP
    assert all(line.startswith("python ") for line in LINES[2:]) and len(LINES) > 8


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> Path:
    """The results of the main job of the first line, whole, after its `pip install`."""
    out = tmp_path_factory.mktemp("quick")
    done = python("python reproduce.py --grid quick", "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_quick_makes_a_table_with_every_teacher_above_its_student(quick):
    table = (quick / "table.md").read_text()

    def row(label):
        line = re.search(rf"^\| {label} .*$", table, re.M)[0]
        return [float(re.search(r"[\d.]+", cell)[0]) for cell in line.strip("| ").split("|")[1:]]

    teachers, students = row("Teacher"), row("Student")
    assert len(teachers) >= 2
    assert all(teacher > student for teacher, student in zip(teachers, students, strict=True)), table
    for kind in ("png", "pdf"):
        assert len(list((quick / "plots").glob(f"*.{kind}"))) >= 2
    # nothing is left to do, and the files alone tell so
    assert python("python reproduce.py --status", "--out", str(quick)).returncode == 0


def test_quick_through_slurm_gives_the_same_results(quick, tmp_path):
    """To the bit: metrics, curves and weights of runs of three methods, taken out of the folder and made by SLURM."""
    slurms.require()
    out = shutil.copytree(quick, tmp_path / "out")
    taken = [path for path in (out / "runs").iterdir() if path.name.partition("-")[0] in ("kd", "crd", "mlkd")]
    for path in taken:
        shutil.rmtree(path)
    (tmp_path / "cluster.yaml").write_text("gpus: 0\ncpus_per_task: 1\ntimeout_min: 60\nruns_per_job: 4\n")
    options = ["--executor", "slurm", "--cluster", str(tmp_path / "cluster.yaml"), "--wait", "--no-plots"]
    inside = f"python -m tests.jobs.cluster -- {shlex.quote(sys.executable)} reproduce.py --grid quick"
    done = python(inside, *options, "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    expected = essence(quick)
    assert len(taken) == 6 and len(expected) == 27 and essence(out) == expected


@pytest.mark.parametrize("line", [line for line in LINES[2:] if "reproduce.py" in line and "--grid" in line])
def test_grid_commands_are_understood(tmp_path, monkeypatch, capsys, line):
    monkeypatch.setattr(calibration, "CALIBRATION_S", 0.0)  # the time that the runs take is another test's matter
    arguments = shlex.split(line)[2:]
    assert reproduce.main([*arguments, "--out", str(tmp_path), *([] if "--dry-run" in line else ["--dry-run"])]) == 0
    assert "to do: " in capsys.readouterr().out


@pytest.mark.parametrize("line", [line for line in LINES[2:] if re.search("--(list|validate)", line)])
def test_commands_that_look_things_up(monkeypatch, capsys, line):
    monkeypatch.chdir(ROOT)
    assert reproduce.main(shlex.split(line)[2:]) == 0
    assert capsys.readouterr().out.count("\n") > 3


def test_evaluate_command(tmp_path):
    import torch

    line = next(line for line in LINES if "bench.evaluate" in line)
    line = line.replace("resnet56", "resnet20")  # a third of the time
    weights, data = tmp_path / "resnet20.pth", os.environ.get("CIFAR100_ROOT", str(tmp_path))
    if published := os.environ.get("KD_WEIGHTS"):
        weights = Path(published) / "streamlined" / "resnet20.pth"
    else:
        torch.save(build("resnet20").state_dict(), weights)
    said = python(line.replace("resnet20.pth", str(weights)).replace("DIR", data))
    if "CIFAR100_ROOT" in os.environ:
        assert said.returncode == 0 and "10,000 test images" in said.stdout
        if published:
            assert float(re.search(r"top-1 ([\d.]+)", said.stdout)[1]) == pytest.approx(66.09, abs=0.02)
    else:
        assert said.returncode == 2 and "cifar-100-python" in said.stderr


def test_example_method_is_one_file_and_a_row(tmp_path):
    """The example of methods/README.md, dropped into a copy of the project, is a row of `--grid quick`."""
    name, code = re.search(r"```python\n# (methods/\w+\.py)\n(.*?)```", METHODS, re.S).groups()
    assert len(code.strip().splitlines()) <= 25
    for part in ("bench", "jobs", "methods", "zoo"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "reproduce.py", tmp_path)
    (tmp_path / name).write_text(code)
    arguments = ["--only", "method=logit_mse", "--out", "out"]
    said = subprocess.run([sys.executable, "reproduce.py", "--grid", "quick", "--dry-run", *arguments], cwd=tmp_path,
                          capture_output=True, text=True, env=ENVIRONMENT)  # fmt: skip
    assert said.returncode == 0, said.stderr
    pairs = len(grids.load("quick").pairs)
    assert len(re.findall(r"^  missing +logit_mse-", said.stdout, re.M)) == pairs * len(
        grids._seeds(grids.load("quick").seeds)
    )


def test_tables_name_what_exists():
    for name in protocols.names():
        assert re.search(rf"^\| .*`{name}`.* \|", README, re.M)
    for name in methods.names():
        assert f"| `{name}` |" in DOCS
    for name in re.findall(r"--grid (\w[\w-]*)(?![\w./-])", DOCS):
        assert name in grids.names()
    assert all(re.fullmatch(r"[a-z0-9_]+", arch) for arch in architectures())


@pytest.mark.parametrize("name", [name for name in methods.names() if methods.get(name).uses_teacher])
def test_methods_are_listed_with_their_parameters(name):
    """Each has its formula, and every number that the two published protocols set stands in their columns."""
    _, formulas, parameters, *_ = METHODS.split("\n## ")
    assert len(re.findall(rf"^\| `{name}` \|", formulas, re.M)) == 1
    (row,) = (line for line in parameters.splitlines() if f"`{name}`" in line)
    _, standard, streamlined = row.strip("| ").split(" | ")
    for recipe, text in (("standard", standard), ("streamlined", f"{standard} {streamlined}")):
        said = {float(number) for number in re.findall(r"\d+(?:\.\d+)?(?:e-\d+)?", text)}
        entry = protocols.load(recipe).methods.get(name)
        if entry is None:
            assert (recipe, streamlined) == ("streamlined", "refused")
            continue
        for values in (entry.params, *entry.pairs.values(), entry.train):
            for key, value in values.items():
                ends = {value[0], value[-1]} if isinstance(value, list) else {value}
                assert {end for end in ends if not isinstance(end, str)} <= said, (recipe, key)


def test_links_lead_somewhere():
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
            assert link.startswith("https://") or (path.parent / link).exists(), (path.name, link)
    assert len(README.splitlines()) <= 120


def test_printed_tables_are_measured_ones():
    """Each row of results is in the table.md of a folder that README links."""
    folders = [ROOT / path for path in re.findall(r"\]\((results/measured/[\w-]+)/?\)", README)]
    measured = [line for folder in folders for line in (folder / "table.md").read_text().splitlines()]
    labels = "|".join(["Teacher", *(re.escape(methods.get(name).label) for name in methods.names())])
    printed = [line for line in README.splitlines() if re.match(rf"\| ({labels}) +\| +(\*\*)?\d\d\.\d\d", line)]
    assert all(line in measured for line in printed) and bool(printed) == bool(folders)
