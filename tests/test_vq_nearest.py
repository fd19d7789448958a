import itertools

import pytest
import torch
import torch.nn.functional as F

import fastgen
from fastgen.reference.vq_nearest import vq_nearest as reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
NAN, INF = float("nan"), float("inf")


def searches():
    """The op with and without the bfloat16 first pass, which must not change what is found."""
    return [False, True]


def nearest(x, codebook, dim=1, cosine=False, filter=None):
    return torch.ops.fastgen.vq_nearest(x, codebook, dim, cosine, filter)


def assert_nearest(indices, x, codebook, cosine=False):
    """Rows x (N, D): each index is that of the least distance in float64, or its squared distance
    is within 4 eps (|x|^2 + |c|^2) of it, both from the codes' mean."""
    eps = torch.finfo(torch.promote_types(x.dtype, torch.float32)).eps
    x, c = x.double(), codebook.double()
    if cosine:
        x, c = F.normalize(x), F.normalize(c)
        squares, scale = 1 - x @ c.t(), torch.ones(len(x), dtype=torch.float64)
    else:
        squares = torch.cdist(x, c, compute_mode="donot_use_mm_for_euclid_dist").square()
        best = squares.argmin(1)
        center = c.mean(0)
        scale = (x - center).square().sum(1) + (c - center)[best].square().sum(1)
    assert indices.shape == (len(x),) and indices.dtype == torch.int64
    gap = squares.gather(1, indices[:, None])[:, 0] - squares.amin(1)
    assert (gap <= 4 * eps * scale).all(), f"{(gap / (eps * scale)).max():.1f} eps off"


def problem(n, k, d, dtype=torch.float32):
    return torch.randn(n, d).to(dtype), torch.randn(k, d).to(dtype)


@pytest.mark.parametrize("filter", searches())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [1, 2, 7, 8, 16, 17, 33, 64, 130])
def test_exact_on_odd_shapes(d, dtype, filter):
    for n, k in itertools.product((1, 5, 6, 13, 260), (1, 3, 16, 63, 65, 300)):
        x, codebook = problem(n, k, d, dtype)
        assert_nearest(nearest(x, codebook, filter=filter), x, codebook)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_cosine(dtype):
    for n, k, d in ((1, 1, 1), (50, 70, 3), (300, 130, 64), (7, 1000, 20)):
        x, codebook = problem(n, k, d, dtype)
        got = fastgen.vq_nearest(x * 1e-3, codebook * 1e4, metric="cosine")
        assert_nearest(got, x, codebook, cosine=True)


def test_cosine_of_a_zero_vector_is_zero():
    codebook = torch.tensor([[-1.0, 0.0], [0.0, 0.0], [0.0, -1.0]])
    x = torch.tensor([[1.0, 1.0], [0.0, 0.0], [-1.0, 0.0]])
    assert fastgen.vq_nearest(x, codebook, metric="cosine").tolist() == [1, 0, 0]


@pytest.mark.parametrize("filter", searches())
@pytest.mark.parametrize("d", [4, 24, 256])
def test_planted_near_ties_are_told_apart(d, filter):
    """Codes in pairs whose distances differ by a little more than the rule allows."""
    x, codes = problem(400, 32, d)
    towards = F.normalize(torch.randn(32, d))
    steps = torch.logspace(-7, -4, 8)
    codebook = torch.cat(
        [codes] + [codes + s * codes.norm(dim=1, keepdim=True) * towards for s in steps]
    )
    assert_nearest(nearest(x, codebook, filter=filter), x, codebook)
    near = codes[torch.randint(32, (400,))] + 0.01 * torch.randn(400, d)
    assert_nearest(nearest(near, codebook, filter=filter), near, codebook)


@pytest.mark.parametrize("filter", searches())
@pytest.mark.parametrize("k", [2, 64, 200, 1000])
def test_equal_codes_give_the_lowest_index(k, filter):
    x, codebook = problem(300, k, 20)
    once = nearest(x, codebook, filter=filter)
    assert torch.equal(nearest(x, codebook.repeat(3, 1), filter=filter), once)
    assert torch.equal(
        nearest(x, codebook[:1].expand(k, -1), filter=filter), torch.zeros_like(once)
    )
    # exactly between two codes
    ends = torch.tensor([[3.0] * 20, [-1.0] * 20, [1.0] * 20])
    assert nearest(torch.zeros(2, 20), ends, filter=filter).tolist() == [1, 1]


@pytest.mark.parametrize("filter", searches())
@pytest.mark.parametrize("d", [3, 40, 200])
def test_codes_of_very_different_lengths(d, filter):
    x, codebook = problem(700, 300, d)
    for some in (codebook[:1], codebook[:40], codebook[:, :1]):
        some *= 100
        assert_nearest(nearest(x, codebook, filter=filter), x, codebook)
    codebook *= torch.randn(300, 1).mul(2).exp()
    assert_nearest(nearest(x, codebook, filter=filter), x, codebook)
    small = codebook * 1e-3  # the filter finds that it does not pay, and is left out
    assert torch.equal(nearest(x, small, filter=filter), nearest(x.clone(), small, filter=False))


@pytest.mark.parametrize("filter", searches())
@pytest.mark.parametrize("offset", [10.0, 100.0, 1000.0])
def test_a_common_offset_costs_nothing(offset, filter):
    x, codebook = problem(500, 300, 16)
    x, codebook = x + offset, codebook + offset
    assert_nearest(nearest(x, codebook, filter=filter), x, codebook)


@pytest.mark.parametrize("filter", searches())
@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1e-5, 1e5, 1e18, 1e37])
def test_any_scale(scale, filter):
    x, codebook = problem(200, 64, 16)
    got = nearest(x * scale, codebook * scale, filter=filter)
    assert_nearest(got, (x * scale).double() / scale, (codebook * scale).double() / scale)
    assert (got == nearest(x, codebook)).float().mean() > (0.95 if scale == 1e-38 else 0.999)


def test_rows_far_from_all_codes():
    codebook = torch.randn(50, 8) * 1e-5
    x = torch.randn(20, 8) * torch.logspace(-5, 38, 20)[:, None]
    got = fastgen.vq_nearest(x.clamp(-1e38, 1e38), codebook)
    assert_nearest(got[:6], x[:6], codebook)
    assert ((0 <= got) & (got < 50)).all()


@pytest.mark.parametrize("filter", searches())
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_values_that_are_not_finite(bad, filter):
    x, codebook = problem(64, 100, 24)
    want = nearest(x, codebook)
    x[5, 0] = x[17, 23] = bad
    got = nearest(x, codebook, filter=filter)
    assert got[5] == got[17] == 0
    others = torch.ones(64, dtype=torch.bool)
    others[[5, 17]] = False
    assert torch.equal(got[others], want[others])
    codebook[want[0], 3] = codebook[want[1], 20] = bad
    got = nearest(x, codebook, filter=filter)
    assert not torch.isin(got[others], want[:2]).any()
    kept = codebook.isfinite().all(1).nonzero()[:, 0]
    assert torch.equal(got[others], kept[nearest(x, codebook[kept])][others])
    for count in (1, 3, 100):  # not one code that can be chosen
        none = torch.full_like(codebook[:count], bad)
        assert nearest(x, none, filter=filter).tolist() == [0] * 64


@pytest.mark.parametrize(
    "shape, dim",
    [
        ((12,), 0),
        ((5, 12), -1),
        ((12, 5), 0),
        ((2, 3, 12), 2),
        ((2, 12, 5, 7), 1),
        ((2, 12, 3, 4, 5), 1),
        ((2, 2, 2, 12, 2, 2, 2, 2), 3),
        ((0, 12), 1),
        ((2, 12, 0, 3), 1),
    ],
)
def test_any_axis_of_values(shape, dim):
    x, codebook = torch.randn(shape), torch.randn(70, 12)
    got = fastgen.vq_nearest(x, codebook, dim=dim)
    rows = x.movedim(dim, -1)
    assert got.shape == rows.shape[:-1]
    assert torch.equal(got, fastgen.vq_nearest(rows.contiguous(), codebook))
    assert torch.equal(got.flatten(), nearest(rows.reshape(-1, 12), codebook))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[:, ::2],
        lambda x: x[3:, 1:, ::3],
        lambda x: x.transpose(0, 1),
        lambda x: x.flip(0)[1:],
        lambda x: x[:1].expand(4, -1, -1),
        lambda x: x[:, :1].expand(-1, 5, -1),
        lambda x: x.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    ],
)
def test_strided_inputs_equal_their_copies(view, dtype):
    x = view(torch.randn(9, 8, 36).to(dtype))
    codebook = torch.randn(90, x.shape[-1] * 2)[:, ::2]
    assert torch.equal(
        fastgen.vq_nearest(x, codebook), fastgen.vq_nearest(x.contiguous(), codebook.contiguous())
    )


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("shape, dim", [((4, 5, 3, 8), -1), ((4, 3, 8, 5, 2), 2), ((3, 8), 1)])
def test_heads_have_a_codebook_each(shape, dim, metric):
    x, codebooks = torch.randn(shape), torch.randn(3, 70, 8)
    got = fastgen.vq_nearest(x, codebooks, dim=dim, metric=metric)
    axis = dim % x.dim()
    each = [
        fastgen.vq_nearest(x.select(axis - 1, g), codebooks[g], dim=axis - 1, metric=metric)
        for g in range(3)
    ]
    assert torch.equal(got, torch.stack(each, axis - 1))


def test_dtypes_mix():
    x, codebook = problem(100, 50, 16)
    want = fastgen.vq_nearest(x.double(), codebook.double())
    assert torch.equal(fastgen.vq_nearest(x, codebook.double()), want)
    assert torch.equal(fastgen.vq_nearest(x.double(), codebook), want)
    half = x.bfloat16()
    assert torch.equal(
        fastgen.vq_nearest(half, codebook), fastgen.vq_nearest(half.float(), codebook)
    )


def test_same_bits_for_any_thread_count_and_batch_split():
    x, codebook = problem(3000, 500, 40)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(fastgen.vq_nearest(x, codebook))
    torch.set_num_threads(1)
    assert all(torch.equal(results[0], other) for other in results[1:])
    split = torch.cat([fastgen.vq_nearest(part, codebook) for part in x.split(271)])
    assert torch.equal(results[0], split)


@pytest.mark.slow
def test_more_scores_than_int32_counts():
    x, codebook = torch.randn(70_000, 1), torch.linspace(-4, 4, 40_000)[:, None]
    got = fastgen.vq_nearest(x, codebook)
    assert (codebook[got] - x).abs()[x.abs() < 4].max() <= 8 / 39_999 / 2 + 1e-6


@pytest.mark.slow
def test_more_elements_than_int32_counts():
    d = 1 << 12
    line = torch.zeros(1, d, dtype=torch.bfloat16)
    x = line.expand((1 << 19) + 5, d)  # 2^31 + 20480 elements, 8 KiB of memory
    got = fastgen.vq_nearest(x, torch.stack([torch.ones(d), torch.zeros(d)]))
    assert (got == 1).all()


def test_gradients_stop_here():
    x, codebook = problem(5, 4, 3)
    got = fastgen.vq_nearest(x.requires_grad_(), codebook.requires_grad_())
    assert not got.requires_grad


@pytest.mark.parametrize("cosine", [False, True])
def test_registration(cosine):
    x, codebook = problem(10, 7, 5)
    op = torch.ops.fastgen.vq_nearest.default
    torch.library.opcheck(op, (x, codebook, 1, cosine))
    torch.library.opcheck(op, (torch.randn(2, 3, 5, 4), torch.randn(3, 6, 5), 2, cosine))


def test_compiles_without_graph_break_and_with_other_sizes():
    compiled = torch.compile(fastgen.vq_nearest, fullgraph=True, dynamic=True)
    for n in (3, 9):
        x, codebook = problem(n, 7, 5)
        assert torch.equal(compiled(x, codebook), fastgen.vq_nearest(x, codebook))


def test_autocast_changes_nothing():
    x, codebook = problem(50, 20, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fastgen.vq_nearest(x, codebook), nearest(x, codebook))


def test_reference_is_the_documented_formula():
    x, codebook = problem(100, 30, 6, torch.float64)
    want = torch.cdist(x, codebook).argmin(1)
    assert torch.equal(reference(x, codebook, 1, False), want)
    want = (F.normalize(x) @ F.normalize(codebook).t()).argmax(1)
    assert torch.equal(reference(x, codebook, 1, True), want)


@pytest.mark.parametrize(
    "x, codebook, options, error, words",
    [
        (torch.zeros(3, 4), torch.zeros(5, 6), {}, ValueError, r"size \(6,\).*got \(4,\)"),
        (torch.zeros(3, 4).long(), torch.zeros(5, 4), {}, TypeError, "x must be.*int64"),
        (torch.zeros(3, 4), torch.zeros(5, 4).int(), {}, TypeError, "codebook must be.*int32"),
        ([1.0], torch.zeros(5, 4), {}, TypeError, "x must be a tensor, got list"),
        (torch.zeros(3, 4), torch.zeros(0, 4), {}, ValueError, "at least one code"),
        (torch.zeros(3, 4), torch.zeros(4), {}, ValueError, r"codebook must be \(K, D\)"),
        (torch.zeros(3, 4), torch.zeros(5, 4), {"dim": 2}, ValueError, "dim must be an axis"),
        (torch.zeros(3, 4), torch.zeros(5, 4), {"dim": 1.0}, ValueError, "dim must be an axis"),
        (torch.zeros(3, 4), torch.zeros(2, 5, 4), {}, ValueError, r"size \(2, 4\).*got \(3, 4\)"),
        (torch.zeros(4), torch.zeros(2, 5, 4), {}, ValueError, "axis of the heads"),
        (torch.zeros(3, 4), torch.zeros(5, 4), {"metric": "dot"}, ValueError, "metric must be"),
        (torch.zeros(3, 4), torch.zeros(5, 4, device="meta"), {}, ValueError, "device"),
    ],
)
def test_bad_arguments_are_named(x, codebook, options, error, words):
    with pytest.raises(error, match=words) as caught:
        fastgen.vq_nearest(x, codebook, **options)
    assert "fastgen.vq_nearest" in str(caught.value)
