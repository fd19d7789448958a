"""Sums over all but the first axis."""

import torch


def per_sample(values, dtype):
    """(B, ...) float64 -> (B,), in float64 if that is `dtype`, else in float32."""
    total = values.sum(tuple(range(1, values.dim()))) if values.dim() > 1 else values
    return total.to(torch.float64 if dtype == torch.float64 else torch.float32)


def spread(per_sample, like):
    """(B,) -> float64 (B, 1, ...), which broadcasts with `like`."""
    return per_sample.double().reshape(-1, *[1] * (like.dim() - 1))
