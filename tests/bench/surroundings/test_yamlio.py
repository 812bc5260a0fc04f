from __future__ import annotations

import pytest

from bench.surroundings import yamlio
from zoo.errors import BadInput


def read(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    return yamlio.read(path, "grid")


def test_values_mean_what_a_person_means(tmp_path):
    values = read(
        tmp_path, "a: 10:30\nb: no\nc: true\nd: 1.0e-4\ne: 012\nf: 5\ng: null\nh: 1e-4\ni: .5\nj: on\nk: -3\n"
    )
    assert values == {
        "a": "10:30",
        "b": "no",
        "c": True,
        "d": 1e-4,
        "e": "012",
        "f": 5,
        "g": None,
        "h": "1e-4",
        "i": 0.5,
        "j": "on",
        "k": -3,
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3\n", 'line 3: "a" is given twice'),
        ("a: [1, 2\n", "line 2"),
        ("- 1\n- 2\n", "holds a list"),
        ("", "holds nothing"),
        ("a: !!python/object/apply:os.system ['true']\n", "line 1"),
    ],
)
def test_bad_files_get_one_line(tmp_path, text, says):
    with pytest.raises(BadInput) as error:
        read(tmp_path, text)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_missing_folder_and_binary_files(tmp_path):
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00\x81")
    for path, says in (
        (tmp_path / "none.yaml", "No such file"),
        (tmp_path, "directory"),
        (tmp_path / "b.yaml", "not text"),
    ):
        with pytest.raises(BadInput, match=says):
            yamlio.read(path, "grid")


def test_merge_keys(tmp_path):
    text = "a: &a {x: 1, y: 2}\nb: &b {<<: *a, y: 3}\nc: {d: {<<: *b, z: 4}}\ne: [{<<: [*b, *a]}, {<<: *a, <<: *b}]\n"
    values = read(tmp_path, text)
    assert values["b"] == {"x": 1, "y": 3} and values["c"] == {"d": {"x": 1, "y": 3, "z": 4}}
    assert values["e"][0] == {"x": 1, "y": 3}
    # an anchor deeper than what merges it, which reads it first
    nested = "a: {b: {c: &c {<<: &d {x: 1}, x: 2}}}\ne: {<<: *c}\n"
    assert read(tmp_path, nested)["e"] == {"x": 2} == read(tmp_path, nested)["a"]["b"]["c"]
    with pytest.raises(BadInput, match='line 2: "x" is given twice'):
        read(tmp_path, "a: &a {x: 1}\nb: {<<: *a, x: 2, 'x': 3}\n")
