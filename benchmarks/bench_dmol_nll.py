"""dmol_nll, the loss of PixelCNN++, forward and backward, beside its code of 2017 in PyTorch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F

import fastgen
from fastgen.benchmarks import one_pass
from fastgen.benchmarks.measure import Effort
from fastgen.benchmarks.one_pass import Problem
from fastgen.benchmarks.own_process import extra_megabytes, in_own_process
from fastgen.benchmarks.table import Row, Table

# B, C, H, W, components, memory format of the parameters
CASES = {
    "16x3x32x32, 10 components": (16, 3, 32, 32, 10, torch.contiguous_format),
    "the same, channels-last": (16, 3, 32, 32, 10, torch.channels_last),
    "64x1x28x28, 10 components": (64, 1, 28, 28, 10, torch.contiguous_format),
    "16x3x8x8, 5 components": (16, 3, 8, 8, 5, torch.contiguous_format),
}
QUICK = ("16x3x8x8, 5 components",)
ALSO_AT = ("avx2",)
_LARGE = "16x3x32x32, 10 components"
GOALS = {_LARGE: {"over eager": 22.0, "over compiled": 42.0}}
MOST = {_LARGE: {"gradient error": 5e-6, "memory": 1 / 20}}
COLUMNS = {
    "over eager": ("over eager", "{:.2f}x"),
    "over compiled": ("over compiled", "{:.2f}x"),
    "over eager first": ("eager, channels first", "{:.2f}x"),
    "over compiled first": ("compiled, channels first", "{:.2f}x"),
    "over best": ("over the best", "{:.2f}x"),
} | one_pass.COLUMNS
COLUMNS |= {
    "gradient error": ("gradient off, absolute", "{:.1e}"),
    "eager gradient error": ("eager's", "{:.1e}"),
    "memory": ("memory, share of eager's", "{:.3f}"),
    "megabytes": ("MiB", "{:.2f}"),
}
NOTE = (
    " An element is a pixel. Parameters are standard normal. Eager is the code of 2017 as it is "
    "usually ported, with channels last; channels first is the same on views of the parameters as "
    "they are. Its gradient error is against its own float64. Memory: the peak beyond parameters, "
    "their gradient and the result."
)
_LEVELS = 256


def mixtures(params, x, components):
    """Logits (B, K, H, W), and of each colour x - mean and log-scales (B, C, K, H, W)."""
    colors = x.shape[1]
    logits, rest = params[:, :components], params[:, components:]
    if colors == 1:
        means, log_scales = rest.unflatten(1, (2, 1, components)).unbind(1)
        return logits, x[:, :, None] - means, log_scales.clamp(min=-7.0)
    means, log_scales, coefficients = rest.unflatten(1, (3, 3, components)).unbind(2)
    c = torch.tanh(coefficients)
    x0, x1 = x[:, None, 0], x[:, None, 1]
    second = means[:, 1] + c[:, 0] * x0
    third = means[:, 2] + c[:, 1] * x0 + c[:, 2] * x1
    means = torch.stack((means[:, 0], second, third), 1)
    return logits, x[:, :, None] - means, log_scales.clamp(min=-7.0)


def bins_of_2017(centered, log_scales, x):
    inverse, half = torch.exp(-log_scales), 1 / (_LEVELS - 1)
    plus, minus, middle = (
        inverse * (centered + half),
        inverse * (centered - half),
        inverse * centered,
    )
    difference = torch.sigmoid(plus) - torch.sigmoid(minus)
    density = middle - log_scales - 2 * F.softplus(middle) - math.log((_LEVELS - 1) / 2)
    inner = torch.where(difference > 1e-5, torch.log(difference.clamp(min=1e-12)), density)
    inner = torch.where(x > 0.999, -F.softplus(minus), inner)
    return torch.where(x < -0.999, plus - F.softplus(plus), inner)


def channels_first(params, x, components):
    logits, centered, log_scales = mixtures(params, x, components)
    bins = bins_of_2017(centered, log_scales, x[:, :, None]).sum(1)
    return -torch.logsumexp(F.log_softmax(logits, 1) + bins, 1).sum((1, 2))


def plain(params, x, components):
    """As ports of the code of 2017 have it: (B, H, W, colours, components)."""
    params, x = params.permute(0, 2, 3, 1), x.permute(0, 2, 3, 1)
    colors = x.shape[-1]
    logits, rest = params[..., :components], params[..., components:]
    rest = rest.reshape(*x.shape, -1)
    means, log_scales = rest[..., :components], rest[..., components : 2 * components]
    values = x.unsqueeze(-1).expand(*x.shape, components)
    if colors == 3:
        c = torch.tanh(rest[..., 2 * components :])
        second = means[..., 1, :] + c[..., 0, :] * values[..., 0, :]
        third = (
            means[..., 2, :] + c[..., 1, :] * values[..., 0, :] + c[..., 2, :] * values[..., 1, :]
        )
        means = torch.stack([means[..., 0, :], second, third], -2)
    bins = bins_of_2017(values - means, log_scales.clamp(min=-7.0), values).sum(-2)
    return -torch.logsumexp(F.log_softmax(logits, -1) + bins, -1).sum((1, 2))


def plain_exact(params, x, components):
    logits, centered, log_scales = mixtures(params, x, components)
    inverse, half = torch.exp(-log_scales), 1 / (_LEVELS - 1)
    below = -F.softplus(-inverse * (centered + half))
    above = -F.softplus(inverse * (centered - half))
    inside = below + above + torch.log(-torch.expm1(-2 * half * inverse))
    inside = torch.where(x[:, :, None] > 0.999, above, inside)
    bins = torch.where(x[:, :, None] < -0.999, below, inside)
    nats = torch.logsumexp(F.log_softmax(logits, 1) + bins.sum(1), 1)
    return -nats.sum((1, 2))


def ours(params, x, components):
    return fastgen.dmol_nll(params, x, components=components)


def data(case: str):
    batch, colors, height, width, components, memory_format = CASES[case]
    generator = torch.Generator().manual_seed(0)
    count = (10 if colors == 3 else 3) * components
    params = torch.randn(batch, count, height, width, generator=generator)
    codes = torch.randint(0, _LEVELS, (batch, colors, height, width), generator=generator)
    return params.contiguous(memory_format=memory_format), codes * (2 / (_LEVELS - 1)) - 1


def step(function, case: str, dtype=torch.float32):
    params, x = data(case)
    params = params.to(dtype).requires_grad_()
    components = CASES[case][4]
    # the codes in float64 again: the nearest level
    x = x if dtype == torch.float32 else ((x.double() + 1) * 127.5).round() * (2 / 255) - 1
    grad = torch.linspace(0.5, 1.0, len(x), dtype=dtype)
    return one_pass.with_gradients(lambda: function(params, x, components), [params], (grad,))


def problem(case: str, *, compiled: bool) -> Problem:
    functions = {"fastgen": ours, "eager": plain, "eager first": channels_first}
    if compiled:
        functions["compiled"] = one_pass.compiled(plain)
        functions["compiled first"] = torch.compile(channels_first, fullgraph=True, dynamic=False)
    params, x = data(case)
    gradient = {}
    for name, function in (("", plain_exact), ("eager ", plain)):
        exact = step(function, case, torch.double)()[1]
        found = step(ours if name == "" else plain, case)()[1]
        gradient[f"{name}gradient error"] = (found - exact).abs().max().item()
    pixels = x.numel() // x.shape[1]
    return Problem(
        steps={name: step(function, case) for name, function in functions.items()},
        bytes=4 * (3 * params.numel() + 2 * x.numel()),  # params and x twice, the gradient
        elements=pixels,
        results=lambda: (
            step(ours, case)(), step(plain_exact, case)(), step(plain_exact, case, torch.double)()
        ),
        names=("nll", "gradient of params"),
        extra=gradient,
    )  # fmt: skip


def megabytes(case: str, is_ours: bool) -> float | None:
    run = step(ours if is_ours else plain, case)
    step(ours if is_ours else plain, QUICK[0])()  # whatever the first call takes
    return extra_megabytes(run)


def row(measured, case: str) -> Row:
    found = measured()
    own, eager = (in_own_process(megabytes, case, is_ours) for is_ours in (True, False))
    memory = {"megabytes": own}
    if own is not None and eager:
        memory["memory"] = max(own, 0.0) / eager
    return dataclasses.replace(found, values=found.values | memory, most=MOST.get(case, {}))


def tables(effort: Effort) -> Iterator[Table]:
    for table in one_pass.tables("dmol_nll", CASES, QUICK, GOALS, effort, note=NOTE):
        cases = {case: partial(row, measured, case) for case, measured in table.cases.items()}
        yield dataclasses.replace(table, columns=COLUMNS, cases=cases)


def bench_dmol_nll(benchmark, measured):
    benchmark(measured.step)
