"""add_noise in Triton: one read, one write; backward makes the same numbers again."""

import torch
import triton
import triton.language as tl

from ._elementary import scalar
from ._philox import block_normals, fill_grid, interleaved, seed_or_draw, uniform, words
from ._portable import OPTIONS, empty_in_format_of, load, on_device_of, rounded

MASK, GAUSSIAN, SALT_PEPPER = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def _replaced(seed, first, amount, BLOCK: tl.constexpr):
    """The uniforms of a tile, and which of its elements are replaced."""
    w0, w1, w2, w3 = words(tl.load(seed), first // 4 + tl.arange(0, BLOCK // 4))
    u = uniform(interleaved(w0, w1, w2, w3), 24, tl.float32)
    return u, u < scalar(amount, tl.float32)


@triton.jit
def _add_noise_kernel(
    x, seed, noisy, mask, count, amount: tl.float64, low: tl.float64, high: tl.float64,
    KIND: tl.constexpr, HAS_MASK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * BLOCK
    lane = tl.arange(0, BLOCK)
    live = lane < count - first
    compute: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    value = load(x + first + lane, live).to(compute)
    if KIND == GAUSSIAN:
        block = first // 4 + tl.arange(0, BLOCK // 4)
        value += scalar(amount, compute) * block_normals(tl.load(seed), block, compute)
    else:
        u, replaced = _replaced(seed, first, amount, BLOCK)
        if KIND == SALT_PEPPER:
            is_low = u < scalar(amount * 0.5, tl.float32)
            grain = tl.where(is_low, scalar(low, compute), scalar(high, compute))
            value = tl.where(replaced, grain, value)
        else:
            value = tl.where(replaced, 0.0, value)
        if HAS_MASK:
            tl.store(mask + first + lane, replaced.to(tl.uint8), mask=live)
    tl.store(noisy + first + lane, rounded(value, noisy.dtype.element_ty), mask=live)


@triton.jit
def _add_noise_backward_kernel(
    grad, seed, grad_x, count, amount: tl.float64, BLOCK: tl.constexpr
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * BLOCK
    lane = tl.arange(0, BLOCK)
    live = lane < count - first
    _, replaced = _replaced(seed, first, amount, BLOCK)
    value = tl.where(replaced, 0.0, load(grad + first + lane, live))
    tl.store(grad_x + first + lane, rounded(value, grad_x.dtype.element_ty), mask=live)


def add_noise(x, kind, amount, low, high, seed, return_mask):
    """(noisy in x's format, mask or an empty tensor, seed); see fastgen.add_noise."""
    seed = seed_or_draw(seed, x.device)
    noisy = empty_in_format_of(x, x.shape)
    mask = torch.empty(x.shape if return_mask else (0,), dtype=torch.bool, device=x.device)
    if x.numel() == 0:
        return noisy, mask, seed
    if kind == GAUSSIAN.value and return_mask:
        mask.fill_(True)
    flat = noisy if noisy.is_contiguous() else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    grid, tile = fill_grid(x.numel(), x.dtype)
    with on_device_of(x):
        _add_noise_kernel[grid](
            x.contiguous(), seed, flat, mask.view(torch.uint8), x.numel(), amount, low, high,
            KIND=kind, HAS_MASK=return_mask, **tile, **OPTIONS,
        )  # fmt: skip
    return noisy if flat is noisy else noisy.copy_(flat), mask, seed


def add_noise_backward(grad_noisy, kind, amount, used_seed):
    """The gradient of x: the incoming one where x was kept."""
    if kind == GAUSSIAN.value or grad_noisy.numel() == 0:
        return grad_noisy.clone()
    out = torch.empty_like(grad_noisy)
    flat = (
        out if out.is_contiguous() else torch.empty_like(out, memory_format=torch.contiguous_format)
    )
    grid, tile = fill_grid(out.numel(), out.dtype)
    with on_device_of(out):
        _add_noise_backward_kernel[grid](
            grad_noisy.contiguous(), used_seed, flat, out.numel(), amount, **tile, **OPTIONS
        )
    return out if flat is out else out.copy_(flat)
