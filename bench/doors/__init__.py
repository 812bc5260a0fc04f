"""The commands of `bench` by their short names: `python -m bench.speed` finds `bench/doors/speed.py`."""
