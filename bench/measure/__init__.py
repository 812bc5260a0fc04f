"""What is measured of the harness and of a device: speed, cost of a step and of a plan, acceptance, overhead.

May import everything in `bench`; programs of `jobs` and `reproduce.py` are started as a person starts them.
"""
