"""bernoulli_nll: the negative log-likelihood of pixels under Bernoulli logits, per sample."""

import torch
from torch import Tensor

from fastgen import _backends
from fastgen.ops import _autograd, _likelihoods
from fastgen.reference import bernoulli_nll as reference
from fastgen.reference.memory_format import empty_in_format_of


def _example(device):
    logits = torch.linspace(-4, 4, 105, device=device).reshape(3, 35)
    return logits, (logits.flip(1) > 0).to(logits.dtype)


def _example_backward(device):
    logits, target = _example(device)
    return logits[:, 0].exp(), logits, target, [True, True]


OP = _backends.define(
    "bernoulli_nll(Tensor logits, Tensor target) -> Tensor nll",
    reference.bernoulli_nll,
    triton="bernoulli_nll:bernoulli_nll",
    example=_example,
)
BACKWARD = _backends.define(
    "bernoulli_nll_backward(Tensor grad_nll, Tensor logits, Tensor target, bool[] needs)"
    " -> (Tensor grad_logits, Tensor grad_target)",
    reference.bernoulli_nll_backward,
    stem="bernoulli_nll",
    triton="bernoulli_nll:bernoulli_nll_backward",
    example=_example_backward,
)


def bernoulli_nll(logits: Tensor, target: Tensor) -> Tensor:
    """-log p(target) of independent Bernoulli variables, ``sum(softplus(x) - x y)`` over all but
    the first axis, in nats: binary cross-entropy with logits, summed per sample.

    Args:
        logits: (B, ...), float32, float64, bfloat16 or float16; sums are in float32 at least.
        target: logits' shape: uint8 or bool zeros and ones, or floats in [0, 1] (logits' dtype or
            float32), also between 0 and 1, the expected number then.

    Returns:
        (B,), float32, or float64 for float64 logits. Differentiable in logits and float targets.
        Infinite logits are sure: 0 where right, infinity where wrong.

    Raises:
        TypeError: a dtype that is none of these.
        ValueError: shapes or devices that differ; a target outside [0, 1] (on a GPU, where asking
            would wait for the device, that sample's result is NaN instead).

    Source: Kingma and Welling, Auto-Encoding Variational Bayes, 2014, appendix C.1.
    """
    _likelihoods.check_logits("bernoulli_nll", "logits", logits, target)
    return OP(logits, target)


@torch.library.register_fake("fastgen::bernoulli_nll")
def _(logits, target):
    return _likelihoods.empty_per_sample(logits)


@torch.library.register_fake("fastgen::bernoulli_nll_backward")
def _(grad_nll, logits, target, needs):
    return tuple(
        empty_in_format_of(t, t.shape) if need else logits.new_empty(0)
        for t, need in zip((logits, target), needs, strict=True)
    )


_autograd.by_backward_op("bernoulli_nll")
_autograd.second_derivatives("bernoulli_nll", reference.bernoulli_nll_backward)
