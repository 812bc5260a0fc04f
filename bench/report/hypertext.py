"""HTML elements whose text cannot be anything but text, and the report's tables and lists made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape

from bench.report.frames import clean
from bench.report.markup import Item, Table, Text

VOID = {"meta", "img", "br"}  # elements without an end tag
VERDICTS = ("confirmed", "refuted", "undecided")


class Html(str):
    """Markup. A plain str is text, and is escaped wherever it is put into an element."""

    __slots__ = ()


def tag(name: str, /, *children: str | Iterable[str], **attributes: object) -> Html:
    """An element. `class_` is the attribute class and `aria_label` aria-label; None leaves an attribute out."""
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(clean(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    inner = "".join(map(_text, children))
    return Html(f"<{name}{shown}>" if name in VOID else f"<{name}{shown}>{inner}</{name}>")


def join(parts: Iterable[str], between: str = "") -> Html:
    """Texts and elements in a row."""
    return Html(_text(between).join(map(_text, parts)))


def table(table: Table, link: Callable[[int], str | None]) -> Html:
    """Caption, table and notes. `link` gives the address of what there is to know of a cell, by its position."""
    anchors: dict[str, str] = {}
    for k, note in enumerate(table.notes):
        if note.mark:
            anchors.setdefault(note.mark, f"{table.name}-note-{k}")
    width = 1 + len(table.columns)
    bodies = []
    for heading, lines in table.sections:
        title = tag("th", tag("span", heading), colspan=width, scope="rowgroup")
        rows = [tag("tr", title, class_="group")] if heading else []
        for line in lines:
            entries = [tag("td", entry_of(entry, anchors, link)) for entry in line.entries]
            rows.append(tag("tr", tag("th", line.label, scope="row"), *entries))
        bodies.append(tag("tbody", *rows))
    head = tag("thead", *_head_rows(table))
    caption = clean(table.caption)
    marks = (len(entry.marks) for _, lines in table.sections for line in lines for entry in line.entries)
    kinds = {"dense": table.span > 1, "marked": max(marks, default=0) > 1}  # several marks want room beside a number
    made = scroll(
        tag(
            "table",
            tag("caption", tag("span", caption)),
            head,
            *bodies,
            id=table.name,
            class_=" ".join(name for name, holds in kinds.items() if holds) or None,
        ),
        caption,
        "report wide" if table.span > 2 else "report",
    )
    anchored = set()
    notes = []
    for k, note in enumerate(table.notes):
        place = f"{table.name}-note-{k}"
        anchored |= {place} if anchors.get(note.mark) == place else set()
        about = f" ({note.about})" if note.about else ""
        mark = join([tag("b", note.mark), " "]) if note.mark else ""
        notes.append(tag("li", mark, clean(note.body) + about, id=place if place in anchored else None))
    return join([made, tag("ul", *notes, class_="notes") if notes else ""])


def entry_of(entry: Text, anchors: dict[str, str], link: Callable[[int], str | None]) -> Html:
    """What stands in one cell of a table."""
    body: str = clean(entry.body)
    body = tag("strong", body) if entry.bold else body
    address = link(entry.cell) if entry.cell is not None and entry.body else None
    if address:
        body = tag("a", body, href=address)
    marks = [tag("a", mark, href=f"#{anchors[mark]}") if mark in anchors else mark for mark in entry.marks]
    return join([body, tag("sup", join(marks, " ")) if marks else ""])


def items(found: Sequence[Item]) -> Html:
    """A list; the lines that support an item fold out below it."""
    lines = []
    for item in found:
        kind = item.strong if item.strong in VERDICTS else None
        strong = join([tag("b", item.strong, class_=kind), " "]) if item.strong else ""
        under = ""
        if item.under:
            numbers = tag("ul", *(tag("li", clean(line)) for line in item.under))
            under = tag("details", tag("summary", "the numbers behind it"), numbers)
        lines.append(tag("li", strong, clean(item.body), under))
    return tag("ul", *lines, class_="items")


def scroll(inner: str, label: str, kind: str = "") -> Html:
    """What is wider than a telephone scrolls by itself, with a finger or the keyboard."""
    return tag("div", inner, class_=f"scroll {kind}".strip(), tabindex="0", role="region", aria_label=label)


def _head_rows(table: Table) -> list[Html]:
    if table.span == 1:
        names = [
            tag("th", *_two_lines(f"{upper} → {lower}" if lower else upper), scope="col")
            for upper, lower in table.columns
        ]
        return [tag("tr", tag("th", table.corner, scope="col"), *names)]
    uppers = [
        tag("th", *_two_lines(upper), colspan=table.span, scope="colgroup") for upper, _ in table.columns[:: table.span]
    ]
    lowers = [tag("th", lower, scope="col") for _, lower in table.columns]
    return [tag("tr", tag("th", table.corner, rowspan=2, scope="col"), *uppers), tag("tr", *lowers)]


def _two_lines(text: str) -> list[str]:
    above, arrow, below = clean(text).partition(" → ")
    return [above, tag("br"), f"→ {below}"] if arrow else [above]


def _text(child: str) -> str:
    return child if isinstance(child, Html) else escape(child, quote=False)
