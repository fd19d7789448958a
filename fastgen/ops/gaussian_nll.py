"""gaussian_nll: the negative log-density of values under Gaussians, per sample."""

import math
import numbers

import torch
from torch import Tensor

from fastgen import _backends
from fastgen.ops import _autograd, _checks, _likelihoods
from fastgen.reference import gaussian_nll as reference
from fastgen.reference.memory_format import empty_in_format_of


def _example(device):
    mean = torch.linspace(-2, 2, 105, device=device).reshape(3, 35)
    return mean, mean.flip(1), mean.cos(), 0.0


def _example_backward(device):
    mean, target, logvar, constant = _example(device)
    return mean[:, 0].exp(), mean, target, logvar, constant, [True, True, True]


OP = _backends.define(
    "gaussian_nll(Tensor mean, Tensor target, Tensor? logvar, float fixed_logvar) -> Tensor nll",
    reference.gaussian_nll,
    triton="gaussian_nll:gaussian_nll",
    example=_example,
)
BACKWARD = _backends.define(
    "gaussian_nll_backward(Tensor grad_nll, Tensor mean, Tensor target, Tensor? logvar, "
    "float fixed_logvar, bool[] needs)"
    " -> (Tensor grad_mean, Tensor grad_target, Tensor grad_logvar)",
    reference.gaussian_nll_backward,
    stem="gaussian_nll",
    triton="gaussian_nll:gaussian_nll_backward",
    example=_example_backward,
)


def gaussian_nll(mean: Tensor, target: Tensor, logvar: float | Tensor) -> Tensor:
    """-log N(target; mean, exp(logvar)), ``1/2 sum(log(2 pi) + l + (y - m)^2 exp(-l))`` over all
    but the first axis, in nats. A density: below 0 where narrow.

    Args:
        mean: (B, ...), float32, float64, bfloat16 or float16; sums are in float32 at least.
        target: mean's shape; mean's dtype or float32.
        logvar: a float; a tensor of one element, such as a learned parameter; or one broadcastable
            to mean's shape. A tensor has mean's dtype or float32.

    Returns:
        (B,), float32, or float64 for a float64 mean. Differentiable in all three.

    Raises:
        TypeError: a dtype that is none of these.
        ValueError: shapes that do not fit, mixed devices.

    Source: Kingma and Welling, Auto-Encoding Variational Bayes, 2014, appendix C.2; a learned
    scalar by Rybkin et al., Simple and Effective VAE Training with Calibrated Decoders, 2021.
    """
    _likelihoods.check_logits("gaussian_nll", "mean", mean, target, integers=False)
    if isinstance(logvar, Tensor):
        return OP(mean, target, _checked_logvar(logvar, mean), 0.0)
    if isinstance(logvar, bool) or not isinstance(logvar, numbers.Real) or math.isnan(logvar):
        raise TypeError(
            f"fastgen.gaussian_nll: logvar must be a number or a tensor, got {logvar!r}; 0 is a "
            "variance of 1"
        )
    return OP(mean, target, None, float(logvar))


def _checked_logvar(logvar, mean):
    _checks.float_tensor("gaussian_nll", "logvar", logvar)
    if logvar.dtype not in (mean.dtype, torch.float32):
        raise TypeError(
            f"fastgen.gaussian_nll: logvar must be of mean's dtype {mean.dtype} or float32, got "
            f"{logvar.dtype}; convert it with logvar.to(mean.dtype)"
        )
    if logvar.device != mean.device:
        raise ValueError(
            f"fastgen.gaussian_nll: logvar must be on mean's device {mean.device}, got "
            f"{logvar.device}; move it with logvar.to({str(mean.device)!r})"
        )
    if logvar.numel() == 1 or logvar.shape == mean.shape:
        return logvar
    try:
        return logvar.expand(mean.shape)
    except RuntimeError:
        raise ValueError(
            f"fastgen.gaussian_nll: logvar must broadcast to mean's shape {tuple(mean.shape)}, got "
            f"{tuple(logvar.shape)}; give one value, or one for each of mean's"
        ) from None


@torch.library.register_fake("fastgen::gaussian_nll")
def _(mean, target, logvar, fixed_logvar):
    return _likelihoods.empty_per_sample(mean)


@torch.library.register_fake("fastgen::gaussian_nll_backward")
def _(grad_nll, mean, target, logvar, fixed_logvar, needs):
    return tuple(
        empty_in_format_of(t, t.shape) if need and t is not None else mean.new_empty(0)
        for t, need in zip((mean, target, logvar), needs, strict=True)
    )


_autograd.by_backward_op("gaussian_nll")
_autograd.second_derivatives("gaussian_nll", reference.gaussian_nll_backward)
