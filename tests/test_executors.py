"""Executors on random programs, against each other and against what a program must mean."""

import functools
import threading
import time

import numpy as np
import pytest
import torch
from random_programs import Builder

from fastgen import _load
from fastgen.likelihoods import Bernoulli, Categorical, DiscretizedLogisticMixture
from fastgen.sampling.executors import CpuExecutor, Draw, ReferenceExecutor
from fastgen.sampling.graph import ROWS

EXPRESSIONS = 27
LEVELS = _load.EXTENSION.supported_isa_levels()
# Error in units of the largest parameter; bfloat16 is that of the weights' rounding.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 2e-2}


def everything(seed, steps=3, **options):
    """A program of every instruction kind, function and epilogue."""
    rng = np.random.default_rng(seed)
    builder = Builder(rng, **options)
    for _ in range(steps):
        for expression in range(EXPRESSIONS):
            builder.map(int(rng.integers(1, 40)), expression)
            taps = rng.integers(1, 20, int(rng.integers(1, 4)))
            adds = int(rng.integers(0, 3))
            nch, sides = int(rng.integers(1, 40)), int(rng.integers(0, 3))
            builder.linear(nch, "code", taps, adds, expression, sides=sides)
        for function in ROWS:
            builder.row(function)
        builder.gather(int(rng.integers(1, 20)))
        builder.lookup(int(rng.integers(1, 20)))
        builder.dot(5)
        builder.mix(int(rng.integers(1, 30)), 3)
        builder.attention(int(rng.integers(1, 30)), int(rng.integers(1, 30)), 20)
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


def forced(executor, codes, conditions, **options):
    """Parameters at given codes."""
    shape = (len(codes), len(executor.program.draws.param), executor.program.parameters)
    params = torch.full(shape, torch.nan, dtype=executor.dtype)
    executor.run(codes, conditions=conditions, params=params, **options)
    return params


def drawn(executor, likelihood, codes, conditions, noise, known=None, group=16, threads=1, **draw):
    codes = codes.clone()
    draw = Draw(likelihood, noise, **draw)
    found = executor.run(
        codes, conditions=conditions, draw=draw, known=known, group=group, threads=threads
    )
    assert found is None
    return codes


def example(program, n):
    """(codes, conditions, exact parameters)"""
    codes, conditions, _, _ = inputs(program, n)
    codes = torch.randint(7, codes.shape)
    exact = forced(ReferenceExecutor(program, poison=True), codes, conditions)
    assert not exact.isnan().any()
    return codes, conditions, exact


@functools.cache
def everything_and_examples(seed):
    program = everything(seed, rows=7)
    return program, [example(program, n) for n in (1, 3, 17)]


@functools.cache
def any_number_of_channels(epilogue):
    rng = np.random.default_rng(0)
    builder = Builder(rng, rows=3)
    for nch in range(1, 71):
        taps = rng.integers(1, 40, int(rng.integers(0, 5)))
        builder.linear(nch, epilogue, taps, adds=nch % 3, bias=nch % 4 > 0)
    builder.draw_step()
    program = builder.program()
    return program, [example(program, 5)]


def assert_close_on(examples, executor, dtype):
    for codes, conditions, exact in examples:
        error = (forced(executor, codes, conditions).double() - exact).abs().max()
        assert error <= TOLERANCE[dtype] * exact.abs().max()


def test_reference_reads_only_what_was_written():
    program = everything(0)
    codes, conditions, noise, params = inputs(program, 5)
    reference = ReferenceExecutor(program, poison=True)
    draw = Draw(Categorical(7), noise)
    assert reference.run(codes, conditions=conditions, draw=draw, params=params, group=2) is None
    assert not params.isnan().any()
    again = forced(reference, codes, conditions)
    torch.testing.assert_close(again, params, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("isa", LEVELS)
def test_cpu_equals_the_reference(isa, dtype):
    for seed in range(3):
        program, examples = everything_and_examples(seed)
        assert_close_on(examples, CpuExecutor(program, dtype, isa), dtype)


@pytest.mark.parametrize("epilogue", ["none", "relu", "gate", "gate_both", "code"])
@pytest.mark.parametrize("isa", LEVELS)
def test_cpu_is_right_for_any_number_of_channels(isa, epilogue):
    program, examples = any_number_of_channels(epilogue)
    for dtype in TOLERANCE:
        assert_close_on(examples, CpuExecutor(program, dtype, isa), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("isa", LEVELS)
def test_bits_do_not_depend_on_group_or_threads(isa, dtype):
    program = everything(5, rows=7)
    executor = CpuExecutor(program, dtype, isa)
    codes, conditions, noise, _ = inputs(program, 33)
    codes = drawn(executor, Categorical(7), codes, conditions, noise, group=33)
    whole = forced(executor, codes, conditions, group=33)
    for group, threads in ((1, 1), (2, 2), (5, 3), (16, 2)):
        options = {"group": group, "threads": threads}
        assert torch.equal(whole, forced(executor, codes, conditions, **options))
        again = drawn(executor, Categorical(7), codes * 0, conditions, noise, **options)
        assert torch.equal(codes, again)


@pytest.mark.parametrize(
    "likelihood, parameters, codes_a_draw, limits",
    [
        (Categorical(7), 7, 1, {}),
        (Categorical(1), 1, 1, {}),
        (Categorical(256), 256, 1, {"temperature": 0.7}),
        (Categorical(50), 50, 1, {"top_k": 3}),
        (Categorical(50), 50, 1, {"top_p": 0.6, "temperature": 1.5}),
        (Categorical(50), 50, 1, {"top_k": 20, "top_p": 0.9}),
        (Bernoulli(), 1, 1, {"temperature": 2.0}),
        (DiscretizedLogisticMixture(5), 50, 3, {"temperature": 0.8}),
        (DiscretizedLogisticMixture(4, levels=5), 12, 1, {}),
        (DiscretizedLogisticMixture(3, coupled=False), 9, 1, {}),
    ],
    ids=repr,
)
@pytest.mark.parametrize("isa", LEVELS)
def test_draws_are_the_likelihoods(isa, likelihood, parameters, codes_a_draw, limits):
    builder = Builder(
        np.random.default_rng(6), parameters, codes_a_draw, likelihood.levels, draws=4
    )
    for _ in range(4):
        builder.lookup(8)
        builder.draw_step()
    program = builder.program()
    codes, conditions, noise, _ = inputs(program, 50, likelihood.uniforms)
    arguments = (likelihood, codes, conditions, noise)
    expected = drawn(ReferenceExecutor(program), *arguments, **limits)
    for dtype in (torch.float64, torch.float32):
        executor = CpuExecutor(program, dtype, isa)
        executor.stepper = None  # what draws in Python would need
        got = drawn(executor, *arguments, **limits)
        # float32's parameters may cross an edge now and then, and what follows differs
        assert (got != expected).any(1).sum() <= (0 if dtype == torch.float64 else 1)


def test_equal_weights_are_cut_by_index_and_logits_may_be_minus_infinity():
    builder = Builder(np.random.default_rng(7), parameters=6, draws=1)
    builder.draw_step()
    program = builder.program()
    linear = program.instructions[-1]
    linear.weight[:] = 0
    linear.bias[1:] = [0, 1, -np.inf, 1, 1, -np.inf]
    codes, conditions, _, _ = inputs(program, 3)
    noise = torch.tensor([0.0, 0.5, 0.999], dtype=torch.float64).view(3, 1, 1)
    for executor in (ReferenceExecutor(program), CpuExecutor(program)):
        kept = drawn(executor, Categorical(6), codes, conditions, noise, top_k=2)
        assert kept.flatten().tolist() == [1, 3, 3]
        kept = drawn(executor, Categorical(6), codes, conditions, noise, top_p=0.5)
        assert kept.flatten().tolist() == [1, 3, 3]
        assert 2 not in drawn(executor, Categorical(6), codes, conditions, noise)


class Thirds:
    """A user's likelihood: the engine has nothing like it."""

    levels, coupled, uniforms = 3, False, 1

    def sample(self, params, uniforms, temperature):
        return (uniforms[:, 0] * 3 * torch.sigmoid(params[:, 0])).long()


def test_a_users_likelihood_draws_in_python():
    program = everything(8)
    codes, conditions, noise, _ = inputs(program, 5)
    expected = drawn(ReferenceExecutor(program), Thirds(), codes, conditions, noise)
    executor = CpuExecutor(program, torch.float64)
    assert torch.equal(drawn(executor, Thirds(), codes, conditions, noise, group=2), expected)


@pytest.mark.parametrize("kind", [ReferenceExecutor, CpuExecutor])
def test_known_codes_stay_and_later_steps_see_them(kind):
    program = everything(1)
    codes, conditions, noise, params = inputs(program, 4)
    executor = kind(program, torch.float64)
    codes = drawn(executor, Categorical(7), codes, conditions, noise)
    known = torch.rand(codes.shape) < 0.5
    kept = torch.where(known, (codes + 1) % 7, 0)
    completed = kept.clone()
    draw = Draw(Categorical(7), noise)
    executor.run(completed, conditions=conditions, draw=draw, known=known, params=params)
    assert (completed == kept)[known].all()
    torch.testing.assert_close(forced(executor, completed, conditions), params, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [ReferenceExecutor, CpuExecutor])
def test_the_first_nan_of_the_first_sample_is_named(kind):
    builder = Builder(np.random.default_rng(2), parameters=1)
    builder.readable = builder.readable[-1:]  # the condition
    for _ in range(4):
        builder.draw_step()
    program = builder.program()
    codes, conditions, noise, params = inputs(program, 6)
    conditions[0][3:] = torch.nan
    executor = kind(program, torch.float64)
    executor.run(codes, conditions=conditions, params=params)
    sample, draw = params.isnan().any(-1).nonzero()[0].tolist()
    assert sample == 3
    for group in (1, 2, 6):
        found = executor.run(
            codes, conditions=conditions, draw=Draw(Bernoulli(), noise), group=group, threads=2
        )
        assert found == (sample, draw)
    known = torch.zeros_like(codes, dtype=torch.bool)
    known[3:] = True  # their parameters do not matter
    draw = Draw(Bernoulli(), noise)
    assert executor.run(codes, conditions=conditions, draw=draw, known=known) is None


def slow(seconds_at_least):
    """(executor, arguments of a run that takes a while)"""
    program = everything(9)
    executor = CpuExecutor(program, torch.float64)
    codes, conditions, _, _ = inputs(program, 2000)
    start = time.perf_counter()
    executor.run(codes, conditions=conditions)
    repeat = int(seconds_at_least / (time.perf_counter() - start)) + 1
    return executor, codes.repeat(repeat, 1), [c.repeat(repeat, 1) for c in conditions]


@pytest.mark.parametrize("threads", [1, 2])
def test_tick_is_told_the_progress_and_may_end_the_run(threads):
    executor, codes, conditions = slow(1.5)
    fractions = []
    executor.run(codes, conditions=conditions, threads=threads, tick=fractions.append)
    assert len(fractions) >= 2 and fractions == sorted(fractions)
    assert 0 < fractions[-1] < 1

    def tick(fraction):
        raise KeyboardInterrupt

    seconds = []
    for _ in range(5):  # the best of some: others may be at work on this machine
        start = time.perf_counter()
        with pytest.raises(KeyboardInterrupt):
            executor.run(codes, conditions=conditions, threads=threads, tick=tick)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.25


def test_python_threads_share_an_executor():
    executor, codes, conditions = slow(0.1)
    alone = forced(executor, codes, conditions)
    results = {}

    def work(i):
        results[i] = forced(executor, codes, conditions, threads=2)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(results[i], alone) for i in range(3))


def test_bad_arguments_are_named():
    program = everything(3, steps=1)
    executor = CpuExecutor(program)
    codes, conditions, noise, _ = inputs(program, 2)
    with pytest.raises(ValueError, match="condition 0 must be"):
        executor.run(codes)
    with pytest.raises(ValueError, match="codes must be torch.int64"):
        executor.run(codes.int(), conditions=conditions)
    with pytest.raises(ValueError, match="uniforms must be torch.float64"):
        drawn(executor, Categorical(7), codes, conditions, noise.float())
    with pytest.raises(ValueError, match="draws from 9 parameters, the program has 7"):
        drawn(executor, Categorical(9), codes, conditions, noise)
    with pytest.raises(ValueError, match="dtype must be"):
        CpuExecutor(program, torch.float16)


def test_no_images_is_no_work():
    program = everything(3, steps=1)
    codes, conditions, noise, params = inputs(program, 0)
    draw = Draw(Categorical(7), noise)
    for executor in (CpuExecutor(program), ReferenceExecutor(program)):
        assert executor.run(codes, conditions=conditions, draw=draw, params=params) is None


def test_fingerprints_see_every_bit_and_the_length():
    fingerprint = _load.EXTENSION.fingerprint
    for size in (0, 1, 7, 128, 1000):
        values = torch.randint(256, (size + 1,), dtype=torch.uint8)
        seen = {fingerprint(values.data_ptr(), size), fingerprint(values.data_ptr(), size, 1)}
        for i in range(size):
            for bit in (1, 128):
                values[i] ^= bit
                seen.add(fingerprint(values.data_ptr(), size))
                values[i] ^= bit
        seen.add(fingerprint(values.data_ptr(), size + 1))
        assert len(seen) == 3 + 2 * size
    parts = [(values.data_ptr(), 1000), (values.data_ptr(), 1)]
    assert fingerprint(parts) == fingerprint(parts)
    assert fingerprint(parts) != fingerprint(parts[::-1])
