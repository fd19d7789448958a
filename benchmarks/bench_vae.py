"""All of a VAE: its random numbers, latents and likelihoods, and a whole training step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial

import torch
from torch import nn

import fastgen
from fastgen.benchmarks import (
    bench_bernoulli_nll,
    bench_gaussian_nll,
    bench_philox_normal,
    bench_reparam_kl,
    measure,
    one_pass,
)
from fastgen.benchmarks.measure import Effort
from fastgen.benchmarks.own_process import in_own_process
from fastgen.benchmarks.table import Row, Table

PARTS = (bench_philox_normal, bench_reparam_kl, bench_bernoulli_nll, bench_gaussian_nll)
ALSO_AT = ("avx2",)
BATCH, LATENT = 128, 20
COLUMNS = {
    "over eager": ("over eager", "{:.2f}x"),
    "bound": ("Amdahl's bound", "{:.2f}x"),
    "share": ("share of it", "{:.2f}"),
    "over compiled": ("over compiled", "{:.2f}x"),
    "compiled": ("ours compiled, over compiled", "{:.2f}x"),
    "ms": ("ms", "{:.3f}"),
    "spread": ("spread", "{:.0%}"),
    "error": ("error", "{:.0e} ✓"),
    "eager error": ("eager's", "{:.0e}"),
}
GOALS = {"share": 0.9, "over compiled": 1.0}
NOTE = (
    "Forward, backward, fused Adam. Amdahl's bound: what a step in eager PyTorch would gain if "
    "the drawing of latents, their divergence and the likelihood took no time. Error: of the loss "
    "and the gradients for given noise."
)


class PlainVAE(nn.Module):
    """784-400-20, as users write it."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 2 * LATENT))
        self.decoder = nn.Sequential(nn.Linear(LATENT, 400), nn.ReLU(), nn.Linear(400, 784))

    def forward(self, x, eps=None):
        mu, logvar = self.encoder(x).chunk(2, 1)
        z, kl = self.latents(mu, logvar, eps)
        return (self.nll(self.decoder(z), x) + kl).mean()

    @staticmethod
    def latents(mu, logvar, eps):
        if eps is None:
            return bench_reparam_kl.plain(mu, logvar)
        return bench_reparam_kl.plain_given(mu, logvar, eps)

    nll = staticmethod(bench_bernoulli_nll.plain)


class FastVAE(PlainVAE):
    """The same with two calls of fastgen."""

    @staticmethod
    def latents(mu, logvar, eps):
        return fastgen.reparam_kl(mu, logvar, eps=eps)

    nll = staticmethod(fastgen.bernoulli_nll)


def training_step(model: nn.Module, x, *, compiled: bool = False) -> Callable:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    loss_of = one_pass.compiled(model) if compiled else model

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(x)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def replaced_parts(x) -> dict[str, Callable]:
    """What a plain step spends on the ops that ours replaces, with their backward."""
    mu, logvar = (torch.randn(BATCH, LATENT).requires_grad_() for _ in range(2))
    logits = torch.randn(BATCH, 784).requires_grad_()
    ones = torch.ones(BATCH)
    latents = partial(bench_reparam_kl.plain, mu, logvar)
    nll = partial(bench_bernoulli_nll.plain, logits, x)
    return {
        "latents": one_pass.with_gradients(latents, [mu, logvar], (torch.ones(mu.shape), ones)),
        "nll": one_pass.with_gradients(nll, [logits], (ones,)),
    }


def errors(plain: nn.Module, x) -> dict[str, float]:
    eps = torch.randn(BATCH, LATENT)

    def found(kind, dtype):
        model = kind().to(dtype)
        model.load_state_dict(plain.state_dict())
        loss = model(x.to(dtype), eps.to(dtype))
        return (loss.detach(), *torch.autograd.grad(loss, list(model.parameters())))

    names = ("loss", *dict(plain.named_parameters()))
    exact = found(PlainVAE, torch.double)
    return measure.checked_errors(
        [found(FastVAE, torch.float)], [found(PlainVAE, torch.float)], exact, names
    )


def figures(effort: dict) -> dict:
    effort = Effort(**effort)
    torch.manual_seed(0)
    with measure.threads(1):
        plain, x = PlainVAE(), torch.rand(BATCH, 784)
        found = errors(plain, x)
        fast = FastVAE()
        fast.load_state_dict(plain.state_dict())
        steps = {
            "fastgen": training_step(copy.deepcopy(fast), x),
            "eager": training_step(copy.deepcopy(plain), x),
        }
        if not effort.quick:
            steps["compiled"] = training_step(copy.deepcopy(plain), x, compiled=True)
            steps["fastgen compiled"] = training_step(copy.deepcopy(fast), x, compiled=True)
        timings = measure.race(steps | replaced_parts(x), effort)
    seconds = {name: timing.best for name, timing in timings.items()}
    bound = seconds["eager"] / (seconds["eager"] - seconds["latents"] - seconds["nll"])
    found |= {
        "over eager": seconds["eager"] / seconds["fastgen"],
        "bound": bound,
        "share": seconds["eager"] / seconds["fastgen"] / bound,
        "ms": 1e3 * seconds["fastgen"],
        "spread": timings["fastgen"].spread,
    }
    if "compiled" in seconds:
        found["over compiled"] = seconds["compiled"] / seconds["fastgen"]
        found["compiled"] = seconds["compiled"] / seconds["fastgen compiled"]
    return found


def step_row(effort: Effort, environment: dict) -> Row:
    found = in_own_process(figures, asdict(effort), **environment)
    return Row(found, GOALS, step=training_step(FastVAE(), torch.rand(BATCH, 784)))


def tables(effort: Effort) -> Iterator[Table]:
    for part in PARTS:
        yield from part.tables(effort)
    yield Table(
        "a VAE's training step, 1 thread, CPU seconds, freed memory kept",
        COLUMNS,
        {"784-400-20, batch 128": partial(step_row, effort, one_pass.KEPT)},
        NOTE,
    )


def bench_vae(benchmark, measured):
    benchmark(measured.step)
