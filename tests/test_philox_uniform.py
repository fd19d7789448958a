import pytest
import torch
from random_tensors import DTYPES, KNOWN_WORDS, SIZES, correlation, kolmogorov_smirnov

import fastgen
from fastgen.reference import philox_uniform as reference

OP = torch.ops.fastgen.philox_uniform.default
FILL = torch.ops.fastgen.philox_uniform_.default


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_reference_bit_for_bit(size, dtype):
    for seed in (0, 0x123456789ABCDEF0, 2**64 - 1):
        got = fastgen.philox_uniform(size, seed=seed, dtype=dtype)
        signed = torch.tensor(seed - (2**64 if seed >= 2**63 else 0))
        assert got.dtype == dtype
        assert torch.equal(got, reference.philox_uniform(signed, size, dtype))


def test_gives_the_known_answers():
    got = fastgen.rand(4, seed=0, dtype=torch.float64)
    assert got.tolist() == [(word >> 8) * 2.0**-24 for word in KNOWN_WORDS]


def test_a_longer_tensor_begins_with_the_shorter_one():
    assert torch.equal(fastgen.rand(5000, seed=3)[:777], fastgen.rand(777, seed=3))


def test_halves_keep_their_upper_bits_and_never_reach_1():
    u = fastgen.rand(1 << 16, seed=1, dtype=torch.float64)
    for dtype, bits in ((torch.bfloat16, 8), (torch.float16, 11)):
        half = fastgen.rand(1 << 16, seed=1, dtype=dtype).double()
        assert torch.equal(half, (u * 2**bits).floor() / 2**bits)
        assert half.max() < 1


def test_same_bits_for_any_number_of_threads(threads):
    many = fastgen.rand(100_003, seed=5)
    torch.set_num_threads(1)
    assert torch.equal(many, fastgen.rand(100_003, seed=5))


def test_writes_into_out_of_any_strides():
    want = fastgen.rand(5, 7, seed=2)
    for out in (torch.empty(5, 7), torch.empty(7, 5).t(), torch.empty(5, 14)[:, ::2]):
        assert fastgen.rand(5, 7, seed=2, out=out) is out
        assert torch.equal(out, want)


def test_manual_seed_and_generators_give_the_seed():
    torch.manual_seed(4)
    first, second = fastgen.rand(9), fastgen.rand(9)
    assert not torch.equal(first, second)
    torch.manual_seed(4)
    assert torch.equal(fastgen.rand(9), first)
    generator = torch.Generator().manual_seed(4)
    assert torch.equal(fastgen.rand(9, generator=generator), first)
    assert torch.equal(fastgen.rand(9, generator=generator), second)


def test_uniforms_are_uniform():
    u = fastgen.rand(1 << 20, seed=7).double()
    n = u.numel()
    assert u.min() >= 0 and u.max() < 1
    assert abs(u.mean() - 1 / 2) < 4 * (1 / 12 / n) ** 0.5
    assert abs(u.var() - 1 / 12) < 4 * (1 / 180 / n) ** 0.5
    assert kolmogorov_smirnov(u, lambda x: x) < 1.95


def test_neighbours_and_neighbouring_seeds_are_uncorrelated():
    u = fastgen.rand(1 << 18, seed=7)
    for lag in (1, 2, 3, 4, 5, 64, 128, 1024):
        assert abs(correlation(u[:-lag], u[lag:])) < 4.5
    for seed in (6, 8, 7 + 2**32):
        assert abs(correlation(u, fastgen.rand(1 << 18, seed=seed))) < 4.5


def test_registration():
    seed = torch.tensor(7)
    torch.library.opcheck(OP, (seed, [3, 5], torch.float32))
    torch.library.opcheck(FILL, (torch.empty(3, 5), seed))


def test_compiles_without_graph_break():
    compiled = torch.compile(lambda: 2 * fastgen.rand(3, 5, seed=9), fullgraph=True)
    assert torch.equal(compiled(), 2 * fastgen.rand(3, 5, seed=9))


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: fastgen.rand(2, dtype=torch.int64), TypeError, "dtype must be float32"),
        (lambda: fastgen.rand(2, seed=0.5), TypeError, "seed must be an int"),
        (lambda: fastgen.rand(2, seed=2**64), ValueError, "seed must fit 64 bits"),
        (lambda: fastgen.rand(-1), ValueError, "must not be negative"),
        (lambda: fastgen.rand("ab"), TypeError, "size must be ints"),
        (lambda: fastgen.rand(2, seed=1, generator=torch.Generator()), ValueError, "exclude"),
        (
            lambda: fastgen.rand(2, generator=1, device="cpu"),
            TypeError,
            "must be a torch.Generator",
        ),
        (lambda: fastgen.rand(2, out=torch.empty(3)), ValueError, "out must have shape"),
        (lambda: fastgen.rand(2, out=[1]), TypeError, "out must be a tensor"),
    ],
)
def test_bad_arguments_are_named(call, error, words):
    with pytest.raises(error, match=words) as caught:
        call()
    assert "fastgen.rand" in str(caught.value)
