import math

import pytest
import torch

from fastgen.likelihoods import Bernoulli, Categorical, DiscretizedLogisticMixture

M = 3  # components
KINDS = [(1, True), (3, True), (1, False), (2, False)]  # (colours, coupled)
EACH = pytest.mark.parametrize("colors, coupled", KINDS)


def mixture(levels=7, coupled=True):
    return DiscretizedLogisticMixture(M, levels, coupled)


def parameters(likelihood, colors, m=2, spread=1.0, dtype=torch.float64):
    shape = (m, likelihood.parameters(colors), 1 if likelihood.coupled else colors)
    return torch.randn(shape, dtype=dtype) * spread


def every_code(levels, colors):
    return torch.cartesian_prod(*[torch.arange(levels)] * colors).view(-1, colors)


def mass(likelihood, params, codes):
    """exp(log_prob) of every row of codes under the one row of params."""
    return likelihood.log_prob(params.expand(len(codes), -1, -1), codes).exp()


def by_hand(likelihood, params, codes):
    """One pixel's probability, from the formulas and in scalars."""

    def sigmoid(z):
        return 1 / (1 + math.exp(-z)) if z > -700 else 0.0

    m, levels, colors = likelihood.components, likelihood.levels, len(codes)
    columns = [params[:, 0 if likelihood.coupled else c].tolist() for c in range(colors)]
    x = [2 * k / (levels - 1) - 1 for k in codes]
    half = 1 / (levels - 1)

    def bin_mass(c, mean, log_scale):
        scale = math.exp(max(log_scale, -7))
        upper = 1.0 if codes[c] == levels - 1 else sigmoid((x[c] + half - mean) / scale)
        return upper - (0.0 if codes[c] == 0 else sigmoid((x[c] - half - mean) / scale))

    def softmax(logits):
        weights = [math.exp(v) for v in logits]
        return [w / sum(weights) for w in weights]

    if not likelihood.coupled or colors == 1:
        product = 1.0
        for c in range(colors):
            p = columns[c]
            product *= sum(
                w * bin_mass(c, p[m + i], p[2 * m + i]) for i, w in enumerate(softmax(p[:m]))
            )
        return product
    p, total = columns[0], 0.0
    for i, w in enumerate(softmax(p[:m])):
        mean, log_scale, coefficient = (
            [p[m + 3 * m * c + m * kind + i] for c in range(3)] for kind in range(3)
        )
        c0, c1, c2 = (math.tanh(v) for v in coefficient)
        w *= bin_mass(0, mean[0], log_scale[0])
        w *= bin_mass(1, mean[1] + c0 * x[0], log_scale[1])
        total += w * bin_mass(2, mean[2] + c1 * x[0] + c2 * x[1], log_scale[2])
    return total


@EACH
@pytest.mark.parametrize("levels", [2, 5])
def test_the_mixtures_masses_are_those_of_the_formulas_and_add_up_to_one(colors, coupled, levels):
    likelihood = mixture(levels, coupled)
    params, codes = parameters(likelihood, colors, 1), every_code(levels, colors)
    got = mass(likelihood, params, codes)
    expected = [by_hand(likelihood, params[0], row.tolist()) for row in codes]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(got.sum(), torch.ones((), dtype=torch.float64))


@EACH
def test_the_mixtures_draws_have_its_masses(colors, coupled):
    likelihood, n = mixture(4, coupled), 40_000
    params = parameters(likelihood, colors, 1)
    codes = likelihood.sample(params.expand(n, -1, -1), torch.rand(n, 2, colors))
    assert codes.dtype == torch.int64
    every = every_code(4, colors)
    p = mass(likelihood, params, every)
    weights = 4 ** torch.arange(colors - 1, -1, -1)
    share = torch.bincount((codes * weights).sum(1), minlength=len(every)) / n
    assert ((share - p).abs() <= 5 * (p * (1 - p) / n).sqrt() + 1 / n).all()


def test_a_coupled_draw_is_the_published_one_on_rounded_colours():
    likelihood, levels = mixture(256), 256
    params, uniforms = parameters(likelihood, 3, 50), torch.rand(50, 2, 3, dtype=torch.float64)
    uniforms[0, 1] = 0.0  # clamped: its logit is finite
    got = likelihood.sample(params, uniforms, temperature=0.8)
    for row, u, codes in zip(params[:, :, 0], uniforms, got, strict=True):
        logits, rest = row[:M], row[M:].view(3, 3, M)
        cdf = torch.softmax(logits / 0.8, 0).cumsum(0)
        i = int((cdf <= u[0, 0]).sum())
        x = []
        for c in range(3):
            mean, log_scale = rest[c, 0, i], rest[c, 1, i].clamp_min(-7)
            if c == 1:
                mean = mean + torch.tanh(rest[0, 2, i]) * x[0]
            if c == 2:
                mean = mean + torch.tanh(rest[1, 2, i]) * x[0] + torch.tanh(rest[2, 2, i]) * x[1]
            v = u[1, c].clamp(2**-24, 1 - 2**-24)
            y = (mean + 0.8 * log_scale.exp() * torch.logit(v)).clamp(-1, 1)
            code = torch.round((y + 1) * (levels - 1) / 2)
            x.append(2 * code / (levels - 1) - 1)
            assert int(code) == int(codes[c])


def test_an_uncoupled_mixture_draws_a_component_for_every_colour():
    likelihood = mixture(256, coupled=False)
    params, uniforms = parameters(likelihood, 2, 20), torch.rand(20, 2, 2)
    both = likelihood.sample(params, uniforms)
    for c in range(2):
        alone = likelihood.sample(params[:, :, c : c + 1], uniforms[:, :, c : c + 1])
        assert torch.equal(alone[:, 0], both[:, c])


@EACH
def test_log_prob_is_finite_and_differentiable_far_out(colors, coupled):
    likelihood = mixture(256, coupled)
    params = parameters(likelihood, colors, 4, spread=30.0, dtype=torch.float32).requires_grad_()
    codes = torch.randint(256, (4, colors))
    codes[0], codes[1] = 0, 255
    nats = likelihood.log_prob(params, codes)
    nats.sum().backward()
    assert nats.isfinite().all() and (nats <= 0).all()
    assert params.grad.isfinite().all()


@EACH
def test_gradients_are_those_of_differences(colors, coupled):
    likelihood = mixture(16, coupled)
    codes = torch.randint(16, (5, colors))
    codes[0], codes[1] = 0, 15
    params = parameters(likelihood, colors, 5).requires_grad_()
    torch.autograd.gradcheck(lambda p: likelihood.log_prob(p, codes), (params,))


def test_float32_keeps_narrow_and_distant_masses():
    likelihood = DiscretizedLogisticMixture(1)
    mean, log_scale = torch.tensor([0.4, -0.9, 0.0]), torch.tensor([-7.0, -4.0, 3.0])
    params = torch.stack((torch.zeros(3), mean, log_scale), 1)[:, :, None]
    codes = torch.tensor([[178], [200], [3]])
    exact = likelihood.log_prob(params.double(), codes)
    torch.testing.assert_close(
        likelihood.log_prob(params, codes).double(), exact, rtol=1e-4, atol=1e-4
    )
    assert exact[1] < -50  # where the difference of two sigmoids is 0 in float32


@pytest.mark.parametrize(
    "likelihood, colors",
    [
        (Categorical(5), 2),
        (Bernoulli(), 2),
        (mixture(5), 3),
        (mixture(5), 1),
        (mixture(5, coupled=False), 2),
    ],
)
def test_log_prob_takes_any_dimensions_behind(likelihood, colors):
    params = parameters(likelihood, colors, 12).float()
    codes = torch.randint(likelihood.levels, (12, colors))
    flat = likelihood.log_prob(params, codes)

    def images(x):  # (12, ...) to (2, ..., 3, 2)
        return x.unflatten(0, (2, 3, 2)).movedim((1, 2), (-2, -1))

    torch.testing.assert_close(likelihood.log_prob(images(params), images(codes)).flatten(), flat)
    half = likelihood.log_prob(params.bfloat16(), codes)
    assert half.dtype == torch.float32


def drawn(likelihood, probabilities, uniforms, **options):
    logits = torch.tensor(probabilities, dtype=torch.float64).log()[None, :, None]
    u = torch.tensor(uniforms, dtype=torch.float64).view(-1, 1, 1)
    return likelihood.sample(logits.expand(len(u), -1, -1), u, **options)[:, 0].tolist()


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, [0, 0, 1, 3, 3]),
        (dict(top_k=1), [1, 1, 1, 1, 1]),
        (dict(top_k=2), [0, 0, 1, 1, 1]),  # 0 and 3 are equal: the lower index stays
        (dict(top_k=5), [0, 0, 1, 3, 3]),
        (dict(top_p=1.0), [0, 0, 1, 3, 3]),
        (dict(top_p=0.39), [1, 1, 1, 1, 1]),
        (dict(top_p=0.5), [0, 0, 1, 1, 1]),
        (dict(top_p=1e-9), [1, 1, 1, 1, 1]),
        (dict(top_k=3, top_p=0.5), [0, 0, 1, 1, 1]),  # the half of 0.9
        (dict(top_k=3, top_p=0.44), [1, 1, 1, 1, 1]),
        (dict(temperature=1e-4), [1, 1, 1, 1, 1]),
        (dict(temperature=2.0, top_p=0.5), [0, 0, 1, 1, 1]),
    ],
)
def test_top_k_and_top_p_keep_the_likeliest(options, expected):
    probabilities = [0.25, 0.4, 0.1, 0.25, 0.0]
    assert drawn(Categorical(5), probabilities, [0.0, 0.2, 0.5, 0.8, 0.999], **options) == expected


def test_log_prob_of_a_categorical_with_impossible_levels_is_minus_infinity():
    logits = torch.tensor([0.0, -math.inf]).view(1, 2, 1)
    assert Categorical(2).log_prob(logits, torch.tensor([[1]])).item() == -math.inf


@pytest.mark.parametrize(
    "call, named",
    [
        (lambda: DiscretizedLogisticMixture(0), "components must be an int >= 1, got 0"),
        (lambda: DiscretizedLogisticMixture(1.5), "components must be an int >= 1, got 1.5"),
        (lambda: DiscretizedLogisticMixture(3, 1), "levels must be an int >= 2, got 1"),
        (lambda: mixture().parameters(2), "images of 1 or 3 colours, got 2; use coupled=False"),
        (
            lambda: mixture().log_prob(torch.zeros(2, 29, 1), torch.zeros(2, 3)),
            r"params must be \(m, K=30, C, ...\), got \(2, 29, 1\)",
        ),
        (
            lambda: mixture(coupled=False).log_prob(torch.zeros(2, 9, 1), torch.zeros(2, 3)),
            r"params must be \(m, K, 3, ...\), got \(2, 9, 1\)",
        ),
        (lambda: Bernoulli().log_prob(torch.zeros(2, 2, 1), None), r"K=1, C, ...\), got"),
    ],
)
def test_bad_input_says_what_to_do(call, named):
    with pytest.raises(ValueError, match=named):
        call()
