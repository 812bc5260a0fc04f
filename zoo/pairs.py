"""Teacher-student pairs as people write them: "resnet56-resnet20", "WRN-40-2-WRN-16-2", "ResNet56 → ResNet20"."""

from __future__ import annotations

import re
from collections.abc import Iterable

from zoo.errors import BadInput, bare, choose

ARROW = re.compile(r"\s*(?:->|=>|→|⇒|,|;|:|/|\bto\b)\s*")


def split_pair(text: str, options: Iterable[str]) -> tuple[str, str]:
    """The architectures (teacher, student) that a text names, by the names of `options`; BadInput if it names none.

    Architectures may have hyphens themselves: of all places to cut, the one is taken whose sides are both known.
    """
    known = list(options)
    spelt = {bare(option): option for option in known}
    parts = [part for part in ARROW.split(text.strip()) if part]
    if len(parts) == 2:
        return choose("architecture", parts[0], known), choose("architecture", parts[1], known)
    cuts = [(text[: found.start()], text[found.end() :]) for found in re.finditer(r"\s*[-–—_ ]\s*", text)]
    cuts = [(teacher, student) for teacher, student in cuts if bare(teacher) and bare(student)]
    both = {
        (spelt[bare(teacher)], spelt[bare(student)])
        for teacher, student in cuts
        if bare(teacher) in spelt and bare(student) in spelt
    }
    if len(both) == 1:
        return both.pop()
    if len(parts) != 1 or not cuts or bare(text) in spelt:
        raise BadInput(f'pair "{text}": write teacher-student, for example resnet56-resnet20')
    # The side that is not known is at fault; where neither is, the text was cut at its first hyphen.
    half = [cut for cut in cuts if any(bare(side) in spelt for side in cut)]
    teacher, student = max(half, key=lambda cut: max(map(len, cut)), default=cuts[0])
    return choose("architecture", teacher, known), choose("architecture", student, known)
