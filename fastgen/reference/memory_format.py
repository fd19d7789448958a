"""The memory format an output takes from its input."""

import torch

# The Python twin of the rule that the C++ kernels ask at::Tensor for; the fake kernels need both to
# agree, also on the ambiguous shapes (one channel, one pixel, empty).
from torch._prims_common import suggest_memory_format


def in_format_of(value, x):
    """A fresh copy of `value` in x's dtype and memory format."""
    out = torch.empty(
        value.shape, dtype=x.dtype, device=x.device, memory_format=suggest_memory_format(x)
    )
    return out.copy_(value)


def empty_in_format_of(x, shape):
    """An uninitialised tensor of `shape` in x's dtype and memory format."""
    return torch.empty(
        shape, dtype=x.dtype, device=x.device, memory_format=suggest_memory_format(x)
    )
