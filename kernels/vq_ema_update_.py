"""vq_ema_update_ in Triton: first the sizes of the codes, whose sum all need, then the averages.
All in float64, nothing read back by the host."""

import struct

import torch
import triton
import triton.language as tl

from ._portable import OPTIONS, load, needs_int64, on_device_of, rounded

BLOCK_CODES, BLOCK_VALUES, BLOCK_SIZES = 32, 32, 1024


@triton.jit
def _float64(bits):
    """A float argument would arrive as float32; its bits arrive whole."""
    return bits.to(tl.int64).to(tl.float64, bitcast=True)


@triton.jit
def _moved(old, new, decay):
    return old * decay + new * (1.0 - decay)


@triton.jit
def _sizes_kernel(
    cluster_size,
    counts,
    divisors,
    has_rows,
    decay,
    eps,
    codes,
    s_g,
    s_k,
    n_g,
    n_k,
    BLOCK: tl.constexpr,
):
    """Moves one head's cluster sizes. divisors (G, K): the smoothed sizes; has_rows (G,)."""
    head = tl.program_id(0).to(tl.int64)
    cluster_size += head * s_g
    counts += head * n_g
    divisors += head * codes
    decay, eps = _float64(decay), _float64(eps)
    total = tl.zeros((BLOCK,), dtype=tl.float64)
    seen = tl.zeros((BLOCK,), dtype=tl.int64)
    for start in range(0, codes, BLOCK):
        k = start + tl.arange(0, BLOCK).to(tl.int64)
        count = tl.load(counts + k * n_k, mask=k < codes, other=0)
        total += _moved(load(cluster_size + k * s_k, k < codes).to(tl.float64), count, decay)
        seen += count
    total, seen = tl.sum(total, 0), (tl.sum(seen, 0) > 0).to(tl.int32)
    tl.store(has_rows + head, seen)
    for start in range(0, codes, BLOCK):
        k = start + tl.arange(0, BLOCK).to(tl.int64)
        count = tl.load(counts + k * n_k, mask=k < codes, other=0)
        size = _moved(load(cluster_size + k * s_k, k < codes).to(tl.float64), count, decay)
        divisor = (size + eps) / (total + codes * eps) * total
        tl.store(divisors + k, divisor, mask=k < codes)
        size = rounded(size, cluster_size.dtype.element_ty)
        tl.store(cluster_size + k * s_k, size, mask=k < codes * seen)


@triton.jit
def _averages_kernel(
    embed, embed_avg, sums, divisors, has_rows, decay, codes, values,
    e_g, e_k, e_d, a_g, a_k, a_d, u_g, u_k, u_d,
    WIDE: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    tiles = tl.cdiv(values, BLOCK_D)
    k = tl.program_id(0) // tiles * BLOCK_K + tl.arange(0, BLOCK_K)
    d = tl.program_id(0) % tiles * BLOCK_D + tl.arange(0, BLOCK_D)
    if WIDE:
        k, head = k.to(tl.int64), head.to(tl.int64)
    decay = _float64(decay)
    divisor = tl.load(divisors + head * codes + k, mask=k < codes, other=1.0)[:, None]
    k, d = k[:, None], d[None, :]
    live = (k < codes * tl.load(has_rows + head)) & (d < values)
    at = embed_avg + head * a_g + k * a_k + d * a_d
    new = tl.load(sums + head * u_g + k * u_k + d * u_d, mask=live, other=0.0)
    average = _moved(load(at, live).to(tl.float64), new, decay)
    tl.store(at, rounded(average, embed_avg.dtype.element_ty), mask=live)
    code = rounded(average / divisor, embed.dtype.element_ty)
    tl.store(embed + head * e_g + k * e_k + d * e_d, code, mask=live)


def _bits(value):
    return struct.unpack("q", struct.pack("d", value))[0]


def vq_ema_update_(embed, cluster_size, embed_avg, counts, sums, decay, eps):
    """Writes embed and embed_avg (K, D) or (G, K, D), and cluster_size; see
    fastgen.vq_ema_update_."""
    if embed.numel() == 0:
        return
    if embed.dim() == 2:
        embed, embed_avg, sums = (t.unsqueeze(0) for t in (embed, embed_avg, sums))
        cluster_size, counts = cluster_size.unsqueeze(0), counts.unsqueeze(0)
    heads, codes, values = embed.shape
    divisors = torch.empty(heads, codes, dtype=torch.float64, device=embed.device)
    has_rows = torch.empty(heads, dtype=torch.int32, device=embed.device)
    tiles = triton.cdiv(codes, BLOCK_CODES) * triton.cdiv(values, BLOCK_VALUES)
    decay, eps = _bits(decay), _bits(eps)
    with on_device_of(embed):
        _sizes_kernel[(heads,)](
            cluster_size, counts, divisors, has_rows, decay, eps, codes, *cluster_size.stride(),
            *counts.stride(), BLOCK=BLOCK_SIZES, num_warps=8, **OPTIONS,
        )  # fmt: skip
        _averages_kernel[(tiles, heads)](
            embed, embed_avg, sums, divisors, has_rows, decay, codes, values,
            *embed.stride(), *embed_avg.stride(), *sums.stride(),
            WIDE=needs_int64(embed, embed_avg, sums),
            BLOCK_K=BLOCK_CODES, BLOCK_D=BLOCK_VALUES, num_warps=4, **OPTIONS,
        )  # fmt: skip
