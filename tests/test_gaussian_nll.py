import math

import pytest
import torch
from tolerances import assert_as_exact_as_torch

import fastgen
from fastgen.reference import gaussian_nll as reference
from fastgen.reference.memory_format import suggest_memory_format

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SHAPES = [(0, 4), (3, 0), (1, 1), (5,), (3, 10), (2, 6, 5, 7), (2, 1029), (1, 20000)]
MODES = ["fixed", "scalar", "row", "full"]
OP = torch.ops.fastgen.gaussian_nll.default
BACKWARD = torch.ops.fastgen.gaussian_nll_backward.default


def sample(shape, mode="full", dtype=torch.float32, other=None):
    other = dtype if other is None else other
    mean, target = torch.randn(shape).to(dtype), torch.randn(shape).to(other)
    logvar = {
        "fixed": lambda: 0.3,
        "scalar": lambda: torch.randn(1).to(other),
        "row": lambda: torch.randn(shape[1:]).to(other),
        "full": lambda: torch.randn(shape).mul(2).to(other),
    }[mode]()
    return mean, target, logvar


def with_gradients(f, mean, target, logvar, grad):
    inputs = [t.clone().requires_grad_() for t in (mean, target)]
    if isinstance(logvar, torch.Tensor):
        logvar = logvar.clone().requires_grad_()
        inputs.append(logvar)
    nll = f(inputs[0], inputs[1], logvar)
    return nll.detach(), torch.autograd.grad(nll, inputs, grad.to(nll.dtype))


def plain(mean, target, logvar):
    logvar = torch.as_tensor(logvar, dtype=mean.dtype)
    terms = math.log(2 * math.pi) + logvar + (target.to(mean.dtype) - mean) ** 2 * (-logvar).exp()
    return 0.5 * terms.expand(mean.shape).flatten(1).sum(1)


@pytest.mark.parametrize("other", [None, torch.float32], ids=["one dtype", "float32 target"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_as_exact_as_plain_torch(shape, dtype, mode, other):
    mean, target, logvar = sample(shape, mode, dtype, other)
    grad = torch.randn(shape[0])
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    ours, ours_grads = with_gradients(fastgen.gaussian_nll, mean, target, logvar, grad)
    assert ours.dtype == wide
    doubled = logvar.double() if isinstance(logvar, torch.Tensor) else logvar
    if len(shape) == 1:
        mean, target = mean[:, None], target[:, None]
        doubled = doubled[:, None] if mode == "full" else doubled
    exact, exact_grads = with_gradients(plain, mean.double(), target.double(), doubled, grad)
    assert_as_exact_as_torch(ours, exact.to(wide), exact, "reduction")
    for got, want in zip(ours_grads, exact_grads, strict=True):
        want = want.reshape(got.shape)
        kind = "elementwise" if got.shape == ours_grads[0].shape else "reduction"
        plain_error = want.to(torch.float32 if dtype != torch.float64 else dtype)
        assert_as_exact_as_torch(got, plain_error.to(got.dtype), want, kind)


def test_reference_is_the_documented_formula():
    mean, target, logvar = sample((3, 7), "full", torch.float64)
    got = reference.gaussian_nll(mean, target, logvar, 0.0)
    torch.testing.assert_close(got, plain(mean, target, logvar))
    want = -torch.distributions.Normal(mean, (logvar / 2).exp()).log_prob(target).sum(1)
    torch.testing.assert_close(fastgen.gaussian_nll(mean, target, logvar), want)


@pytest.mark.parametrize("mode", ["fixed", "full"])
def test_extreme_variances(mode):
    inf = float("inf")
    mean = torch.tensor([[0.0], [0.0], [1.0], [1.0], [0.0], [0.0]])
    target = torch.tensor([[0.0], [1.0], [1.0], [3.0], [1e-3], [100.0]])
    for value in (-70.0, -30.0, 20.0, 60.0, 200.0, inf, -inf):
        logvar = value if mode == "fixed" else torch.full_like(mean, value)
        args = (None, value) if mode == "fixed" else (logvar, 0.0)
        got = fastgen.gaussian_nll(mean, target, logvar)
        want = reference.gaussian_nll(mean.double(), target.double(), *args).float()
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5, equal_nan=True)
        needs = [True, True, mode == "full"]
        found = BACKWARD(torch.ones(6), mean, target, *args, needs)
        want = reference.gaussian_nll_backward(
            torch.ones(6), mean.double(), target.double(), *args, needs
        )
        for a, b in zip(found, want, strict=True):
            torch.testing.assert_close(a, b.float(), rtol=1e-5, atol=1e-30, equal_nan=True)
    assert fastgen.gaussian_nll(mean, target, torch.full_like(mean, float("nan"))).isnan().all()


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t[:, :, ::2],
        lambda t: t.chunk(2, 1)[1],
        lambda t: t[:1].expand(4, -1, -1, -1),
        lambda t: t.transpose(2, 3),
        lambda t: t.contiguous(memory_format=torch.channels_last),
    ],
    ids=["sliced", "chunk", "expanded", "transposed", "channels-last"],
)
@pytest.mark.parametrize("both", [False, True])
def test_any_strides(view, both):
    mean, target, logvar = (view(t) for t in sample((3, 8, 6, 9)))
    if not both:
        target, logvar = target.contiguous(), logvar.contiguous()
    grad = torch.randn(len(mean))
    got = fastgen.gaussian_nll(mean, target, logvar)
    torch.testing.assert_close(got, plain(mean, target, logvar), rtol=1e-5, atol=1e-4)
    found = BACKWARD(grad, mean, target, logvar, 0.0, [True, True, True])
    want = reference.gaussian_nll_backward(grad, mean, target, logvar, 0.0, [True, True, True])
    for a, b in zip(found, want, strict=True):
        torch.testing.assert_close(a, b.float(), rtol=1e-5, atol=1e-5)
    formats = [suggest_memory_format(t) for t in (mean, target, logvar)]
    assert all(g.is_contiguous(memory_format=f) for g, f in zip(found, formats, strict=True))


@pytest.mark.parametrize("mode", ["scalar", "full"])
def test_same_bits_for_any_thread_count_and_batch_split(threads, mode):
    mean, target, logvar = sample((4, 30000), mode)
    grad = torch.randn(4)
    nll, grads = with_gradients(fastgen.gaussian_nll, mean, target, logvar, grad)
    torch.set_num_threads(1)
    again, same = with_gradients(fastgen.gaussian_nll, mean, target, logvar, grad)
    assert torch.equal(nll, again)
    assert all(torch.equal(a, b) for a, b in zip(grads, same, strict=True))
    for i in range(4):
        one = slice(i, i + 1)
        own = logvar[one] if mode == "full" else logvar
        part, by = with_gradients(fastgen.gaussian_nll, mean[one], target[one], own, grad[one])
        assert torch.equal(part, nll[one]) and torch.equal(by[0], grads[0][one])


@pytest.mark.parametrize("mode", ["scalar", "row", "full"])
def test_gradcheck_to_the_second_order(mode):
    inputs = [t.requires_grad_() for t in sample((2, 5), mode, torch.float64)]
    assert torch.autograd.gradcheck(fastgen.gaussian_nll, inputs)
    assert torch.autograd.gradgradcheck(fastgen.gaussian_nll, inputs)


@pytest.mark.parametrize("mode", ["fixed", "scalar", "full"])
def test_registration(mode):
    mean, target, logvar = sample((2, 3, 5), mode)
    args = (None, 0.3) if mode == "fixed" else (logvar, 0.0)
    torch.library.opcheck(OP, (mean.requires_grad_(), target, *args))
    needs = [True, False, mode != "fixed"]
    torch.library.opcheck(BACKWARD, (torch.rand(2), mean.detach(), target, *args, needs))


def test_compiles_without_graph_break():
    mean, target, logvar = sample((2, 33))
    compiled = torch.compile(fastgen.gaussian_nll, fullgraph=True)
    got = with_gradients(compiled, mean, target, logvar, torch.ones(2))
    want = with_gradients(fastgen.gaussian_nll, mean, target, logvar, torch.ones(2))
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    "mean, target, logvar, error, words",
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), 0.0, ValueError, "target"),
        (torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 2), ValueError, "logvar must broad"),
        (torch.zeros(2, 3), torch.zeros(2, 3), "1", TypeError, "logvar must be a number"),
        (torch.zeros(2, 3), torch.zeros(2, 3), float("nan"), TypeError, "got nan"),
        (torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(1).int(), TypeError, "int32"),
        (torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(1).double(), TypeError, "float64"),
        (torch.zeros(2, 3), torch.zeros(2, 3).byte(), 0.0, TypeError, "uint8"),
        (torch.zeros(2, 3).int(), torch.zeros(2, 3), 0.0, TypeError, "int32"),
        (torch.zeros(()), torch.zeros(()), 0.0, ValueError, "scalar"),
        (torch.zeros(2), torch.zeros(2), torch.zeros(1, device="meta"), ValueError, "device"),
    ],
)
def test_bad_arguments_are_named(mean, target, logvar, error, words):
    with pytest.raises(error, match=words) as caught:
        fastgen.gaussian_nll(mean, target, logvar)
    assert "fastgen.gaussian_nll: " in str(caught.value)
