import math

import pytest
import torch
from random_tensors import DTYPES, KNOWN_WORDS, SIZES, correlation, kolmogorov_smirnov

import fastgen
from fastgen.reference.philox import element_normals

OP = torch.ops.fastgen.philox_normal.default
FILL = torch.ops.fastgen.philox_normal_.default

HALF = (torch.bfloat16, torch.float16)
ARITHMETIC = {d: torch.float32 if d in HALF else d for d in DTYPES}
# in units of the last place of the pair's radius: logarithm, root, cosine, product
ULPS = 4


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_is_a_few_ulp_from_the_reference(size, dtype):
    for seed in (0, 12345678901234567, -1 % 2**64):
        got = fastgen.philox_normal(size, seed=seed, dtype=dtype)
        assert got.shape == torch.Size(size) and got.dtype == dtype
        want = element_normals(seed, got.numel() + got.numel() % 2).view(-1, 2)
        radius = want.norm(dim=1, keepdim=True).expand(-1, 2).flatten()[: got.numel()]
        want = want.flatten()[: got.numel()]
        error = (got.flatten().double() - want).abs()
        limit = ULPS * torch.finfo(ARITHMETIC[dtype]).eps * radius
        if dtype in HALF:  # then rounded once
            limit = (
                limit + torch.finfo(dtype).eps / 2 * want.abs() + torch.finfo(dtype).tiny / 2**11
            )
        assert (error <= limit).all()


def test_gives_the_known_answers():
    u = [(word >> 8) * 2.0**-24 for word in KNOWN_WORDS]
    want = []
    for i in (0, 2):
        r, angle = math.sqrt(-2 * math.log1p(-u[i])), 2 * math.pi * u[i + 1]
        want += [r * math.cos(angle), r * math.sin(angle)]
    got = fastgen.randn(4, seed=0, dtype=torch.float64)
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=1e-14, atol=0)


def test_a_longer_tensor_begins_with_the_shorter_one():
    assert torch.equal(fastgen.randn(5000, seed=3)[:777], fastgen.randn(777, seed=3))


def test_the_largest_is_finite_and_what_the_page_says():
    x = fastgen.randn(1 << 22, seed=2)
    assert x.isfinite().all() and 4.5 < x.abs().max() <= 5.77


def test_same_bits_for_any_number_of_threads(threads):
    many = fastgen.randn(100_003, seed=5)
    torch.set_num_threads(1)
    assert torch.equal(many, fastgen.randn(100_003, seed=5))


def test_writes_into_out_of_any_strides():
    want = fastgen.randn(5, 7, seed=2)
    for out in (torch.empty(5, 7), torch.empty(7, 5).t(), torch.empty(5, 14)[:, ::2]):
        assert fastgen.randn(5, 7, seed=2, out=out) is out
        assert torch.equal(out, want)


def test_manual_seed_and_generators_give_the_seed():
    torch.manual_seed(4)
    first, second = fastgen.randn(9), fastgen.randn(9)
    assert not torch.equal(first, second)
    torch.manual_seed(4)
    assert torch.equal(fastgen.randn(9), first)
    generator = torch.Generator().manual_seed(4)
    assert torch.equal(fastgen.randn(9, generator=generator), first)


def normal_cdf(x):
    return torch.special.ndtr(x)


def test_normals_are_normal():
    x = fastgen.randn(1 << 20, seed=7).double()
    n = x.numel()
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((x**power).mean() - mean) < 4 * (variance / n) ** 0.5, power
    assert kolmogorov_smirnov(x, normal_cdf) < 1.95
    for part in (x[0::2], x[1::2]):  # cosines, sines
        assert kolmogorov_smirnov(part, normal_cdf) < 1.95


def test_neighbours_and_neighbouring_seeds_are_uncorrelated():
    x = fastgen.randn(1 << 18, seed=7)
    for lag in (1, 2, 3, 4, 5, 64, 128, 1024):
        assert abs(correlation(x[:-lag], x[lag:])) < 4.5
        assert abs(correlation(x[:-lag] ** 2, x[lag:] ** 2)) < 4.5
    for seed in (6, 8, 7 + 2**32):
        assert abs(correlation(x, fastgen.randn(1 << 18, seed=seed))) < 4.5


def test_registration():
    seed = torch.tensor(7)
    torch.library.opcheck(OP, (seed, [3, 5], torch.float32))
    torch.library.opcheck(FILL, (torch.empty(3, 5), seed))


def test_compiles_without_graph_break():
    compiled = torch.compile(lambda: 2 * fastgen.randn(3, 5, seed=9), fullgraph=True)
    assert torch.equal(compiled(), 2 * fastgen.randn(3, 5, seed=9))


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda f: f((2,), dtype=torch.int64), TypeError, "dtype must be float32"),
        (lambda f: f((2,), seed=0.5), TypeError, "seed must be an int"),
        (lambda f: f((-2,)), ValueError, "must not be negative"),
        (lambda f: f((2,), seed=1, generator=torch.Generator()), ValueError, "exclude"),
        (lambda f: f((2,), out=torch.empty(3)), ValueError, "out must have shape"),
        (lambda f: f((2,), out=torch.empty(2).double(), dtype=torch.float32), ValueError, "dtype"),
    ],
)
def test_bad_arguments_are_named(call, error, words):
    with pytest.raises(error, match=words) as caught:
        call(fastgen.philox_normal)
    assert "fastgen.philox_normal" in str(caught.value)
