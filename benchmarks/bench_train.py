"""A training step of GatedPixelCNN, by fastgen's layers and by plain PyTorch's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial

import torch

from fastgen.benchmarks import measure
from fastgen.benchmarks.measure import FORMATS, Effort
from fastgen.benchmarks.table import Row, Table
from fastgen.demo import NETWORK, TRAINING
from fastgen.models import GatedPixelCNN
from fastgen.nn import MaskedConv2d
from fastgen.plain import plain_twin
from fastgen.train import Likelihood

_DIGITS = {"shape": (1, 8, 8), "levels": 17, "classes": 10}
_MNIST = {"shape": (1, 28, 28), "levels": 256, "channels": 64, "layers": 6, "classes": 10}
_CIFAR10 = {"shape": (3, 32, 32), "levels": 256, "channels": 96, "layers": 4}
NETWORKS = {"the demo's network, digits": ({**_DIGITS, **NETWORK}, TRAINING["batch_size"])}
LARGER = {"GatedPixelCNN MNIST": (_MNIST, 16), "GatedPixelCNN CIFAR-10": (_CIFAR10, 4)}
GOALS = {"over best": 1.4}
ALSO_AT = ()


class Problem:
    """A network, its plain twins, and a batch of random codes: speed does not depend on them."""

    def __init__(self, network: dict, batch: int):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = GatedPixelCNN(**network)
            self.codes = torch.randint(network["levels"], (batch, *network["shape"]))
            classes = network.get("classes")
            self.labels = torch.randint(classes, (batch,)) if classes else None

    def networks(self, *, compiled: bool) -> dict[str, torch.nn.Module]:
        torch.compiler.reset()
        networks = {"fastgen": copy.deepcopy(self.model)}
        for name, memory_format in FORMATS.items():
            networks[f"eager {name}"] = plain_twin(self.model, memory_format)
            if compiled:
                twin = plain_twin(self.model, memory_format)
                twin.log_prob = torch.compile(twin.log_prob, fullgraph=True, dynamic=False)
                networks[f"compiled {name}"] = twin
        if compiled:
            ours = copy.deepcopy(self.model)
            ours.log_prob = torch.compile(ours.log_prob, dynamic=False)
            networks["fastgen compiled"] = ours
        return networks

    def step(self, network) -> Callable:
        """What fastgen.train does in a step: likelihood, gradients, clipping, AdamW."""
        objective = Likelihood(network, lr=1e-4, weight_decay=0.0, clip_grad=1.0)
        return lambda: objective.step(self.codes, self.labels)

    def flops(self) -> float:
        """Of all convolutions, forward and backward, on unmasked weights alone; layers of an "A"
        type read the image, which needs no gradient."""
        layers = [m for m in self.model.modules() if isinstance(m, MaskedConv2d)]
        passes = [2 if layer.mask_type.endswith("A") else 3 for layer in layers]
        weights = [int(layer.mask.sum()) for layer in layers]
        pixels = self.codes.numel() // self.codes.shape[1]
        return 2.0 * pixels * sum(p * w for p, w in zip(passes, weights, strict=True))

    def check(self, networks: dict) -> dict[str, float]:
        """Of the loss and all gradients."""

        def evaluate(network):
            loss = -network.log_prob(self.codes, self.labels).mean()
            return (loss.detach(), *torch.autograd.grad(loss, list(network.parameters())))

        names = ["loss", *(f"gradient of {name}" for name, _ in self.model.named_parameters())]
        steps = {name: partial(evaluate, network) for name, network in networks.items()}
        return measure.check_steps(steps, evaluate(plain_twin(self.model).double()), names)


COLUMNS = {
    "over best": ("over best of all", "{:.2f}x"),
    **{
        f"over {who} {name}": (f"over {who} {name}", "{:.2f}x")
        for who in ("eager", "compiled")
        for name in FORMATS
    },
    "over fastgen compiled": ("over fastgen compiled", "{:.2f}x"),
    "fastgen": ("ms", "{:.2f}"),
    "limit": ("limit ms", "{:.2f}"),
    "share": ("share of FMA peak", "{:.2f}"),
    "images": ("images/s", "{:.0f}"),
    "spread": ("spread", "{:.0%}"),
    "error": ("error", "{:.0e} ✓"),
    "eager error": ("eager's", "{:.0e}"),
    "backend": ("backend", "{}"),
}
NOTE = (
    "A step: log-likelihood, all gradients, clipping, fused AdamW. Peers: the same network of "
    "nn.Conv2d on weight * mask and tanh * sigmoid, likelihood included in what is compiled. "
    "Limit and share count the convolutions alone, on unmasked weights."
)


def row(network: dict, batch: int, effort: Effort) -> Row:
    with measure.threads(1):
        problem = Problem(network, batch)
        networks = problem.networks(compiled=not effort.quick)
        errors = problem.check(networks)
        steps = {name: problem.step(network) for name, network in networks.items()}
        timings, peak = measure.race_with_peak(steps, effort)
    ms = {name: 1e3 * timing.best for name, timing in timings.items()}
    peers = [t for name, t in ms.items() if not name.startswith("fastgen")]
    values = {f"over {name}": t / ms["fastgen"] for name, t in ms.items() if name != "fastgen"}
    values |= errors | {
        "over best": min(peers) / ms["fastgen"],
        "images": 1e3 * batch / ms["fastgen"],
        "spread": timings["fastgen"].spread,
        "backend": measure.backend("gated_masked_conv2d", "masked_conv2d"),
    }
    if peak is not None:
        limit = 1e3 * problem.flops() / peak
        values |= {"limit": limit, "share": limit / ms["fastgen"]}
    return Row(values | ms, GOALS, step=steps["fastgen"])


def threads_row(network: dict, batch: int, effort: Effort) -> Row:
    problem = Problem(network, batch)
    networks = problem.networks(compiled=False)
    problem.check(networks)
    steps = {"fastgen": networks["fastgen"], "eager": networks["eager channels-last"]}
    steps = {name: problem.step(network) for name, network in steps.items()}
    return measure.threads_row(steps, effort)


def tables(effort: Effort) -> Iterator[Table]:
    networks = NETWORKS if effort.quick else NETWORKS | LARGER

    def cases(measure_row):
        return {name: partial(measure_row, *about, effort) for name, about in networks.items()}

    yield Table("a training step, 1 thread, CPU seconds", COLUMNS, cases(row), NOTE)
    if effort.threads > 1 and not effort.quick:
        title = "a training step, eager in channels-last"
        yield measure.threads_table(title, cases(threads_row), effort)


def bench_train(benchmark, measured):
    benchmark(measured.step)
