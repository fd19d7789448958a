"""How many modes of a ring of eight Gaussians adversarial models find, over ten seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import partial

from fastgen import data
from fastgen.benchmarks import measure
from fastgen.benchmarks.measure import Effort
from fastgen.benchmarks.table import Row, Table
from fastgen.benchmarks.trained import trained
from fastgen.data import rings
from fastgen.models import GAN, WGAN
from fastgen.models.scores import mode_coverage

ALSO_AT = ()
SEEDS, POINTS = 10, 10_000
UPDATES, BATCH, RATE = 1000, 128, 1e-3  # of the generator
N_CRITIC = 5  # of the Wasserstein models
NETS = {"latent_dim": 2, "width": 128, "layers": 3}
CASES = {
    "WGAN, clip 0.1": (WGAN, {"clip": 0.1, "n_critic": N_CRITIC}),
    "WGAN-GP, penalty 0.1": (WGAN, {"penalty": 0.1, "n_critic": N_CRITIC}),
    "GAN, minimax": (GAN, {"loss": "minimax"}),
    "GAN, non-saturating": (GAN, {"loss": "non_saturating"}),
}
GOALS = {"WGAN, clip 0.1": {"median": 7.0}}
COLUMNS = {
    "median": ("modes, median of seeds", "{:.1f}"),
    "least": ("fewest", "{:.0f}"),
    "all": ("seeds with all 8", "{:.0f}"),
    "share": ("samples within 3 sigma", "{:.2f}"),
    "seconds": ("s a training", "{:.1f}"),
    "backend": ("backend", "{}"),
}
NOTE = (
    f"Seeds 0 to {SEEDS - 1}. A mode is covered that 1 % of {POINTS} samples lie within 3 sigma "
    "of. All have the same generator and critic, 3 hidden layers of 128 units and 2 latent "
    f"variables, and {UPDATES} updates of the generator by {BATCH} points at a rate of {RATE:g}; "
    f"Wasserstein critics have {N_CRITIC} times as many. Of the data themselves 0.99 lie within 3 "
    "sigma."
)


def row(kind: type, options: dict, goals: dict[str, float], effort: Effort) -> Row:
    points = data.load("rings")
    seeds, updates = (2, 20) if effort.quick else (SEEDS, UPDATES)
    build = partial(kind, shape=points.shape, levels=points.levels, **NETS, **options)
    steps = updates * options.get("n_critic", 1)
    found, seconds = [], 0.0
    with measure.threads(1):
        for seed in range(seeds):
            model, took = trained(build, points, seed=seed, steps=steps, batch_size=BATCH, lr=RATE)
            places = rings.places(model.sample(POINTS, seed=seed))
            found.append(mode_coverage(places, rings.centres(), rings.SIGMA))
            seconds += took / seeds
    modes = [coverage.modes for coverage in found]
    values = {
        "median": float(statistics.median(modes)),
        "least": float(min(modes)),
        "all": float(modes.count(rings.MODES)),
        "share": statistics.mean(coverage.share for coverage in found),
        "seconds": seconds,
        "backend": measure.backend("philox_normal", "rmsprop_clip_"),
        "seeds": [list(coverage) for coverage in found],
    }
    step = partial(model.critic_step, model.critic_optimizer(), points.train.images[:BATCH].long())
    return Row(values, {} if effort.quick else goals, step=step)


def tables(effort: Effort) -> Iterator[Table]:
    cases = {
        name: partial(row, *about, GOALS.get(name, {}), effort) for name, about in CASES.items()
    }
    yield Table("modes of a ring of 8 Gaussians", COLUMNS, cases, NOTE)


def bench_gan_modes(benchmark, measured):
    benchmark(measured.step)
