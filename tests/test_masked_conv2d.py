import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from tolerances import assert_as_exact_as_torch

import fastgen
from fastgen.reference import masked_conv2d as reference

OP = torch.ops.fastgen.masked_conv2d.default
BACKWARD = torch.ops.fastgen.masked_conv2d_backward.default
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def raster(kh, kw, own=True):
    mask = torch.zeros(kh, kw, dtype=torch.bool)
    mask[: kh // 2] = True
    mask[kh // 2, : kw // 2 + own] = True
    return mask


def vertical(kh, kw):
    mask = torch.zeros(kh, kw)
    mask[: kh // 2] = 1
    return mask


def colours(out, in_, k, own=True, colours=3, interleaved=False):
    def colour(channels):
        index = torch.arange(channels)
        return index % colours if interleaved else index * colours // channels

    mask = raster(k, k).expand(out, in_, k, k).clone()
    seen, seer = colour(in_), colour(out)[:, None]
    mask[:, :, k // 2, k // 2] = seen <= seer if own else seen < seer
    return mask


def scattered(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(5)) < 0.4


# name: (x shape, out channels, mask, dilation)
CASES = {
    "raster": ((2, 5, 6, 7), 9, raster(3, 3), 1),
    "raster without self": ((2, 16, 8, 8), 32, raster(5, 5, own=False), 1),
    "one channel in": ((3, 1, 9, 8), 64, raster(7, 7, own=False), 1),
    "three channels in": ((2, 3, 8, 9), 20, raster(7, 7, own=False), 1),
    "one channel out": ((2, 8, 5, 5), 1, raster(3, 3), 1),
    "wide": ((1, 70, 5, 6), 130, raster(3, 3), 1),
    "pointwise": ((2, 24, 7, 5), 40, torch.ones(1, 1), 1),
    "horizontal": ((2, 6, 4, 9), 8, raster(1, 5), 1),
    "vertical": ((2, 6, 9, 4), 8, vertical(5, 3), 1),
    "dilated": ((2, 4, 11, 9), 6, raster(3, 5), (3, 2)),
    "kernel larger than the image": ((2, 3, 2, 3), 4, raster(7, 7), 1),
    "one pixel": ((4, 6, 1, 1), 5, raster(3, 3), 1),
    "colour blocks": ((2, 6, 5, 5), 12, colours(12, 6, 3), 1),
    "colour blocks without self": ((2, 3, 5, 6), 96, colours(96, 3, 7, own=False), 1),
    "colours interleaved": ((2, 9, 5, 4), 66, colours(66, 9, 3, interleaved=True), 1),
    "scattered": ((2, 7, 6, 5), 35, scattered(35, 7, 3, 5), 1),
    "scattered taps": ((2, 7, 6, 5), 18, scattered(1, 1, 5, 3), 1),
    "scattered outputs": ((1, 5, 6, 5), 18, scattered(18, 1, 3, 3), 1),
    "everything masked": ((2, 3, 4, 4), 5, torch.zeros(3, 3), 1),
    "nothing masked": ((2, 3, 6, 4), 5, torch.ones(3, 3), 1),
    "no sample": ((0, 3, 4, 4), 5, raster(3, 3), 1),
    "no row": ((2, 3, 0, 4), 5, raster(3, 3), 1),
    "no input channel": ((2, 0, 4, 4), 5, raster(3, 3), 1),
    "no output channel": ((2, 3, 4, 4), 0, raster(3, 3), 1),
}


def sample(case, dtype=torch.float32, grad=False):
    shape, out, mask, dilation = CASES[case]
    x = torch.randn(shape).to(dtype).requires_grad_(grad)
    weight = (torch.randn(out, shape[1], *mask.shape[-2:]) * 0.3).to(dtype).requires_grad_(grad)
    bias = torch.randn(out).to(dtype).requires_grad_(grad)
    return x, weight, bias, mask, dilation


def plain(x, weight, bias, mask, dilation):
    pair = (dilation, dilation) if isinstance(dilation, int) else dilation
    height, width = (d * (k // 2) for d, k in zip(pair, weight.shape[2:], strict=True))
    padded = F.pad(x, (width, width, height, height))
    if 0 in (*x.shape, *weight.shape):
        return torch.zeros(x.shape[0], weight.shape[0], *x.shape[2:]).to(x.dtype) + (
            x.sum() + weight.sum() + bias[:, None, None]
        )
    return F.conv2d(padded, weight * mask.to(weight.dtype), bias, dilation=pair)


def run(f, case, inputs, grad, to):
    _, _, mask, dilation = CASES[case]
    inputs = [t.detach().to(to).requires_grad_() for t in inputs]
    y = f(*inputs, mask=mask, dilation=dilation)
    return y, torch.autograd.grad(y, inputs, grad.to(to))


@pytest.mark.parametrize("channels_last", [False, True], ids=["NCHW", "channels-last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_as_exact_as_plain_torch(case, dtype, channels_last):
    x, weight, bias, mask, _ = sample(case, dtype)
    if channels_last:
        x = x.clone(memory_format=torch.channels_last)
        weight = weight.clone(memory_format=torch.channels_last)
    grad = torch.randn(x.shape[0], weight.shape[0], *x.shape[2:]).to(dtype)
    inputs = (x, weight, bias)
    ours, ours_grads = run(fastgen.masked_conv2d, case, inputs, grad, dtype)
    same, same_grads = run(plain, case, inputs, grad, dtype)
    exact, exact_grads = run(plain, case, inputs, grad, torch.float64)
    assert_as_exact_as_torch(ours, same, exact, "reduction")
    for got, other, want in zip(ours_grads, same_grads, exact_grads, strict=True):
        assert_as_exact_as_torch(got, other, want, "reduction")
    masked = ~mask.bool().expand(weight.shape)
    assert not ours_grads[1][masked].any(), "the gradient of a masked weight is exactly 0"


@pytest.mark.parametrize("case", CASES)
def test_memory_formats_agree_with_the_fake_kernel(case):
    x, weight, bias, mask, dilation = sample(case)
    taps, partial = fastgen.TapPlan(mask, weight.shape).on(x.device)
    pair = [dilation, dilation] if isinstance(dilation, int) else list(dilation)
    for form in (torch.contiguous_format, torch.channels_last):
        x = x.clone(memory_format=form)
        real = OP(x, weight, bias, taps, partial, pair)
        meta = OP(*(t.to("meta") for t in (x, weight, bias, taps, partial)), pair)
        assert real.stride() == meta.stride()


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[:, :, ::2, 1:],
        lambda x: x[:1].expand(4, -1, -1, -1),
        lambda x: x[:, :1].expand(-1, 6, -1, -1),
        lambda x: x.transpose(2, 3),
        lambda x: x.permute(0, 2, 1, 3)[:, :6],
        lambda x: x.flip(1),
    ],
    ids=["sliced", "expanded batch", "expanded channels", "transposed", "permuted", "flipped"],
)
@pytest.mark.parametrize("needs", [(True, True, True), (False, True, False), (True, False, False)])
def test_strided_inputs_equal_their_contiguous_copies(view, needs):
    x = view(torch.randn(3, 6, 8, 9))
    wide = torch.randn(10, 6, 3, 3)
    weight = wide.transpose(2, 3)
    mask = raster(3, 3)
    grad = view(torch.randn(3, 6, 8, 9))[:, :1].expand(-1, 10, -1, -1)
    taps, partial = fastgen.TapPlan(mask, weight.shape).on(x.device)
    ours = OP(x, weight, None, taps, partial, [1, 1])
    again = OP(x.contiguous(), weight.contiguous(), None, taps, partial, [1, 1])
    torch.testing.assert_close(ours, again, rtol=1e-6, atol=1e-6)
    grads = BACKWARD(grad, x, weight, taps, partial, [1, 1], needs)
    exact = reference.masked_conv2d_backward(
        grad.double(), x.double(), weight.double(), taps, partial, [1, 1], needs
    )
    for got, want, needed in zip(grads, exact, needs, strict=True):
        assert got.numel() == want.numel()
        if needed:
            torch.testing.assert_close(got, want.float(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "mask", [raster(3, 3, own=False), colours(12, 6, 3), scattered(12, 6, 3, 3)]
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_nan_under_a_masked_tap_reaches_nothing(mask, memory_format):
    x, weight = torch.randn(2, 6, 5, 7), torch.randn(12, 6, 3, 3)
    clean = fastgen.masked_conv2d(x, weight, mask=mask)
    poisoned = torch.where(mask.expand(weight.shape), weight, torch.nan)
    assert torch.equal(fastgen.masked_conv2d(x, poisoned, mask=mask), clean)

    # NaN in one input value reaches exactly the outputs that see it through an unmasked tap
    x = x.clone(memory_format=memory_format)
    x[1, 2, 3, 3] = torch.nan
    y = fastgen.masked_conv2d(x, poisoned, mask=mask)
    reach = torch.zeros(1, 6, 5, 7)
    reach[0, 2, 3, 3] = 1
    seen = F.conv2d(reach, mask.float().expand(weight.shape), padding=1)[0] > 0
    assert torch.equal(y[1].isnan(), seen)
    assert not y[0].isnan().any()

    # and in the backward pass: a NaN in the output's gradient reaches only what that output saw
    grad = torch.zeros(2, 12, 5, 7)
    grad[0, 4, 2, 2] = torch.nan
    x = torch.randn(2, 6, 5, 7).clone(memory_format=memory_format)
    taps, partial = fastgen.TapPlan(mask, weight.shape).on(x.device)
    grad_x, grad_w, _ = BACKWARD(grad, x, poisoned, taps, partial, [1, 1], [True] * 3)
    window = mask.expand(weight.shape)[4]
    want = torch.zeros(6, 5, 7, dtype=torch.bool)
    want[:, 1:4, 1:4] = window
    assert torch.equal(grad_x[0].isnan(), want)
    assert not grad_x[1].isnan().any()
    assert torch.equal(grad_w.isnan()[4], window)
    assert not grad_w[torch.arange(12) != 4].isnan().any()


@pytest.mark.parametrize(
    "case", ["raster", "one channel in", "wide", "colours interleaved", "vertical"]
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_same_bits_for_any_thread_count_and_batch_split(case, memory_format):
    shape, out, mask, dilation = CASES[case]
    x = torch.randn(6, *shape[1:]).clone(memory_format=memory_format).requires_grad_()
    _, weight, bias, _, _ = sample(case, grad=True)
    grad = torch.randn(6, out, *shape[2:]).clone(memory_format=memory_format)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        y = fastgen.masked_conv2d(x, weight, bias, mask=mask, dilation=dilation)
        results.append((y, *torch.autograd.grad(y, (x, weight, bias), grad)))
    torch.set_num_threads(2)
    for other in results[1:]:
        assert all(torch.equal(p, q) for p, q in zip(results[0], other, strict=True))
    for begin, end in ((0, 1), (1, 3), (3, 6)):
        part = x[begin:end].detach().requires_grad_()
        y = fastgen.masked_conv2d(part, weight, bias, mask=mask, dilation=dilation)
        assert torch.equal(y, results[0][0][begin:end])
        (grad_part,) = torch.autograd.grad(y, part, grad[begin:end])
        assert torch.equal(grad_part, results[0][1][begin:end])


@pytest.mark.parametrize("case", ["raster", "colour blocks", "dilated", "horizontal"])
def test_gradcheck(case):
    x, weight, bias, mask, dilation = sample(case, torch.float64, grad=True)
    x = x.detach()[:1, :, :4, :4].requires_grad_()

    def f(*inputs):
        return fastgen.masked_conv2d(*inputs, mask=mask, dilation=dilation)

    assert torch.autograd.gradcheck(f, (x, weight, bias), fast_mode=True)
    assert torch.autograd.gradgradcheck(f, (x, weight, bias), fast_mode=True)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2)], ids=str)
def test_requires_grad_on_any_subset(wanted):
    inputs = list(sample("raster")[:3])
    for i in wanted:
        inputs[i].requires_grad_()
    mask = CASES["raster"][2]
    y = fastgen.masked_conv2d(*inputs, mask=mask)
    exact = plain(*inputs, mask, 1)
    grad = torch.randn_like(y)
    chosen = [inputs[i] for i in wanted]
    for got, want in zip(
        torch.autograd.grad(y, chosen, grad), torch.autograd.grad(exact, chosen, grad), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("case", ["raster", "colour blocks", "one channel in", "everything masked"])
def test_registration(case, grad):
    x, weight, bias, mask, _ = sample(case, grad=grad)
    plan = fastgen.TapPlan(mask, weight.shape).on(x.device)
    for form in (torch.contiguous_format, torch.channels_last):
        inputs = [t.detach().clone(memory_format=form).requires_grad_(grad) for t in (x, weight)]
        torch.library.opcheck(OP, (*inputs, bias, *plan, [1, 1]))
    g = torch.randn(x.shape[0], weight.shape[0], *x.shape[2:])
    for needs in ([True, True, True], [False, True, False]):
        torch.library.opcheck(BACKWARD, (g, x, weight, *plan, [1, 1], needs))
    torch.library.opcheck(torch.ops.fastgen.masked_conv2d_plan.default, (mask, weight))


@pytest.mark.parametrize("case", ["raster", "colour blocks"])
def test_compiles_without_graph_break(case):
    x, weight, bias, mask, _ = sample(case, grad=True)
    plan = fastgen.TapPlan(mask, weight.shape)
    want = fastgen.masked_conv2d(x, weight, bias, mask=mask)
    for given in (mask, plan):

        def step(x, weight, bias, given=given):
            return fastgen.masked_conv2d(x.relu(), weight, bias, mask=given).square()

        y = torch.compile(step, fullgraph=True, dynamic=True)(x, weight, bias)
        want = step(x, weight, bias)
        torch.testing.assert_close(y, want)
        got = torch.autograd.grad(y.sum(), (x, weight, bias))
        for g, w in zip(got, torch.autograd.grad(want.sum(), (x, weight, bias)), strict=True):
            torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-4)


def test_follows_autocast():
    x, weight, bias, mask, _ = sample("raster", grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = fastgen.masked_conv2d(x, weight, bias, mask=mask)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert weight.grad.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert (
            fastgen.masked_conv2d(
                x.double(), *(t.double() for t in (weight, bias)), mask=mask
            ).dtype
            == torch.float64
        )


def test_64_bit_indexing(tmp_path):
    # strides beyond 2^31 over a sparse file: right addresses are proved without filling memory
    strides = (2**31 + 5, 2**30 + 3, 9, 2)
    numbers = torch.from_file(str(tmp_path / "sparse"), shared=True, size=2**32 + 2**10)
    x = numbers.as_strided((2, 3, 4, 4), strides)
    x.copy_(torch.randn(2, 3, 4, 4))
    weight = torch.randn(2, 3, 3, 3)
    taps, partial = fastgen.TapPlan(raster(3, 3), weight.shape).on(x.device)
    near = x.contiguous()
    assert torch.equal(
        OP(x, weight, None, taps, partial, [1, 1]), OP(near, weight, None, taps, partial, [1, 1])
    )
    grad = torch.randn(2, 2, 4, 4)
    for got, want in zip(
        BACKWARD(grad, x, weight, taps, partial, [1, 1], [True] * 3),
        BACKWARD(grad, near, weight, taps, partial, [1, 1], [True] * 3),
        strict=True,
    ):
        assert torch.equal(got.contiguous(), want.contiguous())


def test_mask_is_digested_once_and_again_when_its_content_changes(monkeypatch):
    made = []
    original = fastgen.TapPlan.__init__
    monkeypatch.setattr(
        fastgen.TapPlan, "__init__", lambda self, *a: (made.append(1), original(self, *a))[1]
    )
    x, weight, bias, _, _ = sample("raster")
    mask = raster(3, 3)
    for _ in range(3):
        before = fastgen.masked_conv2d(x, weight, bias, mask=mask)
    assert len(made) == 1
    mask.data[1, 1] = False  # no version counter sees this
    after = fastgen.masked_conv2d(x, weight, bias, mask=mask)
    assert len(made) == 2
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, plain(x, weight, bias, mask, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
def test_plan_can_be_copied(copy_of):
    plan = copy_of(fastgen.TapPlan(colours(12, 6, 3), (12, 6, 3, 3)))
    x, weight = torch.randn(1, 6, 4, 4), torch.randn(12, 6, 3, 3)
    want = fastgen.masked_conv2d(x, weight, mask=colours(12, 6, 3))
    assert torch.equal(fastgen.masked_conv2d(x, weight, mask=plan), want)


X, W, M = torch.zeros(1, 2, 4, 4), torch.zeros(3, 2, 3, 3), raster(3, 3)


@pytest.mark.parametrize(
    "arguments, keywords, error, words",
    [
        ((X[0], W), {"mask": M}, ValueError, "x must be .*3 dimensions"),
        ((X, W[0]), {"mask": M}, ValueError, "weight must be"),
        ((X, W.double()), {"mask": M}, TypeError, "float64"),
        ((X.long(), W), {"mask": M}, TypeError, "int64"),
        ((X, W, torch.zeros(3).half()), {"mask": M}, TypeError, "bias.*float16"),
        ((X, W, torch.zeros(2)), {"mask": M}, ValueError, r"bias must be \(3,\)"),
        ((X, torch.zeros(3, 4, 3, 3)), {"mask": M}, ValueError, "4 input channels, got 2"),
        ((X, torch.zeros(3, 2, 2, 3)), {"mask": torch.ones(2, 3)}, ValueError, "odd kernel"),
        ((X, W), {"mask": torch.full((3, 3), 2)}, ValueError, "0 and 1 only, got 2"),
        ((X, W), {"mask": torch.full((3, 3), torch.nan)}, ValueError, "0 and 1 only, got nan"),
        ((X, W), {"mask": torch.ones(5, 5)}, ValueError, "broadcast.*got \\(5, 5\\)"),
        ((X, W), {"mask": torch.ones(1, 1, 1, 3, 3)}, ValueError, "broadcast"),
        ((X, W), {"mask": [[1]]}, TypeError, "mask must be a tensor"),
        ((X, W), {"mask": M, "dilation": 0}, ValueError, "dilation"),
        ((X, W), {"mask": M, "dilation": (1, 2, 3)}, ValueError, "dilation"),
        ((X, W), {"mask": M, "dilation": 1.5}, ValueError, "dilation"),
        ((X, W), {"mask": M, "dilation": 2**31}, ValueError, "dilation"),
        ((None, W), {"mask": M}, TypeError, "x must be a tensor, got NoneType"),
        ((X, None), {"mask": M}, TypeError, "weight must be a tensor, got NoneType"),
        ((X, W.to("meta")), {"mask": M}, ValueError, "device"),
        ((X, W), {"mask": fastgen.TapPlan(M, (1, 1, 3, 3))}, ValueError, "TapPlan"),
    ],
)
def test_bad_arguments_are_named(arguments, keywords, error, words):
    with pytest.raises(error, match=words) as caught:
        fastgen.masked_conv2d(*arguments, **keywords)
    assert "fastgen.masked_conv2d" in str(caught.value)


def test_a_plan_wants_the_whole_weight_shape():
    with pytest.raises(ValueError, match="fastgen.masked_conv2d: weight must be"):
        fastgen.TapPlan(M, (3, 3))


@pytest.mark.parametrize("dilation", [[4, 1], [1000, 10**6], [2**31 - 1] * 2, [2**62] * 2])
@pytest.mark.parametrize("run", ["op", "reference"])
def test_taps_that_miss_the_image_cost_and_change_nothing(dilation, run):
    # the weight gradient's sums once grew with the dilation, and 4 * 2**62 is 0 in 64 bits
    x, weight, grad = torch.randn(2, 3, 4, 5), torch.randn(6, 3, 9, 9), torch.randn(2, 6, 4, 5)
    inside = torch.zeros(9, 9)
    inside[4, 4] = 1
    if dilation[1] == 1:
        inside[4] = 1
    results = []
    for mask, d in ((torch.ones(9, 9), dilation), (inside, [1, 1])):
        plan = fastgen.TapPlan(mask, weight.shape).on(x.device)
        forward = (x, weight, None, *plan, d)
        backward = (grad, x, weight, *plan, d, [True, True, True])
        if run == "op":
            results.append((OP(*forward), *BACKWARD(*backward)))
        else:
            results.append(
                (reference.masked_conv2d(*forward), *reference.masked_conv2d_backward(*backward))
            )
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_meta_tensors_give_shapes():
    y = fastgen.masked_conv2d(X.to("meta"), W.to("meta"), mask=M)
    assert y.device.type == "meta" and y.shape == (1, 3, 4, 4)
    y = fastgen.gated_activation(X.to("meta"), X[:, :, 0, 0].to("meta"))
    assert y.device.type == "meta" and y.shape == (1, 1, 4, 4)


@pytest.mark.parametrize("tangent_of", ["x", "weight"])
def test_forward_mode_is_refused_rather_than_zero(tangent_of):
    def f(v):
        return fastgen.masked_conv2d(*((v, W) if tangent_of == "x" else (X, v)), mask=M)

    v = X if tangent_of == "x" else W
    with pytest.raises(NotImplementedError, match=f"fastgen.masked_conv2d: {tangent_of} must"):
        torch.func.jvp(f, (v,), (v,))
    with torch.autograd.forward_ad.dual_level():
        with pytest.raises(NotImplementedError, match="reverse mode"):
            f(torch.autograd.forward_ad.make_dual(v, v))
        f(v)  # without a tangent it runs
