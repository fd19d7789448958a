"""reparam_kl in plain PyTorch, in float64.

With l the posterior's log-variance and (m, p) the prior's mean and log-variance,

    z  = mu + exp(l / 2) eps
    KL = 1/2 (expm1(l - p) - (l - p) + (mu - m)^2 exp(-p))   for each latent variable

whose derivatives are, for gradients g of z and k of KL,

    by mu  g + k (mu - m) exp(-p)                by m  -k (mu - m) exp(-p)
    by l   1/2 (g eps exp(l / 2) + k expm1(l - p))
    by p   -k/2 (expm1(l - p) + (mu - m)^2 exp(-p))
"""

import torch
import torch.nn.functional as F

from fastgen.reference.memory_format import in_format_of
from fastgen.reference.per_sample import per_sample, spread
from fastgen.reference.philox import element_normals
from fastgen.reference.seeds import seed_or_draw
from fastgen.reference.zero_product import zero_product

LOGVAR, LOGSTD, SOFTPLUS = range(3)


def log_variance(raw, parametrization):
    """raw is the log-variance, the log of the standard deviation, or what softplus makes it of."""
    if parametrization == LOGVAR:
        return raw
    if parametrization == LOGSTD:
        return 2 * raw
    # softplus(x) is exp(x) to float64's last digit below -40, where its logarithm would be -inf
    return 2 * torch.where(raw < -40, raw, F.softplus(raw).log())


def log_variance_slope(raw, parametrization):
    if parametrization == LOGVAR:
        return torch.ones_like(raw)
    if parametrization == LOGSTD:
        return torch.full_like(raw, 2)
    return torch.where(raw < -40, 2, 2 * torch.sigmoid(raw) / F.softplus(raw))


def _clamped(logvar, low, high):
    return logvar.clamp(low, high) if low is not None or high is not None else logvar


def _prior_rows(prior, index, like):
    """A prior (R, *latent) as one row for each sample; R is 1 or B or, with an index, anything."""
    prior = prior.double()
    if index is not None:
        outside = index[(index < 0) | (index >= len(prior))]
        if len(outside):
            raise ValueError(
                f"fastgen.reparam_kl: prior_index must lie in 0 .. {len(prior) - 1}, the rows of "
                f"prior_mu, got {outside[0].item()}; check the labels"
            )
        return prior[index]
    return prior.expand(like.shape)


def _difference(a, b):
    """a - b, and 0 for two equal infinities."""
    return torch.where(a == b, 0, a - b)


def _product(a, b):
    """a b, and 0 wherever one is 0."""
    return torch.where(b == 0, 0, zero_product(a, b))


def _kl_terms(mu, logvar, prior_mu, prior_logvar, prior_index, parametrization):
    """(D, expm1(D), r, 1/variance of the prior): KL = (expm1(D) - D + r^2 w) / 2."""
    if prior_mu is None:
        return logvar, torch.expm1(logvar), mu, torch.ones_like(mu)
    m = _prior_rows(prior_mu, prior_index, mu)
    p = log_variance(_prior_rows(prior_logvar, prior_index, mu), parametrization)
    d = _difference(logvar, p)
    return d, torch.expm1(d), _difference(mu, m), torch.exp(-p)


def _kl(d, e, r, w):
    value = 0.5 * (e - d + _product(r * r, w))
    return torch.where(d == torch.inf, torch.inf, value)  # infinity less infinity


def _eps(eps, seed, mu, samples):
    shape = (samples, *mu.shape) if samples > 1 else mu.shape
    if eps is not None:
        return eps.double()
    return element_normals(
        int(seed), shape.numel() if samples == 1 else samples * mu.numel(), mu.device
    ).view(shape)


def reparam_kl(
    mu, logvar, prior_mu, prior_logvar, prior_index, eps, seed,
    samples, clamp_low, clamp_high, free_bits, parametrization,
):  # fmt: skip
    # noise that was given draws nothing from the generator
    used_seed = seed_or_draw(
        seed if eps is None else mu.new_zeros((), dtype=torch.int64), mu.device
    )
    mean = mu.double()
    wide = _clamped(log_variance(logvar.double(), parametrization), clamp_low, clamp_high)
    noise = _eps(eps, used_seed, mean, samples)
    z = mean + _product(torch.exp(wide / 2), noise)
    kl = _kl(*_kl_terms(mean, wide, prior_mu, prior_logvar, prior_index, parametrization))
    if free_bits > 0:
        kl = torch.where(kl < free_bits, free_bits, kl)
    z = in_format_of(z, mu) if samples == 1 else z.to(mu.dtype)
    return z, per_sample(kl, mu.dtype), used_seed


def reparam_kl_backward(
    grad_z, grad_kl, mu, logvar, prior_mu, prior_logvar, prior_index, eps, z, used_seed,
    samples, clamp_low, clamp_high, free_bits, parametrization, needs,
):  # fmt: skip
    mean, raw = mu.double(), logvar.double()
    unclamped = log_variance(raw, parametrization)
    wide = _clamped(unclamped, clamp_low, clamp_high)
    d, e, r, w = _kl_terms(mean, wide, prior_mu, prior_logvar, prior_index, parametrization)
    k = torch.zeros_like(mean)
    if grad_kl is not None:
        k = k + spread(grad_kl, mean)
        if free_bits > 0:
            k = torch.where(_kl(d, e, r, w) < free_bits, 0, k)
    by_mu, by_logvar = _product(k, _product(r, w)), _product(k, e) / 2
    by_prior_mu = -by_mu
    by_prior_logvar = -0.5 * _product(k, e + _product(r * r, w))
    if grad_z is not None:
        g = grad_z.double()
        through = _product(g, _product(_eps(eps, used_seed, mean, samples), torch.exp(wide / 2)))
        if samples > 1:
            g, through = g.sum(0), through.sum(0)
        by_mu, by_logvar = by_mu + g, by_logvar + through / 2
    if clamp_low is not None:
        by_logvar = torch.where(unclamped < clamp_low, 0, by_logvar)
    if clamp_high is not None:
        by_logvar = torch.where(unclamped > clamp_high, 0, by_logvar)
    by_logvar = _product(by_logvar, log_variance_slope(raw, parametrization))
    nothing = mu.new_empty(0)
    return (
        in_format_of(by_mu, mu) if needs[0] else nothing,
        in_format_of(by_logvar, logvar) if needs[1] else nothing,
        _summed_to(by_prior_mu, prior_mu, prior_index) if needs[2] else nothing,
        _summed_to(
            _product(by_prior_logvar, log_variance_slope(
                _prior_rows(prior_logvar, prior_index, mean), parametrization)),
            prior_logvar, prior_index,
        ) if needs[3] else nothing,
    )  # fmt: skip


def _summed_to(grad, prior, index):
    if index is not None:
        return (
            torch.zeros_like(prior, dtype=torch.float64).index_add(0, index, grad).to(prior.dtype)
        )
    rows = grad.sum(0, keepdim=True) if len(prior) == 1 else grad
    return rows.to(prior.dtype)
