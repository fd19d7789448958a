"""masked_conv2d, forward and backward, beside conv2d(x, weight * mask): eager and compiled, NCHW
and channels-last."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

import fastgen
from fastgen.benchmarks import measure
from fastgen.benchmarks.measure import FORMATS, Effort, Timing
from fastgen.benchmarks.table import Row, Table
from fastgen.nn.masked_conv2d import causal_mask, color_of_channels


@dataclass(frozen=True)
class Case:
    """One layer of a model: `batch` images of `size`, and what fastgen.nn.MaskedConv2d takes."""

    batch: int
    in_channels: int
    out_channels: int
    size: tuple[int, int]
    kernel: tuple[int, int]
    mask_type: str  # of MaskedConv2d; "all" masks nothing
    colors: int = 1

    @property
    def reads_image(self) -> bool:
        """A first layer, which needs no gradient of its input."""
        return self.mask_type.endswith("A")

    def mask(self) -> torch.Tensor:
        shape = (self.out_channels, self.in_channels, *self.kernel)
        if self.mask_type == "all":
            return torch.ones(shape, dtype=torch.bool)
        out, in_ = (
            color_of_channels(n, self.colors, "blocks")
            for n in (self.out_channels, self.in_channels)
        )
        return causal_mask(self.mask_type, self.kernel, out, in_)

    def flops(self) -> float:
        """Of forward and backward, on unmasked weights alone."""
        passes = 2 if self.reads_image else 3
        pixels = self.batch * self.size[0] * self.size[1]
        return 2.0 * passes * pixels * int(self.mask().sum())


LAYERS = {
    "PixelCNN MNIST, 3x3 B, 64 channels": Case(16, 64, 64, (28, 28), (3, 3), "B"),
    "PixelCNN MNIST, first 7x7 A": Case(16, 1, 64, (28, 28), (7, 7), "A"),
    "PixelCNN CIFAR-10, first 7x7 A": Case(16, 3, 64, (32, 32), (7, 7), "A"),
    "PixelCNN CIFAR-10, 5x5 B, 128 channels": Case(16, 128, 128, (32, 32), (5, 5), "B"),
}
ALSO_AT = ("avx2",)  # the level most users have


def _goals(share, over_channels_last, over_nchw=None):
    goals = {"share": share, "over eager channels-last": over_channels_last}
    return goals if over_nchw is None else goals | {"over eager NCHW": over_nchw}


_AVX512 = [_goals(0.88, 1.6, 2.2), _goals(0.8, 2.1, 12), _goals(0.88, 2, 6), _goals(0.9, 1.85, 2)]
GOALS = {  # CPU level -> layer -> column -> least value
    "avx512": dict(zip(LAYERS, _AVX512, strict=True)),
    "avx2": dict.fromkeys(LAYERS, _goals(0.8, 1.5)),
}
TWO_THREADS_GOAL = 1.8


def _square(channels, size, kernel, mask_type="B", batch=16, colors=1) -> Case:
    return Case(batch, channels, channels, (size, size), (kernel, kernel), mask_type, colors)


def _named(cases: Iterable[Case]) -> dict[str, Case]:
    def name(c):
        colors = f", {c.colors} colours" if c.colors > 1 else ""
        return (
            f"{c.batch}x{c.in_channels}x{c.size[0]}x{c.size[1]} -> {c.out_channels}, "
            f"{c.kernel[0]}x{c.kernel[1]} {c.mask_type}{colors}"
        )

    return {name(case): case for case in cases}


# Around 16x64x28x28, 3x3 B: each dimension in turn, then what gated PixelCNNs have.
SWEEP = _named(
    [
        *(_square(64, 28, k) for k in (1, 3, 5, 7)),
        *(_square(c, 28, 3) for c in (1, 2, 3, 4, 8, 16, 24, 32, 48, 96, 128)),
        _square(256, 16, 3),
        *(_square(64, size, 3) for size in (8, 16, 32)),
        _square(64, 64, 3, batch=4),
        *(_square(64, 28, 3, batch=b) for b in (1, 2, 4, 64)),
        *(_square(c, 8, k, batch=b) for c, k, b in [(16, 3, 1), (64, 3, 1), (64, 5, 64)]),
        *(_square(c, 32, 5, batch=4) for c in (32, 256)),
        *(_square(c, 8, 7, batch=b) for c, b in [(8, 1), (32, 16), (128, 16)]),
        *(Case(16, i, 64, (s, s), (k, k), "A") for i, s, k in [(1, 8, 7), (1, 64, 7), (1, 28, 5)]),
        *(Case(b, 3, 96, (32, 32), (7, 7), "A", 3) for b in (1, 16)),
        *(_square(96, 32, k, t, colors=3) for k, t in [(3, "B"), (5, "B"), (1, "B")]),
        *(_square(c, 28, 1, "all") for c in (16, 64, 128)),
        _square(256, 8, 1, "all"),
        _square(64, 28, 1, "all", batch=1),
        Case(16, 64, 128, (28, 28), (3, 3), "VB"),
        Case(16, 64, 128, (8, 8), (3, 3), "VB"),
        Case(16, 1, 128, (28, 28), (7, 7), "VA"),
        Case(16, 64, 128, (28, 28), (1, 3), "HB"),
        Case(16, 64, 128, (8, 8), (1, 3), "HB"),
        Case(16, 1, 128, (28, 28), (1, 7), "HA"),
        Case(16, 96, 192, (32, 32), (1, 3), "HB", 3),
        Case(16, 64, 64, (28, 28), (3, 3), "HB"),
    ]
)


class Problem:
    """A case with tensors in it, and the functions that compete on it."""

    def __init__(self, case: Case):
        generator = torch.Generator().manual_seed(0)

        def normal(*shape):
            return torch.randn(shape, generator=generator)

        self.case, self.mask = case, case.mask()
        self.x = normal(case.batch, case.in_channels, *case.size)
        self.weight = normal(*self.mask.shape) / self.mask[0].numel() ** 0.5
        self.bias = normal(case.out_channels)
        self.grad = normal(case.batch, case.out_channels, *case.size)
        self.plan = fastgen.TapPlan(self.mask, self.mask.shape)

    def ours(self, x, weight, bias):
        return fastgen.masked_conv2d(x, weight, bias, mask=self.plan)

    def plain(self, mask) -> Callable:
        padding = [k // 2 for k in self.case.kernel]
        if self.mask.all():
            return lambda x, weight, bias: F.conv2d(x, weight, bias, padding=padding)
        return lambda x, weight, bias: F.conv2d(x, weight * mask, bias, padding=padding)

    def step(self, function, memory_format=torch.contiguous_format, dtype=torch.float32):
        """Forward and backward as a function without arguments, which returns y and the gradients
        of weight, bias and, unless x is an image, x."""

        def placed(tensor, requires_grad):
            copy = tensor.to(dtype, memory_format=memory_format, copy=True)
            return copy.requires_grad_(requires_grad)

        x, grad = placed(self.x, not self.case.reads_image), placed(self.grad, False)
        weight = placed(self.weight, True)
        bias = self.bias.to(dtype, copy=True).requires_grad_()
        wanted = [t for t in (weight, bias, x) if t.requires_grad]

        def run():
            y = function(x, weight, bias)
            return (y, *torch.autograd.grad(y, wanted, grad))

        return run

    def contestants(self, *, compiled: bool) -> dict[str, Callable]:
        torch.compiler.reset()  # or it would give up after compiling the same function 8 times
        mask = self.mask.float()
        steps = {}
        for name, memory_format in FORMATS.items():
            steps[f"fastgen {name}"] = self.step(self.ours, memory_format)
            plain = self.plain(mask.to(memory_format=memory_format))
            steps[f"eager {name}"] = self.step(plain, memory_format)
            if compiled:
                compiled_plain = torch.compile(plain, fullgraph=True, dynamic=False)
                steps[f"compiled {name}"] = self.step(compiled_plain, memory_format)
        return steps

    def check(self, steps: dict[str, Callable]) -> dict[str, float]:
        exact = self.step(self.plain(self.mask.double()), dtype=torch.float64)()
        names = ("y", "gradient of weight", "gradient of bias", "gradient of x")
        return measure.check_steps(steps, exact, names)


COLUMNS = {
    "share": ("share of FMA peak", "{:.2f}"),
    "over eager channels-last": ("over eager channels-last", "{:.2f}x"),
    "over eager NCHW": ("over eager NCHW", "{:.2f}x"),
    "over best NCHW": ("over best of NCHW", "{:.2f}x"),
    "over best": ("over best of all", "{:.2f}x"),
    "fastgen channels-last": ("ms", "{:.3f}"),
    "limit": ("limit ms", "{:.3f}"),
    "spread": ("spread", "{:.0%}"),
    "error": ("error", "{:.0e} ✓"),
    "eager error": ("eager's", "{:.0e}"),
    "backend": ("backend", "{}"),
}
NOTE = (
    "Share, ms and spread (median over best sample) of fastgen with channels-last inputs. Limit: "
    "FLOPs on unmasked weights at the measured FMA peak. Ratios over NCHW peers are of NCHW inputs "
    "on both sides; all others of channels-last fastgen. Best: of eager and torch.compile. Error: "
    "the largest of y and all gradients against float64, relative to the largest value. In "
    "brackets the goal, and the ratio at the limit where that is less."
)


def row(case: Case, effort: Effort, goals: dict[str, float]) -> Row:
    """Everything about one layer on one thread."""
    with measure.threads(1):
        problem = Problem(case)
        steps = problem.contestants(compiled=not effort.quick)
        values = {**problem.check(steps), "backend": measure.backend("masked_conv2d")}
        values |= compare(*measure.race_with_peak(steps, effort), case.flops())
    return Row(values, goals, bounds(values), steps["fastgen channels-last"])


def compare(timings: dict[str, Timing], peak: float | None, flops: float) -> dict[str, float]:
    """What the columns say, of contestants named "fastgen FORMAT", "eager FORMAT", ..."""
    ms = {name: 1e3 * timing.best for name, timing in timings.items()}
    ours = {name: ms[f"fastgen {name}"] for name in FORMATS}
    peers = {name: t for name, t in ms.items() if name.startswith(("eager", "compiled"))}
    values = {
        f"over {name}": t / ours[name.split()[-1]]
        for name, t in ms.items()
        if not name.startswith("fastgen")
    }
    values |= ms | {
        "over best NCHW": min(t for name, t in peers.items() if "NCHW" in name) / ours["NCHW"],
        "over best": min(peers.values()) / ours["channels-last"],
        "spread": timings["fastgen channels-last"].spread,
    }
    if peak is not None:
        limit = 1e3 * flops / peak
        values |= {"limit": limit, "share": limit / ours["channels-last"]}
    return values


def bounds(values: dict) -> dict[str, float]:
    """What the ratios over peers would be for a kernel that runs at the FMA peak throughout."""
    if "limit" not in values:
        return {}
    return {f"over eager {name}": values[f"eager {name}"] / values["limit"] for name in FORMATS}


def threads_row(case: Case, effort: Effort) -> Row:
    """How one layer gains from threads."""
    problem = Problem(case)
    steps = problem.contestants(compiled=False)
    problem.check(steps)
    steps = {name: steps[f"{name} channels-last"] for name in ("fastgen", "eager")}
    return measure.threads_row(steps, effort, goal=TWO_THREADS_GOAL)


def tables(effort: Effort) -> Iterator[Table]:
    """The tables of a run with this effort, at the CPU level in force."""
    goals = GOALS.get(measure.isa(), {})
    yield Table(
        "masked_conv2d, forward + backward, 1 thread, CPU seconds",
        COLUMNS,
        {name: partial(row, case, effort, goals.get(name, {})) for name, case in LAYERS.items()},
        NOTE,
    )
    if effort.threads > 1 and not effort.quick:
        yield measure.threads_table(
            "masked_conv2d, forward + backward, channels-last",
            {name: partial(threads_row, case, effort) for name, case in LAYERS.items()},
            effort,
        )
    if effort.full:
        goals = {"over best NCHW": 1.0, "over best": 1.0}
        yield Table(
            "masked_conv2d, forward + backward, 1 thread, CPU seconds: never slower?",
            COLUMNS,
            {name: partial(row, case, effort, goals) for name, case in SWEEP.items()},
            NOTE,
        )


def bench_masked_conv2d(benchmark, measured):
    benchmark(measured.step)
