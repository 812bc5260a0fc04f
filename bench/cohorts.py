"""Runs that can train together: the same images in the same order, and the same teacher or none.

Paired seeds mean that all methods of one pair and seed see the same augmented batches. A cohort makes each batch once
and passes it through the teacher once; each member has its own student, method and optimiser, and its result is the
same to the bit as alone (on a CPU). Nothing of this is part of a run's identity.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from bench.run import Run, Strong


@dataclass
class Cohort:
    """Runs by run id that share their batches. `teacher` and `strong` are None until a member needs one."""

    run_ids: list[str] = field(default_factory=list)
    teacher: str | None = None
    strong: Strong | None = None  # of the second view, for members with paired views

    def admit(self, run_id: str, run: Run) -> bool:
        """Take a run of this key in if it fits, and say whether it did."""
        teacher = run.teacher.run_id if run.teacher else self.teacher
        strong = run.data.strong if run.data.views == "paired" else self.strong
        if (self.teacher or teacher) != teacher or (self.strong or strong) != strong:
            return False
        self.run_ids.append(run_id)
        self.teacher, self.strong = teacher, strong
        return True


def group(runs: Mapping[str, Run], alone: Collection[str] = ()) -> list[list[str]]:
    """Cohorts of run ids, as large as can be; order is kept, within them and by their first members.

    `alone` names runs that share with nobody, e.g. teachers that others wait for; checkpoints never do.
    """
    cohorts: list[Cohort] = []
    by_key: dict[tuple, list[Cohort]] = {}
    for run_id, run in runs.items():
        single = run_id in alone or run.train is None
        key = (run_id,) if single else _key(run)
        known = by_key.setdefault(key, [])
        if not any(cohort.admit(run_id, run) for cohort in known):
            cohort = Cohort()
            cohort.admit(run_id, run)
            known.append(cohort)
            cohorts.append(cohort)
    return [cohort.run_ids for cohort in cohorts]


def split(members: Sequence[str], count: int, cost: Callable[[str], float]) -> list[list[str]]:
    """At most `count` parts of about equal cost and, as far as that goes, of equal number; order is kept in each."""
    count = max(1, min(count, len(members)))
    most = -(-len(members) // count)
    parts: list[list[str]] = [[] for _ in range(count)]
    spent = [0.0] * count
    for run_id in sorted(members, key=cost, reverse=True):
        place = min((p for p in range(count) if len(parts[p]) < most), key=lambda p: spent[p])
        parts[place].append(run_id)
        spent[place] += cost(run_id)
    order = {run_id: number for number, run_id in enumerate(members)}
    return [sorted(part, key=order.__getitem__) for part in parts if part]


def _key(run: Run) -> tuple:
    """What all members have in common. A second view of the same images is each member's own affair."""
    mixed = run.data.views == "weak+strong"
    data = run.data.model_dump(exclude=set() if mixed else {"views", "strong"})
    return run.seed, str(data), run.train.batch if run.train else None, run.precision
