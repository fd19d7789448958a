import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from fastgen.likelihoods import Bernoulli, Categorical
from fastgen.sampling import naive_sample

LEVELS = 5
SHAPE = (1, 3, 4)


class Running(nn.Module):
    """Logits from the sum of all codes at earlier ranks: causal for any order, and cheap."""

    def __init__(self, ranks, levels=LEVELS):
        super().__init__()
        self.before = (ranks.flatten() < ranks.flatten()[:, None]).double()
        self.levels, self.calls = levels, 0
        self.scale = nn.Parameter(torch.linspace(0.3, 2.0, levels, dtype=torch.float64))
        self.eval()

    def forward(self, codes, condition=None):
        self.calls += 1
        sums = codes.flatten(1).double() @ self.before.T  # (B, codes)
        phase = sums + 1 + torch.arange(sums.shape[1])
        if condition is not None:
            phase = phase + condition[:, None]
        logits = 2 * torch.cos(phase[:, None] * self.scale[:, None])
        return logits.view(len(codes), self.levels, *codes.shape[1:])


def raster(shape):
    return torch.arange(math.prod(shape[1:])).view(shape[1:]).expand(shape)


def draw(fn=None, shape=SHAPE, n=6, likelihood=None, **kwargs):
    fn = fn or Running(raster(shape))
    return naive_sample(fn, shape, likelihood or Categorical(LEVELS), n, **kwargs)


def assert_draws_are_inverse_cdf(fn, codes, uniforms, drawn=None, temperature=1.0):
    """One full forward on the drawn codes; each is the smallest k with cdf(k) > u."""
    cdf = torch.softmax(fn(codes).double() / temperature, 1).cumsum(1)
    u = uniforms[:, 0].double()
    right = (cdf <= u[:, None]).sum(1)
    edge = (cdf - u[:, None]).abs().amin(1)
    assert edge.min() > 1e-12  # no draw of these tests is a tie
    wrong = codes != right
    assert not (wrong if drawn is None else wrong & drawn).any()


@pytest.mark.parametrize("shape", [(1, 3, 4), (3, 2, 3), (2, 7), (1, 1, 1)])
def test_every_draw_is_the_inverse_cdf_of_its_uniform(shape):
    fn = Running(raster(shape))
    uniforms = torch.rand(5, 1, *shape)
    codes = draw(fn, shape, 5, uniforms=uniforms)
    assert codes.dtype == torch.int64
    assert codes.shape == (5, *shape)
    assert_draws_are_inverse_cdf(fn, codes, uniforms)


def snake(height, width):
    ranks = torch.arange(height * width).view(height, width)
    ranks[1::2] = ranks[1::2].flip(1)
    return ranks


@pytest.mark.parametrize(
    "order, ranks, shape, steps",
    [
        ("raster", raster((3, 2, 3)), (3, 2, 3), 6),
        ("subpixel", torch.arange(18).view(2, 3, 3).permute(2, 0, 1), (3, 2, 3), 18),
        (snake(3, 4), snake(3, 4), (1, 3, 4), 12),
        (snake(3, 4) // 5 * 7 - 3, snake(3, 4) // 5, (1, 3, 4), 3),  # ties, gaps, negative
        (torch.randperm(12).view(3, 2, 2), None, (3, 2, 2), 12),
        (torch.arange(5).flip(0), torch.arange(5).flip(0), (1, 5), 5),
    ],
)
def test_orders(order, ranks, shape, steps):
    ranks = order if ranks is None else ranks
    fn = Running(ranks.expand(shape))
    uniforms = torch.rand(4, 1, *shape)
    codes = draw(fn, shape, 4, order=order, uniforms=uniforms)
    assert fn.calls == steps
    assert_draws_are_inverse_cdf(fn, codes, uniforms)


def test_a_sample_does_not_depend_on_the_batch_it_was_drawn_in():
    whole = draw(n=7, seed=3)
    for batch in (1, 2, 3, 100):
        assert torch.equal(draw(n=7, seed=3, batch=batch), whole)
    assert torch.equal(draw(n=3, seed=3, first_index=4), whole[4:])
    assert not torch.equal(draw(n=7, seed=4), whole)


def test_the_noise_of_a_seed_is_the_same_in_every_order():
    constant = Running(torch.zeros(3, 2, 2))  # no code depends on another
    codes = draw(constant, (3, 2, 2), seed=1)
    for order in ("subpixel", torch.randperm(4).view(2, 2)):
        assert torch.equal(draw(constant, (3, 2, 2), seed=1, order=order), codes)


def test_negative_seeds_are_64_bit_seeds():
    assert torch.equal(draw(seed=-1), draw(seed=2**64 - 1))


def test_a_generator_and_the_default_one_give_the_seed():
    torch.manual_seed(5)
    first = draw()
    assert not torch.equal(draw(), first)
    assert torch.equal(draw(generator=torch.Generator().manual_seed(5)), first)


def test_conditions_go_with_their_samples():
    fn = Running(raster(SHAPE))
    condition = torch.arange(6.0, dtype=torch.float64)
    codes = draw(fn, condition=condition, seed=1)
    assert torch.equal(draw(fn, condition=condition, seed=1, batch=4), codes)
    as_tuple = draw(lambda x, c: fn(x, c[0]), condition=(condition,), seed=1, batch=4)
    as_dict = draw(lambda x, c: fn(x, c["phase"]), condition={"phase": condition}, seed=1, batch=4)
    assert torch.equal(as_tuple, codes)
    assert torch.equal(as_dict, codes)
    assert not torch.equal(draw(fn, seed=1), codes)


def test_temperature_divides_the_logits():
    fn = Running(raster(SHAPE))
    uniforms = torch.rand(6, 1, *SHAPE)
    codes = draw(fn, uniforms=uniforms, temperature=0.5)
    assert_draws_are_inverse_cdf(fn, codes, uniforms, temperature=0.5)
    assert torch.equal(draw(fn, seed=0, temperature=1e-6), draw(fn, seed=1, temperature=1e-6))


def test_top_k_and_top_p_draw_from_the_likeliest_levels():
    fn = Running(raster(SHAPE))
    best = fn(draw(fn, seed=0, top_k=1)).argmax(1)
    assert torch.equal(draw(fn, seed=0, top_k=1), best)
    assert torch.equal(draw(fn, seed=1, top_p=1e-6), best)
    codes = draw(fn, seed=0, top_k=2)
    ranks = fn(codes).argsort(1, descending=True).argsort(1).gather(1, codes[:, None])
    assert ranks.max() == 1


@pytest.mark.parametrize("per_sample", [False, True])
def test_completion_keeps_what_is_known_and_sees_it(per_sample):
    shape = (6, *SHAPE) if per_sample else SHAPE
    known, mask = torch.randint(LEVELS, shape), torch.rand(shape) < 0.5
    fn = Running(raster(SHAPE))
    uniforms = torch.rand(6, 1, *SHAPE)
    codes = draw(fn, uniforms=uniforms, known=known, known_mask=mask, batch=4)
    mask = mask.expand(6, *SHAPE)
    assert torch.equal(codes[mask], known.expand(6, *SHAPE)[mask])
    assert_draws_are_inverse_cdf(fn, codes, uniforms, drawn=~mask)


def test_completion_skips_the_forwards_of_known_pixels_only():
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[:, :2] = True
    fn = Running(raster(SHAPE))
    known = torch.full(SHAPE, 99)
    known[mask] = 1
    draw(fn, known=known, known_mask=mask)  # 99 stands where nothing is kept
    assert fn.calls == 4


def test_bernoulli_is_one_where_the_uniform_is_at_least_p_of_zero():
    fn = Running(raster(SHAPE), levels=1)
    uniforms = torch.rand(6, 1, *SHAPE)
    codes = draw(fn, likelihood=Bernoulli(), uniforms=uniforms)
    p = torch.sigmoid(fn(codes)[:, 0].double())
    assert torch.equal(codes, (uniforms[:, 0] >= 1 - p).long())
    expected = torch.log(torch.where(codes == 1, p, 1 - p)).sum(1)
    torch.testing.assert_close(Bernoulli().log_prob(fn(codes), codes), expected)


@dataclass(frozen=True)
class Joint:
    """A user's likelihood: both colours of a pixel by one joint table, coupled, two uniforms."""

    levels = 2
    coupled = True
    uniforms = 2

    def sample(self, params, uniforms, temperature):
        assert params.shape[1:] == (4, 1)
        assert uniforms.shape[1:] == (2, 2)
        cell = Categorical(4).sample(params, uniforms[:, :1, :1], temperature)[:, 0]
        return torch.stack((cell // 2, cell % 2), 1)


def test_a_coupled_likelihood_draws_a_pixel_at_once():
    inner = Running(torch.zeros(1, 3, 4), levels=4)
    uniforms = torch.rand(5, 2, 2, 3, 4)
    codes = draw(lambda x: inner(x[:, :1]), (2, 3, 4), 5, Joint(), uniforms=uniforms)
    cells = codes[:, :1] * 2 + codes[:, 1:]
    assert_draws_are_inverse_cdf(inner, cells, uniforms[:, :1, :1])


def test_draws_have_the_models_distribution():
    logits = torch.tensor([0.3, -1.0, 1.2, -math.inf, 0.0], dtype=torch.float64)
    codes = draw(
        lambda x: logits.view(1, -1, 1, 1, 1).expand(len(x), -1, 1, 10, 10),
        (1, 10, 10),
        200,
        seed=0,
        batch=200,
    )
    p = torch.softmax(logits, 0)
    share = torch.bincount(codes.flatten(), minlength=LEVELS) / codes.numel()
    assert ((share - p).abs() <= 4 * (p * (1 - p) / codes.numel()).sqrt()).all()


def test_no_samples_ask_nothing_of_the_model():
    def never(codes):
        raise AssertionError

    assert draw(never, n=0).shape == (0, *SHAPE)
    assert draw(never, n=0, uniforms=torch.rand(0, 1, *SHAPE)).dtype == torch.int64


def test_nan_is_told_with_its_place():
    def broken(codes):
        logits = torch.zeros(len(codes), LEVELS, 1, 3, 4)
        logits[-1, 2, 0, 1, 3] = float("nan")
        return logits

    with pytest.raises(RuntimeError, match=r"sample 4, colour 0, position \(1, 3\)"):
        draw(broken, n=6, batch=5)


def test_nan_where_nothing_is_drawn_does_no_harm():
    def half(codes):
        logits = torch.zeros(len(codes), LEVELS, 1, 3, 4)
        logits[..., 0, :] = float("nan")
        return logits

    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[:, 0] = True
    draw(half, known=torch.zeros(SHAPE, dtype=torch.int64), known_mask=mask)


def test_progress_is_shown_when_asked_for(capsys):
    draw(seed=0)
    assert capsys.readouterr().err == ""
    draw(seed=0, progress=True)
    assert "sample 100 %" in capsys.readouterr().err


def known(value=0, shape=SHAPE, dtype=torch.int64):
    return dict(
        known=torch.full(shape, value, dtype=dtype),
        known_mask=torch.ones(SHAPE, dtype=torch.bool),
    )


@pytest.mark.parametrize(
    "arguments, error, named",
    [
        (dict(fn=3), TypeError, "fn must be callable, got int"),
        (dict(fn=nn.Identity()), ValueError, r"fn must be in eval mode.*\.eval\(\)"),
        (dict(fn=lambda x: None), TypeError, "fn must return a tensor, got NoneType"),
        (dict(fn=lambda x: x), ValueError, r"must return \(6, K=5, 1, 3, 4\), got \(6, 1, 3, 4\)"),
        (dict(fn=lambda x: torch.zeros(6, 3, 1, 3, 4)), ValueError, r"K=5, 1, 3, 4\), got"),
        (dict(shape=(3, 4, 4, 4)), ValueError, "shape must be"),
        (dict(shape=(1, 0, 4)), ValueError, "shape must be"),
        (dict(likelihood="softmax"), TypeError, "likelihood must have 'levels', got str"),
        (dict(n=-1), ValueError, "n must not be negative, got -1"),
        (dict(n=2.0), TypeError, "n must be an int, got 2.0"),
        (dict(first_index=-1), ValueError, "first_index must"),
        (dict(first_index=2**64 - 1), ValueError, "first_index must"),
        (dict(temperature=0.0), ValueError, "temperature must be positive and finite, got 0.0"),
        (dict(temperature=-1), ValueError, "temperature must"),
        (dict(temperature=math.nan), ValueError, "temperature must"),
        (dict(temperature=math.inf), ValueError, "temperature must"),
        (dict(top_k=0), ValueError, "top_k must be an int in 1 .. 5, got 0"),
        (dict(top_k=6), ValueError, "top_k must"),
        (dict(top_p=0.0), ValueError, r"top_p must lie in \(0, 1\], got 0.0"),
        (dict(top_p=math.nan), ValueError, "top_p must"),
        (dict(top_p=0.5, likelihood=Bernoulli()), ValueError, "top_p is for Categorical, got Ber"),
        (dict(batch=0), ValueError, "batch must be an int >= 1, got 0"),
        (dict(seed=1.5), TypeError, "seed must be an int, got 1.5"),
        (dict(seed=2**64), ValueError, "seed must fit 64 bits"),
        (dict(generator=3), TypeError, "generator must be a torch.Generator"),
        (dict(seed=1, generator=torch.Generator()), ValueError, "seed and generator; keep one"),
        (dict(seed=1, uniforms=torch.rand(6, 1, *SHAPE)), ValueError, "seed and uniforms"),
        (dict(uniforms=torch.rand(6, *SHAPE)), ValueError, r"uniforms must be .*\(6, 1, 1, 3, 4\)"),
        (dict(uniforms=torch.ones(6, 1, *SHAPE)), ValueError, r"uniforms must lie in \[0, 1\)"),
        (dict(uniforms=-torch.rand(6, 1, *SHAPE)), ValueError, "uniforms must lie"),
        (dict(uniforms=torch.full((6, 1, *SHAPE), math.nan)), ValueError, "uniforms must lie"),
        (dict(uniforms=torch.zeros(6, 1, *SHAPE, dtype=torch.int64)), TypeError, "uniforms must"),
        (dict(order="zigzag"), ValueError, "order must be 'raster', 'subpixel'.*got 'zigzag'"),
        (dict(order=torch.zeros(4, 3, dtype=torch.int64)), ValueError, "order must have shape"),
        (dict(order=torch.rand(3, 4)), ValueError, "order must hold integer ranks"),
        (dict(condition=3), TypeError, "condition must be a tensor, or a tuple or dict"),
        (dict(condition=(3,)), TypeError, "condition must consist of tensors, got int"),
        (dict(condition=torch.zeros(5)), ValueError, r"leading dimension n=6, got \(5,\)"),
        (dict(condition={"a": torch.zeros(())}), ValueError, "leading dimension n=6"),
        (known() | dict(known_mask=None), ValueError, "go together"),
        (known(LEVELS), ValueError, "known must lie in 0 .. 4 where known_mask is True, got 5"),
        (known(-1), ValueError, "known must lie"),
        (known(dtype=torch.int32), TypeError, "known must be a tensor of torch.int64"),
        (known(shape=(5, *SHAPE)), ValueError, r"known must have shape \(1, 3, 4\) or"),
        (known() | dict(known_mask=torch.ones(SHAPE)), TypeError, "known_mask must be a tensor of"),
    ],
)
def test_bad_input_says_what_to_do(arguments, error, named):
    with pytest.raises(error, match=named):
        draw(**arguments)


def test_a_coupled_likelihood_wants_one_rank_a_pixel():
    with pytest.raises(ValueError, match="one rank with a coupled likelihood.*order='raster'"):
        draw(shape=(2, 3, 4), likelihood=Joint(), order="subpixel")


@pytest.mark.parametrize("levels", [0, 2.0, True])
def test_categorical_wants_levels(levels):
    with pytest.raises(ValueError, match="levels must be an int >= 1"):
        Categorical(levels)


@pytest.mark.parametrize("channels_last", [False, True])
def test_categorical_log_prob_is_the_log_softmax_at_the_codes(channels_last):
    params = torch.randn(3, LEVELS, 2, 4, 5, dtype=torch.float64)
    if channels_last:
        params = params.movedim(1, -1).contiguous().movedim(-1, 1)
    codes = torch.randint(LEVELS, (3, 2, 4, 5))
    expected = torch.log_softmax(params, 1).gather(1, codes[:, None])[:, 0].sum(1)
    torch.testing.assert_close(Categorical(LEVELS).log_prob(params, codes), expected)


def test_categorical_breaks_exact_ties_upwards():
    logits = torch.zeros(3, 4, 1)  # cdf 0.25, 0.5, 0.75, 1
    u = torch.tensor([0.25, 0.4999, 0.5]).view(3, 1, 1)
    assert Categorical(4).sample(logits, u).flatten().tolist() == [1, 1, 2]
