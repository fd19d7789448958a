"""vq_quantize: nearest codes, straight-through values, commitment and codebook statistics in one
pass."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastgen import _backends
from fastgen.ops import _codebooks
from fastgen.ops._snapshot import snapshot
from fastgen.reference import vq_quantize as reference
from fastgen.reference.vq_rows import compute_dtype


def _example(device):
    return (*_codebooks.example_rows(device), 1, None, False, None)


def _example_backward(device):
    x, codebook = _codebooks.example_rows(device)
    indices = torch.arange(x.numel() // 4, device=device).reshape(2, 3, 5) % 7
    return x.cos(), x[:, 0].sin().flatten(), x, indices, codebook, 1, True


def _forward(x, codebook, dim, mask, rotation, filter=None):
    """`rotation` concerns the gradient only."""
    return reference.vq_quantize(x, codebook, dim, mask, filter)


OP = _backends.define(
    "vq_quantize(Tensor x, Tensor codebook, int dim, Tensor? mask, bool rotation, "
    "bool? filter=None) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward,
    triton="vq_quantize:vq_quantize",
    example=_example,
)
BACKWARD = _backends.define(
    "vq_quantize_backward(Tensor? grad_quantized, Tensor? grad_commitment, Tensor x, "
    "Tensor indices, Tensor codebook, int dim, bool rotation) -> Tensor",
    reference.vq_quantize_backward,
    stem="vq_quantize",
    triton="vq_quantize:vq_quantize_backward",
    example=_example_backward,
)


class Quantized(NamedTuple):
    """What `vq_quantize` returns; see there."""

    quantized: Tensor
    indices: Tensor
    commitment: Tensor
    counts: Tensor
    sums: Tensor


def vq_quantize(
    x: Tensor,
    codebook: Tensor,
    *,
    dim: int = -1,
    mask: Tensor | None = None,
    rotation: bool = False,
) -> Quantized:
    """Replaces every row by its nearest code, with a gradient, and counts what was chosen.

    1. ``indices = vq_nearest(x, codebook, dim=dim)``
    2. ``quantized = codebook[indices]``; its gradient goes to x as if it were x (straight-through),
       or turned and scaled as the map that takes x to its code (`rotation`).
    3. ``commitment = mean over D of (x - codebook[indices])^2``, one for each row, unweighted; its
       gradient goes to x only.
    4. ``counts``, ``sums``: how often each code was chosen, and the sum of the rows that chose it.

    Backward is one pass over x, the gradient and the result; it uses the codebook as it was here,
    whatever has been written into it since. Same bits for any number of threads.

    Args:
        x, codebook, dim: as in `vq_nearest`.
        mask: bool, x's shape without `dim` (and without the axis of heads): False rows are left
            out: quantized 0, index -1, commitment 0, no gradient, not counted.
        rotation: the rotation trick for the gradient of `quantized`.

    Returns:
        A named tuple:
        quantized: in x's shape, dtype and memory layout.
        indices: int64, x's shape without `dim`.
        commitment: (rows,), the indices flattened; float32, or float64 if x or the codebook is.
        counts: int64, the codebook's shape without D.
        sums: float64, the codebook's shape.
        A row with NaN or infinity, and any row if no code is finite, gives quantized NaN, index 0,
        commitment NaN and is not counted.

        The codebook gets no gradient here: move it by `vq_ema_update_`, or train it by
        `vq_codebook_loss`, which needs no more than counts and sums.

    Raises:
        TypeError: a dtype is not one of the four, or the mask is not bool.
        ValueError: shapes that do not fit, an empty codebook, mixed devices.

    Source: van den Oord et al., Neural Discrete Representation Learning, 2017, eq. 1-3; Fifty et
    al., Restructuring Vector Quantization with the Rotation Trick, 2024, section 4.2.
    """
    axis = _codebooks.checked_rows("vq_quantize", x, codebook, dim)
    if mask is not None:
        _check_mask(mask, x, axis, codebook.dim() == 3)
    codes = codebook.detach()
    if torch.compiler.is_compiling():  # which would put off the copy for backward until then
        codes = snapshot(codes)
    out = torch.ops.fastgen.vq_quantize(x, codes, axis, mask, rotation)
    return Quantized(*out)


def vq_codebook_loss(codebook: Tensor, quantized: Quantized) -> Tensor:
    """The codebook loss of the VQ-VAE: the mean of `commitment` over the counted rows, with the
    gradient to the codebook, ``2 / (rows D) (counts c - sums)``, from the statistics alone.

    Args:
        codebook: (K, D) or (G, K, D), which `quantized` was made with; gets the gradient.
        quantized: what `vq_quantize` returned.

    Returns:
        A scalar in commitment's dtype; 0, with a gradient of zeros, if no row was counted. A code
        that nothing chose takes no part, whatever it holds.

    Raises:
        ValueError: a codebook of another shape.

    Source: van den Oord et al., Neural Discrete Representation Learning, 2017, eq. 3, second term.
    """
    if codebook.shape != quantized.sums.shape:
        raise ValueError(
            f"fastgen.vq_codebook_loss: codebook must be {tuple(quantized.sums.shape)}, which "
            f"quantized was made with, got {tuple(codebook.shape)}; pass the same codebook"
        )
    counts, sums = quantized.counts.double(), quantized.sums
    values = counts.sum().clamp(min=1) * codebook.shape[-1]
    # 0 times a code that is not finite would be NaN
    c = torch.where(counts.unsqueeze(-1) > 0, codebook.double(), 0)
    # sum over rows of |x - c|^2 without its constant |x|^2
    moving = (counts * c.square().sum(-1)).sum() - 2 * (c * sums).sum()
    value = quantized.commitment.detach().nansum(dtype=torch.float64) * codebook.shape[-1]
    return ((moving - moving.detach() + value) / values).to(quantized.commitment.dtype)


def _check_mask(mask, x, axis, heads):
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"fastgen.vq_quantize: mask must be a bool tensor, got {got}; compare it")
    expected = _codebooks.mask_shape(x, axis, heads)
    if list(mask.shape) != expected:
        raise ValueError(
            f"fastgen.vq_quantize: mask must be {tuple(expected)}, one entry for each row of x "
            f"{tuple(x.shape)}, got {tuple(mask.shape)}"
        )
    if mask.device != x.device:
        raise ValueError(
            f"fastgen.vq_quantize: mask must be on x's device {x.device}, got {mask.device}; "
            f"move it with mask.to({str(x.device)!r})"
        )


@torch.library.register_fake("fastgen::vq_quantize")
def _(x, codebook, dim, mask, rotation, filter=None):
    indices = x.new_empty(_codebooks.index_shape(x, dim), dtype=torch.int64)
    return (
        torch.empty_like(x),
        indices,
        x.new_empty(indices.numel(), dtype=compute_dtype(x, codebook)),
        codebook.new_empty(codebook.shape[:-1], dtype=torch.int64),
        codebook.new_empty(codebook.shape, dtype=torch.float64),
    )


@torch.library.register_fake("fastgen::vq_quantize_backward")
def _(grad_quantized, grad_commitment, x, indices, codebook, dim, rotation):
    return torch.empty_like(x)


def _setup(ctx, inputs, output):
    x, codebook, ctx.dim, _, ctx.rotation = inputs[:5]
    _, indices, _, counts, sums = output
    ctx.mark_non_differentiable(indices, counts, sums)
    ctx.set_materialize_grads(False)
    # a copy: the codebook may be moved in place before backward
    ctx.save_for_backward(x, indices, codebook.detach().clone())


def _backward(ctx, grad_quantized, grad_indices, grad_commitment, grad_counts, grad_sums):
    x, indices, codebook = ctx.saved_tensors
    if grad_quantized is None and grad_commitment is None:
        return (None,) * 6
    grad = torch.ops.fastgen.vq_quantize_backward(
        grad_quantized, grad_commitment, x, indices, codebook, ctx.dim, ctx.rotation
    )
    return grad, None, None, None, None, None


torch.library.register_autograd("fastgen::vq_quantize", _backward, setup_context=_setup)


def _setup_backward(ctx, inputs, output):
    grad_quantized, grad_commitment, x, indices, codebook, ctx.dim, ctx.rotation = inputs
    ctx.save_for_backward(grad_quantized, grad_commitment, x, indices, codebook)


def _backward_backward(ctx, v):
    """Second derivatives are rare here: through the reference, which is plain PyTorch."""
    grad_quantized, grad_commitment, x, indices, codebook = ctx.saved_tensors
    needs = ctx.needs_input_grad[:3]
    with torch.enable_grad():
        wanted = [
            t.detach().requires_grad_() if t is not None and need else t
            for t, need in zip((grad_quantized, grad_commitment, x), needs, strict=True)
        ]
        out = reference.vq_quantize_backward(*wanted, indices, codebook, ctx.dim, ctx.rotation)
        inputs = [t for t, need in zip(wanted, needs, strict=True) if need and t is not None]
        grads = iter(torch.autograd.grad(out, inputs, v, allow_unused=True))
    found = [
        next(grads) if n and t is not None else None for t, n in zip(wanted, needs, strict=True)
    ]
    return (*found, None, None, None, None)


torch.library.register_autograd(
    "fastgen::vq_quantize_backward", _backward_backward, setup_context=_setup_backward
)
