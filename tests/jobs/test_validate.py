"""`--validate`: which kind a file is, all of its faults at once, and what a right one comes to."""

from __future__ import annotations

from pathlib import Path

import pytest

import reproduce
from bench import gridfile
from bench import protocol as protocols
from jobs.slurm import cluster
from tests import tiny

PROTOCOL = "extends: standard\nname: mine\nversion: 1\nabout: x\nsources: y\n"
GRID = "name: mine\nabout: x\nprotocol: standard\npairs: [resnet56-resnet20]\nmethods: [kd, dkd]\nseeds: 3\n"


def check(path: Path, text: str | None, capsys, *more: str) -> tuple[int, str, list[str]]:
    """The exit status, what is printed, and the lines of faults, for a file with that text."""
    if text is not None:
        path.write_text(text)
    before = sorted(path.parent.rglob("*"))
    status = reproduce.main(["--validate", str(path), *more])
    said = capsys.readouterr()
    assert sorted(path.parent.rglob("*")) == before
    return status, said.out, said.err.splitlines()


@pytest.mark.parametrize(
    ("folder", "kind"), [(gridfile.FOLDER, "grid"), (protocols.FOLDER, "protocol"), (cluster.FOLDER, "cluster file")]
)
def test_files_of_the_project_are_right(folder, kind, capsys, monkeypatch, tmp_path):
    paths = [path for path in sorted(folder.glob("*.yaml")) if "KD_WEIGHTS" not in path.read_text()]
    assert paths
    for path in paths:
        assert reproduce.main(["--validate", str(path)]) == 0, path
        assert capsys.readouterr().out.startswith(f"{path} is a {kind}: ")


def test_what_a_grid_comes_to(tmp_path, capsys):
    status, said, faults = check(tmp_path / "g.yaml", GRID, capsys)
    assert status == 0 and not faults
    # kd, dkd and the Student row with three seeds, one teacher
    assert "3 rows x 1 pair x 3 seeds: 10 runs (1 teacher)" in said and "kd-bench --grid" in said
    _, said, _ = check(tmp_path / "g.yaml", GRID, capsys, "--seeds", "1", "--protocol", "quick")
    assert "x 1 seed: 4 runs" in said and "Embedded images" in said
    assert "g.yaml --protocol quick --seeds 0, --dry-run" in said  # asks for the same runs


def test_all_lines_comments_is_a_cluster_file_that_leaves_every_key_out(tmp_path, capsys):
    status, said, _ = check(tmp_path / "file.yaml", "# partition: gpu\n", capsys)
    assert status == 0 and "is a cluster file: a job has 1 GPU, 2 cores" in said


@pytest.mark.parametrize(
    ("text", "kind", "faults"),
    [
        (
            GRID.replace("pairs:", "pair:").replace("seeds: 3", "seeds: none").replace("about: x", "abot: x"),
            "grid",
            ['did you mean "pairs"', 'did you mean "about"', '"seeds": give a count'],
        ),
        (
            GRID.replace("resnet56-resnet20", "resnet57-resnet20, vgg13-vgg9").replace("dkd]", "ddk]"),
            "grid",
            ['architecture "resnet57"', 'architecture "vgg9"', '"ddk"'],
        ),
        (
            f"{PROTOCOL}train: {{epochs: 1e2, lr: fast, batches: 3}}\n",
            "protocol",
            ["train.batches", "train.epochs", "train.lr"],
        ),
        (
            f"{PROTOCOL}methods: {{kd: {{params: {{temperatur: 3.0}}}}, dkd: {{params: {{alpha: -1.0}}}}}}\n",
            "protocol",
            ['"temperatur": did you mean "temperature"', '"alpha": input should be greater'],
        ),
        (
            f"{PROTOCOL}methods: {{mine: {{params: {{}}}}}}\n",
            "protocol",
            ["of your own needs a grid that brings it, in its methods"],
        ),
        (
            "partition: gpu\ncpus_per_task: many\nclasses: [{match: {method: teacher}, mem_gb: -3}]\n",
            "cluster file",
            ["classes.0.mem_gb", "cpus_per_task"],
        ),
        ("partition: gpu\nwalltime: 60\nmem_gb: lots\n", "cluster file", ["write timeout_min: 60", '"mem_gb"']),
    ],
)
def test_all_faults_at_once(tmp_path, capsys, text, kind, faults):
    path = tmp_path / "file.yaml"
    status, said, lines = check(path, text, capsys)
    assert status == 2
    assert said.startswith(f"{path} is taken for a {kind}; {len(faults)} fault"), lines
    assert len(lines) == len(faults) and all(line.startswith("error: ") for line in lines)
    for fault in faults:
        assert sum(fault in line for line in lines) == 1, (fault, lines)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("x.yaml", "a: 3\n", "none of its keys (a)"),
        ("x.yaml", "name: mine\nabout: x\n", "as many of a grid as of a protocol"),
        ("x.yaml", "- 1\n", "not keys and values"),
        ("x.yaml", None, "No such file"),
        ("quick", None, "ends in .yaml"),
    ],
)
def test_what_is_no_such_file(tmp_path, capsys, name, text, says):
    status, _, lines = check(tmp_path / name, text, capsys)
    assert status == 2 and len(lines) == 1 and says in lines[0]


def test_a_protocol_for_a_folder_that_is_not_here(tmp_path, capsys, monkeypatch):
    """Its recipe can be checked all the same."""
    monkeypatch.delenv("IMAGE_FOLDER_ROOT", raising=False)
    data = "data: {dataset: image-folder, side: 64, validation: 100}\n"
    status, said, _ = check(tmp_path / "p.yaml", PROTOCOL + data, capsys)
    assert status == 0 and "not here: give --data DIR or set IMAGE_FOLDER_ROOT" in said


def test_a_grid_with_its_own_protocol(tmp_path, capsys):
    status, said, faults = check(tiny.write(tmp_path), None, capsys)
    assert status == 0 and not faults and 'under protocol "tiny" v1' in said
