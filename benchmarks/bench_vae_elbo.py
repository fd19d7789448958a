"""Test ELBO of VAE and ConditionalVAE on digits, beside the same models in plain PyTorch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn

import fastgen
from fastgen import data
from fastgen.benchmarks import measure
from fastgen.benchmarks.measure import Effort
from fastgen.benchmarks.plain_vae import PlainVAE
from fastgen.benchmarks.table import Row, Table
from fastgen.models import VAE, ConditionalVAE
from fastgen.train import Order

ALSO_AT = ()
CASES = {
    "VAE, dmol": {"likelihood": "dmol"},
    "VAE, bernoulli": {"likelihood": "bernoulli"},
    "ConditionalVAE, learned prior, dmol": {"likelihood": "dmol", "classes": 10},
}
SEEDS, STEPS, BATCH, RATE = 5, 1000, 64, 2e-3
DRAWS = 20  # of each test image
COLUMNS = {
    "fastgen": ("fastgen, nats", "{:.3f}"),
    "plain": ("plain, nats", "{:.3f}"),
    "difference": ("difference", "{:+.3f}"),
    "error": ("standard error", "{:.3f}"),
    "apart": ("apart, in errors", "{:.1f}"),
    "bits": ("bits/dim", "{:.3f}"),
    "fastgen seconds": ("s a training", "{:.1f}"),
    "plain seconds": ("plain's", "{:.1f}"),
    "backend": ("backend", "{}"),
}
NOTE = (
    f"Mean over {SEEDS} seeds of the ELBO of the 359 test images, {DRAWS} draws each, after {STEPS}"
    f" steps of {BATCH} images by AdamW, cosine schedule. A seed gives both the same initial "
    "weights and batches; their noise differs. The difference is paired by seed, and has the "
    "standard error of its mean; Student's t of 4 degrees of freedom is below 4 in 98 of 100 "
    "cases. First the losses are compared on the same weights and noise. A bernoulli likelihood "
    "of 17 levels is a loss, and has no bits/dim."
)


def built(seed: int, likelihood: str, classes: int | None = None) -> tuple[nn.Module, PlainVAE]:
    """fastgen's model, and the plain one with the same weights."""
    sizes = {"shape": (1, 8, 8), "levels": 17, "likelihood": likelihood}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ours = VAE(**sizes) if classes is None else ConditionalVAE(**sizes, classes=classes)
    return ours, PlainVAE(**sizes, classes=classes).copy_(ours)


def terms(model: nn.Module, images, labels):
    """(nll, kl), (B,) each."""
    if isinstance(model, PlainVAE):
        return model(images, labels)
    out = model(images, labels)
    return out.nll, out.kl


def batch(split, index, classes):
    labels = None if classes is None else split.labels[index]
    return split.images[index].long(), labels


def fit(model: nn.Module, split, classes: int | None, seed: int, steps: int) -> float:
    """Trains, and returns the CPU seconds it took."""
    began = time.process_time()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.0, fused=True
    )
    order = Order(len(split.images), BATCH, seed)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
        images, labels = batch(split, order(step), classes)
        optimizer.zero_grad(set_to_none=True)
        nll, kl = terms(model, images, labels)
        ((nll + kl).mean() / images[0].numel()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return time.process_time() - began


@torch.no_grad()
def elbo(model: nn.Module, split, classes: int | None) -> float:
    images, labels = batch(split, slice(None), classes)
    draws = [sum(terms(model, images, labels)).mean() for _ in range(DRAWS)]
    return -torch.stack(draws).mean().item()


@torch.no_grad()
def check(ours: nn.Module, plain: PlainVAE, split, classes: int | None) -> None:
    """AssertionError unless both say the same of the same images, weights and noise."""
    images, labels = batch(split, slice(64), classes)
    out = ours(images, labels, seed=1)
    eps = fastgen.randn(out.mu.shape, seed=1)
    for name, a, b in zip(
        ("nll", "kl"), (out.nll, out.kl), plain(images, labels, eps), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def row(about: dict, effort: Effort) -> Row:
    digits, classes = data.load("digits"), about.get("classes")
    seeds, steps = (2, 50) if effort.quick else (SEEDS, STEPS)
    reached: dict[str, list[float]] = {"fastgen": [], "plain": []}
    seconds = dict.fromkeys(reached, 0.0)
    with measure.threads(1), torch.random.fork_rng(devices=[]):
        for seed in range(seeds):
            models = dict(zip(reached, built(seed, **about), strict=True))
            check(*models.values(), digits.test, classes)
            for name, model in models.items():
                torch.manual_seed(seed)
                seconds[name] += fit(model, digits.train, classes, seed, steps) / seeds
                reached[name].append(elbo(model, digits.test, classes))
    ours, plain = (torch.tensor(values, dtype=torch.float64) for values in reached.values())
    difference = ours - plain
    error = (difference.std() / math.sqrt(seeds)).item()
    values = {
        "fastgen": ours.mean().item(),
        "plain": plain.mean().item(),
        "difference": difference.mean().item(),
        "error": error,
        "apart": abs(difference.mean().item()) / error,
        "fastgen seconds": seconds["fastgen"],
        "plain seconds": seconds["plain"],
        "backend": measure.backend("reparam_kl", f"{about['likelihood']}_nll"),
        "seeds": [list(pair) for pair in zip(*reached.values(), strict=True)],
    }
    if about["likelihood"] == "dmol":
        values["bits"] = -values["fastgen"] / (64 * math.log(2))
    step = _step(models["fastgen"], digits.train, classes)
    return Row(values, step=step, most={} if effort.quick else {"apart": 4.0})


def _step(model: nn.Module, split, classes: int | None) -> Callable[[], object]:
    images, labels = batch(split, slice(BATCH), classes)

    def step():
        loss = sum(terms(model, images, labels)).mean()
        return torch.autograd.grad(loss, list(model.parameters()))

    return step


def tables(effort: Effort) -> Iterator[Table]:
    cases = {name: partial(row, about, effort) for name, about in CASES.items()}
    yield Table("test ELBO on digits", COLUMNS, cases, NOTE)


def bench_vae_elbo(benchmark, measured):
    benchmark(measured.step)
