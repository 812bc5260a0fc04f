from __future__ import annotations

import json
import os

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


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"run_id": "other"}, "another run"),
        ({"metrics": {}}, "top1_last"),
        ({"metrics": None}, "top1_last"),
        ({"metrics": {"top1_last": "71"}}, "top1_last"),
        ({"metrics": {"top1_last": True}}, "top1_last"),
    ],
)
def test_invalid_results_count_as_damaged(tmp_path, change, says):
    folder = store.RunFolder(tmp_path / "run-a")
    folder.path.mkdir()
    good = {"run_id": "run-a", "metrics": {"top1_last": 71.5}}
    folder.result.write_text(json.dumps(good))
    assert store.read_result(folder) == good
    folder.result.write_text(json.dumps({**good, **change}))
    with pytest.raises(store.Damaged, match=says):
        store.read_result(folder)


def test_set_aside_keeps_everything(tmp_path):
    for content in ("one", "two"):
        (tmp_path / "x").write_text(content)
        store.set_aside(tmp_path / "x")
    assert sorted(os.listdir(tmp_path)) == ["x.aside-1", "x.aside-2"]
    (tmp_path / "x").write_text("three")
    assert store.set_aside(tmp_path / "x", tmp_path / "aside").read_text() == "three"
