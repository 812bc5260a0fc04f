"""The command as a person uses it: end to end, again, interrupted, killed, twice at once; and wrong requests."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import os
import pty
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import torch

import reproduce
import zoo
from bench import store
from jobs import plan as plans
from tests import tiny
from tests.jobs.screen import shown
from zoo.errors import BadInput

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, str(ROOT / "reproduce.py")]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def start(*arguments, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=ENVIRONMENT,
        **options,
    )


def call(*arguments) -> tuple[int, str]:
    """The command in this process, whose imports are done; its workers are processes of their own all the same."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = reproduce.main([*map(str, arguments)])
    return status, said.getvalue()


def results(out: Path) -> dict[str, dict]:
    """What must be equal however the runs were disturbed: metrics and curves without clocks."""
    found = {}
    for path in sorted(out.glob("runs/*/result.json")):
        result = json.loads(path.read_text())
        curve = [{key: value for key, value in row.items() if key != "wall_s"} for row in result["curve"]]
        found[path.parent.name] = {"metrics": result["metrics"], "curve": curve}
    return found


def times_trained(out: Path) -> dict[str, int]:
    """How often each run came to its end, from its log."""
    return {path.parent.name: len(re.findall(r"done: top-1", path.read_text())) for path in out.glob("runs/*/log.txt")}


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("grid"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, grid):
    out = tmp_path_factory.mktemp("undisturbed")
    process = start("--grid", grid, "--out", out, "--slots", 2, "--no-plots")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return out, said


def test_from_nothing_to_a_table(undisturbed):
    out, said = undisturbed
    assert len(results(out)) == 3  # teacher and Student row are one run here
    assert set(times_trained(out).values()) == {1}
    table = (out / "table.md").read_text()
    for label in ("Teacher", "Student", "FitNet", "KD"):
        assert re.search(rf"^\| {label}\b", table, re.M), table
    for name in ("table.tex", "table.csv", "runs.csv", "plan.json"):
        assert (out / name).stat().st_size > 0
    assert "[3/3]" in said and "wrote" in said and "\x1b" not in said and "\r" not in said


def test_again_does_nothing(undisturbed, grid):
    out, _ = undisturbed
    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*")}
    status, said = call("--grid", grid, "--out", out, "--no-plots")
    assert status == 0 and "3 done" in said and "[0/" not in said
    assert before == {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*")}


def test_reading_commands_start_nothing(undisturbed, grid, tmp_path):
    out, _ = undisturbed
    status, said = call("--grid", grid, "--out", tmp_path / "new", "--dry-run")
    assert status == 0 and "3 missing" in said and "waits for its teacher" in said
    assert len(re.findall(r"^  missing  .*\)  \d+s$", said, re.M)) == 3  # the expected time of each run
    assert re.search(r"^to do: 3 runs, .* PFLOP: \S+ core-minutes on .*, about \d+s with \d slots? ", said, re.M), said
    assert "3 of 3 kinds of run measured in" in said and re.search(r"^disk: \d+ MB in the end", said, re.M)
    assert not (tmp_path / "new").exists()
    assert call("--status", "--out", out)[0] == 0  # the grid is the one kept in the folder
    (out / "table.md").unlink()
    assert call("--report", "--no-plots", "--out", out)[0] == 0 and (out / "table.md").exists()
    status, said = call("--grid", grid, "--out", tmp_path / "new", "--status")  # nothing was ever run there
    assert status == 2 and "there is no such folder" in said and not (tmp_path / "new").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_then_again(undisturbed, grid, tmp_path, number):
    process = start("--grid", grid, "--out", tmp_path, "--slots", 2, "--no-plots")
    while "done" not in process.stdout.readline():
        pass
    process.send_signal(number)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 3 and "the same command goes on" in said
    assert not list(tmp_path.glob("runs/*/claim*"))
    assert call("--grid", grid, "--out", tmp_path, "--slots", 2, "--no-plots")[0] == 0
    assert results(tmp_path) == results(undisturbed[0])
    assert set(times_trained(tmp_path).values()) == {1}


def test_driver_killed_then_again(undisturbed, grid, tmp_path):
    chance = random.Random(1)
    for _ in range(2):
        process = start("--grid", grid, "--out", tmp_path, "--slots", 2, "--no-plots")
        while "started" not in process.stdout.readline():
            pass
        time.sleep(3 + 3 * chance.random())
        process.kill()
        process.wait()
    assert call("--grid", grid, "--out", tmp_path, "--slots", 2, "--no-plots")[0] == 0
    assert results(tmp_path) == results(undisturbed[0])
    assert set(times_trained(tmp_path).values()) == {1}


def test_worker_killed_is_tried_once_more_then_failed(grid, undisturbed, tmp_path):
    process = start("--grid", grid, "--out", tmp_path, "--slots", 1, "--no-plots")
    killed = 0
    while killed < 2:  # the teacher's worker, twice: everything else depends on it
        for claim in tmp_path.glob("runs/vanilla-*/claim*.json"):
            try:
                holder = json.loads(claim.read_text())["pid"]
                os.kill(holder, signal.SIGKILL)
            except (OSError, ValueError):
                continue
            killed += 1
            time.sleep(0.5)
        time.sleep(0.02)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "once more" in said and "worker died 2 times, last with signal 9" in said
    assert said.count("BLOCKED") == 2 and "--retry-failed" in said and "log.txt" in said
    table = (tmp_path / "table.md").read_text()
    assert "failed" in table and "blocked" in table
    assert call("--grid", grid, "--out", tmp_path, "--no-plots")[0] == 1  # a failed run is not tried again unasked
    assert call("--grid", grid, "--out", tmp_path, "--slots", 2, "--retry-failed", "--no-plots")[0] == 0
    assert set(results(tmp_path)) == set(results(undisturbed[0]))


def test_two_drivers_at_once_do_nothing_twice(undisturbed, grid, tmp_path):
    pair = [start("--grid", grid, "--out", tmp_path, "--slots", 2, "--no-plots") for _ in range(2)]
    said = [process.communicate(timeout=300)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said
    assert results(tmp_path) == results(undisturbed[0])
    assert set(times_trained(tmp_path).values()) == {1}


def test_time_budget(grid, tmp_path):
    status, said = call("--grid", grid, "--out", tmp_path, "--time-budget", "0.02", "--no-plots")
    assert status == 3 and "time budget used up" in said


class Terminal:
    """The command on a terminal of its own, which is 100 columns wide; `said` is what it has written so far."""

    def __init__(self, *arguments, **environment) -> None:
        self.leader, follower = pty.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        plain = {name: value for name, value in ENVIRONMENT.items() if name not in ("CI", "NO_COLOR")}
        self.process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            stdin=follower,
            stdout=follower,
            stderr=follower,
            env={**plain, "TERM": "xterm", **environment},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # keys that are pressed reach it
        )
        os.close(follower)
        self._bytes = b""

    @property
    def said(self) -> str:
        return self._bytes.decode(errors="replace")

    def until(self, condition) -> None:
        while not condition(self.said):
            assert self._read(), self.said

    def press(self, key: bytes) -> None:
        os.write(self.leader, key)

    def end(self) -> int:
        while self._read():
            pass
        os.close(self.leader)
        return self.process.wait()

    def _read(self) -> bool:
        try:
            piece = os.read(self.leader, 1 << 16)
        except OSError:  # the other side is closed
            return False
        self._bytes += piece
        return bool(piece)


def test_live_display_on_a_terminal(grid, tmp_path):
    """Something at once, then a bar for what is at work; lines of what is done stay, and the display goes."""
    terminal = Terminal("--grid", grid, "--out", tmp_path, "--only", "method=teacher", "--no-plots")
    terminal.until(lambda said: "\n" in said)
    assert terminal.said.startswith(f'kd-bench: reading grid "{grid}" ...')
    terminal.until(lambda said: re.search(r"resnet8 +s0 +Teacher", said))
    lines = shown(terminal.said)
    assert any(re.match(r"0 done, 0 failed, 1 running, 0 waiting   \d+s so far", line) for line in lines)
    assert not any("started" in line for line in lines)
    assert terminal.end() == 0
    lines = shown(terminal.said)
    assert sum("done  top-1" in line for line in lines) == 1
    assert not any("so far" in line or "━" in line for line in lines)


def test_ctrl_c_on_a_terminal(grid, tmp_path):
    """The display goes, the cursor is there, words and exit status are those of a pipe."""
    terminal = Terminal("--grid", grid, "--out", tmp_path, "--no-plots", "--slots", "2")
    terminal.until(lambda said: re.search(r"resnet8 +s0 +Teacher", said))
    terminal.press(b"\x03")
    assert terminal.end() == 3
    lines = shown(terminal.said)
    assert "stopping: workers write their checkpoints (once more to kill them)" in lines
    assert "stopped early: interrupted; the same command goes on" in lines
    assert not any("so far" in line or "━" in line for line in lines) and "\x1b[?25l" not in terminal.said


def bomb(path: Path) -> Path:
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(path.parent / "went-off"),)

    torch.save({"model": {"conv1.weight": Bomb()}}, path)
    return path


def weights_of(arch: str, path: Path) -> Path:
    torch.save({"model": zoo.build(arch).state_dict()}, path)
    return path


def with_teacher(path: Path) -> str:
    return f"[{{teacher: resnet20, student: resnet8, teacher_weights: '{path}'}}]"


PAIRS = "[resnet8-resnet8]"
BAD_GRIDS = {  # name -> (edit of the grid text, edit of the protocol text, what the line must hold)
    "unknown key": (("methods:", "method:"), None, 'did you mean "methods"'),
    "misspelt method": (("fitnet", "fitnets"), None, 'did you mean "fitnet"'),
    "misspelt architecture": ((PAIRS, "[resnet8-resnet08]"), None, 'did you mean "resnet8"'),
    "misspelt protocol": (("PROTOCOL", "standrad"), None, 'did you mean "standard"'),
    "protocol file missing": (("PROTOCOL", "nowhere/x.yaml"), None, "nowhere/x.yaml"),
    "empty pairs": ((PAIRS, "[]"), None, "empty"),
    "empty methods": (("[vanilla, kd, fitnet]", "[]"), None, "empty"),
    "pair without dash": ((PAIRS, "[resnet8]"), None, "teacher-student"),
    "duplicate pair": ((PAIRS, "[resnet8-resnet8, resnet8-resnet8]"), None, "twice"),
    "duplicate method": (("[vanilla, kd, fitnet]", "[kd, kd]"), None, "twice"),
    "equal runs under two labels": (("[vanilla, kd, fitnet]", "[kd, {method: kd, label: B}]"), None, "same run twice"),
    "seeds as text": (("seeds: 1", "seeds: three"), None, "seeds"),
    "no seeds": (("seeds: 1", "seeds: 0"), None, "seeds"),
    "negative seed": (("seeds: 1", "seeds: [-1]"), None, "seeds"),
    "key given twice": (("seeds: 1", "seeds: 1\nseeds: 2"), None, "given twice"),
    "not YAML": (("seeds: 1", "seeds: [1"), None, "line"),
    "parameter unknown": (("[vanilla, kd, fitnet]", "[{method: kd, params: {temp: 4.0}}]"), None, "temperature"),
    "parameter as text": (("[vanilla, kd, fitnet]", "[{method: kd, params: {temperature: 1e1}}]"), None, "YAML reads"),
    "number as text": (None, ("batch: 32", "lr: 1e-4"), "1.0e-4"),
    "base-60 number": (None, ("batch: 32", "lr: 10:30"), "train.lr"),
    "truth value as text": (None, ("batch: 32", "nesterov: yes"), "nesterov"),
    "wrong type": (None, ("epochs: 2", "epochs: [2]"), "epochs"),
    "negative epochs": (None, ("epochs: 2", "epochs: -2"), "epochs"),
    "nan": (None, ("batch: 32", "lr: .nan"), "train.lr"),
    "unbalanced subset": (None, ("train_images: 100", "train_images: 150"), "multiple of 100"),
    "too large a subset": (None, ("train_images: 100", "train_images: 10000000"), "up to"),
    "unbalanced split": (None, ("train_images: 100", "validation: 150"), "validation: 150 is not"),
    "split of one method": (None, ("  dkd:", "  kd: {data: {validation: 1100}}\n  dkd:"), "up to 1000"),
    "subset larger than what is left": (None, ("train_images: 100", "train_images: 1600, validation: 500"), "1500"),
    "key that is a list": (("seeds: 1", "? [a, b]\n: 1"), None, "YAML"),
    "impossible date": (("about:", "about: 2024-13-45\nx:"), None, "YAML"),
    "tag with junk": (("seeds: 1", "seeds: !!int abc"), None, "YAML"),
    "two rows of one name": (
        ("[vanilla, kd, fitnet]", "[kd, {method: fitnet, label: KD}]"),
        None,
        "give another label",
    ),
    "a row called Student": (("[vanilla, kd, fitnet]", "[{method: kd, label: Student}]"), None, "rows of their own"),
    "epochs beyond reason": (None, ("epochs: 2", f"epochs: {10**400}"), "epochs"),
    "real data missing": (None, ("embedded-1", "cifar100"), "cifar-100-python"),
}


@pytest.mark.parametrize("name", BAD_GRIDS)
def test_bad_grid_gets_one_line_and_exit_2(tmp_path, capsys, name):
    grid_edit, protocol_edit, says = BAD_GRIDS[name]
    grid_text = tiny.GRID.replace(*grid_edit, 1) if grid_edit else tiny.GRID
    protocol_text = tiny.PROTOCOL.replace(*protocol_edit, 1) if protocol_edit else tiny.PROTOCOL
    assert (grid_text, protocol_text) != (tiny.GRID, tiny.PROTOCOL)
    grid = tiny.write(tmp_path / "grid", grid_text, protocol_text)
    refused(capsys, tmp_path, says, "--grid", grid, "--data", tmp_path)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: folder / "none.pth", "none.pth"),
        (lambda folder: weights_of("resnet8", folder / "w.pth"), "looks like resnet8"),
        (lambda folder: bomb(folder / "w.pth"), "holds code"),
        (lambda folder: (folder / "w.pth").write_bytes(b"PK\x03\x04junk") and folder / "w.pth", "w.pth"),
        (lambda folder: folder, "folder|directory"),
        (lambda folder: "${UNSET_PLACE}/w.pth", "UNSET_PLACE"),
    ],
)
def test_bad_teacher_file_gets_one_line_and_exit_2(tmp_path, capsys, make, says):
    text = tiny.GRID.replace(PAIRS, with_teacher(make(tmp_path)))
    refused(capsys, tmp_path, says, "--grid", tiny.write(tmp_path / "grid", text))
    assert not (tmp_path / "went-off").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--grid", "quik"], 'did you mean "quick"'),
        (["--grid", "no/such.yaml"], "no/such.yaml"),
        (["--grdi", "quick"], "unrecognized arguments"),
        (["--slots", "0"], "--slots"),
        (["--together", "0"], "--together"),
        (["--hung-min", "0"], "--hung-min"),
        (["--hung-min", "inf"], "--hung-min"),
        (["--slots", "two"], "--slots"),
        (["--seeds", "a"], "--seeds"),
        (["--seeds", "1,1"], "twice"),
        (["--only", "method=kdd"], 'did you mean "kd"'),
        (["--only", "kd"], "key=value"),
        (["--time-budget", "-1"], "--time-budget"),
        (["--time-budget", "nan"], "--time-budget"),
        (["--device", "tpu"], "choose auto, cpu or cuda"),
        (["--precision", "fp16"], "--precision"),
        (["--precision", "tf32", "--device", "cpu"], "tf32"),
        (["--executor", "slurm"], "no sbatch here|--executor slurm: "),
        (["--protocol", "standart"], 'did you mean "standard"'),
        (["--dry-run", "--status"], "not allowed with"),
        (["--dry-run=all"], "choose from summary, runs|choose from 'summary', 'runs'"),
        (["--on", "h100"], "add --dry-run"),
        (["--on", "avx2", "--dry-run", "--precision", "tf32"], "tf32"),
        (["--on", "h1000", "--dry-run"], 'did you mean "h100"'),
        (["--seeds", ""], "--seeds"),
        (["--seeds", "100000000000"], "--seeds"),
        (["--slots", "1000000000000"], "--slots"),
        (["--protocol", ""], "unknown protocol"),
        (["--grid", ""], "unknown grid"),
        (["--grid", "a\nb"], "unknown grid"),
        (["--only", "method=kd,method=fitnet"], "given twice"),
        (["--device", "cuda:128"], "cuda:128"),
    ],
)
def test_bad_arguments_get_one_line_and_exit_2(tmp_path, capsys, arguments, says):
    given = [] if "--grid" in arguments else ["--grid", tiny.write(tmp_path / "grid")]
    refused(capsys, tmp_path, says, *given, *arguments)


@pytest.mark.parametrize(
    ("arguments", "seeds"),
    [
        (["--seed", "42"], [42]),
        (["--seed", "4,2"], [4, 2]),
        (["--seeds", "2"], [0, 1]),
        (["--seeds", "0", "1", "2"], [0, 1, 2]),
        (["--seeds", "0,", "1"], [0, 1]),
        (["--seeds", "1-3"], [1, 2, 3]),
        ([], None),
    ],
)
def test_seeds_of_the_command_line(arguments, seeds):
    assert reproduce._seeds(reproduce.parser().parse_args(arguments)) == seeds


def test_more_runs_than_a_person_means_are_asked_about(tmp_path, capsys, monkeypatch):
    grid = tiny.write(tmp_path / "grid")
    many = ["--grid", grid, "--seeds", "42"]
    says = "126 runs to do, with 42 seeds: --seeds 42 is a count, the one seed 42 is --seed 42; --yes starts them"
    refused(capsys, tmp_path, says, *many)
    refused(capsys, tmp_path, "two ways to say one thing", *many, "--seed", "1")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    asked = []
    for answer, starts in (("", False), ("no", False), ("y", True), ("YES", True)):
        monkeypatch.setattr("builtins.input", lambda question, answer=answer: asked.append(question) or answer)
        args = reproduce.parser().parse_args(["--seeds", "42"])
        plan = plans.make(reproduce._grid(reproduce.parser().parse_args(list(map(str, many)))), tmp_path / "out")
        if starts:
            reproduce._confirm(args, plan)
        else:
            with pytest.raises(BadInput, match="not started"):
                reproduce._confirm(args, plan)
    assert len(asked) == 4 and all("126 runs to do" in question for question in asked)
    reproduce._confirm(reproduce.parser().parse_args(["--seeds", "42", "--yes"]), plan)


def test_filters_that_read_as_if_both_had_to_hold_are_said(capsys):
    for only in ([], ["method=kd,student=resnet8"], ["seed=0", "seed=1"], ["method=kd,seed=1", "seed=0"]):
        reproduce._say_filters(only)
        assert capsys.readouterr().err == ""
    reproduce._say_filters(["method=kd", "student=resnet8"])
    said = capsys.readouterr().err
    assert "any of 2 filters matches; for those that all match write method=kd,student=resnet8" in said


def test_the_whole_table_with_five_seeds_is_not_asked_about(tmp_path):
    args = reproduce.parser().parse_args(["--seeds", "5"])
    reproduce._confirm(args, plans.make(reproduce._grid(args), tmp_path))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_gpu_is_said(tmp_path, capsys):
    refused(capsys, tmp_path, "no GPUs found", "--grid", tiny.write(tmp_path / "grid"), "--device", "cuda")


def test_unwritable_folder_is_said(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    grid = tiny.write(tmp_path / "grid")
    refused(capsys, tmp_path, "is a file", "--grid", grid, out=tmp_path / "file")
    refused(capsys, tmp_path, "cannot write", "--grid", grid, out=tmp_path / "file" / "below")
    refused(capsys, tmp_path, "cannot write", "--grid", grid, out=Path("/proc/nowhere"))


def refused(capsys, tmp_path, says, *arguments, out=None):
    """Exit 2 with one line on standard error that holds `says`; nothing started, nothing written."""
    out = out or tmp_path / "out"
    try:
        status = reproduce.main([*map(str, arguments), "--out", str(out)])
    except SystemExit as leaving:
        status = leaving.code
    said = capsys.readouterr()
    assert status == 2, said
    assert re.search(says, said.err) and said.err.count("\n") == 1 and said.err.startswith("error: "), said.err
    assert "Traceback" not in said.err and not list(tmp_path.glob("out/runs/*/*"))


DAMAGED = ['{"run_id": ', '{"schema": 99}', '{"timing": null}', '{"provenance": [1]}', '{"timing": {"train_s": "x"}}']


@pytest.mark.parametrize("content", [*DAMAGED, "[" * 9999])
def test_damaged_results_are_read_past(undisturbed, tmp_path, content, capsys):
    """Whatever a result.json holds, the plan says damaged and goes on."""
    out, _ = undisturbed
    shutil.copytree(out, tmp_path / "out")
    path = next((tmp_path / "out").glob("runs/vanilla-*/result.json"))
    try:
        content = json.dumps({**json.loads(path.read_text()), **json.loads(content)})
    except (ValueError, RecursionError):
        pass
    path.write_text(content)
    assert reproduce.main(["--status", "--out", str(tmp_path / "out")]) == 1
    assert "result.json is" in capsys.readouterr().out


def test_a_full_disk_is_said(tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refused(capsys, tmp_path, "No space left on device", "--grid", tiny.write(tmp_path / "grid"))


def test_one_worker_stopped_from_outside_goes_on(grid, undisturbed, tmp_path):
    process = start("--grid", grid, "--out", tmp_path, "--slots", 2, "--no-plots")
    stopped = False
    while not stopped:
        for claim in tmp_path.glob("runs/vanilla-*/claim*.json"):
            with contextlib.suppress(OSError, ValueError):
                os.kill(json.loads(claim.read_text())["pid"], signal.SIGTERM)
                stopped = True
        time.sleep(0.02)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert results(tmp_path) == results(undisturbed[0])


def test_truncated_result_is_set_aside_and_done_again(undisturbed, grid, tmp_path):
    call("--grid", grid, "--out", tmp_path, "--only", "method=teacher", "--no-plots")
    path = next(tmp_path.glob("runs/vanilla-*/result.json"))
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    status, said = call("--grid", grid, "--out", tmp_path, "--status")
    assert status == 1 and "Traceback" not in said
    status, said = call("--grid", grid, "--out", tmp_path, "--only", "method=teacher", "--no-plots")
    assert status == 0 and path.with_name("result.json.aside-1").exists()
    name = path.parent.name
    assert results(tmp_path)[name] == results(undisturbed[0])[name]
    assert store.read_result(store.RunFolder(path.parent))


def test_output_that_cannot_be_written_costs_itself(undisturbed, grid, tmp_path, monkeypatch):
    """A home on a full disk, a terminal that has gone: the table is written all the same, the status is true."""

    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

    shutil.copytree(undisturbed[0], tmp_path / "out")
    (tmp_path / "out" / "table.md").unlink()
    errors = io.StringIO()
    with contextlib.redirect_stdout(Full()), contextlib.redirect_stderr(errors):
        status = reproduce.main(["--grid", str(grid), "--out", str(tmp_path / "out"), "--no-plots"])
    assert status == 0 and (tmp_path / "out" / "table.md").exists()
    assert errors.getvalue() == "note: output was lost (No space left on device); nothing else was\n"


def test_a_disk_without_hard_links_is_said_once_and_worked_around(undisturbed, grid, tmp_path, monkeypatch):
    def link(source, target):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    shutil.copytree(undisturbed[0], tmp_path / "out")
    status, said = call("--grid", grid, "--out", tmp_path / "out", "--no-plots")
    assert status == 0 and said.count("has no hard links (Operation not permitted)") == 1


def test_output_into_a_closed_pipe(undisturbed, grid):
    """`reproduce.py --dry-run | head -1` ends without a traceback."""
    code = "from bench.measure import calibration; calibration.CALIBRATION_S = 0; import reproduce; reproduce.main()"
    process = subprocess.run(
        f"{sys.executable} -c '{code}' --grid full --dry-run | head -1",
        shell=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )
    assert "Traceback" not in process.stderr and "BrokenPipe" not in process.stderr
