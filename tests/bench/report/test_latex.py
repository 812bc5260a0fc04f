from __future__ import annotations

import random
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from bench.report import latex, names, ranking, tables
from bench.report import writing as report
from bench.report.frames import collect
from bench.report.markup import Line, Note, Table, Text
from tests.bench.report.report_cases import GOLDEN, MEMORY, Grid, hand_made, result
from tests.bench.report.test_tables import nasty_table

PAIRS = tuple((f"resnet{i}2x4", f"resnet{i}x4") for i in range(6))
METHODS = ("FitNet", "RKD", "CRD", "OFD", "ReviewKD", "KD", "CLKD", "DKD", "MLKD", "SDD", "SKD", "SKD (paper)")
PAPER = r"""\documentclass[10pt,twocolumn]{article}
\usepackage{booktabs}
\begin{document}
\title{A paper}\author{Its author}\maketitle
\section{Results} Table~\ref{tab:results} says it all. INPUTS
\end{document}
"""


# ---- characters


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("wrn_40_2", r"wrn\_40\_2"),
        ("50% & #1 $x$", r"50\% \& \#1 \$x\$"),
        (r"\{~^}", r"\textbackslash{}\{\textasciitilde{}\textasciicircum{}\}"),
        ("--flag ---", r"-{}-flag -{}-{}-"),
        ("é ç ñ Å", r"\'{e} \c{c} \~{n} \r{A}"),
        ("τ λ Ω µ", r"$\tau$ $\lambda$ $\Omega$ $\mu$"),
        ("m² H₂", r"m\textsuperscript{2} H\textsubscript{2}"),
        ("中🙂", "{[}U+4E2D{]}{[}U+1F642{]}"),
        ("73.10 ± 0.20 − → ◊", r"73.10 $\pm$ 0.20 $-$ $\rightarrow$ $\diamond$"),
    ],
)
def test_escapes(text: str, expected: str):
    assert latex.escape(text) == expected


# ---- structure


def balanced(source: str) -> bool:
    """Braces (unless escaped) and environments open and close in order."""
    source = re.sub(r"(?m)^%.*$", "", source)
    depth = 0
    for brace in re.findall(r"\\.|[{}]", source):
        depth += {"{": 1, "}": -1}.get(brace, 0)
        if depth < 0:
            return False
    stack: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{([^}]*)\}", source):
        if kind == "begin":
            stack.append(name)
        elif not stack or stack.pop() != name:
            return False
    return depth == 0 and not stack


def test_it_is_balanced_and_every_row_has_its_columns():
    source = latex.latex(nasty_table(6))
    assert balanced(source)
    assert not balanced(source + "{") and not balanced(source.replace(r"\end{tabular}", "", 1))
    for block in re.findall(r"\\begin\{tabular\}\{@\{\}(l+)@\{\}\}(.*?)\\end\{tabular\}", source, re.DOTALL):
        columns, body = len(block[0]), block[1]
        rows = [row for row in body.split(r" \\")[:-1] if "multicolumn{" + str(columns) not in row]
        for row in rows:
            spans = sum(int(n) - 1 for n in re.findall(r"\\multicolumn\{(\d+)\}", row))
            assert len(re.findall(r"(?<!\\)&", row)) + 1 + spans == columns


def test_wide_tables_are_split_into_blocks_and_lose_no_column():
    source = latex.latex(nasty_table(14))
    blocks = re.findall(r"\\begin\{tabular\}\{@\{\}l(l+)@\{\}\}", source)
    assert len(blocks) > 1 and sum(map(len, blocks)) == 14


def test_blocks_are_as_few_as_the_page_allows():
    columns = tuple((f"t{i}", f"s{i}") for i in range(6))
    narrow = Table("n", "", columns, (("", (Line("KD", (Text("73.10"),) * 6),)),), ())
    assert latex.latex(narrow).count(r"\begin{tabular}") == 1


def test_what_is_taller_than_a_page_goes_on_in_another_float_and_loses_no_row():
    lines = tuple(Line(f"row {i}", (Text(f"{i}.00"),) * 3) for i in range(150))
    columns = tuple((f"t{i}", f"s{i}") for i in range(3))
    source = latex.latex(Table("tall", "Tall", columns, (("Ours", lines),), (Note("", "The rule."),)))
    floats = re.findall(r"\\begin\{table\*?\}(.*?)\\end\{table\*?\}", source, re.DOTALL)
    assert len(floats) > 2
    assert [int(i) for i in re.findall(r"row (\d+) &", source)] == list(range(150))
    assert all(r"\emph{Ours}" in part for part in floats)
    assert source.count(r"\label{tab:tall}") == 1 and "(continued)" not in floats[0] and "(continued)" in floats[1]
    assert ["The rule." in part for part in floats] == [False] * (len(floats) - 1) + [True]


def test_footnotes_are_shortened_and_name_no_runs():
    notes = (Note("1", "failed: " + "x" * 300, "kd-a-b-s0-00000000 and 3 more"), Note("", "The rule."))
    source = latex.latex(replace(nasty_table(), notes=notes))
    assert "kd-a-b" not in source and "x" * 130 in source and "x" * 160 not in source and r"\dots{}" in source
    assert source.index("xxx") < source.index("The rule.")


def test_footnotes_without_room_are_left_to_the_other_notations():
    reasons = [Note(str(i), f"failed: reason {i} " + "why " * 40) for i in range(1, 200)]
    source = latex.latex(replace(nasty_table(), notes=(*reasons, Note("", "The rule."))))
    assert "reason 1 " in source and "reason 199 " not in source
    assert "Further reasons: table.md. The rule." in source


# ---- a real engine


def engine(folder: Path) -> list[str]:
    """The command that compiles main.tex; skips where there is no TeX."""
    if shutil.which("pdflatex"):
        return ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
    if shutil.which("tectonic"):
        return ["tectonic", "--print", "main.tex"]
    pytest.skip("neither pdflatex nor tectonic is installed: nothing was compiled, only braces were checked")


def compiled(source: str, folder: Path) -> str:
    """The log of a run without errors."""
    (folder / "main.tex").write_text(source, encoding="utf-8")
    done = subprocess.run(engine(folder), cwd=folder, capture_output=True, timeout=300)
    log = (done.stdout + done.stderr).decode(errors="replace")
    assert done.returncode == 0 and (folder / "main.pdf").stat().st_size > 5000, log[-3000:]
    return log


def in_paper(folder: Path, *tables: str) -> str:
    """The log of a paper in two columns that has these tables."""
    for i, table in enumerate(tables):
        (folder / f"t{i}.tex").write_text(table, encoding="utf-8")
    inputs = " ".join(rf"\input{{t{i}}}" for i in range(len(tables)))
    return compiled(PAPER.replace("INPUTS", inputs), folder)


def no_fault(log: str) -> None:
    """Nothing sticks out of a column or a page."""
    assert "Overfull" not in log and "Float too large" not in log, log[-3000:]


@pytest.mark.parametrize("columns", [2, 7, 14])
def test_odd_tables_compile_in_a_two_column_paper(columns: int, tmp_path: Path):
    no_fault(in_paper(tmp_path, latex.latex(nasty_table(columns))))


def full_grid(unfinished: float) -> Grid:
    """13 rows x 6 pairs x 3 seeds; so much of it with every kind of trouble, and reasons that differ."""
    grid, chance = Grid(pairs=PAIRS), random.Random(0)
    for pair in PAIRS:
        grid.add("Teacher", "teacher", pair, 75.0)
        for label in ("Student", *METHODS):
            kind = {"Student": "student", "SKD": "ours", "SKD (paper)": "ours"}.get(label, "logit")
            kind = "feature" if label in METHODS[:5] else kind
            states = [round(72 + chance.gauss(0, 0.3), 2) for _ in range(3)]
            for seed in range(3):
                if chance.random() < unfinished:
                    states[seed] = chance.choice(
                        (
                            "missing",
                            f"failed: {MEMORY}; attempt {chance.randrange(1000)}",
                            f"blocked: its teacher vanilla-{pair[0]}-s0-00000000 failed",
                            "interrupted: epoch 130/250",
                            result(70.0, seed, device="NVIDIA A100-SXM4-80GB"),
                        )
                    )
            grid.add(label, kind, pair, *states)
    return grid


@pytest.mark.parametrize("unfinished", [0.0, 0.1, 0.3, 0.6, 1.0])
def test_the_whole_report_in_a_two_column_paper(unfinished: float, tmp_path: Path):
    files = report.latex_files(full_grid(unfinished).report())
    document = files.pop("table.tex")
    assert balanced(document) and all(map(balanced, files.values()))
    assert {"latex/results.tex", "latex/best.tex"} <= set(files)
    no_fault(in_paper(tmp_path, *files.values()))


def test_the_target_table_is_one_float_even_where_every_cell_is_short(tmp_path: Path):
    grid = Grid(pairs=PAIRS)
    for pair in PAIRS:
        grid.add("Teacher", "teacher", pair, 75.0)
        for label in ("Student", *METHODS):
            kind = "student" if label == "Student" else "logit"
            grid.add(label, kind, pair, 71.0, result(72.0, 1, device="cpu"), "failed: no disk")
    results = collect(grid.spec, grid.runs)
    source = latex.latex(tables.last_table(results, ranking.rank(results)))
    assert source.count(r"\begin{table*}") == 1 and source.count("(2/3)") >= 12 * 6
    no_fault(in_paper(tmp_path, source))


def test_the_report_compiles_alone(tmp_path: Path):
    source = (GOLDEN / "table.tex").read_text(encoding="utf-8")
    assert balanced(source)
    no_fault(compiled(source, tmp_path))


def test_a_table_for_a_paper_says_what_papers_say_and_keeps_the_rest_in_a_comment():
    files = report.latex_files(hand_made().report())
    for name in ("latex/results.tex", "latex/best.tex", "latex/published-1.tex"):
        lines = files[name].splitlines()
        said, apart = (
            "\n".join(line for line in lines if line.startswith("%") == comment) for comment in (False, True)
        )
        assert r"\usepackage{booktabs}" in apart and "protocol streamlined version 1" in apart and "2026-01-02" in apart
        assert not re.search(r"2026-|PyTorch|3\.11\.7|0123456|protocol streamlined|grid hand|resnet20\b", said)
        assert "ResNet56" in said and "WRN-16-2" in said and rf"\label{{tab:{Path(name).stem}}}" in said
    assert not balanced(files["latex/results.tex"] + "{")


@pytest.mark.parametrize(
    ("arch", "expected"),
    [
        ("resnet32x4", "ResNet32x4"), ("resnet20", "ResNet20"), ("resnet50", "ResNet50"), ("wrn_40_2", "WRN-40-2"),
        ("vgg13", "VGG13"), ("mobilenetv2", "MobileNetV2"), ("shufflenetv1", "ShuffleNetV1"),
        ("resnext_t", "resnext_t"),
    ],
)  # fmt: skip
def test_networks_are_called_as_papers_call_them(arch: str, expected: str):
    assert names.printed(arch) == expected


def test_ids_and_paths_are_no_names():
    text = "KD on resnet56 → resnet20 (kd-resnet56-resnet20-s0-00000000), resnet20x: runs/resnet20"
    expected = "KD on ResNet56 → ResNet20 (kd-resnet56-resnet20-s0-00000000), resnet20x: runs/resnet20"
    assert names.in_text(text, ("resnet56", "resnet20")) == expected


def test_a_table_without_a_reason_goes_and_what_is_not_ours_stays(tmp_path: Path):
    grid = hand_made()
    grid.write(tmp_path)
    (tmp_path / "latex" / "mine.tex").write_text("mine")
    before = {path.name for path in (tmp_path / "latex").iterdir()}
    grid.protocol = "quick"
    grid.write(tmp_path)
    left = {path.name for path in (tmp_path / "latex").iterdir()}
    assert "published-1.tex" in before - left and {"mine.tex", "results.tex"} <= left


def test_hand_made_results_in_a_column(tmp_path: Path):
    results = collect(hand_made().spec, hand_made().runs)
    source = latex.latex(tables.last_table(results, ranking.rank(results)))
    no_fault(in_paper(tmp_path, source))
