"""What `Sampler.explain` prints."""

from collections import Counter

import torch

from fastgen._load import EXTENSION


def explanation(request, compiled, executor, threads: int) -> str:
    program, target = executor.program, compiled.target
    rows = {
        "model": _model(request, program),
        "work": _work(request, program),
        "graph": _graph(compiled),
        "program": _program(program),
        "runs on": _executor(target, request.device, threads),
        "memory": _memory(executor),
        "checked": _checks(compiled),
        "compiled": f"in {compiled.seconds:.1f} s",
    }
    return "\n".join(f"{name:<10}{text}" for name, text in rows.items())


def multiply_adds(program) -> int:
    """Of one image: products of weights, of attention and of `dot` and `mix`."""
    total = 0
    for i in program.instructions:
        counts = [column.count for column in i.columns]
        if i.kind == "linear":
            each = sum(counts[: i.taps]) * i.nacc
        elif i.kind == "dot":
            each = counts[0]
        elif i.kind == "mix":
            each = sum(counts[len(counts) // 2 :])
        elif i.kind == "attention":
            each = sum(counts)
        else:
            each = 0
        total += len(i.table) * each
    return total


def forward_multiply_adds(request) -> int:
    """Of one forward of fn on one image, masked taps included where fn computes them."""
    from torch.utils.flop_counter import FlopCounterMode  # loads Triton

    fastgen = torch.ops.fastgen
    mapping = {fastgen.masked_conv2d: _conv, fastgen.gated_masked_conv2d: _conv}
    codes = torch.zeros(1, *request.shape, dtype=torch.int64)
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        request.forward(codes, request.condition)
    return counter.get_total_flops() // 2


def _conv(x, weight, *_, out_shape=None, **__):
    batch, height, width = x[0], x[2], x[3]
    products = batch * height * width
    for size in weight:
        products *= size
    return 2 * products


def _model(request, program):
    name = getattr(request.fn, "__name__", type(request.fn).__name__)
    order = request.order if isinstance(request.order, str) else "given"
    size = "x".join(map(str, request.shape))
    return (
        f"{name}: {size} codes of {request.likelihood.levels} levels by "
        f"{type(request.likelihood).__name__}; {order} order, {program.steps} steps, "
        f"{len(program.draws.index)} draws of {program.parameters} parameters"
    )


def _work(request, program):
    ours, forward = multiply_adds(program), forward_multiply_adds(request)
    text = f"{_count(ours)} multiply-adds an image"
    if not ours or not forward:
        return text
    naive = forward * program.steps
    return (
        f"{text}, {ours / forward:.2f} of one forward ({_count(forward)}); the naive sampler takes "
        f"{program.steps} forwards, {_count(naive)}: {naive / ours:,.0f} times as many"
    )


def _graph(compiled):
    nodes = Counter(node.kind for node in compiled.plan.nodes)
    ops = sum(compiled.ops.values())
    return f"{ops} ops on codes became {sum(nodes.values())} nodes: {_counts(nodes)}"


def _program(program):
    kinds = Counter(i.kind for i in program.instructions)
    entries = int((program.entries[:, 0] >= 0).sum())
    critical = sum(i.critical for i in program.instructions)
    return (
        f"{len(program.instructions)} instructions ({_counts(kinds)}), {critical} of them on the "
        f"critical path; {entries:,} entries in {program.steps} steps"
    )


def _executor(target, device, threads):
    if target.backend == "reference":
        return f"the plain PyTorch reference on {target.device}, {target.dtype}; slow"
    isa = EXTENSION.isa() if EXTENSION is not None else ""
    threads = f"{threads} thread" + ("s" if threads > 1 else "")
    text = f"C++ on the CPU ({isa}), {threads}"
    if target.dtype == torch.bfloat16:
        text += ", bfloat16 weights, all else float32"
    else:
        text += f", {str(target.dtype).removeprefix('torch.')}"
    if device.type != "cpu":
        text += f"; there is no executor for {device.type} yet"
    return text


def _memory(executor):
    itemsize = 8 if executor.dtype == torch.float64 else 4
    return (
        f"{_bytes(executor.floats_per_image * itemsize)} of activations an image in flight; "
        f"weights {_bytes(executor.weight_bytes)}, tables {_bytes(executor.table_bytes)}"
    )


def _checks(compiled):
    text = f"causal; values within {compiled.error:.1e} of fn's on codes it was not traced with"
    if compiled.bfloat16_error is not None:
        text += f"; bfloat16 weights change them by {compiled.bfloat16_error:.1e}"
    if compiled.half_error is not None:
        text += f"; fn's own half precision differs from float32 by {compiled.half_error:.1e}"
    return f"{text} (relative to the largest)"


def _counts(counter):
    return ", ".join(f"{count} {kind}" for kind, count in counter.most_common())


def _count(number):
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def _bytes(number):
    return f"{number / 1e6:.1f} MB" if number >= 1e5 else f"{number / 1e3:.1f} kB"
