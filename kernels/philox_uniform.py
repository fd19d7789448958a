"""philox_uniform in Triton."""

import torch
import triton
import triton.language as tl

from ._philox import fill_grid, interleaved, uniform, words
from ._portable import OPTIONS, on_device_of, rounded


@triton.jit
def _philox_uniform_kernel(out, seed, count, BITS: tl.constexpr, BLOCK: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCK
    compute: tl.constexpr = tl.float64 if out.dtype.element_ty == tl.float64 else tl.float32
    w0, w1, w2, w3 = words(tl.load(seed), first // 4 + tl.arange(0, BLOCK // 4))
    values = uniform(interleaved(w0, w1, w2, w3), BITS, compute)
    lane = tl.arange(0, BLOCK)
    values = rounded(values, out.dtype.element_ty)
    tl.store(out + first + lane, values, mask=lane < count - first)


# what halves hold exactly: to the nearest would make 1 of the largest
_BITS = {torch.bfloat16: 8, torch.float16: 11}


def philox_uniform(seed, size, dtype):
    out = torch.empty(size, dtype=dtype, device=seed.device)
    philox_uniform_(out, seed)
    return out


def philox_uniform_(out, seed):
    if out.numel() == 0:
        return
    dense = (
        out if out.is_contiguous() else torch.empty_like(out, memory_format=torch.contiguous_format)
    )
    grid, tile = fill_grid(out.numel(), out.dtype)
    bits = _BITS.get(out.dtype, 24)
    with on_device_of(out):
        _philox_uniform_kernel[grid](dense, seed, out.numel(), BITS=bits, **tile, **OPTIONS)
    if dense is not out:
        out.copy_(dense)
