import pytest
import torch
import torch.nn.functional as F
from tolerances import assert_as_exact_as_torch

import fastgen
from fastgen import likelihoods
from fastgen.reference import bernoulli_nll as reference
from fastgen.reference.memory_format import suggest_memory_format

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SHAPES = [(0, 4), (3, 0), (1, 1), (5,), (3, 10), (2, 6, 5, 7), (2, 1029), (1, 20000)]
TARGETS = ["uint8", "bool", "own", "float32"]
OP = torch.ops.fastgen.bernoulli_nll.default
BACKWARD = torch.ops.fastgen.bernoulli_nll_backward.default


def sample(shape, target="own", dtype=torch.float32):
    logits = torch.randn(shape).mul(4).to(dtype)
    if target in ("uint8", "bool"):
        return logits, (torch.rand(shape) > 0.5).to(getattr(torch, target))
    return logits, torch.rand(shape).to(dtype if target == "own" else torch.float32)


def plain(logits, target):
    y = target.to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, y, reduction="none").flatten(1).sum(1)


def with_gradients(f, logits, target, grad):
    logits = logits.clone().requires_grad_()
    wants = [logits]
    if target.dtype.is_floating_point:
        target = target.clone().requires_grad_()
        wants.append(target)
    nll = f(logits, target)
    return nll.detach(), torch.autograd.grad(nll, wants, grad.to(nll.dtype))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_as_exact_as_plain_torch(shape, dtype, target):
    logits, y = sample(shape, target, dtype)
    grad = torch.randn(shape[0])
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    ours, ours_grads = with_gradients(fastgen.bernoulli_nll, logits, y, grad)
    assert ours.dtype == wide
    exact = reference.bernoulli_nll(logits.double(), y)
    needs = [True, y.dtype.is_floating_point]
    exact_grads = reference.bernoulli_nll_backward(grad.double(), logits.double(), y, needs)
    assert_as_exact_as_torch(ours, exact.to(wide), exact, "reduction")
    for got, want in zip(ours_grads, exact_grads, strict=False):
        assert_as_exact_as_torch(got, want.to(got.dtype), want.double(), "elementwise")


def test_is_the_cross_entropy_of_torch():
    logits, y = sample((3, 4, 5), "bool", torch.float64)
    torch.testing.assert_close(fastgen.bernoulli_nll(logits, y), plain(logits, y))


def test_tiny_probabilities_keep_their_digits():
    logits = torch.full((1, 4096), -30.0)
    want = 4096 * torch.tensor(-30.0, dtype=torch.float64).exp()
    got = fastgen.bernoulli_nll(logits, torch.zeros_like(logits)).double()
    torch.testing.assert_close(got, want[None], rtol=1e-5, atol=0)
    logits.requires_grad_()
    fastgen.bernoulli_nll(logits, torch.zeros(1, 4096)).sum().backward()
    assert abs(logits.grad[0, 0].item() / 9.3576e-14 - 1) < 1e-4


def test_sure_answers_cost_nothing_or_everything():
    inf = float("inf")
    logits = torch.tensor([[inf, -inf, inf], [inf, -inf, -inf], [1e30, -1e30, 3.0]])
    y = torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 1.0], [1.0, 0.0, 1.0]])
    nll = fastgen.bernoulli_nll(logits, y)
    torch.testing.assert_close(nll, reference.bernoulli_nll(logits, y))
    assert nll[0] == 0 and nll[1] == inf
    grad = torch.ops.fastgen.bernoulli_nll_backward(torch.ones(3), logits, y, [True, False])[0]
    want = reference.bernoulli_nll_backward(torch.ones(3), logits, y, [True, False])[0]
    torch.testing.assert_close(grad, want, rtol=1e-6, atol=1e-30)
    assert fastgen.bernoulli_nll(torch.full((1, 20), float("nan")), torch.zeros(1, 20)).isnan()


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
    logits, y = (view(t) for t in sample((3, 8, 6, 9)))
    grad = torch.randn(len(logits))
    other = y if both else y.contiguous()
    got, grads = with_gradients(fastgen.bernoulli_nll, logits, other, grad)
    torch.testing.assert_close(got, plain(logits, y), rtol=1e-6, atol=1e-5)
    found = BACKWARD(grad, logits, other, [True, True])
    want = reference.bernoulli_nll_backward(grad, logits, other, [True, True])
    for a, b, c in zip(found, want, grads, strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(a, c)
    formats = [suggest_memory_format(t) for t in (logits, other)]
    assert all(g.is_contiguous(memory_format=f) for g, f in zip(found, formats, strict=True))


def test_offsets_beyond_2_to_the_31():
    memory = torch.zeros(2**31 + 20, dtype=torch.uint8)  # of which two pages are touched
    memory[-20:] = 1
    y, logits = memory.as_strided((2, 20), (2**31, 1)), torch.randn(1, 20).expand(2, 20)
    got = fastgen.bernoulli_nll(logits, y)
    assert torch.equal(got, fastgen.bernoulli_nll(logits, y.contiguous()))
    assert got[0] != got[1]


def test_same_bits_for_any_thread_count_and_batch_split(threads):
    logits, y = sample((4, 30000), "uint8")
    grad = torch.randn(4)
    nll, (by_logits,) = with_gradients(fastgen.bernoulli_nll, logits, y, grad)
    torch.set_num_threads(1)
    rows = [
        with_gradients(fastgen.bernoulli_nll, logits[i : i + 1], y[i : i + 1], grad[i : i + 1])
        for i in range(4)
    ]
    assert torch.equal(nll, torch.cat([r[0] for r in rows]))
    assert torch.equal(by_logits, torch.cat([r[1][0] for r in rows]))


def test_gradcheck_to_the_second_order():
    logits, y = sample((2, 5), dtype=torch.float64)
    y = y.mul(0.8).add(0.1).requires_grad_()
    assert torch.autograd.gradcheck(fastgen.bernoulli_nll, (logits.requires_grad_(), y))
    assert torch.autograd.gradgradcheck(fastgen.bernoulli_nll, (logits, y))


@pytest.mark.parametrize("target", ["uint8", "own"])
def test_registration(target):
    logits, y = sample((2, 3, 5), target)
    torch.library.opcheck(OP, (logits.requires_grad_(), y))
    torch.library.opcheck(BACKWARD, (torch.rand(2), logits.detach(), y, [True, False]))


def test_compiles_without_graph_break():
    logits, y = sample((2, 33))
    compiled = torch.compile(fastgen.bernoulli_nll, fullgraph=True)
    got = with_gradients(compiled, logits, y, torch.ones(2))
    torch.testing.assert_close(got, with_gradients(fastgen.bernoulli_nll, logits, y, torch.ones(2)))


def test_agrees_with_the_likelihood_of_the_samplers():
    logits = torch.randn(2, 1, 4, 5)
    codes = torch.randint(0, 2, (2, 1, 4, 5))
    want = likelihoods.Bernoulli().log_prob(logits[:, None], codes).flatten(1).sum(1)
    torch.testing.assert_close(-fastgen.bernoulli_nll(logits, codes.bool()), want)


@pytest.mark.parametrize(
    "logits, target, error, words",
    [
        (torch.zeros(2, 3), torch.full((2, 3), 1.5), ValueError, "0 .. 1, got 1.5; scale images"),
        (torch.zeros(2, 3), torch.full((2, 3), -0.25), ValueError, "got -0.25"),
        (torch.zeros(2, 3), torch.full((2, 3), float("nan")), ValueError, "got nan"),
        (torch.zeros(2, 3), torch.full((2, 3), 255).byte(), ValueError, "got 255"),
        (torch.zeros(2, 3), torch.zeros(2, 4), ValueError, "target"),
        (torch.zeros(()), torch.zeros(()), ValueError, "scalar"),
        (torch.zeros(2, 3), torch.zeros(2, 3).long(), TypeError, "int64"),
        (torch.zeros(2, 3).int(), torch.zeros(2, 3), TypeError, "int32"),
        (torch.zeros(2, 3), torch.zeros(2, 3, device="meta"), ValueError, "device"),
        ([1.0], torch.zeros(1), TypeError, "must be a tensor, got list"),
    ],
)
def test_bad_arguments_are_named(logits, target, error, words):
    with pytest.raises(error, match=words) as caught:
        fastgen.bernoulli_nll(logits, target)
    assert "fastgen.bernoulli_nll: " in str(caught.value)
