"""`--list`: what is listed is what there is, read without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import methods
import reproduce
import zoo
from bench import datasets, listing
from bench import grid as grids
from bench import protocol as protocols
from bench.surroundings import sources

ROOT = Path(__file__).parents[2]


def first_words(text: str) -> set[str]:
    table = text.split("\n\n")[0]
    return {line.split()[0] for line in table.splitlines()[2:] if not line.startswith(" ")}


def test_methods_are_those_of_the_registry():
    found = listing.methods_in_files(sources.read())
    assert [one["name"] for one in found] == list(methods.names())  # in table order
    for one in found:
        cls = methods.get(one["name"])
        for name in ("label", "group", "row", "in_all", "uses_teacher"):
            assert one[name] == getattr(cls, name), (one["name"], name)
        assert one["about"].endswith(".") and not one["about"].startswith(cls.label + ":")


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("grids", grids.names()),
        ("protocols", protocols.names()),
        ("data", datasets.ENTRIES),
        ("architectures", zoo.architectures()),
        ("methods", [*methods.names(), *protocols.load("standard").rows]),
        ("pairs", {"-".join(pair) for pair in grids.expand(grids.load("full")).pairs}),
    ],
)
def test_everything_is_listed_with_a_line(what, names, monkeypatch):
    monkeypatch.setenv("CIFAR100_ROOT", "/data")  # a long path is not cut
    said = listing.show(what, width=100)
    assert first_words(said) >= set(names) and (what == "pairs" or first_words(said) == set(names))
    assert all(len(line) <= 100 for line in said.splitlines())


def test_no_list_is_the_list_of_lists():
    assert all(f"--list {name} " in listing.show("") for name in listing.WHAT)


def test_what_the_grids_say():
    said = listing.show("grids", width=200)
    full = next(line for line in said.splitlines() if line.startswith("full "))
    made = grids.expand(grids.load("full"))
    rows = {cell.label for cell in made.cells if cell.role != "teacher"}
    assert f"{len(rows)} x {len(made.pairs)} x 3" in full and "streamlined" in full and "cifar100" in full


def test_weights_that_a_grid_needs(monkeypatch, tmp_path):
    monkeypatch.delenv("KD_WEIGHTS", raising=False)
    assert "(not here: KD_WEIGHTS is not set)" in listing.show("grids", width=300)
    (tmp_path / "sskd").mkdir()
    monkeypatch.setenv("KD_WEIGHTS", str(tmp_path))
    assert "resnet56.pth (not here)" in listing.show("grids", width=300)
    (tmp_path / "sskd" / "resnet56.pth").write_bytes(b"")
    assert "resnet56.pth (found)" in listing.show("grids", width=300)


def test_where_data_are_looked_for(monkeypatch, tmp_path):
    for entry in datasets.ENTRIES.values():
        if entry.variable:
            monkeypatch.delenv(entry.variable, raising=False)
    assert "set CIFAR10_ROOT" in listing.place("cifar10", tmp_path)
    assert listing.place("image-folder", None) == "not here: give --data DIR or set IMAGE_FOLDER_ROOT"
    (tmp_path / "cifar-10-batches-py").mkdir()
    assert listing.place("cifar10", tmp_path) == f"found: {tmp_path / 'cifar-10-batches-py'}"
    monkeypatch.setenv("CIFAR10_ROOT", str(tmp_path))
    assert listing.place("cifar10", None) == f"found: {tmp_path / 'cifar-10-batches-py'}"
    (tmp_path / "tiny-imagenet-200.zip").write_bytes(b"")
    assert listing.place("tiny-imagenet-200", tmp_path).startswith("found, packed: ")
    (tmp_path / "train").mkdir()
    assert listing.place("image-folder", tmp_path) == f"found: {tmp_path}"


def test_a_wrong_name_gets_one_line(capsys):
    assert reproduce.main(["--list", "metods"]) == 2
    assert 'did you mean "methods"' in capsys.readouterr().err


def test_it_is_said_without_torch():
    code = (
        "import sys\nfrom bench import listing\n"
        "for what in ('', 'grids', 'protocols', 'methods', 'pairs', 'data'): assert listing.show(what)\n"
        "assert not {'torch', 'pandas'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
