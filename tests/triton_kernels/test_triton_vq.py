"""The Triton kernels of vector quantisation against float64, in the interpreter. The lookup
promises more than its op: the float64 answer itself, whatever the dtype."""

import pytest
import torch
import triton
import triton.language as tl
from guard import guarded
from tolerances import assert_as_exact_as_torch

import fastgen
from fastgen.kernels import _vq_pack as packing
from fastgen.kernels import _vq_scores as filter_kernels
from fastgen.kernels import vq_ema_update_ as averages
from fastgen.kernels import vq_nearest as nearest
from fastgen.kernels import vq_quantize as kernels
from fastgen.reference import vq_ema_update_ as reference_averages
from fastgen.reference import vq_quantize as reference
from fastgen.reference.vq_rows import indices_from_rows, rows_of

# numpy says what overflows; here it is meant to
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
FILTERS = (None, True, False)
nan, inf = float("nan"), float("inf")


def exact_nearest(x, codebook, dim, cosine=False):
    """Lowest index of the least float64 distance (or largest cosine), by differences."""
    heads = codebook.shape[0] if codebook.dim() == 3 else None
    rows = rows_of(x, dim, heads).double()
    codes = codebook.double().reshape(len(rows), -1, codebook.shape[-1])
    if cosine:
        norm = codes.norm(dim=2).unsqueeze(1)
        costs = -(rows @ codes.mT) / torch.where(norm > 0, norm, 1)
    else:
        costs = (rows.unsqueeze(2) - codes.unsqueeze(1)).square().sum(3)
    costs = torch.where(codes.isfinite().all(2).unsqueeze(1), costs, inf)
    index = costs.argmin(2).where(rows.isfinite().all(2), 0)
    return indices_from_rows(index, x, dim, heads)


def check(x, codebook, dim=-1, cosine=False, filter=None):
    dim %= x.dim()
    got = nearest.vq_nearest(x, codebook, dim, cosine, filter)
    assert got.dtype == torch.int64 and got.is_contiguous()
    torch.testing.assert_close(got, exact_nearest(x, codebook, dim, cosine), atol=0, rtol=0)
    return got


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("cosine", [False, True], ids=["euclidean", "cosine"])
@pytest.mark.parametrize(
    "rows, codes, values", [(1, 1, 1), (5, 3, 2), (70, 130, 5), (131, 300, 20), (33, 65, 72)]
)
def test_lookup_matches_float64(rows, codes, values, cosine, filter):
    check(torch.randn(rows, values), torch.randn(codes, values), cosine=cosine, filter=filter)


@pytest.mark.parametrize("codebook", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(dtype, codebook):
    for filter in FILTERS:
        check(torch.randn(40, 12).to(dtype), torch.randn(90, 12).to(codebook), filter=filter)


def layouts():
    x = torch.randn(2, 6, 5, 4)
    yield x, 1, None
    yield x.to(memory_format=torch.channels_last), 1, None
    yield x.permute(0, 2, 3, 1), 3, None  # an image seen channel-last
    yield x.permute(3, 0, 2, 1), 3, None  # rows of three steps: copied
    yield x[:, :, ::2, 1:], 1, None
    yield x[:, :1].expand(-1, 6, -1, -1), 1, None
    yield torch.randn(6), 0, None
    yield torch.randn(2, 3, 2, 6), 3, 2
    yield torch.randn(2, 3, 6, 4), 2, 3
    yield torch.randn(2, 6, 4, 3).permute(0, 3, 1, 2), 2, 3
    yield torch.randn(3, 6), 1, 3


@pytest.mark.parametrize("x, dim, heads", list(layouts()))
def test_any_layout_and_heads(x, dim, heads):
    codebook = torch.randn(*((heads,) if heads else ()), 21, 6)
    x = x if 0 in x.stride() else guarded(x, spread=2)
    check(x, guarded(codebook, spread=2), dim)
    mask = torch.rand([n for i, n in enumerate(x.shape) if i not in (dim, dim - bool(heads))]) > 0.3
    check_quantize(x, guarded(codebook.mT).mT, dim, mask)


def test_empty():
    for shape, dim in (((0, 4), 1), ((2, 4, 0), 1)):
        x, codebook = torch.randn(shape), torch.randn(3, 4)
        check(x, codebook, dim)
        check_quantize(x, codebook, dim)


@pytest.mark.parametrize("filter", FILTERS)
def test_common_offsets_and_tiny_scales(filter):
    x, codebook = torch.randn(20, 9), torch.randn(150, 9)
    for offset in (10, 1e3, 1e6):
        check(x + offset, codebook + offset, filter=filter)
    for scale in (1e-5, 1e-30, 1e25):
        check(x * scale, codebook * scale, filter=filter)


def test_the_ends_of_the_range():
    """Where float32 scores overflow or vanish, every code is measured."""
    x, codebook = torch.randn(4, 5), torch.randn(20, 5)
    check(x * 1e-42, codebook * 1e-42)
    check(x * 1e30, codebook)
    check(x * 1e38, codebook * 1e38)
    for scale in (1e-30, 1e30):
        check(x * scale, codebook, cosine=True)
    for scale in (1e-120, 1e120):
        check(x.double() * scale, codebook.double() * scale)


@pytest.mark.parametrize("cosine", [False, True])
def test_rows_and_codes_that_are_not_finite(cosine):
    x, codebook = torch.randn(20, 9), torch.randn(40, 9)
    x[2, 3], x[5, 0], x[7] = nan, inf, -inf
    codebook[0, 8], codebook[1, 0], codebook[4] = nan, inf, nan
    got = check(x, codebook, cosine=cosine)
    assert (got[[2, 5, 7]] == 0).all() and not torch.isin(got[8:], torch.tensor([0, 1, 4])).any()
    assert (nearest.vq_nearest(x, torch.full((3, 9), nan), 1, cosine) == 0).all()


def test_a_zero_row_has_cosine_0_with_every_code():
    x, codebook = torch.zeros(3, 8), torch.randn(40, 8)
    codebook[0] = nan
    assert (nearest.vq_nearest(x, codebook, 1, True) == 1).all()
    codebook[3] = 0
    x[1] = -codebook[1]
    check(x, codebook, cosine=True)


@pytest.mark.parametrize("filter", FILTERS)
def test_ties_go_to_the_lowest_index(filter):
    codebook = torch.randn(30, 8).repeat(5, 1)
    got = check(torch.randn(30, 8), codebook, filter=filter)
    assert (got < 30).all()
    assert (check(torch.randn(4, 8), torch.ones(70, 8), filter=filter) == 0).all()
    check(torch.randint(-2, 3, (40, 8)).float(), torch.randint(-2, 3, (99, 8)).float())


@pytest.mark.parametrize("filter", FILTERS)
def test_near_ties_that_no_score_can_tell(filter):
    """Codes beside each other and far apart, alike in bfloat16 and almost in float32."""
    base = torch.randn(8, 16)
    codebook = torch.cat([base + 1e-6 * torch.randn(8, 16) for _ in range(10)])
    codebook = torch.cat([codebook, torch.randn(60, 16)])
    x = torch.cat([base + 1e-3 * torch.randn(8, 16), (codebook[:8] + codebook[8:16]) / 2])
    check(x, codebook, filter=filter)
    check(x.double() + 1e-12, codebook.double(), filter=filter)


def test_many_values(monkeypatch):
    """More than stay on the chip: the sum runs over blocks of values, for each tile of codes."""
    x, codebook = torch.randn(20, 150), torch.randn(140, 150)
    whole = check(x, codebook)
    monkeypatch.setattr(packing, "RESIDENT_VALUES", 64)
    assert torch.equal(check(x, codebook), whole)
    check(x, codebook, filter=False)


def kept_scores(x, codebook, cosine=False, rounds=True):
    """(packed codebook, highest, second) (groups, rows) of x (rows, D)."""
    packed = packing.pack(codebook[None], cosine, x.dtype, rounds)
    kept = filter_kernels.kept_rows(len(x), packed)
    highest, second = (torch.full((1, packed.norms.shape[1], kept), nan) for _ in range(2))
    filter_kernels.scores(x[None, :, None], len(x), packed, 0, highest, second)
    return packed, highest[0, :, : len(x)], second[0, :, : len(x)]


@pytest.mark.parametrize("rows", [3, 140])
def test_few_rows_share_the_codes_between_programs(rows, monkeypatch):
    x, codebook = torch.randn(rows, 5), torch.randn(900, 5)
    several = kept_scores(x, codebook)[1:]
    monkeypatch.setattr(filter_kernels, "PROGRAMS", 1)
    for split, whole in zip(several, kept_scores(x, codebook)[1:], strict=True):
        assert split.isfinite().all() and torch.equal(split, whole)
    check(x, codebook)


def test_many_rows_take_turns(monkeypatch):
    monkeypatch.setattr(filter_kernels, "SCRATCH", 1)
    x, codebook = torch.randn(300, 6), torch.randn(40, 6)
    assert filter_kernels.kept_rows(300, kept_scores(x[:2], codebook)[0]) == 128
    check(x, codebook)
    check_quantize(x, codebook)


def test_64_bit_offsets(monkeypatch):
    for module in (packing, filter_kernels, nearest, kernels, averages):
        monkeypatch.setattr(module, "needs_int64", lambda *_: True)
    x, codebook = torch.randn(2, 9, 5), torch.randn(2, 70, 5)
    check(x.transpose(0, 1), codebook)
    check_quantize(x.transpose(0, 1), codebook, -1)
    check_averages(codebook, *kernels.vq_quantize(x.transpose(0, 1), codebook, 2, None, False)[3:])


@triton.jit
def _reach_kernel(
    radius, norm, out, scale, values,
    COSINE: tl.constexpr, ROUNDED: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    r, g = tl.arange(0, ROWS)[:, None], tl.arange(0, GROUPS)[None, :]
    off = filter_kernels_reach(
        tl.load(radius + r), tl.load(norm + g), tl.load(scale), values, COSINE, ROUNDED
    )
    tl.store(out + r * GROUPS + g, off)


filter_kernels_reach = filter_kernels.reach


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("rounds", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("values", [3, 40])
def test_scores_are_within_their_reach(values, rounds, cosine):
    """Also for codes along the row, whose roundings all push the same way."""
    x = torch.rand(32, values) * torch.logspace(-3, 3, 32)[:, None] + 1
    codebook = torch.cat([torch.randn(100, values), torch.rand(28, values) * 3])
    packed, highest, second = kept_scores(x, codebook, cosine, rounds)
    rows, codes = x.double(), codebook.double()
    if cosine:
        exact = rows @ (codes / codes.norm(dim=1, keepdim=True)).T
    else:
        center, scale = packed.center[0].double(), packed.scale[0].double()
        rows, codes = (rows - center) * scale, (codes - center) * scale
        exact = rows @ codes.T - codes.square().sum(1) / 2
    groups = exact.unflatten(1, (-1, packed.group)).transpose(0, 1).sort(2, descending=True)[0]
    off = torch.full((32, 8), nan)
    radius, norms = rows.norm(dim=1).float(), packed.norms[0]
    _reach_kernel[(1,)](radius, norms, off, packed.scale, values, cosine, rounds, 32, 8)
    off = off.T.double()
    for kept, exactly in ((highest, groups[:, :, 0]), (second, groups[:, :, 1])):
        assert ((kept.double() - exactly).abs() <= off).all()
    if rounds and not cosine:  # and the bound is not a loose one
        assert ((highest.double() - groups[:, :, 0]).abs() / off).max() > 0.05


def check_quantize(x, codebook, dim=-1, mask=None):
    """All outputs and both gradients, with sums in order and by atomics."""
    dim %= x.dim()
    plain = reference.vq_quantize(x, codebook, dim, mask)
    exact = reference.vq_quantize(x.double(), codebook.double(), dim, mask)
    expected = torch.float64 if plain[2].dtype == torch.float64 else torch.float32
    for deterministic in (True, False):
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        got = kernels.vq_quantize(x, codebook, dim, mask, False)
        quantized, indices, commitment, counts, sums = got
        assert torch.equal(indices, exact[1]) and torch.equal(counts, exact[3])
        assert quantized.dtype == x.dtype and commitment.dtype == expected
        assert quantized.stride() == torch.empty_like(x).stride()
        torch.testing.assert_close(quantized, exact[0].to(x.dtype), atol=0, rtol=0, equal_nan=True)
        assert sums.dtype == torch.float64
        torch.testing.assert_close(sums, exact[4], atol=1e-12, rtol=1e-12)
        known = ~exact[2].isnan()
        assert torch.equal(commitment.isnan(), ~known)
        assert_as_exact_as_torch(commitment[known], plain[2][known], exact[2][known], "reduction")
    grad, weight = torch.randn(x.shape).to(x), torch.randn(commitment.shape).to(commitment)
    for rotation in (False, True):
        for gradients in ((grad, weight), (grad, None), (None, weight)):
            check_backward(*gradients, x, indices, codebook, dim, rotation)
    return got


def check_backward(grad, weight, x, indices, codebook, dim, rotation):
    arguments = grad, weight, x, indices, codebook, dim, rotation
    wide = [None if t is None else t.double() for t in (grad, weight, x)]
    got = kernels.vq_quantize_backward(*arguments)
    plain = reference.vq_quantize_backward(*arguments)
    exact = reference.vq_quantize_backward(*wide, indices, codebook.double(), dim, rotation)
    assert got.dtype == x.dtype and got.stride() == torch.empty_like(x).stride()
    known = exact.isfinite()
    torch.testing.assert_close(got[~known], exact[~known].to(got), equal_nan=True)
    assert_as_exact_as_torch(got[known], plain[known], exact[known], "reduction")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_quantize_dtypes(dtype):
    codebook = torch.randn(37, 20).to(torch.promote_types(dtype, torch.float32))
    check_quantize(torch.randn(3, 11, 20).to(dtype), codebook)


def test_quantize_rows_that_are_not_finite():
    x, codebook = torch.randn(2, 7, 5), torch.randn(9, 7)
    x[0, 1, 1], x[1, 2, 0], x[1, 0, 3] = nan, inf, -inf
    codebook[2] = nan
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, 3] = False
    got = check_quantize(x, codebook, 1, mask)
    assert got[3].sum() == 10 - 3 and got[1][1, 3] == -1 and got[0][1, :, 3].eq(0).all()


def test_sums_in_order_are_the_sequential_ones_within_a_block():
    """No rounding can be seen in another order: whole numbers far apart in size."""
    x = torch.tensor([2.0**60, 1.0, -(2.0**60), 1.0]).double()[:, None].expand(-1, 3)
    one = torch.zeros(1, 3, dtype=torch.float64)
    first = kernels.vq_quantize(x, one, 1, None, False)[4]
    assert torch.equal(first, kernels.vq_quantize(x, one, 1, None, False)[4])
    many = torch.randn(500, 3)
    sums = kernels.vq_quantize(many, one, 1, None, False)[4]  # more than one block
    torch.testing.assert_close(sums[0], many.double().sum(0), atol=1e-12, rtol=0)


def test_backward_takes_expanded_gradients():
    x, codebook = torch.randn(3, 8, 5), torch.randn(9, 8)
    indices = kernels.vq_quantize(x, codebook, 1, None, False)[1]
    ones = torch.ones(()).expand(x.shape), torch.ones(()).expand(indices.numel())
    check_backward(*ones, x, indices, codebook, 1, True)
    check_backward(torch.randn(x.shape), None, x, indices.clamp(max=4) - 1, codebook, 1, True)


def check_averages(embed, counts, sums, decay=0.9, dtype=torch.float32):
    buffers = [embed.to(dtype), torch.rand(counts.shape).to(dtype), (2 * embed).to(dtype)]
    buffers = [guarded(b, spread=2) for b in buffers]
    plain, exact = ([b.clone().to(t) for b in buffers] for t in (dtype, torch.float64))
    averages.vq_ema_update_(*buffers, counts, sums, decay, 1e-5)
    for expected in (plain, exact):
        reference_averages.vq_ema_update_(*expected, counts, sums, decay, 1e-5)
    for actual, plainly, exactly in zip(buffers, plain, exact, strict=True):
        assert_as_exact_as_torch(actual, plainly, exactly, "elementwise")
    return buffers


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (40, 5), (2, 33, 35)])
def test_moving_averages(shape, dtype):
    counts = torch.randint(0, 4, shape[:-1])
    counts.view(-1)[0] = 1
    sums = torch.randn(shape, dtype=torch.float64) * counts.unsqueeze(-1)
    for decay in (0.9, 0.0, 1.0):
        check_averages(torch.randn(shape), counts, sums, decay, dtype)


def test_the_sizes_of_many_codes_are_added_in_blocks(monkeypatch):
    monkeypatch.setattr(averages, "BLOCK_SIZES", 16)
    counts = torch.randint(0, 4, (2, 50))
    check_averages(torch.randn(2, 50, 3), counts, torch.randn(2, 50, 3).double())


def test_a_head_without_rows_keeps_its_averages():
    counts = torch.randint(1, 4, (3, 6))
    counts[1] = 0
    embed = torch.randn(3, 6, 4)
    buffers = check_averages(embed, counts, torch.randn(3, 6, 4).double())
    assert torch.equal(buffers[0][1], embed[1]) and not torch.equal(buffers[0][0], embed[0])


def test_public_ops():
    x, codebook = torch.randn(2, 6, 4, 3), torch.randn(30, 6)
    mask = torch.rand(2, 4, 3) > 0.2

    def results(backend):
        leaf = x.clone().requires_grad_()
        with fastgen.use_backend(backend):
            out = fastgen.vq_quantize(leaf, codebook, dim=1, mask=mask, rotation=True)
            loss = (out.quantized * x.cos()).sum() + (out.commitment * 3).mean()
            found = fastgen.vq_nearest(x, codebook, dim=1, metric="cosine")
            embed, size, average = codebook.clone(), torch.ones(30), codebook.clone()
            fastgen.vq_ema_update_(embed, size, average, *out[3:], decay=0.8)
            return *out, *torch.autograd.grad(loss, leaf), found, embed, size, average

    for ours, theirs in zip(results("triton"), results("reference"), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_gradcheck():
    x, codebook = torch.randn(3, 2).double().requires_grad_(), torch.randn(4, 2).double()
    with fastgen.use_backend("triton"):
        indices = fastgen.vq_nearest(x, codebook)
        assert (
            torch.autograd.gradcheck(lambda x: fastgen.vq_quantize(x, codebook).commitment, x)
            and (indices == exact_nearest(x, codebook, 1)).all()
        )


def test_opcheck():
    x, codebook = torch.randn(2, 5, 3), torch.randn(7, 5)
    embed, size = codebook.clone(), torch.ones(7)
    with fastgen.use_backend("triton"):
        out = fastgen.vq_quantize(x, codebook, dim=1)
        arguments = {
            "vq_nearest": (x, codebook, 1, False, None),
            "vq_quantize": (x, codebook, 1, None, False, None),
            "vq_quantize_backward": (x, out.commitment, x, out.indices, codebook, 1, True),
            "vq_ema_update_": (embed, size, codebook.clone(), out.counts, out.sums, 0.9, 1e-5),
        }
        for name, values in arguments.items():
            operator = getattr(torch.ops.fastgen, name).default
            torch.library.opcheck(operator, values, test_utils=("test_schema", "test_faketensor"))
