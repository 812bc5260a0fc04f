"""What a worker says became of a run. Here and not in the worker, which imports torch."""

from __future__ import annotations

DONE = "done"
FAILED = "failed"  # by its own doing, with an error.json; not tried again unasked
BLOCKED = "blocked"  # its teacher cannot serve
CLAIMED = "claimed"  # another process has it
STOPPED = "stopped"  # with a checkpoint, as the worker was told to
# The device failed, not the run: it counts as interrupted, with an attempt. The worker leaves after such an answer.
CRASHED = "crashed"
NO_MEMORY = "out of memory"
