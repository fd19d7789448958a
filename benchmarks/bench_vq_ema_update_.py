"""vq_ema_update_ beside the same moving averages in torch, eager and compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

import fastgen
from fastgen.benchmarks import measure
from fastgen.benchmarks.measure import Effort
from fastgen.benchmarks.table import Row, Table

CODEBOOKS = {"512x64": (512, 64), "1024x32": (1024, 32), "8192x256": (8192, 256)}
CODEBOOKS |= {"16384x8": (16384, 8), "8 heads of 1024x32": (8, 1024, 32)}
ALSO_AT = ()
_DECAY, _EPS = 0.99, 1e-5

COLUMNS = {
    "over eager": ("over eager", "{:.2f}x"),
    "over compiled": ("over compiled", "{:.2f}x"),
    "ms": ("ms", "{:.3f}"),
    "copy": ("share of a copy's speed", "{:.2f}"),
    "spread": ("spread", "{:.0%}"),
    "error": ("error", "{:.0e} ✓"),
    "eager error": ("eager's", "{:.0e}"),
    "backend": ("backend", "{}"),
}
NOTE = (
    "float32 averages, float64 sums, which the peers round to float32 first. Copy: the time in "
    "which one Tensor.copy_ moves as many bytes as the update must, measured in the same rounds."
)


def plain(embed, size, average, counts, sums):
    size.lerp_(counts.to(size.dtype), 1 - _DECAY)
    average.lerp_(sums.to(average.dtype), 1 - _DECAY)
    total = size.sum(-1, keepdim=True)
    smoothed = (size + _EPS) / (total + size.shape[-1] * _EPS) * total
    embed.copy_(average / smoothed.unsqueeze(-1))


def ours(*tensors):
    fastgen.vq_ema_update_(*tensors, decay=_DECAY, eps=_EPS)


def arguments(shape, dtype=torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(1, 200, shape[:-1], generator=generator)
    sums = torch.randn(shape, generator=generator, dtype=torch.float64) * counts.unsqueeze(-1)
    embed = torch.randn(shape, generator=generator).to(dtype)
    return [embed, counts.to(dtype), embed * counts.unsqueeze(-1), counts, sums]


def check(functions: dict[str, Callable], shape) -> dict[str, float]:
    def result(function, dtype=torch.float32):
        tensors = arguments(shape, dtype)
        function(*tensors)
        return tensors[:3]

    steps = {name: partial(result, function) for name, function in functions.items()}
    exact = result(plain, torch.float64)
    return measure.check_steps(steps, exact, ("embed", "cluster_size", "embed_avg"))


def row(shape, effort: Effort) -> Row:
    with measure.threads(1):
        functions = {"fastgen": ours, "eager": plain}
        if not effort.quick:
            torch.compiler.reset()
            functions["compiled"] = torch.compile(plain, fullgraph=True, dynamic=False)
        errors = check(functions, shape)
        steps = {name: partial(f, *arguments(shape)) for name, f in functions.items()}
        # reads sums and average, writes average and embed: 20 bytes a value; a copy moves 8
        source = torch.zeros(5 * arguments(shape)[0].numel() // 2)
        copy = partial(torch.empty_like(source).copy_, source)
        timings = measure.race({**steps, "copy": copy}, effort)
    ms = {name: 1e3 * timing.best for name, timing in timings.items()}
    values = {f"over {name}": t / ms["fastgen"] for name, t in ms.items() if name != "fastgen"}
    values |= errors | {
        "ms": ms["fastgen"],
        "copy": ms["copy"] / ms["fastgen"],
        "spread": timings["fastgen"].spread,
        "backend": measure.backend("vq_ema_update_"),
    }
    return Row(values, {"over eager": 1.0}, step=steps["fastgen"])


def tables(effort: Effort) -> Iterator[Table]:
    cases = {name: partial(row, shape, effort) for name, shape in CODEBOOKS.items()}
    yield Table("vq_ema_update_, 1 thread, CPU seconds", COLUMNS, cases, NOTE)


def bench_vq_ema_update_(benchmark, measured):
    benchmark(measured.step)
