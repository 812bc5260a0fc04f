"""What counts as a method's source, and what is said of results of another one."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import methods
from bench import store
from bench.cells import Cell, TableSpec
from bench.surroundings import provenance, sources

FILES = sources.read()
NOW = sources.of_methods(FILES)
# Those that import the loss of KD, as their own or to add it.
LOSS_OF_KD = {"kd", "skd", "skd_paper", "ctkd"}
LOSS_OF_KD |= {"at", "cat_kd", "crd", "fitnet", "ofd", "pkt", "reviewkd", "rkd", "sp", "vid"}


def changed(module: str, old: str, new: str) -> set[str]:
    """Methods whose digest a change of a file changes."""
    text = FILES[module].decode()
    assert text.count(old) >= 1
    then = sources.of_methods({**FILES, module: text.replace(old, new, 1).encode()})
    return {name for name, source in NOW.items() if then[name].digest != source.digest}


@pytest.mark.parametrize(
    ("module", "old", "new", "which"),
    [
        ("kd", '"ce": p.ce_weight', '"ce": 5 * p.ce_weight', {"kd"}),
        ("kd", "* temperature**2", "* temperature**3", LOSS_OF_KD),
        ("kd", "kl_div, log_softmax", "kl_div, softmax as log_softmax", LOSS_OF_KD),
        ("dkd", "others >= labels", "others > labels", {"dkd", "nkd", "sdd"}),  # a helper of what they import
        ("contract", "max=1.0", "max=2.0", set(NOW)),
        ("contract", "_REGISTRY: dict", "torch.manual_seed(3)\n_REGISTRY: dict", set(NOW)),  # done at import
        ("kd", "Weights 0.1 / 0.9", "Weights", set()),
        ("kd", 'label = "KD"', 'label = (  # what is printed\n        "KD"\n    )', set()),
        ("kd", "kl_div, log_softmax", "log_softmax, kl_div", set()),
        ("settings", "expected keys and values", "keys and values are expected", set()),  # no method uses it
    ],
)
def test_what_counts(module, old, new, which):
    assert changed(module, old, new) == which


def test_every_method_has_a_source_and_torch_is_not_needed():
    assert set(NOW) == set(methods.names()) and sources.today() == NOW
    code = "import sys; from bench.surroundings import sources; assert sources.today() and 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3]).returncode == 0


def test_trees_are_written_without_what_versions_of_python_add():
    def tree(text: str) -> str:
        return sources.written(ast.parse(text).body[0])

    function = ast.parse("def f(): pass").body[0]
    function.type_params = []  # from Python 3.12 on
    assert sources.written(function) == tree("def f():\n    pass")
    assert tree("f(None)") != tree("f()") and tree("x = 1") != tree("x = True") != tree("x = 1.0")
    assert tree('def f():\n  "a"\n  return 1') == tree('def f():\n  "b"\n  return 1')


def test_the_source_is_that_which_was_imported(monkeypatch):
    """An edit after the import reaches neither the digest nor the sum of the file."""
    provenance.code_version()
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} is read again"))
    said = provenance.provenance("kd", torch.device("cpu"), 1)
    assert said["method_source"] == NOW["kd"].digest and said["method_sha256"] == NOW["kd"].sha256
    assert provenance.source_of("checkpoint") == ""


def test_beside_todays():
    kd, digest = NOW["kd"], "source:" + "0" * 64
    assert sources.compare("kd", {"method_source": kd.digest, "method_sha256": "of comments"}) == ""
    assert sources.compare("kd", {"method_source": digest, "method_sha256": kd.sha256}) == sources.OTHER
    mixed = {"method_source": kd.digest, "method_sources_before": [digest]}
    assert sources.compare("kd", mixed) == sources.BOTH
    assert sources.compare("kd", {"method_sha256": kd.sha256}) == ""  # of a version that recorded no more
    assert sources.compare("kd", {"method_sha256": "0" * 64}) == sources.UNTOLD
    assert sources.compare("kd", {}) == sources.compare("checkpoint", {"method_sha256": ""}) == ""
    assert sources.compare("one that is not here", {"method_source": digest}) == ""


def test_read_from_a_checkpoint(tmp_path):
    digests = ["source:" + "0" * 64, NOW["kd"].digest]
    store.write_torch(tmp_path / "last.pt", {"state": {"sources": digests}, "x": torch.zeros(3)})
    assert sources.of_checkpoint(tmp_path / "last.pt") == tuple(digests)
    (tmp_path / "last.pt").write_bytes(b"PK cut short")
    assert sources.of_checkpoint(tmp_path / "last.pt") == sources.of_checkpoint(tmp_path / "none.pt") == ()


def test_the_command_that_does_them_again():
    cells = tuple(
        Cell(method, role, "", method, "a", student, tuple(f"{method}-{student}-s{seed}-01234567" for seed in (0, 1)))
        for method, role in (("vanilla", "student"), ("kd", "method"), ("dkd", "method"))
        for student in ("b", "c")
    )
    spec = TableSpec("mine", "p", 1, (("a", "b"), ("a", "c")), cells, asked=("--grid", "/x/my grid.yaml"))
    runs = [run_id for cell in cells for run_id in cell.run_ids]
    begin = "kd-bench --grid '/x/my grid.yaml' --out out --force --only "
    kd = [run_id for run_id in runs if run_id.startswith("kd-")]
    assert sources.redo(spec, kd, runs, "out") == begin + "method=kd"
    assert sources.redo(spec, kd[:1], [*kd[:1], runs[0]], "out") == begin + "method=kd"  # all that are done
    assert sources.redo(spec, [runs[0], kd[1]], runs, "out") == begin + (
        "method=student,teacher=a,student=b,seed=0 method=kd,teacher=a,student=b,seed=1"
    )
