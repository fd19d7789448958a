"""The public ops on the Triton kernels: dispatcher, autograd and opcheck, in the interpreter."""

import pytest
import torch
from test_triton_masked_conv2d import causal

import fastgen


def results(backend, function, *tensors):
    """Outputs and gradients of `function` with one backend in force."""
    tensors = [t.clone().requires_grad_() for t in tensors]
    with fastgen.use_backend(backend):
        outputs = function(*tensors)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        loss = sum((o * torch.linspace(-1, 1, o.numel()).view(o.shape)).sum() for o in outputs)
        return *outputs, *torch.autograd.grad(loss, tensors)


def assert_same_as_reference(function, *tensors):
    for ours, theirs in zip(
        results("triton", function, *tensors),
        results("reference", function, *tensors),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)


CONVOLUTION = torch.randn(2, 5, 6, 4), torch.randn(8, 5, 3, 3), torch.randn(8)
MASK = causal(8, 5, 3, 3, 1)
PARTIAL = causal(8, 5, 3, 3, 2, own=False)


@pytest.mark.parametrize("mask", [MASK, PARTIAL], ids=["full taps", "partial taps"])
def test_masked_conv2d(mask):
    assert_same_as_reference(
        lambda x, w, b: fastgen.masked_conv2d(x, w, b, mask=mask, dilation=(1, 2)), *CONVOLUTION
    )


@pytest.mark.parametrize("shape", [(2, 8), (2, 8, 6, 4)], ids=["per sample", "per pixel"])
def test_gated_activation_and_gated_masked_conv2d(shape):
    condition = torch.randn(shape)
    assert_same_as_reference(fastgen.gated_activation, torch.randn(2, 8, 6, 4), condition)
    assert_same_as_reference(
        lambda x, w, b, c: fastgen.gated_masked_conv2d(x, w, b, c, mask=PARTIAL),
        *CONVOLUTION,
        condition,
    )


def test_gradcheck():
    x, weight = torch.randn(1, 2, 2, 2), torch.randn(2, 2, 3, 1)
    mask = causal(2, 2, 3, 1, 2)

    def function(x, weight, condition):
        return fastgen.gated_masked_conv2d(x, weight, None, condition, mask=mask)

    inputs = [t.double().requires_grad_() for t in (x, weight, torch.randn(1, 2))]
    with fastgen.use_backend("triton"):
        assert torch.autograd.gradcheck(function, inputs)


def test_opcheck():
    x, weight, bias = CONVOLUTION
    taps = fastgen.TapPlan(PARTIAL, weight.shape).on(x.device)
    condition = torch.randn(2, 8)
    arguments = {
        "masked_conv2d": (x, weight, bias, *taps, [1, 1]),
        "gated_activation": (torch.randn(2, 8, 3), condition),
        "gated_masked_conv2d": (x, weight, bias, condition, *taps, [1, 1]),
    }
    with fastgen.use_backend("triton"):
        for name, values in arguments.items():
            operator = getattr(torch.ops.fastgen, name).default
            torch.library.opcheck(operator, values, test_utils=("test_schema", "test_faketensor"))


def test_backends_say_that_triton_runs():
    with fastgen.use_backend("triton"):
        rows = {b.name: b for b in fastgen.backends("masked_conv2d")}
    assert "cpu" in rows["triton"].runs_on
