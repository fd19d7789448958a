"""VAE and ConditionalVAE: the bound and its parts, latent space, scores, the command line."""

import json
import math

import numpy as np
import pytest
import torch
from test_train import assert_equal_bits, interrupt_after, state_of
from tiny import CLASSES
from torch import nn

import fastgen
from fastgen import checkpoint, cli
from fastgen.data import Dataset, Split
from fastgen.log import read_log
from fastgen.models import MODELS, VAE, ConditionalVAE
from fastgen.models.latent_priors import ClassTable, Laplace, StandardNormal
from fastgen.models.pixel_likelihoods import (
    BernoulliPixels,
    GaussianPixels,
    LogisticMixturePixels,
)
from fastgen.train import LOG, train

SHAPE, LEVELS, D = (1, 4, 3), 5, 3
EACH = pytest.mark.parametrize("kind", [VAE, ConditionalVAE])
LIKELIHOODS = pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "dmol"])
SETTINGS = {"batch_size": 4, "evaluations": 2, "grids": 0, "progress": False}
pytestmark = pytest.mark.filterwarnings("ignore:fastgen.* running the plain PyTorch reference")


def model(kind=VAE, seed=0, **options):
    sizes = {"shape": SHAPE, "levels": LEVELS, "latent_dim": D, "width": 8, "components": 2}
    sizes |= {"classes": CLASSES} if kind is ConditionalVAE else {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(**sizes | options).double()


def images(n=4, shape=SHAPE, levels=LEVELS):
    return torch.randint(levels, (n, *shape), generator=torch.Generator().manual_seed(1))


def labels(net, n=4):
    return None if net.classes is None else torch.arange(n) % net.classes


def data(n=40, labelled=True):
    """Images of one brightness, which a label tells in part: few numbers, so a few steps learn."""
    bright = torch.randint(LEVELS, (n,), generator=torch.Generator().manual_seed(2))
    codes = bright.view(n, 1, 1, 1).expand(n, *SHAPE).to(torch.uint8).contiguous()
    y = bright % CLASSES if labelled else None
    parts = (slice(0, n - 8), slice(n - 8, n))
    splits = [Split(codes[part], None if y is None else y[part]) for part in parts]
    return Dataset("flat", SHAPE, LEVELS, CLASSES if labelled else None, *splits)


# the bound and its parts


@EACH
@LIKELIHOODS
def test_forward_gives_the_bound_and_its_parts_for_each_image(kind, likelihood):
    net = model(kind, likelihood=likelihood)
    x, y = images(), labels(net)
    out = net(x, y, seed=1)
    mu, logvar = net.encode(x, y)
    eps = fastgen.randn(4, D, seed=1, dtype=torch.float64)
    torch.testing.assert_close(out.z, mu + torch.exp(logvar / 2) * eps)
    kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(1)  # every prior starts as N(0, I)
    torch.testing.assert_close(out.kl, kl)
    torch.testing.assert_close(out.nll, net.pixels.nll(out.params, x))
    assert torch.equal(out.elbo, -(out.nll + out.kl)) and out.elbo.shape == (4,)
    assert torch.equal(out.mu, mu) and torch.equal(out.logvar, logvar)
    assert out.recon.shape == x.shape
    assert net.pixels.low <= out.recon.min() or likelihood == "gaussian"
    each = torch.cat([net.encode(x[i : i + 1], None if y is None else y[i : i + 1])[0]
                      for i in range(4)])  # fmt: skip
    torch.testing.assert_close(each, mu)


@EACH
def test_several_draws_are_averaged(kind):
    net = model(kind)
    x, y = images(), labels(net)
    out = net(x, y, samples=3, seed=1)
    assert out.z.shape == (3, 4, D) and out.recon.shape == (3, *x.shape)
    each = [net.pixels.nll(net.decoder(z, *net._given(y)), x) for z in out.z]
    torch.testing.assert_close(out.nll, torch.stack(each).mean(0))
    assert out.kl.shape == (4,)


def test_free_bits_count_in_the_loss_alone():
    plain, net = model(), model(free_bits=0.3)
    net.load_state_dict(plain.state_dict())
    a, b = plain(images(), seed=1), net(images(), seed=1)
    torch.testing.assert_close(a.kl, b.kl)
    each = plain.prior.kl_of_each(a.mu, a.logvar, torch.zeros(4, dtype=torch.int64))
    torch.testing.assert_close(b.counted_kl, each.clamp_min(0.3).sum(1))
    assert torch.equal(a.counted_kl, a.kl)


@pytest.mark.parametrize("prior", ["standard", "learned", "class"])
def test_a_conditional_prior_is_given_to_the_divergence_the_bound_and_the_samples(prior):
    net = model(ConditionalVAE, prior=prior)
    with torch.no_grad():
        for parameter in net.prior.parameters():
            parameter.add_(torch.randn(parameter.shape) / 2)
    x, y = images(), labels(net)
    mu, logvar = net.encode(x, y)
    m, p = (t.to(mu).expand_as(mu) for t in net.prior._moments(y))
    q = torch.distributions.Normal(mu, torch.exp(logvar / 2))
    prior_of_y = torch.distributions.Normal(m, torch.exp(p / 2))
    expected = torch.distributions.kl_divergence(q, prior_of_y)
    torch.testing.assert_close(net(x, y).kl, expected.sum(1))
    torch.testing.assert_close(net.kl_per_dimension(x, y), expected.mean(0))
    torch.testing.assert_close(net.prior.log_prob(mu, y), prior_of_y.log_prob(mu))
    net(x, y).elbo.sum().backward()
    assert all(parameter.grad is not None for parameter in net.prior.parameters())
    assert torch.equal(m[0], m[1]) if prior == "standard" else not torch.equal(m[0], m[1])
    noise = torch.zeros(4, D, dtype=torch.float64)
    torch.testing.assert_close(net.prior.draw(noise, y, 1.0), m)


def test_the_estimate_under_a_laplace_prior_has_its_divergence_as_mean():
    net = model(prior="laplace")
    out = net(images(), samples=4000, seed=2)
    q = torch.distributions.Normal(out.mu, torch.exp(out.logvar / 2))
    each = Laplace().kl_of_each(out.mu, out.logvar, None)
    torch.testing.assert_close(out.kl, each.sum(1), rtol=0, atol=0.1)
    z = torch.linspace(-40, 40, 400_001, dtype=torch.float64)
    log_ratio = q.log_prob(z.view(-1, 1, 1)) - Laplace().log_prob(z, None).view(-1, 1, 1)
    exact = (q.log_prob(z.view(-1, 1, 1)).exp() * log_ratio).sum(0) * (z[1] - z[0])
    torch.testing.assert_close(each, exact)
    out.elbo.sum().backward()


def test_draws_of_the_laplace_prior_have_its_distribution_in_the_tails_too():
    noise = torch.tensor([-8.0, -1.0, 0.0, 0.5, 20.0], dtype=torch.float64)
    z = Laplace().draw(noise, None, 1.0)
    laplace, normal = torch.distributions.Laplace(0.0, 1.0), torch.distributions.Normal(0.0, 1.0)
    torch.testing.assert_close(laplace.cdf(z[:4]), normal.cdf(noise[:4]))
    assert 200 < z[4] < 210


@LIKELIHOODS
def test_log_prob_approaches_the_integral_over_a_grid(likelihood):
    levels = 2 if likelihood == "bernoulli" else LEVELS
    net = model(latent_dim=1, likelihood=likelihood, levels=levels)
    with torch.no_grad():
        for parameter in net.decoder.parameters():
            parameter.mul_(2)
    x = images(3, levels=levels)
    z = torch.linspace(-8, 8, 2001, dtype=torch.float64)[:, None]
    with torch.no_grad():
        each = [net.pixels.log_mass(net.decoder(z), one.expand(2001, *SHAPE)) for one in x]
    log_prior = -0.5 * (math.log(2 * math.pi) + z[:, 0].square())
    exact = torch.stack([torch.logsumexp(e + log_prior, 0) for e in each]) + math.log(16 / 2000)
    got = net.log_prob(x, samples=2000, seed=1)
    torch.testing.assert_close(got, exact, rtol=0, atol=0.1)
    bits = net.bits_per_dim(x, samples=2000, seed=1)
    torch.testing.assert_close(bits, -got / (12 * math.log(2)))
    assert torch.equal(net.score(x, samples=2, seed=3), -net.log_prob(x, samples=2, seed=3))


def test_more_draws_are_a_tighter_bound_and_one_is_the_elbo_of_its_draw():
    net = model()
    x = images(64)
    with torch.no_grad():
        net.encoder.body[-1].bias.add_(1)  # a posterior that is far from the true one
        bounds = [net.log_prob(x, samples=k, seed=1).mean() for k in (1, 5, 50)]
    assert bounds[0] < bounds[1] < bounds[2]


@EACH
def test_log_prob_is_differentiable_and_a_function_of_its_seed(kind):
    net = model(kind)
    x, y = images(), labels(net)
    a, b = net.log_prob(x, y, samples=2, seed=5), net.log_prob(x, y, samples=2, seed=5)
    assert torch.equal(a, b) and not torch.equal(a, net.log_prob(x, y, samples=2, seed=6))
    a.sum().backward()
    assert all(p.grad is not None for p in net.encoder.parameters())


# pixels


def every_image(levels):
    return torch.cartesian_prod(*[torch.arange(levels)] * 4).view(-1, 1, 2, 2)


@pytest.mark.parametrize(
    "pixels, spread",
    [
        (BernoulliPixels((1, 2, 2), 2), 1.0),
        (GaussianPixels((1, 2, 2), 4), 1.0),
        (GaussianPixels((1, 2, 2), 4, "pixel"), 3.0),
        (GaussianPixels((1, 2, 2), 4, -3.0), 1.0),
        (LogisticMixturePixels((1, 2, 2), 4, 2), 1.0),
    ],
)
def test_masses_of_levels_add_up_to_one(pixels, spread):
    params = torch.randn(1, pixels.out, 2, 2, dtype=torch.float64) * spread
    x = every_image(pixels.levels)
    nats = pixels.log_mass(params.expand(len(x), -1, -1, -1), x)
    torch.testing.assert_close(nats.exp().sum(), torch.ones((), dtype=torch.float64))
    if not pixels.nll_is_of_levels:
        return
    torch.testing.assert_close(pixels.nll(params.expand(len(x), -1, -1, -1), x), -nats)


@pytest.mark.parametrize("colors", [1, 2, 3])
@LIKELIHOODS
def test_draws_of_pixels_have_the_mean_that_is_told(likelihood, colors):
    shape = (colors, 2, 3)
    kinds = {
        "bernoulli": BernoulliPixels,
        "gaussian": GaussianPixels,
        "dmol": LogisticMixturePixels,
    }
    pixels = kinds[likelihood](shape, 2 if likelihood == "bernoulli" else 256)
    params = torch.randn(1, pixels.out, 2, 3, dtype=torch.float64) / 2
    if likelihood == "dmol":
        params = params - 2  # narrow: little mass beyond the ends, where the mean of bins differs
        params[:, : pixels.components] += 2
    drawn = pixels.draw(params.expand(20_000, -1, -1, -1), seed=3)
    if likelihood != "dmol":
        torch.testing.assert_close(drawn.mean(0), pixels.mean(params)[0], rtol=0, atol=0.04)
    codes = pixels.images(drawn)
    assert codes.dtype == torch.int64 and codes.shape == (20_000, *shape)
    assert codes.min() >= 0 and codes.max() < pixels.levels


@pytest.mark.parametrize("colors, coupled", [(1, True), (2, False), (3, True)])
def test_the_mean_of_a_narrow_mixture_is_that_of_its_draws(colors, coupled):
    pixels = LogisticMixturePixels((colors, 1, 1), 256, components=2)
    params = torch.randn(1, pixels.out, 1, 1, dtype=torch.float64) / 4
    parts = pixels._with_colours(params) if not coupled else params
    if coupled and colors == 3:
        parts[:, 2:].unflatten(1, (3, 3, 2))[:, :, 1] = -4
    else:
        parts[:, 4:6] = -4
    drawn = pixels.draw(params.expand(20_000, -1, -1, -1), seed=3).mean(0)
    torch.testing.assert_close(drawn, pixels.mean(params)[0], rtol=0, atol=0.02)


def test_a_gaussian_loses_no_digits_in_its_tails():
    pixels = GaussianPixels((1, 1, 1), 256, -8.0)
    params = torch.full((2, 1, 1, 1), -1.0, dtype=torch.float64)
    codes = torch.tensor([255, 128]).view(2, 1, 1, 1)
    nats = pixels.log_mass(params, codes)
    std = math.exp(-4)
    z = (2 - 1 / 255) / std
    assert nats.isfinite().all()
    assert nats[0].item() == pytest.approx(
        -z * z / 2 - math.log(z * math.sqrt(2 * math.pi)), rel=1e-5
    )


def test_a_learned_variance_stays_above_that_of_a_bin():
    pixels = GaussianPixels((1, 2, 2), 17)
    with torch.no_grad():
        pixels.logvar.fill_(-50)
    _, logvar = pixels._split(torch.zeros(1, 1, 2, 2))
    assert logvar.item() == pytest.approx(math.log((2 / 16) ** 2 / 12), abs=1e-4)


# samples and latent space


@EACH
@pytest.mark.parametrize("pixels", ["mean", "draw"])
def test_sample_i_of_a_seed_is_the_same_whatever_is_drawn_with_it(kind, pixels):
    net = model(kind).float().train()
    y = labels(net, 40)
    whole = net.sample(40, y, seed=1, pixels=pixels)
    assert whole.shape == (40, *SHAPE) and whole.dtype == torch.int64
    assert 0 <= whole.min() and whole.max() < LEVELS and net.training
    part = None if y is None else y[13:33]
    assert torch.equal(net.sample(20, part, seed=1, first_index=13, pixels=pixels), whole[13:33])
    condition = None if y is None else y[:3]
    assert torch.equal(
        net.sample(3, condition=condition, seed=1, pixels=pixels, batch=2), whole[:3]
    )
    assert not torch.equal(net.sample(40, y, seed=2, pixels=pixels), whole)
    assert net.sample(0, None if y is None else y[:0]).shape == (0, *SHAPE)


def test_one_label_for_all_samples():
    net = model(ConditionalVAE, prior="class")
    assert torch.equal(net.sample(5, 1, seed=0), net.sample(5, torch.ones(5).long(), seed=0))


def test_temperature_scales_the_prior():
    net = model()
    assert len(net.sample(20, temperature=1e-6, seed=0).unique(dim=0)) == 1
    assert len(net.sample(20, temperature=30.0, seed=0).unique(dim=0)) > 1


@EACH
def test_ways_between_images_begin_and_end_at_their_reconstructions(kind):
    net = model(kind)
    x, y = images(), labels(net)
    a, b = x[:2], x[2:]
    condition = None if y is None else y[:2]
    for mode in ("linear", "spherical"):
        strip = net.interpolate(a, b, 5, mode, condition=condition)
        assert strip.shape == (2, 5, *SHAPE)
        assert torch.equal(strip[:, 0], net.reconstruct(a, condition))
        assert torch.equal(strip[:, -1], net.reconstruct(b, condition))
    z = net.latent(a, condition).detach().clone()
    rows = net.traverse(a, 1, (-2, 2), 4, condition=condition)
    assert rows.shape == (2, 4, *SHAPE)
    z[:, 1] = -2
    assert torch.equal(rows[:, 0], net.decode(z, condition))
    assert torch.equal(
        net.latent_arithmetic(a, b, b, condition=condition), net.reconstruct(a, condition)
    )


def test_a_spherical_way_keeps_the_length():
    from fastgen.models.latent_space import _slerp

    a, b = torch.tensor([[3.0, 0.0, 0.0]]), torch.tensor([[0.0, 3.0, 0.0]])
    t = torch.linspace(0, 1, 7)[:, None]
    way = _slerp(a, b, t)
    torch.testing.assert_close(way.norm(dim=1), torch.full((7,), 3.0))
    torch.testing.assert_close(way[3], torch.tensor([3.0, 3.0, 0.0]) / math.sqrt(2))
    torch.testing.assert_close(_slerp(a, a, t), a.expand(7, 3))  # no arc
    torch.testing.assert_close(_slerp(a, 0 * a, t)[-1:], 0 * a)


def test_active_units_are_those_that_tell_something():
    net = model()
    with torch.no_grad():
        last = net.encoder.body[-1]
        last.weight[1].zero_(), last.bias[1].zero_()  # mu_1 and logvar_1 are 0: the prior
        last.weight[D + 1].zero_(), last.bias[D + 1].zero_()
    kl = net.kl_per_dimension(images())
    assert kl.shape == (D,) and kl[1] == 0
    assert net.active_units(images()) == int((kl > 0.01).sum()) < D


# conditional densities


def test_classify_is_bayes_rule_and_the_score_the_mean_over_classes():
    net = model(ConditionalVAE)
    x = images()
    each = [net.log_prob(x, torch.full((4,), y), samples=3, seed=0) for y in range(CLASSES)]
    joint = torch.stack(each, 1)
    got = net.classify(x, samples=3)
    torch.testing.assert_close(got, joint.log_softmax(1).detach())
    weights = torch.tensor([3.0, 1.0])
    given = net.classify(x, weights, samples=3)
    torch.testing.assert_close(given, (joint + weights.log()).log_softmax(1).detach())
    score = -torch.logsumexp(joint - math.log(CLASSES), 1).detach()
    torch.testing.assert_close(net.score(x, samples=3), score)
    torch.testing.assert_close(net.score(x, labels(net), samples=3), -joint[range(4), labels(net)])


def test_images_without_labels_are_one_class():
    net = model(ConditionalVAE, classes=None, prior="class")
    assert net.prior.mu.shape == (1, D)
    net(images()).elbo.sum().backward()
    assert net.sample(2, seed=0).shape == (2, *SHAPE)
    with pytest.raises(ValueError, match="classes must be given to classify"):
        net.classify(images())


# one's own networks


class Encoder(nn.Module):
    def __init__(self, pair):
        super().__init__()
        self.mu, self.logvar, self.pair = nn.Linear(12, D), nn.Linear(12, D), pair

    def forward(self, x):
        parts = self.mu(x.flatten(1)), self.logvar(x.flatten(1))
        return parts if self.pair else torch.cat(parts, 1)


def test_ones_own_networks_give_a_pair_or_a_tensor_and_flat_or_shaped_pixels(tmp_path):
    sizes = {"shape": SHAPE, "levels": 2, "likelihood": "bernoulli"}
    torch.manual_seed(0)
    a = VAE(Encoder(True), nn.Linear(D, 12), D, **sizes)
    b = VAE(Encoder(False), nn.Sequential(nn.Linear(D, 12), nn.Unflatten(1, SHAPE)), D, **sizes)
    b.load_state_dict(dict(zip(b.state_dict(), a.state_dict().values(), strict=True)))
    x = images(levels=2)
    assert torch.equal(a(x, seed=1).elbo, b(x, seed=1).elbo)
    assert a.config["encoder"] == "Encoder" and a.config["decoder"] == "Linear"
    checkpoint.save(a, tmp_path)
    with pytest.raises(ValueError, match=r"your own module Encoder, .*load\(directory, model\)"):
        checkpoint.load(tmp_path)
    again = checkpoint.load(tmp_path, VAE(Encoder(True), nn.Linear(D, 12), D, **sizes))
    assert torch.equal(again(x, seed=1).elbo, a(x, seed=1).elbo)


def test_real_valued_images_have_a_density_and_no_bits():
    net = model(levels=None)
    assert net.config["likelihood"] == "gaussian"
    x = torch.randn(4, *SHAPE, dtype=torch.float64)
    out = net(x)
    assert out.nll.isfinite().all() and net.log_prob(x).shape == (4,)
    assert net.reconstruct(x).dtype == net.sample(2).dtype == torch.float64
    with pytest.raises(ValueError, match="a density, no probability, .* levels=None"):
        net.bits_per_dim(x)
    with pytest.raises(ValueError, match="floats more than 0.001 from one"):
        model(likelihood="gaussian").bits_per_dim(x)


def test_levels_and_floats_on_their_scale_are_the_same_images():
    for likelihood in ("bernoulli", "gaussian", "dmol"):
        net, x = model(likelihood=likelihood), images()
        scaled = net.pixels.scaled(x, torch.float64)
        torch.testing.assert_close(net(x, seed=1).elbo, net(scaled, seed=1).elbo)
        assert torch.equal(net.pixels.images(scaled), x)


def test_a_bernoulli_of_many_levels_is_a_loss_and_no_probability():
    net = model(likelihood="bernoulli")
    assert net(images()).elbo.isfinite().all()
    for method in (net.bits_per_dim, net.log_prob, net.score):
        with pytest.raises(ValueError, match="of 2 levels alone, got 5 levels; use likelihood='d"):
            method(images())


def test_the_default_likelihood_fits_the_levels():
    assert model(levels=2).config["likelihood"] == "bernoulli"
    assert model(levels=17).config["likelihood"] == "dmol"


# training


@EACH
@LIKELIHOODS
def test_training_lowers_the_loss_and_logs_what_it_consists_of(kind, likelihood, tmp_path):
    net = model(kind, likelihood=likelihood).float()
    settings = SETTINGS | {"steps": 60, "evaluations": 3, "lr": 0.01, "batch_size": 16}
    result = train(net, data(), out=tmp_path, **settings)
    rows = read_log(tmp_path / LOG)
    assert rows[0]["train_loss"] > rows[-1]["train_loss"]
    assert result.test["elbo"] == pytest.approx(-result.test["nll"] - result.test["kl"], rel=1e-5)
    kl = sum(rows[-1][f"test_kl_{d}"] for d in range(D))
    assert kl == pytest.approx(result.test["kl"], rel=1e-4)
    assert 0 <= result.test["active_units"] <= D
    if likelihood == "bernoulli":
        assert "bits_per_dim" not in result.test
    else:
        assert 0 < result.test["bits_per_dim"] < 4
        known = not math.isnan(rows[-1]["train_bits_per_dim"])
        assert known == (likelihood == "dmol")


def test_the_weight_of_the_divergence_warms_up(tmp_path):
    net = model(beta=4.0, kl_warmup=0.5)
    objective = net.objective(net, lr=0.0, weight_decay=0.0, clip_grad=1.0)
    weights = []
    for objective.done in (0.0, 0.25, 0.5, 0.9):
        weights.append(objective.weight)
    assert weights == [0.0, 2.0, 4.0, 4.0]
    objective.done = 0.25
    codes = data().train.images[:8].long()
    torch.manual_seed(0)
    figures = objective.step(codes, None)
    assert figures["loss"] == pytest.approx((figures["nll"] + 2 * figures["kl"]).item(), rel=1e-6)
    with torch.no_grad():
        figures = objective.evaluate(codes, None)  # the loss that training comes to
    assert figures["loss"] == pytest.approx((figures["nll"] + 4 * figures["kl"]).item(), rel=1e-6)


@EACH
def test_an_interrupted_training_goes_on_bit_for_bit(kind, tmp_path):
    settings = SETTINGS | {"steps": 8}
    options = {"kl_warmup": 0.7, "free_bits": 0.1}
    train(model(kind, **options), data(), out=tmp_path / "whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        stopping = {"after_step": interrupt_after(3)}
        train(model(kind, **options), data(), out=tmp_path / "parts", **settings, **stopping)
    train(model(kind, 3, **options), data(), out=tmp_path / "parts", resume=True, **settings)
    assert_equal_bits(state_of(tmp_path / "whole")[0], state_of(tmp_path / "parts")[0])


@EACH
def test_config_rebuilds_the_model(kind, tmp_path):
    net = model(kind, beta=4.0, gaussian_logvar="-2", likelihood="gaussian").float()
    checkpoint.save(net, tmp_path)
    again = checkpoint.load(tmp_path)
    assert type(again) is kind and again.config == json.loads(json.dumps(net.config))
    x, y = images(), labels(net)
    assert torch.equal(again(x, y, seed=1).elbo, net.eval()(x, y, seed=1).elbo)
    assert kind in MODELS.values()


@pytest.mark.parametrize("name", ["vae", "conditional-vae"])
def test_one_command_trains_and_one_samples(name, tmp_path, capsys):
    out = tmp_path / "run"
    flags = "--latent-dim 2 --width 8 --batch-size 4 --test-images 20 --grids 1 --kl-warmup 0.5"
    assert cli.main(f"train {name} --data digits --out {out} --steps 4 {flags}".split()) == 0
    text = capsys.readouterr().out
    assert f"{name}: " in text and "bits/dim" in text and "kl_0" not in text
    assert (out / "samples" / "step-0000004.png").exists()
    assert (out / "reconstructions" / "step-0000004.png").exists()
    label = "--label 3" if name == "conditional-vae" else ""
    assert cli.main(f"sample {out} -n 6 {label} --out {tmp_path}/a.npy".split()) == 0
    drawn = np.load(tmp_path / "a.npy")
    assert drawn.shape == (6, 1, 8, 8) and 0 <= drawn.min() and drawn.max() <= 16
    assert cli.main(f"train {name} --out {out} --steps 6 --resume".split()) == 0


@EACH
def test_colours_and_convolutions(kind):
    shape = (3, 8, 9)
    net = model(kind, shape=shape, net="conv", layers=1).float()
    x, y = images(shape=shape), labels(net)
    net(x, y).elbo.mean().backward()
    assert net.reconstruct(x, y).shape == net.sample(4, y).shape == x.shape


def test_a_step_compiles():
    net = model().float()
    x = images()

    def loss(x):
        out = net(x, seed=1)
        return (out.nll + out.kl).mean()

    expected = loss(x)
    torch.testing.assert_close(torch.compile(loss, backend="eager", fullgraph=True)(x), expected)


@LIKELIHOODS
@pytest.mark.parametrize("prior", ["normal", "laplace"])
def test_autocast_computes_the_bound_in_float32(likelihood, prior):
    net, x = model(likelihood=likelihood, prior=prior).float(), images()
    expected = net(x, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(x, seed=1)
        out.elbo.mean().backward()
    assert out.nll.dtype == out.kl.dtype == torch.float32
    torch.testing.assert_close(out.elbo, expected.elbo, rtol=0.03, atol=0.3)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


# bad input


@EACH
@pytest.mark.parametrize(
    "options, named",
    [
        (dict(shape=(4, 3)), r"shape must be \(C, H, W\), got"),
        (dict(latent_dim=0), "latent_dim must be a positive int, got 0"),
        (dict(beta=-1.0), "beta must be a number >= 0, got -1"),
        (dict(free_bits=-0.5), "free_bits must be a number >= 0, got -0.5"),
        (dict(beta=math.nan), "beta must be a number >= 0, got nan"),
        (dict(kl_warmup=1.5), r"kl_warmup must lie in 0 .. 1, got 1.5"),
        (dict(likelihood="poisson"), "likelihood must be of bernoulli, gaussian, dmol, got"),
        (dict(prior="uniform"), "prior must be of .*, got 'uniform'"),
        (dict(gaussian_logvar="x", likelihood="gaussian"), "gaussian_logvar must be 'learned', 'p"),
        (dict(levels=None, likelihood="dmol"), "likelihood 'dmol' needs levels >= 2, got None"),
        (dict(width=0), "width must be a positive int, got 0"),
    ],
)
def test_bad_arguments_say_what_to_do(kind, options, named):
    with pytest.raises(ValueError, match=f"fastgen.models.{kind.__name__}: {named}"):
        model(kind, **options)


def test_a_laplace_prior_has_no_free_bits():
    with pytest.raises(ValueError, match="free_bits need prior='normal', got 0.1"):
        model(prior="laplace", free_bits=0.1)


@EACH
def test_bad_input_says_what_to_do(kind):
    net = model(kind)
    x, y = images(), labels(net)
    with pytest.raises(ValueError, match=r"images must be \(B, 1, 4, 3\), got \(4, 1, 4, 2\)"):
        net(x[..., :2], y)
    with pytest.raises(ValueError, match="images must hold levels in 0 .. 4, got 5"):
        net(torch.full_like(x, 5), y)
    with pytest.raises(TypeError, match="images must be a tensor, got list"):
        net([1], y)
    with pytest.raises(ValueError, match=r"z must be a tensor \(B, 3\), got \(4, 2\)"):
        net.decode(torch.zeros(4, 2), y)
    with pytest.raises(ValueError, match="samples must be a positive int, got 0"):
        net.log_prob(x, y, samples=0)
    with pytest.raises(ValueError, match="mode must be of linear, spherical, got 'cubic'"):
        net.interpolate(x, x, mode="cubic", condition=y)
    with pytest.raises(ValueError, match="dim must be an int in 0 .. 2, got 3"):
        net.traverse(x, 3, condition=y)
    with pytest.raises(ValueError, match="n must not be negative, got -1"):
        net.sample(-1)
    with pytest.raises(ValueError, match="temperature must be positive"):
        net.sample(1, None if y is None else y[:1], temperature=-1.0)


def test_bad_labels_say_what_to_do():
    net, x = model(ConditionalVAE), images()
    for condition, error, named in (
        (None, ValueError, r"condition must be int64 labels \(4,\), got NoneType"),
        (torch.zeros(3).long(), ValueError, r"labels \(4,\), got \(3,\)"),
        (torch.zeros(4), TypeError, "got torch.float32; use .long"),
        (torch.full((4,), CLASSES), ValueError, f"labels in 0 .. {CLASSES - 1}, got {CLASSES}"),
    ):
        with pytest.raises(error, match=named):
            net(x, condition)
    with pytest.raises(ValueError, match="class_prior must be 2 positive numbers, got"):
        net.classify(x, torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="condition is another name of y, got both"):
        net.sample(1, 0, condition=torch.zeros(1).long())
    with pytest.raises(ValueError, match="condition must be None, got Tensor; ConditionalVAE"):
        model()(x, torch.zeros(4).long())


def test_networks_that_do_not_fit_say_what_they_must_give():
    sizes = {"shape": SHAPE, "levels": 2}
    flat = nn.Flatten()
    wrong = VAE(nn.Sequential(flat, nn.Linear(12, D)), None, D, **sizes)
    named = r"encoder must give \(4, 6\), means .*, or a pair of \(4, 3\), got \(4, 3\)"
    with pytest.raises(ValueError, match=named):
        wrong(images(levels=2))
    wrong = VAE(None, nn.Linear(D, 5), D, **sizes)
    named = r"decoder must give \(4, 1, 4, 3\), 1 numbers for each pixel for likelihood='bernoul"
    with pytest.raises(ValueError, match=named):
        wrong(images(levels=2))
    with pytest.raises(TypeError, match="encoder must be an nn.Module, got function"):
        VAE(lambda x: x, None, D, **sizes)


def test_priors_start_as_the_standard_normal():
    table = ClassTable(D, 2)
    y = torch.tensor([0, 1])
    mu, logvar = torch.randn(2, D), torch.randn(2, D)
    expected = StandardNormal().kl_of_each(mu, logvar, y)
    torch.testing.assert_close(table.kl_of_each(mu, logvar, y), expected)
