"""Claims of tables and papers (claims.yaml), and what these runs say of each: confirmed, refuted or undecided."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from bench.report.comparison import as_published
from bench.report.frames import CellSummary, Results, clean, percent, signed, written
from bench.report.published import NAMES
from bench.report.published import load as published_numbers
from bench.report.statistics import LEVEL, Design, Gain, designs
from bench.surroundings import yamlio
from zoo.errors import BadInput

PATH = Path(__file__).with_name("claims.yaml")

RULE = (
    "A comparison is the mean difference at the last epoch. Its error is that of the pair's block design: seeds "
    "removed, pooled over the pair's rows, or a row's own where that is larger. A teacher is one run, taken as it is. "
    "Unfinished cells are left out. Confirmed: on every pair that the claim names, every comparison has its 95 % "
    "interval on the claimed side of 0, those of one row with several others at once. Refuted: one of all the claim's "
    "comparisons at once has it on the other side. Undecided: all else; a single seed decides nothing. k at once is "
    "level 1 − 0.05/k each (Bonferroni); where the best of a group is claimed, k is the number of its rows."
)

Pair = tuple[str, str]
Cells = Mapping[tuple[str, Pair], CellSummary]  # by label and pair
Designs = Mapping[Pair, Design]
Standing = Literal["confirmed", "refuted", "undecided"]


class Claim(BaseModel):
    """One claim as written; `rows` and `over` hold labels and groups."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: str
    text: str
    source: str
    protocol: str
    kind: Literal["each", "best"]
    rows: list[str]
    over: list[str]
    pairs: Literal["all"] | list[str]
    printed_in: list[str]  # sources of published.csv


class ClaimsFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    pairs: list[str]
    groups: dict[str, list[str]]
    claims: list[Claim]


@dataclass(frozen=True)
class Question:
    """A claim with its groups and pairs filled in."""

    claim: Claim
    rows: tuple[str, ...]
    over: tuple[str, ...]
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class Verdict:
    """One claim and its standing; every text is one plain line, unescaped."""

    id: str  # "skd-best", for anchors
    text: str  # the claim
    source: str
    protocol: str  # that of the source; under another one these runs only orient
    verdict: Standing
    why: str  # one line: on how many pairs it stands how, what is missing, and the protocols where they differ
    evidence: list[str]  # a line per pair: the numbers that decide it
    printed: str  # what the source's own numbers say: "holds on 6 of 6 pairs", "no numbers printed"


@dataclass(frozen=True)
class Match:
    """Two finished rows on a pair, `row` claimed to be above `other`."""

    row: CellSummary
    other: CellSummary
    gain: Gain

    @property
    def tested(self) -> bool:
        return self.gain.error is not None

    def outcome(self, ways: int = 1) -> int:
        """1 as claimed, -1 the other way round, 0 neither: by the interval of level 1 - 0.05 / `ways`."""
        decided = self.gain.p < (1 - LEVEL) / ways
        return (1 if self.gain.mean > 0 else -1) if decided else 0


@dataclass(frozen=True)
class Contest:
    """The cells of a claim on one pair, and every comparison that can be made between them."""

    rows: list[CellSummary]
    over: list[CellSummary]
    matches: list[Match]


@dataclass(frozen=True)
class PairVerdict:
    standing: Standing
    evidence: str
    obstacle: str  # what keeps it undecided, in two words; "" where it is decided


def check(results: Results, path: Path = PATH) -> list[Verdict]:
    """Every claim whose rows and one of whose pairs are in the grid; those made under its protocol come first."""
    cells, fitted = _cells(results), designs(results)
    asked = [question for question in load(path) if not _out_of_reach(question, cells)]
    asked.sort(key=lambda question: question.claim.protocol != results.spec.protocol)
    return [_judge(question, cells, fitted, results.spec.protocol) for question in asked]


def notes(results: Results, path: Path = PATH) -> list[str]:
    """The rule, and how many claims are not listed and why: what stands under the verdicts."""
    cells, questions = _cells(results), load(path)
    reasons = Counter(filter(None, (_out_of_reach(question, cells) for question in questions)))
    counted = "; ".join(f"{count} because {reason}" for reason, count in reasons.items())
    rule = [RULE] if reasons.total() < len(questions) else []
    return rule + ([f"Claims not checked here: {counted}."] if counted else [])


@cache
def load(path: Path = PATH) -> tuple[Question, ...]:
    """Every claim of a file, in its order. BadInput with one line if the file is not one of claims."""
    where = f'claims file "{path.name}"'
    try:
        file = ClaimsFile.model_validate(yamlio.read(path, "claim"))
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(map(str, fault["loc"]))
        raise BadInput(f'{where}: "{place}": {fault["msg"].lower()}; correct it') from None
    questions = []
    for claim in file.claims:
        rows, over = (
            tuple(label for name in side for label in file.groups.get(name, [name]))
            for side in (claim.rows, claim.over)
        )
        pairs = file.pairs if claim.pairs == "all" else claim.pairs
        faults = {
            "compares nothing": [] if rows and over and pairs else [""],
            "names a row twice:": _repeated([*rows, *over]),
            "names a pair twice:": _repeated(pairs),
            "names a pair that the file does not have:": sorted(set(pairs) - set(file.pairs)),
        }
        for fault, names in faults.items():
            if names:
                raise BadInput(f'{where}: claim "{claim.id}" {" ".join([fault, *names]).strip()}; correct it')
        questions.append(Question(claim, rows, over, tuple(_split(pair) for pair in pairs)))
    if twice := _repeated([claim.id for claim in file.claims]):
        raise BadInput(f'{where}: the id "{twice[0]}" is given twice; every claim has its own')
    return tuple(questions)


def printed(question: Question) -> str:
    """What the claim's own sources print, by plain comparison: last and best epochs as they stand there."""
    numbers: dict[tuple[str, str, str], float] = {}
    for source in question.claim.printed_in:
        for number in published_numbers():
            if number.source == source:
                numbers.setdefault(number.key, number.top1)
    known, broken = 0, []
    for pair in question.pairs:
        rows, over = (
            {label: numbers.get((*pair, NAMES.get(label))) for label in side} for side in (question.rows, question.over)
        )
        if None in (*rows.values(), *over.values()):
            continue
        known += 1
        row = (min if question.claim.kind == "each" else max)(rows, key=rows.__getitem__)
        other = max(over, key=over.__getitem__)
        if rows[row] <= over[other]:
            broken.append(f"{_name(pair)} ({row} {percent(rows[row])}, {other} {percent(over[other])})")
    if not known:
        return "no numbers printed"
    return f"holds on {known - len(broken)} of {_pairs(known)}" + (f", not on {', '.join(broken)}" if broken else "")


def _judge(question: Question, cells: Cells, fitted: Designs, protocol: str) -> Verdict:
    claim, decide = question.claim, _each if question.claim.kind == "each" else _best
    sides = {pair: both for pair in question.pairs if (both := _sides(question, pair, cells))}
    contests = {pair: Contest(*both, _matches(*both, fitted[pair])) for pair, both in sides.items()}
    found = {pair: decide(contest, list(contests.values())) for pair, contest in contests.items()}

    counts = Counter(verdict.standing for verdict in found.values())
    if counts["refuted"]:
        standing: Standing = "refuted"
    else:
        standing = "confirmed" if counts["confirmed"] == len(question.pairs) else "undecided"
    parts = [f"{name} on {counts[name]}" for name in ("confirmed", "refuted") if counts[name]]
    obstacles = Counter(verdict.obstacle for verdict in found.values() if verdict.obstacle)
    parts += [f"{obstacle} on {count}" for obstacle, count in obstacles.items()]
    if absent := len(question.pairs) - len(found):
        parts.append(f"not in this grid {absent}")
    why = f"Of {_pairs(len(question.pairs))}: {', '.join(parts)}."
    if claim.protocol != protocol:
        why = f"Under protocol {protocol}, where the claim's is {claim.protocol}. {why}"
    if mixed := sum(bool(summary.mixed) for contest in contests.values() for summary in (*contest.rows, *contest.over)):
        why += f" Cells among them whose runs are not alike (§): {mixed}."
    evidence = [clean(f"{_name(pair)}: {verdict.evidence}") for pair, verdict in found.items()]
    words = (clean(text) for text in (claim.text, claim.source, claim.protocol))
    return Verdict(claim.id, *words, standing, clean(why), evidence, printed(question))


def _each(contest: Contest, contests: Sequence[Contest]) -> PairVerdict:
    """Confirmed where all comparisons are, which takes no correction; refuted by any one of the claim's.

    To be the best of several rows is to be above them at once, as for the marks of the table.
    """
    ways = max(1, sum(match.tested for other in contests for match in other.matches))
    if against := [match for match in contest.matches if match.outcome(ways) < 0]:
        evidence = _evidence(_least(against), contest, "lowest", ways)
        if len(contest.matches) > 1:
            evidence += f"; {len(against)} of {len(contest.matches)} comparisons the other way"
        return PairVerdict("refuted", evidence, "")
    needed = len(contest.rows) * len(contest.over)
    return _confirmed_or_open(contest, contest.matches, needed, len(contest.over), ways, "lowest")


def _best(contest: Contest, contests: Sequence[Contest]) -> PairVerdict:
    """The row with the largest mean over each of the other rows; any one of the rows could have had it."""
    ways = len(contest.over) * max(1, sum(any(match.tested for match in other.matches) for other in contests))
    first, rival = _top(contest.rows), _top(contest.over)
    against = [match for match in contest.matches if match.other is rival]
    if len(against) == len(contest.rows) and all(match.outcome(ways) < 0 for match in against):
        return PairVerdict("refuted", _evidence(_least(against, -1), contest, "best", ways), "")
    claimed = [match for match in contest.matches if match.row is first]
    return _confirmed_or_open(contest, claimed, len(contest.over), len(contest.rows), ways, "best")


def _confirmed_or_open(
    contest: Contest, claimed: Sequence[Match], needed: int, ways: int, ways_against: int, which: str
) -> PairVerdict:
    """Confirmed where `needed` comparisons, and so all those `claimed`, come out as claimed."""
    still_open = [match for match in claimed if match.outcome(ways) < 1]
    if len(claimed) == needed and not still_open:
        return PairVerdict("confirmed", _evidence(_least(claimed), contest, which, ways), "")
    parts, obstacle = [], "not separated"
    if len(claimed) < needed:
        lacking = [summary for summary in (*contest.rows, *contest.over) if not summary.last.complete]
        counts = ", ".join(f"{s.cell.label} {s.last.n}/{s.last.wanted}" for s in lacking)
        obstacle = "runs missing" if lacking else "no common seeds"
        parts.append(f"{obstacle}: {counts}" if lacking else obstacle)
    elif not all(match.tested for match in still_open):
        obstacle = "one seed"
    if claimed:
        shown = _least(still_open or claimed)
        parts.append(_evidence(shown, contest, which, ways))
        if shown.outcome(ways) < 0:
            parts.append(f"to refute takes level 1 − 0.05/{ways_against}")
        if len(claimed) > 1 and all(match.tested for match in claimed):
            parts.append(f"{len(claimed) - len(still_open)} of {needed} comparisons as claimed")
    return PairVerdict("undecided", "; ".join(parts), obstacle)


def _evidence(match: Match, contest: Contest, which: str, ways: int) -> str:
    """`ways`: the number of comparisons that the interval is one of."""

    def named(summary: CellSummary, among: list[CellSummary], word: str) -> str:
        finished = [one.last.mean for one in among if one.last.complete]
        extreme = (min if word == "lowest" else max)(finished)
        word = f"{word} " if len(among) > 1 and summary.last.mean == extreme else ""
        return f"{word}{summary.cell.label} {written(summary.last)}"

    gain, interval = match.gain, match.gain.among(ways).interval
    certainty = (
        f"95 % interval{f' of {ways} at once' if ways > 1 else ''} [{signed(interval.low)}, {signed(interval.high)}], "
        f"{gain.how}"
        if interval
        else f"{gain.how}, no interval"
    )
    return (
        f"{named(match.row, contest.rows, which)}, {named(match.other, contest.over, 'best other')}, "
        f"difference {signed(gain.mean)}, {certainty}"
    )


def _least(matches: Sequence[Match], sign: int = 1) -> Match:
    """The comparison that goes least the claimed way; with `sign` -1, the one that goes it most."""
    return min(matches, key=lambda match: sign * match.gain.mean)


def _top(cells: Sequence[CellSummary]) -> CellSummary | None:
    return max((cell for cell in cells if cell.last.complete), key=lambda cell: cell.last.mean, default=None)


def _cells(results: Results) -> Cells:
    return {(summary.cell.label, summary.column): summary for summary in reversed(results.cells)}


def _sides(question: Question, pair: Pair, cells: Cells) -> tuple[list[CellSummary], list[CellSummary]] | None:
    """None where a row is not in the grid or was not trained on the data that the claims are about."""
    rows, over = ([cells.get((label, pair)) for label in side] for side in (question.rows, question.over))
    return (rows, over) if all(summary and as_published(summary) for summary in (*rows, *over)) else None


def _matches(rows: list[CellSummary], over: list[CellSummary], design: Design) -> list[Match]:
    return [Match(row, other, gain) for row in rows for other in over if (gain := design.compare(row, other))]


def _out_of_reach(question: Question, cells: Cells) -> str:
    """Why a claim is not listed; "" where it is."""
    labels, pairs = {*question.rows, *question.over}, set(question.pairs)
    if not labels <= {label for label, _ in cells}:
        return "the grid does not have their rows"
    present = [pair for pair in pairs if all((label, pair) in cells for label in labels)]
    if not present:
        return "the grid does not have their pairs"
    if not any(_sides(question, pair, cells) for pair in present):
        return "these runs did not use CIFAR-100 as published"
    return ""


def _repeated(names: Sequence[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def _split(pair: str) -> Pair:
    teacher, _, student = pair.partition("-")
    return teacher, student


def _name(pair: Pair) -> str:
    return "-".join(pair)


def _pairs(n: int) -> str:
    return f"{n} pair" if n == 1 else f"{n} pairs"
