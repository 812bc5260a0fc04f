"""How often the report's marks are wrong, and how small a difference they find: `python -m bench.power`.

Draws the results of one pair many times, as the full grid has them: a Student row 4 points below and 12 methods, on 3
and 5 seeds. A run is its row's mean plus its seed's effect plus its own error, and is rounded to hundredths as
accuracies are. The report's own functions judge each draw (`bench.report.blocks`), beside three other rules:

- paired t, Holm: each method's seeds against those of the best, Holm's correction over methods;
- Tukey, pooled: the studentized range with the error pooled over all rows, whatever they scatter;
- the same, but the first rule where Brown and Forsythe's test rejects equal variances at 5 %.

Family-wise error: the share of draws in which any method as good as the best one is called worse. Power: the share of
methods truly below the best by so much that are called worse than it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy import stats
from tabulate import tabulate

from bench.report import blocks
from bench.report.statistics import LEVEL
from bench.surroundings.commandline import Parser

METHODS, SEEDS = 12, (3, 5)
DEVIATION, SEED_DEVIATION = 0.22, 0.15  # points of top-1, of a run's error and of its seed's effect
GAPS = (0.3, 0.5, 1.0)  # points below the best
FAR = 3.0  # points below the best, of methods beside the one in question
NOISY = 3.0  # times the deviation of the others
NOISE = {0: "equal", 1: f"one {NOISY:g} times", 3: f"three {NOISY:g} times"}
DRAWS = 5_000

Rule = Callable[[np.ndarray], np.ndarray]  # (draws, rows, seeds), Student first -> (draws, methods) called worse


@dataclass(frozen=True)
class Share:
    """Of draws, in percent, with its Monte Carlo standard error."""

    percent: float
    error: float

    def __str__(self) -> str:
        return f"{self.percent:.1f} ± {self.error:.1f}"


def share(hits: np.ndarray) -> Share:
    """Of (draws,) shares between 0 and 1."""
    return Share(100 * float(hits.mean()), 100 * float(hits.std()) / math.sqrt(len(hits)))


def draw(random: np.random.Generator, draws: int, seeds: int, means: np.ndarray, noisy: int = 0) -> np.ndarray:
    """(draws, rows, seeds) accuracies of one pair, Student first; the first `noisy` methods scatter more."""
    deviation = np.full(len(means) + 1, DEVIATION)
    deviation[1 : 1 + noisy] *= NOISY
    rows = np.array([-4.0, *means])
    error = deviation[:, None] * random.normal(size=(draws, len(rows), seeds))
    values = 70 + rows[:, None] + error + SEED_DEVIATION * random.normal(size=(draws, 1, seeds))
    return values.round(2)


def report(values: np.ndarray) -> np.ndarray:
    """The rule of `bench.report.ranking`."""
    found = np.zeros((len(values), values.shape[1] - 1), bool)
    for i, pair in enumerate(values):
        block = blocks.fit(pair)
        differences, errors = block.against(1 + int(block.effects[1:].argmax()))
        found[i] = blocks.separated(differences[1:], errors[1:], block.freedom, LEVEL)
    return found


def paired(values: np.ndarray) -> np.ndarray:
    """Two-sided paired t tests against the best, with Holm's correction."""
    below = _below_best(values[:, 1:])
    methods, seeds = below.shape[1:]
    spread = below.std(axis=2, ddof=1) / math.sqrt(seeds)
    p = 2 * stats.t.sf(np.divide(below.mean(axis=2), spread, out=np.zeros_like(spread), where=spread > 0), seeds - 1)
    order = np.argsort(p, axis=1)  # the best itself has p 1 and comes last
    steps = np.take_along_axis(p, order, axis=1) < (1 - LEVEL) / np.maximum(methods - 1 - np.arange(methods), 1)
    found = np.zeros(p.shape, bool)
    np.put_along_axis(found, order, np.logical_and.accumulate(steps, axis=1), axis=1)
    return found


def tukey(values: np.ndarray) -> np.ndarray:
    """The studentized range in one step, the error of all rows pooled."""
    _, rows, seeds = values.shape
    away = values - values.mean(axis=1, keepdims=True)
    freedom = (rows - 1) * (seeds - 1)
    pooled = ((away - away.mean(axis=2, keepdims=True)) ** 2).sum(axis=(1, 2)) / freedom
    width = stats.studentized_range.ppf(LEVEL, rows - 1, freedom)
    return _below_best(values[:, 1:]).mean(axis=2) > width * np.sqrt(pooled / seeds)[:, None]


def tested(values: np.ndarray) -> np.ndarray:
    """`tukey`, or `paired` where Brown and Forsythe's test rejects equal variances of the rows, seeds removed."""
    away = values - np.median(values, axis=1, keepdims=True)
    size = np.abs(away - np.median(away, axis=2, keepdims=True))
    p = stats.f_oneway(*np.moveaxis(size, 1, 0), axis=1).pvalue
    return np.where((p < 1 - LEVEL)[:, None], paired(values), tukey(values))


RULES: dict[str, Rule] = {
    "this report": report,
    "paired t, Holm": paired,
    "Tukey, pooled": tukey,
    "Tukey unless Brown-Forsythe": tested,
}


def errors(random: np.random.Generator, draws: int) -> Iterator[list[str]]:
    """Rows of the table of family-wise errors: so many methods are best, the others far below."""
    for seeds in SEEDS:
        for best in (METHODS, 4):
            for noisy, words in NOISE.items():
                means = np.where(np.arange(METHODS) < best, 0.0, -FAR)
                values = draw(random, draws, seeds, means, noisy)
                wrong = (str(share(rule(values)[:, :best].any(axis=1))) for rule in RULES.values())
                yield [str(seeds), str(best), words, *wrong]


def powers(random: np.random.Generator, draws: int) -> Iterator[list[str]]:
    """Rows of the table of power: a method so far below the best, in two kinds of tables."""
    for seeds in SEEDS:
        for words, tables in (
            ("spread over 5 points", [(GAPS, np.array([*GAPS, *np.linspace(1.5, 5, METHODS - 1 - len(GAPS))]))]),
            ("all as far", [((gap,), np.full(METHODS - 1, gap)) for gap in GAPS]),
        ):
            for gaps, below in tables:
                values = draw(random, draws, seeds, np.array([0.0, *-below]))
                first = values[:, 1:].mean(axis=2).argmax(axis=1) == 0
                found = [rule(values) & first[:, None] for rule in RULES.values()]
                for i, gap in enumerate(gaps, start=1):
                    yield [str(seeds), words, f"{gap:g}", *(str(share(worse[:, i])) for worse in found)]


def claims(random: np.random.Generator, draws: int) -> Iterator[list[str]]:
    """Rows of the table of one claim that is fixed beforehand, one method over one other: how often it is confirmed."""
    gaps = (0.0, *GAPS)
    means = np.zeros(METHODS)
    means[1 : 1 + len(gaps)] -= gaps
    for seeds in SEEDS:
        confirmed = {noisy: np.zeros((draws, len(gaps)), bool) for noisy in (0, 1)}
        for noisy, found in confirmed.items():
            for i, pair in enumerate(draw(random, draws, seeds, means, noisy)):
                block = blocks.fit(pair)
                differences, error = (part[2 : 2 + len(gaps)] for part in block.against(1))
                found[i] = differences / error > stats.t.ppf((1 + LEVEL) / 2, block.freedom)
        for i, gap in enumerate(gaps):
            yield [str(seeds), f"{gap:g}", *(str(share(found[:, i])) for found in confirmed.values())]


def _below_best(methods: np.ndarray) -> np.ndarray:
    """(draws, methods, seeds) differences best - each, seed by seed."""
    best = methods.mean(axis=2).argmax(axis=1)
    return np.take_along_axis(methods, best[:, None, None], axis=1) - methods


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(prog="python -m bench.power", description=__doc__)
    parser.add_argument("--draws", type=int, default=DRAWS, help=f"of each row of a table (default: {DRAWS:,})")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers (default: 0)")
    args = parser.parse_args(arguments)
    print(
        f"{METHODS} methods and the Student row; deviation {DEVIATION:g} points a run, {SEED_DEVIATION:g} a seed; "
        f"{args.draws:,} draws a line. Percent ± Monte Carlo standard error."
    )
    tables = (
        ("Family-wise error: a method called worse that is as good", errors, ("seeds", "best", "deviations", *RULES)),
        ("Power: a method below the best", powers, ("seeds", "methods", "points below", *RULES)),
        (
            "A claim fixed beforehand, one method above one other: confirmed",
            claims,
            ("seeds", "points above", "deviations equal", f"its own {NOISY:g} times"),
        ),
    )
    for number, (words, make, columns) in enumerate(tables):
        rows = make(np.random.default_rng([args.seed, number]), args.draws)
        print(f"\n{words} (%)\n")
        print(tabulate(rows, columns, "github", disable_numparse=True), flush=True)


if __name__ == "__main__":
    main()
