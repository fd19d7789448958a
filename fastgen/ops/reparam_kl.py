"""reparam_kl: a draw of a Gaussian posterior and its KL divergence from the prior, in one pass."""

import math
import numbers

import torch
from torch import Tensor

from fastgen import _backends
from fastgen.ops import _autograd, _checks, _seeds
from fastgen.reference import reparam_kl as reference
from fastgen.reference.memory_format import empty_in_format_of

PARAMETRIZATIONS = ("logvar", "logstd", "softplus")
_SETTINGS = "int samples, float? clamp_low, float? clamp_high, float free_bits, int parametrization"


def _example(device):
    mu = torch.linspace(-2, 2, 105, device=device).reshape(3, 35)
    seed = torch.full((), 7, dtype=torch.int64, device=device)
    return mu, mu.flip(1), None, None, None, None, seed, 1, None, None, 0.0, 0


def _example_backward(device):
    mu, logvar, *_, seed, samples, low, high, free_bits, parametrization = _example(device)
    z = reference.reparam_kl(*_example(device))[0]
    settings = (samples, low, high, free_bits, parametrization)
    needs = [True, True, False, False]
    return mu.cos(), mu[:, 0].exp(), mu, logvar, None, None, None, None, z, seed, *settings, needs


OP = _backends.define(
    "reparam_kl(Tensor mu, Tensor logvar, Tensor? prior_mu, Tensor? prior_logvar, "
    f"Tensor? prior_index, Tensor? eps, Tensor? seed, {_SETTINGS})"
    " -> (Tensor z, Tensor kl, Tensor used_seed)",
    reference.reparam_kl,
    triton="reparam_kl:reparam_kl",
    example=_example,
    tags=(torch.Tag.nondeterministic_seeded,),
)
BACKWARD = _backends.define(
    "reparam_kl_backward(Tensor? grad_z, Tensor? grad_kl, Tensor mu, Tensor logvar, "
    "Tensor? prior_mu, Tensor? prior_logvar, Tensor? prior_index, Tensor? eps, Tensor z, "
    f"Tensor used_seed, {_SETTINGS}, bool[] needs)"
    " -> (Tensor grad_mu, Tensor grad_logvar, Tensor grad_prior_mu, Tensor grad_prior_logvar)",
    reference.reparam_kl_backward,
    stem="reparam_kl",
    triton="reparam_kl:reparam_kl_backward",
    example=_example_backward,
)


def reparam_kl(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None = None,
    prior_logvar: Tensor | None = None,
    prior_index: Tensor | None = None,
    *,
    samples: int = 1,
    logvar_clamp: tuple[float | None, float | None] | None = None,
    free_bits: float = 0.0,
    parametrization: str = "logvar",
    seed: int | None = None,
    generator: torch.Generator | None = None,
    eps: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draws z from N(mu, exp(logvar)) by the reparameterisation ``z = mu + exp(logvar / 2) eps``,
    and the KL divergence of that Gaussian from the prior, ``1/2 sum(exp(l - p) - 1 - (l - p) +
    (mu - m)^2 exp(-p))``, in nats; the prior's mean m and log-variance p are 0 unless given.

    The noise is not stored: backward makes it again from the seed, or takes it out of z where that
    costs no more than a few digits. ``eps = randn(shape of z, seed=seed)``: the same numbers.
    Gradients reach mu, logvar and the prior, through z and through the divergence; of eps there are
    none. z is not to be written in place before backward.

    Args:
        mu: (B, *latent), float32, float64, bfloat16 or float16; halves compute in float32.
        logvar: like mu, or broadcastable with it.
        prior_mu, prior_logvar: a prior instead of N(0, I), both or neither: broadcastable to mu, or
            with `prior_index` a table (classes, *latent).
        prior_index: int64 (B,), the row of the table for each sample.
        samples: draws of z for each sample.
        logvar_clamp: (low, high), either None: bounds of the posterior's log-variance, after the
            parametrisation, with gradient 0 beyond and 1 at the bounds. (-30, 20) is a preset that
            never overflows.
        free_bits: nats; each latent variable's divergence counts as at least so much, and gets no
            gradient while below.
        parametrization: what `logvar` and `prior_logvar` hold: "logvar", "logstd" (half of it) or
            "softplus" (the standard deviation is its softplus).
        seed: 64 bit; generator: gives the seed; eps: the noise itself, z's shape and mu's dtype.
            At most one; with none the seed comes from the device's default generator.

    Returns:
        z: mu's shape, dtype and memory format; (samples, B, *latent) for more samples than one.
        kl: (B,), summed over the latent variables; float32, or float64 for float64.
        A log-variance of -inf gives z = mu and kl = inf, +inf an infinite z and kl; NaN stays in
        its own z and its sample's kl.

    Raises:
        TypeError: a dtype that is none of these, or dtypes that differ (not under autocast).
        ValueError: shapes that do not broadcast, one prior tensor of two, an index without tables
            or out of range (on a GPU that sample's kl is NaN instead), negative free_bits, reversed
            bounds, samples below 1, more than one of seed, generator and eps, mixed devices.

    Source: Kingma and Welling, Auto-Encoding Variational Bayes, 2014, eq. 10 and appendix B; free
    bits by Kingma et al., Improved Variational Inference with Inverse Autoregressive Flow, 2016.
    """
    mu, logvar = _posterior(mu, logvar)
    low, high = (None, None) if logvar_clamp is None else _checked_clamp(logvar_clamp)
    _check_settings(samples, free_bits, parametrization)
    if prior_mu is not None or prior_logvar is not None or prior_index is not None:
        prior_mu, prior_logvar = _prior(mu, prior_mu, prior_logvar, prior_index)
    if seed is not None or generator is not None:
        seed = _seeds.given_seed("reparam_kl", seed, generator, mu.device, eps=eps)
    if eps is not None:
        eps = _checked_eps(eps, mu, samples)
    z, kl, _ = OP(
        mu, logvar, prior_mu, prior_logvar, prior_index, eps, seed,
        samples, low, high, free_bits, PARAMETRIZATIONS.index(parametrization),
    )  # fmt: skip
    return z, kl


def _refuse(argument, expected, got, remedy, error=ValueError):
    raise error(f"fastgen.reparam_kl: {argument} {expected}, got {got}; {remedy}")


def _posterior(mu, logvar):
    _checks.float_tensor("reparam_kl", "mu", mu)
    _checks.float_tensor("reparam_kl", "logvar", logvar)
    if mu.dtype != logvar.dtype and _checks.autocast_dtype(mu) is not None:
        wide = torch.promote_types(mu.dtype, logvar.dtype)
        mu, logvar = mu.to(wide), logvar.to(wide)
    _checks.same_kind("reparam_kl", "logvar", logvar, mu, than="mu")
    if mu.shape != logvar.shape:
        try:
            mu, logvar = torch.broadcast_tensors(mu, logvar)
        except RuntimeError:
            _refuse(
                "logvar",
                f"must broadcast with mu {tuple(mu.shape)}",
                tuple(logvar.shape),
                "give it mu's shape",
            )
    if mu.dim() == 0:
        _refuse("mu", "must be (B, *latent)", "a scalar", "add the axis of samples")
    return mu, logvar


def _checked_clamp(clamp):
    remedy = "(-30, 20) is a good choice"
    if not isinstance(clamp, (tuple, list)) or len(clamp) != 2:
        _refuse("logvar_clamp", "must be (low, high)", repr(clamp), remedy)
    if not all(bound is None or isinstance(bound, numbers.Real) for bound in clamp):
        _refuse("logvar_clamp", "must hold numbers or None", repr(clamp), remedy)
    low, high = (None if bound is None else float(bound) for bound in clamp)
    if any(bound is not None and math.isnan(bound) for bound in (low, high)) or (
        low is not None and high is not None and low > high
    ):
        _refuse("logvar_clamp", "must have low <= high", repr(clamp), remedy)
    return low, high


def _check_settings(samples, free_bits, parametrization):
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        _refuse("samples", "must be an int >= 1", repr(samples), "1 gives z in mu's shape")
    if not isinstance(free_bits, numbers.Real) or not 0 <= free_bits < math.inf:
        _refuse("free_bits", "must be a number >= 0", repr(free_bits), "0 switches it off")
    if parametrization not in PARAMETRIZATIONS:
        expected = f"must be one of {', '.join(PARAMETRIZATIONS)}"
        _refuse("parametrization", expected, repr(parametrization), "choose what logvar holds")


def _prior(mu, prior_mu, prior_logvar, prior_index):
    """The prior's tensors as (rows, *latent); rows are 1 or B or, with an index, the classes."""
    given = {"prior_mu": prior_mu, "prior_logvar": prior_logvar}
    for name, value in given.items():
        if value is None:
            beside = "with prior_index" if prior_index is not None else "with its other half"
            _refuse(name, f"must come {beside}", "None", "give prior_mu and prior_logvar both")
        _checks.float_tensor("reparam_kl", name, value)
    if _checks.autocast_dtype(mu) is not None:
        prior_mu, prior_logvar = prior_mu.to(mu.dtype), prior_logvar.to(mu.dtype)
    for name, value in (("prior_mu", prior_mu), ("prior_logvar", prior_logvar)):
        _checks.same_kind("reparam_kl", name, value, mu, than="mu")
    if prior_index is not None:
        _check_index(mu, prior_mu, prior_logvar, prior_index)
        return prior_mu, prior_logvar
    prior_mu = _prior_rows(mu, "prior_mu", prior_mu)
    prior_logvar = _prior_rows(mu, "prior_logvar", prior_logvar)
    rows = max(len(prior_mu), len(prior_logvar))  # 1, or one for each sample
    return prior_mu.expand(rows, *mu.shape[1:]), prior_logvar.expand(rows, *mu.shape[1:])


def _prior_rows(mu, name, prior):
    try:
        fits = torch.broadcast_shapes(prior.shape, mu.shape) == mu.shape
    except RuntimeError:
        fits = False
    if not fits:
        remedy = "a table of classes needs prior_index"
        _refuse(name, f"must broadcast to mu {tuple(mu.shape)}", tuple(prior.shape), remedy)
    latent = mu.shape[1:]
    if prior.dim() < mu.dim() or prior.shape[0] == 1 != mu.shape[0]:  # one row for all samples
        row = prior if prior.dim() < mu.dim() else prior[0]
        return row.expand(latent)[None]
    return prior.expand(mu.shape)


def _check_index(mu, prior_mu, prior_logvar, index):
    if not isinstance(index, Tensor) or index.dtype != torch.int64:
        got = index.dtype if isinstance(index, Tensor) else type(index).__name__
        _refuse("prior_index", "must be an int64 tensor", got, "use .long()", TypeError)
    if index.shape != mu.shape[:1]:
        _refuse(
            "prior_index",
            f"must be ({mu.shape[0]},), one for each sample",
            tuple(index.shape),
            "pass the labels of the batch",
        )
    if index.device != mu.device:
        remedy = f"move it with prior_index.to({str(mu.device)!r})"
        _refuse("prior_index", f"must be on mu's device {mu.device}", index.device, remedy)
    for name, table in (("prior_mu", prior_mu), ("prior_logvar", prior_logvar)):
        if table.dim() != mu.dim() or table.shape[1:] != mu.shape[1:]:
            expected = f"must be a table (classes, {', '.join(map(str, mu.shape[1:]))})"
            _refuse(name, expected, tuple(table.shape), "leave out prior_index for one prior")
    if prior_mu.shape != prior_logvar.shape:
        _refuse(
            "prior_logvar",
            f"must have prior_mu's shape {tuple(prior_mu.shape)}",
            tuple(prior_logvar.shape),
            "give both a row for each class",
        )


def _checked_eps(eps, mu, samples):
    _checks.float_tensor("reparam_kl", "eps", eps)
    if _checks.autocast_dtype(mu) is not None:
        eps = eps.to(mu.dtype)
    _checks.same_kind("reparam_kl", "eps", eps, mu, than="mu")
    shape = mu.shape if samples == 1 else (samples, *mu.shape)
    if eps.shape != shape:
        _refuse("eps", f"must have z's shape {tuple(shape)}", tuple(eps.shape), "or pass a seed")
    return eps.detach()


@torch.library.register_fake("fastgen::reparam_kl")
def _(
    mu, logvar, prior_mu, prior_logvar, prior_index, eps, seed,
    samples, clamp_low, clamp_high, free_bits, parametrization,
):  # fmt: skip
    torch._check(
        mu.shape == logvar.shape,
        lambda: f"fastgen.reparam_kl: mu {tuple(mu.shape)} and logvar {tuple(logvar.shape)}",
    )
    if samples == 1:
        z = empty_in_format_of(mu, mu.shape)
    else:
        z = mu.new_empty((samples, *mu.shape))
    accumulation = torch.float64 if mu.dtype == torch.float64 else torch.float32
    return z, mu.new_empty(mu.shape[:1], dtype=accumulation), mu.new_empty((), dtype=torch.int64)


@torch.library.register_fake("fastgen::reparam_kl_backward")
def _(
    grad_z, grad_kl, mu, logvar, prior_mu, prior_logvar, prior_index, eps, z, used_seed,
    samples, clamp_low, clamp_high, free_bits, parametrization, needs,
):  # fmt: skip
    like = (mu, logvar, prior_mu, prior_logvar)
    return tuple(
        empty_in_format_of(t, t.shape) if need and t is not None else mu.new_empty(0)
        for t, need in zip(like, needs, strict=True)
    )


_autograd.by_backward_op("reparam_kl")
_autograd.second_derivatives("reparam_kl", reference.reparam_kl_backward)
