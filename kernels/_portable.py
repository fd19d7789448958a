"""What lets one kernel source run on a GPU, in Triton's interpreter, and compile ahead of time."""

import contextlib
import functools
import os

import torch
import triton
import triton.language as tl
from torch._prims_common import suggest_memory_format

INTERPRETING = tl.constexpr(bool(triton.knobs.runtime.interpret))
TUNING = os.environ.get("FASTGEN_AUTOTUNE", "1") != "0" and not INTERPRETING.value
# Triton 3.10 changes the default; with fusion a * b + c rounds once, as in the CPU kernels.
OPTIONS = {"enable_fp_fusion": True}


@triton.jit
def load(pointer, mask):
    """Masked load; dead lanes are 0. The interpreter holds a bfloat16 as an integer and computes
    nonsense with it, so there halves are widened at once."""
    value = tl.load(pointer, mask=mask, other=0.0)
    if INTERPRETING:
        if value.dtype != tl.float64:
            value = value.to(tl.float32)
    return value


@triton.jit
def rounded(value, dtype: tl.constexpr):
    """`value` to the nearest `dtype`; the interpreter's own cast to bfloat16 truncates."""
    if INTERPRETING:
        if dtype == tl.bfloat16:
            bits = value.to(tl.float32).to(tl.uint32, bitcast=True)
            nearest = bits + 0x7FFF + ((bits >> 16) & 1)
            bits = tl.where(value == value, nearest, 0x7FC00000).to(tl.uint32)
            value = ((bits >> 16) << 16).to(tl.float32, bitcast=True)
    return value.to(dtype)


@functools.cache
def tuned(kernel, configs, key):
    """`kernel` over `configs`, the fastest of which Triton finds per `key` (names of arguments).

    Configs may differ in tiles of the output, never in the order of a sum: whichever wins, the
    result has the same bits.
    """
    return triton.autotune(list(configs if TUNING else configs[:1]), list(key))(kernel)


def on_device_of(tensor):
    """Kernels launch on the current device: make that the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def needs_int64(*tensors):
    """Whether an element of one of them lies too far from its first for 32-bit offsets."""
    return any(
        sum((n - 1) * abs(s) for n, s in zip(t.shape, t.stride(), strict=True)) >= 2**31
        for t in tensors
        if t is not None
    )


def accumulation_dtype(tensor):
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def empty_in_format_of(x, shape):
    """Uninitialised, in x's dtype and memory format."""
    memory_format = suggest_memory_format(x)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)
