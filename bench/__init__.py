"""What a run is, and its way from description to result: grid and protocol, run, store, experiment.

`training/` trains, `report/` reads result files and writes tables, `measure/` times and checks, `exchange/` writes what
other programs read, `surroundings/` is what a run finds around it, `doors/` has the commands. From here only `zoo` and
`methods` are imported, and by `experiment`, which joins all, `training`.
"""

from pathlib import Path

__path__.append(str(Path(__file__).with_name("doors")))  # commands go by short names: python -m bench.speed
