"""Sums that do not depend on their order: integers."""

import torch
from torch import Tensor, distributed

_BITS = 36  # of the largest value; 2^26 rows fit into an int64


def fixed_point_sums(
    rows: Tensor, indices: Tensor, counted: Tensor, codes: int, ranks: int
) -> tuple[Tensor, Tensor]:
    """The sum of the rows that chose each code, in units of 2^-36 of the largest value among all
    ranks: finer than float32 for values within 2^-12 of that one.

    Args:
        rows: (G, R, D).
        indices, counted: int64 and bool (G, R); rows that are not counted take no part.
        codes: K.
        ranks: above 1, the largest value is found by an all_reduce.

    Returns:
        int64 (G, K, D), still to be summed over the ranks, and the unit, a float64 scalar.
    """
    rows = torch.where(counted.unsqueeze(2), rows, 0).double()
    largest = rows.abs().amax() if rows.numel() else rows.new_zeros(())
    if ranks > 1:
        distributed.all_reduce(largest, op=distributed.ReduceOp.MAX)
    unit = torch.where(largest > 0, largest, 1) * 2.0**-_BITS
    heads, _, dim = rows.shape
    sums = torch.zeros(heads * codes, dim, dtype=torch.int64, device=rows.device)
    first = torch.arange(heads, device=rows.device).unsqueeze(1) * codes
    place = torch.where(counted, indices, 0) + first
    sums.index_add_(0, place.flatten(), (rows / unit).round().long().flatten(0, 1))
    return sums.view(heads, codes, dim), unit
