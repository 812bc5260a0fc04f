"""The report as one page: report.html, which needs no network, no other file, and no script to be read.

The page's own script (page.js) sorts tables by a column.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bench.cells import STATES, RunStatus
from bench.report.captions import CAPTIONS
from bench.report.curves import Curves
from bench.report.drawing import drawing
from bench.report.frames import CellSummary, Results, RunRow, clean, percent, written
from bench.report.headline import Headline
from bench.report.hypertext import Html, items, join, scroll, table, tag
from bench.report.markup import Section
from bench.report.tables import SIGNS, heading
from bench.surroundings.sources import TAG

STYLE, SCRIPT = (Path(__file__).with_name(f"page.{kind}") for kind in ("css", "js"))
# Nothing is fetched and no script runs but the page's own, named by its hash, whatever the files of a run may hold.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{}'"
ANSWERS = ("gain", "accuracy")  # the picture that stands beside the table: the first of these there is
FOLDED = ("curves", "terms")  # pictures of how runs went, not of what came out
# Of a run's folder, in the order that they are linked in: what came out, with what settings, the network, how it went.
FILES = {
    "result.json": "result",
    "config.json": "settings",
    "weights.pt": "weights",
    "log.txt": "log",
    "error.json": "error",
}
MOST_RUNS = 1000  # of a larger grid the page has cells but not runs: it must open at once
WIDE = 1000  # pixels: a picture that would be too small to read on a telephone, and scrolls there


def page(
    results: Results,
    headline: Headline,
    sections: Sequence[Section],
    pictures: Mapping[str, bytes],
    runs: Mapping[str, RunStatus],
    curves: Curves,
    out: Path | None = None,
) -> str:
    """The whole page. `sections` are the report's parts, the last of them what it is made of.

    `pictures` are PNG images by the names of CAPTIONS. `out` is the folder the page will lie in, looked at for the
    files of runs; without it nothing is linked.
    """
    parts: list[tuple[str, Html]] = [(section.heading or "Results", _section(section)) for section in sections]
    names = [name for name in CAPTIONS if name in pictures]
    if answer := next((name for name in ANSWERS if name in names), None):
        names.remove(answer)
        parts.insert(1, (CAPTIONS[answer].title, _figure(results, answer, pictures[answer], out)))
    if names:
        parts.insert(
            max(len(parts) - 1, 0), ("Plots", join(_plot(results, name, pictures[name], out) for name in names))
        )
    parts.append(("Cells and runs", _cells(results, runs, curves, out)))
    script = SCRIPT.read_text(encoding="utf-8")
    body = [
        tag("h1", headline.title),
        tag("p", headline.banner, class_="banner") if headline.banner else "",
        tag("p", tag("strong", headline.lead), class_="answer"),
        tag("ul", *(tag("li", sentence) for sentence in headline.rest), class_="answer") if headline.rest else "",
        *(
            tag("p", " ".join(clean(item.body) for item in section.items[:2]), class_="lead")
            for section in sections[-1:]
        ),
        tag(
            "nav",
            tag("ul", *(tag("li", tag("a", name, href=f"#{_anchor(name)}")) for name, _ in parts)),
            aria_label="Sections",
        ),
        tag(
            "main",
            *(
                tag("section", tag("h2", name, id=_anchor(name)), content, aria_labelledby=_anchor(name))
                for name, content in parts
            ),
        ),
        tag("script", Html(script)),
    ]
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY.format(allowed)),
        tag("title", headline.title),
        tag("style", Html(STYLE.read_text(encoding="utf-8"))),
    ]
    text = "<!DOCTYPE html>\n" + tag("html", tag("head", *head), "\n", tag("body", *body), lang="en") + "\n"
    return text.encode("utf-8", "replace").decode()  # a lone surrogate in a file of JSON would stop it being written


def _section(section: Section) -> Html:
    shown = join([*(table(made, _address) for made in section.tables), items(section.items) if section.items else ""])
    return tag("details", tag("summary", section.fold), shown) if section.fold else shown


def _plot(results: Results, name: str, png: bytes, out: Path | None) -> Html:
    title, figure = CAPTIONS[name].title, _figure(results, name, png, out)
    return tag("details", tag("summary", title), figure) if name in FOLDED else join([tag("h3", title), figure])


def _figure(results: Results, name: str, png: bytes, out: Path | None) -> Html:
    caption = CAPTIONS[name]
    complete = all(summary.last.complete for summary in results.cells)
    words = [] if complete or not caption.unfinished else [caption.unfinished]
    address = f"plots/{name}.pdf"
    pdf = join([" ", tag("a", "As PDF", href=address), "."]) if out else ""
    width, height = (int.from_bytes(png[i : i + 4], "big") for i in (16, 20))  # of the PNG header
    image = tag(
        "img",
        src="data:image/png;base64," + base64.b64encode(png).decode(),
        alt=f"{caption.title}. {caption.instead}",
        width=width,
        height=height,
        loading="lazy",
        class_="large" if width > WIDE else None,
    )
    if width > WIDE:
        image = scroll(image, caption.title)
    return tag("figure", image, tag("figcaption", " ".join([caption.body, *words]), pdf), id=f"plot-{name}")


def _address(cell: int) -> str:
    return f"#cell-{cell}"


def _anchor(name: str) -> str:
    return "-".join(filter(None, "".join(char if char.isalnum() else " " for char in name.lower()).split()))


# ---- cells


def _cells(results: Results, runs: Mapping[str, RunStatus], curves: Curves, out: Path | None) -> Html:
    """Every cell of the table, row by row; with its runs if they are few enough."""
    if not results.cells:
        return tag("p", "This grid has no cells.")
    position = {id(summary): i for i, summary in enumerate(results.cells)}
    wanted = sum(run.in_table for run in results.runs)
    detailed = wanted <= MOST_RUNS
    parts = []
    if not detailed:
        words = f"{wanted:,} runs are too many for a page: their numbers and reasons are in runs.csv."
        parts.append(tag("p", words, class_="soft"))
    for line in results.lines:
        cell = line[0].cell
        group = heading(cell.role, cell.group)
        name = clean(cell.label)
        title = tag("summary", tag("h3", name), tag("span", f" {group} · {_counts(line)}", class_="soft"))
        if detailed:
            shown = join(_cell(summary, position[id(summary)], runs, curves, out) for summary in line)
        else:
            shown = _short(name, [(summary, position[id(summary)]) for summary in line])
        parts.append(tag("details", title, shown, class_="runs"))
    return join(parts)


def _counts(line: Sequence[CellSummary]) -> str:
    counts = Counter(run.state for summary in line for run in summary.runs)
    return ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])


def _cell(summary: CellSummary, position: int, runs: Mapping[str, RunStatus], curves: Curves, out: Path | None) -> Html:
    back = tag("a", "to the table", href="#last", class_="up")
    title = tag("h4", f"{clean(summary.cell.label)}: {_pair(summary)}")
    series = {run.seed: points for run in summary.runs if run.state == "done" and (points := curves.top1(run.run_id))}
    drawn = drawing(series, curves.part(run.run_id for run in summary.runs if run.state == "done"), f"curve-{position}")
    rows = [
        _run(run, out, f"#curve-{position}" if drawn and len(series.get(run.seed, ())) > 1 else "")
        for run in summary.runs
    ]
    names = (
        "Seed",
        "Top-1, last (%)",
        "Best (%)",
        "At epoch",
        "Top-5 (%)",
        "Test loss",
        "Time (h:m:s)",
        "Device",
        "Run",
    )
    head = tag("thead", tag("tr", *(tag("th", name, scope="col") for name in names)))
    label = f"Runs of {clean(summary.cell.label)} on {_pair(summary)}"
    made = scroll(tag("table", head, tag("tbody", *rows), aria_label=label), label)
    mixed = tag("p", f"Not one measurement, its runs mix {summary.mixed}.", class_="refuted") if summary.mixed else ""
    parts = [
        back,
        title,
        tag("p", _standing(summary), class_="soft"),
        mixed,
        made,
        drawn,
        _weights_file(summary, runs),
        _config(summary, runs),
    ]
    return tag("article", *parts, id=f"cell-{position}")


def _short(label: str, line: Sequence[tuple[CellSummary, int]]) -> Html:
    """The cells of a row without their runs."""
    names = ("Pair", "Top-1, last (%)", "Best (%)", "Runs")
    head = tag("thead", tag("tr", *(tag("th", name, scope="col") for name in names)))
    rows = []
    for summary, position in line:
        entries = (_last(summary), written(summary.best), _counts([summary]))
        cells = [tag("th", _pair(summary), scope="row"), *(tag("td", entry) for entry in entries)]
        rows.append(tag("tr", *cells, id=f"cell-{position}"))
    return scroll(tag("table", head, tag("tbody", *rows), aria_label=f"Cells of {label}"), f"Cells of {label}")


def _pair(summary: CellSummary) -> str:
    return clean(" → ".join(summary.column))


def _last(summary: CellSummary) -> str:
    return written(summary.last) or SIGNS[summary.state]


def _standing(summary: CellSummary) -> str:
    best = f", best epoch {written(summary.best)}" if summary.best.n else ""
    return f"Last epoch {_last(summary)}{best}. Runs: {_counts([summary])}."


def _run(run: RunRow, out: Path | None, curve: str) -> Html:
    """`curve` is the address of the picture that its curve is in, "" where it is in none."""
    seed = tag("th", "?" if run.seed is None else str(run.seed), scope="row")
    if run.state != "done":
        words = f"{run.state}: {run.reason}" if run.reason else run.state
        return tag(
            "tr", seed, tag("td", words, colspan=7, class_="text"), tag("td", _files(run, out, curve), class_="files")
        )
    values = (
        _percent(run.top1_last),
        _best(run),
        "" if run.best_epoch is None else str(run.best_epoch),
        _percent(run.top5_last),
        "" if run.test_loss_last is None else f"{run.test_loss_last:.3f}",
        duration(run.train_s) if run.train_s else "",  # a checkpoint was not trained here
        run.device,
    )
    return tag("tr", seed, *(tag("td", value) for value in values), tag("td", _files(run, out, curve), class_="files"))


def _best(run: RunRow) -> str:
    """Accuracy at the best epoch, on the images that it was chosen by."""
    if run.val_top1_best is not None:
        return f"{percent(run.val_top1_best)} on validation"
    return _percent(run.top1_best)


def _files(run: RunRow, out: Path | None, curve: str) -> Html:
    """The run's folder and what lies in it, as addresses relative to the page, and its curve on the page."""
    name = tag("code", clean(run.run_id))
    shown = [tag("a", "curve", href=curve)] if curve else []
    folder = out / "runs" / run.run_id if out else None
    try:
        present = set(os.listdir(folder)) if folder else set()
    except (OSError, ValueError):
        present = set()
    if not present:
        return join([name, *shown], " ")
    address = f"runs/{quote(run.run_id, safe='', errors='replace')}/"
    files = [tag("a", word, href=address + file) for file, word in FILES.items() if file in present]
    return join([tag("a", name, href=address), *files, *shown], " ")


def _config(summary: CellSummary, runs: Mapping[str, RunStatus]) -> Html:
    """Every setting of the cell's runs, resolved; they share all but what is said."""
    found = {run.run_id: _settings(runs.get(run.run_id)) for run in summary.runs if run.state == "done"}
    configs = [config for config in found.values() if config]
    if not configs:
        return Html("")
    first, *others = configs
    keys = [key for key in first if key != "seed"]
    differ = [key for key in keys if any(config.get(key) != first[key] for config in others)]
    text = json.dumps({key: first[key] for key in keys}, indent=1, ensure_ascii=False, default=str)
    words = (
        f"Configuration; its runs differ in {clean(', '.join(differ))}, this is the first"
        if differ
        else "Configuration"
    )
    lines = tag("pre", "\n".join(clean_line(line) for line in text.splitlines()))
    return tag("details", tag("summary", words), lines, _provenance(summary))


def _weights_file(summary: CellSummary, runs: Mapping[str, RunStatus]) -> Html:
    """Of weights that came from a file: where in it they were, what it claims, and which published one it is."""
    results = [status.result for run in summary.runs if (status := runs.get(run.run_id)) and status.result]
    files = [file for result in results if isinstance(file := result.get("weights_file"), dict)]
    words = [str(file[name]) for file in files for name in ("published", "read", "said") if file.get(name)]
    return tag("p", f"Weights from a file: {clean('; '.join(words))}.", class_="soft") if words else Html("")


def _settings(status: RunStatus | None) -> dict[str, Any]:
    config = status.result.get("config") if status and isinstance(status.result, dict) else None
    return config if isinstance(config, dict) else {}


def _provenance(summary: CellSummary) -> Html:
    """What its finished runs ran on, one line each kind."""
    done = [run for run in summary.runs if run.state == "done"]
    kinds: dict[str, Callable[[RunRow], str]] = {
        "PyTorch": lambda run: run.torch,
        "Precision": lambda run: run.precision,
        "Commit": lambda run: run.git_commit[:7] + (" (dirty)" if run.git_dirty else ""),
        "Source of the method (SHA-256)": lambda run: (
            (run.method_source.removeprefix(TAG) or run.method_sha256)[:12] + (f" ({run.source})" if run.source else "")
        ),
    }
    lines = {name: sorted({value for run in done if (value := get(run))}) for name, get in kinds.items()}
    return tag("p", "; ".join(f"{name}: {', '.join(found)}" for name, found in lines.items() if found), class_="soft")


def clean_line(line: str) -> str:
    """A line of indented JSON without control characters."""
    bare = line.lstrip(" ")
    return " " * (len(line) - len(bare)) + clean(bare)


def duration(seconds: float) -> str:
    """1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def _percent(value: float | None) -> str:
    return "" if value is None else percent(value)
