import pytest
import torch
from tolerances import assert_as_exact_as_torch

import fastgen

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SHAPES = [(1, 1), (7, 4), (300, 33), (5, 1100), (2, 7, 4), (3, 1, 5), (3, 64, 16)]
nan = float("nan")


def sample(shape, dtype=torch.float32, average_dtype=None):
    """embed, cluster_size, embed_avg, counts, sums of a codebook in the middle of training."""
    other = average_dtype or dtype
    counts = torch.randint(0, 9, shape[:-1])
    counts[..., 0] += 1
    sums = torch.randn(shape).double() * counts.unsqueeze(-1)
    embed, size = torch.randn(shape).to(dtype), torch.rand(shape[:-1]).mul(5).to(other)
    return embed, size, torch.randn(shape).to(other), counts, sums


def plain(embed, size, average, counts, sums, decay, eps):
    """What the docstring says, for a codebook of one head, out of place."""
    size = decay * size + (1 - decay) * counts.to(size.dtype)
    average = decay * average + (1 - decay) * sums.to(average.dtype)
    n = size.sum()
    smoothed = (size + eps) / (n + len(size) * eps) * n
    return (average / smoothed.unsqueeze(1)).to(embed.dtype), size, average


def plain_heads(args, decay, eps):
    if args[0].dim() == 2:
        return plain(*args, decay, eps)
    heads = [plain(*(t[g] for t in args), decay, eps) for g in range(len(args[0]))]
    return [torch.stack(t) for t in zip(*heads, strict=True)]


def updated(args, **options):
    copies = [t.clone() for t in args]
    assert fastgen.vq_ema_update_(*copies, **options) is None
    assert torch.equal(copies[3], args[3]) and torch.equal(copies[4], args[4])
    return copies[:3]


@pytest.mark.parametrize("decay", [0.0, 0.8, 0.99, 1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_as_exact_as_plain_torch(shape, dtype, decay):
    args = sample(shape, dtype)
    got = updated(args, decay=decay, eps=1e-5)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    same = [t.to(dtype) for t in plain_heads([t.to(wide) for t in args], decay, 1e-5)]
    exact = plain_heads([t.double() for t in args], decay, 1e-5)
    for ours, theirs, want in zip(got, same, exact, strict=True):
        assert ours.dtype == dtype
        assert_as_exact_as_torch(ours, theirs, want, "elementwise")


@pytest.mark.parametrize(
    "dtype, average_dtype",
    [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float64),
        (torch.float64, torch.float16),
    ],
    ids=str,
)
def test_dtypes_mix(dtype, average_dtype):
    args = sample((11, 6), dtype, average_dtype)
    got = updated(args, decay=0.9, eps=1e-3)
    exact = plain(*(t.double() for t in args), 0.9, 1e-3)
    for ours, before, want in zip(got, args, exact, strict=False):
        assert ours.dtype == before.dtype
        assert_as_exact_as_torch(ours, want.to(ours.dtype), want, "elementwise")


@pytest.mark.parametrize("eps", [1e-10, 1e-5, 0.5])
def test_a_code_that_nothing_chose_is_smoothed(eps):
    args = sample((5, 3), torch.float64)
    args[1][2], args[3][2] = 0, 0
    got = updated(args, decay=0.5, eps=eps)
    for ours, want in zip(got, plain(*args, 0.5, eps), strict=True):
        torch.testing.assert_close(ours, want)
        assert ours.isfinite().all()


def test_without_rows_nothing_changes():
    args = sample((7, 4))
    args[3].zero_()
    args[4].zero_()
    for ours, before in zip(updated(args, decay=0.5), args, strict=False):
        assert torch.equal(ours, before)


def test_a_head_without_rows_does_not_change():
    args = sample((3, 7, 4))
    args[3][1] = 0
    args[4][1] = 0
    args[0][1, 2] = nan  # whatever it holds
    got = updated(args, decay=0.5)
    torch.testing.assert_close(
        [t[1] for t in got], [t[1] for t in args[:3]], equal_nan=True, rtol=0, atol=0
    )
    others = [t[[0, 2]] for t in args]
    for ours, want in zip(got, updated(others, decay=0.5), strict=True):
        assert torch.equal(ours[[0, 2]], want)


def test_no_values_and_no_codes():
    for shape in ((0, 4), (4, 0), (0, 3, 4)):
        empty = torch.zeros(shape)
        counts = torch.zeros(shape[:-1], dtype=torch.int64)
        updated((empty, counts.float(), empty, counts, empty.double()), decay=0.5)


VIEWS = {
    "transposed": lambda t: t.mT.contiguous().mT if t.dim() > 1 else t.clone(),
    "sliced": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "offset": lambda t: torch.cat([t[:1], t])[1:],
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("shape", [(7, 4), (3, 7, 4)], ids=str)
def test_strided_tensors_are_written_in_place(shape, view):
    args = sample(shape)
    want = updated(args, decay=0.9)
    views = [VIEWS[view](t) for t in args]
    fastgen.vq_ema_update_(*views, decay=0.9)
    for ours, expected in zip(views, want, strict=False):
        assert torch.equal(ours, expected)


def test_a_slice_leaves_its_surroundings_alone():
    args = sample((7, 4))
    around = [torch.full((7, 8), nan), torch.full((14,), nan), torch.full((7, 8), nan)]
    inside = [around[0][:, 2:6], around[1][::2], around[2][:, 2:6]]
    for view, t in zip(inside, args, strict=False):
        view.copy_(t)
    fastgen.vq_ema_update_(*inside, *args[3:], decay=0.9)
    for view, whole, want in zip(inside, around, updated(args, decay=0.9), strict=True):
        assert torch.equal(view, want)
        assert int(whole.isnan().sum()) == whole.numel() // 2


def test_same_bits_for_any_thread_count():
    args = sample((3, 513, 65))
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        results.append(updated(args, decay=0.9))
    for other in results[1:]:
        assert all(torch.equal(p, q) for p, q in zip(results[0], other, strict=True))


def test_a_codebook_that_learns_goes_to_the_means():
    """With decay 0 and next to no smoothing a step is Lloyd's."""
    x, embed = torch.randn(200, 4), torch.randn(5, 4)
    out = fastgen.vq_quantize(x, embed)
    size, average = torch.zeros(5), torch.zeros(5, 4)
    fastgen.vq_ema_update_(embed, size, average, out.counts, out.sums, decay=0.0, eps=1e-12)
    for code in range(5):
        if out.counts[code]:
            torch.testing.assert_close(embed[code], x[out.indices == code].mean(0))


def test_counts_beyond_the_mantissa_of_float32():
    args = sample((2, 1), torch.float64)
    args[3][:] = torch.tensor([2**24 + 1, 3])
    size = updated(args, decay=0.0)[1]
    assert size.tolist() == [2**24 + 1, 3]


def test_parameters_that_require_grad_are_written_without_a_graph():
    args = list(sample((7, 4)))
    want = updated(args, decay=0.9)
    embed = torch.nn.Parameter(args[0].clone())
    fastgen.vq_ema_update_(embed, *args[1:], decay=0.9)
    assert torch.equal(embed, want[0]) and embed.requires_grad and embed.grad_fn is None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode):
    args = sample((7, 4))
    want = updated(args, decay=0.9)
    with mode():
        fastgen.vq_ema_update_(*args, decay=0.9)
    assert all(torch.equal(p, q) for p, q in zip(args, want, strict=False))


def test_autocast_changes_nothing():
    args = sample((7, 4))
    want = updated(args, decay=0.9)
    with torch.autocast("cpu", torch.bfloat16):
        got = updated(args, decay=0.9)
    assert all(torch.equal(p, q) for p, q in zip(got, want, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(7, 4), (2, 7, 4)], ids=str)
def test_registration(shape, dtype):
    args = (*sample(shape, dtype), 0.9, 1e-5)
    torch.library.opcheck(torch.ops.fastgen.vq_ema_update_.default, args)


def test_a_training_step_compiles_without_graph_break_and_with_other_sizes():
    """Also the gradient, which is of the codebook before the update."""

    def step(x, embed, size, average):
        out = fastgen.vq_quantize(x, embed, rotation=True)
        fastgen.vq_ema_update_(embed, size, average, out.counts, out.sums, decay=0.5)
        return out.commitment.mean() + out.quantized.square().sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    codebook = sample((9, 4))[:3]
    for rows in (20, 31):
        x = torch.randn(rows, 4, requires_grad=True)
        mine, theirs = ([t.clone() for t in codebook] for _ in range(2))
        got, want = compiled(x, *mine), step(x, *theirs)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(*(torch.autograd.grad(t, x)[0] for t in (got, want)))
        assert all(torch.equal(p, q) for p, q in zip(mine, theirs, strict=True))


e, k = torch.zeros(5, 4), torch.zeros(5)
n, s = torch.zeros(5, dtype=torch.int64), torch.zeros(5, 4).double()


@pytest.mark.parametrize(
    "arguments, options, error, words",
    [
        (([1.0], k, e, n, s), {}, TypeError, "embed must be a tensor, got list"),
        ((e.int(), k, e, n, s), {}, TypeError, "embed must be .* got torch.int32"),
        ((e, k.long(), e, n, s), {}, TypeError, "cluster_size must be .* got torch.int64"),
        ((e, k, e.long(), n, s), {}, TypeError, "embed_avg must be .* got torch.int64"),
        ((k, k, e, n, s), {}, ValueError, r"embed must be \(K, D\) or .* got shape \(5,\)"),
        ((e, k[1:], e, n, s), {}, ValueError, r"cluster_size must be \(5,\) .* got \(4,\)"),
        ((e, k, e[1:], n, s), {}, ValueError, r"embed_avg must be \(5, 4\) .* got \(4, 4\)"),
        ((e, k, e, n[1:], s), {}, ValueError, r"counts must be \(5,\) .* got \(4,\)"),
        ((e, k, e, n, s[1:]), {}, ValueError, r"sums must be \(5, 4\) .* got \(4, 4\)"),
        (
            (e, k, e, n, s.to("meta")),
            {},
            ValueError,
            "sums must be on embed's device cpu, got meta",
        ),
        ((e, k, e, n.float(), s), {}, TypeError, "counts must be torch.int64, got torch.float32"),
        ((e, k, e, n, s.float()), {}, TypeError, "sums must be torch.float64, got torch.float32"),
        ((e, k, e, [1], s), {}, TypeError, "counts must be a tensor, got list"),
        ((e, k, e, n, None), {}, TypeError, "sums must be a tensor, got NoneType"),
        ((e, 1.0, e, n, s), {}, TypeError, "cluster_size must be a tensor, got float"),
        ((e, k, None, n, s), {}, TypeError, "embed_avg must be a tensor, got NoneType"),
        ((e, k, e, n, s), {}, ValueError, "embed_avg must have memory of its own, got .* embed;"),
        (
            (e, e.view(-1)[:5], e.clone(), n, s),
            {},
            ValueError,
            "cluster_size must have memory of its own, got that of embed;",
        ),
        ((e, k, e, n, s), {"decay": 1.5}, ValueError, r"decay must be in \[0, 1\], got 1.5"),
        ((e, k, e, n, s), {"decay": -0.1}, ValueError, r"decay must be in \[0, 1\], got -0.1"),
        ((e, k, e, n, s), {"decay": nan}, ValueError, r"decay must be in \[0, 1\], got nan"),
        ((e, k, e, n, s), {"eps": 0.0}, ValueError, "eps must be positive, got 0.0"),
        ((e, k, e, n, s), {"eps": nan}, ValueError, "eps must be positive, got nan"),
    ],
)
def test_bad_arguments_are_named(arguments, options, error, words):
    with pytest.raises(error, match=words) as caught:
        fastgen.vq_ema_update_(*arguments, **{"decay": 0.9} | options)
    assert "fastgen.vq_ema_update_: " in str(caught.value)
