"""Results as rows: what each run says (RunRow), what each cell comes to (CellSummary), and as data frames."""

from __future__ import annotations

import json
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd

from bench import store
from bench.cells import STATES, Cell, RunStatus, TableSpec
from bench.surroundings.sources import BOTH, OTHER, TAG

DAMAGED = "result.json has no usable metrics.top1_last"
# Printing order of a table's rows; a group not named here comes last.
ROLES = ("teacher", "student", "method")
GROUPS = ("", "feature", "logit", "ours")
# The block "Ours" is the target table's, whose authors made SKD. In any other table SKD is a logit-based method.
TARGET, OURS, OTHERWISE = "full", "ours", "logit"
# A cell without a finished run shows the first of these that a run of it is in: what needs a person first.
UNFINISHED = ("failed", "blocked", "running", "interrupted", "missing")
# What runs of one cell must share for their mean to mean one thing: (attribute of RunRow, words).
SHARED = (
    ("method_sha256", "versions of the method's source"),
    ("device", "devices"),
    ("torch", "PyTorch versions"),
    ("precision", "precisions"),
    ("protocol", "protocols"),
    ("data", "data sets"),
)


@dataclass(frozen=True)
class RunRow:
    """One run, flat. Accuracies in percent; what the files do not tell is "" or None."""

    run_id: str
    state: str
    reason: str
    in_table: bool
    method: str = ""
    teacher: str = ""
    student: str = ""
    seed: int | None = None
    protocol: str = ""  # name and version, "streamlined v1"
    data: str = ""
    precision: str = ""
    params: str = ""
    top1_last: float | None = None
    top1_best: float | None = None
    best_epoch: int | None = None
    top5_last: float | None = None
    test_loss_last: float | None = None
    validation: int | None = None  # images held out for it; None: the test set was looked at after every epoch
    val_top1_last: float | None = None
    val_top1_best: float | None = None  # of the `best_epoch`, whose test accuracy nobody knows
    epochs: int | None = None
    train_s: float | None = None
    alone_s: float | None = None  # of a CPU core or a whole GPU, had it shared nothing; older results do not say
    together: float | None = None  # how many runs shared the images and the teacher's pass
    # From the weights, where bench.examine looked at them: percent, nats, counts.
    train_top1: float | None = None
    agreement: float | None = None  # of the student's and the teacher's first class, on the test images
    kl: float | None = None  # of the teacher's to the student's probabilities
    ece: float | None = None
    parameters: int | None = None
    macs: int | None = None
    teacher_parameters: int | None = None
    teacher_macs: int | None = None
    device: str = ""
    python: str = ""
    torch: str = ""
    torchvision: str = ""
    git_commit: str = ""
    git_dirty: bool | None = None
    method_sha256: str = ""
    method_source: str = ""  # a digest, see bench.surroundings.sources; older results do not say
    source: str = ""  # how that is beside today's, in words; "" for the same
    larger_by: float | None = None  # percent of parameters that what predicts has more than the student alone


MEASURES = ("train_top1", "agreement", "kl", "ece")
SIZES = ("parameters", "macs", "teacher_parameters", "teacher_macs")


@dataclass(frozen=True)
class Score:
    """Mean and sample standard deviation (ddof 1) of the `n` runs that have a number, of `wanted` runs."""

    n: int
    wanted: int
    mean: float | None
    std: float | None  # None below two runs

    @property
    def complete(self) -> bool:
        return self.n == self.wanted > 0


@dataclass(frozen=True)
class CellSummary:
    cell: Cell
    runs: tuple[RunRow, ...]
    state: str  # "complete", "partial", or one of UNFINISHED
    last: Score
    best: Score
    mixed: str  # what its finished runs do not share, in words; "" if nothing

    @property
    def column(self) -> tuple[str, str]:
        return self.cell.teacher, self.cell.student

    def by_seed(self) -> dict[int, float]:
        """Last-epoch accuracy of each finished run whose seed is known."""
        return {run.seed: run.top1_last for run in done(self.runs) if run.seed is not None}

    @property
    def other_source(self) -> list[str]:
        """Its finished runs that another source of its method made than today's, at least in part."""
        return [run.run_id for run in done(self.runs) if run.source in (OTHER, BOTH)]

    def gaps(self) -> list[float]:
        """Best minus last epoch of each finished run that has both."""
        return [run.top1_best - run.top1_last for run in done(self.runs) if run.top1_best is not None]


@dataclass(frozen=True)
class Results:
    """Everything the report prints, in printing order: `lines` maps a table row to its cells by column."""

    spec: TableSpec
    runs: tuple[RunRow, ...]
    cells: tuple[CellSummary, ...]
    pairs: tuple[tuple[str, str], ...]
    lines: tuple[tuple[CellSummary, ...], ...] = field(repr=False)
    out: str = "results"  # the folder
    elsewhere: int = 0  # run folders that are not of this grid, and that nothing here is taken from


def done(runs: Iterable[RunRow]) -> list[RunRow]:
    return [run for run in runs if run.state == "done"]


def clean(text: object) -> str:
    """One printable line: white space runs become one blank, control and format characters go."""
    line = " ".join(str(text).split())
    return (
        line
        if line.isascii() and line.isprintable()
        else "".join(char for char in line if unicodedata.category(char)[0] != "C")
    )


def percent(value: float) -> str:
    """How every accuracy is printed."""
    return f"{value:.2f}"


def signed(value: float) -> str:
    """How every difference is printed: with its sign, a true minus, and no sign on a zero."""
    text = f"{value:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", "−")


def written(score: Score, with_std: bool = True) -> str:
    """How every mean is printed: no ± for one run, (2/3) where runs are missing, "" where all are."""
    if score.mean is None:
        return ""
    spread = f" ± {percent(score.std)}" if with_std and score.std is not None else ""
    return percent(score.mean) + spread + ("" if score.complete else f" ({score.n}/{score.wanted})")


def collect(spec: TableSpec, runs: Mapping[str, RunStatus], out: Path | None = None) -> Results:
    """Read every run once and sum up every cell. Wanted runs that `runs` does not know are missing.

    `out` is the results folder, where other grids may have left runs.
    """
    wanted = dict.fromkeys(run_id for cell in spec.cells for run_id in cell.run_ids)
    absent = {run_id: RunStatus(run_id, "missing", "") for run_id in wanted if run_id not in runs}
    rows = {run_id: read(status, run_id in wanted, out) for run_id, status in {**runs, **absent}.items()}
    wanted_cells = [_grouped(cell, spec.grid) for cell in spec.cells]
    cells = tuple(summarise(cell, [rows[i] for i in dict.fromkeys(cell.run_ids)]) for cell in wanted_cells)
    pairs = tuple(dict.fromkeys([*spec.pairs, *(cell.column for cell in cells)]))
    folder = "results" if out is None else str(out)
    return Results(spec, tuple(rows.values()), cells, pairs, _lines(cells), folder, _elsewhere(out, rows))


def curves(runs: Mapping[str, RunStatus], out: Path | None = None) -> Callable[[str], list[dict[str, Any]]]:
    """The curve of a run by its id: rows of the epochs as result.json has them, [] where there is no usable one.

    Read from the run's file when asked for: 10,000 curves are gigabytes, and only plots need them.
    """

    def curve(run_id: str) -> list[dict[str, Any]]:
        result = runs[run_id].result if run_id in runs else None
        if out is not None and "curve" not in _dict(result):
            try:
                result = store.read_json(store.run_folder(out, run_id).result)
            except (store.Damaged, store.Unreadable):
                result = None
        rows = _dict(result).get("curve")
        return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []

    return curve


def read(status: RunStatus, in_table: bool, out: Path | None = None) -> RunRow:
    """Flatten one run. A done run without a usable last-epoch accuracy is damaged, and has failed.

    `out` is the results folder, where its weights may have been examined.
    """
    state, reason = status.state, clean(status.reason)
    if state not in STATES:
        state, reason = "missing", f"unknown state {clean(status.state)}"
    seed = re.search(r"-s(\d{1,15})-[0-9a-f]{8}$", status.run_id)
    row = {"run_id": status.run_id, "in_table": in_table, "seed": int(seed[1]) if seed else None}
    if state != "done":
        return RunRow(**row, state=state, reason=reason)
    result = _dict(status.result)
    metrics, config, timing = (_dict(result.get(key)) for key in ("metrics", "config", "timing"))
    provenance = _dict(result.get("provenance"))
    top1_last = _percent(metrics.get("top1_last"))
    if top1_last is None:
        state, reason = "failed", DAMAGED
    versions = _dict(provenance.get("versions"))
    protocol, data = _dict(config.get("protocol")), _dict(config.get("data"))
    stated_seed, dirty = whole(config.get("seed")), provenance.get("git_dirty")
    row |= {
        "method": _text(config.get("method")),
        "teacher": _text(_dict(config.get("teacher")).get("arch")),
        "student": _text(config.get("student")),
        "protocol": " v".join(filter(None, (_text(protocol.get("name")), _text(protocol.get("version"))))),
        "data": _data(data),
        "precision": _text(config.get("precision")),
        "params": json.dumps(config["params"], sort_keys=True) if config.get("params") else "",
        "top1_last": top1_last,
        "top1_best": _percent(metrics.get("top1_best")),
        "best_epoch": whole(metrics.get("best_epoch")),
        "top5_last": _percent(metrics.get("top5_last")),
        "test_loss_last": number(metrics.get("test_loss_last")),
        "validation": whole(data.get("validation")),
        "val_top1_last": _percent(metrics.get("val_top1_last")),
        "val_top1_best": _percent(metrics.get("val_top1_best")),
        "epochs": whole(_dict(config.get("train")).get("epochs")),
        "train_s": number(timing.get("train_s")),
        "alone_s": number(timing.get("alone_s")),
        "together": number(timing.get("together")),
        "source": _text(status.source),
        "git_dirty": dirty if isinstance(dirty, bool) else None,
        "larger_by": _larger_by(_dict(result.get("deployed"))),
    }
    row |= {name: _text(provenance.get(name)) for name in ("device", "git_commit", "method_sha256", "method_source")}
    row |= {name: _text(versions.get(name)) for name in ("python", "torch", "torchvision")}
    row |= _examined(status, out)
    if stated_seed is not None:
        row["seed"] = stated_seed
    return RunRow(**row, state=state, reason=reason)


def _larger_by(deployed: dict[str, Any]) -> float | None:
    whole_size, student = number(deployed.get("parameters")), number(deployed.get("student_parameters"))
    return 100 * (whole_size / student - 1) if whole_size and student else None


def _examined(status: RunStatus, out: Path | None) -> dict[str, float | int | None]:
    """What examined.json says, where it is of this very result: weights of another training tell nothing of it."""
    path = store.run_folder(out, status.run_id).examined if out else None
    try:
        found = _dict(store.read_json(path)) if path and path.exists() else {}
    except (store.Damaged, ValueError):
        found = {}
    if found.get("result") != store.fingerprint(_dict(status.result)):
        return {}
    metrics, sizes = _dict(found.get("metrics")), _dict(found.get("sizes"))
    return {name: number(metrics.get(name)) for name in MEASURES} | {name: whole(sizes.get(name)) for name in SIZES}


def summarise(cell: Cell, runs: list[RunRow]) -> CellSummary:
    finished, wanted = done(runs), len(runs)
    last = score([run.top1_last for run in finished], wanted)
    best = score([run.top1_best for run in finished], wanted)
    states = {run.state for run in runs}
    if last.n:
        state = "complete" if last.complete else "partial"
    else:
        state = next((state for state in UNFINISHED if state in states), "missing")
    return CellSummary(cell, tuple(runs), state, last, best, _mixed(finished))


def score(values: Iterable[float | None], wanted: int) -> Score:
    numbers = [value for value in values if value is not None]
    n = len(numbers)
    if not n:
        return Score(0, wanted, None, None)
    mean = math.fsum(numbers) / n
    spread = math.sqrt(math.fsum((x - mean) ** 2 for x in numbers) / (n - 1)) if n > 1 else None
    return Score(n, wanted, mean, spread)


def runs_frame(results: Results) -> pd.DataFrame:
    """One row per run, the columns of RunRow."""
    names = [entry.name for entry in fields(RunRow)]
    frame = pd.DataFrame([[getattr(run, name) for name in names] for run in results.runs], columns=names)
    return frame.astype(dict.fromkeys(("seed", "best_epoch", "validation", "epochs", *SIZES), "Int64"))


def cells_frame(results: Results) -> pd.DataFrame:
    """One row per cell, in the order of the spec."""
    rows = []
    for summary in results.cells:
        cell, states = summary.cell, [run.state for run in summary.runs]
        rows.append(
            {
                "label": clean(cell.label),
                "role": cell.role,
                "group": cell.group,
                "method": cell.method,
                "teacher": cell.teacher,
                "student": cell.student,
                "state": summary.state,
                "n": summary.last.n,
                "wanted": summary.last.wanted,
                "mean_last": summary.last.mean,
                "std_last": summary.last.std,
                "n_best": summary.best.n,
                "mean_best": summary.best.mean,
                "std_best": summary.best.std,
                **{f"n_{state}": states.count(state) for state in UNFINISHED},
                **_beyond(summary),
                "mixed": summary.mixed,
                "reasons": "; ".join(dict.fromkeys(run.reason for run in summary.runs if run.reason)),
                "run_ids": " ".join(run.run_id for run in summary.runs),
            }
        )
    frame = pd.DataFrame(rows)
    return frame.astype(dict.fromkeys(SIZES, "Int64")) if rows else frame


def _beyond(summary: CellSummary) -> dict[str, float | int | None]:
    """Means over the examined runs of a cell, their number, and the sizes, which all its runs share."""
    runs = done(summary.runs)
    scores = {name: score([getattr(run, name) for run in runs], len(summary.runs)) for name in MEASURES}
    values = {f"{part}_{name}": getattr(scores[name], part) for name in MEASURES for part in ("n", "mean", "std")}
    return values | {name: next((x for run in runs if (x := getattr(run, name)) is not None), None) for name in SIZES}


def _lines(cells: Sequence[CellSummary]) -> tuple[tuple[CellSummary, ...], ...]:
    """Cells as table rows: Teacher and Student, then the groups, each in the order of the spec.

    A second cell for the same row and column opens a row of its own, so that none is lost.
    """
    groups = [*GROUPS, *(summary.cell.group for summary in cells)]
    place = {group: i for i, group in reversed(list(enumerate(groups)))}
    lines: dict[tuple[Any, ...], list[CellSummary]] = {}
    taken: Counter[tuple[Any, ...]] = Counter()
    for summary in cells:
        cell = summary.cell
        # A teacher may be trained for one pair and read from a file for another: still one row.
        row = (cell.role, cell.group, cell.label, cell.method if cell.role == "method" else "")
        taken[row, summary.column] += 1
        lines.setdefault((row, taken[row, summary.column]), []).append(summary)

    def rank(line: list[CellSummary]) -> tuple[int, int]:
        return ROLES.index(line[0].cell.role), place[line[0].cell.group]

    return tuple(tuple(line) for line in sorted(lines.values(), key=rank))


def _grouped(cell: Cell, grid: str) -> Cell:
    return replace(cell, group=OTHERWISE) if cell.group == OURS and grid != TARGET else cell


def _data(data: Mapping[str, Any]) -> str:
    """The data set, and what part of it is trained on."""
    images, held_out = _text(data.get("train_images")), _text(data.get("validation") or None)
    parts = [f"{images} images"] if images else []
    parts += [f"{held_out} held out for validation"] if held_out else []
    source, side = data.get("source"), _text(data.get("side"))
    if isinstance(source, Mapping):
        parts = [f"{_text(source.get('classes'))} classes", f"content {_text(source.get('digest'))[:8]}", *parts]
    name = _text(data.get("dataset")) + (f" at {side}x{side}" if side else "")
    return name + (f" ({', '.join(parts)})" if parts else "")


def _mixed(finished: list[RunRow]) -> str:
    parts = []
    for name, words in SHARED:
        if name == "method_sha256" and all(run.method_source for run in finished):
            name = "method_source"  # which comments do not change
        seen = sorted({getattr(run, name) for run in finished})
        if len(seen) > 1:
            short = name in ("method_sha256", "method_source")
            shown = (value.removeprefix(TAG)[:8] if short else value for value in seen)
            parts.append(f"{words} ({', '.join(value or 'not recorded' for value in shown)})")
    return "; ".join(parts)


def _elsewhere(out: Path | None, known: Mapping[str, object]) -> int:
    try:
        return sum(entry.name not in known for entry in os.scandir(out / "runs") if entry.is_dir()) if out else 0
    except OSError:
        return 0


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return "" if value is None else clean(value)


def number(value: object) -> float | None:
    """The value if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300:
        return None  # an integer beyond the range of floats is as little a measurement as NaN
    return value


def whole(value: object) -> int | None:
    """The value if it is an integer that a data frame can hold, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53 else None


def _percent(value: object) -> float | None:
    found = number(value)
    return None if found is None or not 0 <= found <= 100 else float(found)
