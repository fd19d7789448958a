"""The Triton kernels of reparam_kl against float64, in the interpreter."""

import pytest
import torch
from guard import guarded
from tolerances import assert_as_exact_as_torch

import fastgen
from fastgen.kernels import _samples
from fastgen.kernels import reparam_kl as kernels
from fastgen.reference import reparam_kl as reference

# numpy says what overflows; here it is meant to
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
inf, nan = float("inf"), float("nan")


def inputs(batch, latent, dtype, prior=None):
    """mu, logvar, the prior's tensors and index."""

    def rows(n):
        return guarded((torch.randn(n, *latent) / 2).to(dtype))

    mu, logvar = rows(batch), rows(batch)
    counts = {None: None, "rows": (batch,) * 2, "shared": (1, 1), "mixed": (1, batch)}
    counts |= {"mixed too": (batch, 1), "table": (4, 4)}
    index = torch.randint(0, 4, (batch,)) if prior == "table" else None
    if prior is None:
        return mu, logvar, None, None, None
    return mu, logvar, *map(rows, counts[prior]), index


def settings(samples=1, clamp=(None, None), free_bits=0.0, parametrization=0):
    return samples, *clamp, free_bits, parametrization


def check(five, options, eps=False, seed=-77):
    mu, samples = five[0], options[0]
    shape = mu.shape if samples == 1 else (samples, *mu.shape)
    eps = guarded(torch.randn(shape).to(mu.dtype)) if eps else None
    seed = torch.tensor(seed)
    z, kl, used = kernels.reparam_kl(*five, eps, seed, *options)
    exact = reference.reparam_kl(*wide(five), wide([eps])[0], seed, *options)
    plain = reference.reparam_kl(*five, eps, seed, *options)
    assert used == (seed if eps is None else 0) and used is not seed
    assert z.stride() == plain[0].stride() and (z.dtype, kl.dtype) == (mu.dtype, plain[1].dtype)
    close(z, plain[0], exact[0])
    close(kl, plain[1], exact[1])
    grad_z, grad_kl = torch.randn(shape).to(mu.dtype), torch.randn(len(mu), dtype=kl.dtype)
    needs = [True, True, five[2] is not None, five[3] is not None]
    for given in ((grad_z, grad_kl), (grad_z, None), (None, grad_kl)):
        back = kernels.reparam_kl_backward(*given, *five, eps, z, seed, *options, needs)
        plain = reference.reparam_kl_backward(*given, *five, eps, z, seed, *options, needs)
        exact = reference.reparam_kl_backward(
            *wide(given), *wide(five), *wide([eps, z]), seed, *options, needs
        )
        for actual, plainly, exactly in zip(back, plain, exact, strict=True):
            assert actual.dtype == plainly.dtype
            close(actual, plainly, exactly)
    return z, kl


def wide(tensors):
    return [t.double() if t is not None and t.is_floating_point() else t for t in tensors]


def close(actual, plain, exact):
    # the reference computes in float64: its own error is the rounding of its result
    if actual.dtype == torch.float64:
        torch.testing.assert_close(actual, exact, rtol=1e-13, atol=5e-15)
    else:
        assert_as_exact_as_torch(actual, plain, exact, "reduction")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_draw_divergence_and_gradients_match_float64(dtype):
    check(inputs(3, (37,), dtype), settings())
    check(inputs(5, (8,), dtype, "rows"), settings())


@pytest.mark.parametrize("prior", ["rows", "shared", "mixed", "mixed too", "table"])
def test_priors(prior):
    for dtype in (torch.float32, torch.float64):
        check(inputs(19, (6,), dtype, prior), settings(free_bits=0.2))


def test_sums_over_many_samples_and_values(monkeypatch):
    monkeypatch.setattr(kernels, "CHUNK", 32)
    monkeypatch.setattr(kernels, "PIECE", 1024)
    monkeypatch.setattr(_samples, "PIECE", 1024)
    check(inputs(70, (3,), torch.float32, "shared"), settings())
    check(inputs(2, (2051,), torch.float32), settings())


@pytest.mark.parametrize("parametrization", range(3), ids=["logvar", "logstd", "softplus"])
def test_settings(parametrization):
    for dtype in (torch.float32, torch.float64):
        options = settings(2, (-0.5, 0.7), 0.1, parametrization)
        check(inputs(3, (4,), dtype, "rows"), options)
        check(inputs(3, (5,), dtype, "shared"), settings(parametrization=parametrization))


def test_draws_share_the_posterior_and_given_noise_is_used():
    check(inputs(3, (6,), torch.float32), settings(samples=3))
    check(inputs(3, (8,), torch.float32), settings(samples=2), eps=True)
    check(inputs(3, (9,), torch.bfloat16), settings(), eps=True)


def layouts():
    both = torch.randn(3, 24)
    yield both.chunk(2, 1)
    yield both[:, ::2], both[:, 1::2]
    yield torch.randn(3, 12), torch.randn(12).expand(3, 12)
    yield torch.randn(3, 12), torch.randn(1).expand(3, 12)
    yield torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last), torch.randn(2, 3, 4, 5)
    yield torch.randn(4), torch.randn(4)
    yield torch.randn(4, 1), torch.randn(4, 1)


@pytest.mark.parametrize("number", range(7))
def test_layouts(number):
    check((*list(layouts())[number], None, None, None), settings())


def test_noise_is_that_of_randn():
    mu, seed = torch.zeros(3, 10), torch.tensor(11)
    z, _, _ = kernels.reparam_kl(mu, mu, None, None, None, None, seed, *settings())
    with fastgen.use_backend("triton"):
        assert torch.equal(z, fastgen.randn(3, 10, seed=11))


def test_a_sample_has_the_same_bits_in_any_batch():
    mu, logvar, *prior = inputs(6, (70,), torch.float32, "shared")
    eps = torch.randn(6, 70)
    seed = torch.tensor(0)
    z, kl, _ = kernels.reparam_kl(mu, logvar, *prior, eps, seed, *settings())
    for part in (slice(0, 1), slice(1, 6)):
        got = kernels.reparam_kl(mu[part], logvar[part], *prior, eps[part], seed, *settings())
        assert torch.equal(got[0], z[part]) and torch.equal(got[1], kl[part])


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
def test_extreme_log_variances(dtype):
    """Defined by the reference: no NaN where none went in, and none lost."""
    values = [-inf, -1e4, -104.0, -30.0, 0.0, 20.0, 88.0, 170.0, inf, nan]
    logvar = torch.tensor(values, dtype=dtype)[:, None]
    mu = torch.linspace(-1, 1, len(values), dtype=dtype)[:, None]
    eps = torch.ones_like(mu)
    eps[0] = inf
    one = torch.zeros_like(mu)
    for prior in ((None, None), (mu, logvar), (one, logvar), (mu, one), (one, one)):
        five = (mu, logvar, *prior, None)
        for clamp in ((None, None), (-30.0, 20.0)):
            for parametrization in range(3):
                options = settings(1, clamp, 0.0, parametrization)
                got = kernels.reparam_kl(*five, eps, torch.tensor(1), *options)
                want = reference.reparam_kl(*five, eps, torch.tensor(1), *options)
                needs = [True, True, prior[0] is not None, prior[0] is not None]
                rest = (mu, mu.flatten(), *five, eps, mu, torch.tensor(1), *options, needs)
                got += kernels.reparam_kl_backward(*rest)
                want += reference.reparam_kl_backward(*rest)
                for g, w in zip(got, want, strict=True):
                    largest = torch.finfo(dtype).max / 4
                    finite = w.abs() < largest  # float64 reaches farther than what computes here
                    rtol = 1e-5 if dtype == torch.float32 else 1e-12
                    torch.testing.assert_close(
                        g[finite], w[finite].to(g.dtype), rtol=rtol, atol=1e-12, equal_nan=True
                    )
                    assert torch.equal(g.isnan(), w.isnan())


def test_divergence_near_the_prior_keeps_its_digits():
    mu, logvar = torch.zeros(3, 1), torch.tensor([[1e-5], [-1e-3], [1e-7]])
    _, kl, _ = kernels.reparam_kl(mu, logvar, None, None, None, mu, None, *settings())
    series = logvar.double() ** 2 / 4 * (1 + logvar.double() / 3)
    torch.testing.assert_close(kl.double(), series[:, 0], rtol=1e-6, atol=0)


def test_a_class_that_does_not_exist_makes_its_sample_nan():
    mu, logvar, *table, index = inputs(6, (5,), torch.float32, "table")
    index[2], index[4] = 4, -1
    seed = torch.tensor(5)
    z, kl, _ = kernels.reparam_kl(mu, logvar, *table, index, None, seed, *settings())
    assert kl.isnan().tolist() == [False, False, True, False, True, False]
    assert not z.isnan().any()
    back = kernels.reparam_kl_backward(
        z, kl.nan_to_num(), mu, logvar, *table, index, None, z, seed, *settings(), [True] * 4
    )
    assert not back[2].isnan().any() and not back[3].isnan().any()


def test_offsets_of_64_bits(monkeypatch):
    monkeypatch.setattr(kernels, "is_wide", lambda *rows: True)
    check(inputs(5, (6,), torch.float32, "table"), settings(2))
    check(inputs(5, (6,), torch.float32, "shared"), settings())


def test_empty():
    seed = torch.tensor(5)
    for shape in ((0, 4), (3, 0), (0, 2, 0)):
        mu = torch.empty(shape)
        z, kl, _ = kernels.reparam_kl(mu, mu, mu, mu, None, None, seed, *settings())
        assert z.shape == shape and torch.equal(kl, torch.zeros(shape[0]))
        back = kernels.reparam_kl_backward(
            z, kl, mu, mu, mu, mu, None, None, z, seed, *settings(), [True] * 4
        )
        assert [b.shape for b in back] == [shape] * 4


def test_ops():
    mu, logvar, *table = inputs(4, (6,), torch.float64, "table")

    def function(mu, logvar, prior_mu, prior_logvar):
        prior = prior_mu, prior_logvar, table[2]
        return fastgen.reparam_kl(mu, logvar, *prior, samples=2, seed=3, free_bits=0.01)

    tensors = [t.clone().requires_grad_() for t in (mu, logvar, *table[:2])]
    with fastgen.use_backend("triton"):
        assert torch.autograd.gradcheck(function, tensors, fast_mode=True)
        arguments = (mu, logvar, *table, None, torch.tensor(7), 1, None, 3.0, 0.1, 2)
        torch.library.opcheck(
            torch.ops.fastgen.reparam_kl.default,
            arguments,
            test_utils=("test_schema", "test_faketensor"),
        )
        torch.manual_seed(4)
        ours = fastgen.reparam_kl(mu, logvar)
    with fastgen.use_backend("reference"):
        torch.manual_seed(4)
        torch.testing.assert_close(ours, fastgen.reparam_kl(mu, logvar))
