"""What became of a run in the hands of a worker process. Here and not in the worker, which imports torch."""

from __future__ import annotations

from typing import NamedTuple

DONE = "done"
FAILED = "failed"  # by its own doing, with an error.json; not tried again unasked
BLOCKED = "blocked"  # its teacher cannot serve
CLAIMED = "claimed"  # another process has it
STOPPED = "stopped"  # with a checkpoint, as the worker was told to
# The device or the process failed, not the run: it counts as interrupted, with an attempt (`jobs/attempts.py`).
CRASHED = "crashed"
NO_MEMORY = "out of memory"
DIED = "died"  # said by whoever started the worker, where that ended without an answer

SETTLED = (DONE, FAILED, BLOCKED)
INTERRUPTED = (CRASHED, NO_MEMORY, DIED)
# A process that says such a word is given no other order. On a GPU FAILED is one, too: an error may have spoilt it.
LAST_WORDS = (STOPPED, CRASHED, NO_MEMORY)

NO_DEVICE = 69  # exit status of a worker that does not find its device: of sysexits.h "a service is unavailable"


class Answer(NamedTuple):
    """What is said of a run; `message` is one line for a person."""

    run_id: str
    outcome: str
    message: str
