"""cuda_on_cpu keeps CUDA's rules, and stops with a sentence where a kernel breaks them."""

import ctypes
import subprocess
import sys

import emulated
import pytest

ORDERS = [(False, 1), (True, 1), (False, 2), (True, 3)]
MODES = ["fibers", "thread"]


def library(mode="fibers"):
    return emulated.build("tests/emu/self_test.cu", mode)


def call(function, *arguments, order=(False, 1)):
    loaded = ctypes.CDLL(str(library()))
    loaded.set_order(ctypes.c_bool(order[0]), order[1])
    getattr(loaded, function)(*arguments)


@pytest.mark.parametrize("order", ORDERS)
def test_lanes_exchange_as_in_a_warp(order):
    out = (ctypes.c_int * (3 * 64 * 8))()
    call("run_exchange", out, order=order)
    ballot = sum(1 << i for i in range(0, 32, 3))
    for i in range(3 * 64):
        rank = i % 64
        lane, first = rank % 32, rank - rank % 32
        want = [
            first + 3,
            rank - rank % 8 + 3,
            rank + 5 if lane + 5 < 32 else rank,
            rank - 5 if lane % 16 >= 5 else rank,
            rank ^ 1,
            ballot,
            first + (2 if lane < 16 else 20),
            1,
        ]
        got = out[8 * i : 8 * i + 8]
        assert [v & 0xFFFFFFFF for v in got] == want, rank


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("threads", [2, 33, 100])
def test_a_barrier_waits_for_the_lanes_that_are_left(order, threads):
    values = (ctypes.c_int * threads)(*range(threads))
    out = (ctypes.c_int * threads)(*[-1] * threads)
    call("run_reversed", values, out, threads, order=order)
    assert out[:] == [*reversed(range(threads - 1)), -1]


@pytest.mark.parametrize("order", ORDERS)
def test_shared_memory_is_a_blocks_own_and_holds_nan(order):
    out = (ctypes.c_float * 4)()
    call("run_fresh", out, order=order)
    assert all(value != value for value in out)


def test_blocks_and_threads_have_three_dimensions():
    out = (ctypes.c_uint * (12 * 24))()
    call("run_places", out)
    assert out[:] == [block * 1000 + thread for block in range(12) for thread in range(24)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "kernel, sentence",
    [
        ("barriers_that_differ", "lanes of a block wait at different __syncthreads()"),
        ("waits_for_ever", "deadlock: every lane waits"),
        ("outside_its_mask", "a lane outside its own mask"),
        ("from_outside_the_mask", "a shuffle from a lane outside the mask"),
    ],
)
def test_a_broken_rule_stops_with_a_sentence(kernel, sentence, mode):
    code = "import ctypes, sys\nout = (ctypes.c_int * 32)()\n"
    code += "getattr(ctypes.CDLL(sys.argv[1]), sys.argv[2])(out)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, str(library(mode)), f"run_{kernel}"],
        capture_output=True, timeout=60, env=emulated.environment(mode),
        preexec_fn=emulated.fixed_addresses,
    )  # fmt: skip
    assert done.returncode != 0 and sentence in done.stderr.decode(), done.stderr.decode()[-2000:]
