from __future__ import annotations

import shutil

import pytest
import torch

import methods
import zoo
from bench import grid as grids
from bench import protocol as protocols
from bench.grid import GridFile
from bench.report import published
from methods import check
from tests import tiny
from zoo.errors import BadInput


def grid(**changes) -> GridFile:
    values = {
        "name": "g",
        "about": "",
        "protocol": "standard",
        "pairs": ["resnet56-resnet20"],
        "methods": ["kd"],
        "seeds": 2,
    }
    return check(GridFile, {**values, **changes}, "grid")


@pytest.fixture
def sskd_resnet56(tmp_path, monkeypatch):
    """In place of the published file: what a run is named by is the file's SHA-256."""
    (tmp_path / "sskd").mkdir()
    torch.save(zoo.build("resnet56").state_dict(), tmp_path / "sskd" / "resnet56.pth")
    monkeypatch.setenv("KD_WEIGHTS", str(tmp_path))


def test_brief_and_its_ablation_share_the_runs_that_are_equal(sskd_resnet56):
    brief, ablation = (grids.expand(grids.load(name)) for name in ("brief", "brief-ablation"))
    assert len(brief.runs) == 1 + 3 * len(methods.all_names()) and len(ablation.runs) == 1 + 3 * 6
    seeds = [(method, seed) for method in ("skd", "skd_paper", "vanilla") for seed in (0, 1, 2)]
    shared = [brief.runs[run_id] for run_id in brief.runs.keys() & ablation.runs.keys()]
    assert sorted((run.method, run.seed) for run in shared) == sorted([("checkpoint", 0), *seeds])
    labels = {cell.run_ids: cell.label for cell in brief.cells}
    assert [
        (labels[c.run_ids], c.label) for c in ablation.cells if c.method == "skd_paper" and c.run_ids in labels
    ] == [("SKD (paper)", "SKD (paper), lambda 0.1")]


def test_full_grid_is_the_target_table():
    full = grids.expand(grids.load("full"))
    assert full.protocol.name == "streamlined"
    assert full.pairs == (
        ("resnet56", "resnet20"),
        ("resnet110", "resnet32"),
        ("resnet32x4", "resnet8x4"),
        ("wrn_40_2", "wrn_16_2"),
        ("wrn_40_2", "wrn_40_1"),
        ("vgg13", "vgg8"),
    )
    distilled = [name for name in methods.all_names() if methods.get(name).uses_teacher]
    # 5 teachers (wrn_40_2 serves two pairs), 3 seeds of 6 students and of every method on every pair
    assert len(full.runs) == 5 + 3 * 6 + 3 * 6 * len(distilled)
    rows = [cell.label for cell in full.cells if cell.student == "resnet20"]
    assert rows[:2] == ["Teacher", "Student"] and len(rows) == 2 + len(distilled)


def test_all_is_the_target_table_and_what_comes_from_outside():
    """Methods of the longer table are named by a grid; one that says nothing is in."""
    later = {"at", "sp", "vid", "pkt", "simkd", "cat_kd", "dist", "nkd", "ctkd"}
    assert set(methods.names()) - set(methods.all_names()) == later
    assert methods.Method.in_all and len(methods.all_names()) == 13


def test_the_longer_table():
    made = grids.expand(grids.load("extended"), seeds=[0])
    assert made.protocol.name == "standard" and made.pairs == grids.expand(grids.load("full"), seeds=[0]).pairs
    rows = [(cell.label, cell.method) for cell in made.cells if cell.student == "vgg8" and cell.role == "method"]
    named = [(row.label, row.method) for row in made.protocol.rows.values()]
    assert len(rows) == 23 and set(named) < set(rows)
    assert {methods.get(name).label for name in set(methods.names()) - set(methods.all_names())} < dict(rows).keys()
    params = {cell.label: made.runs[cell.run_ids[0]].params for cell in made.cells if cell.student == "vgg8"}
    assert params["KD+LS"] == {"temperature": 3.0, "ce_weight": 0.1, "kd_weight": 9.0, "standardize": True}
    assert params["CRD+KD"] == params["CRD"] | {"kd_weight": 1.0, "kd_temperature": 4.0}
    assert (params["DKD+LS"]["alpha"], params["DKD+LS"]["beta"], params["DKD"]["beta"]) == (15, 30, 6)


def test_a_row_may_have_parameters_per_pair():
    pairs = ["resnet56-resnet20", "vgg13-vgg8"]
    row = {"method": "kd", "params": {"kd_weight": 2.0}, "pairs": {"VGG13-VGG8": {"temperature": 2.0}}}
    made = grids.expand(grid(pairs=pairs, methods=[row], seeds=1))
    found = {run.student: run.params for run in made.runs.values() if run.method == "kd"}
    assert [(p["temperature"], p["kd_weight"]) for p in (found["resnet20"], found["vgg8"])] == [(4.0, 2.0), (2.0, 2.0)]
    assert made.cells[-1].label == "KD, kd_weight 2.0, temperature per pair"
    alone = grids.expand(
        grid(pairs=pairs[1:], methods=[{"method": "kd", "params": {"kd_weight": 2.0, "temperature": 2.0}}])
    )
    assert made.cells[-1].run_ids[0] in alone.runs


STYLES = (
    ("vgg13", "mobilenetv2"),
    ("resnet50", "mobilenetv2"),
    ("resnet50", "vgg8"),
    ("resnet32x4", "shufflenetv1"),
    ("resnet32x4", "shufflenetv2"),
    ("wrn_40_2", "shufflenetv1"),
    ("resnet32x4", "mobilenetv2"),
    ("wrn_40_2", "mobilenetv2"),
)


# Tiny-ImageNet is a tree of a person's own, which is looked at.
@pytest.mark.parametrize("recipe", [None, *sorted(set(protocols.names()) - {"standard", "tiny-imagenet"})])
def test_every_method_runs_on_the_pairs_of_different_style(recipe):
    made = grids.expand(grids.load("different-style"), protocol=recipe, seeds=[0])
    assert made.protocol.name == (recipe or "standard") and made.pairs == STYLES
    distilled = {name for name in methods.all_names() if methods.get(name).uses_teacher}
    for pair in STYLES:
        assert {
            run.method for run in made.runs.values() if run.teacher and (run.teacher.arch, run.student) == pair
        } == distilled
    # 4 teachers; vgg8 and the three small networks as students
    assert len(made.runs) == 4 + 4 + len(STYLES) * len(distilled)


def test_a_method_that_cannot_run_on_a_pair_says_why():
    for method in ("kd", "reviewkd", "sdd", "crd"):
        assert grids.expand(grid(pairs=["shufflenetv2-resnet20"], methods=[method])).runs
    why = r'method "ofd" on shufflenetv2-resnet20: shufflenetv2 has no BatchNorm over all channels .*: choose another'
    with pytest.raises(BadInput, match=why):
        grids.expand(grid(pairs=["shufflenetv2-resnet20"], methods=["ofd"]))


def test_every_student_names_its_teachers_run_and_comes_after_it():
    full = grids.expand(grids.load("full"))
    order = list(full.runs)
    for run_id, run in full.runs.items():
        assert run.run_id == run_id
        if run.teacher:
            assert order.index(run.teacher.run_id) < order.index(run_id)
            assert full.runs[run.teacher.run_id].student == run.teacher.arch


def test_student_row_is_never_left_out_and_a_teacher_may_be_a_student():
    made = grids.expand(grid(pairs=["vgg13-vgg13"], seeds=[0]))
    assert sorted(made.runs) == sorted({r for r in made.runs if r.startswith(("vanilla-vgg13", "kd-vgg13-vgg13"))})
    assert len(made.runs) == 2  # teacher and Student row are the same run


def test_rows_with_their_own_parameters():
    rows = [{"method": "skd_paper", "label": f"λ = {x}", "params": {"tikhonov": x}} for x in (0.1, 1.0)]
    made = grids.expand(grid(methods=["skd", *rows], seeds=1))
    assert [cell.label for cell in made.cells if cell.role == "method"] == ["SKD", "λ = 0.1", "λ = 1.0"]
    assert {run.params["tikhonov"] for run in made.runs.values() if run.method == "skd_paper"} == {0.1, 1.0}


def test_a_row_with_other_parameters_is_not_the_published_method():
    """KD's number of the field and its claims are for the protocol's temperature and no other."""
    rows = [{"method": "kd", "params": {"temperature": 2.0, "ce_weight": 0.5}}, "kd", {"method": "fitnet"}]
    made = grids.expand(grid(methods=rows))
    cells = {cell.label: cell for cell in made.cells if cell.role == "method"}
    assert set(cells) == {"KD, temperature 2.0, ce_weight 0.5", "KD", "FitNet"}
    (printed,) = {number.source for number in published.load() if number.key == ("resnet56", "resnet20", "kd")
                  and number.protocol == "standard" and number.source.startswith("RepDistiller")}  # fmt: skip
    found = {
        label: [reference.source for reference in published.references("standard") if reference.find(cell)]
        for label, cell in cells.items()
    }
    assert printed in found["KD"] and found["KD, temperature 2.0, ce_weight 0.5"] == []
    # A label is no part of what a run is.
    named = grids.expand(grid(methods=[{**rows[0], "label": "soft"}]))
    assert named.cells[-1].run_ids == cells["KD, temperature 2.0, ce_weight 0.5"].run_ids


def test_a_row_that_repeats_the_protocols_parameters_is_the_published_method():
    (usual,) = {run.params["temperature"] for run in grids.expand(grid()).runs.values() if run.method == "kd"}
    made = grids.expand(grid(methods=[{"method": "kd", "params": {"temperature": usual}}]))
    assert [cell.label for cell in made.cells] == ["Teacher", "Student", "KD"]
    assert set(made.runs) == set(grids.expand(grid()).runs)


def test_parameters_that_are_the_protocols_on_one_pair_only_are_other_parameters():
    """`standard` gives DKD a beta a pair."""
    pairs = ["resnet56-resnet20", "resnet32x4-resnet8x4"]
    usual = [run.params["beta"] for run in grids.expand(grid(pairs=pairs, methods=["dkd"], seeds=1)).runs.values()
             if run.method == "dkd"]  # fmt: skip
    assert usual[0] != usual[1]
    row = {"method": "dkd", "params": {"beta": usual[0]}}
    assert grids.expand(grid(pairs=pairs[:1], methods=[row])).cells[-1].label == "DKD"
    made = grids.expand(grid(pairs=pairs, methods=[row]))
    assert {cell.label for cell in made.cells if cell.role == "method"} == {f"DKD, beta {usual[0]}"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"methods": []}, "empty"),
        ({"pairs": []}, "empty"),
        ({"seeds": []}, "empty"),
        ({"seeds": [0, 0]}, "twice"),
        ({"seeds": 0}, "seeds"),
        ({"seeds": True}, "seeds"),
        ({"seeds": "three"}, '"seeds": give a count .3., a list .0,1,2; .* or a range'),
        ({"seeds": None}, '"seeds": give a count .3., a list'),
        ({"seeds": -1}, '"seeds": input should be greater than 0'),
        ({"methods": ["kd", "kd"]}, "twice"),
        ({"methods": ["kd", {"method": "kd", "label": "again"}]}, "same run twice, as .KD. .*again"),
        ({"methods": [{"method": "kd", "label": "DKD"}]}, 'labels kd "DKD", which is dkd: give another label'),
        (
            {"methods": [{"method": "kd", "label": "KD", "params": {"temperature": 2.0}}]},
            r"labels kd .KD. with other parameters than the protocol's \(temperature\): give another label",
        ),
        ({"methods": [{"method": "kd", "label": "Student"}]}, "rows of their own"),
        (
            {"methods": [{"method": "kd", "label": "KD+LS", "params": {"standardize": True}}]},
            'labels kd "KD.LS", which is a row of protocol "standard": give another label',
        ),
        ({"methods": ["lskd", "lskd"]}, 'the row "KD.LS" .kd. twice'),
        (
            {"methods": ["lskd"], "protocol": "streamlined"},
            'names the row "lskd", which protocol "streamlined" has not: choose .*standard',
        ),
        ({"methods": ["at"], "protocol": "streamlined"}, 'protocol "streamlined" has no parameters for method "at"'),
        ({"methods": ["lskdd"]}, 'did you mean "lskd"'),
        ({"methods": [{"method": "kd", "pairs": {"vgg13": {}}}]}, "teacher-student"),
        ({"methods": ["kdd"]}, 'did you mean "kd"'),
        ({"methods": [{"method": "fitnet", "params": {"hint_layer": 7}}]}, "on resnet56-resnet20: hint_layer 7"),
        ({"methods": "everything"}, 'unknown method in grid "g" "everything"'),
        ({"methods": [{"method": "kd", "parms": {}}]}, 'did you mean "params"'),
        ({"pairs": ["resnet56-resnet20", "resnet56-resnet20"]}, "twice"),
        ({"pairs": ["resnet56"]}, "teacher-student"),
        ({"pairs": ["resnet55-resnet20"]}, 'did you mean "resnet56"'),
        ({"protocol": "standart"}, 'did you mean "standard"'),
        ({"method": ["kd"]}, 'did you mean "methods"'),
        (
            {"pairs": [{"teacher": "resnet56", "student": "resnet20", "teacher_weights": "${NO_SUCH_PLACE}/x"}]},
            "NO_SUCH_PLACE",
        ),
        (
            {"pairs": [{"teacher": "resnet56", "student": "resnet20", "teacher_weights": "none.pth"}]},
            "none.pth",
        ),
    ],
)
def test_bad_grids_get_one_line(changes, says):
    with pytest.raises(BadInput, match=says) as error:
        grids.expand(grid(**changes))
    assert "\n" not in str(error.value)


def test_unknown_grid_suggests():
    with pytest.raises(BadInput, match='did you mean "quick"'):
        grids.load("quik")


@pytest.mark.parametrize(("text", "seeds"), [("3", [0, 1, 2]), ("0,1,2", [0, 1, 2]), ("7,", [7]), ("5,3", [5, 3])])
def test_seeds(text, seeds):
    assert grids.parse_seeds(text) == seeds


def test_one_number_of_seed_is_the_seed():
    assert [grids.parse_seeds(text, one_is_a_seed=True) for text in ("0", "42", "4,2")] == [[0], [42], [4, 2]]


@pytest.mark.parametrize("text", ["0", "-1", "a", "1;2", "1,,2", ",", "1.5"])
def test_bad_seeds(text):
    with pytest.raises(BadInput, match="--seeds"):
        grids.parse_seeds(text)
    if text != "0":
        with pytest.raises(BadInput, match='--seed "'):
            grids.parse_seeds(text, one_is_a_seed=True)


def test_checkpoint_teacher_is_named_by_content(tmp_path, monkeypatch):
    net = zoo.build("resnet8")
    torch.save({"model": net.state_dict()}, tmp_path / "a.pth")
    shutil.copy(tmp_path / "a.pth", tmp_path / "b.pth")
    monkeypatch.setenv("PLACE", str(tmp_path))

    def teacher(file):
        pair = {"teacher": "resnet8", "student": "resnet8", "teacher_weights": f"${{PLACE}}/{file}.pth"}
        made = grids.expand(grid(pairs=[pair], protocol=str(tmp_path / "tiny.yaml")))
        return next(iter(made.runs.values())), made

    tiny.write(tmp_path)
    (first, made), (second, _) = teacher("a"), teacher("b")
    assert first.run_id == second.run_id and first.params["sha256"] == zoo.sha256(tmp_path / "a.pth")
    assert made.weights[first.run_id] == (tmp_path / "a.pth").resolve()
    student = next(run for run in made.runs.values() if run.method == "kd")
    assert student.teacher.run_id == first.run_id
    with torch.no_grad():
        net.conv1.weight.add_(1)
    torch.save({"model": net.state_dict()}, tmp_path / "b.pth")
    assert teacher("b")[0].run_id != first.run_id


def test_a_method_gets_the_views_its_parameters_ask_for(tmp_path):
    """MLKD's paired form under a protocol that trains it on one view is refused; its one-view form is not."""
    tiny.write(tmp_path)
    one_view = tiny.PROTOCOL + "  mlkd: {data: {views: weak, strong: null}}\n"
    (tmp_path / "tiny.yaml").write_text(one_view)
    paired = grid(protocol=str(tmp_path / "tiny.yaml"), pairs=["resnet8-resnet8"], methods=["mlkd"])
    with pytest.raises(BadInput, match='method "mlkd": its parameters need paired views, not weak') as refused:
        grids.expand(paired)
    remedy = str(refused.value).partition("write into the protocol ")[2]
    (tmp_path / "mended.yaml").write_text(tiny.PROTOCOL.partition("methods:")[0] + remedy)
    assert grids.expand(paired, protocol=str(tmp_path / "mended.yaml")).runs
    row = {"method": "mlkd", "params": {"strong_instance_weight": None}}
    assert grids.expand(grid(protocol=str(tmp_path / "tiny.yaml"), pairs=["resnet8-resnet8"], methods=[row])).runs


def test_a_memory_larger_than_the_training_set_is_refused_before_anything_starts(tmp_path):
    tiny.write(tmp_path)
    (tmp_path / "tiny.yaml").write_text(tiny.PROTOCOL.replace("negatives: 50", "negatives: 100"))
    with pytest.raises(BadInput, match="negatives 100: only 99 of 100 training images"):
        grids.expand(grid(protocol=str(tmp_path / "tiny.yaml"), pairs=["resnet8-resnet8"], methods=["crd"]))


@pytest.mark.parametrize(
    ("as_printed", "ours"),
    [
        ({"pairs": ["WRN-40-2-WRN-16-2"]}, {"pairs": ["wrn_40_2-wrn_16_2"]}),
        ({"pairs": ["wrn-40-2-wrn-40-1", "VGG-13 -> VGG-8"]}, {"pairs": ["wrn_40_2-wrn_40_1", "vgg13-vgg8"]}),
        ({"pairs": "ResNet-56→ResNet-20, VGG13 - VGG8"}, {"pairs": ["resnet56-resnet20", "vgg13-vgg8"]}),
        ({"pairs": [{"teacher": "ResNet32×4", "student": "ResNet8×4"}]}, {"pairs": ["resnet32x4-resnet8x4"]}),
        ({"methods": ["KD", {"method": "ReviewKD"}]}, {"methods": ["kd", "reviewkd"]}),
        ({"methods": "KD, Fit-Net"}, {"methods": ["kd", "fitnet"]}),
        ({"seeds": "0,1"}, {"seeds": [0, 1]}),
        ({"seeds": "1-3"}, {"seeds": [1, 2, 3]}),
        ({"seeds": "3"}, {"seeds": 3}),
        ({"protocol": "Streamlined Revised"}, {"protocol": "streamlined-revised"}),
    ],
)  # fmt: skip
def test_names_as_papers_print_them_are_the_same_runs(as_printed, ours):
    made = grids.expand(grid(**as_printed))
    assert list(made.runs) == list(grids.expand(grid(**ours)).runs)


@pytest.mark.parametrize(
    ("pair", "says"),
    [
        ("wrn-40-3-wrn-16-2", 'unknown architecture "wrn-40-3": did you mean "wrn_40_2"'),
        ("resnet56-resnet21", 'unknown architecture "resnet21"'),
        ("WRN-40-2", "write teacher-student"),
        ("resnet56 -> resnet20 -> resnet8", "write teacher-student"),
    ],
)
def test_a_pair_that_is_none_is_cut_where_it_was_meant(pair, says):
    with pytest.raises(BadInput, match=says):
        grids.expand(grid(pairs=[pair]))


def test_paths_in_a_grid_start_from_its_folder(tmp_path, monkeypatch):
    """Its protocol, what that extends, and weights; `~` and variables are filled in."""
    home, far = tmp_path / "home", tmp_path / "far"
    for folder in (home, far):
        folder.mkdir()
    torch.save(zoo.build("resnet8").state_dict(), home / "w.pth")
    (home / "base.yaml").write_text(tiny.PROTOCOL.replace("name: tiny", "name: base"))
    (home / "p.yaml").write_text("extends: base.yaml\nname: p\n")
    pair = "{teacher: resnet8, student: resnet8, teacher_weights: 'WEIGHTS'}"
    text = tiny.GRID.replace("PROTOCOL", "p.yaml").replace("resnet8-resnet8", pair)
    monkeypatch.chdir(far)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("THERE", "~/")
    made = {}
    for weights in ("w.pth", "../home/w.pth", "~/w.pth", "${THERE}w.pth", "$HOME/w.pth"):
        (home / "grid.yaml").write_text(text.replace("WEIGHTS", weights))
        for path in ("../home/grid.yaml", "~/grid.yaml"):
            whole = grids.expand(grids.load(path))
            assert list(whole.weights.values()) == [home / "w.pth"] and whole.protocol.train.batch == 32
            made[weights] = list(whole.runs)
    assert len({tuple(runs) for runs in made.values()}) == 1
    (far / "here.pth").write_bytes(b"")
    (home / "grid.yaml").write_text(text.replace("WEIGHTS", "here.pth"))
    with pytest.raises(BadInput, match=r"starts from the file's own folder; write \.\./far/here.pth"):
        grids.load("~/grid.yaml")
