"""The page's arithmetic on facts of an H100 that are MADE UP here, and that it can be made wherever facts end."""

from __future__ import annotations

import json

import pytest

from bench.measure.gpu import facts as files
from bench.measure.gpu import judge, page, program

PAIR = "resnet56-resnet20"
FLOP = {64: 32e9, 1024: 512e9}
BYTES = {64: 1.5e9, 1024: 24e9}
# Made up: ms of a KD step by precision and batch: NCHW, NHWC, and the same autotuned.
KD_MS = {
    ("fp32", 64): (4.0, 5.0, 4.0, 5.0),
    ("fp32", 1024): (30.0, 37.5, 30.0, 37.5),
    ("bf16", 64): (5.0, 4.0, 5.0, 4.0),
    ("bf16", 1024): (24.0, 12.0, 20.0, 10.0),
}


def made_up() -> list[dict]:
    facts = [
        {"fact": "program", "sections": ["machine", "layouts", "kernels", "acceptance", "sprint"], "minutes": 5},
        {"fact": "begins", "section": "machine", "seconds": 30},
        {"fact": "machine", "name": "NVIDIA H100 (made up)", "memory_gib": 79.6, "multiprocessors": 132, "cores": 16},
        {"fact": "defaults", "layouts": {"fp32": "NCHW", "bf16": "NCHW"}, "autotuned": False, "precision": "fp32",
         "slots": 1},
        {"fact": "copy", "per_s": 3.0e12},
        {"fact": "product", "precision": "fp32", "per_s": 50e12},
        {"fact": "product", "precision": "bf16", "per_s": 800e12},
        {"fact": "convolution", "precision": "fp32", "batch": 64, "layout": "NCHW", "per_s": 64e12, "channels": 64,
         "side": 32},
        {"fact": "section", "section": "machine", "ended": "done"},
        {"fact": "begins", "section": "layouts", "seconds": 60},
    ]  # fmt: skip
    for (precision, batch), times in KD_MS.items():
        for k, ms in enumerate(times):
            facts.append({"fact": "layout", "method": "kd", "pair": PAIR, "batch": batch, "precision": precision,
                          "layout": ("NCHW", "NHWC")[k % 2], "autotuned": k > 1, "ms": ms, "flop": FLOP[batch],
                          "bytes": BYTES[batch] / (2 if precision == "bf16" else 1), "reserved_gib": 6.0})  # fmt: skip
    facts += [
        {"fact": "layout", "method": "kd", "pair": PAIR, "batch": 64, "precision": "tf32", "layout": "NCHW",
         "autotuned": False, "error": "RuntimeError: CUDA error"},
        {"fact": "section", "section": "layouts", "ended": "out of time"},
        {"fact": "step", "method": "kd", "pair": PAIR, "batch": 1024, "precision": "fp32", "ms": 30.0,
         "flop": FLOP[1024], "bytes": BYTES[1024], "reserved_gib": 6.0, "allocated_gib": 5.0},
        {"fact": "step", "method": "rkd", "pair": PAIR, "batch": 1024, "precision": "fp32", "ms": 45.0,
         "flop": FLOP[1024], "bytes": BYTES[1024], "reserved_gib": 10.0, "allocated_gib": 9.0},
        {"fact": "agreement", "method": "kd", "precision": "fp32", "loss_off": 0.0, "update_off": 0.0,
         "state_off": 0.0, "holds": True, "deterministic": True},
        {"fact": "agreement", "method": "skd", "precision": "tf32", "loss_off": 0.5, "update_off": 1.0,
         "holds": False, "captured": False, "deterministic": True},
        {"fact": "kernels", "method": "kd", "pair": PAIR, "batch": 64, "precision": "fp32", "layout": "NCHW",
         "ms": 4.0, "busy_ms": 2.4, "kernels": 800, "flop": FLOP[64], "bytes": BYTES[64],
         "top": [["bn_fw", 20, 600.0]]},
        {"fact": "kernels", "method": "kd", "pair": PAIR, "batch": 1024, "precision": "fp32", "layout": "NCHW",
         "ms": 30.0, "busy_ms": 29.0, "kernels": 800, "flop": FLOP[1024], "bytes": 50e9, "top": []},
        {"fact": "epoch", "part": "augmentation, weak", "images": 50000, "seconds": 0.147},
        {"fact": "plain", "method": "kd", "pair": PAIR, "batch": 64, "precision": "fp32", "plain_ms": 40.0, "ms": 5.0,
         "flop": FLOP[64], "bytes": BYTES[64]},
        {"fact": "acceptance", "check": "sskd/resnet56", "holds": False, "found": "top-1 1.00"},
        {"fact": "begins", "section": "kernels", "seconds": 6},
        {"fact": "result", "run_id": "kd-x", "method": "kd", "student": "resnet20", "seed": 0, "precision": "fp32",
         "top1": 66.5, "train_s": 44.0},
    ]  # fmt: skip
    for count, rate in ((1, 33.0), (2, 60.0), (4, 61.0)):
        facts.append({"fact": "at once", "processes": count, "batch": 1024, "precision": "fp32", "steps_per_s": rate})
    facts.append({"fact": "at once", "processes": 4, "batch": 64, "precision": "fp32", "steps_per_s": 900.0})
    return [{**fact, "at_s": float(at)} for at, fact in enumerate(facts)]


FACTS = made_up()


def choice(what: str) -> judge.Choice:
    return next(choice for choice in judge.choices(FACTS) if choice.what == what)


def test_layout_per_precision_by_the_mean_of_ratios():
    fp32, bf16 = choice("layout, fp32"), choice("layout, bf16")
    assert (fp32.today, fp32.chosen, fp32.wrong) == ("NCHW", "NCHW", False)
    assert (bf16.today, bf16.chosen, bf16.wrong) == ("NCHW", "NHWC", True)
    assert bf16.gain == pytest.approx((1.25 * 2.0) ** 0.5)
    assert "1.25 (resnet56-resnet20, 64), 2.00 (resnet56-resnet20, 1024)" in bf16.why


def test_autotuning_in_the_chosen_layouts():
    """fp32 gains nothing, bf16 in NHWC nothing at 64 and 1.2 at 1024: the mean over precisions is 1.2 ** (1 / 4)."""
    found = choice("cuDNN's autotuning")
    assert (found.today, found.chosen, found.wrong) == ("off", "off", False)
    assert f"{1.2**0.25:.2f}: 1.00 (fp32), {1.2**0.5:.2f} (bf16)" in found.why
    faster = [{**fact, "ms": fact["ms"] / (1.5 if fact.get("autotuned") else 1)} if fact["fact"] == "layout"
              and "ms" in fact else fact for fact in FACTS]  # fmt: skip
    tuned = judge.autotuning(faster)
    assert tuned.chosen == "on" and tuned.wrong and tuned.gain == pytest.approx(1.5 * 1.2**0.25)


def test_precision_is_a_choice_and_never_wrong():
    found = choice("precision")
    assert (found.chosen, found.wrong) == ("bf16", False) and found.gain == pytest.approx((1.0 * 2.5) ** 0.5)
    spoiled = [*FACTS, {"fact": "agreement", "method": "kd", "precision": "bf16", "holds": False}]
    assert judge.precision(spoiled).chosen == "fp32"


def test_fewest_processes_that_nearly_reach_the_best_rate():
    found = judge.slots(FACTS, "fp32")
    assert (found.count, found.batch) == (2, 1024) and found.gain == pytest.approx(60 / 33)
    runs = choice("runs at once")
    assert (runs.today, runs.chosen, runs.wrong) == ("1", "2", True) and runs.gain == pytest.approx(60 / 33)


def kernels(**changes) -> judge.Bound:
    step = {"ms": 30.0, "busy_ms": 29.0, "kernels": 1000, "flop": 1e9, "bytes": 1e6, "precision": "fp32"}
    return judge.bound(FACTS, {**step, **changes})


@pytest.mark.parametrize(
    ("changes", "by"),
    [
        ({"busy_ms": 15.0}, "launches"),  # half of the time no kernel runs
        ({"flop": 1e12}, "arithmetic"),  # 15.6 ms at 64 TFLOP/s
        ({"bytes": 50e9}, "bandwidth"),  # 16.7 ms at 3 TB/s
        ({"kernels": 10_000}, "small kernels"),  # 2.9 µs each
        ({}, "kernels below the ceilings"),  # 29 µs each
        ({"precision": "tf32", "flop": 1e15}, "kernels below the ceilings"),  # its ceiling was not measured
    ],
)
def test_what_a_step_is_bound_by(changes, by):
    found = kernels(**changes)
    assert found.by == by and found.kernel_us == pytest.approx(1e3 * found.busy_ms / changes.get("kernels", 1000))


def test_floors_are_work_over_the_best_rate():
    """fp32 takes the convolution (64) over the product (50)."""
    step = {"precision": "fp32", "flop": FLOP[1024], "bytes": BYTES[1024]}
    assert judge.floors_ms(FACTS, step) == (pytest.approx(8.0), pytest.approx(8.0))
    assert judge.floors_ms(FACTS, {**step, "precision": "bf16"})[0] == pytest.approx(0.64)


def row(text: str, *begins: object) -> list[str]:
    """The cells of the only table row that begins with these."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    found = [cells for cells in rows if cells[: len(begins)] == [str(each) for each in begins]]
    assert len(found) == 1, found
    return found[0]


def test_the_tables_numbers():
    text = page.text(FACTS)
    # ms as given, NCHW/NHWC, times as fast as the best fp32, the larger floor, its share, GiB
    assert row(text, PAIR, 1024, "bf16")[3:] == [
        "24.00",
        "12.00",
        "20.00",
        "10.00",
        "2.00",
        "3.00",
        "4.00",
        "40",
        "6.0",
    ]
    assert row(text, PAIR, 1024, "fp32")[3:] == [
        "30.00",
        "37.50",
        "30.00",
        "37.50",
        "0.80",
        "1.00",
        "8.00",
        "27",
        "6.0",
    ]
    assert row(text, "rkd", PAIR)[3:] == ["45.00", "1.50", "8.00", "18", "9.00", "10.00"]
    launched = row(text, f"kd {PAIR} 64 fp32 NCHW")
    assert row(text, f"kd {PAIR} 1024 fp32 NCHW")[1:] == [
        "30.00",
        "29.00",
        "3",
        "800",
        "36.2",
        "8.00",
        "16.67",
        "bandwidth",
    ]
    assert launched[1:5] == ["4.00", "2.40", "40", "800"] or launched[1:4] == ["40.00", "5.00", "8.00"]
    assert row(text, "`bn_fw`")[1:] == ["20", "600", "25.0"]
    assert row(text, 1024, "fp32", 2)[3:] == ["60.0", "1.82"]
    assert row(text, "augmentation, weak")[1:] == ["50000", "147.0", "10.0"]  # of 49 steps of 30 ms
    assert row(text, "kd", "resnet20", 0)[3:] == ["fp32", "66.50", "44"]


def test_in_short_and_what_failed():
    text = page.text(FACTS)
    assert text.startswith("# First facts of NVIDIA H100 (made up)\n")
    assert "- **Wrong today: layout, bf16** is NCHW; NHWC is 1.58 times as fast." in text
    assert "- **Wrong today: runs at once** is 1; 2 is 1.82 times as fast." in text
    assert "Wrong today: layout, fp32" not in text and "Wrong today: precision" not in text
    assert f"- A kd {PAIR} 64 fp32 NCHW step is bound by launches." in text
    assert "find out why before these are believed" in text
    assert judge.troubles(FACTS) == [
        "layout (kd, resnet56-resnet20, 64, tf32, NCHW): RuntimeError: CUDA error",
        "agreement (skd, tf32) does not hold: loss off by 5.0e-01, update off by 1.0e+00, not captured",
        "acceptance (sskd/resnet56) does not hold: top-1 1.00",
        "section layouts: out of time",
        "section kernels: the facts end within it",
        "section acceptance: never begun",
        "section sprint: never begun",
    ]


def test_what_a_later_call_made_good_is_no_trouble():
    later = [
        {"fact": "program", "sections": ["layouts", "sprint"]},
        {"fact": "layout", "method": "kd", "pair": PAIR, "batch": 64, "precision": "tf32", "layout": "NCHW",
         "autotuned": False, "ms": 4.0},
        {"fact": "section", "section": "layouts", "ended": "done"},
        {"fact": "section", "section": "sprint", "ended": "failed: x"},
    ]  # fmt: skip
    said = judge.troubles([*FACTS, *later])
    assert not [line for line in said if "layout" in line] and "section sprint: failed: x" in said
    other = [{**fact, "precision": "fp32"} for fact in later]
    assert any("CUDA error" in line for line in judge.troubles([*FACTS, *other]))


def test_a_page_wherever_the_facts_end(tmp_path):
    """Each prefix of the lines, and lines cut within."""
    whole = "".join(json.dumps(fact) + "\n" for fact in FACTS).encode()
    path = tmp_path / "facts.jsonl"
    ends = [at + 1 for at, byte in enumerate(whole) if byte == 10]
    for end in (0, *ends, *(end + 25 for end in ends[:-1])):
        path.write_bytes(whole[:end])
        text = page.text(files.read(path))
        assert text.startswith("# First facts of ") and "nan" not in text.lower().replace("resnan", "")
    assert page.text([]).startswith("# First facts of a machine")


def test_a_fact_of_every_kind_may_lack_anything():
    """No fact is trusted to have all that its kind has."""
    for position, fact in enumerate(FACTS):
        for name in fact.keys() - {"fact"}:
            page.text([*FACTS[:position], {key: fact[key] for key in fact if key != name}, *FACTS[position + 1 :]])


def test_the_command_prints_the_page(tmp_path, capsys):
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(json.dumps(fact) + "\n" for fact in FACTS))
    assert program.main(["--page", str(path)]) == 0
    assert capsys.readouterr().out.rstrip() == page.text(FACTS).rstrip()
    assert program.main(["--page", str(tmp_path / "none.jsonl")]) == 2
    assert "no facts" in capsys.readouterr().err
