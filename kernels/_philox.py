"""Philox4x32-10 (Salmon et al., 2011), its uniforms and normals, and the seed an op draws.

Element i of a tensor has lane i % 4 of the block with key `seed` and counter i // 4: a thread that
owns four adjacent elements computes one block.
"""

import torch
import triton
import triton.language as tl

from ._elementary import sine_and_cosine

# elements of a tile that is filled in row-major order: for each of 128 threads 8
FILL = 1024


@triton.jit
def words(seed, block):
    """The four words of blocks, int64 numbers."""
    low, high = block.to(tl.uint32), (block >> 32).to(tl.uint32)
    zero = tl.zeros_like(low)
    return tl.philox(seed, low, high, zero, zero)


@triton.jit
def interleaved(a, b, c, d):
    """(..., n) four times -> (..., 4 n): a thread's values stay its own."""
    return tl.interleave(tl.interleave(a, c), tl.interleave(b, d))


@triton.jit
def uniform(word, BITS: tl.constexpr, dtype: tl.constexpr):
    """The upper bits of a word as a number in [0, 1)."""
    return (word >> (32 - BITS)).to(tl.int32).to(dtype) * 2.0**-BITS


@triton.jit
def normal_pair(u, v, dtype: tl.constexpr):
    """Box and Muller's two normals of two words."""
    radius = tl.sqrt(-2.0 * tl.log(1.0 - uniform(u, 24, dtype)))  # 1 - u is exact
    turn = (v >> 8).to(tl.int32)
    quarter = (turn + (1 << 21)) >> 22
    s, c = sine_and_cosine((turn - (quarter << 22)).to(dtype) * 2.0**-24)
    is_odd = (quarter & 1) != 0
    cosine = tl.where(is_odd, s, c)
    sine = tl.where(is_odd, c, s)
    cosine = tl.where(((quarter + 1) & 2) != 0, -cosine, cosine)
    sine = tl.where((quarter & 2) != 0, -sine, sine)
    return radius * cosine, radius * sine


@triton.jit
def block_normals(seed, block, dtype: tl.constexpr):
    """(..., n) blocks -> (..., 4 n) normals."""
    w0, w1, w2, w3 = words(seed, block)
    n0, n1 = normal_pair(w0, w1, dtype)
    n2, n3 = normal_pair(w2, w3, dtype)
    return interleaved(n0, n1, n2, n3)


@triton.jit
def row_normals(seed, first, COUNT: tl.constexpr, WHOLE: tl.constexpr, dtype: tl.constexpr):
    """The normals of `COUNT` elements from `first` (rows, 1) on, int64. Where these are not
    multiples of 4 (`WHOLE`), every element computes a block of its own."""
    if WHOLE:
        block = (first >> 2) + tl.arange(0, COUNT // 4)[None, :]
        return block_normals(seed, block, dtype)
    else:
        i = first + tl.arange(0, COUNT)[None, :]
        w0, w1, w2, w3 = words(seed, i >> 2)
        is_second = (i & 2) != 0
        u, v = tl.where(is_second, w2, w0), tl.where(is_second, w3, w1)
        cosine, sine = normal_pair(u, v, dtype)
        return tl.where((i & 1) != 0, sine, cosine)


def seed_or_draw(seed, device):
    """A copy of `seed`, or 64 bits of the device's default generator: int64 (), on the device."""
    if seed is not None:
        return seed.clone()
    return torch.empty((), dtype=torch.int64, device=device).random_(-(2**63), None)


def fill_grid(count, dtype):
    """The launch of a kernel that has `FILL` elements a program."""
    return (triton.cdiv(count, FILL),), {
        "BLOCK": FILL,
        "num_warps": 8 if dtype.itemsize == 8 else 4,
    }
