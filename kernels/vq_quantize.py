"""vq_quantize in Triton: the kernel that finds the nearest code gathers it, measures the
commitment and adds to the statistics; backward is one kernel over x and the gradient.

The sums of a code are atomic float64 additions, whose order is not fixed. Where PyTorch is told to
be deterministic (`torch.use_deterministic_algorithms`), the rows are sorted by code instead and
added in their order: the same bits on every run.
"""

import torch
import triton
import triton.language as tl

from ._portable import OPTIONS, load, needs_int64, on_device_of, rounded
from ._rows import Rows, row_offset, row_strides
from .vq_nearest import by_heads, compute_dtype, nearest_codes, search

# elements of a tile of backward: for each of 128 threads 16
BACKWARD_TILE = 2048
SEGMENT_ROWS, SEGMENT_VALUES = 64, 32
EPS = tl.constexpr(1e-6)  # least norm that the rotation divides by


@triton.jit
def _quantize_kernel(
    x, codebook, center, scale, bias, norms, highest, second,
    mask, quantized, indices, commitment, counts, sums, chosen,
    start, rows, kept, inner, values, codes, groups,
    x_g, x_o, x_i, x_d, c_g, c_k, c_d, m_o, m_i, q_g, q_o, q_i, q_d, i_g, i_o, i_i, l_g, l_o, l_i,
    HAS_MASK: tl.constexpr, ATOMIC: tl.constexpr,
    COSINE: tl.constexpr, ROUNDED: tl.constexpr, WIDE: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    local = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    head = tl.program_id(1)
    r = start + local
    if WIDE:
        r, head, codes = r.to(tl.int64), head.to(tl.int64), codes.to(tl.int64)
    exists = (r < rows) & (local < kept)
    live = exists
    if HAS_MASK:
        live = exists & (tl.load(mask + row_offset(r, inner, m_o, m_i), mask=exists, other=0) != 0)
    x_at = x + head * x_g + row_offset(r, inner, x_o, x_i)
    code, cost, found = nearest_codes(
        x_at, local, live, head, codebook, center, scale, bias, norms, highest, second,
        values, groups, kept, x_d, c_g, c_k, c_d, COSINE, ROUNDED, GROUP, BLOCK_T, BLOCK_D,
    )  # fmt: skip
    tl.store(
        indices + head * i_g + row_offset(r, inner, i_o, i_i), tl.where(live, code, -1), mask=exists
    )
    factor = tl.load(scale + head).to(tl.float64)
    cost = tl.where(found, cost / factor / factor / values, float("nan"))
    cost = tl.where(live, cost, 0.0).to(commitment.dtype.element_ty)
    tl.store(commitment + head * l_g + row_offset(r, inner, l_o, l_i), cost, mask=exists)
    if ATOMIC:
        tl.atomic_add(counts + head * codes + code, 1, mask=found, sem="relaxed")
        sums += (head * codes + code) * values
    else:  # `codes` for a row that is not counted
        number = tl.where(found, code, codes).to(tl.int32)
        tl.store(chosen + head * rows + r, number, mask=exists)
    code_at = codebook + head * c_g + code * c_k
    q_at = quantized + head * q_g + row_offset(r, inner, q_o, q_i)
    for first in range(0, values, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        has_d = (d < values)[None, :]
        c = load(code_at[:, None] + (d.to(tl.int64) * c_d)[None, :], found[:, None] & has_d)
        c = tl.where(found[:, None], c, float("nan"))
        c = tl.where(live[:, None], c, 0.0)
        at = q_at[:, None] + (d.to(tl.int64) * q_d)[None, :]
        tl.store(at, rounded(c, quantized.dtype.element_ty), mask=exists[:, None] & has_d)
        if ATOMIC:
            lanes = found[:, None] & has_d
            v = load(x_at[:, None] + (d.to(tl.int64) * x_d)[None, :], lanes).to(tl.float64)
            tl.atomic_add(sums[:, None] + d[None, :], v, mask=lanes, sem="relaxed")


@triton.jit
def _segment_sums_kernel(
    x, order, bounds, counts, sums, rows, codes, inner, values, x_g, x_o, x_i, x_d,
    WIDE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Adds the rows of one code, which lie side by side in `order`, block by block."""
    code, head = tl.program_id(0), tl.program_id(2)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    if WIDE:
        code, head = code.to(tl.int64), head.to(tl.int64)
    bounds += head * (codes + 1) + code
    begin, end = tl.load(bounds), tl.load(bounds + 1)
    has_d = d < values
    total = tl.zeros((BLOCK_D,), dtype=tl.float64)
    x += head * x_g
    for block in range(begin, end, BLOCK_R):
        number = block + tl.arange(0, BLOCK_R)
        live = number < end
        r = tl.load(order + head * rows + number, mask=live, other=0)
        at = x + row_offset(r, inner, x_o, x_i)[:, None] + (d.to(tl.int64) * x_d)[None, :]
        total += tl.sum(load(at, live[:, None] & has_d[None, :]).to(tl.float64), 0)
    out = head * codes + code
    tl.store(sums + out * values + d, total, mask=has_d)
    if tl.program_id(1) == 0:
        tl.store(counts + out, (end - begin).to(tl.int64))


@triton.jit
def _unit(value, squares):
    """`value` over its norm, which counts as at least EPS."""
    return value / tl.maximum(tl.sqrt(squares), EPS)[:, None]


@triton.jit
def _backward_kernel(
    grad, weight, x, indices, codebook, grad_x, rows, inner, values,
    g_g, g_o, g_i, g_d, w_g, w_o, w_i, x_g, x_o, x_i, x_d, i_g, i_o, i_i, c_g, c_k, c_d,
    o_g, o_o, o_i, o_d,
    HAS_GRAD: tl.constexpr, HAS_WEIGHT: tl.constexpr, ROTATION: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    program, head = tl.program_id(0), tl.program_id(1)
    if WIDE:
        program, head = program.to(tl.int64), head.to(tl.int64)
    r = program * BLOCK_R + tl.arange(0, BLOCK_R)
    exists = r < rows
    code = tl.load(indices + head * i_g + row_offset(r, inner, i_o, i_i), mask=exists, other=-1)
    live = exists & (code >= 0)
    x_at = x + head * x_g + row_offset(r, inner, x_o, x_i)
    c_at = codebook + head * c_g + tl.maximum(code, 0) * c_k
    o_at = grad_x + head * o_g + row_offset(r, inner, o_o, o_i)
    is_double: tl.constexpr = (
        x.dtype.element_ty == tl.float64 or codebook.dtype.element_ty == tl.float64
    )
    compute: tl.constexpr = tl.float64 if is_double else tl.float32
    if HAS_GRAD:
        g_at = grad + head * g_g + row_offset(r, inner, g_o, g_i)
    if HAS_WEIGHT:
        w_at = weight + head * w_g + row_offset(r, inner, w_o, w_i)
        pull = load(w_at, live).to(compute) * 2.0 / values

    if HAS_GRAD and ROTATION:
        xx = tl.zeros((BLOCK_R,), dtype=compute)
        qq = xx
        for start in range(0, values, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            lanes = live[:, None] & (d < values)[None, :]
            v = load(x_at[:, None] + (d.to(tl.int64) * x_d)[None, :], lanes).to(compute)
            q = load(c_at[:, None] + (d.to(tl.int64) * c_d)[None, :], lanes).to(compute)
            xx += tl.sum(v * v, 1)
            qq += tl.sum(q * q, 1)
        along_u = tl.zeros((BLOCK_R,), dtype=compute)
        along_v, ww = along_u, along_u
        for start in range(0, values, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            lanes = live[:, None] & (d < values)[None, :]
            u = _unit(load(x_at[:, None] + (d.to(tl.int64) * x_d)[None, :], lanes).to(compute), xx)
            v = _unit(load(c_at[:, None] + (d.to(tl.int64) * c_d)[None, :], lanes).to(compute), qq)
            g = load(g_at[:, None] + (d.to(tl.int64) * g_d)[None, :], lanes).to(compute)
            along_u += tl.sum(g * u, 1)
            along_v += tl.sum(g * v, 1)
            ww += tl.sum((u + v) * (u + v), 1)
        turn = tl.sqrt(qq) / tl.maximum(tl.sqrt(xx), EPS)
        half = tl.maximum(tl.sqrt(ww), EPS)
        along_w = (along_u + along_v) / half

    for start in range(0, values, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        lanes = live[:, None] & (d < values)[None, :]
        out = tl.zeros((BLOCK_R, BLOCK_D), dtype=compute)
        if HAS_GRAD:
            out += load(g_at[:, None] + (d.to(tl.int64) * g_d)[None, :], lanes).to(compute)
        if HAS_WEIGHT or ROTATION:
            v = load(x_at[:, None] + (d.to(tl.int64) * x_d)[None, :], lanes).to(compute)
            q = load(c_at[:, None] + (d.to(tl.int64) * c_d)[None, :], lanes).to(compute)
            if HAS_GRAD and ROTATION:
                u, w = _unit(v, xx), _unit(q, qq)
                w = (u + w) / half[:, None]
                out = turn[:, None] * (
                    out - 2.0 * along_w[:, None] * w + 2.0 * along_v[:, None] * u
                )
            if HAS_WEIGHT:
                out += pull[:, None] * (v - q)
        out = tl.where(live[:, None], out, 0.0)
        at = o_at[:, None] + (d.to(tl.int64) * o_d)[None, :]
        tl.store(
            at, rounded(out, grad_x.dtype.element_ty), mask=exists[:, None] & (d < values)[None, :]
        )


def vq_quantize(x, codebook, dim, mask, rotation, filter=None):
    """(quantized like x, indices, commitment (rows,), counts, sums); see fastgen.vq_quantize.
    `rotation` concerns the gradient, `filter` is vq_nearest's."""
    dtype = compute_dtype(x, codebook)
    quantized = torch.empty_like(x)
    shape = list(x.shape)
    del shape[dim]
    indices = torch.empty(shape, dtype=torch.int64, device=x.device)
    commitment = torch.empty(shape, dtype=dtype, device=x.device)
    codes = by_heads(codebook)
    counts = torch.zeros(codes.shape[:2], dtype=torch.int64, device=x.device)
    sums = torch.zeros(codes.shape, dtype=torch.float64, device=x.device)
    outputs = (
        quantized, indices, commitment.flatten(),
        counts.view(codebook.shape[:-1]), sums.view(codebook.shape),
    )  # fmt: skip
    if indices.numel() == 0:
        return outputs
    rows = Rows(x, dim, codebook.dim() == 3)
    xs, qs = rows.values(x), rows.values(quantized)
    found, lost = rows.entries(indices), rows.entries(commitment)
    ms = None if mask is None else rows.masks(mask.view(torch.uint8))
    is_atomic = not torch.are_deterministic_algorithms_enabled()
    chosen = None
    if not is_atomic:
        chosen = torch.empty(len(codes), rows.rows, dtype=torch.int32, device=x.device)
    strides = (
        *row_strides(xs), *codes.stride(), *row_strides(ms)[1:3], *row_strides(qs),
        *row_strides(found)[:3], *row_strides(lost)[:3],
    )  # fmt: skip
    wide = needs_int64(xs, codes, qs, found, sums)

    def finish(packed, highest, second, start, grid, named):
        _quantize_kernel[grid](
            xs, codes, packed.center, packed.scale, packed.bias, packed.norms, highest, second,
            ms, qs, found, lost, counts, sums, chosen, start, rows.rows, highest.shape[2],
            rows.inner, codes.shape[2], codes.shape[1], highest.shape[1], *strides,
            HAS_MASK=ms is not None, ATOMIC=is_atomic, WIDE=wide, **named,
        )  # fmt: skip

    with on_device_of(x):
        search(xs, codes, rows.rows, False, filter, dtype, finish)
        if not is_atomic:
            _sum_in_order(xs, chosen, counts, sums, rows, wide)
    rows.finish(quantized, qs)
    rows.finish(indices, found, has_values=False)
    rows.finish(commitment, lost, has_values=False)
    return outputs


def _sum_in_order(xs, chosen, counts, sums, rows, wide):
    """counts and sums from the code of each row, (G, rows), or the number of codes for none."""
    heads, codes, values = sums.shape
    ordered, order = torch.sort(chosen, dim=1, stable=True)
    every = torch.arange(codes + 1, dtype=torch.int32, device=chosen.device)
    bounds = torch.searchsorted(ordered, every.expand(heads, -1).contiguous())
    _segment_sums_kernel[(codes, triton.cdiv(values, SEGMENT_VALUES), heads)](
        xs, order, bounds, counts, sums, rows.rows, codes, rows.inner, values, *row_strides(xs),
        WIDE=wide, BLOCK_R=SEGMENT_ROWS, BLOCK_D=SEGMENT_VALUES, num_warps=4, **OPTIONS,
    )  # fmt: skip


def vq_quantize_backward(grad_quantized, grad_commitment, x, indices, codebook, dim, rotation):
    """The gradient of x, in its layout; rows with index -1 get 0. Either gradient may be None."""
    grad_x = torch.empty_like(x)
    if x.numel() == 0:
        return grad_x
    rows, codes = Rows(x, dim, codebook.dim() == 3), by_heads(codebook)
    xs, outs, found = rows.values(x), rows.values(grad_x), rows.entries(indices)
    gs = None if grad_quantized is None else rows.values(grad_quantized)
    ws = None if grad_commitment is None else rows.entries(grad_commitment.view(indices.shape))
    values = codes.shape[2]
    block_d = min(32, max(8, triton.next_power_of_2(values)))
    block_r = BACKWARD_TILE // block_d
    with on_device_of(x):
        _backward_kernel[(triton.cdiv(rows.rows, block_r), len(codes))](
            gs, ws, xs, found, codes, outs, rows.rows, rows.inner, values,
            *row_strides(gs), *row_strides(ws)[:3], *row_strides(xs), *row_strides(found)[:3],
            *codes.stride(), *row_strides(outs),
            HAS_GRAD=gs is not None, HAS_WEIGHT=ws is not None, ROTATION=rotation,
            WIDE=needs_int64(gs, xs, codes, outs, found), BLOCK_R=block_r, BLOCK_D=block_d,
            num_warps=8 if x.dtype == torch.float64 else 4, **OPTIONS,
        )  # fmt: skip
    rows.finish(grad_x, outs)
    return grad_x
