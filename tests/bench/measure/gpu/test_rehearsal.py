"""The whole program on a CPU in its small form: every section that needs no GPU, real runs, the pack and the page."""

from __future__ import annotations

import json
import os
import time

import pytest
import torch

from bench.measure.gpu import facts as files
from bench.measure.gpu import judge, page, program, sections, sprint, trial
from jobs.carry import pack

torch.set_num_threads(1)
SMALL = trial.SMALL


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder of facts, that of results, and the exit status; with far more time than it needs."""
    folder = tmp_path_factory.mktemp("gpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CIFAR100_ROOT", raising=False)
        patch.delenv("KD_WEIGHTS", raising=False)
        status = program.main([*arguments(folder), "--minutes", "20"])
    return folder, status


def arguments(folder):
    return ["--small", "--device", "cpu", "--out", str(folder / "out"), "--results", str(folder / "results")]


@pytest.fixture
def facts(done):
    return files.read(done[0] / "out" / files.FILE)


def test_every_section_ends_well(done, facts):
    ended = {fact["section"]: fact["ended"] for fact in facts if fact["fact"] == "section"}
    assert ended == dict.fromkeys(program.SHARES, "done") | {"acceptance": "left out: minutes on a CPU"}
    assert done[1] == 0 and [fact for fact in facts if "error" in fact] == []
    assert list(dict.fromkeys(fact["section"] for fact in facts if fact["fact"] == "begins")) == [
        name for name in program.SHARES if name != "acceptance"
    ]


def test_facts_of_every_kind(facts):
    def count(kind: str) -> int:
        return len([fact for fact in facts if fact["fact"] == kind])

    precisions, batches = len(SMALL.precisions), len(SMALL.batches)
    assert count("machine") == count("defaults") == count("copy") == 1
    assert count("product") == precisions and count("convolution") == 2 * precisions * batches
    assert count("agreement") == len(SMALL.methods) + len(SMALL.agreeing_methods) * (precisions - 1) + 1  # all together
    assert count("cohort") == precisions * batches
    assert count("layout") == 2 * precisions * batches * len(SMALL.pairs)
    assert count("step") == len(SMALL.methods) * batches
    assert count("at once") == len(SMALL.processes) * precisions * batches
    assert count("plain") == len(SMALL.plain_pairs) and count("epoch") == 4
    assert all(fact["holds"] for fact in facts if fact["fact"] == "agreement")
    assert all(fact["ms"] > 0 and fact["flop"] > 0 and fact["bytes"] > 0 for fact in facts if fact["fact"] == "step")
    for fact in (fact for fact in facts if fact["fact"] == "kernels"):
        assert fact["kernels"] > 100 and sum(row[2] for row in fact["top"]) <= 1e3 * fact["busy_ms"] * 1.01


def test_real_results_come_home_in_one_file(done, facts, tmp_path):
    result = next(fact for fact in facts if fact["fact"] == "result")
    assert result["method"] == "vanilla" and 1 < result["top1"] < 100
    assert next(fact for fact in facts if fact["fact"] == "pack")["complete"]
    names = os.listdir(done[0] / "out")
    assert sorted(names) == sorted([files.FILE, page.FILE, sprint.PACK])
    assert pack.main(["--into", str(tmp_path / "home"), str(done[0] / "out" / sprint.PACK)]) == 0
    assert (tmp_path / "home" / "runs" / result["run_id"] / "result.json").is_file()


def test_the_page_is_made_of_the_facts(done, facts):
    text = (done[0] / "out" / page.FILE).read_text()
    assert text == page.text(facts)
    left_out = "acceptance" if judge.troubles(facts) == ["section acceptance: left out: minutes on a CPU"] else None
    assert left_out and [title for title in page.SECTIONS if f"## {title}\n" not in text] == ["Acceptance"]


def test_what_is_known_is_not_measured_again(facts, tmp_path):
    """With all known but one fact, that one alone is measured."""
    kept = [fact for fact in facts if not (fact["fact"] == "step" and fact["method"] == "kd")]
    (tmp_path / files.FILE).write_text("".join(json.dumps(fact) + "\n" for fact in kept))
    known, setting = files.Facts(tmp_path, time.time()), sections.Setting(torch.device("cpu"), SMALL, None, None)
    for name in ("steps", "processes"):
        assert program.measure(name, setting, known, time.monotonic() + 600) == "done"
    assert [fact["method"] for fact in known.read()[len(kept) :]] == ["kd"]


def test_what_is_not_at_hand_is_left_out_and_said(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("CIFAR100_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    command = ["--device", "cpu", "--out", str(tmp_path), "--sections", "acceptance", "sprint"]
    assert program.main(command) == 0
    said = [fact["ended"] for fact in files.read(tmp_path / files.FILE) if fact["fact"] == "section"]
    assert said == ["left out: no cifar-100-python at hand"] * 2


def test_a_wrong_request_gets_one_line(tmp_path, capsys):
    out = ["--out", str(tmp_path)]
    wrong = (
        ["--device", "cpu"],
        [*out, "--minutes", "0"],
        [*out, "--slots", "0"],
        [*out, "--sections", "machines"],
        [*out, "--device", "cpu", "--precision", "tf32"],
        [*out, "--device", "cud"],
    )
    for arguments in wrong:
        try:
            status = program.main(arguments)
        except SystemExit as ended:
            status = ended.code
        assert status == 2 and capsys.readouterr().err.count("\n") == 1, arguments
