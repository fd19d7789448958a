"""gaussian_nll in plain PyTorch, in float64."""

import math

import torch

from fastgen.reference.memory_format import in_format_of
from fastgen.reference.per_sample import per_sample, spread
from fastgen.reference.zero_product import zero_product


def _terms(mean, target, logvar, fixed_logvar):
    if logvar is None:
        wide = torch.full_like(mean, fixed_logvar, dtype=torch.float64)
    else:
        wide = (logvar.reshape(()) if logvar.numel() == 1 else logvar).double().expand(mean.shape)
    return target.double() - mean.double(), wide, torch.exp(-wide)


def gaussian_nll(mean, target, logvar, fixed_logvar):
    r, wide, w = _terms(mean, target, logvar, fixed_logvar)
    nll = 0.5 * (math.log(2 * math.pi) + wide + zero_product(r * r, w))
    return per_sample(nll, mean.dtype)


def gaussian_nll_backward(grad_nll, mean, target, logvar, fixed_logvar, needs):
    r, _, w = _terms(mean, target, logvar, fixed_logvar)
    g = spread(grad_nll, mean)
    by_target = g * zero_product(r, w)
    nothing = mean.new_empty(0)
    by_logvar = nothing
    if needs[2]:
        by_logvar = 0.5 * g * (1 - zero_product(r * r, w))
        by_logvar = by_logvar.sum().view(logvar.shape) if logvar.numel() == 1 else by_logvar
        by_logvar = in_format_of(by_logvar, logvar)
    return (
        in_format_of(-by_target, mean) if needs[0] else nothing,
        in_format_of(by_target, target) if needs[1] else nothing,
        by_logvar,
    )
