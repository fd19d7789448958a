"""Random numbers by counter and the noise of denoising autoencoders in Triton, interpreted."""

import math

import pytest
import torch
import triton
import triton.language as tl

import fastgen
from fastgen.kernels import _elementary as elementary
from fastgen.kernels import add_noise as noise
from fastgen.kernels import philox_normal as normal
from fastgen.kernels import philox_uniform as uniform
from fastgen.kernels._philox import words
from fastgen.reference import add_noise as noise_reference
from fastgen.reference import philox_normal as normal_reference
from fastgen.reference import philox_uniform as uniform_reference
from fastgen.reference.philox import philox4x32

# numpy says what overflows; here it is meant to
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SEEDS = (0, 7, -5, 2**63 - 1, -(2**63))


@triton.jit
def _elementary_kernel(x, out, N: tl.constexpr):
    i = tl.arange(0, N)
    v = tl.load(x + i)
    e, gap = elementary.exp_gaps(v)
    sine, cosine = elementary.sine_and_cosine(v * 0.015625)
    tl.store(out + i, e)
    tl.store(out + N + i, gap)
    tl.store(out + 2 * N + i, elementary.log1p_fraction(tl.abs(v) * 0.125))
    tl.store(out + 3 * N + i, sine)
    tl.store(out + 4 * N + i, cosine)


@pytest.mark.parametrize("dtype, error", [(torch.float32, 6e-7), (torch.float64, 5e-16)], ids=str)
def test_elementary_functions_keep_their_digits(dtype, error):
    x = torch.cat((torch.linspace(-8, 8, 1000), torch.logspace(-30, -1, 24).cos().pow(9) * 1e-5))
    x = x.to(dtype)
    out = torch.empty(5, len(x), dtype=dtype)
    _elementary_kernel[(1,)](x, out, N=len(x))
    v = x.double()
    series = sum(v**k / math.factorial(k) for k in range(2, 18))
    angle = 2 * math.pi * v / 64
    exact = (
        torch.where(v.abs() < 0.7, v + series, v.expm1()),
        torch.where(v.abs() < 0.7, series, v.expm1() - v),
        (v.abs() / 8).log1p(),
        angle.sin(),
        angle.cos(),
    )
    for got, want in zip(out.double(), exact, strict=True):
        assert ((got - want).abs() <= error * want.abs() + 1e-40).all()


@triton.jit
def _words_kernel(seed, block, out, N: tl.constexpr):
    i = tl.arange(0, N)
    w0, w1, w2, w3 = words(tl.load(seed), tl.load(block + i))
    tl.store(out + i, w0.to(tl.int64))
    tl.store(out + N + i, w1.to(tl.int64))
    tl.store(out + 2 * N + i, w2.to(tl.int64))
    tl.store(out + 3 * N + i, w3.to(tl.int64))


@pytest.mark.parametrize("seed", SEEDS)
def test_words_are_philox_also_of_counters_beyond_32_bits(seed):
    block = torch.tensor([0, 1, 2**32 - 1, 2**32, 2**33 + 5, 2**61, 77, 2**40])
    out = torch.empty(4, 8, dtype=torch.int64)
    _words_kernel[(1,)](torch.tensor(seed), block, out, N=8)
    zero = torch.zeros_like(block)
    counter = torch.stack((block & 0xFFFFFFFF, block >> 32, zero, zero), 1)
    assert torch.equal(out.T, philox4x32(counter, seed))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numbers_match_the_reference(dtype):
    for seed in SEEDS[:3]:
        seed = torch.tensor(seed)
        for size in ([3, 407], [5], [1], [0], []):
            got = uniform.philox_uniform(seed, size, dtype)
            assert torch.equal(got, uniform_reference.philox_uniform(seed, size, dtype))
            got = normal.philox_normal(seed, size, dtype)
            want = normal_reference.philox_normal(seed, size, torch.float64)
            step = torch.finfo(dtype).eps
            assert got.dtype == dtype and got.shape == want.shape
            # the reference rounds angles of up to 2 pi
            assert ((got - want).abs() <= 3 * step * want.abs() + 32 * 2.0**-53).all()


def test_numbers_fill_any_layout():
    seed = torch.tensor(3)
    for fill, make in (
        (normal.philox_normal_, normal.philox_normal),
        (uniform.philox_uniform_, uniform.philox_uniform),
    ):
        want = make(seed, [4, 6, 5], torch.float32)
        for out in (torch.empty(6, 5, 4).permute(2, 0, 1), torch.empty(4, 6, 10)[..., ::2]):
            fill(out, seed)
            assert torch.equal(out, want)


@pytest.mark.parametrize("kind", range(3), ids=["mask", "gaussian", "salt_pepper"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_noise_matches_the_reference(dtype, kind):
    seed = torch.tensor(99)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 3, 7, 13).to(dtype, memory_format=memory_format)
        got = noise.add_noise(x, kind, 0.3, 0.25, 0.75, seed, True)
        want = noise_reference.add_noise(x, kind, 0.3, 0.25, 0.75, seed, True)
        error = 0 if kind != 1 else 2 * torch.finfo(dtype).eps
        torch.testing.assert_close(got[0], want[0], atol=error, rtol=error)
        assert got[0].stride() == want[0].stride()
        assert torch.equal(got[1], want[1]) and torch.equal(got[2], seed)
        grad = torch.randn_like(x)
        got = noise.add_noise_backward(grad, kind, 0.3, seed)
        assert torch.equal(got, noise_reference.add_noise_backward(grad, kind, 0.3, seed))
    assert noise.add_noise(x, kind, 0.3, 0.25, 0.75, seed, False)[1].numel() == 0
    for empty in (x[:0], x[..., :0]):
        assert noise.add_noise(empty, kind, 0.3, 0.0, 1.0, seed, True)[0].shape == empty.shape


def test_salt_of_float64_is_the_exact_double():
    x = torch.zeros(64, dtype=torch.float64)
    noisy, _, _ = noise.add_noise(x, 2, 1.0, 0.1, 0.9, torch.tensor(1), False)
    assert set(noisy.tolist()) == {0.1, 0.9}


def test_ops():
    seed = torch.tensor(7)
    x = torch.randn(3, 35)
    arguments = {
        "philox_normal": (seed, [3, 35], torch.float32),
        "philox_uniform": (seed, [3, 35], torch.float32),
        "philox_normal_": (torch.empty(5), seed),
        "add_noise": (x, 2, 0.5, 0.0, 1.0, seed, True),
        "add_noise_backward": (x, 0, 0.5, seed),
    }
    with fastgen.use_backend("triton"):
        for name, values in arguments.items():
            operator = getattr(torch.ops.fastgen, name).default
            torch.library.opcheck(operator, values, test_utils=("test_schema", "test_faketensor"))
        torch.manual_seed(5)
        ours = fastgen.add_noise(x, "gaussian", 0.2), fastgen.randn(3, 5)
    with fastgen.use_backend("reference"):
        torch.manual_seed(5)
        torch.testing.assert_close(ours[0], fastgen.add_noise(x, "gaussian", 0.2))
        torch.testing.assert_close(ours[1], fastgen.randn(3, 5))
