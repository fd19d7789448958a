"""gated_activation, forward and backward, beside tanh(a) * sigmoid(b): eager and compiled."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch

import fastgen
from fastgen.benchmarks import measure
from fastgen.benchmarks.measure import FORMATS, Effort
from fastgen.benchmarks.table import Row, Table

# (B, 2C, *spatial), whether with a condition vector per sample
SHAPES = {
    "gated PixelCNN digits": ((16, 128, 8, 8), True),
    "gated PixelCNN MNIST": ((16, 128, 28, 28), True),
    "gated PixelCNN MNIST, no condition": ((16, 128, 28, 28), False),
    "gated PixelCNN CIFAR-10": ((16, 384, 32, 32), True),
    "one small image": ((1, 32, 8, 8), False),
    "WaveNet": ((4, 128, 8000), False),
}
ALSO_AT = ("avx2",)


def plain(x, condition):
    if condition is not None:
        x = x + condition.reshape(condition.shape + (1,) * (x.dim() - 2))
    a, b = x.chunk(2, dim=1)
    return torch.tanh(a) * torch.sigmoid(b)


def step(function, shape, conditioned, memory_format=torch.contiguous_format, dtype=torch.float32):
    """Forward and backward as a function without arguments, which returns y and the gradients."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size):
        values = torch.randn(size, generator=generator).to(dtype)
        channels_last = len(size) == 4 and memory_format == torch.channels_last
        return values.contiguous(memory_format=memory_format) if channels_last else values

    x = normal(*shape).requires_grad_()
    condition = normal(*shape[:2]).requires_grad_() if conditioned else None
    grad = normal(shape[0], shape[1] // 2, *shape[2:])
    wanted = [x, condition] if conditioned else [x]

    def run():
        y = function(x, condition)
        return (y, *torch.autograd.grad(y, wanted, grad))

    return run


def contestants(shape, conditioned, *, compiled: bool) -> dict[str, Callable]:
    torch.compiler.reset()
    functions = {"fastgen": fastgen.gated_activation, "eager": plain}
    if compiled:
        functions["compiled"] = torch.compile(plain, fullgraph=True, dynamic=False)
    return {
        f"{name} {words}": step(function, shape, conditioned, memory_format)
        for words, memory_format in FORMATS.items()
        if len(shape) == 4 or words == "NCHW"
        for name, function in functions.items()
    }


COLUMNS = {
    "over eager": ("over eager", "{:.2f}x"),
    "over compiled": ("over compiled", "{:.2f}x"),
    "over best": ("over best of all", "{:.2f}x"),
    "ms": ("ms", "{:.3f}"),
    "values": ("million values/s", "{:.0f}"),
    "copy": ("share of a copy's speed", "{:.2f}"),
    "spread": ("spread", "{:.0%}"),
    "error": ("error", "{:.0e} ✓"),
    "eager error": ("eager's", "{:.0e}"),
    "backend": ("backend", "{}"),
}
NOTE = (
    "Channels-last (WaveNet: contiguous) on both sides; best: of eager and torch.compile in either "
    "format. Values: of y. Copy: the time in which one Tensor.copy_ moves as many bytes as forward "
    "and backward must, measured in the same rounds; above 1, they were still in a cache."
)


def row(shape, conditioned, effort: Effort) -> Row:
    with measure.threads(1):
        steps = contestants(shape, conditioned, compiled=not effort.quick)
        exact = step(plain, shape, conditioned, dtype=torch.float64)()
        names = ("y", "gradient of x", "gradient of condition")
        errors = measure.check_steps(steps, exact, names)
        # reads x twice and grad, writes y and the gradient of x: 8 of y's size; a copy moves 2
        source = torch.zeros(4 * math.prod(shape) // 2)
        copy = partial(torch.empty_like(source).copy_, source)
        timings = measure.race({**steps, "copy": copy}, effort)
    ms = {name: 1e3 * timing.best for name, timing in timings.items()}
    words = "channels-last" if len(shape) == 4 else "NCHW"
    ours = ms[f"fastgen {words}"]
    peers = {name: t for name, t in ms.items() if name.startswith(("eager", "compiled"))}
    values = {f"over {name.split()[0]}": t / ours for name, t in peers.items() if words in name}
    values |= errors | {
        "over best": min(peers.values()) / ours,
        "ms": ours,
        "values": math.prod(shape) / 2 / ours / 1e3,
        "copy": ms["copy"] / ours,
        "spread": timings[f"fastgen {words}"].spread,
        "backend": measure.backend("gated_activation"),
    }
    return Row(values | ms, {"over best": 1.0}, step=steps[f"fastgen {words}"])


def tables(effort: Effort) -> Iterator[Table]:
    yield Table(
        "gated_activation, forward + backward, 1 thread, CPU seconds",
        COLUMNS,
        {name: partial(row, *arguments, effort) for name, arguments in SHAPES.items()},
        NOTE,
    )


def bench_gated_activation(benchmark, measured):
    benchmark(measured.step)
