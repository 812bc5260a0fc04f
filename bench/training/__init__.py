"""Data sets and augmentation, the one training loop, its capture as a CUDA graph, evaluation.

Imports `zoo`, `methods` and what a run is (`bench.run`, `bench.store`, ...); never the report, nor anything of `jobs`.
"""
