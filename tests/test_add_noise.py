import pytest
import torch
from random_tensors import DTYPES

import fastgen
from fastgen.reference import add_noise as reference

OP = torch.ops.fastgen.add_noise.default
BACKWARD = torch.ops.fastgen.add_noise_backward.default
KINDS = ["mask", "gaussian", "salt_pepper"]
SHAPES = [(0, 3), (), (1,), (3, 7), (2, 3, 5, 7), (3, 1025), (1, 1, 4, 4)]


def sample(shape, dtype=torch.float32, grad=False):
    return torch.rand(shape).to(dtype).requires_grad_(grad)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_reference(shape, dtype, kind, channels_last):
    x = sample(shape, dtype)
    if channels_last and len(shape) == 4:
        x = x.to(memory_format=torch.channels_last)
    arguments = (KINDS.index(kind), 0.3, -1.0, 2.0, torch.tensor(5), True)
    noisy, mask, seed = OP(x, *arguments)
    want, want_mask, _ = reference.add_noise(x, *arguments)
    assert noisy.stride() == want.stride() and seed == 5
    assert torch.equal(mask, want_mask)
    if kind == "gaussian":
        torch.testing.assert_close(noisy, want, rtol=4e-7 if dtype == torch.float32 else None,
                                   atol=2e-7 if dtype == torch.float32 else None)  # fmt: skip
    else:
        assert torch.equal(noisy, want)
    grad = sample(shape, dtype)
    back = (arguments[0], 0.3, torch.tensor(5))
    assert torch.equal(BACKWARD(grad, *back), reference.add_noise_backward(grad, *back))


def test_is_what_the_page_says():
    x = sample((20, 30))
    u, e = fastgen.rand(20, 30, seed=3), fastgen.randn(20, 30, seed=3)
    noisy, mask = fastgen.add_noise(x, "mask", 0.4, seed=3, return_mask=True)
    assert torch.equal(noisy, x.masked_fill(u < 0.4, 0)) and torch.equal(mask, u < 0.4)
    noisy, mask = fastgen.add_noise(x, "gaussian", 0.4, seed=3, return_mask=True)
    torch.testing.assert_close(noisy, x + 0.4 * e)
    assert mask.all()
    noisy = fastgen.add_noise(x, "salt_pepper", 0.4, low=-1, high=3, seed=3)
    want = torch.where(u < 0.2, -1.0, torch.where(u < 0.4, 3.0, x))
    assert torch.equal(noisy, want)


@pytest.mark.parametrize("kind", KINDS)
def test_an_amount_of_0_changes_nothing_and_1_everything(kind):
    x = sample((50, 9)) + 0.5
    assert torch.equal(fastgen.add_noise(x, kind, 0.0), x)
    assert (fastgen.add_noise(x, kind, 1.0, low=-1, high=9) != x).all()


def test_infinities_and_nan_stay_in_their_places():
    x = torch.tensor([float("inf"), float("nan"), -float("inf"), 1.0]).repeat(50)
    noisy, mask = fastgen.add_noise(x, "mask", 0.5, seed=1, return_mask=True)
    assert (noisy[mask] == 0).all()
    assert torch.equal(noisy[~mask].nan_to_num(), x[~mask].nan_to_num())


@pytest.mark.parametrize("kind", KINDS)
def test_strided_inputs_equal_their_contiguous_copies(kind):
    x = sample((8, 12))
    for view in (x.t(), x[:, ::2], x[:1].expand(8, 12)):
        got = fastgen.add_noise(view, kind, seed=2)
        assert torch.equal(got, fastgen.add_noise(view.contiguous(), kind, seed=2))


@pytest.mark.parametrize("kind", KINDS)
def test_same_bits_for_any_number_of_threads(kind, threads):
    x = sample((100_003,))
    many = fastgen.add_noise(x, kind, seed=5, return_mask=True)
    torch.set_num_threads(1)
    few = fastgen.add_noise(x, kind, seed=5, return_mask=True)
    assert all(torch.equal(a, b) for a, b in zip(many, few, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind):
    x = sample((4, 5), torch.float64, grad=True)
    assert torch.autograd.gradcheck(lambda x: fastgen.add_noise(x, kind, 0.4, seed=1), (x,))
    assert torch.autograd.gradgradcheck(lambda x: fastgen.add_noise(x, kind, 0.4, seed=1), (x,))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("kind", range(3))
def test_registration(kind, grad):
    x = sample((2, 3, 4, 5), grad=grad)
    torch.library.opcheck(OP, (x, kind, 0.3, 0.0, 1.0, torch.tensor(7), kind == 2))
    torch.library.opcheck(BACKWARD, (x.detach(), kind, 0.3, torch.tensor(7)))


@pytest.mark.parametrize("seed", [None, 3])
def test_compiles_without_graph_break(seed):
    compiled = torch.compile(lambda x: fastgen.add_noise(x, "mask", seed=seed) * 2, fullgraph=True)
    x = sample((6, 10), grad=True)
    got = compiled(x)
    got.sum().backward()
    if seed is not None:
        assert torch.equal(got, fastgen.add_noise(x, "mask", seed=seed) * 2)
    assert torch.equal(x.grad, 2.0 * (got != 0))


def test_manual_seed_makes_it_repeat():
    x = sample((40,))
    torch.manual_seed(1)
    first, second = fastgen.add_noise(x), fastgen.add_noise(x)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(fastgen.add_noise(x), first)
    assert torch.equal(fastgen.add_noise(x, generator=torch.Generator().manual_seed(1)), first)


def test_replaces_the_share_it_is_told():
    x = torch.full((1 << 18,), 0.5)
    noisy = fastgen.add_noise(x, "salt_pepper", 0.3, seed=1)
    for value, share in ((0.0, 0.15), (1.0, 0.15), (0.5, 0.7)):
        spread = (share * (1 - share) / x.numel()) ** 0.5
        assert abs((noisy == value).double().mean().item() - share) < 4.5 * spread


X = torch.zeros(2, 3)


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: fastgen.add_noise([1.0]), TypeError, "x must be a tensor"),
        (lambda: fastgen.add_noise(X.long()), TypeError, "x must be float32"),
        (lambda: fastgen.add_noise(X, "pink"), ValueError, "kind must be one of"),
        (lambda: fastgen.add_noise(X, "mask", 1.5), ValueError, r"in \[0, 1\]"),
        (lambda: fastgen.add_noise(X, "gaussian", -1), ValueError, "a number >= 0"),
        (lambda: fastgen.add_noise(X, amount="much"), ValueError, "amount must be"),
        (lambda: fastgen.add_noise(X, seed=1, generator=torch.Generator()), ValueError, "exclude"),
    ],
)
def test_bad_arguments_are_named(call, error, words):
    with pytest.raises(error, match=words) as caught:
        call()
    assert "fastgen.add_noise" in str(caught.value)
