import pytest
import torch
from tolerances import assert_as_exact_as_torch

import fastgen
from fastgen.reference.gated_activation import gated_activation as reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SHAPES = [
    (0, 4, 3, 3),
    (2, 4, 0, 3),
    (1, 2, 1, 1),
    (3, 10),
    (2, 6, 5),
    (2, 6, 5, 7),
    (3, 70, 3, 3),
    (2, 128, 8, 8),
    (2, 6, 2, 3, 4),
]


def sample(shape, condition=None, dtype=torch.float32, grad=False):
    x = torch.randn(shape).mul(3).to(dtype).requires_grad_(grad)
    if condition is None:
        return x, None
    shape = shape[:2] if condition == "per sample" else shape
    return x, torch.randn(shape).to(dtype).requires_grad_(grad)


def plain(x, condition):
    if condition is not None:
        x = x + condition.reshape(condition.shape + (1,) * (x.dim() - condition.dim()))
    a, b = x.chunk(2, dim=1)
    return torch.tanh(a) * torch.sigmoid(b)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("condition", [None, "per sample", "per pixel"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_as_exact_as_plain_torch(shape, dtype, condition, channels_last):
    x, c = sample(shape, condition, dtype)
    if channels_last and len(shape) == 4:
        x = x.clone(memory_format=torch.channels_last)
    grad = torch.randn(shape[0], shape[1] // 2, *shape[2:]).to(dtype)

    def run(f, to):
        inputs = [t.detach().to(to).requires_grad_() for t in (x, c) if t is not None]
        y = f(inputs[0], inputs[1] if c is not None else None)
        return y, torch.autograd.grad(y, inputs, grad.to(to))

    ours, ours_grads = run(fastgen.gated_activation, dtype)
    same, same_grads = run(plain, dtype)
    exact, exact_grads = run(plain, torch.float64)
    assert_as_exact_as_torch(ours, same, exact, "elementwise")
    for got, other, want in zip(ours_grads, same_grads, exact_grads, strict=True):
        assert_as_exact_as_torch(got, other, want, "reduction")


def test_output_keeps_the_memory_format():
    x = torch.randn(2, 6, 5, 7).to(memory_format=torch.channels_last)
    y = fastgen.gated_activation(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert fastgen.gated_activation(x.contiguous()).is_contiguous()


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[:, :, ::2, 1:],
        lambda x: x[:1].expand(4, -1, -1, -1),
        lambda x: x.transpose(2, 3),
    ],
    ids=["sliced", "expanded", "transposed"],
)
def test_strided_inputs_equal_their_contiguous_copies(view):
    x = view(torch.randn(3, 8, 6, 9))
    assert torch.equal(fastgen.gated_activation(x), fastgen.gated_activation(x.contiguous()))


def test_extreme_and_non_finite_values():
    inf, nan = float("inf"), float("nan")
    a = torch.tensor([0.0, -0.0, 1e30, -1e30, inf, -inf, nan, 30.0, -30.0, 1e-30])
    x = torch.cartesian_prod(a, a).t().reshape(1, 2, -1).contiguous()
    y, want = fastgen.gated_activation(x), plain(x.double(), None).float()
    torch.testing.assert_close(y, want, rtol=1e-6, atol=1e-25, equal_nan=True)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_same_bits_for_any_thread_count_and_batch_split(memory_format):
    x, c = sample((6, 66, 9, 7), "per sample")
    x = x.to(memory_format=memory_format).requires_grad_()
    c.requires_grad_()
    grad = torch.randn(6, 33, 9, 7)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        y = fastgen.gated_activation(x, c)
        results.append((y, *torch.autograd.grad(y, (x, c), grad)))
    torch.set_num_threads(2)
    for other in results[1:]:
        assert all(torch.equal(p, q) for p, q in zip(results[0], other, strict=True))
    split = torch.cat([fastgen.gated_activation(x[i : i + 2], c[i : i + 2]) for i in (0, 2, 4)])
    assert torch.equal(results[0][0], split)


@pytest.mark.parametrize("condition", [None, "per sample", "per pixel"])
def test_gradcheck_to_the_second_order(condition):
    inputs = sample((2, 4, 3, 2), condition, torch.float64, grad=True)
    assert torch.autograd.gradcheck(fastgen.gated_activation, inputs)
    assert torch.autograd.gradgradcheck(fastgen.gated_activation, inputs)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("condition", [None, "per sample", "per pixel"])
def test_registration(condition, grad):
    for shape in ((2, 4, 3, 5), (2, 1 * 2, 3, 3)):
        torch.library.opcheck(
            torch.ops.fastgen.gated_activation.default, sample(shape, condition, grad=grad)
        )
    x, c = sample((2, 4, 3, 5), condition)
    torch.library.opcheck(
        torch.ops.fastgen.gated_activation_backward.default,
        (torch.randn(2, 2, 3, 5), x, c, condition == "per sample"),
    )


def test_compiles_without_graph_break_and_with_other_sizes():
    compiled = torch.compile(fastgen.gated_activation, fullgraph=True, dynamic=True)
    for size in (3, 5):
        x, c = sample((2, 6, size, size + 1), "per sample", grad=True)
        torch.testing.assert_close(compiled(x, c), fastgen.gated_activation(x, c))


def test_autocast_casts_the_condition_to_x():
    x, c = sample((2, 4, 3, 3), "per sample")
    with torch.autocast("cpu", torch.bfloat16):
        y = fastgen.gated_activation(x.bfloat16(), c)
    assert y.dtype == torch.bfloat16


def test_reference_is_the_documented_formula():
    x, c = sample((2, 6, 4, 4), "per pixel", torch.float64)
    torch.testing.assert_close(reference(x, c), plain(x, c))


@pytest.mark.parametrize(
    "x, condition, error, words",
    [
        (torch.zeros(2, 3, 4, 4), None, ValueError, "even number of channels"),
        (torch.zeros(4), None, ValueError, "even number of channels"),
        (torch.zeros(2, 4, dtype=torch.int64), None, TypeError, "int64"),
        ([1.0], None, TypeError, "must be a tensor, got list"),
        (torch.zeros(2, 4, 3, 3), torch.zeros(2, 2), ValueError, r"\(2, 4\).*got \(2, 2\)"),
        (torch.zeros(2, 4, 3, 3), torch.zeros(2, 4, 3, 1), ValueError, "one per pixel"),
        (torch.zeros(2, 4, 3, 3), torch.zeros(2, 4).double(), TypeError, "float64"),
        (torch.zeros(2, 4, 3, 3), torch.zeros(2, 4, device="meta"), ValueError, "device"),
    ],
)
def test_bad_arguments_are_named(x, condition, error, words):
    with pytest.raises(error, match=words) as caught:
        fastgen.gated_activation(x, condition)
    assert "fastgen.gated_activation" in str(caught.value)
