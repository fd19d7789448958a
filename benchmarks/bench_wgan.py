"""A training iteration of WGAN, the critic's updates and the generator's, beside plain PyTorch."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from fastgen import data
from fastgen.benchmarks import measure, one_pass
from fastgen.benchmarks.measure import Effort
from fastgen.benchmarks.table import Row, Table
from fastgen.models import WGAN

ALSO_AT = ()
BATCH, CLIP, N_CRITIC, RATE = 64, 0.01, 5, 5e-5
# name -> options of the model, and the shape of its images where they are not digits
CASES: dict[str, tuple[dict, tuple[int, int, int] | None]] = {
    "digits, 8x8, fully connected": ({"net": "mlp"}, None),
    "digits, 8x8, convolutional": ({}, None),
    "32x32 colour, convolutional": ({}, (3, 32, 32)),
}
QUICK = "digits, 8x8, fully connected"
GOALS = {"digits, 8x8, fully connected": {"over eager": 1.3}}
COLUMNS = {
    "over eager": ("over eager", "{:.2f}x"),
    "over eager foreach": ("over eager foreach", "{:.2f}x"),
    "over compiled": ("over compiled", "{:.2f}x"),
    "ms": ("ms", "{:.3f}"),
    "iterations": ("iterations/s", "{:.1f}"),
    "update": ("eager's share of updates", "{:.2f}"),
    "spread": ("spread", "{:.0%}"),
    "error": ("error", "{:.0e} ✓"),
    "backend": ("backend", "{}"),
}
NOTE = (
    f"An iteration: {N_CRITIC} updates of the critic by RMSprop, each with {BATCH} images, as many "
    f"generated ones and a clip at {CLIP:g}, then one of the generator; no moving average. Eager: "
    "the same networks and losses in plain PyTorch, torch.randn, torch.optim.RMSprop as it comes, "
    "or with foreach=True, and a loop of clamp_; generated images for the critic are made without "
    "a graph, and the critic's gradients left alone in the generator's update, which not every "
    "script takes care of. Compiled: losses, and optimiser with clamp, by torch.compile. Updates: "
    "RMSprop and clamp. Error: of all weights after an iteration with the same noise in float64, "
    "over the way they have gone."
)


class Plain:
    """WGAN as one writes it by hand."""

    def __init__(self, model: WGAN, *, foreach: bool | None = None, compiled: bool = False):
        self.generator, self.critic = (copy.deepcopy(n) for n in (model.generator, model.critic))
        self.latent_dim, self.levels = model.latent_dim, model.levels
        self.optimizers = {
            net: torch.optim.RMSprop(net.parameters(), lr=RATE, foreach=foreach)
            for net in (self.critic, self.generator)
        }
        losses = (self.critic_loss, self.generator_loss)
        updates = (self.update_critic, self.update_generator)
        if compiled:
            losses = tuple(map(one_pass.compiled, losses))
            updates = tuple(torch.compile(update, dynamic=False) for update in updates)
        self.losses, self.updates = losses, updates

    def critic_loss(self, images: Tensor, z: Tensor) -> Tensor:
        real = images.to(z.dtype) * (2 / (self.levels - 1)) - 1
        with torch.no_grad():
            fake = self.generator(z)
        return self.critic(fake).mean() - self.critic(real).mean()

    def generator_loss(self, z: Tensor) -> Tensor:
        return -self.critic(self.generator(z)).mean()

    def update_critic(self) -> None:
        self.optimizers[self.critic].step()
        with torch.no_grad():
            for p in self.critic.parameters():
                p.clamp_(-CLIP, CLIP)

    def update_generator(self) -> None:
        self.optimizers[self.generator].step()

    def iterate(self, batches, noises) -> None:
        for images in batches:
            self._step(self.critic, 0, images, next(noises))
        self._step(self.generator, 1, next(noises))

    def _step(self, net: nn.Module, which: int, *inputs: Tensor) -> None:
        self.optimizers[net].zero_grad(set_to_none=True)
        self.losses[which](*inputs).backward(inputs=list(net.parameters()))
        self.updates[which]()


class Ours:
    def __init__(self, model: WGAN):
        self.model = copy.deepcopy(model)
        self.generator, self.critic = self.model.generator, self.model.critic
        self.optimizers = (self.model.critic_optimizer(RATE), self.model.generator_optimizer(RATE))

    def iterate(self, batches, noises=None) -> None:
        if noises is not None:
            self.model._noise = lambda *_: next(noises)
        for images in batches:
            self.model.critic_step(self.optimizers[0], images)
        self.model.generator_step(self.optimizers[1], BATCH)


def problem(options: dict, shape) -> tuple[WGAN, list[Tensor]]:
    """The model that all start from, and the images of an iteration."""
    digits = data.load("digits")
    sizes = {"shape": shape or digits.shape, "levels": 256 if shape else digits.levels}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = WGAN(clip=CLIP, n_critic=N_CRITIC, ema=None, **sizes, **options)
        if shape is None:
            images = digits.train.images[: N_CRITIC * BATCH].long()
        else:
            images = torch.randint(256, (N_CRITIC * BATCH, *shape))
    return model, list(images.split(BATCH))


def check(model: WGAN, batches: list[Tensor]) -> float:
    """How far an iteration of ours takes all weights from where eager's takes them with the same
    noise, over the length of that way; in float64, for the first updates of RMSprop are as long
    for small gradients as for large ones."""
    torch.manual_seed(0)
    model = copy.deepcopy(model).double()
    noises = torch.randn(N_CRITIC + 1, BATCH, model.latent_dim, dtype=torch.float64)
    contestants = Ours(model), Plain(model)
    start = _weights(contestants[1])
    for contestant in contestants:
        contestant.iterate(batches, iter(noises))
    ours, plain = map(_weights, contestants)
    error = ((ours - plain).norm() / (plain - start).norm()).item()
    assert error <= 1e-6, f"an iteration's update is {error:.2g} off eager's, allowed is 1e-6"
    return error


def _weights(contestant: Ours | Plain) -> Tensor:
    nets = (contestant.critic, contestant.generator)
    return torch.cat([p.detach().double().flatten() for n in nets for p in n.parameters()])


def row(options: dict, shape, goals: dict[str, float], effort: Effort) -> Row:
    model, batches = problem(options, shape)
    noise = partial(torch.randn, BATCH, model.latent_dim)
    with measure.threads(1), torch.random.fork_rng(devices=[]):
        error = check(model, batches)
        plain = {"eager": Plain(model), "eager foreach": Plain(model, foreach=True)}
        if not effort.quick:
            torch.compiler.reset()
            plain["compiled"] = Plain(model, compiled=True)
        ours = Ours(model)
        steps: dict[str, Callable] = {"fastgen": partial(ours.iterate, batches)}
        for name, contestant in plain.items():
            steps[name] = partial(_iterate, contestant, batches, noise)
        updates = {"updates": partial(_updates, plain["eager"])}
        timings = measure.race(steps | updates, effort)
    ms = {name: 1e3 * timing.best for name, timing in timings.items()}
    values = {f"over {name}": ms[name] / ms["fastgen"] for name in plain}
    values |= {
        "ms": ms["fastgen"],
        "iterations": 1e3 / ms["fastgen"],
        "update": ms["updates"] / ms["eager"],
        "spread": timings["fastgen"].spread,
        "error": error,
        "backend": measure.backend("rmsprop_clip_", "philox_normal"),
    }
    return Row(values, {} if effort.quick else goals, step=steps["fastgen"])


def _iterate(plain: Plain, batches, noise) -> None:
    plain.iterate(batches, (noise() for _ in itertools.count()))


def _updates(plain: Plain) -> None:
    for _ in range(N_CRITIC):
        plain.update_critic()
    plain.update_generator()


def tables(effort: Effort) -> Iterator[Table]:
    names = [QUICK] if effort.quick else list(CASES)
    cases = {name: partial(row, *CASES[name], GOALS.get(name, {}), effort) for name in names}
    yield Table("a training iteration of WGAN, 1 thread, CPU seconds", COLUMNS, cases, NOTE)


def bench_wgan(benchmark, measured):
    benchmark(measured.step)
