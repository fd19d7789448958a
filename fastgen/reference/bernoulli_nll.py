"""bernoulli_nll in plain PyTorch, in float64."""

import torch
import torch.nn.functional as F

from fastgen.reference.memory_format import in_format_of
from fastgen.reference.per_sample import per_sample, spread
from fastgen.reference.zero_product import zero_product


def _target(target):
    y = target.double()
    outside = ~((y >= 0) & (y <= 1))
    if outside.any():
        raise ValueError(
            f"fastgen.bernoulli_nll: target must lie in 0 .. 1, got {y[outside][0].item():g}; "
            "scale images to that range"
        )
    return y


def bernoulli_nll(logits, target):
    x, y = logits.double(), _target(target)
    nll = zero_product(y, F.softplus(-x, threshold=800)) + zero_product(
        1 - y, F.softplus(x, threshold=800)
    )
    return per_sample(nll, logits.dtype)


def bernoulli_nll_backward(grad_nll, logits, target, needs):
    x, y = logits.double(), _target(target)
    g = spread(grad_nll, x)
    nothing = logits.new_empty(0)
    return (
        in_format_of(g * (torch.sigmoid(x) - y), logits) if needs[0] else nothing,
        in_format_of(g * -x, target) if needs[1] else nothing,
    )
