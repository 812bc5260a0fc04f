"""The list of published checkpoints: its entries, files known by their bytes, and words for those that are missing."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from pathlib import Path

import pytest
import torch

import zoo
from bench import grid as grids
from bench.training import evaluate as evaluation
from zoo import published

ROOT = Path(__file__).parents[2]


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> published.Published:
    """A list of one: a small file with SHA-256, at a file: address."""
    source = tmp_path / "source.pth"
    torch.save(zoo.build("resnet8").state_dict(), source)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    entry = published.Published("us/resnet8.pth", "resnet8", 1.0, None, "", digest, "", "Us", source.as_uri(), "", "")
    monkeypatch.setattr(published, "published", lambda: (entry,))
    return entry


def test_every_entry_is_whole_and_one_of_its_kind() -> None:
    entries = published.published()
    for entry in entries:
        assert entry.arch in zoo.architectures() and entry.url.startswith("https://") and entry.source and entry.form
        assert re.fullmatch("[0-9a-f]{64}|", entry.sha256) and re.fullmatch("[0-9a-f]{40}|", entry.git)
        assert (entry.top1 is None) == (not entry.sha256)  # measured where the file was at hand
        assert entry.stated is None or 60 < entry.stated < 80
    for name in ("name", "sha256", "git"):
        found = [getattr(entry, name) for entry in entries if getattr(entry, name)]
        assert len(set(found)) == len(found)


def test_the_page_has_the_list() -> None:
    """Each file with its address, accuracy and the first digits of its digest; and it says where none is known."""
    page = (ROOT / "docs" / "weights.md").read_text()
    for entry in published.published():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{entry.name}` |")]
        assert f"| {entry.arch} |" in row
        measured = f"{entry.top1:.2f}" if entry.top1 else "—"
        assert f"| {measured} |" in row
        assert (f"`{entry.sha256}`" in row) if entry.sha256 else "not known" in row
        assert entry.url.partition("/raw/")[0].partition("/releases/")[0] in page


@pytest.mark.skipif("KD_WEIGHTS" not in os.environ, reason="KD_WEIGHTS names no folder of published checkpoints")
def test_files_at_hand_are_the_listed_ones() -> None:
    folder, found = Path(os.environ["KD_WEIGHTS"]), 0
    for entry in published.published():
        if (folder / entry.name).is_file():
            assert published.identified(folder / entry.name) == entry
            zoo.load_weights(zoo.build(entry.arch), folder / entry.name)
            found += 1
            if entry.git:  # as git computes it, of a file that SHA-256 knows too
                content = (folder / entry.name).read_bytes()
                assert hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == entry.git
    assert found


def test_words_about_a_file(tmp_path: Path, listed: published.Published, capsys: pytest.CaptureFixture) -> None:
    ours = tmp_path / "any.pth"
    ours.write_bytes((tmp_path / "source.pth").read_bytes())
    assert published.verdict(ours) == "published as us/resnet8.pth (resnet8 of Us, top-1 1.00)"
    (tmp_path / "us").mkdir()
    wrong = tmp_path / "us" / "resnet8.pth"
    torch.save(zoo.build("resnet8").state_dict(), wrong)
    own = hashlib.sha256(wrong.read_bytes()).hexdigest()
    assert published.verdict(wrong) == (
        f"not the published us/resnet8.pth: its SHA-256 begins {own[:12]}, that of Us {listed.sha256[:12]}"
    )
    foreign = tmp_path / "resnet8.pth"
    foreign.write_bytes(wrong.read_bytes())
    assert published.verdict(foreign) == ""
    assert published.main([str(ours)]) == 0 and published.main([str(ours), str(wrong), str(foreign)]) == 1
    out = capsys.readouterr().out
    assert "published as us/resnet8.pth" in out and "not a published checkpoint that is known here" in out
    assert published.main([str(tmp_path / "none")]) == 2 and "cannot be read" in capsys.readouterr().err
    assert published.main([]) == 0 and listed.sha256 in capsys.readouterr().out


def test_git_names_know_a_file_that_has_no_sha256(
    tmp_path: Path, listed: published.Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = (tmp_path / "source.pth").read_bytes()
    git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry = dataclasses.replace(listed, sha256="", git=git, top1=None, stated=71.0)
    monkeypatch.setattr(published, "published", lambda: (entry,))
    assert published.verdict(tmp_path / "source.pth").endswith("(resnet8 of Us, stated top-1 71.00)")
    (tmp_path / "us").mkdir()
    (tmp_path / "us" / "resnet8.pth").write_bytes(b"other")
    assert "its git SHA-1 begins" in published.verdict(tmp_path / "us" / "resnet8.pth")
    monkeypatch.setattr(published, "published", lambda: (dataclasses.replace(entry, git=""),))
    assert "whose SHA-256 is not known here" in published.verdict(tmp_path / "us" / "resnet8.pth")


def test_getting_one(
    tmp_path: Path, listed: published.Published, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "weights"
    get = ["--get", "us/resnet8.pth", str(folder)]
    for _ in range(2):  # again, it is there
        assert published.main(get) == 0 and "published as us/resnet8.pth" in capsys.readouterr().out
    assert (folder / "us" / "resnet8.pth").read_bytes() == (tmp_path / "source.pth").read_bytes()
    (folder / "us" / "resnet8.pth").write_bytes(b"mine")
    assert published.main(get) == 2 and "is there (not the published" in capsys.readouterr().err
    (folder / "us" / "resnet8.pth").unlink()
    (tmp_path / "source.pth").write_bytes(b"<html>")
    assert published.main(get) == 2 and "its digest differs: nothing was kept" in capsys.readouterr().err
    (tmp_path / "source.pth").unlink()
    assert published.main(get) == 2 and "cannot be fetched" in capsys.readouterr().err
    assert list((folder / "us").iterdir()) == []
    assert published.main(["--get", "us/resnet9.pth", str(folder)]) == 2
    assert "did you mean" in capsys.readouterr().err
    monkeypatch.setattr(published, "published", lambda: (dataclasses.replace(listed, part="in an archive"),))
    assert published.main(get) == 2 and "by hand" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["brief", "brief-ablation", "first-sprint"])
@pytest.mark.parametrize("place", [None, "empty"])
def test_a_grid_without_its_teacher_says_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, place: str | None
) -> None:
    if place:
        monkeypatch.setenv("KD_WEIGHTS", str(tmp_path))
    else:
        monkeypatch.delenv("KD_WEIGHTS", raising=False)
    with pytest.raises(zoo.BadInput) as caught:
        grids.expand(grids.load(name))
    line, entry = str(caught.value), published.named("sskd/resnet56.pth")
    assert entry.url in line and "$KD_WEIGHTS/sskd/resnet56.pth" in line and "docs/weights.md" in line
    assert "\n" not in line and ("is not set" in line) == (place is None)
    assert published.where_to_get("my.pth") == "" and published.where_to_get("xsskd/resnet56.pth") == ""


def test_evaluate_says_what_was_published(
    tmp_path: Path, listed: published.Published, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["--dataset", "embedded-1", "--device", "cpu"]
    assert evaluation.main(["--weights", str(tmp_path / "source.pth"), *arguments]) == 0
    assert "published as us/resnet8.pth" in capsys.readouterr().out
    torch.save(zoo.build("resnet8").state_dict(), tmp_path / "b.pth")
    assert evaluation.main(["--weights", str(tmp_path / "b.pth"), "--arch", "resnet8", *arguments]) == 0
    assert "published" not in capsys.readouterr().out
