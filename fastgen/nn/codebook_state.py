"""State of a codebook that the ranks of torch.distributed keep equal."""

import torch
from torch import Tensor, distributed


def world() -> tuple[int, int]:
    """(this rank, number of ranks), asked anew at each call: a layer may be older than the process
    group."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def summed_over_ranks(*tensors: Tensor) -> list[Tensor]:
    """Each tensor summed over all ranks, by one all_reduce of one float64 buffer: integers are
    exact up to 2^53, and every rank gets the same bits. Ranks without rows take part with zeros.
    If all are integers the buffer is int64, and the sums do not depend on their order."""
    if world()[1] == 1:
        return list(tensors)
    exact = not any(t.is_floating_point() for t in tensors)
    dtype = torch.int64 if exact else torch.float64
    packed = torch.cat([t.detach().to(dtype).flatten() for t in tensors])
    distributed.all_reduce(packed)
    parts = packed.split([t.numel() for t in tensors])
    return [p.view_as(t).to(t.dtype) for p, t in zip(parts, tensors, strict=True)]
