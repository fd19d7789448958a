"""Executors on random programs, against each other and against what a program must mean."""

import numpy as np
import pytest
import torch
from random_programs import Builder

from fastgen.likelihoods import Bernoulli, Categorical
from fastgen.sampling.executors import Draw, ReferenceExecutor
from fastgen.sampling.graph import ROWS

EXPRESSIONS = 27


def everything(seed, steps=3, **options):
    """A program of every instruction kind, function and epilogue."""
    rng = np.random.default_rng(seed)
    builder = Builder(rng, **options)
    for _ in range(steps):
        for expression in range(EXPRESSIONS):
            builder.map(int(rng.integers(1, 40)), expression)
            taps = rng.integers(1, 20, int(rng.integers(1, 4)))
            adds = int(rng.integers(0, 3))
            builder.linear(int(rng.integers(1, 40)), "code", taps, adds, expression)
        for function in ROWS:
            builder.row(function)
        builder.gather(int(rng.integers(1, 20)))
        builder.lookup(int(rng.integers(1, 20)))
        builder.dot(5)
        builder.mix(7, 3)
        for epilogue in ("none", "relu", "gate", "gate_both"):
            builder.linear(int(rng.integers(1, 71)), epilogue, (1, 20, 3), adds=1)
        builder.draw_step()
    return builder.program()


def inputs(program, n, uniforms=1):
    codes = torch.zeros(n, program.codes, dtype=torch.int64)
    conditions = [torch.randn(n, 10)]
    noise = torch.rand(n, uniforms, program.codes, dtype=torch.float64)
    params = torch.full(
        (n, len(program.draws.param), program.parameters), torch.nan, dtype=torch.float64
    )
    return codes, conditions, noise, params


def test_reference_reads_only_what_was_written():
    program = everything(0)
    codes, conditions, noise, params = inputs(program, 5)
    reference = ReferenceExecutor(program, poison=True)
    draw = Draw(Categorical(7), noise)
    assert reference.run(codes, conditions=conditions, draw=draw, params=params, group=2) is None
    assert not params.isnan().any()
    again = torch.zeros_like(params)
    reference.run(codes, conditions=conditions, params=again)
    torch.testing.assert_close(again, params, rtol=0, atol=1e-12)


def test_reference_keeps_known_codes_and_later_steps_see_them():
    program = everything(1)
    codes, conditions, noise, params = inputs(program, 4)
    reference = ReferenceExecutor(program)
    draw = Draw(Categorical(7), noise)
    reference.run(codes, conditions=conditions, draw=draw)
    known = torch.rand(codes.shape) < 0.5
    kept = torch.where(known, (codes + 1) % 7, 0)
    completed = kept.clone()
    reference.run(completed, conditions=conditions, draw=draw, known=known, params=params)
    assert (completed == kept)[known].all()
    forced = torch.zeros_like(params)
    reference.run(completed, conditions=conditions, params=forced)
    torch.testing.assert_close(forced, params, rtol=0, atol=1e-12)


def test_reference_names_the_first_nan_of_the_first_sample():
    program = everything(2, parameters=1)
    codes, conditions, noise, _ = inputs(program, 6)
    conditions[0][3:] = torch.nan
    found = ReferenceExecutor(program).run(
        codes, conditions=conditions, draw=Draw(Bernoulli(), noise), group=2
    )
    assert found[0] == 3


def test_what_tick_raises_ends_the_run():
    program = everything(3, steps=1)
    codes, conditions, _, _ = inputs(program, 1)

    def tick(fraction):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ReferenceExecutor(program).run(codes, conditions=conditions, tick=tick)
