"""Lowering: whatever passes run, a program computes what the network computes, cells in time."""

import numpy as np
import pytest
import torch
from torch import nn

from fastgen import _load
from fastgen.benchmarks import sampling_nets as nets
from fastgen.likelihoods import Categorical
from fastgen.sampling.arguments import ranks_of
from fastgen.sampling.executors import CpuExecutor, Draw, ReferenceExecutor
from fastgen.sampling.lower import emit, expressions, lower, optimize, slots
from fastgen.sampling.trace import trace

PASSES = ("attention", "fusing", "splitting", "gates", "sides")


class HalfPruned(nets.PlainBatchNorm):
    """Half of all weights zero at random: must not fall apart into a class a channel."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        for parameter in self.parameters():
            if parameter.dim() == 4:
                parameter.data *= torch.rand_like(parameter) > 0.5


class Columns(nn.Module):
    """Column-major order."""

    def __init__(self):
        super().__init__()
        self.net = nets.PlainBatchNorm(16, 2, 8)

    def forward(self, codes):
        return self.net(codes.transpose(2, 3)).transpose(3, 4)


CASES = {
    "two stacks": (lambda: nets.TwoStacks(16, 2, 8), (1, 7, 6), 8, "raster"),
    "batch norm": (lambda: nets.PlainBatchNorm(20, 3, 8), (1, 7, 6), 8, "raster"),
    "half pruned": (lambda: HalfPruned(20, 2, 8), (1, 5, 6), 8, "raster"),
    "colour groups": (lambda: nets.ColourGroups(18, 2, 6), (3, 5, 4), 6, "subpixel"),
    "strides": (lambda: nets.ShiftedStreams(6, 8), (1, 6, 8), 8, "raster"),
    "transformer": (lambda: nets.PixelTransformer((5, 4), 16, 2, 2, 8), (1, 5, 4), 8, "raster"),
    "columns": (Columns, (1, 6, 5), 8, torch.arange(30).view(5, 6).T),
}


def traced_case(name, seed=0):
    make, shape, levels, order = CASES[name]
    torch.manual_seed(seed)
    net = nets.randomise(make())
    traced = trace(net, shape, ranks_of(order, shape, coupled=False), levels=levels)
    codes = torch.randint(levels, (2, *shape))
    torch.set_default_dtype(torch.float64)  # of codes times a number
    try:
        with torch.no_grad():
            values = net.double()(codes)
    finally:
        torch.set_default_dtype(torch.float32)
    return traced, codes, values


def parameters(program, codes, values, ahead=False):
    """What the program computes, in the layout of the network's result."""
    executor = ReferenceExecutor(program, torch.float64, poison=True, ahead=ahead)
    flat = torch.full((len(codes), len(program.draws.param), program.parameters), torch.nan)
    flat = flat.double()
    assert executor.run(codes.flatten(1).contiguous(), params=flat) is None
    index = torch.as_tensor(program.draws.index[:, 0]).long()
    result = torch.full((*values.shape[:2], values[0, 0].numel()), torch.nan).double()
    result[:, :, index] = flat.transpose(1, 2)
    return result.view_as(values)


@pytest.mark.parametrize("name", CASES)
def test_every_pass_on_and_off_computes_the_network(name):
    traced, codes, values = traced_case(name)
    every = dict.fromkeys(PASSES, True)
    some = [every, dict.fromkeys(PASSES, False), *(every | {one: False} for one in PASSES)]
    for i, passes in enumerate(some):
        program = emit(optimize(traced, **passes), chunk=2 * (i % 2))
        got = parameters(program, codes, values)
        torch.testing.assert_close(got, values, rtol=0, atol=1e-5)  # float32 constants


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_a_second_thread_may_run_early_or_late(name, ahead):
    traced, codes, values = traced_case(name)
    program = emit(optimize(traced), pair=True)
    got = parameters(program, codes, values, ahead)
    torch.testing.assert_close(got, values, rtol=0, atol=1e-5)


@pytest.mark.skipif(_load.EXTENSION is None, reason="needs the compiled kernels")
@pytest.mark.parametrize("name", CASES)
def test_a_second_thread_changes_no_bit(name):
    traced, codes, _ = traced_case(name)
    plan = optimize(traced)
    uniforms = torch.rand(2, 1, codes[0].numel(), dtype=torch.float64)
    draw = Draw(Categorical(CASES[name][2]), uniforms)

    def drawn(program, threads):
        codes = torch.zeros(2, uniforms.shape[2], dtype=torch.int64)
        params = torch.full((2, len(program.draws.param), program.parameters), torch.nan)
        CpuExecutor(program).run(codes, draw=draw, params=params, threads=threads, group=1)
        return codes, params

    alone = drawn(emit(plan), 1)
    program = emit(plan, pair=True)
    assert len(program.background) or name != "two stacks"
    for threads in (1, 2, 2, 2, 4):
        for got, expected in zip(drawn(program, threads), alone, strict=True):
            assert torch.equal(got, expected)


@pytest.mark.parametrize("seed", range(3))
def test_any_initialisation(seed):
    traced, codes, values = traced_case("half pruned", seed)
    program = lower(traced)
    torch.testing.assert_close(parameters(program, codes, values), values, rtol=0, atol=1e-5)


def test_fusion_leaves_few_instructions():
    program = lower(traced_case("two stacks")[0])
    epilogues = [i.epilogue for i in program.instructions if i.kind == "linear"]
    assert epilogues.count("gate") + epilogues.count("gate_both") == 6
    program = lower(traced_case("batch norm")[0])
    assert {i.kind for i in program.instructions} <= {"linear", "map"}
    assert sum(i.kind == "map" for i in program.instructions) <= 1  # the scaled codes
    kinds = [i.kind for i in lower(traced_case("transformer")[0]).instructions]
    assert "attention" in kinds and "dot" not in kinds and "mix" not in kinds


def test_the_vertical_stack_runs_a_row_at_a_time():
    net, shape = nets.TwoStacks(16, 2, 8), (1, 4, 16)
    plan = optimize(trace(net, shape, ranks_of("raster", shape, coupled=False), levels=8))
    rows = [plan.batch(n) for n in plan.nodes if n.kind == "linear" and len(n.taps) == 6]
    assert len(rows) == 2 and all(batch == 16 for batch in rows)


def test_slots_are_used_again_and_never_too_early():
    cells = np.array([(0, 2, 16), (1, 1, 16), (2, 5, 16), (3, 3, 8), (3, 4, 16)])
    offsets, end = slots.allocate(cells, 16)
    assert offsets.tolist() == [16, 32, 32, 48, 16] and end == 56


def test_expressions_compute_equal_parts_once():
    elu = ("elu", ("add", ("acc", 0), ("num", 1.0)))
    code, consts, temporaries = expressions.straight_line([("mul", elu, ("neg", elu))], 16)
    assert [function for function, *_ in code] == ["add", "elu", "neg", "mul"]
    assert consts.shape == (1, 16) and temporaries == 2
