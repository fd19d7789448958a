"""Whether samples of a ConditionalGAN are the digit asked for, by a classifier of real digits."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import partial

import torch

from fastgen import data
from fastgen.benchmarks import measure
from fastgen.benchmarks.measure import Effort
from fastgen.benchmarks.table import Row, Table
from fastgen.benchmarks.trained import trained
from fastgen.models import ConditionalGAN
from fastgen.models.scores import diversity

ALSO_AT = ()
SEEDS, STEPS, SAMPLES = 3, 1500, 2000
CASES = {
    "concat": {"conditioning": "concat"},
    "projection": {"conditioning": "projection"},
}
GOALS = {"agreement": 0.8}
COLUMNS = {
    "agreement": ("label agreement", "{:.3f}"),
    "least": ("of the worst seed", "{:.3f}"),
    "worst": ("of the worst digit", "{:.3f}"),
    "real": ("of real test digits", "{:.3f}"),
    "spread": ("spread", "{:.2f}"),
    "nearness": ("nearness to training", "{:.2f}"),
    "seconds": ("s a training", "{:.1f}"),
    "backend": ("backend", "{}"),
}
NOTE = (
    f"Seeds 0 to {SEEDS - 1}, {STEPS} steps each with the model's own settings; {SAMPLES} samples, "
    "as many of each digit. Agreement: with scikit-learn's SVC, fitted to the 1438 training "
    "digits. Spread: distance to the nearest other sample over that among test digits. Nearness: "
    "0.5 as far from training digits as test digits are, 1 copies."
)


def classifier(digits):
    """A function from codes (N, 1, 8, 8) to labels."""
    from sklearn.svm import SVC

    svc = SVC().fit(digits.train.images.flatten(1).numpy(), digits.train.labels.numpy())
    return lambda images: torch.from_numpy(svc.predict(images.flatten(1).numpy()))


def row(options: dict, effort: Effort) -> Row:
    digits = data.load("digits")
    classify = classifier(digits)
    seeds, steps = (1, 20) if effort.quick else (SEEDS, STEPS)
    sizes = {"shape": digits.shape, "levels": digits.levels, "classes": digits.classes}
    labels = torch.arange(SAMPLES) % digits.classes
    each: dict[str, list[float]] = {"agreement": [], "spread": [], "nearness": [], "seconds": []}
    right = torch.zeros(digits.classes, dtype=torch.float64)
    with measure.threads(1):
        for seed in range(seeds):
            build = partial(ConditionalGAN, **sizes, **options)
            model, seconds = trained(build, digits, seed=seed, steps=steps)
            samples = model.sample(SAMPLES, labels, seed=seed)
            agrees = (classify(samples) == labels).double()
            right += agrees.view(-1, digits.classes).mean(0) / seeds
            found = diversity(samples[: len(digits.test)], digits.train.images, digits.test.images)
            figures = (agrees.mean().item(), *found, seconds)
            for values, figure in zip(each.values(), figures, strict=True):
                values.append(figure)
    real = (classify(digits.test.images) == digits.test.labels).double().mean().item()
    values = {name: statistics.mean(figures) for name, figures in each.items()}
    values |= {
        "least": min(each["agreement"]),
        "worst": right.min().item(),
        "real": real,
        "backend": measure.backend("philox_normal", "ema_update_"),
        "seeds": each["agreement"],
    }
    step = partial(model.sample, 64, 0)
    return Row(values, {} if effort.quick else GOALS, step=step)


def tables(effort: Effort) -> Iterator[Table]:
    cases = {name: partial(row, options, effort) for name, options in CASES.items()}
    yield Table("digits asked for by label", COLUMNS, cases, NOTE)


def bench_gan_labels(benchmark, measured):
    benchmark(measured.step)
