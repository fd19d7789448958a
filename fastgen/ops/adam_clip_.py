"""adam_clip_: Adam's update of many tensors and a clip, in one pass over memory."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastgen.ops import _updates
from fastgen.reference import adam_clip_ as reference


def _example(device):
    params = [torch.linspace(-0.02, 0.02, n, device=device) for n in (5, 40, 3)]
    lists = [[p.flip(0).contiguous() for p in params], [p / 2 for p in params]]
    lists += [[p.abs() for p in params], [], [torch.ones((), device=device) for _ in params]]
    return (
        params, *lists, None, 1e-3, 0.5, 0.9, 1e-8, 0.1, False, False, -0.01, 0.01, None, None,
    )  # fmt: skip


OP = _updates.define(
    "adam_clip_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, "
    "Tensor(c!)[] exp_avg_sqs, Tensor(d!)[] max_exp_avg_sqs, Tensor(e!)[] steps, Tensor? rate, "
    "float lr, float beta1, float beta2, float eps, float weight_decay, bool decoupled, "
    "bool maximize, float low, float high, Tensor? grad_scale, Tensor? found_inf) -> Tensor",
    reference.adam_clip_,
    example=_example,
)


def adam_clip_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    max_exp_avg_sqs: Sequence[Tensor] = (),
    steps: Sequence[Tensor] = (),
    *,
    lr: float | Tensor = 2e-4,
    betas: tuple[float, float] = (0.5, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
    clip: float | tuple[float, float] | None = 0.01,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> Tensor:
    """One step of Adam on all params, then their clip, in place and in one pass.

    For each parameter p with gradient g (``g = -g`` to maximise; ``g = g + weight_decay p``, or
    decoupled ``p = (1 - lr weight_decay) p``), at its step t, from 1:

    1. ``m = beta1 m + (1 - beta1) g``, ``v = beta2 v + (1 - beta2) g^2``
    2. AMSGrad: ``u = max(u, v)``, in v's place below
    3. ``p = p - lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps)``
    4. ``p = clamp(p, low, high)``

    `fastgen.optim.ClippedAdam` is the optimiser around it. On CPU the bits are those of
    `torch.optim.Adam` followed by `clamp_`, where PyTorch's square root is rounded correctly
    (MKL's is not on AMD's processors). Half precision is rounded after every step of the
    arithmetic, as there. Not differentiable.

    Args:
        params: tensors of any shapes and strides, float32, float64, bfloat16 or float16, of one
            device; written.
        grads, exp_avgs, exp_avg_sqs: tensors of params' shapes and dtypes; the last two are
            written.
        max_exp_avg_sqs: the like, for AMSGrad; none otherwise; written.
        steps: float32 tensors without dimensions, the steps done so far, one for each parameter;
            written. On params' device they are read by the kernel, on the CPU before.
        lr: a number, or a tensor of one element on params' device, read by the kernel.
        betas, eps, weight_decay, decoupled_weight_decay, maximize: as of `torch.optim.Adam`.
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

    Source: Kingma and Ba, Adam, 2015, algorithm 1; Reddi et al., On the Convergence of Adam and
    Beyond, 2018; Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019.
    """
    name = "adam_clip_"
    low, high = _updates.bounds(name, clip)
    count = len(params)
    _updates.check_same_length(
        name, count, grads=grads, exp_avgs=exp_avgs, exp_avg_sqs=exp_avg_sqs, steps=steps
    )
    if len(max_exp_avg_sqs):
        _updates.check_same_length(name, count, max_exp_avg_sqs=max_exp_avg_sqs)
    if count == 0:
        return torch.zeros((), dtype=torch.int64)
    rate, lr = (lr, 0.0) if isinstance(lr, Tensor) else (None, lr)
    lists = (params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs)
    return OP(
        *(_updates.local(values) for values in lists), list(steps), rate, lr, *betas, eps,
        weight_decay, decoupled_weight_decay, maximize, low, high, grad_scale, found_inf,
    )  # fmt: skip


@torch.library.register_fake("fastgen::adam_clip_")
def _(params, *rest):
    _updates.check_fake("adam_clip_", params, *rest)
    return params[0].new_empty((), dtype=torch.int64)
