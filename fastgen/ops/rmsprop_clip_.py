"""rmsprop_clip_: RMSprop's update of many tensors and a clip, in one pass over memory."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastgen.ops import _updates
from fastgen.reference import rmsprop_clip_ as reference


def _example(device):
    params = [torch.linspace(-0.02, 0.02, n, device=device) for n in (5, 40, 3)]
    lists = [[p.flip(0).contiguous() for p in params], [p.abs() for p in params], [], [], []]
    return params, *lists, None, 1e-3, 0.9, 1e-8, 0.1, 0.0, False, -0.01, 0.01, None, None


OP = _updates.define(
    "rmsprop_clip_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] square_avgs, "
    "Tensor(c!)[] momentum_buffers, Tensor(d!)[] grad_avgs, Tensor(e!)[] steps, Tensor? rate, "
    "float lr, float alpha, float eps, float weight_decay, float momentum, bool maximize, "
    "float low, float high, Tensor? grad_scale, Tensor? found_inf) -> Tensor",
    reference.rmsprop_clip_,
    example=_example,
)


def rmsprop_clip_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    square_avgs: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor] = (),
    grad_avgs: Sequence[Tensor] = (),
    steps: Sequence[Tensor] = (),
    *,
    lr: float | Tensor = 5e-5,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    maximize: bool = False,
    clip: float | tuple[float, float] | None = 0.01,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> Tensor:
    """One step of RMSprop on all params, then their clip, in place and in one pass.

    For each parameter p with gradient g (``g = -g`` to maximise, ``g = g + weight_decay p``):

    1. ``v = alpha v + (1 - alpha) g^2``
    2. centered: ``a = alpha a + (1 - alpha) g``, and ``v - a^2`` in v's place below
    3. ``p = p - lr g / (sqrt(v) + eps)``, or with momentum
       ``b = momentum b + g / (sqrt(v) + eps)``, ``p = p - lr b``
    4. ``p = clamp(p, low, high)``

    `fastgen.optim.ClippedRMSprop` is the optimiser around it. On CPU the bits are those of
    `torch.optim.RMSprop` followed by `clamp_`, where PyTorch's square root is rounded correctly
    (MKL's is not on AMD's processors). Half precision is rounded after every step of the
    arithmetic, as there. Not differentiable.

    Args:
        params: tensors of any shapes and strides, float32, float64, bfloat16 or float16, of one
            device; written.
        grads, square_avgs: tensors of params' shapes and dtypes; square_avgs is written.
        momentum_buffers: the like, with momentum; none without; written.
        grad_avgs: the like, for the centered form; none otherwise; written.
        steps: float32 tensors without dimensions that count steps; none leaves them out; written.
        lr: a number, or a tensor of one element on params' device, read by the kernel.
        alpha, eps, weight_decay, momentum, maximize: as of `torch.optim.RMSprop`.
        clip: c >= 0 for [-c, c], (low, high), or None.
        grad_scale: float32 tensor of one element that gradients are divided by
            (`torch.amp.GradScaler`).
        found_inf: float32 tensor of one element; unless 0 only the clip is done.

    Returns:
        int64 tensor without dimensions: how many weights are at a bound now.

    Raises:
        TypeError: other dtypes.
        ValueError: lists of different lengths, other shapes or devices, a clip as of
            `clip_weights_`.
        RuntimeError: a written tensor that overlaps itself.

    Source: Tieleman and Hinton, lecture 6.5, 2012; Graves, Generating Sequences With Recurrent
    Neural Networks, 2013, equations 38 to 45; Arjovsky et al., Wasserstein GAN, 2017.
    """
    name = "rmsprop_clip_"
    low, high = _updates.bounds(name, clip)
    count = len(params)
    _updates.check_same_length(name, count, grads=grads, square_avgs=square_avgs)
    for argument, values in (
        ("momentum_buffers", momentum_buffers),
        ("grad_avgs", grad_avgs),
        ("steps", steps),
    ):
        if len(values):
            _updates.check_same_length(name, count, **{argument: values})
    if count == 0:
        return torch.zeros((), dtype=torch.int64)
    rate, lr = (lr, 0.0) if isinstance(lr, Tensor) else (None, lr)
    lists = (params, grads, square_avgs, momentum_buffers, grad_avgs)
    return OP(
        *(_updates.local(values) for values in lists), list(steps), rate, lr, alpha, eps,
        weight_decay, momentum, maximize, low, high, grad_scale, found_inf,
    )  # fmt: skip


@torch.library.register_fake("fastgen::rmsprop_clip_")
def _(params, *rest):
    _updates.check_fake("rmsprop_clip_", params, *rest)
    return params[0].new_empty((), dtype=torch.int64)
