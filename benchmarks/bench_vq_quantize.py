"""vq_quantize in a training step: fastgen.nn.VectorQuantize beside vector-quantize-pytorch's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial

import torch

import fastgen
from fastgen.benchmarks import measure
from fastgen.benchmarks import vq_problems as problems
from fastgen.benchmarks.measure import Effort
from fastgen.benchmarks.own_process import in_own_process
from fastgen.benchmarks.table import Row, Table
from fastgen.benchmarks.vq_problems import QUICK_SHAPES, SHAPES, Shape
from fastgen.nn import VectorQuantize

ALSO_AT = ()
_SCORES = 1 << 26  # rows x codes that the peer is given at most: 256 MiB for each of its arrays
_GRADIENTS = {"rotation": True, "straight": False}

_WIDE_GOAL = 20.0 if problems.can_filter() else 14.0
GOALS = dict(zip(SHAPES, (18.0, _WIDE_GOAL, 40.0, 100.0), strict=True))

COLUMNS = {
    "over rotation": ("over vector-quantize-pytorch", "{:.1f}x"),
    "over straight": ("both straight-through", "{:.1f}x"),
    "over eval": ("both in eval mode", "{:.1f}x"),
    "rotation": ("ms", "{:.2f}"),
    "straight": ("straight-through ms", "{:.2f}"),
    "nearest": ("vq_nearest ms", "{:.2f}"),
    "share": ("its share of the step", "{:.2f}"),
    "statistics": ("vq_quantize beyond it", "{:.1%}"),
    "backward": ("gradient ms", "{:.2f}"),
    "copy": ("a copy's share of it", "{:.2f}"),
    "spread": ("spread", "{:.0%}"),
    "error": ("error", "{:.0e} ✓"),
    "backend": ("backend", "{}"),
}
NOTE = (
    "A step: forward in training mode with moving averages, then the gradient of x from the loss "
    "and a given gradient of quantized; default options, so by the rotation trick. Rows are codes "
    "with noise of 0.3 sigma. The peer gets at most 2^26 rows x codes, scaled up; that counts the "
    "update of its codebook twice where N K is larger, and spares it larger arrays. "
    "vq_quantize beyond it: values, commitment and statistics, over the time of vq_nearest. A "
    "copy: Tensor.copy_ of as many bytes as the straight-through gradient moves. Error: of the "
    "loss, the gradient and the moved codebook against the peer's, or a float64 step's where it "
    "is missing."
)


def layers(shape: Shape, rotation: bool, codebook):
    """Ours, and the peer with the same state or None."""
    ours = VectorQuantize(shape.d, shape.k, rotation_trick=rotation)
    for name, value in (("embed", codebook), ("embed_avg", codebook)):
        getattr(ours._codebook, name).data.copy_(value)
    package = problems.peer("vector_quantize_pytorch")
    if package is None:
        return ours, None
    theirs = package.VectorQuantize(shape.d, shape.k, rotation_trick=rotation)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def step(layer, x) -> Callable:
    """One training step: the loss, and the gradient of x for a gradient of quantized."""
    x = x.clone().requires_grad_()
    grad = x.detach().cos()

    def run():
        quantized, _, loss = layer(x)
        return loss.detach(), torch.autograd.grad((quantized, loss.sum()), x, (grad, None))[0]

    return run


def evaluation(layer, x) -> Callable:
    layer = copy.deepcopy(layer).eval()

    def run():
        with torch.no_grad():
            return layer(x)[0]

    return run


def check(shape: Shape, rotation: bool) -> float:
    """The largest error of one step of a layer against the peer's."""
    x, codebook = problems.data(shape.fewer_rows(1 << 22))
    ours, theirs = layers(shape, rotation, codebook[None])
    if theirs is None:
        theirs = copy.deepcopy(ours).double()
        x_theirs = x.double()
    else:
        x_theirs = x
    got, want = step(ours, x)(), step(theirs, x_theirs)()
    pairs = [*zip(got, want, strict=True), (ours._codebook.embed, theirs._codebook.embed)]
    error = max(measure.relative_error(a.detach(), b.detach().double()) for a, b in pairs)
    assert error <= 1e-4, f"a training step is {error:.2g} off the peer's"
    return error


def figures(shape, effort) -> dict:
    """Everything about a shape on one thread, in this process."""
    shape, effort = Shape(*shape), Effort(**effort)
    fewer = shape.fewer_rows(_SCORES)
    x, codebook = problems.data(shape)
    part, scale = x[: fewer.n], shape.n / fewer.n
    calls, scales = {}, {}
    with problems.one_thread():
        errors = [check(shape, rotation) for rotation in _GRADIENTS.values()]
        for name, rotation in _GRADIENTS.items():
            ours, theirs = layers(shape, rotation, codebook[None])
            calls[name] = step(ours, x)
            if theirs is not None:
                calls[f"peer {name}"], scales[f"peer {name}"] = step(theirs, part), scale
        calls["eval"] = evaluation(ours, x)
        if theirs is not None:
            calls["peer eval"], scales["peer eval"] = evaluation(theirs, part), scale
        calls["nearest"] = lambda: fastgen.vq_nearest(x, codebook)
        calls["quantize"] = lambda: fastgen.vq_quantize(x, codebook)
        found = fastgen.vq_quantize(x, codebook)
        weight = torch.ones_like(found.commitment)
        calls["backward"] = lambda: torch.ops.fastgen.vq_quantize_backward(
            x, weight, x, found.indices, codebook, 1, False
        )
        # reads grad and x, writes the gradient: 3 of x's size; a copy moves 2
        source = torch.zeros(3 * x.numel() // 2)
        calls["copy"] = partial(torch.empty_like(source).copy_, source)
        timings = measure.race(calls, effort)
    seconds = {name: timing.best * scales.get(name, 1.0) for name, timing in timings.items()}
    values = {
        f"over {name}": seconds[f"peer {name}"] / seconds[name]
        for name in ("rotation", "straight", "eval")
        if f"peer {name}" in seconds
    }
    return values | {
        **{name: 1e3 * seconds[name] for name in ("rotation", "straight", "nearest", "backward")},
        "share": seconds["nearest"] / seconds["rotation"],
        "statistics": seconds["quantize"] / seconds["nearest"] - 1,
        "copy": seconds["copy"] / seconds["backward"],
        "spread": timings["rotation"].spread,
        "error": max(errors),
        "backend": measure.backend("vq_quantize"),
    }


def row(shape: Shape, effort: Effort, *, huge_pages: bool, goal: float | None) -> Row:
    if huge_pages:
        values = in_own_process(figures, shape, asdict(effort), THP_MEM_ALLOC_ENABLE="1")
    else:
        values = figures(shape, asdict(effort))
    x, codebook = problems.data(shape)
    goals = {} if goal is None else {"over rotation": goal}
    return Row(values, goals, step=step(layers(shape, True, codebook[None])[0], x))


def threads_row(shape: Shape, effort: Effort) -> Row:
    fewer = shape.fewer_rows(_SCORES)
    x, codebook = problems.data(fewer)
    ours, theirs = layers(fewer, True, codebook[None])
    steps = {"fastgen": step(ours, x)}
    if theirs is not None:
        steps["eager"] = step(theirs, x)
    return measure.threads_row(steps, effort, goal=1.7)


def tables(effort: Effort) -> Iterator[Table]:
    shapes = QUICK_SHAPES if effort.quick else SHAPES
    title = "training step with VectorQuantize, 1 thread, CPU seconds"
    settings = {f"{title}, torch with huge pages": True, f"{title}, torch as it comes": False}
    if effort.quick:
        settings = {title: False}
    for words, huge_pages in settings.items():
        cases = {
            name: partial(row, shape, effort, huge_pages=huge_pages, goal=GOALS.get(name))
            for name, shape in shapes.items()
        }
        yield Table(words, COLUMNS, cases, NOTE + problems.missing_note())
    if effort.threads > 1 and not effort.quick:
        yield measure.threads_table(
            "training step with VectorQuantize, eager: vector-quantize-pytorch",
            {name: partial(threads_row, shape, effort) for name, shape in shapes.items()},
            effort,
        )


def bench_vq_quantize(benchmark, measured):
    benchmark(measured.step)
