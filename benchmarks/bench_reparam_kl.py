"""reparam_kl, forward and backward, beside the usual lines of a VAE: eager and compiled."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

import fastgen
from fastgen.benchmarks import measure, one_pass
from fastgen.benchmarks.measure import Effort
from fastgen.benchmarks.one_pass import Problem
from fastgen.benchmarks.table import Row, Table

SHAPES = {
    "8192x256": (8192, 256),
    "256x128": (256, 128),
    "128x20, an MLP's latents": (128, 20),
    "64x4x32x32, a map of latents": (64, 4, 32, 32),
    "65536x256": (65536, 256),
}
QUICK = ("256x128",)
ALSO_AT = ("avx2",)
GOALS = {
    "8192x256": {"over eager": 7.0, "over compiled": 24.0},
    "256x128": {"over eager": 3.5, "over compiled": 15.0},
}

CALL_COLUMNS = {
    "us": ("us", "{:.1f}"),
    "over eager": ("over eager", "{:.2f}x"),
    "spread": ("spread", "{:.0%}"),
}


def plain(mu, logvar):
    z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
    kl = -0.5 * (1 + logvar - mu.square() - logvar.exp()).flatten(1).sum(1)
    return z, kl


def plain_given(mu, logvar, eps):
    z = mu + torch.exp(0.5 * logvar) * eps
    return z, -0.5 * (1 + logvar - mu.square() - logvar.exp()).flatten(1).sum(1)


def problem(case: str, *, compiled: bool) -> Problem:
    shape = SHAPES[case.removesuffix(", bfloat16")]
    dtype = torch.bfloat16 if case.endswith("bfloat16") else torch.float32
    generator = torch.Generator().manual_seed(0)
    mu, logvar, eps, grad_z = (torch.randn(shape, generator=generator).to(dtype) for _ in range(4))
    grad_kl = torch.rand(shape[0], generator=generator)
    functions = {"fastgen": fastgen.reparam_kl, "eager": plain}
    if compiled:
        functions["compiled"] = one_pass.compiled(plain)

    def step(function, mu, logvar):
        inputs = [mu.clone().requires_grad_(), logvar.clone().requires_grad_()]
        kl_dtype = dtype if function in (plain, functions.get("compiled")) else torch.float32
        grads = (grad_z, grad_kl.to(kl_dtype))
        return one_pass.with_gradients(partial(function, *inputs), inputs, grads)

    def results():
        wide = [t.double() for t in (mu, logvar, eps)]
        found = []
        for function, values in (
            (lambda m, v, e: fastgen.reparam_kl(m, v, eps=e), (mu, logvar, eps)),
            (plain_given, (mu, logvar, eps)),
            (plain_given, wide),
        ):
            inputs = [t.clone().requires_grad_() for t in values[:2]]
            out = function(*inputs, values[2])
            grads = (grad_z.to(out[0].dtype), grad_kl.to(out[1].dtype))
            found.append((*(t.detach() for t in out), *torch.autograd.grad(out, inputs, grads)))
        return tuple(found)

    return Problem(
        steps={name: step(function, mu, logvar) for name, function in functions.items()},
        # reads mu and logvar twice and the gradient of z, writes z and two gradients
        bytes=8 * mu.numel() * mu.element_size(),
        elements=mu.numel(),
        results=results,
        names=("z", "kl", "gradient of mu", "gradient of logvar"),
    )


def call_row(effort: Effort) -> Row:
    mu, logvar = torch.zeros(1, 1), torch.zeros(1, 1)
    calls = {
        "fastgen": partial(fastgen.reparam_kl, mu, logvar),
        "eager": partial(plain, mu, logvar),
    }
    with measure.threads(1), torch.no_grad():
        timings = measure.race(calls, effort)
    own = timings["fastgen"]
    values = {"us": 1e6 * own.best, "over eager": timings["eager"].best / own.best}
    return Row(values | {"spread": own.spread}, most={"us": 8.0}, step=calls["fastgen"])


def thread_steps(shape) -> dict:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=generator).requires_grad_() for _ in range(2)]
    grads = (torch.ones(shape), torch.ones(shape[0]))
    return {
        "fastgen": one_pass.with_gradients(partial(fastgen.reparam_kl, *inputs), inputs, grads),
        "eager": one_pass.with_gradients(partial(plain, *inputs), inputs, grads),
    }


def tables(effort: Effort) -> Iterator[Table]:
    cases = [*SHAPES, "8192x256, bfloat16"]
    yield from one_pass.tables("reparam_kl", cases, QUICK, GOALS, effort)
    yield Table(
        "reparam_kl, what a call of one element takes without gradients",
        CALL_COLUMNS,
        {"1x1": partial(call_row, effort)},
    )
    if effort.threads > 1 and not effort.quick and measure.isa() not in ALSO_AT:
        yield measure.threads_table(
            "reparam_kl, forward + backward",
            {"8192x256": lambda: measure.threads_row(thread_steps((8192, 256)), effort)},
            effort,
        )


def bench_reparam_kl(benchmark, measured):
    benchmark(measured.step)
