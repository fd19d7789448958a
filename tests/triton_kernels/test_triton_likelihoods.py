"""The Triton kernels of bernoulli_nll, gaussian_nll and dmol_nll against float64, interpreted."""

import pytest
import torch
from guard import guarded
from tolerances import assert_as_exact_as_torch

import fastgen
from fastgen.kernels import _samples
from fastgen.kernels import bernoulli_nll as bernoulli
from fastgen.kernels import dmol_nll as dmol
from fastgen.kernels import gaussian_nll as gaussian
from fastgen.reference import bernoulli_nll as bernoulli_reference
from fastgen.reference import dmol_nll as dmol_reference
from fastgen.reference import gaussian_nll as gaussian_reference

# numpy says what overflows; here it is meant to
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
FORMATS = {"plain": torch.contiguous_format, "channels-last": torch.channels_last}
inf, nan = float("inf"), float("nan")


def wide(tensors):
    return [
        t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t for t in tensors
    ]


def check(kernels, reference, name, arguments, needs=None, error=1e-12):
    """The op and its backward of this name, with the arguments of the op."""
    compare(getattr(kernels, name), getattr(reference, name), arguments, error)
    shape = getattr(reference, name)(*arguments)
    grad = torch.randn(shape.shape, dtype=shape.dtype)
    arguments = (grad, *arguments, *(() if needs is None else (needs,)))
    name = f"{name}_backward"
    compare(getattr(kernels, name), getattr(reference, name), arguments, error)


def compare(function, reference, arguments, error):
    """`error` is of float64, in which the reference has no fewer digits to lose."""
    got, plain, exact = function(*arguments), reference(*arguments), reference(*wide(arguments))
    if isinstance(got, torch.Tensor):
        got, plain, exact = (got,), (plain,), (exact,)
    for actual, plainly, exactly in zip(got, plain, exact, strict=True):
        assert actual.dtype == plainly.dtype and actual.shape == plainly.shape
        if actual.dtype == torch.float64:
            torch.testing.assert_close(actual, exactly, rtol=error, atol=error)
        else:
            assert_as_exact_as_torch(actual, plainly, exactly, "reduction")


def image(dtype, layout="plain", size=(7, 13)):
    x = torch.randn(2, 3, *size).to(dtype, memory_format=FORMATS[layout])
    return guarded(x)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bernoulli(dtype, layout):
    x = 5 * image(dtype, layout)
    for kind in {dtype, torch.float32, torch.uint8, torch.bool}:
        y = torch.rand(x.shape) if kind.is_floating_point else torch.rand(x.shape).round()
        y = y.to(kind, memory_format=FORMATS[layout])
        needs = [True, kind.is_floating_point]
        check(bernoulli, bernoulli_reference, "bernoulli_nll", (x, y), needs)
        out = bernoulli.bernoulli_nll_backward(torch.ones(2), x, y, [True, False])
        assert out[0].stride() == x.stride() and out[1].numel() == 0


def test_sure_logits():
    x = torch.tensor([[inf], [-inf], [inf], [-inf], [90.0], [-90.0], [nan]])
    y = torch.tensor([[1.0], [0.0], [0.0], [1.0], [1.0], [1.0], [1.0]])
    nll = bernoulli.bernoulli_nll(x, y)
    torch.testing.assert_close(nll, bernoulli_reference.bernoulli_nll(x, y), equal_nan=True)
    rest = torch.ones(7), x, y, [True, False]
    got = bernoulli.bernoulli_nll_backward(*rest)[0]
    want = bernoulli_reference.bernoulli_nll_backward(*rest)[0]
    torch.testing.assert_close(got, want, equal_nan=True)


def test_small_probabilities_of_error_keep_their_digits():
    x = torch.full((1, 3), 30.0)
    exact = 3 * torch.tensor([-30.0], dtype=torch.float64).exp()
    got = bernoulli.bernoulli_nll(x, torch.ones(1, 3))
    torch.testing.assert_close(got.double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bad", [-0.1, 1.5, nan, 2])
def test_a_target_that_is_no_probability_makes_its_sample_nan(bad):
    y = torch.ones(3, 4, dtype=torch.uint8 if bad == 2 else torch.float32)
    y[1, 2] = bad
    assert bernoulli.bernoulli_nll(torch.randn(3, 4), y).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gaussian(dtype, layout):
    x, y = image(dtype, layout), image(dtype, layout)
    for logvar in (
        None,
        torch.tensor(0.3, dtype=dtype),
        torch.tensor([[0.3]]),
        image(torch.float32, layout),
        torch.randn(3, 1, 1).to(dtype).expand(x.shape),
    ):
        arguments, needs = (x, y, logvar, 0.2), [True, True, logvar is not None]
        check(gaussian, gaussian_reference, "gaussian_nll", arguments, needs)
    check(gaussian, gaussian_reference, "gaussian_nll", (x, y.float(), None, 0.2), [True] * 2 + [0])


def test_variances_without_bounds():
    x = torch.tensor([[1.0], [2.0], [1.0], [2.0], [nan]])
    y = torch.tensor([[1.0], [1.0], [1.0], [1.0], [1.0]])
    for logvar in (torch.tensor([[-inf], [-inf], [inf], [inf], [0.0]]), -inf, inf):
        tensor, number = (logvar, 0.0) if isinstance(logvar, torch.Tensor) else (None, logvar)
        got = gaussian.gaussian_nll(x, y, tensor, number)
        want = gaussian_reference.gaussian_nll(x, y, tensor, number)
        torch.testing.assert_close(got, want, equal_nan=True)


def layouts():
    yield torch.randn(3, 24)[:, ::2]
    yield torch.randn(12).expand(3, 12)
    yield torch.randn(3, 1).expand(3, 12)
    yield torch.randn(4, 3, 2, 2).transpose(0, 1)
    yield torch.randn(5)


@pytest.mark.parametrize("number", range(5))
def test_layouts(number):
    x = list(layouts())[number]
    y = torch.rand_like(x, memory_format=torch.contiguous_format)
    check(bernoulli, bernoulli_reference, "bernoulli_nll", (x, y), [True, True])
    check(gaussian, gaussian_reference, "gaussian_nll", (y, x, x, 0.0), [True] * 3)


def test_long_samples_in_pieces(monkeypatch):
    for module in (_samples, bernoulli, gaussian):
        monkeypatch.setattr(module, "PIECE", 1024)
    x, y = torch.randn(2, 3077), torch.rand(2, 3077)
    check(bernoulli, bernoulli_reference, "bernoulli_nll", (x, y), [True, True])
    check(gaussian, gaussian_reference, "gaussian_nll", (x, y, y[:1, :1], 0.0), [True] * 3)
    nll = bernoulli.bernoulli_nll(x, y)
    assert torch.equal(bernoulli.bernoulli_nll(x[1:], y[1:]), nll[1:])


def mixture(dtype, components, colors, coupled=True, *, levels=256, last=False, layout="plain",
            kind=torch.int64, size=(3, 5), scale=1.0):  # fmt: skip
    """params and x; every sample has pixels at both ends."""
    count = (10 if coupled and colors == 3 else 3) * components
    shape = (2, count, *size) if coupled else (2, count, colors, *size)
    params = (scale * torch.randn(shape)).to(dtype)
    x = torch.randint(0, levels, (2, colors, *size))
    x[:, :, 0, 0], x[:, :, 0, 1] = 0, levels - 1
    if kind.is_floating_point:
        x = (x.double() * 2 / (levels - 1) - 1).to(kind)
    if last:
        params = (params if coupled else params.flatten(1, 2)).movedim(1, -1).contiguous()
        return guarded(params), x.movedim(1, -1).to(kind).contiguous()
    if params.dim() == 4:
        params = params.to(memory_format=FORMATS[layout])
    return guarded(params), x.to(kind)


def check_dmol(params, x, components, *, coupled=True, levels=256, exact=True, last=False,
               per_pixel=False, error=1e-11):  # fmt: skip
    arguments = (params, x, components, coupled, levels, exact, last, per_pixel)
    # the reference takes differences of sigmoids in the form of 2017
    check(dmol, dmol_reference, "dmol_nll", arguments, error=error if exact else 1e-9)
    out = dmol.dmol_nll_backward(torch.ones(()).expand(2), *arguments[:-1], False)
    assert out.stride() == dmol_reference.in_format_of(params, params).stride()


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mixtures_of_coupled_colours(dtype, layout):
    params, x = mixture(dtype, 2, 3, layout=layout)
    check_dmol(params, x, 2)


@pytest.mark.parametrize("per_pixel", [False, True])
@pytest.mark.parametrize("last", [False, True], ids=["", "channels last"])
@pytest.mark.parametrize("exact", [True, False], ids=["exact", "of 2017"])
def test_forms_and_orders(exact, last, per_pixel):
    rest = {"exact": exact, "last": last, "per_pixel": per_pixel}
    params, x = mixture(torch.float32, 2, 1, last=last)
    check_dmol(params, x, 2, **rest)
    params, x = mixture(torch.float64, 2, 2, False, last=last, levels=17, kind=torch.uint8)
    check_dmol(params, x, 2, coupled=False, levels=17, **rest)
    params, x = mixture(torch.float64, 2, 3, last=last, kind=torch.float32, scale=3.0)
    check_dmol(params, x, 2, **rest)


def test_more_components_than_columns():
    for colors, coupled in ((3, True), (2, False)):
        params, x = mixture(torch.float64, 18, colors, coupled, last=True)
        check_dmol(params, x, 18, coupled=coupled, last=True)


def test_levels_and_many_pixels():
    params, x = mixture(torch.float64, 1, 1, levels=2, scale=20.0)
    check_dmol(params, x, 1, levels=2)
    params, x = mixture(torch.float64, 2, 1, levels=65536, kind=torch.float64)
    check_dmol(params, x, 2, levels=65536)
    params, x = mixture(torch.float32, 2, 1, size=(13, 23))
    check_dmol(params, x, 2)


def test_narrow_and_wide_bins():
    """Log-scales from below the floor to where a bin is a point."""
    params, x = mixture(torch.float64, 1, 1, size=(4, 9))
    params[:, 2] = torch.linspace(-9, 60, 36).view(4, 9)
    check_dmol(params, x, 1, error=1e-9)  # the reference rounds bins narrower than 1e-9
    params, x = mixture(torch.float32, 1, 1, size=(4, 9))
    params[:, 2] = torch.linspace(-9, 60, 36).view(4, 9)
    check_dmol(params, x, 1, per_pixel=True)


@pytest.mark.parametrize("bad", [-1, 256, 0.01, nan])
def test_a_pixel_without_level_makes_its_sample_nan(bad):
    params, x = mixture(torch.float32, 1, 3)
    if isinstance(bad, float):
        x = x.float() * (2 / 255) - 1
    x[1, 2, 1, 1] = bad
    nll = dmol.dmol_nll(params, x, 1, True, 256, True, False, False)
    assert nll.isnan().tolist() == [False, True]


def test_offsets_of_64_bits(monkeypatch):
    for module, name in ((bernoulli, "is_wide"), (gaussian, "is_wide"), (dmol, "needs_int64")):
        monkeypatch.setattr(module, name, lambda *tensors: True)
    x, y = torch.randn(2, 7), torch.rand(2, 7)
    check(bernoulli, bernoulli_reference, "bernoulli_nll", (x, y), [True, True])
    check(gaussian, gaussian_reference, "gaussian_nll", (x, y, x, 0.0), [True] * 3)
    for colors, coupled in ((3, True), (2, False)):
        params, x = mixture(torch.float64, 2, colors, coupled, last=True)
        check_dmol(params, x, 2, coupled=coupled, last=True)


def test_empty():
    x = torch.empty(0, 4)
    assert bernoulli.bernoulli_nll(x, x).shape == (0,)
    assert gaussian.gaussian_nll(x, x, None, 0.0).shape == (0,)
    x = torch.empty(3, 0)
    assert torch.equal(bernoulli.bernoulli_nll(x, x), torch.zeros(3))
    assert torch.equal(gaussian.gaussian_nll(x, x, x, 0.0), torch.zeros(3))
    ones, scalar = torch.ones(3), torch.zeros(1)
    assert bernoulli.bernoulli_nll_backward(ones, x, x, [True] * 2)[1].shape == x.shape
    back = gaussian.gaussian_nll_backward(ones, x, x, scalar, 0.0, [True] * 3)
    assert [b.shape for b in back] == [x.shape, x.shape, scalar.shape] and back[2] == 0
    params, x = torch.empty(2, 10, 0, 3), torch.empty(2, 3, 0, 3, dtype=torch.uint8)
    settings = 1, True, 256, True, False
    assert torch.equal(dmol.dmol_nll(params, x, *settings, False), torch.zeros(2))
    assert dmol.dmol_nll(params, x, *settings, True).shape == (2, 0, 3)
    assert dmol.dmol_nll_backward(ones[:2], params, x, *settings, False).shape == params.shape


def test_ops():
    x, y = torch.randn(2, 5).double(), torch.rand(2, 5).double()
    params, codes = mixture(torch.float64, 1, 3, size=(1, 2))
    functions = (
        (fastgen.bernoulli_nll, (x, y)),
        (fastgen.gaussian_nll, (x, y, x[:, :1] / 2)),
        (lambda p: fastgen.dmol_nll(p, codes, components=1), (params,)),
    )
    nll = torch.ones(2, dtype=torch.float64)
    settings = 1, True, 256, True, False, False
    arguments = {
        "bernoulli_nll": (x, y),
        "bernoulli_nll_backward": (nll, x, y, [True, False]),
        "gaussian_nll": (x, y, x, 0.0),
        "gaussian_nll_backward": (nll, x, y, nll[:1], 0.0, [True, False, True]),
        "dmol_nll": (params, codes, *settings),
        "dmol_nll_backward": (nll, params, codes, *settings),
    }
    with fastgen.use_backend("triton"):
        for function, tensors in functions:
            tensors = [t.clone().requires_grad_() for t in tensors]
            assert torch.autograd.gradcheck(function, tensors, fast_mode=True)
        for name, values in arguments.items():
            operator = getattr(torch.ops.fastgen, name).default
            torch.library.opcheck(operator, values, test_utils=("test_schema", "test_faketensor"))
