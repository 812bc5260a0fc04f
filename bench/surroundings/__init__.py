"""What a run finds around it: machine, command line, the files and paths that people write, versions of the code.

Imports `methods`, `zoo` and `bench.cells`; nothing here trains or reports.
"""
