"""gated_masked_conv2d: a masked convolution and the gate behind it, in one call."""

import torch
from torch import Tensor

from fastgen import _backends
from fastgen.ops import gated_activation as gate
from fastgen.ops import masked_conv2d as convolution
from fastgen.reference import gated_masked_conv2d as reference
from fastgen.reference.memory_format import empty_in_format_of


def _example(device):
    x, weight, bias, *plan = convolution._example(device)
    return x, weight, bias, bias.expand(2, -1), *plan


OP = _backends.define(
    "gated_masked_conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor? condition, Tensor taps,"
    " Tensor partial, int[2] dilation) -> (Tensor, Tensor)",
    reference.gated_masked_conv2d,
    triton="gated_masked_conv2d:gated_masked_conv2d",
    example=_example,
)
BACKWARD = _backends.define(
    "gated_masked_conv2d_backward(Tensor grad_y, Tensor? grad_pre, Tensor pre, Tensor? condition,"
    " bool needs_condition) -> (Tensor, Tensor)",
    reference.gated_masked_conv2d_backward,
    stem="gated_masked_conv2d",
    triton="gated_masked_conv2d:gated_masked_conv2d_backward",
)


def gated_masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    condition: Tensor | None = None,
    *,
    mask: "Tensor | convolution.TapPlan",
    dilation: int | tuple[int, int] = 1,
) -> tuple[Tensor, Tensor]:
    """``pre = masked_conv2d(x, weight, bias, mask=mask)`` and
    ``y = gated_activation(pre, condition)``, gated while the convolution's result is in cache.

    Args:
        x: (B, in, H, W).
        weight: (2C, in, kh, kw), odd kh and kw.
        bias: (2C,) or None.
        condition: None, (B, 2C), or (B, 2C, H, W); joins `pre` inside the gate only.
        mask, dilation: as in `fastgen.masked_conv2d`.

    Returns:
        (y, pre): (B, C, H, W) and (B, 2C, H, W), in x's dtype and memory format. `pre` is what the
        vertical stack of a gated PixelCNN hands to the horizontal one. Differentiable twice.

    Raises:
        TypeError, ValueError: as `fastgen.masked_conv2d` and `fastgen.gated_activation`; an odd
        number of output channels.

    Source: van den Oord et al., Conditional Image Generation with PixelCNN Decoders, 2016, fig. 2.
    """
    name = "gated_masked_conv2d"
    x, weight, bias = convolution.checked_arguments(name, x, weight, bias)
    if weight.shape[0] % 2:
        raise ValueError(
            f"fastgen.{name}: weight must have an even number of output channels, got "
            f"{weight.shape[0]}; give two for each channel of y"
        )
    if condition is not None:
        shape = (x.shape[0], weight.shape[0], *x.shape[2:])
        condition = gate.checked_condition(name, condition, x, shape)
    taps, partial = convolution.plan_tensors(mask, weight)
    dilation = convolution.checked_dilation(name, dilation)
    return torch.ops.fastgen.gated_masked_conv2d(
        x, weight, bias, condition, taps, partial, dilation
    )


@torch.library.register_fake("fastgen::gated_masked_conv2d")
def _(x, weight, bias, condition, taps, partial, dilation):
    batch, channels, *size = convolution.output_shape(x, weight)
    pre = empty_in_format_of(x, (batch, channels, *size))
    return empty_in_format_of(pre, (batch, channels // 2, *size)), pre


@torch.library.register_fake("fastgen::gated_masked_conv2d_backward")
def _(grad_y, grad_pre, pre, condition, needs_condition):
    return (
        empty_in_format_of(pre, pre.shape),
        pre.new_empty(pre.shape[:2] if needs_condition else (0,)),
    )


def _setup(ctx, inputs, output):
    x, weight, _, condition, taps, partial, ctx.dilation = inputs
    ctx.save_for_backward(x, weight, condition, taps, partial, output[1])
    ctx.set_materialize_grads(False)


def _through_gate(ctx, grad_y, grad_pre, pre, condition):
    """The gradients of `pre`, from both outputs, and of the condition."""
    if grad_y is None:
        return grad_pre, None
    backward = torch.ops.fastgen.gated_masked_conv2d_backward
    if condition is None or not ctx.needs_input_grad[3]:
        return backward(grad_y, grad_pre, pre, condition, False)[0], None
    if condition.dim() == 2:
        return backward(grad_y, grad_pre, pre, condition, True)
    # a per-pixel condition gets what comes through the gate, without grad_pre
    gradient, _ = backward(grad_y, None, pre, condition, False)
    return gradient if grad_pre is None else gradient + grad_pre, gradient


def _backward(ctx, grad_y, grad_pre):
    x, weight, condition, taps, partial, pre = ctx.saved_tensors
    total, grad_condition = _through_gate(ctx, grad_y, grad_pre, pre, condition)
    if total is None:
        return (None,) * 7
    gradients = convolution.convolution_gradients(ctx, total, x, weight, taps, partial)
    return (*gradients, grad_condition, None, None, None)


torch.library.register_autograd("fastgen::gated_masked_conv2d", _backward, setup_context=_setup)


def _setup_backward(ctx, inputs, output):
    grad_y, grad_pre, pre, condition, ctx.needs_condition = inputs
    ctx.has_grad_pre = grad_pre is not None
    ctx.save_for_backward(grad_y, pre, condition)


def _backward_backward(ctx, v_pre, v_condition):
    grad_y, pre, condition = ctx.saved_tensors
    v = gate.total_cotangent(v_pre, v_condition, pre, ctx.needs_condition)
    by_grad, by_pre = gate.second_derivatives(v, grad_y, pre, condition)
    by_condition = None
    if condition is not None and ctx.needs_input_grad[3]:
        per_sample = by_pre.sum((2, 3))
        by_condition = gate.condition_gradient(condition, by_pre, per_sample)
    return by_grad, v_pre if ctx.has_grad_pre else None, by_pre, by_condition, None


torch.library.register_autograd(
    "fastgen::gated_masked_conv2d_backward", _backward_backward, setup_context=_setup_backward
)
