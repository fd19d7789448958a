import os
from typing import NamedTuple

import numpy as np
import pytest
import torch
from tolerances import assert_as_exact_as_torch

import fastgen
from fastgen.reference import vq_quantize as reference
from fastgen.reference.vq_rows import rows_of, rows_of_indices


def _free_bytes():
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
nan, inf = float("nan"), float("inf")


class Case(NamedTuple):
    """x's shape, the axis of the values, heads (None: a codebook of two axes), codes."""

    shape: tuple[int, ...]
    dim: int
    heads: int | None = None
    codes: int = 13


CASES = [
    Case((0, 4), 1),
    Case((2, 4, 0, 3), 1),
    Case((1, 1), 1, codes=1),
    Case((50, 1), 1),
    Case((50, 7), 1),
    Case((7, 50), 0),
    Case((3, 5, 16), -1, codes=300),
    Case((2, 64, 9, 7), 1, codes=33),
    Case((2, 19, 2, 3, 4), 1, codes=1),
    Case((3, 5, 2, 70), -1, heads=2),
    Case((3, 6, 4, 35), 2, heads=6),
    Case((4, 8), 1, heads=4, codes=5),
]


def sample(case, dtype=torch.float32, codebook_dtype=None):
    x = torch.randn(case.shape).to(dtype)
    size = (case.codes, case.shape[case.dim])
    size = size if case.heads is None else (case.heads, *size)
    return x, torch.randn(size).to(codebook_dtype or dtype)


def mask_for(case):
    shape = list(case.shape)
    del shape[case.dim]
    if case.heads is not None:
        del shape[case.dim % len(case.shape) - 1]
    return torch.rand(shape) < 0.7


def rotated(x, q):
    """The rotation and scaling of the paper's equation 4, which maps x to q; both held constant.
    Where x and q are opposite there is no such rotation, and r is 0."""
    a, b = (t.detach() / t.detach().norm(dim=-1, keepdim=True) for t in (x, q))
    r = (a + b) / (a + b).norm(dim=-1, keepdim=True).clamp(min=1e-6)
    s = q.norm(dim=-1, keepdim=True) / x.detach().norm(dim=-1, keepdim=True)
    return s * (x - 2 * (x * r).sum(-1, True) * r + 2 * (x * a).sum(-1, True) * b)


def plain(x, codebook, indices, case, rotation=False):
    """quantized and commitment in plain PyTorch, from indices that are right."""
    axis = case.dim % x.dim()
    rows = rows_of(x, axis, case.heads)
    index = rows_of_indices(indices, axis, case.heads)
    codes = codebook if case.heads is not None else codebook.unsqueeze(0)
    q = codes.gather(1, index.clamp(min=0).unsqueeze(2).expand_as(rows)).to(rows.dtype)
    live = (index >= 0).unsqueeze(2)
    through = rotated(rows, q) if rotation else rows + (q - rows).detach()
    commitment = torch.where(live, (rows - q).square(), 0).mean(2)
    return torch.where(live, through, 0), commitment


def assert_nearest(indices, x, codebook, case):
    """Among the nearest codes, up to 4 eps of the arithmetic from the mean of the codes."""
    axis = case.dim % x.dim()
    index = rows_of_indices(indices, axis, case.heads)
    codes = codebook.double() if case.heads is not None else codebook.double().unsqueeze(0)
    rows = rows_of(x.double(), axis, case.heads)
    rows, codes = (t - codes.mean(1, keepdim=True) for t in (rows, codes))
    distance = (rows.unsqueeze(2) - codes.unsqueeze(1)).square().sum(3)
    chosen = distance.gather(2, index.clamp(min=0).unsqueeze(2)).squeeze(2)
    dtype = torch.float64 if torch.float64 in (x.dtype, codebook.dtype) else torch.float32
    size = rows.square().sum(2) + codes.square().sum(2).amax(1, keepdim=True)
    gap = torch.where(index >= 0, chosen - distance.amin(2), 0)
    assert (gap <= 4 * torch.finfo(dtype).eps * size).all()


def like_indices(flat, indices, case):
    """Commitment in the order of the rows of each head."""
    return rows_of_indices(flat.reshape(indices.shape), case.dim % len(case.shape), case.heads)


@pytest.mark.parametrize("masked", [False, True], ids=["all rows", "masked"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_statistics(case, dtype, masked):
    x, codebook = sample(case, dtype)
    mask = mask_for(case) if masked else None
    out = fastgen.vq_quantize(x, codebook, dim=case.dim, mask=mask)
    axis = case.dim % x.dim()
    assert_nearest(out.indices, x, codebook, case)
    index = rows_of_indices(out.indices, axis, case.heads)
    live = torch.ones_like(index, dtype=torch.bool)
    if masked:
        live = mask.reshape(1, -1).expand_as(index)
    assert torch.equal(index >= 0, live) and out.indices.dtype == torch.int64

    codes = codebook if case.heads is not None else codebook.unsqueeze(0)
    rows = rows_of(x, axis, case.heads)
    q = codes.gather(1, index.clamp(min=0).unsqueeze(2).expand_as(rows))
    q = torch.where(live.unsqueeze(2), q, 0)
    assert out.quantized.dtype == dtype and out.quantized.shape == x.shape
    assert torch.equal(rows_of(out.quantized, axis, case.heads), q)

    compute = torch.float64 if dtype == torch.float64 else torch.float32
    assert out.commitment.dtype == compute and out.commitment.shape == (out.indices.numel(),)
    _, same = plain(x.to(compute), codebook.to(compute), out.indices, case)
    _, exact = plain(x.double(), codebook.double(), out.indices, case)
    commitment = like_indices(out.commitment, out.indices, case)
    assert_as_exact_as_torch(commitment, same, exact, "reduction")

    counts = out.counts.reshape(codes.shape[:2])
    sums = out.sums.reshape(codes.shape)
    assert out.counts.dtype == torch.int64 and out.counts.shape == codebook.shape[:-1]
    assert out.sums.dtype == torch.float64 and out.sums.shape == codebook.shape
    for head in range(len(codes)):
        chosen = index[head][live[head]]
        assert torch.equal(counts[head], torch.bincount(chosen, minlength=case.codes))
        want = torch.zeros_like(sums[head]).index_add_(0, chosen, rows[head][live[head]].double())
        assert torch.equal(sums[head], want)  # in the order of the rows


@pytest.mark.parametrize("rotation", [False, True], ids=["straight-through", "rotation"])
@pytest.mark.parametrize("masked", [False, True], ids=["all rows", "masked"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradient_is_as_exact_as_plain_torch(case, dtype, masked, rotation):
    x, codebook = sample(case, dtype)
    x.requires_grad_()
    mask = mask_for(case) if masked else None
    out = fastgen.vq_quantize(x, codebook, dim=case.dim, mask=mask, rotation=rotation)
    grad, weight = torch.randn(case.shape).to(dtype), torch.randn_like(out.commitment)
    (got,) = torch.autograd.grad((out.quantized, out.commitment), x, (grad, weight))
    assert got.dtype == dtype and got.stride() == x.stride()

    def run(to):
        wide = x.detach().to(to).requires_grad_()
        q, commitment = plain(wide, codebook.to(to), out.indices, case, rotation=rotation)
        grads = (
            rows_of(grad, case.dim % x.dim(), case.heads).to(to),
            like_indices(weight, out.indices, case).to(to),
        )
        return torch.autograd.grad((q, commitment), wide, grads)[0]

    same = run(torch.float64 if dtype == torch.float64 else torch.float32).to(dtype)
    assert_as_exact_as_torch(got, same, run(torch.float64), "reduction")


@pytest.mark.parametrize("rotation", [False, True])
def test_each_gradient_alone(rotation):
    case = Case((2, 6, 5, 3), 1)
    x, codebook = sample(case)
    x.requires_grad_()
    out = fastgen.vq_quantize(x, codebook, dim=1, rotation=rotation)
    q, commitment = plain(x, codebook, out.indices, case, rotation=rotation)
    of_rows = like_indices(out.commitment, out.indices, case)
    for ours, theirs in ((out.quantized, q), (of_rows, commitment)):
        got, want = (
            torch.autograd.grad(t.square().sum(), x, retain_graph=True) for t in (ours, theirs)
        )
        torch.testing.assert_close(got, want)
    assert (
        torch.autograd.grad(out.quantized, x, grad_outputs=torch.ones_like(x))[0].isfinite().all()
    )


@pytest.mark.parametrize(
    "x_dtype, codebook_dtype",
    [
        (torch.float32, torch.float64),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float64),
        (torch.float64, torch.float16),
    ],
    ids=str,
)
@pytest.mark.parametrize("rotation", [False, True])
def test_dtypes_mix(x_dtype, codebook_dtype, rotation):
    case = Case((3, 5, 7, 9), 1)
    x, codebook = sample(case, x_dtype, codebook_dtype)
    out = fastgen.vq_quantize(x.requires_grad_(), codebook, dim=1, rotation=rotation)
    wide = torch.float64 if torch.float64 in (x_dtype, codebook_dtype) else torch.float32
    assert out.quantized.dtype == x_dtype and out.commitment.dtype == wide
    assert_nearest(out.indices, x, codebook, case)
    q, commitment = plain(x.to(wide), codebook.to(wide), out.indices, case, rotation=rotation)
    torch.testing.assert_close(like_indices(out.commitment, out.indices, case), commitment)
    grad = torch.randn(case.shape).to(x_dtype)
    (got,) = torch.autograd.grad((out.quantized, out.commitment.sum()), x, (grad, None))
    (want,) = torch.autograd.grad((q, commitment.sum()), x, (rows_of(grad, 1, None).to(wide), None))
    torch.testing.assert_close(got, want)


VIEWS = {
    "channels-last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "sliced": lambda x: x[:, :, ::2, 1:],
    "expanded": lambda x: x[:1].expand(4, -1, -1, -1),
    "transposed": lambda x: x.transpose(2, 3),
    "flipped axes": lambda x: x.permute(3, 1, 0, 2),
    "every other value": lambda x: torch.cat([x, x], 1)[:, ::2],
    "offset": lambda x: torch.cat([x[:1], x])[1:],
}


@pytest.mark.parametrize("rotation", [False, True])
@pytest.mark.parametrize("view", VIEWS)
def test_strided_inputs_equal_their_contiguous_copies(view, rotation):
    x = VIEWS[view](torch.randn(3, 18, 20, 9))
    codebook = torch.randn(40, 18)
    grad = VIEWS[view](torch.randn(3, 18, 20, 9))

    def run(x, grad):
        x = x.detach().requires_grad_()
        out = fastgen.vq_quantize(x, codebook, dim=1, rotation=rotation)
        loss = (out.quantized, out.commitment.square().mean())
        return (*out, *torch.autograd.grad(loss, x, (grad, None)))

    got, want = run(x, grad), run(x.contiguous(), grad.contiguous())
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)
    dense = torch.empty_like(x)
    assert got[0].stride() == got[-1].stride() == dense.stride()
    assert got[1].is_contiguous()


def test_three_dimensional_channels_last_keeps_its_layout():
    x = torch.randn(2, 5, 2, 3, 4).to(memory_format=torch.channels_last_3d).requires_grad_()
    out = fastgen.vq_quantize(x, torch.randn(7, 5), dim=1)
    (grad,) = torch.autograd.grad(out.commitment.sum(), x)
    for t in (out.quantized, grad):
        assert t.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("rotation", [False, True])
def test_offsets_beyond_32_bits(rotation):
    """Two rows 2^31 values apart; untouched pages of the array between them cost nothing."""
    apart = 2**31 + 64
    memory = torch.from_numpy(np.empty(apart + 8, dtype=np.int16)).view(torch.bfloat16)
    x = memory.as_strided((2, 3, 8), (apart, 0, 1))
    x[:, 0] = torch.randn(2, 8).bfloat16()
    codebook = torch.randn(5, 8)
    got = fastgen.vq_quantize(x.requires_grad_(), codebook, rotation=rotation)
    near = x.detach().clone().contiguous().requires_grad_()
    want = fastgen.vq_quantize(near, codebook, rotation=rotation)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)
    grad = torch.randn(2, 3, 8).bfloat16()
    a, b = (torch.autograd.grad(o.quantized, t, grad)[0] for o, t in ((got, x), (want, near)))
    assert torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.skipif(_free_bytes() < 14e9, reason="needs 14 GB of free memory")
def test_more_than_2_to_the_31_values():
    rows, values = 2**15 + 1, 2**16
    x = torch.randn(1, values).bfloat16().expand(rows, values).requires_grad_()
    code = torch.randn(1, values).bfloat16()
    out = fastgen.vq_quantize(x, code)
    assert out.counts.tolist() == [rows] and not out.indices.any()
    assert torch.equal(out.sums, x.detach()[:1].double() * rows)
    assert torch.equal(out.quantized.detach()[-3:], code.expand(3, values))
    assert (out.commitment == out.commitment[0]).all()
    (grad,) = torch.autograd.grad(out.quantized, x, torch.ones(1, dtype=x.dtype).expand_as(x))
    assert (grad[-3:] == 1).all()


@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_a_row_that_is_not_finite_stays_alone(bad):
    x, codebook = torch.randn(40, 6), torch.randn(9, 6)
    clean = fastgen.vq_quantize(x, codebook)
    x[7, 2] = bad
    out = fastgen.vq_quantize(x.requires_grad_(), codebook)
    assert out.indices[7] == 0
    assert out.quantized[7].isnan().all() and out.commitment[7].isnan()
    rest = torch.arange(40) != 7
    for ours, before in zip(out[:3], clean[:3], strict=True):
        assert torch.equal(ours[rest], before[rest])
    assert out.counts.sum() == 39 and out.sums.isfinite().all()
    others = fastgen.vq_quantize(x.detach()[rest], codebook)
    assert torch.equal(out.counts, others.counts) and torch.equal(out.sums, others.sums)
    (grad,) = torch.autograd.grad(out.quantized[rest].sum(), x)
    assert torch.equal(grad, rest.float().unsqueeze(1).expand(40, 6))


def test_a_batch_of_nan_counts_nothing():
    out = fastgen.vq_quantize(torch.full((5, 3), nan), torch.randn(4, 3))
    assert out.indices.tolist() == [0] * 5 and out.quantized.isnan().all()
    assert not out.counts.any() and not out.sums.any()


@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_a_code_that_is_not_finite_is_never_chosen(bad):
    x, codebook = torch.randn(60, 6), torch.randn(9, 6)
    codebook[4, 1] = bad
    out = fastgen.vq_quantize(x, codebook)
    assert out.counts[4] == 0 and not out.sums[4].any()
    others = torch.arange(9)[torch.arange(9) != 4]
    without = fastgen.vq_quantize(x, codebook[others])
    assert torch.equal(out.indices, others[without.indices])
    assert torch.equal(out.quantized, without.quantized)


def test_no_rows():
    x = torch.zeros(0, 4, requires_grad=True)
    codebook = torch.randn(5, 4, requires_grad=True)
    out = fastgen.vq_quantize(x, codebook)
    assert out.quantized.shape == (0, 4) and out.indices.shape == (0,)
    assert not out.counts.any() and not out.sums.any()
    loss = fastgen.vq_codebook_loss(codebook, out) + out.commitment.sum()
    assert loss == 0
    grads = torch.autograd.grad(loss, (x, codebook))
    assert grads[0].shape == (0, 4) and not grads[1].any()


def test_everything_masked_has_no_gradient():
    x = torch.randn(2, 5, 4, requires_grad=True)
    out = fastgen.vq_quantize(x, torch.randn(7, 4), mask=torch.zeros(2, 5, dtype=torch.bool))
    assert (out.indices == -1).all() and not out.quantized.any() and not out.counts.any()
    (grad,) = torch.autograd.grad(out.quantized.sum() + out.commitment.sum(), x)
    assert not grad.any()


def test_masked_rows_may_hold_anything():
    x, codebook = torch.randn(30, 4), torch.randn(7, 4)
    mask = torch.rand(30) < 0.5
    clean = fastgen.vq_quantize(x, codebook, mask=mask)
    x[~mask] = nan
    for ours, before in zip(fastgen.vq_quantize(x, codebook, mask=mask), clean, strict=True):
        assert torch.equal(ours, before)


@pytest.mark.parametrize("rotation", [False, True])
def test_gradient_is_of_the_codebook_as_it_was(rotation):
    x, codebook = torch.randn(20, 4), torch.randn(7, 4)

    def gradient(between):
        leaf, codes = x.clone().requires_grad_(), codebook.clone()
        out = fastgen.vq_quantize(leaf, codes, rotation=rotation)
        between(codes)
        return torch.autograd.grad((out.quantized * x.cos()).sum() + out.commitment.sum(), leaf)[0]

    assert torch.equal(gradient(lambda c: None), gradient(lambda c: c.normal_()))


def test_two_forwards_before_one_backward():
    x = torch.randn(20, 4, requires_grad=True)
    codebook, size = torch.randn(7, 4), torch.ones(7)
    average, total, want = codebook.clone(), 0, 0
    for _ in range(2):
        before = codebook.clone()
        out = fastgen.vq_quantize(x, codebook)
        total = total + out.commitment.mean()
        want = want + (x - before[out.indices]).detach() * 2 / x.numel()
        fastgen.vq_ema_update_(codebook, size, average, out.counts, out.sums, decay=0.5)
    total.backward()
    torch.testing.assert_close(x.grad, want)


@pytest.mark.parametrize("rotation", [False, True])
@pytest.mark.parametrize(
    "case",
    [
        Case((7, 33, 30, 20), 1, codes=60),
        Case((4200, 33), 1, codes=60),
        Case((7, 3, 11, 600), 2, heads=3, codes=60),
    ],
    ids=str,
)
def test_same_bits_for_any_thread_count_and_batch_split(case, rotation):
    x, codebook = sample(case)
    grad = torch.randn(case.shape)

    def run(x, grad):
        x = x.clone().requires_grad_()
        out = fastgen.vq_quantize(x, codebook, dim=case.dim, rotation=rotation)
        loss = (out.quantized, (out.commitment * 0.3).sum())
        return (*out, *torch.autograd.grad(loss, x, (grad, None)))

    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        results.append(run(x, grad))
    for other in results[1:]:
        assert all(torch.equal(p, q) for p, q in zip(results[0], other, strict=True))
    torch.set_num_threads(1)
    cuts = [0, 3, 4, len(x)]
    parts = [run(x[a:b], grad[a:b]) for a, b in zip(cuts, cuts[1:], strict=False)]
    kernels = "cpu" in [b.name for b in fastgen.backends("vq_quantize") if b.runs_on]
    for i in (0, 1, 2, 5):
        joined = torch.cat([part[i] for part in parts])
        if kernels:
            assert torch.equal(results[0][i], joined)
        torch.testing.assert_close(results[0][i], joined)
    assert torch.equal(results[0][3], sum(part[3] for part in parts))


def test_one_code_with_most_rows():
    """No thread is left with all the work, and no bit depends on it."""
    x = torch.randn(5000, 24)
    codebook = torch.cat([torch.zeros(1, 24), torch.randn(9, 24) + 50])
    out = fastgen.vq_quantize(x, codebook)
    assert out.counts.tolist() == [5000] + [0] * 9
    torch.set_num_threads(3)
    assert torch.equal(out.sums, fastgen.vq_quantize(x, codebook).sums)
    want = torch.zeros(10, 24).double().index_add_(0, out.indices, x.double())
    assert torch.equal(out.sums, want)


@pytest.mark.parametrize(
    "case",
    [
        Case((70001, 5), 1),
        Case((70001, 2, 33), 2, heads=2, codes=3),
        Case((3, 17, 220, 110), 1),
    ],
    ids=str,
)
def test_many_rows_are_summed_in_their_order(case, threads):
    x, codebook = sample(case)
    mask = mask_for(case)
    out = fastgen.vq_quantize(x, codebook, dim=case.dim, mask=mask)
    rows = rows_of(x, case.dim, case.heads).double()
    index = rows_of_indices(out.indices, case.dim, case.heads)
    counts, sums = out.counts.reshape(-1, case.codes), out.sums.reshape(len(rows), case.codes, -1)
    for head, chosen in enumerate(index):
        live = chosen >= 0
        want = torch.zeros_like(sums[head]).index_add_(0, chosen[live], rows[head][live])
        assert torch.equal(sums[head], want)
        assert torch.equal(counts[head], torch.bincount(chosen[live], minlength=case.codes))


@pytest.mark.parametrize("case", [Case((3, 4), 1), Case((2, 2, 3, 2), 2, heads=2)], ids=str)
def test_gradcheck_of_the_commitment(case):
    x, codebook = sample(case, torch.float64)
    x.requires_grad_()

    def commitment(x):
        return fastgen.vq_quantize(x, codebook, dim=case.dim).commitment

    assert torch.autograd.gradcheck(commitment, x)
    assert torch.autograd.gradgradcheck(commitment, x)


@pytest.mark.parametrize("rotation", [False, True])
@pytest.mark.parametrize("case", [Case((3, 4), 1), Case((2, 2, 3, 2), 2, heads=2)], ids=str)
def test_gradcheck_of_the_gradient(case, rotation):
    x, codebook = sample(case, torch.float64)
    out = fastgen.vq_quantize(x, codebook, dim=case.dim)

    def gradient(*inputs):
        return torch.ops.fastgen.vq_quantize_backward(
            *inputs, out.indices, codebook, case.dim, rotation
        )

    inputs = (torch.randn_like(x), torch.randn_like(out.commitment), x)
    assert torch.autograd.gradcheck(gradient, [t.clone().requires_grad_() for t in inputs])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("case", [Case((2, 4, 3, 5), 1), Case((2, 3, 2, 5), 3, heads=2)], ids=str)
def test_codebook_loss(case, masked):
    x, codebook = sample(case, torch.float64)
    codebook.requires_grad_()
    mask = mask_for(case) if masked else None
    out = fastgen.vq_quantize(x, codebook, dim=case.dim, mask=mask)
    loss = fastgen.vq_codebook_loss(codebook, out)
    rows = rows_of(x, case.dim, case.heads)
    index = rows_of_indices(out.indices, case.dim, case.heads)
    codes = codebook if case.heads is not None else codebook.unsqueeze(0)
    q = codes.gather(1, index.clamp(min=0).unsqueeze(2).expand_as(rows))
    want = (q - rows)[index >= 0].square().mean()
    torch.testing.assert_close(loss, want)
    got_grad, want_grad = (torch.autograd.grad(t, codebook)[0] for t in (loss, want))
    torch.testing.assert_close(got_grad, want_grad)


def test_codebook_loss_leaves_out_what_is_not_finite():
    x, codebook = torch.randn(20, 4), torch.randn(5, 4, requires_grad=True)
    want = fastgen.vq_codebook_loss(codebook, fastgen.vq_quantize(x[1:], codebook))
    x[0, 0] = nan
    loss = fastgen.vq_codebook_loss(codebook, fastgen.vq_quantize(x, codebook))
    torch.testing.assert_close(loss, want)
    grads = [torch.autograd.grad(t, codebook)[0] for t in (loss, want)]
    assert torch.equal(*grads)


@pytest.mark.parametrize("bad", [nan, inf])
def test_codebook_loss_leaves_out_codes_that_are_not_chosen(bad):
    x, codebook = torch.randn(20, 4), torch.randn(5, 4)
    codebook[2] = bad
    codebook.requires_grad_()
    loss = fastgen.vq_codebook_loss(codebook, fastgen.vq_quantize(x, codebook))
    finite = codebook.detach()[[0, 1, 3, 4]].requires_grad_()
    want = fastgen.vq_codebook_loss(finite, fastgen.vq_quantize(x, finite))
    torch.testing.assert_close(loss, want)
    (grad,), (want,) = (torch.autograd.grad(*t) for t in ((loss, codebook), (want, finite)))
    assert not grad[2].any() and torch.equal(grad[[0, 1, 3, 4]], want)


def test_codebook_loss_names_a_codebook_of_another_shape():
    out = fastgen.vq_quantize(torch.randn(6, 4), torch.randn(5, 4))
    with pytest.raises(ValueError, match=r"vq_codebook_loss: codebook must be \(5, 4\), .* \(4,\)"):
        fastgen.vq_codebook_loss(torch.randn(4), out)


@pytest.mark.parametrize("bad", [nan, inf])
def test_without_a_finite_code_nothing_is_chosen(bad):
    x, codebook = torch.randn(2, 6, 2, 4), torch.randn(2, 5, 4)
    codebook[1, :, 2] = bad
    expected = reference.vq_quantize(x, codebook, 3, None)
    for out in (expected, fastgen.vq_quantize(x, codebook)):
        quantized, indices, commitment, counts, sums = out
        assert not indices[..., 1].any() and quantized[:, :, 1].isnan().all()
        assert commitment.reshape(2, 6, 2)[..., 1].isnan().all()
        assert counts.sum(1).tolist() == [12, 0] and not sums[1].any()
        assert quantized[:, :, 0].isfinite().all() and sums.isfinite().all()


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("rotation", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "case",
    [
        Case((2, 4, 3, 5), 1),
        Case((6, 4), 1),
        Case((2, 3, 4, 5), 2, heads=3),
        Case((0, 4), 1),
    ],
    ids=str,
)
def test_registration(case, masked, rotation, grad):
    x, codebook = sample(case)
    mask = mask_for(case) if masked else None
    args = (x.clone().requires_grad_(grad), codebook, case.dim, mask, rotation)
    torch.library.opcheck(torch.ops.fastgen.vq_quantize.default, args)
    out = fastgen.vq_quantize(x, codebook, dim=case.dim, mask=mask)
    weight = torch.randn_like(out.commitment)
    for given in ((torch.randn_like(x), weight), (torch.randn_like(x), None), (None, weight)):
        args = (*given, x, out.indices, codebook, case.dim, rotation)
        torch.library.opcheck(torch.ops.fastgen.vq_quantize_backward.default, args)


@pytest.mark.parametrize("masked", [False, True])
def test_compiles_without_graph_break_and_with_other_sizes(masked):
    codebook = torch.randn(7, 6, requires_grad=True)

    def step(x, mask):
        out = fastgen.vq_quantize(x, codebook, dim=1, mask=mask, rotation=True)
        loss = out.quantized.square().sum() + out.commitment.mean()
        return loss + fastgen.vq_codebook_loss(codebook, out), out.indices, out.counts

    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    for size in (3, 5):
        x = torch.randn(2, 6, size, size + 1, requires_grad=True)
        mask = torch.rand(2, size, size + 1) < 0.5 if masked else None
        got, want = compiled(x, mask), step(x, mask)
        torch.testing.assert_close(got, want)
        grads = [torch.autograd.grad(r[0], (x, codebook)) for r in (got, want)]
        torch.testing.assert_close(*grads)


def test_autocast_changes_nothing():
    x, codebook = torch.randn(20, 4), torch.randn(7, 4)
    plainly = fastgen.vq_quantize(x, codebook)
    with torch.autocast("cpu", torch.bfloat16):
        inside = fastgen.vq_quantize(x, codebook)
    for a, b in zip(inside, plainly, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode):
    x, codebook = torch.randn(20, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
    want = fastgen.vq_quantize(x, codebook)
    with mode():
        got = fastgen.vq_quantize(x, codebook)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b.detach()) and not a.requires_grad


def test_what_carries_a_gradient():
    x, codebook = torch.randn(20, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
    out = fastgen.vq_quantize(x, codebook)
    carries = {name: getattr(out, name).requires_grad for name in out._fields}
    assert carries == {
        "quantized": True,
        "indices": False,
        "commitment": True,
        "counts": False,
        "sums": False,
    }
    assert not fastgen.vq_quantize(x.detach(), codebook).quantized.requires_grad


def test_inputs_are_left_alone():
    x, codebook = torch.randn(20, 4), torch.randn(7, 4)
    before = x.clone(), codebook.clone()
    out = fastgen.vq_quantize(x, codebook)
    out.quantized.zero_()  # an alias of nothing
    assert torch.equal(x, before[0]) and torch.equal(codebook, before[1])


x, c = torch.zeros(2, 4, 3, 3), torch.zeros(5, 4)


@pytest.mark.parametrize(
    "arguments, options, error, words",
    [
        (([1.0], c), {}, TypeError, "x must be a tensor, got list"),
        ((x.long(), c), {}, TypeError, "x must be .* got torch.int64"),
        ((x, c.int()), {}, TypeError, "codebook must be .* got torch.int32"),
        ((x, [c]), {}, TypeError, "codebook must be a tensor, got list"),
        ((x, c[0]), {}, ValueError, r"codebook must be \(K, D\).* got shape \(4,\)"),
        ((x, c[:0]), {}, ValueError, r"at least one code, got shape \(0, 4\)"),
        ((x, c.to("meta")), {}, ValueError, "codebook must be on x's device cpu, got meta"),
        ((x[0, 0, 0, 0], c), {}, ValueError, "x must have an axis of 4 values, got a scalar"),
        ((x, c), {"dim": 4}, ValueError, "dim must be an axis of x, -4 .. 3, got 4"),
        ((x, c), {"dim": 1.0}, ValueError, "dim must be an axis of x"),
        ((x, c), {"dim": True}, ValueError, "dim must be an axis of x"),
        ((x, c), {}, ValueError, r"axis -1 of size \(4,\) for a codebook \(5, 4\), got \(3,\)"),
        ((x, c[None]), {"dim": 0}, ValueError, "dim must follow the axis of the heads"),
        ((x, c[None]), {"dim": 1}, ValueError, r"axes \(dim - 1, dim\) of size \(1, 4\)"),
        ((x, c), {"dim": 1, "mask": [True]}, TypeError, "mask must be a bool tensor, got list"),
        ((x, c), {"dim": 1, "mask": x[:, 0]}, TypeError, "mask must be a bool tensor, got torch.f"),
        (
            (x, c),
            {"dim": 1, "mask": torch.ones(2, 3, dtype=torch.bool)},
            ValueError,
            r"mask must be \(2, 3, 3\), one entry for each row .* got \(2, 3\)",
        ),
        (
            (x, c),
            {"dim": 1, "mask": torch.ones(2, 3, 3, dtype=torch.bool, device="meta")},
            ValueError,
            "mask must be on x's device cpu, got meta",
        ),
    ],
)
def test_bad_arguments_are_named(arguments, options, error, words):
    with pytest.raises(error, match=words) as caught:
        fastgen.vq_quantize(*arguments, **options)
    assert "fastgen.vq_quantize: " in str(caught.value)


def test_forward_mode_is_refused_rather_than_wrong():
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(torch.zeros(3, 4), torch.ones(3, 4))
        with pytest.raises(NotImplementedError, match="tangent"):
            fastgen.vq_quantize(dual, c)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_commitment_far_from_all_codes_and_on_one(dtype):
    spread = torch.finfo(dtype).tiny ** 0.7
    x, codebook = torch.randn(50, 8, dtype=dtype), torch.randn(20, 8, dtype=dtype) * spread
    torch.testing.assert_close(
        fastgen.vq_quantize(x, codebook).commitment, x.square().mean(1), rtol=1e-5, atol=0
    )
    assert (fastgen.vq_quantize(codebook, codebook).commitment == 0).all()


def test_commitment_has_the_same_bits_whatever_else_is_in_the_batch():
    """Also where some rows take other ways to their code than others."""
    x, codebook = torch.randn(640, 33), torch.randn(130, 33)
    codebook[0] *= 1000
    together = fastgen.vq_quantize(x, codebook)
    apart = [fastgen.vq_quantize(part, codebook) for part in x.split(7)]
    assert torch.equal(together.commitment, torch.cat([p.commitment for p in apart]))
    assert torch.equal(together.indices, torch.cat([p.indices for p in apart]))
