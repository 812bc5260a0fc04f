"""A campaign carried from machine to machine in one file: the whole way, each rule of merging, and bad files."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch

import reproduce
from bench import store, usercode
from jobs import claims, drive, local
from jobs.carry import merge, pack
from tests import tiny
from tests.test_reproduce import results

TEACHER, STUDENT, OTHER = "vanilla-resnet8-s0-00000001", "kd-resnet8-resnet8-s0-00000002", "dkd-resnet8-s0-00000003"


def make(
    out: Path,
    run_id: str = STUDENT,
    *,
    top1: float | None = None,
    far: tuple[int, int] | None = None,
    error: str | None = None,
    weights: int = 0,
    log: str = "",
    teacher: str | None = None,
) -> store.RunFolder:
    """A run folder as a worker leaves it: finished with `top1`, or unfinished `far` in epochs and steps."""
    folder = store.run_folder(out, run_id)
    folder.path.mkdir(parents=True, exist_ok=True)
    store.write_json(folder.config, {"seed": 0, "teacher": teacher and {"arch": "resnet8", "run_id": teacher}})
    if far:
        state = {"epoch": far[0], "step": far[1], "wall_s": 100.0 * far[0]}
        store.write_torch(folder.last, {"run_id": run_id, "state": state})
    if weights:
        folder.weights.write_bytes(os.urandom(weights))
    if top1 is not None:
        row = {"epoch": 1, "top1": top1, "wall_s": len(str(out)) / 8}
        size = {"weights_bytes": weights} if weights else {}
        result = {"schema": 1, "run_id": run_id, "metrics": {"top1_last": top1}, "provenance": size, "curve": [row]}
        store.write_result(folder.result, result)
    if error:
        store.write_json(folder.error, {"message": error})
    if log:
        folder.log.write_text(log)
    return folder


@pytest.fixture
def here(tmp_path):
    return tmp_path / "here"


@pytest.fixture
def there(tmp_path):
    return tmp_path / "there"


def carry(there: Path, here: Path, **options) -> merge.Merged:
    file = there.parent / "campaign.tar.gz"
    options.setdefault("weights", "all")
    pack.pack(there, file, **options)
    return merge.unpack(file, here)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def epoch(folder: store.RunFolder) -> tuple[int, int]:
    state = store.read_torch(folder.last)["state"]
    return state["epoch"], state["step"]


def reproduce_(*arguments) -> int:
    """The command in this process: its imports cost seconds."""
    return reproduce.main([*map(str, arguments), "--slots", "2", "--no-plots"])


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    """A tiny grid done undisturbed: its folder, and the command's options."""
    folder = tmp_path_factory.mktemp("campaign")
    text = tiny.PROTOCOL.replace("train_images: 100", "train_images: 400").replace("epochs: 2,", "epochs: 4,")
    grid = tiny.GRID.replace("[vanilla, kd, fitnet]", "[vanilla, kd]")
    options = ("--grid", tiny.write(folder / "grid", grid, text))
    assert reproduce_(*options, "--out", folder / "undisturbed") == 0
    return folder, options


def test_goes_on_elsewhere_to_the_same_results(campaign, monkeypatch, capsys):
    """Stopped by its budget in the middle of a run, carried, and done by the same command in another folder."""
    folder, options = campaign
    place, file = folder / "first", folder / "campaign.tar.gz"

    class Clock:  # jumps past the budget once the student is an epoch old
        @staticmethod
        def monotonic() -> float:
            begun = any(" epoch 1 " in log.read_text() for log in place.glob("runs/kd-*/log.txt"))
            return time.monotonic() + 6000 * begun

    with monkeypatch.context() as patch:
        patch.setattr(drive, "time", Clock)
        patch.setattr(local, "POLL_S", 0.02)
        assert reproduce_(*options, "--out", place, "--time-budget", "60") == 3
    assert "time budget used up; the same command goes on" in capsys.readouterr().out
    assert len(list(place.glob("runs/*/result.json"))) == len(list(place.glob("runs/kd-*/last.pt"))) == 1
    assert pack.main([str(place), str(file)]) == 0
    place.rename(folder / "gone")
    assert command("--into", folder / "second", file).returncode == 0
    assert list((folder / "second").glob("runs/*/last.pt"))
    assert reproduce_(*options, "--out", folder / "second") == 0
    assert results(folder / "second") == results(folder / "undisturbed")
    assert not list((folder / "second").glob("runs/*/claim*")) and not list((folder / "second").rglob(".*"))


def command(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "jobs.pack", *map(str, arguments)], capture_output=True, text=True,
                          cwd=Path(__file__).parents[3])  # fmt: skip


def test_what_travels(there, here):
    make(there, TEACHER, top1=50.0, weights=1000)
    make(there, top1=40.0, weights=1000, far=(2, 0), teacher=TEACHER, log="done\n")
    make(there, OTHER, far=(3, 1), weights=500, error="diverged")
    (there / "plan.json").write_text("{}")
    (there / "table.md").write_text("a report is made again from the runs")
    (store.run_folder(there, OTHER).path / "result.json.aside-1").write_text("old")
    (store.run_folder(there, OTHER).path / ".last.pt.1.tmp").write_text("half")
    carry(there, here, weights="teachers")
    assert set(files(here)) == {
        "plan.json",
        *(f"runs/{TEACHER}/{name}" for name in ("config.json", "result.json", "weights.pt")),
        *(f"runs/{STUDENT}/{name}" for name in ("config.json", "result.json", "log.txt")),
        *(f"runs/{OTHER}/{name}" for name in ("config.json", "error.json", "last.pt")),
    }
    assert all(files(here)[name] == content for name, content in files(there).items() if name in files(here))
    carried = {weights: carry(there, here.with_name(weights), weights=weights) for weights in pack.WEIGHTS}
    kept = {w: {p.parent.name for p in here.with_name(w).rglob("weights.pt")} for w in carried}
    assert kept == {"teachers": {TEACHER}, "all": {TEACHER, STUDENT}, "none": set()}


def test_a_persons_own_code_travels(there, here):
    """What a copy is, it is checked for where it is used; one that is here stays as it is."""
    make(there, TEACHER, top1=50.0)
    own = there / "own"
    (own / "parts").mkdir(parents=True)
    (own / "loss.py").write_text("from parts.near import x\n")
    (own / "parts" / "near.py").write_text("x = 1\n")
    source = usercode.read(own / "loss.py", "method")
    kept = usercode.keep(source, there)
    usercode.keep(source, there)
    (kept.with_name(f"{kept.name}.aside-1")).mkdir()
    (kept.with_name(f"{kept.name}.aside-1") / "old.py").write_text("old")
    for _ in range(2):
        carry(there, here)
        assert usercode.kept(here, source.digest).files == source.files
        assert [path.name for path in (here / "sources").iterdir()] == [kept.name]


def test_only_takes_cells_with_their_teachers(campaign, tmp_path, capsys):
    folder, *_ = campaign
    assert pack.main([str(folder / "undisturbed"), str(tmp_path / "kd.tar.gz"), "--only", "method=student"]) == 0
    merge.unpack(tmp_path / "kd.tar.gz", tmp_path / "student")
    assert [path.name.split("-")[0] for path in sorted((tmp_path / "student" / "runs").iterdir())] == ["vanilla"]
    assert pack.main([str(folder / "undisturbed"), str(tmp_path / "kd.tar.gz"), "--only", "method=kd"]) == 0
    merge.unpack(tmp_path / "kd.tar.gz", tmp_path / "kd")
    assert [path.name.split("-")[0] for path in sorted((tmp_path / "kd" / "runs").iterdir())] == ["kd", "vanilla"]
    assert pack.main([str(folder / "undisturbed"), str(tmp_path / "kd.tar.gz"), "--only", "method=kdd"]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_long_log_travels_from_the_start_of_a_line(there, here):
    lines = [f"2026-01-01 00:00:{i:06d}  epoch {i}\n" for i in range(5000)]
    make(there, far=(1, 1), log="".join(lines))
    carry(there, here)
    carried = store.run_folder(here, STUDENT).log.read_text()
    assert len(carried) <= pack.LOG_TAIL and carried == "".join(lines)[-len(carried) :] and carried[:4] == "2026"
    make(here, log="".join(lines[:4900]))  # here is the start of it, there the end: together all of it, once
    carry(there, here)
    assert store.run_folder(here, STUDENT).log.read_text() == "".join(lines)


@pytest.mark.parametrize(
    ("old", "new", "whole"),
    [
        ("", "b\n", "b\n"),
        ("a\nb\n", "a\nb\nc\n", "a\nb\nc\n"),
        ("a\nb\nc\n", "a\nb\n", "a\nb\nc\n"),
        ("a\nb\n", "b\nc\n", "a\nb\nc\n"),
        ("a\n", "b\n", "a\nb\n"),
        ("a\nb\n", "a\nc\n", "a\nb\na\nc\n"),
        ("a\n", "", "a\n"),
    ],
)
def test_logs_are_joined_where_they_overlap(old, new, whole):
    assert merge.joined(old.encode(), new.encode()).decode() == whole


def test_finished_replaces_unfinished(there, here):
    make(there, top1=40.0, weights=100, log="a\nb\n")
    ours = make(here, far=(9, 9), error="out of memory", log="a\n")
    assert carry(there, here).counts == {merge.FINISHED: 1}
    assert store.read_result(ours)["metrics"]["top1_last"] == 40 and store.weights_fault(ours) is None
    assert not ours.last.exists() and not ours.error.exists() and ours.log.read_text() == "a\nb\n"
    assert "out of memory" in (ours.path / "error.json.aside-1").read_text()


def test_finished_stays_whatever_comes(there, here):
    make(here, top1=40.0, weights=100, log="a\n")
    before = files(here)
    make(there, far=(9, 9), error="diverged", log="b\n")
    merged = carry(there, here)
    assert merged.counts == {merge.NOTHING: 1} and not merged.notes and files(here) == before


def test_finished_teacher_without_weights_keeps_the_checkpoint_here(there, here):
    """Its students need weights, which are made again from there; of another run nothing more is needed."""
    make(there, STUDENT, top1=40.0, teacher=TEACHER)
    make(there, TEACHER, top1=50.0, weights=100)
    ours = [make(here, run_id, far=(7, 3)) for run_id in (TEACHER, STUDENT)]
    carry(there, here, weights="none")
    assert [folder.last.exists() for folder in ours] == [True, False]
    assert carry(there, here, weights="teachers").counts == {merge.WEIGHTS: 1, merge.NOTHING: 1}
    assert store.weights_fault(ours[0]) is None and not ours[0].last.exists()


@pytest.mark.parametrize(("far", "wins"), [((3, 5), True), ((4, 0), True), ((3, 4), False), ((2, 9), False)])
def test_further_checkpoint_wins(there, here, far, wins):
    make(there, far=far)
    ours = make(here, far=(3, 4))
    carry(there, here)
    assert epoch(ours) == (far if wins else (3, 4))
    assert not list(ours.path.glob("*aside*"))


def test_missing_run_is_added_and_unknown_ones_are_left(there, here):
    make(there, far=(1, 2), log="a\n")
    other = make(here, OTHER, far=(3, 4))
    before = files(other.path)
    carry(there, here)
    assert epoch(store.run_folder(here, STUDENT)) == (1, 2) and files(other.path) == before


def test_failures_go_with_who_came_further(there, here):
    ours = make(here, far=(3, 4))
    make(there, far=(3, 4), error="diverged")
    assert carry(there, here).counts == {merge.NEWS: 1}  # from the same point: it is news
    assert store.read_json(ours.error)["message"] == "diverged"

    shutil.rmtree(there)
    make(there, far=(5, 0))  # tried again elsewhere, and came further
    carry(there, here)
    assert not ours.error.exists() and epoch(ours) == (5, 0) and (ours.path / "error.json.aside-1").exists()

    make(there, far=(4, 0), error="diverged")
    merged = carry(there, here)  # an old failure
    assert not ours.error.exists() and "failed there" in merged.notes[0]

    store.write_json(ours.error, {"message": "failed here"})
    shutil.rmtree(there)
    make(there, far=(5, 0))
    carry(there, here)
    assert store.read_json(ours.error)["message"] == "failed here"


def test_equal_results_are_left_alone_and_others_kept_apart(there, here):
    ours = make(here, top1=40.0, weights=10)
    before = files(here)
    make(there, top1=40.0, weights=20)  # the same but for clock and place
    assert files(there) != before
    assert carry(there, here).counts == {merge.NOTHING: 1} and files(here) == before
    make(there, top1=41.0, weights=30)
    for _ in range(2):  # unpacked again it is not kept twice
        merged = carry(there, here)
        (note,) = merged.notes
        assert "top-1 41.00, here 40.00" in note and merged.counts == {merge.APART: 1}
        assert store.read_result(ours)["metrics"]["top1_last"] == 40
        assert {name for name in files(here) if name not in before} == {
            f"aside/{STUDENT}.aside-1/{name}" for name in ("result.json", "weights.pt")
        }


def test_damaged_files_here_give_way_and_are_kept(there, here):
    make(there, top1=40.0)
    make(there, OTHER, far=(1, 1))
    ours, other = make(here, far=(2, 2)), make(here, OTHER)
    ours.result.write_text("{")
    other.last.write_bytes(b"PK no checkpoint")
    merged = carry(there, here)
    assert store.read_result(ours) and (ours.path / "result.json.aside-1").read_text() == "{"
    assert epoch(other) == (1, 1) and (other.path / "last.pt.aside-1").exists()
    assert len(merged.notes) == 2 and all("set aside" in note for note in merged.notes)


def test_damaged_files_there_are_left_there(there, here):
    make(there, far=(2, 2)).result.write_text("{")
    packed = pack.pack(there, there.parent / "campaign.tar.gz")
    assert "result.json is damaged" in packed.notes[0] and packed.files == {"config.json": 1, "last.pt": 1}


def test_live_runs_are_skipped_on_both_sides(there, here):
    make(there, top1=40.0)
    ours = make(here, far=(1, 1))
    claim = claims.acquire(ours.path)
    before = files(ours.path)
    merged = carry(there, here)
    assert merged.counts == {merge.LIVE: 1} and f"process {os.getpid()}" in merged.notes[0]
    assert files(ours.path) == before
    packed = pack.pack(here, here.parent / "other.tar.gz")
    assert packed.runs == 0 and "is running" in packed.notes[0]
    claim.release()
    assert carry(there, here).counts == {merge.FINISHED: 1}


def test_claims_and_leftovers_of_the_dead_do_not_stay(there, here):
    make(there, far=(2, 2))
    ours = make(here, far=(1, 1))
    (ours.path / ".last.pt.1.ab.tmp").write_bytes(b"half")
    (ours.path / "claim.json").write_text('{"host": "gone", "pid": 1}')
    os.utime(ours.path / "claim.json", (0, 0))
    carry(there, here)
    assert set(os.listdir(ours.path)) == {"config.json", "last.pt"}


def test_limit_leaves_out_what_is_missed_least(there):
    kib = 1 << 10
    make(there, TEACHER, top1=50.0, weights=300 * kib)
    make(there, "vanilla-idle-s0-00000009", top1=50.0, weights=200 * kib)
    make(there, "kd-idle-s0-00000008", top1=50.0, weights=100 * kib, teacher="vanilla-idle-s0-00000009")
    for run_id, far in ((STUDENT, (2, 0)), (OTHER, (8, 0))):
        folder = make(there, run_id, teacher=TEACHER)
        state, noise = {"wall_s": float(far[0])}, torch.frombuffer(bytearray(os.urandom(250 * kib)), dtype=torch.uint8)
        store.write_torch(folder.last, {"run_id": run_id, "state": state, "noise": noise})
    order = []
    for limit_kib in (50, 350, 620, 880, 1100, 1300):
        file = there.parent / f"{limit_kib}.tar.gz"
        packed = pack.pack(there, file, weights="all", max_mib=limit_kib / kib)
        assert file.stat().st_size <= limit_kib * kib
        with tarfile.open(file) as tar:
            (new,) = {*tar.getnames()[:-1]} - set(order) - {n for n in tar.getnames() if n.endswith("json")} or (None,)
        order += [new] if new else []
        assert len(packed.notes) == 5 - len(order) and all("left out: runs/" in note for note in packed.notes)
    assert order == [
        f"runs/{TEACHER}/weights.pt",  # two students wait for it
        f"runs/{OTHER}/last.pt",  # the longest training
        f"runs/{STUDENT}/last.pt",
        "runs/vanilla-idle-s0-00000009/weights.pt",  # a teacher whose students are done
        "runs/kd-idle-s0-00000008/weights.pt",
    ]


def test_packing_again_gives_the_same_file(there):
    make(there, top1=40.0, weights=1000)
    first, second = (there.parent / name for name in ("first.tar.gz", "second.tar.gz"))
    for path in (first, second):
        pack.pack(there, path, weights="all")
    assert first.read_bytes() == second.read_bytes()
    assert not [path for path in there.parent.iterdir() if path.name.startswith(".")]


def tar_of(path: Path, members: dict[str, bytes], *, links: dict[str, str] | None = None) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, target in (links or {}).items():
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def index(files: dict[str, str], **changes) -> bytes:
    return json.dumps({"format": merge.FORMAT, "schema": merge.SCHEMA, "files": files, **changes}).encode()


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    make(folder / "there", top1=40.0, weights=100_000)
    make(folder / "there", OTHER, far=(1, 1))
    whole = folder / "whole.tar.gz"
    pack.pack(folder / "there", whole, weights="all")
    content, plain = whole.read_bytes(), gzip.decompress(whole.read_bytes())
    flipped = plain.replace(b'"top1_last": 40.0', b'"top1_last": 41.0')
    with tarfile.open(whole) as tar:
        weights = next(member for member in tar.getmembers() if member.name.endswith("weights.pt"))
        at_member = weights.offset_data + 512 * -(-weights.size // 512)

    def raw(name: str, data: bytes) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    result, alien = f"runs/{STUDENT}/result.json", b'{"run_id": "x"}'
    return {
        "absent": (folder / "none.tar.gz", "there is no file"),
        "empty": (raw("empty", b""), "no whole pack"),
        "text": (raw("text", b"no tar at all\n" * 100), "no whole pack"),
        "cut": (raw("cut", content[: len(content) // 2]), "no whole pack"),
        "cut between members": (raw("cut-between", plain[:at_member]), "no pack.json at its end"),
        "changed": (raw("changed", flipped), "is not as it was packed"),
        "another tar": (tar_of(folder / "other", {"README.md": b"hello"}), 'it holds "README.md"'),
        "climbs": (tar_of(folder / "climbs", {"../evil": b"x", "pack.json": index({})}), 'it holds "../evil"'),
        "climbs inside": (tar_of(folder / "inside", {"runs/../../last.pt": b"x"}), "no pack of a results folder"),
        "climbs in code": (tar_of(folder / "code", {f"sources/{'0' * 16}/../x.py": b"x"}), "it holds"),
        "absolute": (tar_of(folder / "absolute", {"/tmp/evil/last.pt": b"x"}), "no pack of a results folder"),
        "link": (tar_of(folder / "link", {}, links={f"runs/{STUDENT}/log.txt": "/etc/passwd"}), "no pack"),
        "odd": (tar_of(folder / "odd", {"plan.json": b"{}", "pack.json": index({"runs/a/log.txt": ""})}), "in both"),
        "newer": (tar_of(folder / "newer", {"pack.json": index({}, schema=9)}), "is of schema 9"),
        "index": (tar_of(folder / "index", {"pack.json": b"[]"}), "is no pack"),
        "another's result": (
            tar_of(folder / "alien", {result: alien, "pack.json": index({result: sha(alien)})}),
            "belongs to another run",
        ),
    }  # fmt: skip


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_bad_files_get_one_line_and_change_nothing(tmp_path, here, capsys):
    make(here, far=(1, 1))
    before = files(tmp_path)
    cases = bad_files(tmp_path)
    before = files(tmp_path)
    for name, (path, says) in cases.items():
        for into in (here, tmp_path / "new" / "place"):
            assert pack.main(["--into", str(into), str(path)]) == 2, name
            said = capsys.readouterr()
            assert says in said.err and said.err.count("\n") == 1 and said.err.startswith("error: "), (name, said.err)
        assert files(tmp_path) == before, name
        assert not (tmp_path / "new" / "place").exists()
    assert pack.main(["--into", str(here), str(tmp_path / "whole.tar.gz")]) == 0


def test_wrong_requests_get_one_line(tmp_path, here, capsys):
    make(here, far=(1, 1))
    whole = str(tmp_path / "whole.tar.gz")
    assert pack.main([str(here), whole]) == 0
    capsys.readouterr()
    (tmp_path / "file").write_text("")
    for arguments, says in (
        ([str(tmp_path / "none"), whole], "has no runs/"),
        ([str(here)], "give the results folder and the file to write"),
        ([str(here), whole, whole], "give the results folder and the file to write"),
        ([str(here), str(tmp_path)], "is a folder"),
        ([str(here), str(tmp_path / "no" / "folder.tar.gz")], "No such file"),
        ([str(here), whole, "--max-mib", "0.0001"], "nothing fits"),
        ([str(here), whole, "--only", "method=kd"], "plan.json"),
        (["--into", str(tmp_path / "file"), whole], "is a file"),
        (["--into", str(here), whole, "--weights", "all"], "leave --weights"),
    ):
        assert pack.main(arguments) == 2, arguments
        said = capsys.readouterr().err
        assert says in said and said.count("\n") == 1 and said.startswith("error: "), said
    for arguments in ([str(here), whole, "--max-mib", "0"], [str(here), whole, "--weights", "some"], []):
        with pytest.raises(SystemExit) as left:
            pack.main(arguments)
        assert left.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_what_is_left_out_shows_in_the_exit_status(there, here, capsys):
    make(there, top1=40.0, weights=1 << 20)
    file = str(there.parent / "campaign.tar.gz")
    assert pack.main([str(there), file, "--weights", "all", "--max-mib", "0.5"]) == 1
    assert f"left out: runs/{STUDENT}/weights.pt (1.0 MiB do not fit)" in capsys.readouterr().out
    assert pack.main(["--into", str(here), file]) == 0
    make(there, top1=41.0)
    pack.pack(there, Path(file))
    assert pack.main(["--into", str(here), file]) == 1


def test_reads_states_without_torch():
    code = "import sys, jobs.pack; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3]).returncode == 0


def test_results_alone_are_kept_with_their_report(campaign, tmp_path, capsys):
    source, kept = campaign[0] / "undisturbed", tmp_path / "measured"
    for _ in range(2):  # again it changes no result
        assert pack.main([str(source), "--keep", str(kept)]) == 0
    assert results(kept) == results(source)
    assert {path.name for path in kept.glob("runs/*/*")} == {"result.json"}
    assert {"plan.json", "table.md", "table.tex", "report.html", "runs.csv"} <= set(os.listdir(kept))
    assert list(kept.glob("plots/*.png")) and not list(kept.rglob("*.pt"))
    capsys.readouterr()
    path = next(kept.glob("runs/*/result.json"))
    path.write_text(path.read_text() + " ")
    before = files(kept)
    assert pack.main([str(source), "--keep", str(kept)]) == 2
    said = capsys.readouterr().err
    assert "another result of this run" in said and said.count("\n") == 1 and files(kept) == before
