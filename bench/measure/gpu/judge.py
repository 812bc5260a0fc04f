"""What the facts say: ceilings and floors, what a step is bound by, and the settings that they speak for."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.measure.gpu.facts import Fact

MATTERS = 1.05  # times as fast: below that a default stays
NEARLY = 0.97  # of the best rate: fewer runs at once that reach it are better, each is done sooner
IDLE = 0.3  # share of a step without a kernel from which launches are what it waits for
NEAR = 0.5  # of a ceiling: a step that comes so far is bound by it
SMALL_KERNEL_US = 8.0  # a kernel's mean time below which it hardly fills a device
LABELS = ("method", "pair", "batch", "precision", "layout", "processes", "part", "check", "run_id", "seed")
PRECISIONS = ("fp32", "tf32", "bf16")


@dataclass(frozen=True)
class Choice:
    """A setting that the facts speak for, beside the one that runs have today."""

    what: str
    today: str
    chosen: str
    gain: float  # time as today / time as chosen
    why: str

    @property
    def wrong(self) -> bool:
        """Whether today's is to be changed. A precision is part of what a run is: a choice, and never wrong."""
        return self.what != "precision" and self.today != self.chosen and self.gain >= MATTERS


@dataclass(frozen=True)
class Slots:
    """Runs at once, and the steps per second of each count."""

    count: int
    gain: float  # rate of the count / rate of one
    rates: dict[int, float]
    batch: int
    precision: str


@dataclass(frozen=True)
class Bound:
    """Where the time of a step goes, in ms, and the word for it."""

    step_ms: float
    busy_ms: float
    arithmetic_ms: float | None
    bandwidth_ms: float | None
    kernel_us: float  # of a kernel on average
    by: str


def good(facts: Iterable[Fact], kind: str, *numbers: str) -> list[Fact]:
    """Facts of a kind that were measured: those numbers are there and above 0."""
    found = [fact for fact in facts if fact["fact"] == kind and "error" not in fact]
    return [fact for fact in found if all(_positive(fact.get(name)) for name in numbers)]


def _positive(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def mean_ratio(ratios: Sequence[float]) -> float:
    """The geometric mean: that of a list of ratios, and of their inverses."""
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def peak_flop_per_s(facts: Sequence[Fact], precision: str) -> float | None:
    """The best matrix product or convolution of a precision, at any batch and layout."""
    rates = [fact["per_s"] for kind in ("product", "convolution") for fact in good(facts, kind, "per_s")
             if fact.get("precision") == precision]  # fmt: skip
    return max(rates, default=None)


def bytes_per_s(facts: Sequence[Fact]) -> float | None:
    return max((fact["per_s"] for fact in good(facts, "copy", "per_s")), default=None)


def floors_ms(facts: Sequence[Fact], step: Fact) -> tuple[float | None, float | None]:
    """The least ms that the arithmetic and the bytes of a step take."""
    peak, width = peak_flop_per_s(facts, step.get("precision", "")), bytes_per_s(facts)
    arithmetic = 1e3 * step["flop"] / peak if peak and _positive(step.get("flop")) else None
    bandwidth = 1e3 * step["bytes"] / width if width and _positive(step.get("bytes")) else None
    return arithmetic, bandwidth


def bound(facts: Sequence[Fact], step: Fact) -> Bound:
    """What a step with known kernels is bound by."""
    arithmetic, bandwidth = floors_ms(facts, step)
    busy, mean_us = min(step["busy_ms"], step["ms"]), 1e3 * step["busy_ms"] / step["kernels"]
    near = {"arithmetic": (arithmetic or 0) / busy, "bandwidth": (bandwidth or 0) / busy}
    most = max(near, key=near.get)
    if 1 - busy / step["ms"] > IDLE:
        by = "launches"
    elif near[most] >= NEAR:
        by = most
    elif mean_us < SMALL_KERNEL_US:
        by = "small kernels"
    else:
        by = "kernels below the ceilings"
    return Bound(step["ms"], busy, arithmetic, bandwidth, mean_us, by)


def choices(facts: Sequence[Fact]) -> list[Choice]:
    """All choices that there are facts for."""
    found = [layout(facts, precision) for precision in PRECISIONS]
    return [choice for choice in (*found, autotuning(facts), precision(facts), at_once(facts)) if choice]


def layout(facts: Sequence[Fact], precision: str) -> Choice | None:
    """NCHW or NHWC of a precision, by KD's steps on all pairs and batches without autotuning."""
    both = [times for times in _by_layout(facts, precision, tuned=False).values() if {"NCHW", "NHWC"} <= times.keys()]
    if not both:
        return None
    ratio = mean_ratio([times["NCHW"] / times["NHWC"] for times in both])
    chosen = "NHWC" if ratio > 1 else "NCHW"
    today = _defaults(facts).get("layouts", {}).get(precision, "unknown")
    each = ", ".join(
        f"{times['NCHW'] / times['NHWC']:.2f} ({pair}, {batch})"
        for (pair, batch), times in _by_layout(facts, precision, tuned=False).items()
        if {"NCHW", "NHWC"} <= times.keys()
    )
    gain = 1.0 if today == chosen else max(ratio, 1 / ratio)
    return Choice(f"layout, {precision}", today, chosen, gain, f"NCHW/NHWC {ratio:.2f}: {each}")


def _by_layout(facts: Sequence[Fact], precision: str, tuned: bool) -> dict[tuple, dict[str, float]]:
    """ms of KD's steps by (pair, batch) and layout."""
    found: dict[tuple, dict[str, float]] = defaultdict(dict)
    for fact in good(facts, "layout", "ms"):
        if fact.get("precision") == precision and fact.get("autotuned") == tuned:
            found[fact.get("pair"), fact.get("batch")][fact.get("layout")] = fact["ms"]
    return dict(found)


def _chosen_layout(facts: Sequence[Fact], precision: str) -> str | None:
    choice = layout(facts, precision)
    return choice.chosen if choice else None


def autotuning(facts: Sequence[Fact]) -> Choice | None:
    """cuDNN's autotuning on or off, in the layouts that the facts speak for."""
    ratios = {}
    for each in PRECISIONS:
        name = _chosen_layout(facts, each)
        off, on = (_by_layout(facts, each, tuned) for tuned in (False, True))
        pairs = [(off[key][name], on[key][name]) for key in off.keys() & on.keys() if name in off[key].keys() & on[key]]
        if pairs:
            ratios[each] = mean_ratio([before / after for before, after in pairs])
    if not ratios:
        return None
    ratio = mean_ratio(list(ratios.values()))
    chosen, today = "on" if ratio >= MATTERS else "off", "on" if _defaults(facts).get("autotuned") else "off"
    gain = 1.0 if chosen == today else max(ratio, 1 / ratio)
    each = ", ".join(f"{value:.2f} ({name})" for name, value in ratios.items())
    return Choice("cuDNN's autotuning", today, chosen, gain, f"off/on {ratio:.2f}: {each}")


def precision(facts: Sequence[Fact]) -> Choice | None:
    """The fastest precision whose captured steps are the eager ones, each in its better layout; speed alone."""
    times = {}
    for each in PRECISIONS:
        name = _chosen_layout(facts, each)
        times[each] = {key: row[name] for key, row in _by_layout(facts, each, tuned=False).items() if name in row}
    today = _defaults(facts).get("precision", "fp32")
    speeds = {}
    for each in PRECISIONS:
        shared = times[each].keys() & times.get(today, {}).keys()
        if shared:
            speeds[each] = mean_ratio([times[today][key] / times[each][key] for key in shared])
    if len(speeds) < 2:
        return None
    bad = {fact.get("precision") for fact in facts if fact["fact"] == "agreement" and not fact.get("holds")}
    chosen = max((each for each in speeds if each not in bad), key=speeds.get, default=today)
    each = ", ".join(f"{name} {value:.2f}" for name, value in speeds.items())
    why = f"speed beside {today}: {each}; what it costs in accuracy only runs can tell"
    return Choice("precision", today, chosen, speeds[chosen], why)


def at_once(facts: Sequence[Fact]) -> Choice | None:
    """How many runs share the device, at the largest batch in today's precision."""
    today = _defaults(facts)
    found = slots(facts, today.get("precision", "fp32"))
    if not found:
        return None
    before = int(today.get("slots", 1))
    gain = found.rates[found.count] / found.rates.get(before, found.rates[min(found.rates)])
    each = ", ".join(f"{rate:.1f} ({count})" for count, rate in sorted(found.rates.items()))
    why = f"steps/s in total at batch {found.batch}, {found.precision}: {each}"
    return Choice("runs at once", str(before), str(found.count), gain, why)


def slots(facts: Sequence[Fact], precision: str) -> Slots | None:
    """The fewest processes that reach nearly the best rate, at the largest batch that was measured."""
    rows = good(facts, "at once", "steps_per_s", "processes", "batch")
    rows = [fact for fact in rows if fact.get("precision") == precision]
    if not rows:
        return None
    batch = max(fact["batch"] for fact in rows)
    rates = {int(fact["processes"]): fact["steps_per_s"] for fact in rows if fact["batch"] == batch}
    best = max(rates.values())
    count = min(count for count, rate in rates.items() if rate >= NEARLY * best)
    return Slots(count, rates[count] / rates[min(rates)], rates, batch, precision)


def _defaults(facts: Sequence[Fact]) -> Fact:
    return next(iter(good(facts, "defaults")), {})


def troubles(facts: Sequence[Fact]) -> list[str]:
    """A line on everything that failed, does not hold, or was not done; what was done later is none."""
    found = []
    for position, fact in enumerate(facts):
        kind, what = fact["fact"], ", ".join(str(fact[name]) for name in LABELS if name in fact)
        if "error" in fact and not _made_good(fact, facts[position + 1 :]):
            found.append(f"{kind}{f' ({what})' if what else ''}: {fact['error']}")
        elif kind in ("agreement", "acceptance") and "error" not in fact and not fact.get("holds"):
            off = [f"{name.removesuffix('_off')} off by {fact[name]:.1e}" for name in fact if name.endswith("_off")]
            off += ["not captured"] if fact.get("captured") is False else []
            found.append(f"{kind} ({what}) does not hold: {fact.get('found') or ', '.join(off)}")
    ended = {fact.get("section"): fact.get("ended") for fact in facts if fact["fact"] == "section"}
    wanted = [name for fact in facts if fact["fact"] == "program" for name in fact.get("sections", [])]
    begun = [fact.get("section") for fact in facts if fact["fact"] == "begins"]
    for name in dict.fromkeys([*wanted, *begun, *ended]):
        missing = "the facts end within it" if name in begun else "never begun"
        if ended.get(name, missing) != "done":
            found.append(f"section {name}: {ended.get(name, missing)}")
    return found


def _made_good(failed: Fact, later: Iterable[Fact]) -> bool:
    """Whether the same was measured afterwards."""
    same = {name: value for name, value in failed.items() if name not in ("error", "at_s")}.items()
    return any(same <= fact.items() and "error" not in fact for fact in later)
