"""The answer in a few sentences: what was measured, who leads, by how much, who cannot be told from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.cells import STATES
from bench.report.claims import Verdict
from bench.report.frames import CellSummary, Results, clean, done, percent, signed
from bench.report.ranking import Ranking
from bench.report.statistics import Gain, gains

DATA_SETS = {"cifar100": "CIFAR-100", "embedded-1": "procedural images (embedded-1)"}
PROCEDURAL = "embedded-1"
BANNER = (
    f"The images are procedural ({PROCEDURAL}): drawn by a program, not photographed. The numbers show that the whole "
    "path runs, and say nothing of how the methods fare on CIFAR-100 or anywhere else."
)
CERTAINTY = "5 %, all methods of a pair at once"
TARGET_PROTOCOL = "streamlined"  # that of the target table
MOST_NAMED = 4  # methods in one sentence

Pair = tuple[str, str]


@dataclass(frozen=True)
class Headline:
    """Plain text, unescaped. `banner` is "" where nothing must be said before all else."""

    title: str
    banner: str
    lead: str  # one sentence: who leads
    rest: tuple[str, ...]  # sentences: by how much, who else may be as good, what is missing, claims


def headline(results: Results, ranking: Ranking, verdicts: Sequence[Verdict]) -> Headline:
    leaders = _leaders(results, ranking)
    rest = [_gain(results, leaders), *_untold(results, ranking, leaders), _unfinished(results)]
    if results.cells:
        rest.append(_claims(results.spec.protocol, verdicts))
    data = {run.data.partition(" ")[0] for run in done(results.runs) if run.in_table}
    banner = BANNER if PROCEDURAL in data else ""
    return Headline(title(results), banner, _lead(results, leaders), tuple(filter(None, rest)))


def title(results: Results) -> str:
    """What is measured. The data set is known from finished runs alone."""
    data = sorted({run.data for run in done(results.runs) if run.in_table and run.data})
    shown = []
    for text in data[:2]:
        name, _, part = text.partition(" ")
        shown.append(f"{DATA_SETS.get(name, name)} {'' if name == PROCEDURAL else part}".strip())
    where = f" on {' and '.join(shown)}{' and others' if len(data) > 2 else ''}" if shown else ""
    labels = {line[0].cell.label for line in results.lines if line[0].cell.role == "method"}
    methods = f" of {_count(len(labels), 'method')}" if labels else ""
    pairs = results.pairs
    if not pairs:
        return f"Knowledge distillation{where}"
    over = _name(pairs[0]) if len(pairs) == 1 else f"{len(pairs)} teacher-student pairs"
    return clean(f"Knowledge distillation{where}: top-1 accuracy{methods} on {over}")


def _leaders(results: Results, ranking: Ranking) -> dict[Pair, list[int]]:
    """The cells with the largest mean of each pair that has a best, the largest first."""
    found: dict[Pair, list[int]] = {}
    for pair in results.pairs:
        best = [i for i in sorted(ranking.best) if results.cells[i].column == pair]
        if best:
            found[pair] = sorted(best, key=lambda i: -results.cells[i].last.mean)
    return found


def _lead(results: Results, leaders: dict[Pair, list[int]]) -> str:
    if not leaders:
        if not any(run.in_table for run in done(results.runs)):
            return "No run has finished yet."
        return "No pair has two methods with all wanted seeds finished, so none leads."
    ranked, total = len(leaders), len(results.pairs)
    if ranked == 1:
        ((pair, best),) = leaders.items()
        verb = "lead together" if len(best) > 1 else "leads"
        score = f"{percent(results.cells[best[0]].last.mean)} % top-1"
        names = _some([_label(results, i) for i in best])
        others = "pair" if total == 2 else f"{total - 1} pairs"
        rest = f"; the other {others} cannot be ranked yet" if total > 1 else ""
        return f"{names} {verb} on {_name(pair)} with {score}{rest}."
    counts = Counter(_label(results, i) for best in leaders.values() for i in best)
    (labels, most), *others = _grouped(counts)
    pairs = "pairs" if ranked == total else f"pairs that can be ranked yet ({total} in all)"
    on = f"{'both' if ranked == 2 else f'all {ranked}'} {pairs}" if most == ranked else f"{most} of {ranked} {pairs}"
    first = f"{_some(labels)} {'leads' if len(labels) == 1 else 'each lead'} on {on}"
    shared = sum(len(best) > 1 for best in leaders.values())
    ties = f"; {_count(shared, 'lead is', 'leads are')} shared" if shared else ""
    return f"{', '.join([first, *map(_on, others)])}{ties}."


def _gain(results: Results, leaders: dict[Pair, list[int]]) -> str:
    """By how much over the Student row: of the one method that leads most, else of each pair's leader."""
    students = {s.column: s for s in results.cells if s.cell.role == "student"}
    if not leaders and not any(s.cell.role == "method" and s.last.complete for s in results.cells):
        return ""
    if not students:
        return "There is no Student row, so no gain is given."
    found = gains(results)
    methods = {i: gain for i, gain in found.items() if results.cells[i].cell.role == "method"}
    top = Counter(_label(results, i) for best in leaders.values() for i in best).most_common(2)
    complete = {_label(results, i) for i in methods}
    if len(top) == 1 or (len(top) == 2 and top[0][1] > top[1][1]):
        who, chosen = top[0][0], {i: gain for i, gain in methods.items() if _label(results, i) == top[0][0]}
    elif leaders:
        who, chosen = "", {best[0]: methods[best[0]] for best in leaders.values() if best[0] in methods}
    elif len(complete) == 1:  # one method, which leads nobody
        (who,), chosen = complete, methods
    else:
        return ""
    if not chosen:
        return "The Student row is not finished where it would be needed, so no gain is given."
    first, *others = sorted(chosen, key=lambda i: chosen[i].mean)

    def written(i: int) -> str:
        words = _name(results.cells[i].column) if who else f"{_label(results, i)} on {_name(results.cells[i].column)}"
        return _written(chosen[i]) + (f" ({words})" if others else "")

    amount = f"{written(first)} to {written(others[-1])}" if others else written(first)
    subject = who or ("the leaders" if others else _label(results, first))
    where = f" on {len(chosen)} of {len(results.pairs)} pairs" if len(chosen) < len(results.pairs) else ""
    if any(chosen[i].interval for i in chosen):
        plural = "s, for all methods of a pair" if others else ", for all methods of the pair"
        certainty = f"95 % interval{plural} at once"
    else:
        certainty = "one seed, so no interval"
    return f"Gain of {subject} over the Student row{where}: {amount} points ({certainty})."


def _untold(results: Results, ranking: Ranking, leaders: dict[Pair, list[int]]) -> Iterable[str]:
    """Which methods the seeds cannot tell from the leader, and where nothing is tested."""
    if not leaders:
        return
    alike: Counter[str] = Counter()
    clear, loose = 0, 0  # pairs where all others are worse; others that were not held against the leader
    tested = [pair for pair in leaders if pair in ranking.freedom]
    for pair in tested:
        members = [i for i, s in enumerate(results.cells) if s.column == pair and s.cell.role == "method"]
        names = dict.fromkeys(_label(results, i) for i in members if i in ranking.unseparated)
        alike.update(names.keys())
        loose += sum(len(results.cells[i].by_seed()) < 2 for i in members if i not in ranking.unseparated)
        clear += not names
    if untested := len(leaders) - len(tested):
        one = all(ranking.seeds[pair] == 1 for pair in leaders if pair not in ranking.freedom)
        why = "One seed a cell" if one else "Too few common seeds"
        where = f" on {_count(untested, 'pair')}" if tested else ""
        yield f"{why}{where}: nothing is tested, and the order may be chance."
    if not tested:
        return
    left_out = f" Not compared, with fewer than two runs: {_count(loose, 'cell')}." if loose else ""
    every = "Every other method that was compared" if loose else "Every other method"
    if not alike:
        on = f" on {'each of ' * (clear > 1)}{_count(clear, 'pair')}" if len(results.pairs) > 1 else ""
        yield f"{every} is shown to be worse{on} ({CERTAINTY}).{left_out}"
    elif len(leaders) == 1:
        yield f"Not shown to be worse ({CERTAINTY}): {_some(list(alike))}.{left_out}"
    else:
        names = ", ".join(map(_on, _grouped(alike)))
        rest = f". {every} is shown to be worse on {_count(clear, 'pair')}" if clear else ""
        yield f"Not shown to be worse than the leader ({CERTAINTY}): {names} (of {len(tested)} pairs){rest}.{left_out}"


def _unfinished(results: Results) -> str:
    wanted = [run for run in results.runs if run.in_table]
    counts = Counter(run.state for run in wanted if run.state != "done")
    if not counts:
        return ""
    states = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    are = "is" if counts.total() == 1 else "are"
    warning = ": all this may change" if counts.total() < len(wanted) else ""
    return f"{counts.total()} of {len(wanted)} wanted runs {are} not finished ({states}){warning}."


def _claims(protocol: str, verdicts: Sequence[Verdict]) -> str:
    own = [verdict.verdict for verdict in verdicts if verdict.protocol == protocol]
    if not own:
        others = _count(len(verdicts), "claim of others is", "claims of others are")
        where = f"No published claim under protocol {clean(protocol)} is about these runs"
        return f"{where}; {others} checked for orientation." if verdicts else ""
    whose = "of the target table" if protocol == TARGET_PROTOCOL else f"published under protocol {clean(protocol)}"
    counts = Counter(own)
    hold = f"{counts['confirmed']} {'holds' if counts['confirmed'] == 1 else 'hold'}"
    return (
        f"Of {_count(len(own), 'claim')} {whose}, {hold}, {counts['refuted']} "
        f"{'is' if counts['refuted'] == 1 else 'are'} refuted and {counts['undecided']} undecided."
    )


def _written(gain: Gain) -> str:
    interval = gain.interval
    return signed(gain.mean) + (f" [{signed(interval.low)}, {signed(interval.high)}]" if interval else "")


def _grouped(counts: Counter[str]) -> list[tuple[list[str], int]]:
    """Labels with equal counts together, the largest counts first."""
    found: dict[int, list[str]] = {}
    for label, count in counts.most_common():
        found.setdefault(count, []).append(label)
    return [(labels, count) for count, labels in found.items()]


def _on(group: tuple[list[str], int]) -> str:
    labels, count = group
    return f"{_some(labels)} on {count}" + (" each" if len(labels) > 1 else "")


def _label(results: Results, cell: int) -> str:
    summary: CellSummary = results.cells[cell]
    return clean(summary.cell.label)


def _some(names: Sequence[str]) -> str:
    """A and B; of many the first."""
    if len(names) > MOST_NAMED:
        return f"{', '.join(names[:MOST_NAMED])} and {len(names) - MOST_NAMED} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _name(pair: Pair) -> str:
    return clean(" → ".join(pair))


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
