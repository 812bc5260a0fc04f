"""From result files to tables, statistics, claims, plots and the page; `writing` makes and writes it all.

Reads files only: imports `bench.cells` and `bench.store`, neither training nor torch. Published numbers and claims lie
beside the code that reads them.
"""
