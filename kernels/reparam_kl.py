"""reparam_kl in Triton: forward reads the posterior once, backward makes the noise again.

The gradients of a prior that several samples share are sums over samples, which a kernel of its own
forms: by chunks of samples whose sums are added in order, or for a table class by class, over the
samples sorted by class. No atomic additions: the same bits on every run.
"""

import torch
import triton
import triton.language as tl

from ._elementary import exp_gaps, log1p_fraction, product, scalar
from ._philox import row_normals, seed_or_draw
from ._portable import OPTIONS, empty_in_format_of, load, on_device_of, rounded
from ._samples import (
    PIECE,
    Samples,
    add_parts,
    grid_of,
    is_wide,
    parts_of,
    strides,
    tile_at,
    tile_of,
)

LOGVAR, LOGSTD, SOFTPLUS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
# samples by values of a tile that is summed over samples, and samples of a chunk
PRIOR_B, PRIOR_D, CHUNK = 16, 64, 256


@triton.jit
def _log_variance(raw, PARAMETRIZATION: tl.constexpr):
    """The log-variance that `raw` stands for, its derivative by it, and the inverse variance."""
    if PARAMETRIZATION == LOGVAR:
        return raw, tl.full(raw.shape, 1.0, raw.dtype), tl.exp(-raw)
    elif PARAMETRIZATION == LOGSTD:
        return 2.0 * raw, tl.full(raw.shape, 2.0, raw.dtype), tl.exp(-2.0 * raw)
    else:  # below -40 softplus is exp to the last digit, and its logarithm would become -inf
        e = tl.exp(-tl.abs(raw))
        deviation = tl.maximum(raw, 0.0) + log1p_fraction(e)
        slope = 2.0 * tl.where(raw < 0.0, e, 1.0) / ((1.0 + e) * deviation)
        is_low = raw < -40.0
        logvar = tl.where(is_low, 2.0 * raw, 2.0 * tl.log(deviation))
        inverse = tl.where(is_low, tl.exp(-2.0 * raw), 1.0 / (deviation * deviation))
        return logvar, tl.where(is_low, 2.0, slope), inverse


@triton.jit
def _posterior(raw, low, high, PARAMETRIZATION: tl.constexpr, CLAMPED: tl.constexpr):
    """The clamped log-variance and its derivative by `raw`."""
    logvar, slope, _ = _log_variance(raw, PARAMETRIZATION)
    if CLAMPED:
        low, high = scalar(low, raw.dtype), scalar(high, raw.dtype)
        slope = tl.where((logvar < low) | (logvar > high), 0.0, slope)
        logvar = tl.where(logvar < low, low, tl.where(logvar > high, high, logvar))
    return logvar, slope


@triton.jit
def _difference(a, b):
    """a - b, and 0 for two equal infinities."""
    return tl.where(a == b, 0.0, a - b)


@triton.jit
def _divergence(mean, logvar, prior_mean, prior_logvar, inverse, HAS_PRIOR: tl.constexpr):
    """KL, and what its derivatives are made of: expm1(l - p), r / prior variance, r^2 / that."""
    if HAS_PRIOR:
        e, gap = exp_gaps(_difference(logvar, prior_logvar))
        r = _difference(mean, prior_mean)
        by_mean, square = product(r, inverse), product(r * r, inverse)
    else:
        e, gap = exp_gaps(logvar)
        by_mean, square = mean, mean * mean
    return 0.5 * (gap + square), e, by_mean, square


@triton.jit
def _row_of_prior(prior_index, b, live, classes, HAS_INDEX: tl.constexpr):
    """Which row of the prior a sample has, and whether there is one."""
    if HAS_INDEX:
        row = tl.load(prior_index + b, mask=live, other=0)
        return row, (row >= 0) & (row < classes)
    else:
        return b, live


@triton.jit
def _prior_at(at, live, exists, compute: tl.constexpr):
    return tl.where(exists, load(at, live & exists).to(compute), float("nan"))


@triton.jit
def _reparam_kl_kernel(
    mu, logvar, prior_mu, prior_logvar, prior_index, eps, seed, z, parts,
    batch, values, samples, classes, low: tl.float64, high: tl.float64, free_bits: tl.float64,
    m_b, m_d, l_b, l_d, pm_b, pm_d, pl_b, pl_d, e_s, e_b, e_d, z_s, z_b, z_d,
    PARAMETRIZATION: tl.constexpr, CLAMPED: tl.constexpr, FREE: tl.constexpr,
    HAS_PRIOR: tl.constexpr, HAS_INDEX: tl.constexpr, HAS_EPS: tl.constexpr,
    WHOLE: tl.constexpr, WIDE: tl.constexpr, PIECE: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    compute: tl.constexpr = parts.dtype.element_ty
    b, piece, start = tile_at(batch, values, PIECE, WIDE, BLOCK_B)
    one = tl.full((1, 1), 1, tl.int64)
    if HAS_PRIOR:
        row, exists = _row_of_prior(prior_index, b, b < batch, classes, HAS_INDEX)
    if not HAS_EPS:
        key = tl.load(seed)
    total = tl.zeros((BLOCK_B, BLOCK_D), dtype=compute)
    for first in range(start, tl.minimum(start + PIECE, values), BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)[None, :]
        if WIDE:
            d = d.to(tl.int64)
        live = (b < batch) & (d < values)
        mean = load(mu + b * m_b + d * m_d, live).to(compute)
        raw = load(logvar + b * l_b + d * l_d, live).to(compute)
        wide, _ = _posterior(raw, low, high, PARAMETRIZATION, CLAMPED)
        prior_mean, prior_wide, inverse = mean, wide, wide
        if HAS_PRIOR:
            prior_mean = _prior_at(prior_mu + row * pm_b + d * pm_d, live, exists, compute)
            prior_raw = _prior_at(prior_logvar + row * pl_b + d * pl_d, live, exists, compute)
            prior_wide, _, inverse = _log_variance(prior_raw, PARAMETRIZATION)
        kl, _, _, _ = _divergence(mean, wide, prior_mean, prior_wide, inverse, HAS_PRIOR)
        if FREE:
            least = scalar(free_bits, compute)
            kl = tl.where(kl < least, least, kl)
        total += tl.where(live, kl, 0.0)
        deviation = tl.exp(0.5 * wide)
        for s in range(samples):
            if HAS_EPS:
                noise = load(eps + s * one * e_s + b * e_b + d * e_d, live).to(compute)
            else:
                element = (s * one * batch + b) * values + first
                noise = row_normals(key, element, BLOCK_D, WHOLE, compute)
            out = rounded(mean + product(deviation, noise), z.dtype.element_ty)
            tl.store(z + s * one * z_s + b * z_b + d * z_d, out, mask=live)
    tl.store(parts + piece * one * batch + b, tl.sum(total, 1)[:, None], mask=b < batch)


@triton.jit
def _reparam_kl_backward_kernel(
    grad_z, grad_kl, mu, logvar, prior_mu, prior_logvar, prior_index, eps, seed,
    grad_mu, grad_logvar, grad_prior_mu, grad_prior_logvar,
    batch, values, samples, classes, low: tl.float64, high: tl.float64, free_bits: tl.float64,
    g_s, g_b, g_d, k_b, m_b, m_d, l_b, l_d, pm_b, pm_d, pl_b, pl_d, e_s, e_b, e_d,
    gm_b, gm_d, gl_b, gl_d, gpm_b, gpm_d, gpl_b, gpl_d,
    PARAMETRIZATION: tl.constexpr, CLAMPED: tl.constexpr, FREE: tl.constexpr,
    HAS_PRIOR: tl.constexpr, HAS_INDEX: tl.constexpr, HAS_EPS: tl.constexpr,
    HAS_Z: tl.constexpr, HAS_KL: tl.constexpr,
    TO_MU: tl.constexpr, TO_LOGVAR: tl.constexpr,
    TO_PRIOR_MU: tl.constexpr, TO_PRIOR_LOGVAR: tl.constexpr,
    WHOLE: tl.constexpr, WIDE: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    compute: tl.constexpr = tl.float64 if mu.dtype.element_ty == tl.float64 else tl.float32
    b, _, start = tile_at(batch, values, BLOCK_D, WIDE, BLOCK_B)
    one = tl.full((1, 1), 1, tl.int64)
    d = start + tl.arange(0, BLOCK_D)[None, :]
    if WIDE:
        d = d.to(tl.int64)
    live = (b < batch) & (d < values)
    raw = load(logvar + b * l_b + d * l_d, live).to(compute)
    wide, slope = _posterior(raw, low, high, PARAMETRIZATION, CLAMPED)
    by_mu = tl.zeros((BLOCK_B, BLOCK_D), dtype=compute)
    by_logvar = tl.zeros((BLOCK_B, BLOCK_D), dtype=compute)
    if HAS_KL:
        mean = load(mu + b * m_b + d * m_d, live).to(compute)
        prior_mean, prior_wide, inverse = mean, wide, wide
        if HAS_PRIOR:
            row, exists = _row_of_prior(prior_index, b, b < batch, classes, HAS_INDEX)
            prior_mean = _prior_at(prior_mu + row * pm_b + d * pm_d, live, exists, compute)
            prior_raw = _prior_at(prior_logvar + row * pl_b + d * pl_d, live, exists, compute)
            prior_wide, prior_slope, inverse = _log_variance(prior_raw, PARAMETRIZATION)
        kl, e, r, square = _divergence(mean, wide, prior_mean, prior_wide, inverse, HAS_PRIOR)
        k = load(grad_kl + b * k_b, b < batch).to(compute)
        k = tl.broadcast_to(k, (BLOCK_B, BLOCK_D))
        if FREE:
            k = tl.where(kl < scalar(free_bits, compute), 0.0, k)
        by_mu = product(k, r)
        by_logvar = 0.5 * product(k, e)
        if TO_PRIOR_MU:
            at = grad_prior_mu + b * gpm_b + d * gpm_d
            tl.store(at, rounded(-by_mu, grad_prior_mu.dtype.element_ty), mask=live)
        if TO_PRIOR_LOGVAR:
            by_prior = product(-0.5 * product(k, e + square), prior_slope)
            at = grad_prior_logvar + b * gpl_b + d * gpl_d
            tl.store(at, rounded(by_prior, grad_prior_logvar.dtype.element_ty), mask=live)
    if HAS_Z and (TO_MU or TO_LOGVAR):
        if TO_LOGVAR:
            half_deviation = 0.5 * tl.exp(0.5 * wide)
            if not HAS_EPS:
                key = tl.load(seed)
        for s in range(samples):
            g = load(grad_z + s * one * g_s + b * g_b + d * g_d, live).to(compute)
            by_mu += g
            if TO_LOGVAR:
                if HAS_EPS:
                    noise = load(eps + s * one * e_s + b * e_b + d * e_d, live).to(compute)
                else:
                    element = (s * one * batch + b) * values + start
                    noise = row_normals(key, element, BLOCK_D, WHOLE, compute)
                by_logvar += product(g, product(noise, half_deviation))
    if TO_MU:
        at = grad_mu + b * gm_b + d * gm_d
        tl.store(at, rounded(by_mu, grad_mu.dtype.element_ty), mask=live)
    if TO_LOGVAR:
        at = grad_logvar + b * gl_b + d * gl_d
        by_logvar = product(by_logvar, slope)
        tl.store(at, rounded(by_logvar, grad_logvar.dtype.element_ty), mask=live)


@triton.jit
def _prior_gradient_kernel(
    grad_kl, mu, logvar, prior_mu, prior_logvar, order, bounds, by_mu, by_logvar,
    batch, values, low: tl.float64, high: tl.float64, free_bits: tl.float64,
    k_b, m_b, m_d, l_b, l_d, pm_b, pm_d, pl_b, pl_d,
    PARAMETRIZATION: tl.constexpr, CLAMPED: tl.constexpr, FREE: tl.constexpr,
    HAS_INDEX: tl.constexpr, TO_MU: tl.constexpr, TO_LOGVAR: tl.constexpr,
    WIDE: tl.constexpr, CHUNK: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Sums over the samples of a class, which lie side by side in `order`, or of a chunk."""
    tiles = tl.cdiv(values, BLOCK_D)
    segment = (tl.program_id(0) // tiles).to(tl.int64)
    column = (tl.program_id(0) % tiles) * BLOCK_D + tl.arange(0, BLOCK_D)
    if WIDE:
        column = column.to(tl.int64)
    d = column[None, :]
    if HAS_INDEX:
        begin, end = tl.load(bounds + segment), tl.load(bounds + segment + 1)
    else:
        begin = segment * CHUNK
        end = tl.minimum(begin + CHUNK, batch)
    compute: tl.constexpr = tl.float64 if mu.dtype.element_ty == tl.float64 else tl.float32
    sum_mu = tl.zeros((BLOCK_D,), dtype=tl.float64)
    sum_logvar = tl.zeros((BLOCK_D,), dtype=tl.float64)
    for block in range(begin, end, BLOCK_B):
        n = block + tl.arange(0, BLOCK_B)[:, None]
        live = (n < end) & (d < values)
        if HAS_INDEX:
            b = tl.load(order + n, mask=n < end, other=0)
            row = segment
        else:
            b = n.to(tl.int64)
            row = b
        mean = load(mu + b * m_b + d * m_d, live).to(compute)
        raw = load(logvar + b * l_b + d * l_d, live).to(compute)
        wide, _ = _posterior(raw, low, high, PARAMETRIZATION, CLAMPED)
        prior_mean = load(prior_mu + row * pm_b + d * pm_d, live).to(compute)
        prior_raw = load(prior_logvar + row * pl_b + d * pl_d, live).to(compute)
        prior_wide, slope, inverse = _log_variance(prior_raw, PARAMETRIZATION)
        kl, e, r, square = _divergence(mean, wide, prior_mean, prior_wide, inverse, True)
        k = load(grad_kl + b * k_b, n < end).to(compute)
        k = tl.broadcast_to(k, (BLOCK_B, BLOCK_D))
        if FREE:
            k = tl.where(kl < scalar(free_bits, compute), 0.0, k)
        if TO_MU:
            term = tl.where(live, -product(k, r), 0.0)
            sum_mu += tl.sum(term.to(tl.float64), 0)
        if TO_LOGVAR:
            term = tl.where(live, product(-0.5 * product(k, e + square), slope), 0.0)
            sum_logvar += tl.sum(term.to(tl.float64), 0)
    at = segment * values + column
    if TO_MU:
        tl.store(by_mu + at, rounded(sum_mu, by_mu.dtype.element_ty), mask=column < values)
    if TO_LOGVAR:
        out = rounded(sum_logvar, by_logvar.dtype.element_ty)
        tl.store(by_logvar + at, out, mask=column < values)


class _Settings:
    """The flags and numbers that all three kernels take."""

    def __init__(self, low, high, free_bits, parametrization):
        inf = float("inf")
        self.numbers = (-inf if low is None else low, inf if high is None else high, free_bits)
        self.flags = {
            "PARAMETRIZATION": parametrization,
            "CLAMPED": low is not None or high is not None,
            "FREE": free_bits > 0,
        }


def _prior_rows(samples, prior):
    """The prior as (rows, D) and its strides; one row for all samples has stride 0."""
    if prior is None:
        return None, (0, 0)
    rows = prior.reshape(len(prior), samples.values)
    return rows, (0 if len(prior) == 1 else rows.stride(0), rows.stride(1))


def _draws(samples, tensor, count):
    """A tensor in z's shape as (draws, B, D) and its strides."""
    if tensor is None:
        return None, (0, 0, 0)
    rows = tensor.reshape(count, samples.batch, samples.values)
    return rows, rows.stride()


def reparam_kl(
    mu, logvar, prior_mu, prior_logvar, prior_index, eps, seed,
    samples, clamp_low, clamp_high, free_bits, parametrization,
):  # fmt: skip
    """(z, kl, seed); see fastgen.reparam_kl."""
    if eps is None:
        seed = seed_or_draw(seed, mu.device)
    else:  # nothing is drawn
        seed = mu.new_zeros((), dtype=torch.int64)
    draws, samples = samples, Samples(mu, row_major=True)
    z = empty_in_format_of(mu, mu.shape) if draws == 1 else mu.new_empty((draws, *mu.shape))
    parts = parts_of(samples, mu)
    if mu.numel() == 0:
        return z, parts.new_zeros(len(mu)), seed
    ms, ls, index = samples.rows(mu), samples.rows(logvar), prior_index
    index = None if index is None else index.contiguous()
    (pms, pm_strides), (pls, pl_strides) = (
        _prior_rows(samples, prior) for prior in (prior_mu, prior_logvar)
    )
    es, e_strides = _draws(samples, eps, draws)
    zs, z_strides = _draws(samples, z, draws)
    settings, tile = (
        _Settings(clamp_low, clamp_high, free_bits, parametrization),
        _tile(samples, mu),
    )
    with on_device_of(mu):
        _reparam_kl_kernel[grid_of(*ms.shape, tile, PIECE)](
            ms, ls, pms, pls, index, es, seed, zs, parts,
            *ms.shape, draws, 0 if pms is None else len(pms), *settings.numbers,
            *strides(ms), *strides(ls), *pm_strides, *pl_strides, *e_strides, *z_strides,
            **settings.flags, HAS_PRIOR=pms is not None, HAS_INDEX=index is not None,
            HAS_EPS=es is not None, WIDE=is_wide(ms, ls, pms, pls, es, zs), PIECE=PIECE,
            **tile, **OPTIONS,
        )  # fmt: skip
    if draws == 1:
        samples.finish(z, zs[0])
    return z, add_parts(parts), seed


def _tile(samples, mu):
    tile = tile_of(samples.values, mu.dtype)
    if mu.dtype == torch.float64:  # else the assembler aims at 80, for more threads, and spills
        tile["maxnreg"] = 128
    if samples.values % 4:  # a block of random words for each value takes registers
        return {**tile, "WHOLE": False, "num_warps": 8}
    return {**tile, "WHOLE": True}


def reparam_kl_backward(
    grad_z, grad_kl, mu, logvar, prior_mu, prior_logvar, prior_index, eps, z, used_seed,
    samples, clamp_low, clamp_high, free_bits, parametrization, needs,
):  # fmt: skip
    """Gradients of mu, logvar and the prior's two; empty where not needed."""
    call = _Backward(mu, logvar, (prior_mu, prior_logvar), prior_index, grad_kl)
    call.settings = _Settings(clamp_low, clamp_high, free_bits, parametrization)
    like = (mu, logvar, prior_mu, prior_logvar)
    if mu.numel() == 0:
        return tuple(
            _zeros(t) if need else mu.new_empty(0) for t, need in zip(like, needs, strict=True)
        )
    results = [mu.new_empty(0)] * 4
    own, shared = list(needs), [False, False]
    for i in (2, 3):
        if needs[i] and grad_kl is None:  # a prior has its gradient from the divergence alone
            results[i], own[i] = _zeros(like[i]), False
        elif needs[i] and (prior_index is not None or len(like[i]) < len(mu)):
            shared[i - 2], own[i] = True, False
    with on_device_of(mu):
        if any(own):
            found = call.of_samples(grad_z, eps, used_seed, samples, like, own)
            results = [f if need else r for f, r, need in zip(found, results, own, strict=True)]
        if any(shared):
            found = call.of_shared_priors(shared)
            for i in (2, 3):
                results[i] = found[i - 2] if shared[i - 2] else results[i]
    return tuple(results)


class _Backward:
    """What the kernels of backward share."""

    def __init__(self, mu, logvar, prior, index, grad_kl):
        self.samples = samples = Samples(mu, row_major=True)
        if mu.numel() == 0:
            return
        self.mu, self.logvar, self.grad_kl = samples.rows(mu), samples.rows(logvar), grad_kl
        self.prior, self.index = prior, None if index is None else index.contiguous()
        pairs = [_prior_rows(samples, tensor) for tensor in prior]
        self.prior_rows = [rows for rows, _ in pairs]
        self.strides = (
            0 if grad_kl is None else grad_kl.stride(0), *strides(self.mu), *strides(self.logvar),
            *pairs[0][1], *pairs[1][1],
        )  # fmt: skip

    def of_samples(self, grad_z, eps, seed, draws, like, needs):
        """The gradients of which every sample has its own row."""
        samples, tile = self.samples, _tile(self.samples, self.mu)
        made = [
            samples.new(t) if need else (None, None) for t, need in zip(like, needs, strict=True)
        ]
        outs = [rows for _, rows in made]
        gs, g_strides = _draws(samples, grad_z, draws)
        es, e_strides = _draws(samples, eps, draws)
        rows = self.prior_rows
        _reparam_kl_backward_kernel[grid_of(*self.mu.shape, tile, tile["BLOCK_D"])](
            gs, self.grad_kl, self.mu, self.logvar, *rows, self.index, es, seed, *outs,
            *self.mu.shape, draws, 0 if rows[0] is None else len(rows[0]), *self.settings.numbers,
            *g_strides, *self.strides, *e_strides, *(s for out in outs for s in strides(out)),
            **self.settings.flags, HAS_PRIOR=rows[0] is not None, HAS_INDEX=self.index is not None,
            HAS_EPS=es is not None, HAS_Z=gs is not None, HAS_KL=self.grad_kl is not None,
            TO_MU=needs[0], TO_LOGVAR=needs[1], TO_PRIOR_MU=needs[2], TO_PRIOR_LOGVAR=needs[3],
            WIDE=is_wide(gs, self.mu, self.logvar, *rows, es, *outs), **tile, **OPTIONS,
        )  # fmt: skip
        return samples.finish_all(made)

    def of_shared_priors(self, needs):
        """The gradients of the prior's tensors whose rows several samples share."""
        batch, values = self.mu.shape
        device, dtype = self.mu.device, self.mu.dtype
        order = bounds = None
        if self.index is None:
            segments, part = triton.cdiv(batch, CHUNK), torch.float64
        else:
            ordered, order = torch.sort(self.index, stable=True)
            segments, part = len(self.prior[0]), dtype
            bounds = torch.searchsorted(ordered, torch.arange(segments + 1, device=device))
        parts = [
            torch.empty(segments, values, dtype=part, device=device) if need else None
            for need in needs
        ]
        _prior_gradient_kernel[(segments * triton.cdiv(values, PRIOR_D),)](
            self.grad_kl, self.mu, self.logvar, *self.prior_rows, order, bounds, *parts,
            batch, values, *self.settings.numbers, *self.strides, **self.settings.flags,
            HAS_INDEX=order is not None, TO_MU=needs[0], TO_LOGVAR=needs[1],
            WIDE=is_wide(self.mu, self.logvar, *self.prior_rows, *parts),
            CHUNK=CHUNK, BLOCK_B=PRIOR_B, BLOCK_D=PRIOR_D,
            num_warps=8 if dtype == torch.float64 else 4, **OPTIONS,
        )  # fmt: skip
        sums = [p if p is None or order is not None else add_parts(p, dtype) for p in parts]
        return [
            None if rows is None else empty_in_format_of(t, t.shape).copy_(rows.view(t.shape))
            for t, rows in zip(self.prior, sums, strict=True)
        ]


def _zeros(like):
    return empty_in_format_of(like, like.shape).zero_()
