"""masked_conv2d: a "same" 2-D convolution whose masked taps are skipped, not multiplied by zero."""

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from fastgen import _backends
from fastgen.ops import _checks
from fastgen.reference import masked_conv2d as reference
from fastgen.reference.memory_format import empty_in_format_of


def _example(device):
    x = torch.linspace(-1, 1, 360, device=device).reshape(2, 6, 5, 6)
    weight = torch.linspace(1, -1, 648, device=device).reshape(12, 6, 3, 3)
    colour = torch.ones(12, 6, 3, 3)
    colour[:6, 3:] = 0
    return (
        x,
        weight,
        weight[:, 0, 0, 0].contiguous(),
        *TapPlan(colour, weight.shape).on(x.device),
        [1, 1],
    )


def _example_backward(device):
    x, weight, _, taps, partial, dilation = _example(device)
    grad = torch.linspace(2, -1, 720, device=device).reshape(2, 12, 5, 6)
    return grad, x, weight, taps, partial, dilation, [True, True, True]


OP = _backends.define(
    "masked_conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor taps, Tensor partial,"
    " int[2] dilation) -> Tensor",
    reference.masked_conv2d,
    triton="masked_conv2d:masked_conv2d",
    example=_example,
)
BACKWARD = _backends.define(
    "masked_conv2d_backward(Tensor grad, Tensor x, Tensor weight, Tensor taps, Tensor partial,"
    " int[2] dilation, bool[3] needs) -> (Tensor, Tensor, Tensor)",
    reference.masked_conv2d_backward,
    stem="masked_conv2d",
    triton="masked_conv2d:masked_conv2d_backward",
    example=_example_backward,
)
PLAN = _backends.define(
    "masked_conv2d_plan(Tensor mask, Tensor weight) -> (Tensor, Tensor)",
    lambda mask, weight: _plan_kernel(mask, weight),
    stem="masked_conv2d",
    every_device=True,
)


class TapPlan:
    """Which taps of a convolution are unmasked, digested once for all backends.

    Layers hold one; `masked_conv2d(mask=...)` takes one in place of a mask.

    Args:
        mask: bool or 0/1 tensor, broadcastable to `weight_shape`. Read once; may be on any device.
        weight_shape: (out, in, kh, kw).

    Raises:
        TypeError: mask is not a tensor.
        ValueError: the mask does not broadcast, or holds values other than 0 and 1; a kernel side
            is even.
    """

    def __init__(self, mask: Tensor, weight_shape):
        self.weight_shape = tuple(weight_shape)
        if len(self.weight_shape) != 4:
            raise ValueError(
                "fastgen.masked_conv2d: weight must be (out, in, kh, kw), got shape "
                f"{self.weight_shape}; a 1-D kernel is (out, in, 1, k)"
            )
        out, in_, kh, kw = self.weight_shape
        if kh % 2 == 0 or kw % 2 == 0:
            raise ValueError(
                f"fastgen.masked_conv2d: weight must have an odd kernel, got {(kh, kw)} in shape "
                f"{self.weight_shape}; pad the kernel with a masked row or column"
            )
        full = _checked_mask(mask, self.weight_shape).permute(2, 3, 0, 1).reshape(kh * kw, out, in_)
        unmasked = full.sum((1, 2))
        # the device is named for callers inside `with torch.device(...)`
        taps, partial = torch.zeros(kh * kw + 1, 3, dtype=torch.int32, device="cpu"), []
        for tap in unmasked.nonzero()[:, 0].tolist():
            index = -1
            if unmasked[tap] < out * in_:
                index = len(partial)
                partial.append(full[tap].to(torch.uint8))
            taps[0, 0] += 1
            row = (tap // kw, tap % kw, index)
            taps[taps[0, 0]] = torch.tensor(row, dtype=torch.int32, device="cpu")
        taps[0, 1] = len(partial)
        stacked = torch.stack(partial) if partial else full.new_zeros(0, out, in_).to(torch.uint8)
        self._tensors = {torch.device("cpu"): (taps, stacked)}

    def on(self, device) -> tuple[Tensor, Tensor]:
        """(taps, partial) on `device`; copied there once.

        taps: int32 (kh*kw + 1, 3). Row 0 is (T, P, 0); rows 1..T are (ky, kx, p) in raster order,
        p the index in `partial` or -1 where every (out, in) pair of the tap is unmasked.
        partial: uint8 (P, out, in), 1 = unmasked.
        """
        if device not in self._tensors:
            taps, partial = self._tensors[torch.device("cpu")]
            self._tensors[device] = (taps.to(device), partial.to(device))
        return self._tensors[device]

    def __getstate__(self):
        cpu = torch.device("cpu")
        return {"weight_shape": self.weight_shape, "_tensors": {cpu: self._tensors[cpu]}}


def _checked_mask(mask, weight_shape) -> Tensor:
    """The mask as bool, on the CPU, expanded to the weight's shape."""
    if not isinstance(mask, Tensor):
        raise TypeError(
            "fastgen.masked_conv2d: mask must be a tensor or a fastgen.TapPlan, "
            f"got {type(mask).__name__}; pass torch.tensor(mask)"
        )
    cpu = mask.detach().cpu()
    if cpu.dtype != torch.bool and not bool(((cpu == 0) | (cpu == 1)).all()):
        wrong = cpu[(cpu != 0) & (cpu != 1)][0].item()
        raise ValueError(
            f"fastgen.masked_conv2d: mask must hold 0 and 1 only, got {wrong}; "
            "fold other factors into the weight"
        )
    try:
        return cpu.bool().expand(weight_shape)
    except RuntimeError:
        raise ValueError(
            f"fastgen.masked_conv2d: mask must broadcast to the weight's shape "
            f"{tuple(weight_shape)}, got {tuple(mask.shape)}; use (kh, kw), (1, 1, kh, kw) or "
            "(out, in, kh, kw)"
        ) from None


_plans = WeakIdKeyDictionary()  # mask -> (its content when read, plan)


def _plan_of(mask, weight_shape) -> TapPlan:
    """The plan of a bare mask: made at the first call, kept while the mask lives unchanged."""
    if isinstance(mask, TapPlan):
        if mask.weight_shape != tuple(weight_shape):
            raise ValueError(
                f"fastgen.masked_conv2d: mask is a TapPlan of weight shape {mask.weight_shape}, "
                f"got a weight of {tuple(weight_shape)}; make one plan per weight shape"
            )
        return mask
    if not isinstance(mask, Tensor):
        _checked_mask(mask, weight_shape)
    content, plan = _plans.get(mask, (None, None))
    if plan is None or plan.weight_shape != tuple(weight_shape) or not _unchanged(mask, content):
        plan = TapPlan(mask, weight_shape)
        _plans[mask] = (mask.detach().clone(), plan)
    return plan


def plan_tensors(mask, weight) -> tuple[Tensor, Tensor]:
    """The (taps, partial) of a mask or a TapPlan, on the weight's device."""
    if isinstance(mask, Tensor) and torch.compiler.is_compiling():
        return torch.ops.fastgen.masked_conv2d_plan(mask, weight)
    return _plan_of(mask, weight.shape).on(weight.device)


def _plan_kernel(mask, weight):
    """A bare mask's plan inside a compiled graph, where shapes must not depend on its content:
    `partial` is padded to one row for each tap unless the mask is the same for all channels."""
    taps, partial = _plan_of(mask, weight.shape).on(weight.device)
    rows = _plan_rows(mask, weight)
    padded = partial.new_zeros(rows, *weight.shape[:2])
    padded[: partial.shape[0]] = partial
    return taps.clone(), padded


def _plan_rows(mask, weight):
    same_for_all_channels = all(n == 1 for n in mask.shape[:-2])
    return 0 if same_for_all_channels else weight.shape[2] * weight.shape[3]


def _unchanged(mask, content):
    # A few dozen numbers: comparing them costs less than the trust in a version counter, which
    # misses writes through `.data`.
    same_kind = mask.device == content.device and mask.dtype == content.dtype
    return same_kind and torch.equal(mask, content)


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    mask: "Tensor | TapPlan",
    dilation: int | tuple[int, int] = 1,
) -> Tensor:
    """``conv2d(x, weight * mask, bias, padding="same", dilation=dilation)`` at the cost of the
    unmasked taps alone.

    A masked tap takes no part: NaN there, in x or weight, does not reach the output, and its
    weight's gradient is exactly 0. An output channel masked everywhere is its bias.

    Args:
        x: (B, in, H, W) float32, float64, bfloat16 or float16 (halves accumulate in float32).
            Channels-last inputs are used as they are; any strides work.
        weight: (out, in, kh, kw) with odd kh and kw; x's dtype and device.
        bias: (out,) or None.
        mask: bool or 0/1, broadcastable to the weight: (kh, kw), (1, 1, kh, kw),
            (out, in, kh, kw). May stay on the CPU. It is digested once and compared by content at
            later calls (for a mask on a GPU that is a synchronisation; a `TapPlan`, made once by
            `fastgen.TapPlan(mask, weight.shape)`, costs nothing per call and is what layers hold).
        dilation: one int or (vertical, horizontal).

    Returns:
        (B, out, H, W) in x's dtype and memory format. Differentiable twice. Follows the active
        autocast dtype, as convolutions do.

    Raises:
        TypeError: a dtype outside the four, or dtypes that differ.
        ValueError: rank, channels, an even kernel, the mask's shape or values, the dilation, or
            mixed devices.

    Source: van den Oord et al., Pixel Recurrent Neural Networks, 2016, section 3.4.
    """
    x, weight, bias = checked_arguments("masked_conv2d", x, weight, bias)
    taps, partial = plan_tensors(mask, weight)
    dilation = checked_dilation("masked_conv2d", dilation)
    return torch.ops.fastgen.masked_conv2d(x, weight, bias, taps, partial, dilation)


def checked_arguments(op, x, weight, bias):
    """x, weight and bias in the dtype they will be used in, after the checks of shape and kind."""
    for name, value in (("x", x), ("weight", weight), ("bias", bias)):
        if value is not None or name != "bias":
            _checks.float_tensor(op, name, value)
    dtype = _checks.autocast_dtype(x)
    if dtype is not None:
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    _checks.same_kind(op, "weight", weight, x)
    if x.dim() != 4:
        raise ValueError(
            f"fastgen.{op}: x must be (B, in, H, W), got {x.dim()} dimensions, {tuple(x.shape)}; "
            "add the missing ones with unsqueeze"
        )
    if weight.dim() != 4:
        raise ValueError(
            f"fastgen.{op}: weight must be (out, in, kh, kw), got shape {tuple(weight.shape)}"
            "; a 1-D kernel is (out, in, 1, k)"
        )
    if x.shape[1] != weight.shape[1]:
        raise ValueError(
            f"fastgen.{op}: x must have the weight's {weight.shape[1]} input channels, got "
            f"{x.shape[1]} in x {tuple(x.shape)} and weight {tuple(weight.shape)}; "
            "change one of them"
        )
    if bias is not None:
        _checks.same_kind(op, "bias", bias, x)
        if tuple(bias.shape) != (weight.shape[0],):
            raise ValueError(
                f"fastgen.{op}: bias must be ({weight.shape[0]},), one per output channel, "
                f"got {tuple(bias.shape)}; pass bias=None for none"
            )
    return x, weight, bias


def checked_dilation(op, dilation):
    pair = tuple(dilation) if isinstance(dilation, (tuple, list)) else (dilation, dilation)
    if len(pair) != 2 or not all(isinstance(d, int) and 1 <= d < 2**31 for d in pair):
        raise ValueError(
            f"fastgen.{op}: dilation must be an int in 1 .. 2**31 - 1 or a pair of them, got "
            f"{dilation!r}; 1 is an ordinary convolution"
        )
    return list(pair)


def output_shape(x, weight):
    torch._check(
        x.dim() == 4 and weight.dim() == 4 and x.shape[1] == weight.shape[1],
        lambda: f"fastgen.masked_conv2d: shapes {tuple(x.shape)} and {tuple(weight.shape)}",
    )
    return (x.shape[0], weight.shape[0], x.shape[2], x.shape[3])


@torch.library.register_fake("fastgen::masked_conv2d_plan")
def _(mask, weight):
    taps = weight.new_empty((weight.shape[2] * weight.shape[3] + 1, 3), dtype=torch.int32)
    shape = (_plan_rows(mask, weight), *weight.shape[:2])
    return taps, weight.new_empty(shape, dtype=torch.uint8)


@torch.library.register_fake("fastgen::masked_conv2d")
def _(x, weight, bias, taps, partial, dilation):
    return empty_in_format_of(x, output_shape(x, weight))


@torch.library.register_fake("fastgen::masked_conv2d_backward")
def _(grad, x, weight, taps, partial, dilation, needs):
    return (
        empty_in_format_of(x, x.shape if needs[0] else (0,)) if needs[0] else x.new_empty(0),
        empty_in_format_of(weight, weight.shape) if needs[1] else x.new_empty(0),
        x.new_empty(weight.shape[:1] if needs[2] else (0,)),
    )


def convolution_gradients(ctx, grad, x, weight, taps, partial):
    """Gradients of x, weight and bias, None for those nobody wants."""
    needs = [bool(ctx.needs_input_grad[i]) for i in range(3)]
    gradients = torch.ops.fastgen.masked_conv2d_backward(
        grad, x, weight, taps, partial, ctx.dilation, needs
    )
    return [g if need else None for g, need in zip(gradients, needs, strict=True)]


def _setup(ctx, inputs, output):
    x, weight, _, taps, partial, ctx.dilation = inputs
    ctx.save_for_backward(x, weight, taps, partial)


def _backward(ctx, grad):
    return (*convolution_gradients(ctx, grad, *ctx.saved_tensors), None, None, None)


torch.library.register_autograd("fastgen::masked_conv2d", _backward, setup_context=_setup)


def _setup_backward(ctx, inputs, output):
    grad, x, weight, taps, partial, ctx.dilation, ctx.needs = inputs
    ctx.save_for_backward(grad, x, weight, taps, partial)


def _backward_backward(ctx, v_x, v_weight, v_bias):
    # The three gradients are bilinear in (grad, x, weight), so theirs are convolutions again.
    grad, x, weight, taps, partial = ctx.saved_tensors
    plan = (taps, partial, ctx.dilation)
    by_grad = by_x = by_weight = None
    if ctx.needs[0] and v_x is not None:
        by_grad = torch.ops.fastgen.masked_conv2d(v_x, weight, None, *plan)
        by_weight = torch.ops.fastgen.masked_conv2d_backward(
            grad, v_x, weight, *plan, [False, True, False]
        )[1]
    if ctx.needs[1] and v_weight is not None:
        through_weight = torch.ops.fastgen.masked_conv2d(x, v_weight, None, *plan)
        by_grad = through_weight if by_grad is None else by_grad + through_weight
        by_x = torch.ops.fastgen.masked_conv2d_backward(
            grad, x, v_weight, *plan, [True, False, False]
        )[0]
    if ctx.needs[2] and v_bias is not None:
        through_bias = v_bias[:, None, None].expand_as(grad)
        by_grad = through_bias if by_grad is None else by_grad + through_bias
    return by_grad, by_x, by_weight, None, None, None, None


torch.library.register_autograd(
    "fastgen::masked_conv2d_backward", _backward_backward, setup_context=_setup_backward
)
