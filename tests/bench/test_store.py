from __future__ import annotations

import errno
import json
import os
import random
from pathlib import Path

import pytest
import torch

from bench import store


def test_writing_is_all_or_nothing(tmp_path):
    path = tmp_path / "x.json"
    store.write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        store.write_json(path, {"a": float("nan")})

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError):
        store.write_atomically(path, fail)
    assert store.read_json(path) == {"a": 1} and os.listdir(tmp_path) == ["x.json"]


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', "\x00\x00", '{"a": 1'])
def test_damaged_json_is_told_from_absent(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(store.Damaged, match=r"x.json"):
        store.read_json(tmp_path / "x.json")
    assert store.read_json(tmp_path / "y.json") is None


def test_torch_files(tmp_path):
    store.write_torch(tmp_path / "x.pt", {"a": torch.arange(3), "b": [None, 1.5, {"c": "d"}]})
    read = store.read_torch(tmp_path / "x.pt")
    assert torch.equal(read["a"], torch.arange(3)) and read["b"] == [None, 1.5, {"c": "d"}]
    assert store.read_torch(tmp_path / "y.pt") is None
    (tmp_path / "x.pt").write_bytes((tmp_path / "x.pt").read_bytes()[:300])
    with pytest.raises(store.Damaged):
        store.read_torch(tmp_path / "x.pt")


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("bomb-went-off",)


def test_no_code_runs_from_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Bomb()}, tmp_path / "x.pt")
    with pytest.raises(store.Damaged):
        store.read_torch(tmp_path / "x.pt")
    assert not (tmp_path / "bomb-went-off").exists()


@pytest.fixture
def folder(tmp_path):
    folder = store.RunFolder(tmp_path / "run-a")
    folder.path.mkdir()
    return folder


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"run_id": "other"}, "another run"),
        ({"metrics": {}}, "top1_last"),
        ({"metrics": None}, "top1_last"),
        ({"metrics": {"top1_last": "71"}}, "top1_last"),
        ({"metrics": {"top1_last": True}}, "top1_last"),
        ({"timing": {"train_s": float("nan")}}, "train_s"),
        ({"timing": {"device_s": 10**400}}, "device_s"),
    ],
)
def test_invalid_results_count_as_damaged(folder, change, says):
    good = {"run_id": "run-a", "metrics": {"top1_last": 71.5}}
    folder.result.write_text(json.dumps(good))
    assert store.read_result(folder) == good
    folder.result.write_text(json.dumps({**good, **change}))
    with pytest.raises(store.Damaged, match=says):
        store.read_result(folder)


def long_result(epochs: int = 240) -> dict:
    chance = random.Random(0)
    names = ("lr", "train_loss", "ce", "kd", "top1", "top5", "test_loss", "wall_s")
    return {
        "schema": 1,
        "run_id": "run-a",
        "config": {"method": "kd", "params": {"curve": [1, 2], "text": 'a\n "curve": [ "é'}},
        "metrics": {"top1_last": 71.5},
        "timing": {"train_s": 10.0},
        "curve": [{"epoch": epoch, **{name: chance.random() for name in names}} for epoch in range(epochs)],
    }


@pytest.mark.parametrize("epochs", [0, 1, 240])
def test_result_reads_back_whole_and_without_its_curve(folder, epochs, monkeypatch):
    result = long_result(epochs)
    store.write_result(folder.result, result)
    raw = json.loads(folder.result.read_text())
    assert {name: value for name, value in raw.items() if name != "curve_crc32"} == result
    assert store.read_result(folder) == raw and len(folder.result.read_text().splitlines()) < 50 + epochs
    largest = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda text: largest.append(len(text)) or loads(text))
    head = store.read_result(folder, curve=False)
    assert head == {name: value for name, value in raw.items() if name != "curve"}
    assert max(largest) < 1000  # the curve was not parsed
    with pytest.raises(ValueError):
        store.write_result(folder.result, {**result, "curve": [{"top1": float("nan")}]})


@pytest.mark.parametrize("writer", ["write_result", "write_json"])  # write_json: as older versions wrote it
def test_damage_is_seen_without_parsing_the_curve(folder, writer):
    """Bytes cut off, changed or zeroed anywhere: read without the curve, a file is damaged exactly if it is with it."""

    def verdict(curve: bool):
        try:
            result = store.read_result(folder, curve=curve)
            return {name: value for name, value in result.items() if name != "curve"}
        except store.Damaged:
            return "damaged"

    getattr(store, writer)(folder.result, long_result(20))
    whole, chance = folder.result.read_bytes(), random.Random(1)
    assert verdict(curve=False) == verdict(curve=True) != "damaged"
    verdicts = []
    for _ in range(300):
        at, much = chance.randrange(len(whole)), chance.choice((1, 1, 64))
        junk = chance.choice((b"", b"\0" * much, bytes(chance.randrange(256) for _ in range(much)), b'"', b"7"))
        folder.result.write_bytes(whole[:at] + (junk + whole[at + len(junk) :] if junk else b""))
        verdicts.append(verdict(curve=False))
        assert verdicts[-1] == verdict(curve=True), (at, junk)
    assert 150 < verdicts.count("damaged") < 300


def test_set_aside_keeps_everything(tmp_path):
    for content in ("one", "two"):
        (tmp_path / "x").write_text(content)
        store.set_aside(tmp_path / "x")
    assert sorted(os.listdir(tmp_path)) == ["x.aside-1", "x.aside-2"]
    (tmp_path / "x").write_text("three")
    assert store.set_aside(tmp_path / "x", tmp_path / "aside").read_text() == "three"


def test_what_cannot_be_read_now_is_not_damaged(folder, monkeypatch):
    """Nor absent: whoever asks is told so by an error that keeps its meaning."""
    monkeypatch.setattr(store, "READ_AGAIN_S", (0.0, 0.0))
    tries = []

    def fail(path):
        tries.append(path)
        raise OSError(number, os.strerror(number), str(path))

    for number in (errno.EIO, errno.ESTALE, errno.EMFILE, errno.EACCES, errno.ELOOP):
        monkeypatch.setattr(store, "_gave_up", -store.TIRED_S)
        tries.clear()
        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_bytes", fail)
            for read in (
                lambda: store.read_result(folder),
                lambda: store.read_json(folder.error),
                lambda: store.read_torch(folder.last),
                lambda: store.weights_fault(folder),
            ):
                with pytest.raises(store.Unreadable, match=r"cannot be read now") as found:
                    read()
                assert found.value.errno == number
        # What may pass is tried again, for the first file of a disk that is away and not for each.
        assert len(tries) == (6 if number in store.PASSING else 4)


def test_what_passes_is_waited_for(folder, monkeypatch):
    store.write_json(folder.error, {"message": "x"})
    left, read = [errno.EIO, errno.ESTALE], Path.read_bytes

    def sometimes(path):
        if left:
            raise OSError(left.pop(), "for a moment", str(path))
        return read(path)

    monkeypatch.setattr(store, "READ_AGAIN_S", (0.0, 0.0))
    monkeypatch.setattr(store, "_gave_up", -store.TIRED_S)
    monkeypatch.setattr(Path, "read_bytes", sometimes)
    assert store.read_json(folder.error) == {"message": "x"} and not left


def test_a_disk_that_cannot_promise_to_keep_is_written_all_the_same(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    number = errno.EINVAL
    store.write_json(tmp_path / "x.json", {"a": 1})
    assert store.read_json(tmp_path / "x.json") == {"a": 1}
    number = errno.EIO  # a promise broken is no promise that was never made
    with pytest.raises(OSError):
        store.write_json(tmp_path / "x.json", {"a": 2})
    assert store.read_json(tmp_path / "x.json") == {"a": 1}
