"""philox_normal in Triton."""

import torch
import triton
import triton.language as tl

from ._philox import block_normals, fill_grid
from ._portable import OPTIONS, on_device_of, rounded


@triton.jit
def _philox_normal_kernel(out, seed, count, BLOCK: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCK
    compute: tl.constexpr = tl.float64 if out.dtype.element_ty == tl.float64 else tl.float32
    values = block_normals(tl.load(seed), first // 4 + tl.arange(0, BLOCK // 4), compute)
    lane = tl.arange(0, BLOCK)
    values = rounded(values, out.dtype.element_ty)
    tl.store(out + first + lane, values, mask=lane < count - first)


def philox_normal(seed, size, dtype):
    out = torch.empty(size, dtype=dtype, device=seed.device)
    philox_normal_(out, seed)
    return out


def philox_normal_(out, seed):
    if out.numel() == 0:
        return
    dense = (
        out if out.is_contiguous() else torch.empty_like(out, memory_format=torch.contiguous_format)
    )
    grid, tile = fill_grid(out.numel(), out.dtype)
    with on_device_of(out):
        _philox_normal_kernel[grid](dense, seed, out.numel(), **tile, **OPTIONS)
    if dense is not out:
        out.copy_(dense)
