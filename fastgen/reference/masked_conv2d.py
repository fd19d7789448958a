"""masked_conv2d in plain PyTorch: one matrix product per unmasked tap.

`taps` and `partial` are a tap plan (see fastgen.TapPlan). A masked tap takes no part at all, so a
NaN under it goes nowhere; that is why this is not conv2d(x, weight * mask).
"""

import torch
import torch.nn.functional as F

from fastgen.reference.memory_format import in_format_of


def _dense_parts(taps, partial, weight):
    """Yields (ky, kx, outputs, inputs): index lists whose every pair is unmasked at that tap."""
    for ky, kx, p in taps[1 : 1 + int(taps[0, 0])].tolist():
        if p < 0:
            yield ky, kx, slice(None), slice(None)
            continue
        # output channels with the same mask row form one dense product
        rows, group_of = torch.unique(partial[p].bool(), dim=0, return_inverse=True)
        for group, row in enumerate(rows):
            yield ky, kx, (group_of == group).nonzero()[:, 0], row.nonzero()[:, 0]


def _within(dilation, size):
    """A dilation with the same taps inside an image of `size`, and no more padding than that."""
    return [min(d, max(1, n)) for d, n in zip(dilation, size, strict=True)]


def _padded(x, weight, dilation):
    height, width = (d * (k // 2) for d, k in zip(dilation, weight.shape[2:], strict=True))
    return F.pad(x, (width, width, height, height))


def _window(padded, ky, kx, size, dilation):
    """What tap (ky, kx) sees of a padded image, for every output position."""
    top, left = ky * dilation[0], kx * dilation[1]
    return padded[:, :, top : top + size[0], left : left + size[1]]


def _accumulation_dtype(x):
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def masked_conv2d(x, weight, bias, taps, partial, dilation):
    dtype, size = _accumulation_dtype(x), x.shape[2:]
    dilation = _within(dilation, size)
    w, padded = weight.to(dtype), _padded(x.to(dtype), weight, dilation)
    y = torch.zeros(x.shape[0], weight.shape[0], *size, dtype=dtype, device=x.device)
    if bias is not None:
        y += bias.to(dtype)[:, None, None]
    for ky, kx, outputs, inputs in _dense_parts(taps, partial, weight):
        seen = _window(padded, ky, kx, size, dilation)[:, inputs]
        y[:, outputs] += torch.einsum("oi,bihw->bohw", w[:, :, ky, kx][outputs][:, inputs], seen)
    return in_format_of(y, x)


def masked_conv2d_backward(grad, x, weight, taps, partial, dilation, needs):
    dtype, size = _accumulation_dtype(x), x.shape[2:]
    dilation = _within(dilation, size)
    g, w, padded = grad.to(dtype), weight.to(dtype), _padded(x.to(dtype), weight, dilation)
    grad_padded, grad_weight = torch.zeros_like(padded), torch.zeros_like(w)
    for ky, kx, outputs, inputs in _dense_parts(taps, partial, weight):
        if needs[0]:
            tap = w[:, :, ky, kx][outputs][:, inputs]
            _window(grad_padded, ky, kx, size, dilation)[:, inputs] += torch.einsum(
                "oi,bohw->bihw", tap, g[:, outputs]
            )
        if needs[1]:
            seen = _window(padded, ky, kx, size, dilation)[:, inputs]
            tap = torch.einsum("bohw,bihw->oi", g[:, outputs], seen)
            whole = grad_weight[:, :, ky, kx]
            rows = torch.arange(whole.shape[0], device=x.device)[outputs]
            columns = torch.arange(whole.shape[1], device=x.device)[inputs]
            whole[rows[:, None], columns] = tap
    nothing = x.new_empty(0)
    centre = [d * (k // 2) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    interior = grad_padded[:, :, centre[0] : centre[0] + size[0], centre[1] : centre[1] + size[1]]
    return (
        in_format_of(interior, x) if needs[0] else nothing,
        in_format_of(grad_weight, weight) if needs[1] else nothing.clone(),
        g.sum((0, 2, 3)).to(x.dtype) if needs[2] else nothing.clone(),
    )
