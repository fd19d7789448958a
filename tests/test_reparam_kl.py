import math

import pytest
import torch
from random_tensors import DTYPES
from tolerances import assert_as_exact_as_torch

import fastgen
from fastgen.reference import reparam_kl as reference

OP = torch.ops.fastgen.reparam_kl.default
BACKWARD = torch.ops.fastgen.reparam_kl_backward.default
SHAPES = [
    (0, 4),
    (3, 0),
    (1, 1),
    (5,),
    (3, 7),
    (2, 3, 4, 5),
    (130, 2),
    (5, 64),
    (4, 1000),
    (2, 5000),
]
PRIORS = ["none", "one row", "row each", "table"]
INF, NAN = float("inf"), float("nan")


def sample(shape, prior="none", dtype=torch.float32, grad=False):
    """mu, logvar, prior_mu, prior_logvar, prior_index"""
    rows = {"none": 0, "one row": 1, "row each": shape[0], "table": 4}[prior]
    shapes = [shape, shape] + ([(rows, *shape[1:])] * 2 if rows or prior != "none" else [])
    tensors = [torch.randn(s).mul(1.5).to(dtype).requires_grad_(grad) for s in shapes]
    tensors += [None] * (4 - len(tensors))
    index = torch.randint(0, 3, shape[:1]) if prior == "table" else None  # the last has no sample
    return *tensors, index


def to_logvar(raw, parametrization):
    if parametrization == "softplus":
        return 2 * torch.nn.functional.softplus(raw).log()
    return raw if parametrization == "logvar" else 2 * raw


def plain(mu, logvar, prior_mu, prior_logvar, index, eps, logvar_clamp, free_bits, parametrization):
    """What one writes in PyTorch; its autograd is the gradient."""
    low, high = logvar_clamp or (None, None)
    var = to_logvar(logvar, parametrization)  # its logarithm
    var = var.clamp(low, high) if low is not None or high is not None else var
    z = mu + torch.exp(var / 2) * eps
    if prior_mu is None:
        kl = 0.5 * (mu**2 + var.exp() - 1 - var)
    else:
        m, p = prior_mu, to_logvar(prior_logvar, parametrization)
        m, p = (m[index], p[index]) if index is not None else (m, p)
        kl = 0.5 * ((var - p).exp() - 1 - (var - p) + (mu - m) ** 2 * (-p).exp())
    kl = torch.where(kl < free_bits, free_bits, kl) if free_bits else kl
    return z, kl.flatten(1).sum(1) if kl.dim() > 1 else kl


def values_and_gradients(f, tensors, upstream):
    leaves = [t for t in tensors if t is not None and t.is_floating_point()]
    z, kl = f(*tensors)
    return z, kl, torch.autograd.grad((z, kl), leaves, upstream, allow_unused=True)


def converted(tensors, dtype):
    return [
        t.detach().to(dtype).requires_grad_() if t is not None and t.is_floating_point() else t
        for t in tensors
    ]


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_as_exact_as_plain_torch(shape, dtype, prior):
    compare(shape, dtype, prior, 1, None, 0.0, "logvar")


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("free_bits", [0.0, 0.4])
@pytest.mark.parametrize("clamp", [None, (-1.0, 1.5), (None, 0.5), (-0.5, None)], ids=str)
@pytest.mark.parametrize("parametrization", ["logvar", "logstd", "softplus"])
@pytest.mark.parametrize("prior", ["none", "table"])
def test_settings_are_as_exact_as_plain_torch(prior, parametrization, clamp, free_bits, samples):
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        compare((5, 3, 25), dtype, prior, samples, clamp, free_bits, parametrization)


def compare(shape, dtype, prior, samples, clamp, free_bits, parametrization):
    tensors = sample(shape, prior, dtype)
    drawn_shape = shape if samples == 1 else (samples, *shape)
    eps = fastgen.randn(drawn_shape, seed=11, dtype=torch.float64)
    accumulation = torch.float64 if dtype == torch.float64 else torch.float32
    upstream = torch.randn(drawn_shape).to(dtype), torch.randn(shape[:1]).to(accumulation)
    settings = dict(logvar_clamp=clamp, free_bits=free_bits, parametrization=parametrization)

    def ours(*inputs):
        return fastgen.reparam_kl(*inputs, samples=samples, seed=11, **settings)

    def same(*inputs):
        return plain(*inputs, eps.to(inputs[0].dtype), *settings.values())

    z, kl, grads = values_and_gradients(ours, converted(tensors, dtype), upstream)
    assert z.dtype == dtype and kl.dtype == accumulation and kl.shape == shape[:1]
    same_z, same_kl, same_grads = values_and_gradients(
        same, converted(tensors, dtype), (upstream[0], upstream[1].to(dtype))
    )
    exact_z, exact_kl, exact_grads = values_and_gradients(
        same, converted(tensors, torch.float64), tuple(u.double() for u in upstream)
    )
    assert_as_exact_as_torch(z, same_z, exact_z, "elementwise")
    if math.prod(shape) == 1:  # one number may be small by cancellation: compare it beside others
        grads, same_grads, exact_grads = (
            [torch.cat([g.flatten() for g in (k, *of)])]
            for k, of in (
                (kl.to(dtype), grads), (same_kl, same_grads), (exact_kl, exact_grads)
            )
        )  # fmt: skip
    else:
        assert_as_exact_as_torch(kl, same_kl.to(accumulation), exact_kl, "reduction")
    for got, plainly, want in zip(grads, same_grads, exact_grads, strict=True):
        assert_as_exact_as_torch(got, plainly, want, "reduction")


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_seed_is_the_noise_that_randn_makes_of_it(dtype, samples):
    mu, logvar, *_ = sample((3, 5, 7), dtype=dtype)
    shape = mu.shape if samples == 1 else (samples, *mu.shape)
    seeded = fastgen.reparam_kl(mu, logvar, samples=samples, seed=8)
    eps = fastgen.randn(shape, seed=8, dtype=dtype)
    given = fastgen.reparam_kl(mu, logvar, samples=samples, eps=eps)
    if dtype in (torch.float32, torch.float64):
        assert torch.equal(seeded[0], given[0])
    assert torch.equal(seeded[1], given[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("ratio", [0.1, 4, 15, 17, 1000])
def test_sharp_posteriors_lose_no_digits(ratio, dtype):
    """z - mu has fewer digits than eps where mu is far from 0."""
    logvar = (torch.randn(4, 300, dtype=dtype) - 4).requires_grad_()
    mu = (torch.exp(logvar / 2) * ratio * torch.randn(4, 300).sign()).detach().requires_grad_()
    upstream = torch.randn(4, 300, dtype=dtype)
    eps = fastgen.randn(4, 300, seed=5, dtype=torch.float64)
    z, _ = fastgen.reparam_kl(mu, logvar, seed=5)
    got = torch.autograd.grad(z, logvar, upstream)[0]
    same = mu + torch.exp(logvar / 2) * eps.to(dtype)
    plainly = torch.autograd.grad(same, logvar, upstream)[0]
    exact = 0.5 * upstream.double() * eps * torch.exp(logvar.detach().double() / 2)
    assert_as_exact_as_torch(got, plainly, exact, "elementwise")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("parametrization", ["logvar", "logstd"])
def test_numerics_over_the_range_of_log_variances(parametrization, dtype):
    """The docs' table: relative error of kl and of both gradients, row by row of a log-variance."""
    logvar = torch.arange(-30, 20.5, 0.5)
    raw = (logvar if parametrization == "logvar" else logvar / 2).to(dtype)[:, None]
    raw = raw.expand(-1, 64).clone().requires_grad_()
    mu = torch.zeros_like(raw, requires_grad=True)
    z, kl = fastgen.reparam_kl(mu, raw, seed=2, parametrization=parametrization)
    grads = torch.autograd.grad((z, kl), (mu, raw), (torch.zeros_like(z), torch.ones_like(kl)))
    exact = raw.detach().double() * (1 if parametrization == "logvar" else 2)
    want = 0.5 * (torch.expm1(exact) - exact).sum(1)
    torch.testing.assert_close(kl.double(), want, rtol=1e-6, atol=0)
    factor = 0.5 if parametrization == "logvar" else 1
    slope = factor * torch.expm1(exact)
    fits = slope.abs() < torch.finfo(dtype).max
    eps = {torch.float32: 4e-7, torch.bfloat16: 2**-8, torch.float16: 2**-10}[dtype]
    torch.testing.assert_close(grads[1].double()[fits], slope[fits], rtol=eps, atol=1e-30)
    noise = fastgen.randn(z.shape, seed=2, dtype=torch.float64) * torch.exp(exact / 2)
    fits = noise.abs() < torch.finfo(dtype).max
    tiny = 1e-7 if dtype == torch.float16 else 1e-12  # subnormal halves
    scale = torch.exp(exact / 2)[fits]
    assert (
        (z.double() - noise).abs()[fits] <= (2 * eps * noise.abs()[fits] + 4e-7 * scale + tiny)
    ).all()


def test_divergence_near_the_prior_keeps_its_digits():
    logvar = torch.tensor([1e-3, -1e-3, 1e-5, -1e-5, 1e-7, 1e-10, 0.0])[:, None]
    _, kl = fastgen.reparam_kl(torch.zeros_like(logvar), logvar, seed=0)
    exact = logvar.double()[:, 0]
    want = torch.where(exact.abs() < 1e-3 / 2, exact**2 / 4 * (1 + exact / 3),
                       0.5 * (torch.expm1(exact) - exact))  # fmt: skip
    torch.testing.assert_close(kl.double(), want, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("prior", ["none", "row each"])
@pytest.mark.parametrize("parametrization", range(3))
def test_infinities_and_nan_follow_the_reference(parametrization, prior, dtype):
    awkward = torch.tensor([0.0, 1.0, -300.0, 300.0, 89.0, -1e30, INF, -INF, NAN], dtype=dtype)
    columns = torch.cartesian_prod(awkward, awkward).t()
    mu, logvar = (c[:, None].expand(-1, 3).contiguous() for c in columns)
    rows = len(mu)
    priors = (None, None)
    if prior == "row each":
        priors = mu.flip(0).contiguous(), logvar.roll(7, 0).contiguous()
    grads = torch.tensor([1.0, 0.0, -2.0], dtype=dtype).expand(rows, 3).contiguous()
    weight = torch.tensor([1.0, 0.0, 0.5] * rows, dtype=dtype)[:rows]
    settings = (1, None, None, 0.0, parametrization)
    head = (mu, logvar, *priors, None, None, torch.tensor(3))
    got, want = OP(*head, *settings), reference.reparam_kl(*head, *settings)
    rtol = 3e-6 if dtype == torch.float32 else 1e-13
    # the sum -300 + 300 eps loses digits
    tolerance = dict(rtol=rtol, atol=100 * rtol if parametrization == 2 else 1e-37, equal_nan=True)
    for a, b in zip(got[:2], want[:2], strict=True):
        torch.testing.assert_close(a, b, **tolerance)
    needs = [True, True, prior != "none", prior != "none"]
    tail = (grads, weight, mu, logvar, *priors, None, None, want[0], torch.tensor(3), *settings)
    for a, b in zip(
        BACKWARD(*tail, needs), reference.reparam_kl_backward(*tail, needs), strict=True
    ):
        torch.testing.assert_close(a, b, **tolerance)


def test_the_documented_extremes():
    mu = torch.tensor([[0.5], [0.5], [0.5], [NAN]])
    logvar = torch.tensor([[-INF], [INF], [NAN], [0.0]])
    z, kl = fastgen.reparam_kl(mu, logvar, seed=1)
    assert z[0] == 0.5 and z[1].isinf() and z[2].isnan() and z[3].isnan()
    assert kl[0] == INF and kl[1] == INF and kl[2].isnan() and kl[3].isnan()
    _, kl = fastgen.reparam_kl(mu, logvar, seed=1, logvar_clamp=(-30, 20))
    assert kl[:2].isfinite().all()


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t.chunk(2, dim=1)[1],
        lambda t: t[:, ::2],
        lambda t: t[:1].expand(6, -1),
        lambda t: t[:, :1].expand(-1, 8),
        lambda t: t[:8, :6].t(),
    ],
    ids=["half", "every other column", "one row", "one column", "transposed"],
)
def test_strided_inputs_equal_their_contiguous_copies(view):
    mu, logvar = view(torch.randn(8, 16)), view(torch.randn(8, 16))
    grads = torch.randn(mu.shape), torch.randn(1).expand(len(mu))

    def run(mu, logvar):
        mu, logvar = mu.detach().requires_grad_(), logvar.detach().requires_grad_()
        z, kl = fastgen.reparam_kl(mu, logvar, seed=3)
        return z, kl, *torch.autograd.grad((z, kl), (mu, logvar), grads)

    for a, b in zip(run(mu, logvar), run(mu.contiguous(), logvar.contiguous()), strict=True):
        assert torch.equal(a, b)


def test_keeps_the_memory_format_and_the_stream_of_row_major_order():
    mu, logvar, *_ = sample((2, 3, 4, 5))
    last = [t.to(memory_format=torch.channels_last).requires_grad_() for t in (mu, logvar)]
    z, kl = fastgen.reparam_kl(*last, seed=1)
    assert z.is_contiguous(memory_format=torch.channels_last)
    want = fastgen.reparam_kl(mu, logvar, seed=1)
    assert torch.equal(z, want[0]) and torch.equal(kl, want[1])
    grad = torch.autograd.grad(z.sum() + kl.sum(), last)
    assert all(g.is_contiguous(memory_format=torch.channels_last) for g in grad)


def test_a_row_beyond_32_bits_is_read_in_place():
    """Adjacent columns of a stride-0 row: 2^31 elements apart, one row in memory."""
    base = torch.randn(1, 4)
    mu = base.expand(3, 4)
    assert mu.stride(0) == 0
    z, kl = fastgen.reparam_kl(mu, base.expand(3, 4), seed=1)
    assert torch.equal(kl, kl[:1].expand(3)) and not torch.equal(z[0], z[1])


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("shape", [(700, 20), (3, 9000)], ids=str)
def test_same_bits_for_any_number_of_threads(shape, prior, threads):
    tensors = converted(sample(shape, prior), torch.float32)
    upstream = torch.randn(shape), torch.randn(shape[0])

    def run():
        z, kl, grads = values_and_gradients(
            lambda *inputs: fastgen.reparam_kl(*inputs, seed=4), tensors, upstream
        )
        return z, kl, *grads

    many = run()
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(many, run(), strict=True))


def test_same_bits_for_any_batch_split():
    mu, logvar, *_ = converted(sample((6, 37)), torch.float32)
    eps, upstream = torch.randn(6, 37), (torch.randn(6, 37), torch.randn(6))

    def run(rows):
        inputs = [t[rows].detach().requires_grad_() for t in (mu, logvar)]
        z, kl = fastgen.reparam_kl(*inputs, eps=eps[rows])
        return z, kl, *torch.autograd.grad((z, kl), inputs, [u[rows] for u in upstream])

    whole = run(slice(None))
    parts = [torch.cat(p) for p in zip(*(run(slice(i, i + 2)) for i in (0, 2, 4)), strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("which", ["z", "kl"])
def test_a_gradient_of_one_result_alone(which, prior):
    tensors = converted(sample((5, 9), prior), torch.float64)
    leaves = [t for t in tensors if t is not None and t.is_floating_point()]
    eps = fastgen.randn(5, 9, seed=6, dtype=torch.float64)
    at = ("z", "kl").index(which)
    upstream = torch.randn([(5, 9), (5,)][at], dtype=torch.float64)
    ours = fastgen.reparam_kl(*tensors, seed=6)[at]
    same = plain(*tensors, eps, None, 0.0, "logvar")[at]
    got = torch.autograd.grad(ours, leaves, upstream, allow_unused=True, materialize_grads=True)
    want = torch.autograd.grad(same, leaves, upstream, allow_unused=True, materialize_grads=True)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("wanted", range(4))
def test_a_gradient_of_one_input_alone(wanted):
    tensors = [t.detach() if t is not None else t for t in sample((5, 9), "table")]
    everything = converted(tensors, torch.float32)
    z, kl = fastgen.reparam_kl(*everything, seed=6)
    want = torch.autograd.grad(z.sum() + kl.sum(), everything[wanted])[0]
    tensors[wanted].requires_grad_()
    z, kl = fastgen.reparam_kl(*tensors, seed=6)
    assert torch.equal(torch.autograd.grad(z.sum() + kl.sum(), tensors[wanted])[0], want)


def test_backward_may_run_twice():
    mu, logvar, *_ = converted(sample((5, 9)), torch.float32)
    z, kl = fastgen.reparam_kl(mu, logvar)
    loss = z.square().sum() + kl.sum()
    first = torch.autograd.grad(loss, (mu, logvar), retain_graph=True)
    second = torch.autograd.grad(loss, (mu, logvar))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("prior", PRIORS)
def test_gradcheck(prior, samples):
    *tensors, index = sample((3, 4), prior, torch.float64, grad=True)
    leaves = [t for t in tensors if t is not None]

    def run(parametrization):
        def f(*inputs):
            inputs = (*inputs, *[None] * (4 - len(inputs)))
            return fastgen.reparam_kl(
                *inputs, index, samples=samples, seed=1, parametrization=parametrization
            )

        return f

    for parametrization in ("logvar", "logstd", "softplus"):
        assert torch.autograd.gradcheck(run(parametrization), leaves)


def test_gradgradcheck():
    leaves = [t for t in sample((2, 3), "one row", torch.float64, grad=True) if t is not None]
    assert torch.autograd.gradgradcheck(lambda *t: fastgen.reparam_kl(*t, seed=1), leaves)


@pytest.mark.parametrize("prior", ["none", "table"])
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("grad", [False, True])
def test_registration(grad, samples, prior):
    tensors = sample((3, 2, 3, 5), prior, grad=grad)
    settings = (samples, -5.0, None, 0.1, 1)
    torch.library.opcheck(OP, (*tensors, None, torch.tensor(7), *settings))
    if grad:
        return
    z, kl, seed = OP(*tensors, None, torch.tensor(7), *settings)
    needs = [True, False, prior != "none", prior != "none"]
    torch.library.opcheck(
        BACKWARD, (torch.randn(z.shape), kl, *tensors, None, z, seed, *settings, needs)
    )


@pytest.mark.parametrize("seed", [None, 3])
def test_compiles_without_graph_break(seed):
    def loss(mu, logvar):
        z, kl = fastgen.reparam_kl(mu, logvar, seed=seed)
        return z.square().sum() + kl.sum(), z

    mu, logvar, *_ = converted(sample((6, 10)), torch.float32)
    compiled = torch.compile(loss, fullgraph=True)
    results = []
    for f in (loss, compiled):
        torch.manual_seed(5)
        value, z = f(mu, logvar)
        results.append((z, *torch.autograd.grad(value, (mu, logvar))))
    if seed is None:
        assert results[1][0].isfinite().all()
        return
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_manual_seed_makes_it_repeat():
    mu, logvar, *_ = sample((3, 7))
    torch.manual_seed(1)
    first, second = fastgen.reparam_kl(mu, logvar)[0], fastgen.reparam_kl(mu, logvar)[0]
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(fastgen.reparam_kl(mu, logvar)[0], first)
    generator = torch.Generator().manual_seed(1)
    assert torch.equal(fastgen.reparam_kl(mu, logvar, generator=generator)[0], first)
    torch.manual_seed(1)  # the reference draws the same seed
    with fastgen.use_backend("reference"):
        torch.testing.assert_close(fastgen.reparam_kl(mu, logvar)[0], first)


def test_autocast_takes_what_it_is_given():
    mu, logvar, *_ = sample((3, 7))
    with torch.autocast("cpu", torch.bfloat16):
        z, kl = fastgen.reparam_kl(mu.bfloat16(), logvar, seed=1)
    assert z.dtype == torch.float32 and kl.dtype == torch.float32


def test_one_row_and_one_column_broadcast():
    mu, logvar = torch.randn(4, 6), torch.randn(6)
    z, kl = fastgen.reparam_kl(mu, logvar, torch.zeros(6), torch.zeros(()), seed=1)
    want = fastgen.reparam_kl(mu, logvar.expand(4, 6).contiguous(), seed=1)
    assert torch.equal(z, want[0])
    torch.testing.assert_close(kl, want[1])


def call(*tensors, **settings):
    return lambda: fastgen.reparam_kl(*tensors, **settings)


M = torch.zeros(2, 3)
ROW = torch.zeros(3)


@pytest.mark.parametrize(
    "run, error, words",
    [
        (call(M.long(), M), TypeError, "mu must be float32"),
        (call(M, [1.0]), TypeError, "logvar must be a tensor"),
        (call(M, M.double()), TypeError, "logvar must have mu's dtype"),
        (call(M, torch.zeros(2, 4)), ValueError, "logvar must broadcast with mu"),
        (call(torch.tensor(1.0), torch.tensor(1.0)), ValueError, "mu must be"),
        (call(M, M, M), ValueError, "prior_logvar must come with its other half"),
        (call(M, M, None, M), ValueError, "prior_mu must come with its other half"),
        (call(M, M, torch.zeros(3, 3), M), ValueError, "prior_mu must broadcast to mu"),
        (call(M, M, prior_index=torch.zeros(2).long()), ValueError, "prior_mu must come"),
        (call(M, M, M, M, torch.tensor([0, 2])), ValueError, "0 .. 1, the rows of prior_mu, got 2"),
        (call(M, M, M, M, torch.tensor([-1, 0])), ValueError, "got -1"),
        (call(M, M, M, M, torch.tensor([0])), ValueError, "prior_index must be"),
        (call(M, M, M, M, torch.tensor([0.0, 1.0])), TypeError, "prior_index must be an int64"),
        (call(M, M, ROW, ROW, torch.tensor([0, 0])), ValueError, "must be a table"),
        (call(M, M, samples=0), ValueError, "samples must be an int >= 1"),
        (call(M, M, free_bits=-1.0), ValueError, "free_bits must be"),
        (call(M, M, logvar_clamp=(2, 1)), ValueError, "low <= high"),
        (call(M, M, logvar_clamp=3), ValueError, r"logvar_clamp must be \(low, high\)"),
        (call(M, M, parametrization="std"), ValueError, "parametrization must be one of"),
        (call(M, M, eps=M, seed=1), ValueError, "exclude each other"),
        (call(M, M, eps=torch.zeros(3, 2)), ValueError, "eps must have z's shape"),
        (call(M, M.to("meta")), ValueError, "logvar must be on mu's device"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(run, error, words):
    with pytest.raises(error, match=words) as caught:
        run()
    assert "fastgen.reparam_kl" in str(caught.value)


def test_normals_of_a_step_have_the_moments_they_should():
    z, kl = fastgen.reparam_kl(torch.full((500, 400), 2.0), torch.full((500, 400), math.log(9.0)))
    assert abs(z.mean() - 2) < 4 * 3 / z.numel() ** 0.5
    assert abs(z.std() - 3) < 4 * 3 / (2 * z.numel()) ** 0.5
    torch.testing.assert_close(kl, torch.full((500,), 200 * (4 + 9 - 1 - math.log(9.0))))


def test_one_prior_row_beside_a_row_for_each_sample():
    mu, logvar, rows = (torch.randn(4, 3, dtype=torch.double, requires_grad=True) for _ in range(3))
    one = torch.zeros((), dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *a: fastgen.reparam_kl(*a, seed=1), (mu, logvar, one, rows)
    )
    _, kl = fastgen.reparam_kl(mu, logvar, one, rows, seed=1)
    _, same = fastgen.reparam_kl(mu, logvar, one.expand(4, 3), rows, seed=1)
    assert torch.equal(kl, same)
