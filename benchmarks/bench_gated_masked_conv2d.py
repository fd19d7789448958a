"""gated_masked_conv2d, forward and backward, beside conv2d(x, weight * mask) and its gate in plain
PyTorch, and beside our two ops one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F

import fastgen
from fastgen.benchmarks import measure
from fastgen.benchmarks.bench_masked_conv2d import Case, compare
from fastgen.benchmarks.measure import FORMATS, Effort
from fastgen.benchmarks.table import Row, Table

# out_channels are those of the convolution, twice those of y
LAYERS = {
    "digits, vertical 3x3": Case(16, 64, 128, (8, 8), (3, 3), "VB"),
    "digits, horizontal 1x3": Case(16, 64, 128, (8, 8), (1, 3), "HB"),
    "MNIST, first vertical 7x7": Case(16, 1, 128, (28, 28), (7, 7), "VA"),
    "MNIST, vertical 3x3": Case(16, 64, 128, (28, 28), (3, 3), "VB"),
    "MNIST, horizontal 1x3": Case(16, 64, 128, (28, 28), (1, 3), "HB"),
    "CIFAR-10, vertical 3x3": Case(16, 96, 192, (32, 32), (3, 3), "VB"),
    "CIFAR-10, horizontal 1x3, 3 colours": Case(16, 96, 192, (32, 32), (1, 3), "HB", 3),
}
ALSO_AT = ("avx2",)
STEMS = ("gated_masked_conv2d", "masked_conv2d")  # the first leaves the convolution to the second


class Problem:
    """A layer with tensors in it. Every contestant computes (y, pre) of x and a condition vector
    per sample, and the gradients of all its inputs from gradients of both outputs."""

    def __init__(self, case: Case):
        self.case, self.mask = case, case.mask()
        self.plan = fastgen.TapPlan(self.mask, self.mask.shape)

    def fused(self, x, weight, bias, condition):
        return fastgen.gated_masked_conv2d(x, weight, bias, condition, mask=self.plan)

    def two_ops(self, x, weight, bias, condition):
        pre = fastgen.masked_conv2d(x, weight, bias, mask=self.plan)
        return fastgen.gated_activation(pre, condition), pre

    def plain(self, mask) -> Callable:
        padding = [k // 2 for k in self.case.kernel]

        def run(x, weight, bias, condition):
            pre = F.conv2d(x, weight * mask, bias, padding=padding)
            a, b = (pre + condition[:, :, None, None]).chunk(2, dim=1)
            return torch.tanh(a) * torch.sigmoid(b), pre

        return run

    def step(self, function, memory_format=torch.contiguous_format, dtype=torch.float32):
        generator = torch.Generator().manual_seed(0)
        case = self.case

        def normal(*shape, scale=1.0):
            values = (torch.randn(shape, generator=generator) * scale).to(dtype)
            return values.contiguous(memory_format=memory_format) if len(shape) == 4 else values

        x = normal(case.batch, case.in_channels, *case.size).requires_grad_(not case.reads_image)
        scale = self.mask[0].numel() ** -0.5
        weight = normal(*self.mask.shape, scale=scale).requires_grad_()
        bias = normal(case.out_channels).requires_grad_()
        condition = normal(case.batch, case.out_channels).requires_grad_()
        grads = [
            normal(case.batch, channels, *case.size)
            for channels in (case.out_channels // 2, case.out_channels)
        ]
        wanted = [t for t in (weight, bias, condition, x) if t.requires_grad]

        def run():
            outputs = function(x, weight, bias, condition)
            return (*outputs, *torch.autograd.grad(outputs, wanted, grads))

        return run

    def contestants(self, *, compiled: bool) -> dict[str, Callable]:
        torch.compiler.reset()
        steps = {}
        for name, memory_format in FORMATS.items():
            plain = self.plain(self.mask.float().to(memory_format=memory_format))
            functions = {"fastgen": self.fused, "two ops": self.two_ops, "eager": plain}
            if compiled:
                functions["compiled"] = torch.compile(plain, fullgraph=True, dynamic=False)
            steps |= {
                f"{who} {name}": self.step(function, memory_format)
                for who, function in functions.items()
            }
        return steps

    def check(self, steps: dict[str, Callable]) -> dict[str, float]:
        exact = self.step(self.plain(self.mask.double()), dtype=torch.float64)()
        names = ("y", "pre", *(f"gradient of {n}" for n in ("weight", "bias", "condition", "x")))
        return measure.check_steps(steps, exact, names)


COLUMNS = {
    "share": ("share of FMA peak", "{:.2f}"),
    "over eager channels-last": ("over eager channels-last", "{:.2f}x"),
    "over eager NCHW": ("over eager NCHW", "{:.2f}x"),
    "over two ops channels-last": ("over two ops", "{:.2f}x"),
    "over best": ("over best of all", "{:.2f}x"),
    "fastgen channels-last": ("ms", "{:.3f}"),
    "limit": ("limit ms", "{:.3f}"),
    "spread": ("spread", "{:.0%}"),
    "error": ("error", "{:.0e} ✓"),
    "eager error": ("eager's", "{:.0e}"),
    "backend": ("backend", "{}"),
}
NOTE = (
    "Share and limit count the convolution alone, on unmasked weights; the gate is extra work. Two "
    "ops: masked_conv2d, then gated_activation. Ratios over NCHW peers are of NCHW inputs on both "
    "sides; all others of channels-last. Best: of eager and torch.compile in either format."
)


def row(case: Case, effort: Effort) -> Row:
    with measure.threads(1):
        problem = Problem(case)
        steps = problem.contestants(compiled=not effort.quick)
        values = {**problem.check(steps), "backend": measure.backend(*STEMS)}
        values |= compare(*measure.race_with_peak(steps, effort), case.flops())
    return Row(values, {"over best": 1.0}, step=steps["fastgen channels-last"])


def tables(effort: Effort) -> Iterator[Table]:
    yield Table(
        "gated_masked_conv2d, forward + backward, 1 thread, CPU seconds",
        COLUMNS,
        {name: partial(row, case, effort) for name, case in LAYERS.items()},
        NOTE,
    )


def bench_gated_masked_conv2d(benchmark, measured):
    benchmark(measured.step)
