import pytest
import torch
from tolerances import assert_as_exact_as_torch

import fastgen

OP = torch.ops.fastgen.gated_masked_conv2d.default
BACKWARD = torch.ops.fastgen.gated_masked_conv2d_backward.default
MASK = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 0]])
CONDITIONS = [None, "per sample", "per pixel"]


def sample(condition=None, dtype=torch.float32, grad=False, shape=(2, 5, 6, 7), out=6):
    batch, channels, *size = shape
    x = torch.randn(shape).to(dtype).requires_grad_(grad)
    weight = (torch.randn(out, channels, 3, 3) * 0.3).to(dtype).requires_grad_(grad)
    bias = torch.randn(out).to(dtype).requires_grad_(grad)
    if condition is None:
        return x, weight, bias, None
    extent = (batch, out) if condition == "per sample" else (batch, out, *size)
    return x, weight, bias, torch.randn(extent).to(dtype).requires_grad_(grad)


def fused(x, weight, bias, condition):
    return fastgen.gated_masked_conv2d(x, weight, bias, condition, mask=MASK)


def plain(x, weight, bias, condition):
    pre = torch.nn.functional.conv2d(x, weight * MASK.to(weight.dtype), bias, padding=1)
    h = pre
    if condition is not None:
        h = pre + condition.reshape(condition.shape + (1,) * (4 - condition.dim()))
    a, b = h.chunk(2, dim=1)
    return torch.tanh(a) * torch.sigmoid(b), pre


@pytest.mark.parametrize("used", ["y", "pre", "both"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["NCHW", "channels-last"])
@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_values_and_gradients_are_as_exact_as_plain_torch(dtype, condition, channels_last, used):
    inputs = sample(condition, dtype)
    if channels_last:
        inputs = [
            t.to(memory_format=torch.channels_last) if t is not None and t.dim() == 4 else t
            for t in inputs
        ]
    grads = [torch.randn(2, 3, 6, 7).to(dtype), torch.randn(2, 6, 6, 7).to(dtype)]

    def run(f, to):
        given = [None if t is None else t.detach().to(to).requires_grad_() for t in inputs]
        outputs = f(*given)
        keep = {"y": slice(0, 1), "pre": slice(1, 2), "both": slice(0, 2)}[used]
        wanted = [t for t in given if t is not None]
        return outputs, torch.autograd.grad(
            outputs[keep], wanted, [g.to(to) for g in grads[keep]], allow_unused=True
        )

    ours, ours_grads = run(fused, dtype)
    same, same_grads = run(plain, dtype)
    exact, exact_grads = run(plain, torch.float64)
    for got, other, want in zip(
        (*ours, *ours_grads), (*same, *same_grads), (*exact, *exact_grads), strict=True
    ):
        if want is not None:
            # the gate's gradient is rounded to the storage type before it enters the convolution
            assert_as_exact_as_torch(got, other, want, "reduction")
        else:
            assert got is None


def test_equals_the_two_ops_one_behind_the_other():
    x, weight, bias, condition = sample("per sample")
    y, pre = fused(x, weight, bias, condition)
    want = fastgen.masked_conv2d(x, weight, bias, mask=MASK)
    torch.testing.assert_close(pre, want)
    torch.testing.assert_close(y, fastgen.gated_activation(want, condition))


@pytest.mark.parametrize("condition", CONDITIONS)
def test_gradcheck_to_the_second_order(condition):
    inputs = sample(condition, torch.float64, grad=True, shape=(1, 2, 3, 4), out=4)
    assert torch.autograd.gradcheck(fused, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(fused, inputs, fast_mode=True)


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("grad", [False, True])
def test_registration(condition, grad):
    x, weight, bias, c = sample(condition, grad=grad)
    plan = fastgen.TapPlan(MASK, weight.shape).on(x.device)
    torch.library.opcheck(OP, (x, weight, bias, c, *plan, [1, 1]))
    pre, grad_y = torch.randn(2, 6, 6, 7), torch.randn(2, 3, 6, 7)
    for grad_pre in (None, torch.randn(2, 6, 6, 7)):
        needs = condition == "per sample"
        c = None if c is None else c.detach()
        torch.library.opcheck(BACKWARD, (grad_y, grad_pre, pre, c, needs))


def test_compiles_without_graph_break():
    inputs = sample("per pixel", grad=True)
    y, pre = torch.compile(fused, fullgraph=True)(*inputs)
    want_y, want_pre = fused(*inputs)
    torch.testing.assert_close(y, want_y)
    torch.testing.assert_close(pre, want_pre)


def test_follows_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        y, pre = fused(*sample("per pixel"))
    assert y.dtype == pre.dtype == torch.bfloat16


def test_empty_batch():
    y, pre = fused(*sample("per sample", shape=(0, 5, 4, 4)))
    assert y.shape == (0, 3, 4, 4) and pre.shape == (0, 6, 4, 4)


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"weight": torch.zeros(5, 5, 3, 3)}, ValueError, "even number of output channels, got 5"),
        ({"condition": torch.zeros(2, 3)}, ValueError, r"\(2, 6\).*got \(2, 3\)"),
        ({"condition": torch.zeros(2, 6).double()}, TypeError, "float64"),
        ({"x": torch.zeros(5, 6, 7)}, ValueError, "x must be"),
    ],
)
def test_bad_arguments_are_named(change, error, words):
    given = dict(zip(("x", "weight", "bias", "condition"), sample(), strict=True)) | change
    given["bias"] = None
    with pytest.raises(error, match=words) as caught:
        fastgen.gated_masked_conv2d(**given, mask=MASK)
    assert "fastgen.gated_masked_conv2d" in str(caught.value)
