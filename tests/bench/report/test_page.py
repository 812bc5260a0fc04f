from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from bench.cells import RunStatus, TableSpec
from bench.report import drawing
from bench.report import page as pages
from bench.report import writing as report
from bench.report.curves import Curves
from bench.report.frames import Results, collect, curves
from bench.report.hypertext import Html, tag
from bench.report.markup import markdown
from bench.report.page import duration
from tests.bench.report.report_cases import NOW, A, B, Grid, hand_made, result

VOID = {"meta", "img", "br"}
EVIL = "</td></style><script>alert(1)</script> <img src=x onerror=alert(2)> \"' &amp; \ud800 \x07"


class Read(HTMLParser):
    """The page as a browser's parser sees it: elements, and the text of each anchor; strict about nesting."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.rows: dict[str, list[str]] = {}  # texts of the cells of the table "last", by the row's label
        self._table, self._row = "", None
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, name: str, attributes: list[tuple[str, str]]) -> None:
        assert len({key for key, _ in attributes}) == len(attributes)
        self.elements.append((name, dict(attributes)))
        if name not in VOID:
            self.open.append(name)
        if name == "table":
            self._table = dict(attributes).get("id", "")
        if name == "tr":
            self._row = []
        if name in ("td", "th") and self._row is not None:
            self._row.append("")

    def handle_endtag(self, name: str) -> None:
        assert self.open and self.open.pop() == name, f"{name} closed inside {self.open}"
        if name == "tr" and self._table == "last":
            self.rows[self._row[0]] = self._row[1:]

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self._row and {"td", "th"} & set(self.open):
            self._row[-1] += data

    def all(self, name: str) -> list[dict[str, str]]:
        return [attributes for element, attributes in self.elements if element == name]


def make(
    grid: Grid, runs: dict | None = None, pictures: dict | None = None, out: Path | None = None
) -> tuple[str, Results]:
    runs = grid.runs if runs is None else runs
    made = report.make(grid.spec, runs, now=NOW)
    sections = report.sections(made)
    return pages.page(
        made.results, made.headline, sections, pictures or {}, runs, Curves(curves(runs, out)), out
    ), made.results


def check(text: str) -> Read:
    """What every page must be, whatever is on it."""
    read = Read(text)
    ids = Counter(attributes["id"] for _, attributes in read.elements if "id" in attributes)
    assert set(ids.values()) <= {1}, [name for name, n in ids.items() if n > 1]
    for _, attributes in read.elements:
        for name in ("src", "href", "action", "data", "srcset", "poster", "background"):
            address = attributes.get(name)
            if address is None:
                continue
            if address.startswith("#"):
                assert address[1:] in ids, f"{address} leads nowhere"
            else:
                assert address.startswith("data:image/png;base64,") or not re.match(r"[a-z]+:|//|/", address, re.I)
        assert not [name for name in attributes if name.startswith("on")]
    (script,) = re.findall("<script>(.*)</script></body>", text, re.S)
    assert script == pages.SCRIPT.read_text(encoding="utf-8") and len(read.all("script")) == 1
    assert not {"link", "iframe", "object", "form", "base"} & {name for name, _ in read.elements}
    (policy,) = [m["content"] for m in read.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'") and policy.endswith(f"; script-src 'sha256-{digest}'")
    styles = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in styles and "@import" not in styles and "prefers-color-scheme: dark" in styles
    assert read.all("html")[0]["lang"] == "en" and len(read.all("h1")) == len(read.all("main")) == 1
    assert all(attributes.get("alt") for attributes in read.all("img"))
    assert all("scope" in attributes for attributes in read.all("th"))
    text.encode()  # writable
    return read


# ---- what is on it


def test_every_cell_is_in_the_table_and_leads_to_its_section():
    text, results = make(hand_made())
    read = check(text)
    ids = {attributes.get("id") for _, attributes in read.elements}
    assert {f"cell-{i}" for i in range(len(results.cells))} <= ids
    links = Counter(attributes.get("href") for attributes in read.all("a"))
    assert all(links[f"#cell-{i}"] >= 1 for i in range(len(results.cells)))
    for run in results.runs:
        assert run.run_id in text


def test_tables_with_several_marks_at_a_number_have_room_for_them():
    kinds = {table.get("id"): table.get("class") for table in check(make(hand_made())[0]).all("table")}
    assert (kinds["last"], kinds["best"], kinds["published-elsewhere"]) == (None, "dense", "marked")


def test_the_table_says_what_the_markdown_says():
    grid = hand_made()
    read = check(make(grid)[0])
    made = report.make(grid.spec, grid.runs, now=NOW)
    lines = markdown(report.sections(made)[0].tables[0]).splitlines()
    rows = [
        [entry.strip() for entry in line.replace(r"\|", "\0").strip("|").split("|")] for line in lines if "|" in line
    ]
    raised = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")
    compared = 0
    for label, *entries in rows[2:]:
        label = label.replace("\0", "|").replace("\\", "").replace("&amp;", "&").strip("*")
        found = [entry.replace(" ", "") for entry in read.rows[label]]
        if label not in ("Feature-based", "Logit-based", "Ours"):
            assert found == [re.sub(r"[*\\ ,]", "", entry).translate(raised) for entry in entries]
            compared += 1
    assert compared == 9
    assert read.rows["SKD"][0] == "71.50 ± 0.10" and read.rows["RKD"][0].startswith("70.20 ± 0.28 (2/3)")
    assert text_of(make(grid)[0], "strong")[:2] == ["SKD leads on both pairs.", "71.50 ± 0.10"]


def text_of(text: str, name: str) -> list[str]:
    return re.findall(rf"<{name}[^>]*>([^<]*)</{name}>", text)


def test_sections_claims_and_footer_are_there():
    grid = Grid(pairs=(A,))
    grid.add("Student", "student", A, 66.0, 66.2, 66.4)
    grid.add("KD", "logit", A, 69.0, 69.2, 69.4)
    grid.add("DKD", "logit", A, 69.0, 69.5, 69.4)
    text, _ = make(grid)
    made = report.make(grid.spec, grid.runs, now=NOW)
    headings = text_of(text, "h2")
    assert headings[0] == "Results" and headings[-1] == "Cells and runs"
    assert [section.heading for section in report.sections(made)][1:] == headings[1:-1]
    assert [(made.headline.title,), (made.headline.lead,)] == [(text_of(text, name)[0],) for name in ("h1", "strong")]
    assert all(sentence in text for sentence in made.headline.rest)
    for verdict in made.verdicts:
        assert verdict.verdict in text_of(text, "b")
    assert "Written 2026-01-02 03:04 UTC." in text


def test_the_picture_that_answers_follows_the_table_and_what_few_need_is_folded_away(tmp_path: Path):
    grid = hand_made()
    grid.write(tmp_path, plots=True)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text_of(text, "h2")[:2] == ["Results", "Gain over the Student row"]
    before, after = text.split('<figure id="plot-gain">')
    assert 'id="last"' in before and "<figure" not in before and "<details" not in before and "Grey cells" in after
    folded = {words for words in text_of(text, "summary") if words not in ("the numbers behind it", "Configuration")}
    assert folded >= {
        "Made under other protocols, for orientation only: 0 confirmed, 0 refuted, 1 undecided",
        "The table of best epochs, selected on test data",
        "15 numbers under this protocol, beside these runs; 27 under other protocols, for orientation",
    }
    assert text.count('<details class="runs">') == len(report.make(grid.spec, grid.runs).results.lines)
    assert "open" not in {name for element, found in check(text).elements if element == "details" for name in found}
    folded_in_text = text_of((tmp_path / "table.md").read_text(encoding="utf-8"), "summary")
    assert "The table of best epochs, selected on test data" in folded_in_text


def test_runs_of_a_cell_with_curve_settings_and_files(tmp_path: Path):
    grid = Grid(pairs=(A,))
    grid.add("KD", "logit", A, result(71.0, 0, epochs=240), result(72.0, 1, epochs=240), "failed: out of memory")
    ids = grid.cells[0].run_ids
    whole = ("result.json", "config.json", "weights.pt", "log.txt", "last.pt")
    for run_id, names in zip(ids, (whole, ("result.json",), ()), strict=True):
        (tmp_path / "runs" / run_id).mkdir(parents=True)
        for name in names:
            (tmp_path / "runs" / run_id / name).write_text("{}")
    text, _ = make(grid, out=tmp_path)
    read = check(text)
    files = [a["href"] for a in read.all("a") if not a["href"].startswith("#")]
    linked = [[name.rpartition("/")[2] for name in files if name.startswith(f"runs/{run_id}/")] for run_id in ids]
    assert linked == [["", *whole[:4]], ["", "result.json"], []]  # a kept result without weights links none
    (drawn,) = [a["id"] for a in read.all("svg") if a.get("id", "").startswith("curve-")]
    assert [a["href"] for a in read.all("a")].count(f"#{drawn}") == 2  # of the two that have a curve
    assert all((tmp_path / unquote(name)).exists() for name in files)
    assert "failed: out of memory" in text and '"temperature": 4' in text
    (lines,) = [a["points"] for a in read.all("polyline")][:1]
    points = [tuple(map(float, point.split(","))) for point in lines.split()]
    assert 80 <= len(points) <= 140 and points[-1][0] == drawing.WIDTH - 2 and points == sorted(points)
    assert len(read.all("polyline")) == 2 and "ends at 71.00 to 72.00" in read.all("svg")[0]["aria-label"]


def test_weights_from_a_file_say_where_they_are_from():
    grid = Grid(pairs=(A,))
    file = {"read": "weights under state_dict", "said": "its file says acc 73.44", "published": "published as <x>.pth"}
    grid.add("Teacher", "teacher", A, {**result(73.42, 0), "weights_file": file})
    grid.add("KD", "logit", A, 71.0, {**result(71.5, 1), "weights_file": "?"})
    text, _ = make(grid)
    said = "Weights from a file: published as &lt;x&gt;.pth; weights under state_dict; its file says acc 73.44."
    assert text.count(said) == text.count("Weights from a file") == 1


def test_settings_that_differ_between_the_runs_of_a_cell_are_named():
    grid = Grid(pairs=(A,))
    other = result(72.0, 1)
    other["config"]["params"] = {"temperature": 5}
    grid.add("KD", "logit", A, 71.0, other)
    assert "its runs differ in params, this is the first" in make(grid)[0]


def test_mixed_cells_say_so_beside_their_runs():
    grid = Grid(pairs=(A,))
    grid.add("KD", "logit", A, 71.0, result(72.0, 1, device="cpu"))
    assert "Not one measurement, its runs mix devices (NVIDIA H200, cpu)" in make(grid)[0]


def test_pictures_are_inside_with_their_size_and_words(tmp_path: Path):
    grid = Grid(pairs=(A,))
    grid.add("Student", "student", A, 66.0, 66.2)
    grid.add("KD", "logit", A, 69.0, 69.2)
    report.write(tmp_path, report.make(grid.spec, grid.runs, now=NOW), grid.runs)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    read = check(text)
    names = [path.stem for path in (tmp_path / "plots").glob("*.png")]
    assert len(read.all("img")) == len(names) == len(read.all("figure"))
    for image in read.all("img"):
        assert int(image["width"]) > 300 and int(image["height"]) > 100
    links = {a["href"] for a in read.all("a")}
    assert {f"plots/{name}.pdf" for name in names} <= links
    assert all((tmp_path / name).exists() for name in links if name.startswith("plots/"))


# ---- honest degradation


def test_texts_from_files_are_text():
    grid = Grid(protocol=EVIL, pairs=(A, (EVIL, "s")))
    grid.add(f"Row {EVIL}", "logit", A, 71.0, f"failed: {EVIL}", f"blocked: {EVIL}")
    odd = result(70.0, 0, device=EVIL, precision=EVIL, git_commit=EVIL)
    odd["config"] |= {EVIL: EVIL, "params": {"text": EVIL, "nested": [EVIL]}}
    grid.add("Group", EVIL, (EVIL, "s"), odd)
    text, _ = make(grid)
    read = check(text)
    shown = " ".join(" ".join(read.text).split())
    assert shown.count("<script>alert(1)</script>") >= 6 and "\x07" not in text and "\ud800" not in text


@pytest.mark.parametrize("state", ["failed", "blocked", "running", "interrupted", "missing", "gone mad"])
def test_a_grid_without_a_finished_run(state: str):
    grid = hand_made()
    check(make(grid, {run_id: RunStatus(run_id, state, "why") for run_id in grid.runs})[0])


def test_nothing_at_all(tmp_path: Path):
    spec = TableSpec("none", "sprint", 1, (), ())
    report.write(tmp_path, report.make(spec, {}, now=NOW), {}, plots=False)
    read = check((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "This grid has no cells." in read.text
    grid = hand_made()
    check(make(grid, {})[0])


def test_results_of_which_nothing_but_the_accuracy_can_be_read():
    grid = Grid(pairs=(A, B))
    odd = result(72.0, 1) | {"config": {"seed": "x", "teacher": 3}, "provenance": [], "timing": None}
    odd["curve"] = [None, {"epoch": 1}, {"epoch": "2", "top1": 3.0}, {"epoch": 3, "top1": float("nan")}]
    grid.add("KD", "logit", A, {"metrics": {"top1_last": 71}}, odd, result(None), "not a dict: x")
    grid.add("KD", "logit", B, result(70.0, epochs=1), {"metrics": []})
    text, _ = make(grid, out=Path("/nowhere"))
    assert not check(text).all("svg")


def test_a_grid_too_large_for_a_page_keeps_its_cells_and_counts_its_runs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pages, "MOST_RUNS", 10)
    text, results = make(hand_made())
    read = check(text)
    ids = {attributes.get("id") for _, attributes in read.elements}
    assert {f"cell-{i}" for i in range(len(results.cells))} <= ids
    assert "43 runs are too many for a page" in text and "2 done, 1 failed" in text and not read.all("svg")


def test_a_page_of_ten_thousand_runs_is_small():
    pairs = tuple((f"teacher{i}", f"student{i}") for i in range(6))
    grid = Grid(pairs=pairs)
    one = result(70.0)
    for pair in pairs:
        for i in range(13):
            grid.add(f"M{i}", "logit", pair, *[one] * 128)
    results = collect(grid.spec, grid.runs)
    made = report.make(grid.spec, grid.runs, now=NOW)
    asked = []
    source = Curves(lambda run_id: asked.append(run_id) or [])
    text = pages.page(results, made.headline, report.sections(made), {}, grid.runs, source)
    assert len(text) < 500_000 and not asked  # no curve was read


# ---- elements


def test_only_what_is_marked_up_is_markup():
    assert tag("p", "<b>", tag("i", "a & b"), class_="x", title='"<', hidden=None) == (
        '<p class="x" title="&quot;&lt;">&lt;b&gt;<i>a &amp; b</i></p>'
    )
    assert isinstance(tag("br"), Html) and tag("br") == "<br>"


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0:00:00"), (61, "0:01:01"), (3599.7, "1:00:00"), (36061, "10:01:01")]
)
def test_durations(seconds: float, words: str):
    assert duration(seconds) == words
