"""clip_weights_: weights into a range, all tensors in one launch."""

import torch
from torch import Tensor, nn

from fastgen import _backends, _load
from fastgen.ops import _updates
from fastgen.reference import clip_weights_ as reference


def _example(device):
    return [torch.linspace(-1, 1, n, device=device) for n in (5, 40, 3)], -0.5, 0.25


OP = _updates.define(
    "clip_weights_(Tensor(a!)[] tensors, float low, float high) -> Tensor",
    reference.clip_weights_,
    example=_example,
)


def clip_weights_(
    params_or_module: nn.Module | Tensor | list[Tensor],
    clip: float | tuple[float, float],
    *,
    return_saturation: bool = False,
) -> Tensor | None:
    """Clamps every weight into [-c, c] or [low, high], in place.

    The same bits as ``with torch.no_grad(): p.clamp_(low, high)`` for each parameter, in one pass
    over all of them: NaN stays NaN, and the autograd version counters move on. Bounds are rounded
    to each tensor's dtype. Not differentiable.

    Args:
        params_or_module: a module (all its parameters), a tensor, or an iterable of tensors, of any
            shapes, strides, devices and of float32, float64, bfloat16 or float16. A tensor given
            twice is clipped once. Of a DTensor (FSDP2) the local shard is clipped.
        clip: c >= 0 for [-c, c], or (low, high).
        return_saturation: also the share of weights at a bound, at no extra pass.

    Returns:
        None, or the share as a float32 tensor without dimensions on the (first) tensors' device;
        nothing waits for the device. nan for no weights at all.

    Raises:
        TypeError: no tensors; integers, bool or complex numbers; a clip that is no number or pair.
        ValueError: negative, reversed or NaN bounds.
        RuntimeError: a tensor that overlaps itself, as of expand.

    Source: Arjovsky, Chintala, Bottou, Wasserstein GAN, 2017, algorithm 1.
    """
    low, high = _updates.bounds("clip_weights_", clip)
    if clip is None:
        raise TypeError(
            "fastgen.clip_weights_: clip must be a number or a pair, got None; give c for [-c, c]"
        )
    tensors = params_or_module
    if type(tensors) is not list:
        tensors = _updates.tensors_of("clip_weights_", "params_or_module", params_or_module)
    if not return_saturation and _clip_plain(tensors, low, high):
        return None
    tensors = _updates.local(_updates.tensors_of("clip_weights_", "params_or_module", tensors))
    if not tensors:
        return torch.full((), torch.nan) if return_saturation else None
    saturated = [OP(group, low, high) for (group,) in _updates.by_device(tensors)]
    if not return_saturation:
        return None
    share = sum(s.to(saturated[0].device, torch.float64) for s in saturated)
    return (share / sum(t.numel() for t in tensors)).float()


def _clip_plain(tensors, low, high):
    """Whether this was the usual case, ordinary CPU tensors and no mode or forced backend, and so
    is done: without dispatch, which takes longer than a few small tensors do."""
    if _load.EXTENSION is None or torch.compiler.is_compiling() or _backends.forced() is not None:
        return False
    return _load.EXTENSION.clip_plain(tensors, low, high)


@torch.library.register_fake("fastgen::clip_weights_")
def _(tensors, low, high):
    return tensors[0].new_empty((), dtype=torch.int64)
