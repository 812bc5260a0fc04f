"""What a run is, and its way from description to result: grid and protocol, run, store, experiment.

`training/` trains, `report/` reads result files and writes tables, `measure/` times and checks, `exchange/` writes what
other programs read, `surroundings/` is what a run finds around it, `doors/` has the commands. From here only `zoo` and
`methods` are imported, and by `experiment`, which joins all, `training`.
"""

import os
import sys

__version__ = "0.1.0"

# `python -m bench.speed` looks for modules in the working directory first, and would take a person's own `methods` or
# `random.py` for ours or Python's. From here on nothing is looked for there, unless it is the folder of this project.
if sys.argv[:1] == ["-m"] and sys.path[0] == os.getcwd() != os.path.dirname(os.path.dirname(os.path.abspath(__file__))):
    del sys.path[0]

__path__.append(os.path.join(os.path.dirname(__file__), "doors"))  # commands by short names: python -m bench.speed
