"""A path means the same in every option, variable and file."""

from __future__ import annotations

from pathlib import Path

import pytest

import reproduce
from bench import datasets
from bench.surroundings import paths
from zoo.errors import BadInput


def test_home_and_variables(monkeypatch):
    monkeypatch.setenv("HOME", "/h")
    monkeypatch.setenv("ROOT", "~/r")
    for text, path in (
        ("~", "/h"),
        ("~/x", "/h/x"),
        ("$ROOT/x", "/h/r/x"),
        ("${ROOT}", "/h/r"),
        ("x/~", "x/~"),
        ("a b", "a b"),
        (Path("x"), "x"),
    ):
        assert paths.expand(text, "path") == Path(path)
    assert paths.expand("x", "path", Path("/base")) == Path("/base/x")
    assert paths.expand("~/x", "path", Path("/base")) == Path("/h/x")


@pytest.mark.parametrize(
    ("text", "says"), [("$NO_SUCH_PLACE/x", "NO_SUCH_PLACE is not set"), ("", "no path"), ("~nobody-here/x", "home")]
)
def test_what_is_no_path(text, says):
    with pytest.raises(BadInput, match=says) as error:
        paths.expand(text, "--out")
    assert str(error.value).startswith("--out ") and "\n" not in str(error.value)


def test_every_option_and_variable(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", "~/place")
    args = reproduce.parser().parse_args(["--out=~/x", "--data=$PLACE", "--compare", "${PLACE}/y"])
    assert (args.out, args.data, args.compare) == (tmp_path / "x", tmp_path / "place", tmp_path / "place" / "y")
    monkeypatch.setenv("CIFAR100_ROOT", "~/data")
    assert datasets.root("cifar100", None) == tmp_path / "data"
    with pytest.raises(SystemExit) as ended:
        reproduce.parser().parse_args(["--out", "$NO_SUCH_PLACE"])
    assert ended.value.code == 2 and "NO_SUCH_PLACE is not set" in capsys.readouterr().err
    for option in ("--grid", "--protocol", "--cluster"):
        arguments = ["--dry-run", "--out", str(tmp_path), "--executor", "slurm", option, "~/none.yaml"]
        if option != "--cluster":
            assert reproduce.main(arguments) == 2 and f"{tmp_path}/none.yaml" in capsys.readouterr().err
