from __future__ import annotations

import torch

from bench import fit


def test_whole_numbers_without_storage_are_as_torch_would_make_them():
    with torch.device("meta"):
        drawn = torch.randint(2**63 - 1, (), dtype=torch.int64), torch.randint(0, 5, (2, 3))
        with fit._Drawn():
            made = torch.randint(2**63 - 1, (), dtype=torch.int64), torch.randint(0, 5, (2, 3))
    for ours, theirs in zip(made, drawn, strict=True):
        assert ours.is_meta and (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
