import itertools
import math

import pytest
import torch
import torch.nn.functional as F

import fastgen
from fastgen import likelihoods
from fastgen.reference import dmol_nll as reference
from fastgen.reference.memory_format import suggest_memory_format

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
LEVELS = [2, 17, 256, 65536]
OP = torch.ops.fastgen.dmol_nll.default
BACKWARD = torch.ops.fastgen.dmol_nll_backward.default


def sample(
    batch=2, colors=3, height=5, width=7, components=5, coupled=True, levels=256, last=False,
    scale=1.0, dtype=torch.float32,
):  # fmt: skip
    """Parameters and codes."""
    count = (10 if coupled and colors == 3 else 3) * components
    space = (height, width)
    shape = (batch, count, *(() if coupled else (colors,)), *space)
    if last:
        shape = (batch, *space, count if coupled else count * colors)
    params = torch.randn(shape).mul(scale).to(dtype)
    x = torch.randint(0, levels, (batch, *space, colors) if last else (batch, colors, *space))
    return params, x


def arguments(components=5, coupled=True, levels=256, exact=True, last=False, per_pixel=False):
    return components, coupled, levels, exact, last, per_pixel


def check(params, x, args, tolerance=1.0):
    """Values and gradients against float64."""
    nll = OP(params, x, *args)
    exact = reference.dmol_nll(params.double(), x, *args)
    grad = torch.rand(exact.shape).to(nll.dtype)
    got = BACKWARD(grad, params, x, *args)
    want = reference.dmol_nll_backward(grad.double(), params.double(), x, *args)
    assert got.dtype == params.dtype and got.shape == params.shape
    wide = torch.float64 if params.dtype == torch.float64 else torch.float32
    assert nll.dtype == wide
    if want.numel() == 0:
        assert torch.equal(nll, exact.to(wide))
        return
    rtol = {torch.float64: 1e-11}.get(wide, 2e-6) * tolerance
    torch.testing.assert_close(nll.double(), exact, rtol=rtol, atol=rtol)
    eps = {torch.float64: 1e-11, torch.float32: 2e-6}.get(params.dtype)
    eps = torch.finfo(params.dtype).eps if eps is None else eps * tolerance
    torch.testing.assert_close(
        got.double(), want, rtol=eps, atol=eps * max(want.abs().max().item(), 1)
    )


@pytest.mark.parametrize("form", ["exact", "pixelcnnpp"])
@pytest.mark.parametrize("coupled", [True, False], ids=["coupled", "uncoupled"])
@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_and_gradients_against_float64(dtype, levels, coupled, form):
    for last, per_pixel, colors in itertools.product((False, True), (False, True), (1, 3)):
        params, x = sample(coupled=coupled, levels=levels, last=last, dtype=dtype, colors=colors)
        args = arguments(5, coupled, levels, form == "exact", last, per_pixel)
        # in float64 the difference of two sigmoids has lost what ours has not
        check(params, x, args, tolerance=1 if form == "exact" else 100)


@pytest.mark.parametrize("components", [1, 5, 10, 17])
@pytest.mark.parametrize(
    "shape", [(0, 3, 3, 4), (2, 3, 0, 4), (1, 1, 1, 1), (1, 3, 1, 1), (2, 1, 9, 31), (1, 3, 17, 16),
              (3, 3, 8, 16)], ids=str
)  # fmt: skip
def test_shapes(shape, components):
    for coupled, last in itertools.product((True, False), (False, True)):
        params, x = sample(*shape, components, coupled=coupled, last=last)
        check(params, x, arguments(components, coupled, last=last))


def test_more_colours_than_three():
    for last in (False, True):
        params, x = sample(colors=5, coupled=False, last=last)
        check(params, x, arguments(coupled=False, last=last))


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("shift", [-30.0, -7.0, -3.0, 3.0, 12.0, 30.0, 90.0])
def test_any_log_scale(levels, shift):
    params, x = sample(levels=levels, components=3)
    params[:, 3:] = params[:, 3:].unflatten(1, (3, 3, 3)).add(
        torch.tensor([0.0, shift, 0.0])[:, None, None, None]
    ).flatten(1, 3)  # fmt: skip
    check(params, x, arguments(3, levels=levels), tolerance=10)
    check(params.double(), x, arguments(3, levels=levels), tolerance=100)  # the reference's own


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("size", [30.0, 1e4, 1e20, 1e38])
def test_finite_parameters_never_give_nan(levels, size):
    params, x = sample(levels=levels, scale=size)
    params.clamp_(-3e38, 3e38)
    x[:, :, 0], x[:, :, 1] = 0, levels - 1
    for exact in (True, False):
        args = arguments(levels=levels, exact=exact)
        assert not OP(params, x, *args).isnan().any()
        assert not BACKWARD(torch.ones(2), params, x, *args).isnan().any()


def test_far_means_cost_their_distance():
    params, x = sample(1, 1, 1, 2, 1)
    params[:] = torch.tensor([0.0, 1000.0, -7.0])[None, :, None, None]
    x[:] = torch.tensor([0, 128])
    check(params, x, arguments(1))
    inv = math.exp(7)
    want = 1001 * inv - inv / 255 + 1000 * inv  # both hopeless
    assert abs(OP(params, x, *arguments(1)).item() / want - 1) < 1e-3


def test_components_of_no_weight():
    params, x = sample(components=3)
    params[:, 1] = float("-inf")
    fewer = params[:, [i for i in range(30) if i % 3 != 1]]
    want = OP(fewer, x, *arguments(2))
    torch.testing.assert_close(OP(params, x, *arguments(3)), want, rtol=1e-5, atol=1e-4)
    assert BACKWARD(torch.ones(2), params, x, *arguments(3))[:, 1].eq(0).all()


def test_nan_parameters_spoil_their_sample_only():
    params, x = sample(components=3)
    params[0, 4, 2, 3] = float("nan")
    nll = OP(params, x, *arguments(3))
    assert nll[0].isnan() and nll[1].isfinite()


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_probabilities_of_all_levels_sum_to_1(levels, dtype):
    for shift in (-8.0, -2.0, 2.0, 9.0):
        params = sample(1, 1, 3, 5, 4, dtype=dtype)[0]
        params[:, 8:] += shift
        x = torch.arange(levels).view(levels, 1, 1, 1).expand(levels, 1, 3, 5)
        args = arguments(4, levels=levels, per_pixel=True)
        total = OP(params.expand(levels, -1, -1, -1), x, *args).neg().exp().sum(0)
        tolerance = 1e-4 if dtype == torch.float32 else 1e-11
        torch.testing.assert_close(total, torch.ones_like(total), rtol=tolerance, atol=tolerance)


def pixelcnnpp(params, x, components, dtype):
    """The loss as it is usually written."""
    half = 1 / 255
    p = params.to(dtype).movedim(1, -1)
    x = (x.to(dtype) * 2 / 255 - 1).movedim(1, -1)[..., None]
    logits, rest = p[..., :components], p[..., components:].unflatten(-1, (3, 3, components))
    means, log_scales, c = rest[..., 0, :], rest[..., 1, :].clamp(min=-7), rest[..., 2, :].tanh()
    means = torch.stack((
        means[..., 0, :],
        means[..., 1, :] + c[..., 0, :] * x[..., 0, :],
        means[..., 2, :] + c[..., 1, :] * x[..., 0, :] + c[..., 2, :] * x[..., 1, :],
    ), -2)  # fmt: skip
    t, inv = x - means, (-log_scales).exp()
    plus, minus, middle = inv * (t + half), inv * (t - half), inv * t
    delta = torch.sigmoid(plus) - torch.sigmoid(minus)
    density = middle - log_scales - 2 * F.softplus(middle) - math.log(127.5)
    inner = torch.where(delta > 1e-5, delta.clamp(min=1e-12).log(), density)
    below, above = plus - F.softplus(plus), -F.softplus(minus)
    bins = torch.where(x < -0.999, below, torch.where(x > 0.999, above, inner)).sum(-2)
    return -torch.logsumexp(bins + F.log_softmax(logits, -1), -1).sum((1, 2))


def test_is_the_published_loss():
    params, x = sample(2, 3, 8, 9, 10)
    want = pixelcnnpp(params, x, 10, torch.float64)
    for form in ("exact", "pixelcnnpp"):
        got = fastgen.dmol_nll(params.double(), x, components=10, form=form)
        torch.testing.assert_close(got, want, rtol=1e-7, atol=0)


def test_gradient_is_fifty_times_nearer_to_float64_than_the_usual_code():
    params, x = sample(2, 3, 32, 32, 10)
    x[:, :, :4], x[:, :, 4:8] = 0, 255
    args = arguments(10)
    want = reference.dmol_nll_backward(torch.ones(2).double(), params.double(), x, *args)
    error = (BACKWARD(torch.ones(2), params, x, *args) - want).abs().max().item()
    leaf = params.clone().requires_grad_()
    pixelcnnpp(leaf, x, 10, torch.float32).sum().backward()
    theirs = (leaf.grad - want).abs().max().item()
    assert error < 1.5e-5 and error < theirs / 50


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16], ids=str
)
def test_codes_of_any_integer_dtype(dtype):
    params, x = sample(levels=100)
    args = arguments(levels=100)
    assert torch.equal(OP(params, x.to(dtype), *args), OP(params, x, *args))
    last = x.movedim(1, -1).contiguous().movedim(-1, 1)
    assert torch.equal(OP(params, last.to(dtype), *args), OP(params, x, *args))


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_floats_count_as_the_nearest_level(levels, dtype):
    if levels * torch.finfo(dtype).eps > 1:
        pytest.skip("too coarse for so many levels")
    params, x = sample(levels=levels)
    values = (x.double() * 2 / (levels - 1) - 1).to(dtype)
    args = arguments(levels=levels)
    if dtype in (torch.float32, torch.float64) and levels < 1000:
        values = values + 9e-4 * torch.rand(x.shape).sub(0.5).to(dtype)
    if (values.double() - (x.double() * 2 / (levels - 1) - 1)).abs().max() > 1e-3:
        with pytest.raises(ValueError, match="floats within 0.001"):
            OP(params, values, *args)
        return
    assert torch.equal(OP(params, values, *args), OP(params, x, *args))


@pytest.mark.parametrize("coupled", [True, False], ids=["coupled", "uncoupled"])
def test_any_strides(coupled):
    params, x = sample(3, 3, 6, 16, 4, coupled=coupled)
    args = arguments(4, coupled)
    space = (-2, -1)
    last = torch.channels_last if coupled else torch.channels_last_3d
    views = {
        "channels-last": lambda t: t.contiguous(memory_format=last),
        "sliced": lambda t: torch.stack((t, t), -1).flatten(-2)[..., ::2],
        "cut": lambda t: torch.cat((t, t), -1)[..., : t.shape[-1]],
        "transposed": lambda t: t.transpose(*space).contiguous().transpose(*space),
        "channels of more": lambda t: torch.cat((t, t), 1)[:, t.shape[1] :],
    }
    want, grad = OP(params, x, *args), torch.rand(3)
    wanted = BACKWARD(grad, params, x, *args)
    for name, view in views.items():
        p = view(params)
        torch.testing.assert_close(OP(p, x, *args), want, msg=lambda m, n=name: f"{n}: {m}")
        got = BACKWARD(grad, p, x, *args)
        torch.testing.assert_close(got, wanted, msg=lambda m, n=name: f"{n}: {m}")
        assert got.is_contiguous(memory_format=suggest_memory_format(p))
    strided = x.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(OP(params, strided, *args), want)


def test_offsets_beyond_2_to_the_31():
    memory = torch.zeros(2**31 + 1, dtype=torch.uint8)  # of which two pages are touched
    memory[-1] = 7
    x = memory.as_strided((2, 1, 1, 1), (2**31, 1, 1, 1))
    params = sample(1, 1, 1, 1)[0].expand(2, -1, -1, -1)
    assert torch.equal(OP(params, x, *arguments()), OP(params, x.contiguous(), *arguments()))


@pytest.mark.parametrize("per_pixel", [False, True])
def test_upstream_gradients_of_any_strides(per_pixel):
    params, x = sample()
    args = arguments(per_pixel=per_pixel)
    shape = (2, 5, 7) if per_pixel else (2,)
    grads = [torch.randn(()).expand(shape), torch.randn(*shape, 2)[..., 0], torch.randn(shape)]
    if per_pixel:
        grads.append(torch.randn(2, 7, 5).transpose(1, 2))
    for grad in grads:
        assert torch.equal(
            BACKWARD(grad, params, x, *args), BACKWARD(grad.contiguous(), params, x, *args)
        )


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_same_bits_for_any_thread_count_and_batch_split(threads, last):
    params, x = sample(4, 3, 33, 20, 10, last=last)
    args, grad = arguments(10, last=last), torch.rand(4)
    nll, by_params = OP(params, x, *args), BACKWARD(grad, params, x, *args)
    torch.set_num_threads(1)
    for i in range(4):
        one = slice(i, i + 1)
        assert torch.equal(nll[one], OP(params[one], x[one], *args))
        assert torch.equal(by_params[one], BACKWARD(grad[one], params[one], x[one], *args))


@pytest.mark.parametrize("coupled", [True, False], ids=["coupled", "uncoupled"])
@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_a_large_gradient_is_the_small_ones(last, coupled):
    params, x = sample(20, 3, 32, 33, 10, last=last, coupled=coupled)  # past the caches
    args, grad = arguments(10, coupled, last=last), torch.rand(20)
    got = BACKWARD(grad, params, x, *args)
    rows = [BACKWARD(grad[i : i + 1], params[i : i + 1], x[i : i + 1], *args) for i in range(20)]
    assert torch.equal(got, torch.cat(rows))


@pytest.mark.parametrize("form", ["exact", "pixelcnnpp"])
@pytest.mark.parametrize("coupled", [True, False], ids=["coupled", "uncoupled"])
def test_gradcheck(coupled, form):
    params, x = sample(2, 3, 1, 2, 2, coupled=coupled, dtype=torch.float64)
    x[0, :, 0, 0], x[1, :, 0, 0] = 0, 255

    def f(p):
        return fastgen.dmol_nll(p, x, components=2, coupled=coupled, form=form, per_pixel=True)

    assert torch.autograd.gradcheck(f, params.requires_grad_())
    if form == "exact" and coupled:
        assert torch.autograd.gradgradcheck(f, params)


@pytest.mark.parametrize("last", [False, True])
def test_registration(last):
    params, x = sample(components=2, last=last)
    args = arguments(2, last=last)
    torch.library.opcheck(OP, (params.clone().requires_grad_(), x, *args))
    torch.library.opcheck(BACKWARD, (torch.rand(2), params, x, *args))


def test_compiles_without_graph_break():
    params, x = sample()
    params.requires_grad_()

    def f(p):
        return fastgen.dmol_nll(p, x, components=5)

    got, want = torch.compile(f, fullgraph=True)(params), f(params)
    torch.testing.assert_close(got, want)
    grads = [torch.autograd.grad(y.sum(), params)[0] for y in (got, want)]
    torch.testing.assert_close(*grads)


def test_agrees_with_the_likelihood_of_the_samplers():
    params, x = sample(2, 3, 4, 5, 3)
    likelihood = likelihoods.DiscretizedLogisticMixture(3)
    shaped = params[:, :, None]
    want = -likelihood.log_prob(shaped, x)
    got = fastgen.dmol_nll(params, x, components=3, per_pixel=True)
    torch.testing.assert_close(got, want)


PARAMS, X = torch.zeros(2, 20, 3, 4), torch.zeros(2, 3, 3, 4, dtype=torch.long)


@pytest.mark.parametrize(
    "params, x, options, error, words",
    [
        (PARAMS, X + 256, {}, ValueError, "x must hold codes in 0 .. 255, got 256; pass"),
        (PARAMS, X - 1, {}, ValueError, "got -1"),
        (PARAMS, X + 17, {"levels": 17}, ValueError, "codes in 0 .. 16, got 17"),
        (PARAMS, X + 0.5, {}, ValueError, "floats within 0.001 of the 256 levels 2 k / 255 - 1, "
         "got 0.5; scale images"),
        (PARAMS, X + 1.1, {}, ValueError, "got 1.1"),
        (PARAMS, X + float("nan"), {}, ValueError, "got nan"),
        (PARAMS, X, {"components": 3}, ValueError, r"must be \(2, 30, 3, 4\).*got \(2, 20, 3, 4\)"),
        (PARAMS, X, {"coupled": False}, ValueError, "uncoupled"),
        (PARAMS, X, {"channels_last": True}, ValueError, "colours"),
        (PARAMS, X[:, :2], {}, ValueError, "1 or 3 colours"),
        (PARAMS, X[0], {}, ValueError, "x must be"),
        (PARAMS, X, {"components": 0}, ValueError, "components"),
        (PARAMS, X, {"components": True}, ValueError, "components"),
        (PARAMS, X, {"levels": 1}, ValueError, "levels"),
        (PARAMS, X, {"levels": 65537}, ValueError, "levels"),
        (PARAMS, X, {"form": "2017"}, ValueError, "form"),
        (PARAMS, X.bool(), {}, TypeError, "bool"),
        (PARAMS.long(), X, {}, TypeError, "int64"),
        (PARAMS, X.to("meta"), {}, ValueError, "device"),
        ([0.0], X, {}, TypeError, "must be a tensor, got list"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(params, x, options, error, words):
    with pytest.raises(error, match=words) as caught:
        fastgen.dmol_nll(params, x, **{"components": 2, **options})
    assert "fastgen.dmol_nll: " in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_memory_formats_that_put_other_axes_last(dtype):
    # torch's channels-last of (B, H, W, P) puts the height last, that of (B, P, C, H, W) the P
    cases = [
        (torch.randn(2, 3, 5, 20), (2, 3, 5, 3), torch.channels_last, {"channels_last": True}),
        (torch.randn(2, 6, 2, 3, 5), (2, 2, 3, 5), torch.channels_last_3d, {"coupled": False}),
    ]
    for params, shape, memory_format, options in cases:
        x = torch.randint(256, shape)
        plain = params.to(dtype).requires_grad_()
        other = params.to(dtype).contiguous(memory_format=memory_format).requires_grad_()
        want = fastgen.dmol_nll(plain, x, components=2, **options)
        got = fastgen.dmol_nll(other, x, components=2, **options)
        assert torch.equal(got, want)
        (by_plain,) = torch.autograd.grad(want.sum(), plain)
        (by_other,) = torch.autograd.grad(got.sum(), other)
        assert torch.equal(by_other, by_plain) and by_other.stride() == other.stride()
