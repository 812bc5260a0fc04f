"""The kit: the data set comes out as it went in, and what is missing or damaged is one line."""

from __future__ import annotations

import hashlib
import pickle
import zipfile

import numpy as np
import pytest

from bench.measure.gpu import kit, program

IMAGES = {"train": 130, "test": 20}


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A data set in the form of CIFAR-100, of a few images, and a teacher."""
    folder = tmp_path / "data" / "cifar-100-python"
    folder.mkdir(parents=True)
    (folder / "meta").write_bytes(b"names of classes")
    draw = np.random.default_rng(0)
    for split, number in IMAGES.items():
        images = draw.integers(0, 256, (number, kit.PIXELS), dtype=np.uint8)
        content = {"filenames": [f"{k}.png" for k in range(number)], "data": images, "fine_labels": [1] * number}
        (folder / split).write_bytes(pickle.dumps(content, protocol=4))
    md5 = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    monkeypatch.setattr(kit, "known_md5", lambda: md5)
    monkeypatch.setattr(kit, "SPLITS", IMAGES)
    monkeypatch.setattr(kit, "ACROSS", 8)
    monkeypatch.setattr(kit, "DOWN", 8)
    (tmp_path / "weights" / "sskd").mkdir(parents=True)
    (tmp_path / "weights" / "sskd" / "resnet56.pth").write_bytes(b"weights")

    def wheels(folder):
        folder.mkdir()
        (folder / "pydantic-2.whl").write_bytes(b"wheel")

    monkeypatch.setattr(kit, "_wheels", wheels)
    return folder


def command(tmp_path, *more):
    return program.main(["--data", str(tmp_path / "data"), "--weights", str(tmp_path / "weights"), *map(str, more)])


def test_out_as_it_went_in(tmp_path, data, capsys):
    assert command(tmp_path, "--kit", tmp_path / "kit") == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and "pydantic-2.whl" in said[0] and "weights/sskd/resnet56.pth" in said[1]
    parts = sorted((tmp_path / "kit").rglob("*.zip"))
    assert [part.parent.name for part in parts] == ["1", "2"]
    held = [len(zipfile.ZipFile(part).namelist()) for part in parts]
    assert held == [1 + 4 + 2, 2]  # three pictures of the training set, one of the test set
    assert program.main(["--data", str(tmp_path / "there"), "--restore", *map(str, reversed(parts))]) == 0
    for name in ("train", "test", "meta"):
        assert (tmp_path / "there" / data.name / name).read_bytes() == (data / name).read_bytes()


def test_half_a_kit_is_refused(tmp_path, data, capsys):
    assert command(tmp_path, "--kit", tmp_path / "kit") == 0
    parts = sorted((tmp_path / "kit").rglob("*.zip"))
    for given in (parts[:1], parts[1:], [tmp_path / "weights" / "sskd" / "resnet56.pth"], [tmp_path / "none.zip"]):
        assert program.main(["--data", str(tmp_path / "there"), "--restore", *map(str, given)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "there").exists()


def test_what_a_kit_needs_is_named(tmp_path, data, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    wrong = [
        (["--kit", tmp_path / "kit", "--data", tmp_path / "none"], "no CIFAR-100"),
        (["--kit", tmp_path / "kit", "--weights", tmp_path / "none"], "resnet56.pth"),
        (["--kit", tmp_path / "full"], "not empty"),
    ]
    for arguments, word in wrong:
        assert command(tmp_path, *arguments) == 2
        said = capsys.readouterr().err
        assert word in said and said.count("\n") == 1


def test_a_folder_that_is_too_large_to_carry_is_refused(tmp_path, data, capsys, monkeypatch):
    monkeypatch.setattr(kit, "MOST_MIB", 0.01)
    assert command(tmp_path, "--kit", tmp_path / "kit") == 2
    assert "may have" in capsys.readouterr().err
