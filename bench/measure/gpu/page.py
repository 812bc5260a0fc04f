"""Facts as a page of Markdown: what to change, then the tables that it rests on. A table without facts is left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tabulate import tabulate

from bench.measure.gpu import judge
from bench.measure.gpu.facts import Fact, read
from bench.measure.gpu.judge import good

FILE = "page.md"
TOP = 10  # kernels of a table


def write(facts: Path, path: Path) -> None:
    """Make the page of a file of facts."""
    path.write_text(text(read(facts)), encoding="utf-8")


def text(facts: Sequence[Fact]) -> str:
    """The page of facts, however early they end."""
    parts = [f"# First facts of {_machine(facts).get('name', 'a machine')}", *_head(facts)]
    for title, section in SECTIONS.items():
        found = list(section(facts))
        if found:
            parts += [f"## {title}", *found]
    return "\n\n".join(parts) + "\n"


def _machine(facts: Sequence[Fact]) -> Fact:
    return next(iter(good(facts, "machine")), {})


def _head(facts: Sequence[Fact]) -> Iterator[str]:
    machine = _machine(facts)
    known = [
        f"{machine[key]} {unit}" if after else f"{unit} {machine[key]}"
        for key, unit, after in (
            ("memory_gib", "GiB", True),
            ("multiprocessors", "multiprocessors", True),
            ("cores", "CPU cores", True),
            ("driver", "driver", False),
            ("cuda", "CUDA", False),
            ("cudnn", "cuDNN", False),
            ("torch", "torch", False),
            ("python", "Python", False),
            ("commit", "commit", False),
        )
        if machine.get(key)
    ]
    if known:
        yield ", ".join(known) + "."
    took = max((fact.get("at_s", 0) for fact in facts), default=0)
    yield f"{len(facts)} facts, the last one after {took:.0f} s."


def _in_short(facts: Sequence[Fact]) -> Iterator[str]:
    lines = []
    for choice in judge.choices(facts):
        if choice.what == "precision":
            if choice.chosen != choice.today:
                lines.append(f"- {choice.chosen} takes steps {choice.gain:.2f} times as fast as {choice.today}.")
        elif choice.wrong:
            change = f"is {choice.today}; {choice.chosen} is {choice.gain:.2f} times as fast"
            lines.append(f"- **Wrong today: {choice.what}** {change}.")
    for fact in good(facts, "kernels", "ms", "busy_ms", "kernels"):
        lines.append(f"- A {_name(fact)} step is bound by {judge.bound(facts, fact).by}.")
    wrong = len(judge.troubles(facts))
    lines.append(f"- {wrong} things failed or are missing, named below." if wrong else "- Nothing failed.")
    yield "\n".join(lines)


def _choices(facts: Sequence[Fact]) -> Iterator[str]:
    rows = [
        [choice.what, choice.today, choice.chosen, choice.gain, "yes" if choice.wrong else "", choice.why]
        for choice in judge.choices(facts)
    ]
    if rows:
        yield _table(
            rows, ["Setting", "today", "chosen", "gain", "change", "numbers"], (*[None] * 3, ".2f", None, None)
        )


def _ceilings(facts: Sequence[Fact]) -> Iterator[str]:
    rows = [["copy", "", "", "", f"{fact['per_s'] / 1e12:.3g} TB/s"] for fact in good(facts, "copy", "per_s")]
    for fact in (*good(facts, "product", "per_s"), *good(facts, "convolution", "per_s")):
        shape = f", {fact['channels']} channels of {fact['side']}" if {"channels", "side"} <= fact.keys() else ""
        kind = "matrix product" if fact["fact"] == "product" else f"3x3 convolution{shape}"
        speed = f"{fact['per_s'] / 1e12:.3g} TFLOP/s"
        rows.append([kind, fact.get("precision"), fact.get("batch", ""), fact.get("layout", ""), speed])
    if rows:
        yield _table(rows, ["Best of", "precision", "batch", "layout", "rate"])


def _speeds(facts: Sequence[Fact]) -> Iterator[str]:
    """KD, a row per pair, batch and precision."""
    rows: dict[tuple, dict[str, Fact]] = {}
    for fact in good(facts, "layout", "ms"):
        column = f"{fact.get('layout')}{', tuned' if fact.get('autotuned') else ''}"
        rows.setdefault((fact.get("pair"), fact.get("batch"), fact.get("precision")), {})[column] = fact
    columns = ["NCHW", "NHWC", "NCHW, tuned", "NHWC, tuned"]
    best = {key: min(fact["ms"] for fact in row.values()) for key, row in rows.items()}
    lines = []
    for key, row in rows.items():
        times = [row[column]["ms"] if column in row else None for column in columns]
        ratio = times[0] / times[1] if times[0] and times[1] else None
        floor = max((ms for ms in judge.floors_ms(facts, next(iter(row.values()))) if ms), default=None)
        base = best.get((*key[:2], "fp32"))
        gib = max((fact.get("reserved_gib") or 0 for fact in row.values()), default=0)
        share = 100 * floor / best[key] if floor else None
        lines.append([*key, *times, ratio, base / best[key] if base else None, floor, share, gib or None])
    if lines:
        heads = ["Pair", "batch", "precision", *(f"{column} (ms)" for column in columns)]
        heads += ["NCHW/NHWC", "beside fp32", "floor (ms)", "floor/best (%)", "GiB"]
        yield _table(lines, heads, (*[None] * 3, *[".2f"] * 4, ".2f", ".2f", ".2f", ".0f", ".1f"))


def _methods(facts: Sequence[Fact]) -> Iterator[str]:
    rows = good(facts, "step", "ms")
    kd = {fact.get("batch"): fact["ms"] for fact in rows if fact.get("method") == "kd"}
    lines = []
    for fact in rows:
        base = kd.get(fact.get("batch"))
        floor = max((ms for ms in judge.floors_ms(facts, fact) if ms), default=None)
        share = 100 * floor / fact["ms"] if floor else None
        peak = fact.get("allocated_gib"), fact.get("reserved_gib")
        lines.append([fact.get("method"), fact.get("pair"), fact.get("batch"), fact["ms"],
                      fact["ms"] / base if base else None, floor, share, *peak])  # fmt: skip
    if lines:
        heads = ["Method", "pair", "batch", "ms", "beside KD", "floor (ms)", "floor/step (%)", "GiB", "GiB reserved"]
        yield _table(lines, heads, (*[None] * 3, ".2f", ".2f", ".2f", ".0f", ".2f", ".2f"))


def _bounds(facts: Sequence[Fact]) -> Iterator[str]:
    rows = good(facts, "kernels", "ms", "busy_ms", "kernels")
    lines = []
    for fact in rows:
        found = judge.bound(facts, fact)
        waits = 100 * (1 - found.busy_ms / found.step_ms)
        lines.append([_name(fact), found.step_ms, found.busy_ms, waits, fact["kernels"], found.kernel_us,
                      found.arithmetic_ms, found.bandwidth_ms, found.by])  # fmt: skip
    if lines:
        heads = ["Step", "ms", "in kernels (ms)", "without (%)", "kernels", "µs a kernel"]
        heads += ["arithmetic (ms)", "bandwidth (ms)", "bound by"]
        yield _table(lines, heads, (None, ".2f", ".2f", ".0f", ".0f", ".1f", ".2f", ".2f", None))
    for fact in rows:
        top = [row for row in fact.get("top", []) if isinstance(row, list) and len(row) == 3][:TOP]
        if top:
            whole = 1e3 * fact["busy_ms"]
            named = [[f"`{name}`", count, spent, 100 * spent / whole] for name, count, spent in top]
            yield f"{_name(fact)}, its longest kernels:"
            yield _table(named, ["Kernel", "times", "µs", "%"], (None, ".0f", ".0f", ".1f"))


def _at_once(facts: Sequence[Fact]) -> Iterator[str]:
    rates: dict[tuple, dict[int, float]] = {}
    for fact in good(facts, "at once", "steps_per_s", "processes"):
        rates.setdefault((fact.get("batch"), fact.get("precision")), {})[fact["processes"]] = fact["steps_per_s"]
    lines = [
        [*key, count, rate, rate / row[min(row)]] for key, row in rates.items() for count, rate in sorted(row.items())
    ]
    if lines:
        heads = ["batch", "precision", "processes", "steps/s in total", "beside the fewest"]
        yield _table(lines, heads, (None, None, None, ".1f", ".2f"))


def _cohorts(facts: Sequence[Fact]) -> Iterator[str]:
    lines = [
        [fact.get("batch"), fact.get("precision"), fact.get("runs"), fact["alone_ms"], fact["ms"],
         fact["alone_ms"] / fact["ms"], fact.get("reserved_gib")]
        for fact in good(facts, "cohort", "ms", "alone_ms")
    ]  # fmt: skip
    if lines:
        heads = ["batch", "precision", "runs", "one by one (ms)", "together (ms)", "ratio", "memory (GiB)"]
        yield _table(lines, heads, (None, None, None, ".2f", ".2f", ".2f", ".2f"))


def _plain(facts: Sequence[Fact]) -> Iterator[str]:
    lines = []
    for fact in good(facts, "plain", "ms", "plain_ms"):
        floor = max((ms for ms in judge.floors_ms(facts, fact) if ms), default=None)
        lines.append([_name(fact), fact["plain_ms"], fact["ms"], fact["plain_ms"] / fact["ms"], floor,
                      100 * floor / fact["ms"] if floor else None])  # fmt: skip
    if lines:
        heads = [
            "Step, with its share of the epoch",
            "plain (ms)",
            "ours (ms)",
            "ratio",
            "floor (ms)",
            "floor/ours (%)",
        ]
        yield _table(lines, heads, (None, ".2f", ".2f", ".2f", ".2f", ".0f"))


def _epoch(facts: Sequence[Fact]) -> Iterator[str]:
    steps = {fact["batch"]: fact["ms"] for fact in good(facts, "step", "ms", "batch") if fact.get("method") == "kd"}
    lines = []
    for fact in good(facts, "epoch", "seconds", "images"):
        lines.append([fact.get("part"), fact["images"], 1e3 * fact["seconds"]])
        for batch in sorted(steps):
            training_ms = steps[batch] * -(-50_000 // batch)
            lines[-1].append(100 * 1e3 * fact["seconds"] / training_ms)
    if lines:
        heads = ["Part of an epoch", "images", "ms", *(f"beside KD's steps at {batch} (%)" for batch in sorted(steps))]
        yield _table(lines, heads, (None, None, ".1f", *[".1f"] * len(steps)))


def _agreement(facts: Sequence[Fact]) -> Iterator[str]:
    lines = []
    for fact in good(facts, "agreement"):
        off = [f"{fact[kind]:.1e}" if kind in fact else "" for kind in ("loss_off", "update_off", "state_off")]
        known = ["yes" if fact.get(word) else "no" for word in ("captured", "deterministic", "holds")]
        lines.append([fact.get("method"), fact.get("precision"), *off, *known])
    if lines:
        heads = ["Method", "precision", "loss off", "update off", "state off", "captured", "deterministic", "holds"]
        yield tabulate(lines, heads, "github", disable_numparse=True)


def _acceptance(facts: Sequence[Fact]) -> Iterator[str]:
    lines = [[fact.get("check"), "yes" if fact.get("holds") else "**no**", fact.get("found")]
             for fact in good(facts, "acceptance")]  # fmt: skip
    if lines:
        yield _table(lines, ["Check", "holds", "found"])


def _results(facts: Sequence[Fact]) -> Iterator[str]:
    lines = [
        [
            fact.get("method"),
            fact.get("student"),
            fact.get("seed"),
            fact.get("precision"),
            fact["top1"],
            fact.get("train_s"),
        ]
        for fact in good(facts, "result", "top1")
    ]
    if lines:
        if any(not fact.get("holds") for fact in facts if fact["fact"] == "acceptance"):
            yield "A check of acceptance does not hold: find out why before these are believed."
        yield _table(lines, ["Method", "network", "seed", "precision", "top-1", "s"], (*[None] * 4, ".2f", ".0f"))


def _troubles(facts: Sequence[Fact]) -> Iterator[str]:
    lines = judge.troubles(facts)
    if lines:
        yield "\n".join(f"- {line}" for line in lines)


def _name(fact: Fact) -> str:
    known = (fact.get("method"), fact.get("pair"), fact.get("batch"), fact.get("precision"), fact.get("layout"))
    return " ".join(str(part) for part in known if part is not None)


def _table(rows: list, heads: list[str], formats: Sequence[str | None] = ()) -> str:
    return tabulate(rows, heads, "github", formats or (), missingval="")


SECTIONS: dict[str, Callable[[Sequence[Fact]], Iterator[str]]] = {
    "In short": _in_short,
    "Choices": _choices,
    "What a step is bound by": _bounds,
    "KD, by precision and layout": _speeds,
    "Methods": _methods,
    "Methods together": _cohorts,
    "Runs at once": _at_once,
    "Beside the plain loop": _plain,
    "Around the steps": _epoch,
    "Ceilings": _ceilings,
    "A captured step beside an eager one": _agreement,
    "Acceptance": _acceptance,
    "Results": _results,
    "What failed or is missing": _troubles,
}
