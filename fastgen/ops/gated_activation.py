"""gated_activation: tanh of the first half of the channels times sigmoid of the second."""

import torch
from torch import Tensor

from fastgen import _backends
from fastgen.ops import _checks
from fastgen.reference import gated_activation as reference
from fastgen.reference.memory_format import empty_in_format_of


def _example(device):
    return torch.linspace(-3, 3, 480, device=device).reshape(2, 8, 5, 6), None


def _example_backward(device):
    x, _ = _example(device)
    return x[:, :4].contiguous(), x, x[:, :, 0, 0].contiguous(), True


OP = _backends.define(
    "gated_activation(Tensor x, Tensor? condition) -> Tensor",
    reference.gated_activation,
    triton="gated_activation:gated_activation",
    example=_example,
)
BACKWARD = _backends.define(
    "gated_activation_backward(Tensor grad, Tensor x, Tensor? condition, bool needs_condition)"
    " -> (Tensor, Tensor)",
    reference.gated_activation_backward,
    stem="gated_activation",
    triton="gated_activation:gated_activation_backward",
    example=_example_backward,
)


def gated_activation(x: Tensor, condition: Tensor | None = None) -> Tensor:
    """Gate of the gated PixelCNN and WaveNet: ``tanh(a) * sigmoid(b)`` with
    ``a, b = (x + condition).chunk(2, dim=1)``.

    Args:
        x: (B, 2C, *spatial), float32, float64, bfloat16 or float16 (halves compute in float32).
        condition: None; one vector per sample, (B, 2C) or (B, 2C, 1, ...); or one per pixel, x's
            shape. x's dtype and device.

    Returns:
        (B, C, *spatial) in x's dtype and memory format. Differentiable twice.

    Raises:
        TypeError: a dtype is not one of the four, or differs from x's.
        ValueError: rank, an odd number of channels, the condition's shape, or mixed devices.

    Source: van den Oord et al., Conditional Image Generation with PixelCNN Decoders, 2016, eq. 2
    and 4.
    """
    _checks.float_tensor("gated_activation", "x", x)
    if x.dim() < 2 or x.shape[1] % 2:
        raise ValueError(
            "fastgen.gated_activation: x must be (B, 2C, ...) with an even number of channels, "
            f"got shape {tuple(x.shape)}; give two input channels for each output channel"
        )
    if condition is not None:
        condition = checked_condition("gated_activation", condition, x, x.shape)
    return torch.ops.fastgen.gated_activation(x, condition)


def checked_condition(op: str, condition: Tensor, x: Tensor, shape) -> Tensor:
    """The condition as (B, 2C) or of the full `shape` that the gate gets, in x's dtype."""
    _checks.float_tensor(op, "condition", condition)
    if _checks.autocast_dtype(x) is not None:
        condition = condition.to(x.dtype)
    _checks.same_kind(op, "condition", condition, x)
    per_sample = tuple(shape[:2])
    if tuple(condition.shape) == tuple(shape) and len(shape) > 2:
        return condition
    if tuple(condition.shape[:2]) == per_sample and all(n == 1 for n in condition.shape[2:]):
        return condition.reshape(per_sample)
    raise ValueError(
        f"fastgen.{op}: condition must be one vector per sample, {per_sample}, or one per pixel, "
        f"{tuple(shape)}, got {tuple(condition.shape)}; project it to twice the output channels"
    )


@torch.library.register_fake("fastgen::gated_activation")
def _(x, condition):
    batch, channels, *spatial = x.shape
    torch._check(
        channels % 2 == 0, lambda: f"fastgen.gated_activation: odd channels in {tuple(x.shape)}"
    )
    return empty_in_format_of(x, (batch, channels // 2, *spatial))


@torch.library.register_fake("fastgen::gated_activation_backward")
def _(grad, x, condition, needs_condition):
    return empty_in_format_of(x, x.shape), x.new_empty(x.shape[:2] if needs_condition else (0,))


def needs_per_sample_gradient(condition, x, wanted):
    return bool(wanted and condition is not None and condition.dim() == 2 < x.dim())


def condition_gradient(condition, per_pixel, per_sample):
    """The gradient of whatever form of condition there was, from a backward op's two outputs."""
    return per_pixel if condition.dim() == per_pixel.dim() else per_sample


def _setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    x, condition = ctx.saved_tensors
    wants_condition = condition is not None and ctx.needs_input_grad[1]
    sums = needs_per_sample_gradient(condition, x, wants_condition)
    grad_x, grad_condition = torch.ops.fastgen.gated_activation_backward(grad, x, condition, sums)
    if not wants_condition:
        return grad_x, None
    return grad_x, condition_gradient(condition, grad_x, grad_condition)


torch.library.register_autograd("fastgen::gated_activation", _backward, setup_context=_setup)


def second_derivatives(v, grad, x, condition):
    """For <v, backward(grad, x, condition)>: its gradients by grad and by x."""
    spread = (
        None
        if condition is None
        else condition.reshape(condition.shape + (1,) * (x.dim() - condition.dim()))
    )
    a, b = (x if spread is None else x + spread).chunk(2, dim=1)
    va, vb = v.chunk(2, dim=1)
    t, s = torch.tanh(a), torch.sigmoid(b)
    dt, ds = 1 - t * t, s * (1 - s)
    by_grad = va * dt * s + vb * t * ds
    by_a = grad * (vb * dt * ds - 2 * va * t * dt * s)
    by_b = grad * (va * dt * ds + vb * t * ds * (1 - 2 * s))
    return by_grad, torch.cat([by_a, by_b], dim=1)


def _setup_backward(ctx, inputs, output):
    grad, x, condition, ctx.needs_condition = inputs
    ctx.save_for_backward(grad, x, condition)


def total_cotangent(v_x, v_condition, x, needs_condition):
    """Cotangents of a backward op's two outputs as one for grad_x: the second is its sum."""
    if not needs_condition or v_condition is None:
        return v_x
    spread = v_condition.reshape(v_condition.shape + (1,) * (x.dim() - 2)).expand_as(x)
    return spread if v_x is None else v_x + spread


def _backward_backward(ctx, v_x, v_condition):
    grad, x, condition = ctx.saved_tensors
    v = total_cotangent(v_x, v_condition, x, ctx.needs_condition)
    by_grad, by_x = second_derivatives(v, grad, x, condition)
    if condition is None or not ctx.needs_input_grad[2]:
        return by_grad, by_x, None, None
    per_sample = by_x.sum(tuple(range(2, x.dim()))) if x.dim() > 2 else by_x
    return by_grad, by_x, condition_gradient(condition, by_x, per_sample), None


torch.library.register_autograd(
    "fastgen::gated_activation_backward", _backward_backward, setup_context=_setup_backward
)
