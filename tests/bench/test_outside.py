"""Methods and networks that a grid brings: identity of their runs, where they are known, and what is refused."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
from pathlib import Path

import pytest
import torch

import methods
import zoo
from bench import cohorts, outside, store
from bench import grid as grids
from bench.run import Network, Run
from bench.surroundings.provenance import provenance
from bench.training import trainer
from jobs import child, states
from methods import check
from tests import tiny
from zoo import BadInput

METHOD = """\
from near import scaled
from pydantic import NonNegativeFloat

from methods import Method, Settings, register


@register
class Mine(Method):
    name, label, group = "mine", "Mine", "logit"

    class Params(Settings):
        weight: NonNegativeFloat = 1.0

    def terms(self, student, teacher, batch, progress):
        return {"ce": batch.cross_entropy(student.logits), "own": self.params.weight * scaled(student.logits)}
"""
NEAR = "def scaled(logits):\n    return 0.001 * logits.square().mean()\n"
NET = """\
from torch import nn


def build(num_classes, width=4):
    maps = nn.Sequential(nn.Conv2d(3, width, 3, 4), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.5))
    return nn.Sequential(maps, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))
"""
GRID = """\
name: own
about: "made up for tests"
protocol: tiny.yaml
networks:
  net: {factory: "net.py:build", args: {width: 8}, features: ["0"]}
pairs: [resnet8-resnet8, resnet8-net]
methods: [kd, {file: mine.py}, {file: mine.py, label: Mine too, params: {weight: 2.0}}]
seeds: 1
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    """A grid with a method and a network, and their files."""
    (tmp_path / "tiny.yaml").write_text(tiny.PROTOCOL)
    for name, text in (("mine.py", METHOD), ("near.py", NEAR), ("net.py", NET), ("grid.yaml", GRID)):
        (tmp_path / name).write_text(text)
    return tmp_path


def expand(folder: Path, old: str = "", new: str = "", more: str = "") -> grids.Grid:
    """The grid, with a change of its text and more lines."""
    assert old in GRID
    (folder / "grid.yaml").write_text(GRID.replace(old, new) + more)
    return grids.expand(grids.load(str(folder / "grid.yaml")))


def of(grid: grids.Grid, **facts: object) -> dict[str, Run]:
    return {i: run for i, run in grid.runs.items() if all(getattr(run, name) == value for name, value in facts.items())}


def test_an_edit_makes_new_runs_of_what_it_touches(folder):
    first = expand(folder)
    labels = ["Teacher", "Student", "KD", "Mine", "Mine too"]
    assert len(first.runs) == 8 and [cell.label for cell in first.cells[:5]] == labels
    (folder / "near.py").write_text(NEAR.replace("0.001", "0.002"))
    second = expand(folder)
    touched = set(of(first, method="mine"))
    assert len(touched) == 4 and set(first.runs) - set(second.runs) == touched
    (folder / "net.py").write_text("# the same\n" + NET)
    assert set(expand(folder).runs) == set(second.runs)
    (folder / "net.py").write_text(NET.replace("0.5", "0.4"))
    third = expand(folder)
    assert set(second.runs) - set(third.runs) == set(of(second, student="net"))
    fourth = expand(folder, "width: 8", "width: 4")
    assert set(third.runs) - set(fourth.runs) == set(of(third, student="net"))


def test_what_the_project_has_keeps_its_runs(folder):
    """Beside what is brought, and after it: names, `methods: all` and run ids."""
    before, all_before = set(zoo.architectures()), methods.all_names()
    grid = expand(folder)
    plain = grids.expand(grids.GridFile(**{**_plain(folder), "methods": ["kd"]}))
    assert set(plain.runs) == set(of(grid, method="kd", student="resnet8")) | set(of(grid, method="vanilla")) - set(
        of(grid, student="net")
    )
    assert not any(run.method_digest or run.networks for run in plain.runs.values())
    assert set(zoo.architectures()) == before and methods.all_names() == all_before  # the second grid brings nothing
    with pytest.raises(BadInput, match='unknown method in grid "own" "mine"'):
        grids.expand(grids.GridFile(**{**_plain(folder), "methods": ["mine"]}))
    expand(folder)
    assert methods.all_names() == all_before and "mine" in methods.names() and "net" in zoo.architectures()


def _plain(folder: Path) -> dict:
    return {"name": "own", "about": "", "protocol": str(folder / "tiny.yaml"), "pairs": ["resnet8-resnet8"], "seeds": 1}


def test_a_worker_runs_what_was_read(folder):
    """In a process of its own, from the copy in the results folder, although the file is broken by then."""
    grid, out = expand(folder), folder / "out"
    grids.keep(grid, out)
    for name in ("mine.py", "near.py", "net.py"):
        (folder / name).write_text("1 / 0\n")
    (own,) = of(grid, method="mine", student="resnet8", params={"weight": 1.0})
    (plain,) = of(grid, method="vanilla", student="net")
    teacher = grid.runs[own].teacher.run_id
    orders = [[teacher], [own, plain]]  # the two train together
    lines = [json.dumps({"runs": [child.order(grid, run_id) for run_id in order]}) + "\n" for order in orders]
    command = [*child.PROGRAM, "--out", str(out), "--device", "cpu", "--threads", "1"]
    worker = subprocess.Popen(command, cwd=child.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    for line, order in zip(lines, orders, strict=True):
        worker.stdin.write(line)
        worker.stdin.flush()
        answers = [json.loads(worker.stdout.readline()) for _ in order]
        assert {answer["outcome"] for answer in answers} == {"done"}, answers
    worker.stdin.close()
    assert worker.wait(60) == 0
    results = [store.read_result(store.run_folder(out, run_id)) for run_id in (own, plain)]
    assert results[0]["curve"][0].keys() >= {"ce", "own"} and "pydantic" in results[0]["provenance"]["versions"]
    assert [check(Run, result["config"], "").run_id for result in results] == [own, plain]
    # From files alone: states, labels and filters.
    kept = states.read_kept(out)
    assert {"Mine", "Mine too"} <= {cell.label for cell in kept.cells}
    found = states.look(kept, out, ["method=mine,student=resnet8"])
    assert found.counts() == {"done": 2, "missing": 1}  # with the teacher
    # What was trained is a network again, elsewhere too: its code comes from the results folder.
    outside.bring((), {})
    moved = (out / "runs").parent.rename(folder / "moved") / "runs" / plain
    with pytest.raises(BadInput, match='"net", a network that a grid brought along: load it with'):
        zoo.load(moved)
    net = outside.load(moved)
    weights = torch.load(moved / "weights.pt", weights_only=True)["model"]
    assert weights.keys() == net.state_dict().keys() and not net.training
    assert all(torch.equal(weights[name], value) for name, value in net.state_dict().items())
    (folder / "moved").rename(out)
    # A copy that is not what its name says is not run.
    digest = grid.runs[own].method_digest
    (out / "sources" / digest[:16] / "near.py").write_text(NEAR.replace("0.001", "1"))
    outside.bring((), {})
    with pytest.raises(BadInput, match="was altered"):
        outside.use(grid.runs[own], out)


def test_dropout_resumes_and_keeps_company_to_the_bit(folder):
    """A network that draws random numbers: alone, with another run, and stopped half way."""
    grid, images = expand(folder), tiny.dataset()
    run = next(iter(of(grid, method="vanilla", student="net").values()))
    other = next(iter(of(grid, method="vanilla", student="resnet8").values()))
    assert run.train.epochs == 2 and cohorts.group({"a": run, "b": other}) == [["a", "b"]]
    alone, _ = tiny.train(run, images, None, folder / "alone.pt")
    steps = iter([False, False, True])  # of six
    with pytest.raises(trainer.Stopped):
        tiny.train(run, images, None, folder / "again.pt", should_stop=lambda: next(steps))
    resumed, state = tiny.train(run, images, None, folder / "again.pt")
    assert state.epoch == 3
    heard = [tiny.Hooks(), tiny.Hooks()]
    entrants = [trainer.Entrant(one, folder / str(n), heard[n]) for n, one in enumerate((other, run))]
    trainer.train(entrants, images, None)
    for name, value in alone.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]) and torch.equal(
            value, heard[1].student.state_dict()[name]
        )


def test_versions_of_packages_are_recorded(folder):
    grid = expand(folder, "net: {", "tv: {factory: torchvision.models.mobilenet_v3_small}\n  net: {")
    assert not any("tv" in (run.networks or {}) for run in grid.runs.values())  # no pair has it
    run = next(iter(of(grid, method="mine").values()))
    network = Network(factory="numpy.no.such.thing")
    found = outside.packages(run.model_copy(update={"networks": {"other": network}}))
    assert found == {name: importlib.metadata.version(name) for name in ("numpy", "pydantic")}
    assert provenance("kd", torch.device("cpu"), 1, found)["versions"].items() >= found.items()


@pytest.mark.parametrize(
    ("file", "entry", "words"),
    [
        ("x = 1\n", "{file: mine.py}", "registers no method: write @register"),
        (METHOD + METHOD[METHOD.index("@register") :].replace("Mine", "Other").replace('"mine"', '"other"'),
         "{file: mine.py}", "registers mine, other: say which one is meant"),
        (METHOD, "{file: mine.py, method: mien}", 'has no method "mien": it registers mine'),
        (METHOD, "{file: nobody.py}", "cannot read method file .*nobody.py"),
        (METHOD, "{label: x}", "neither a method nor a file"),
        (METHOD, "{file: mine.py, params: {weigth: 2.0}}", 'unknown key "weigth": did you mean "weight"'),
        (METHOD.replace(" = 1.0", ""), "{file: mine.py}", '"weight" is missing: add it'),
        (METHOD.replace('"mine"', '"kd"'), "{file: mine.py}", 'mine.py:7: TypeError: two methods are called "kd"'),
        (METHOD.replace('"mine"', '"K_D"'), "{file: mine.py}", 'mine.py:8: method "K_D": the project has "kd"'),
        (METHOD.replace('"mine"', '"my-loss"'), "{file: mine.py}", "mine.py:8: .* digits and _, a letter first"),
        (METHOD.replace('"Mine"', '"DKD"'), "{file: mine.py}", 'mine.py:8: label "DKD" is that of dkd'),
        (METHOD.replace('"logit"', '"loss"'), "{file: mine.py}", "mine.py:7: TypeError: Mine.group must be one of"),
        (METHOD.replace('"logit"', '""'), "{file: mine.py}", "mine.py:8: mine must have a teacher and a group"),
        (METHOD.replace("Mine(Method)", "Mine"), "{file: mine.py}", "mine.py:8: Mine is no Method"),
        (METHOD.replace("student.logits)", "student.logit)", 1), "{file: mine.py}",
         'method "mine" on resnet8-resnet8: a step fails: mine.py:15: AttributeError'),
    ],
)  # fmt: skip
def test_methods_that_are_refused(folder, file, entry, words):
    (folder / "mine.py").write_text(file)
    old = "[kd, {file: mine.py}, {file: mine.py, label: Mine too, params: {weight: 2.0}}]"
    with pytest.raises(BadInput, match=words) as fault:
        expand(folder, old, f"[kd, {entry}]")
    assert "\n" not in str(fault.value)


def test_all_and_one_more(folder):
    """`all` among others is what it is alone."""
    file = grids.load(str(folder / "grid.yaml"))
    changes = {"pairs": ["resnet8-resnet8"], "methods": ["all", *file.methods[1:]]}
    rows = [cell.method for cell in grids.expand(file.model_copy(update=changes)).cells if cell.role == "method"]
    assert rows == [*(name for name in methods.all_names() if name != "vanilla"), "mine", "mine"]


def test_a_protocol_of_ones_own_may_speak_of_them(folder):
    own = "  mine: {params: {weight: 3.0}, pairs: {resnet8-net: {weight: 5.0}}, train: {lr: 0.02}}\n"
    (folder / "spoken.yaml").write_text(tiny.PROTOCOL + own + "networks: {net: {lr: 0.03}}\n")
    grid = expand(folder, "protocol: tiny.yaml", "protocol: spoken.yaml")
    found = {(cell.label, cell.student): grid.runs[cell.run_ids[0]] for cell in grid.cells if cell.role == "method"}
    assert {key: (run.params["weight"], run.train.lr) for key, run in found.items() if key[0] != "KD"} == {
        ("Mine", "resnet8"): (3.0, 0.02),
        ("Mine", "net"): (5.0, 0.03),
        ("Mine too", "resnet8"): (2.0, 0.02),
        ("Mine too", "net"): (2.0, 0.03),
    }


def test_what_a_method_needs_may_stand_in_its_row(folder):
    """Without a default, with annotations and imports as people write them; the row keeps the method's own label."""
    text = "from __future__ import annotations\n" + METHOD.replace(" = 1.0", "").replace("from near", "from .near")
    (folder / "mine.py").write_text(text)
    rows = "[kd, {file: mine.py}, {file: mine.py, label: Mine too, params: {weight: 2.0}}]"
    grid = expand(folder, rows, "[{file: mine.py, params: {weight: 3.0}}]")
    assert [cell.label for cell in grid.cells] == ["Teacher", "Student", "Mine"] * 2
    with pytest.raises(BadInput, match=r'holds the row "Mine" \(mine\) twice'):
        expand(folder, rows, "[{file: mine.py, params: {weight: 3.0}}, {file: mine.py, params: {weight: 2.0}}]")


def test_two_files_with_one_name(folder):
    (folder / "copy.py").write_text(METHOD + "\nz = 1\n")
    with pytest.raises(BadInput, match='two files have a method called "mine"'):
        expand(folder, "{file: mine.py, label: Mine too", "{file: copy.py, label: Mine too")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("net.py:build", "net.py:biuld", "there is no biuld; the nearest are build"),
        ("net.py:build", "nit.py:build", "cannot read network file .*nit.py"),
        ("net.py:build", "no_such_package.models.net", "no package no_such_package is installed here"),
        ("net.py:build", "torchvision.models.resnet19", "there is no resnet19; the nearest are resnet18"),
        ("net.py:build", "resnet18", "write PACKAGE.MODULE.NAME"),
        ('features: ["0"]', 'feature: ["0"]', 'unknown key "networks.net.feature": did you mean "features"'),
        ('features: ["0"]', 'features: ["7"]', 'network "net": features "7": it has no such layer'),
        ("width: 8", "depth: 8", "net.py:build fails: TypeError: .*depth"),
        ("  net: {", "  resnet20: {", 'network "resnet20": the project has "resnet20"'),
        ("  net: {", "  ResNet_20: {", 'network "ResNet_20": the project has "resnet20"'),
        ("  net: {", "  a-net: {", "letters, digits and _, a letter first"),
        ("args:", "digest: " + "0" * 64 + ", args:", "digest is found out from the file"),
    ],
)
def test_networks_that_are_refused(folder, old, new, words):
    with pytest.raises(BadInput, match=words) as fault:
        expand(folder, old, new)
    assert "\n" not in str(fault.value)
