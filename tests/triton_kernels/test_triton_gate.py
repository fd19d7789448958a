"""The Triton kernels of gated_activation and gated_masked_conv2d against float64, interpreted."""

import pytest
import torch
from guard import Outputs, guarded
from test_triton_masked_conv2d import DTYPES, FORMATS, causal, plan, sample
from tolerances import assert_as_exact_as_torch

from fastgen.kernels import gated_activation as kernels
from fastgen.kernels import gated_masked_conv2d as fused
from fastgen.reference import gated_activation as reference
from fastgen.reference import gated_masked_conv2d as fused_reference


@pytest.fixture(autouse=True)
def outputs(monkeypatch):
    made = Outputs(kernels.empty_in_format_of)
    monkeypatch.setattr(kernels, "empty_in_format_of", made)
    monkeypatch.setattr(fused, "empty_in_format_of", made)
    yield made
    made.check()


def condition_of(kind, shape, dtype):
    if kind is None:
        return None
    return torch.randn(shape[:2] if kind == "per sample" else shape).to(dtype)


def wide(*tensors):
    return [None if t is None else t.double() for t in tensors]


def check(x, condition, grad=None):
    y = kernels.gated_activation(x, condition)
    plain = reference.gated_activation(x, condition)
    exact = reference.gated_activation(*wide(x, condition))
    assert_as_exact_as_torch(y, plain, exact, "elementwise")
    assert y.dtype == x.dtype and y.stride() == plain.stride()

    grad = torch.randn_like(y) if grad is None else grad
    per_sample = condition is not None and condition.dim() == 2 < x.dim()
    back = kernels.gated_activation_backward(grad, x, condition, per_sample)
    plain = reference.gated_activation_backward(grad, x, condition, per_sample)
    exact = reference.gated_activation_backward(*wide(grad, x, condition), per_sample)
    for actual, plainly, exactly in zip(back, plain, exact, strict=True):
        assert_as_exact_as_torch(actual, plainly, exactly, "elementwise")
    assert back[0].stride() == plain[0].stride()


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("kind", [None, "per sample", "per pixel"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels, size", [(5, (3, 7)), (70, (2, 5)), (3, (23, 25))])
def test_gate_and_gradient_match_float64(channels, size, dtype, kind, layout):
    x = torch.randn(2, 2 * channels, *size).to(dtype, memory_format=FORMATS[layout])
    condition = condition_of(kind, x.shape, dtype)
    check(guarded(x), None if condition is None else guarded(condition))


@pytest.mark.parametrize("shape", [(3, 8), (3, 8, 5), (2, 4, 3, 2, 3), (0, 4, 5), (2, 0, 3, 3)])
def test_any_number_of_dimensions(shape):
    check(torch.randn(shape), None)
    check(torch.randn(shape), torch.randn(shape[:2]))


def test_any_strides():
    x = guarded(torch.randn(2, 10, 4, 5), spread=3).transpose(2, 3)
    check(x, torch.randn(2, 10, 1, 1).expand(x.shape), torch.randn(1, 1, 1, 1).expand(2, 5, 5, 4))
    check(x.narrow(1, 1, 8), guarded(torch.randn(8, 2)).t())


def test_64_bit_offsets(monkeypatch):
    monkeypatch.setattr(kernels, "needs_int64", lambda *_: True)
    monkeypatch.setattr(fused, "needs_int64", lambda *_: True)
    check(torch.randn(2, 6, 5, 3), torch.randn(2, 6))
    x, weight, bias = sample(2, 17, 6, (4, 3), (3, 3))
    check_fused(x, weight, bias, torch.randn(2, 6), causal(6, 17, 3, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_each_value_is_exact_to_a_few_ulp(dtype):
    """Also where the tanh is tiny, at the seam at 1/2, and in both tails."""
    a = torch.cat([torch.logspace(-30, 1.2, 400), torch.linspace(0.45, 0.55, 101)]).to(dtype)
    a = torch.cat([a, -a])
    for b in (torch.full_like(a, 0.3), -a.abs()):
        x = torch.stack([a, b])[None]
        y = kernels.gated_activation(x, None)[0, 0]
        exact = torch.tanh(a.double()) * torch.sigmoid(b.double())
        assert ((y.double() - exact) / exact).abs().max() < 12 * torch.finfo(dtype).eps
        grad = torch.ones(1, 1, a.numel(), dtype=dtype)
        grad_a, grad_b = kernels.gated_activation_backward(grad, x, None, False)[0][0]
        by_a = torch.sigmoid(b.double()) / torch.cosh(a.double()) ** 2
        by_b = torch.tanh(a.double()) / (2 * torch.cosh(b.double() / 2)) ** 2
        for actual, exactly in ((grad_a, by_a), (grad_b, by_b)):
            assert ((actual.double() - exactly) / exactly).abs().max() < 32 * torch.finfo(dtype).eps


def test_extremes_and_nan():
    a, b = torch.tensor([[1e4, -1e4, float("inf"), float("nan"), 1.0], [1e4, 1e4, 1.0, 0.0, -1e4]])
    y = kernels.gated_activation(torch.stack([a, b])[None], None)[0, 0]
    torch.testing.assert_close(y, torch.tanh(a) * torch.sigmoid(b), equal_nan=True)
    back = kernels.gated_activation_backward(
        torch.ones(1, 1, 5), torch.stack([a, b])[None], None, False
    )
    assert back[0][0, :, 3].isnan().all() and back[0][0, :, [0, 1, 4]].isfinite().all()


def check_fused(x, weight, bias, condition, mask, dilation=(1, 1)):
    arguments = x, weight, bias, condition
    got = fused.gated_masked_conv2d(*arguments, *plan(mask), dilation)
    plain = fused_reference.gated_masked_conv2d(*arguments, *plan(mask), dilation)
    exact = fused_reference.gated_masked_conv2d(*wide(*arguments), *plan(mask), dilation)
    for actual, plainly, exactly in zip(got, plain, exact, strict=True):
        assert_as_exact_as_torch(actual, plainly, exactly, "reduction")
        assert actual.dtype == x.dtype and actual.stride() == plainly.stride()

    y, pre = got
    needs = condition is not None and condition.dim() == 2
    grad_y, grad_pre = (torch.randn(t.shape).to(t) for t in (y, pre))
    for extra in (None, grad_pre):
        arguments = grad_y, extra, pre, condition
        got = fused.gated_masked_conv2d_backward(*arguments, needs)
        plain = fused_reference.gated_masked_conv2d_backward(*arguments, needs)
        exact = fused_reference.gated_masked_conv2d_backward(*wide(*arguments), needs)
        for actual, plainly, exactly in zip(got, plain, exact, strict=True):
            assert_as_exact_as_torch(actual, plainly, exactly, "elementwise")


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("kind", [None, "per sample", "per pixel"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fused_convolution_and_gate(dtype, kind, layout):
    x, weight, bias = sample(2, 18, 42, (4, 5), (3, 3), dtype, layout)
    condition = condition_of(kind, (2, 42, 4, 5), dtype)
    condition = None if condition is None else guarded(condition)
    check_fused(*map(guarded, (x, weight, bias)), condition, causal(42, 18, 3, 3, 3), (2, 1))


@pytest.mark.parametrize(
    "batch, inputs, channels, size",
    [(0, 3, 4, (5, 5)), (2, 0, 4, (5, 5)), (2, 3, 0, (5, 5)), (2, 3, 2, (0, 5)), (1, 1, 2, (1, 1))],
)
def test_fused_empty_and_single(batch, inputs, channels, size):
    x, weight, _ = sample(batch, inputs, channels, size, (3, 3))
    check_fused(x, weight, None, torch.randn(batch, channels), causal(channels, inputs, 3, 3))
