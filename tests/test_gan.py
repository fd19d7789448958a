"""GAN and ConditionalGAN, and what WGAN has of them: losses, updates, samples, latent vectors."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from adversaries import KINDS, LEVELS, SHAPE, D, data, images, labels, model, same, state
from test_train import assert_equal_bits, interrupt_after, state_of
from tiny import CLASSES
from torch import nn

import fastgen
from fastgen import checkpoint, cli
from fastgen.log import read_log
from fastgen.models import GAN, MODELS, ConditionalGAN
from fastgen.models.gan_losses import LOSSES
from fastgen.train import LOG, train

EACH = pytest.mark.parametrize("kind", KINDS)
SETTINGS = {"batch_size": 4, "evaluations": 2, "grids": 0, "progress": False}
pytestmark = pytest.mark.filterwarnings("ignore:fastgen.* running the plain PyTorch reference")


# losses

REAL, FAKE = torch.tensor([2.0, -0.5, 0.1]), torch.tensor([-3.0, 0.7, 1.5])


def test_losses_are_their_formulas():
    d_real, d_fake = torch.sigmoid(REAL), torch.sigmoid(FAKE)
    cross_entropy = -(d_real.log().mean() + (1 - d_fake).log().mean())
    expected = {
        "minimax": (cross_entropy, (1 - d_fake).log().mean()),
        "non_saturating": (cross_entropy, -d_fake.log().mean()),
        "hinge": (
            (1 - REAL).clamp_min(0).mean() + (1 + FAKE).clamp_min(0).mean(),
            -FAKE.mean(),
        ),
        "least_squares": (
            ((REAL - 1) ** 2).mean() / 2 + (FAKE**2).mean() / 2,
            ((FAKE - 1) ** 2).mean() / 2,
        ),
        "wasserstein": (FAKE.mean() - REAL.mean(), -FAKE.mean()),
    }
    assert expected.keys() == LOSSES.keys()
    for name, (critic, generator) in expected.items():
        torch.testing.assert_close(LOSSES[name][0](REAL, FAKE), critic)
        torch.testing.assert_close(LOSSES[name][1](FAKE), generator)


def test_the_minimax_gradient_vanishes_where_the_other_is_largest():
    fake = torch.tensor([-20.0, 0.0, 20.0], requires_grad=True)
    gradients = {}
    for name in ("minimax", "non_saturating"):
        (gradient,) = torch.autograd.grad(3 * LOSSES[name][1](fake), fake)
        gradients[name] = gradient
    d = torch.sigmoid(fake.detach())
    torch.testing.assert_close(gradients["minimax"], -d)
    torch.testing.assert_close(gradients["non_saturating"], d - 1)


def test_losses_are_finite_for_any_logits():
    huge = torch.tensor([-1e4, 1e4], requires_grad=True)
    for critic, generator in LOSSES.values():
        (critic(huge, huge) + generator(huge)).backward()
    assert huge.grad.isfinite().all()


# updates


@EACH
def test_a_step_changes_its_own_network_alone(kind):
    net = KINDS[kind]()
    y = labels(net)
    before = state(net.generator, net.average), state(net.critic)
    net.critic_step(net.critic_optimizer(lr=0.01), images(), y)
    assert same(before[0], state(net.generator, net.average))
    assert not same(before[1], state(net.critic))
    before = state(net.critic), state(net.generator), state(net.average)
    net.zero_grad()
    net.generator_step(net.generator_optimizer(lr=0.01), 4, y)
    assert same(before[0], state(net.critic)) and not same(before[1], state(net.generator))
    assert all(p.grad is None for p in net.critic.parameters())
    moved = [b.lerp(s, 0.01) for b, s in zip(before[2], state(net.generator), strict=True)]
    for a, b in zip(state(net.average), moved, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("loss", ["non_saturating", "minimax", "hinge", "least_squares"])
def test_steps_descend_their_losses(loss):
    net = model(loss=loss)
    x = images(16)
    optimizer = net.critic_optimizer(lr=0.01)
    torch.manual_seed(0)
    first = net.critic_step(optimizer, x)["critic_loss"]
    for _ in range(20):
        last = net.critic_step(optimizer, x)["critic_loss"]
    assert last < first
    optimizer = net.generator_optimizer(lr=0.01)
    first = net.generator_step(optimizer, 16)["generator_loss"]
    for _ in range(20):
        last = net.generator_step(optimizer, 16)["generator_loss"]
    assert last < first and not last.requires_grad


@EACH
def test_real_and_generated_images_meet_the_same_critic(kind):
    net = KINDS[kind]()
    y = labels(net)
    x = net.pixels.scaled(images(), torch.float32)
    fake = torch.rand(4, *SHAPE)
    together = net._judged_both(x, fake, y)
    net._joins = False  # as with one's own critic
    for a, b in zip(together, net._judged_both(x, fake, y), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(net.discriminate(images(), y), together[0])
    torch.testing.assert_close(net.score(images(), y), -together[0].detach())


def test_clip_grad_bounds_the_gradient():
    net = model()
    optimizer = torch.optim.SGD(net.critic.parameters(), lr=1.0)
    before = state(net.critic)
    net.critic_step(optimizer, images(), clip_grad=1e-3)
    moved = [a - b for a, b in zip(state(net.critic), before, strict=True)]
    assert math.sqrt(sum(m.square().sum() for m in moved)) == pytest.approx(1e-3, rel=1e-2)


# samples and latent vectors


@EACH
@pytest.mark.parametrize("truncation", [None, 0.7])
def test_sample_i_of_a_seed_is_the_same_whatever_is_drawn_with_it(kind, truncation):
    net = KINDS[kind]().train()
    y = labels(net, 40)
    whole = net.sample(40, y, truncation, seed=1)
    assert whole.shape == (40, *SHAPE) and whole.dtype == torch.int64
    assert 0 <= whole.min() and whole.max() < LEVELS and net.training
    part = None if y is None else y[13:33]
    assert torch.equal(net.sample(20, part, truncation, seed=1, first_index=13), whole[13:33])
    condition = None if y is None else y[:3]
    got = net.sample(3, None, truncation, condition=condition, seed=1, batch=2)
    assert torch.equal(got, whole[:3])
    assert not torch.equal(net.sample(40, y, truncation, seed=2), whole)
    assert net.sample(0, None if y is None else y[:0]).shape == (0, *SHAPE)
    z = net.latents(40, truncation, seed=1)
    torch.testing.assert_close(net.decode(z, y), whole)
    assert torch.equal(net.latents(5, truncation, seed=1, first_index=9), z[9:14])
    if truncation is None:
        torch.testing.assert_close(z[:16], fastgen.randn(16, D, seed=1))
    assert net.latents(0).shape == (0, D)


def test_truncated_latents_have_the_truncated_normal_distribution():
    net = model(latent_dim=50)
    for most in (0.5, 2.0):
        z = net.latents(2000, most, seed=3).double().flatten()
        assert z.abs().max() <= most
        phi = torch.distributions.Normal(0.0, 1.0)
        low, high = (phi.cdf(torch.tensor(t, dtype=torch.float64)) for t in (-most, most))
        u = ((phi.cdf(z) - low) / (high - low)).sort().values
        steps = (torch.arange(len(u)) + 0.5) / len(u)
        assert (u - steps).abs().max() < 1.95 / math.sqrt(len(u))  # Kolmogorov, p = 0.001
    wide = net.latents(16, 5.7, seed=3)
    assert wide.std() == pytest.approx(1, abs=0.1)


def test_temperature_scales_the_latents():
    net = model()
    torch.testing.assert_close(net.latents(8, seed=1, temperature=0.5), net.latents(8, seed=1) / 2)
    assert len(net.sample(20, temperature=1e-6, seed=0).unique(dim=0)) == 1


@EACH
def test_ways_between_latents_begin_and_end_there(kind):
    net = KINDS[kind]()
    a, b = net.latents(2, seed=1), net.latents(2, seed=2)
    y = labels(net, 2)
    for mode in ("linear", "spherical"):
        strip = net.interpolate(a, b, 5, mode, condition=y)
        assert strip.shape == (2, 5, *SHAPE)
        assert torch.equal(strip[:, 0], net.decode(a, y))
        assert torch.equal(strip[:, -1], net.decode(b, y))
    assert torch.equal(net.latent_arithmetic(a, b, b, condition=y), net.decode(a, y))


def test_samples_are_of_the_average_in_eval_mode():
    shape = (1, 8, 8)  # batch norm
    net = model(shape=shape)
    for _ in range(3):
        net.generator_step(net.generator_optimizer(lr=0.1), 8)
    z = net.latents(4, seed=0)
    made = net.pixels.images(net.average.eval()(z))
    assert torch.equal(net.train().decode(z), made)
    assert not torch.equal(net.pixels.images(net.generator.eval()(z)), made)
    plain = model(shape=shape, ema=None)
    assert plain.average is None
    assert torch.equal(plain.decode(z), plain.pixels.images(plain.generator.eval()(z)))


def test_one_label_for_all_samples_which_the_networks_are_given():
    for conditioning in ("concat", "projection"):
        net = model(ConditionalGAN, conditioning=conditioning)
        assert torch.equal(net.sample(5, 1, seed=0), net.sample(5, torch.ones(5).long(), seed=0))
        zeros, ones = torch.zeros(4).long(), torch.ones(4).long()
        z = net.latents(4, seed=0)
        assert not torch.equal(net.generator(z, zeros), net.generator(z, ones))
        a, b = net.discriminate(images(), zeros), net.discriminate(images(), ones)
        assert not torch.isclose(a, b).any()


def test_the_projection_is_an_inner_product_with_the_features():
    net = model(ConditionalGAN, conditioning="projection").critic
    x, y = torch.rand(4, *SHAPE), torch.arange(4) % CLASSES
    features = net.features(x)
    expected = [
        net.head(f)[0] + net.embedding.weight[k] @ f for f, k in zip(features, y, strict=True)
    ]
    torch.testing.assert_close(net(x, y), torch.stack(expected))


def test_real_valued_images_stay_floats():
    net = model(levels=None)
    x = net.sample(3, seed=0)
    assert x.dtype == torch.float32 and x.abs().max() <= 1
    assert net.critic_step(net.critic_optimizer(), x)["critic_loss"].isfinite()


def test_levels_and_floats_on_their_scale_are_the_same_images():
    net, x = model(), images()
    torch.testing.assert_close(net.discriminate(x), net.discriminate(x * (2 / (LEVELS - 1)) - 1))


@pytest.mark.parametrize("shape", [(1, 1, 2), (3, 4, 5), (1, 8, 8), (3, 9, 14), (3, 32, 16)])
@pytest.mark.parametrize("kind", ["gan", "conditional-gan", "wgan-gp"])
def test_default_networks_fit_every_shape(kind, shape):
    net = KINDS[kind](shape=shape, width=4, latent_dim=None)
    x, y = images(3, shape), labels(net, 3)
    assert net.latent_dim == min(64, math.prod(shape))
    net.critic_step(net.critic_optimizer(), x, y)
    net.generator_step(net.generator_optimizer(), 3, y)
    assert net.sample(3, y).shape == x.shape


def test_default_networks_of_64x64():
    net = model(shape=(3, 64, 64), width=32)
    channels = [m.out_channels for m in net.critic.modules() if isinstance(m, nn.Conv2d)]
    assert channels == [32, 64, 128, 256, 512]
    assert net.generator(torch.zeros(2, D)).shape == (2, 3, 64, 64)


# one's own networks


def test_ones_own_networks_give_flat_or_shaped_images_and_scores(tmp_path):
    sizes = {"shape": SHAPE, "levels": LEVELS, "latent_dim": D}
    torch.manual_seed(0)
    a = GAN(nn.Linear(D, 12), nn.Sequential(nn.Flatten(), nn.Linear(12, 1)), **sizes)
    shaped = nn.Sequential(nn.Linear(D, 12), nn.Unflatten(1, SHAPE))
    b = GAN(shaped, nn.Sequential(nn.Flatten(), nn.Linear(12, 1), nn.Flatten(0)), **sizes)
    b.load_state_dict(dict(zip(b.state_dict(), a.state_dict().values(), strict=True)))
    assert a.discriminator is a.critic
    assert torch.equal(a.sample(4, seed=1), b.sample(4, seed=1))
    assert torch.equal(a.discriminate(images()), b.discriminate(images()))
    assert a.config["generator"] == "Linear" and a.config["discriminator"] == "Sequential"
    checkpoint.save(a, tmp_path)
    with pytest.raises(ValueError, match=r"your own module Linear, .*load\(directory, model\)"):
        checkpoint.load(tmp_path)
    own = nn.Linear(D, 12), nn.Sequential(nn.Flatten(), nn.Linear(12, 1))
    again = checkpoint.load(tmp_path, GAN(*own, **sizes))
    assert torch.equal(again.sample(4, seed=1), a.sample(4, seed=1))


def test_the_batches_of_ones_own_critic_are_real_or_generated():
    critic = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    net = GAN(None, critic, shape=SHAPE, levels=LEVELS, latent_dim=D)
    net.critic_step(net.critic_optimizer(), images())
    assert critic[2].num_batches_tracked == 2


# training


@EACH
def test_training_logs_both_losses_and_how_varied_samples_are(kind, tmp_path):
    net = KINDS[kind]()
    result = train(net, data(), out=tmp_path, **SETTINGS | {"steps": 10, "grids": 1})
    rows = read_log(tmp_path / LOG)
    wasserstein = {"wgan": ["saturation"], "wgan-gp": ["gradient_penalty"]}.get(kind)
    more = [] if wasserstein is None else ["wasserstein", *wasserstein]
    for name in ["critic_loss", "generator_loss", *more]:
        assert math.isfinite(rows[-1][f"train_{name}"])
    assert 0 <= rows[-1]["test_nearness"] <= 1 and rows[-1]["test_spread"] >= 0
    assert {"critic_loss", "generator_loss", *more[:1]} == result.test.keys()
    assert (tmp_path / "samples" / "step-0000010.png").exists()
    assert json.loads((tmp_path / "config.json").read_text())["training"]["batch_size"] == 4


def test_coverage_of_the_rings_is_in_the_log(tmp_path):
    rings = fastgen.data.load("rings")
    net = model(shape=rings.shape, levels=rings.levels, latent_dim=2)
    train(net, rings, out=tmp_path, **SETTINGS | {"steps": 2, "evaluations": 1})
    row = read_log(tmp_path / LOG)[-1]
    assert row["test_modes"] in range(9) and 0 <= row["test_share"] <= 1


@EACH
def test_an_interrupted_training_goes_on_bit_for_bit(kind, tmp_path):
    settings = SETTINGS | {"steps": 13}
    train(KINDS[kind](), data(), out=tmp_path / "whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        stopping = {"after_step": interrupt_after(7)}
        train(KINDS[kind](), data(), out=tmp_path / "parts", **settings, **stopping)
    train(KINDS[kind](seed=3), data(), out=tmp_path / "parts", resume=True, **settings)
    whole, parts = (state_of(tmp_path / name)[0] for name in ("whole", "parts"))
    assert_equal_bits(whole, parts)
    owners = {name.partition("/")[0] for name in whole}
    assert owners == {"model", "critic", "generator"}
    assert any(name.startswith("model/average.") for name in whole)


def test_a_models_own_settings_are_the_defaults(tmp_path):
    train(model(), data(), out=tmp_path, steps=1, evaluations=1, grids=0, progress=False)
    training = json.loads((tmp_path / "config.json").read_text())["training"]
    assert {name: training[name] for name in GAN.train_defaults} == GAN.train_defaults


@EACH
def test_config_rebuilds_the_model(kind, tmp_path):
    net = KINDS[kind](ema=0.5, width=6)
    checkpoint.save(net, tmp_path)
    again = checkpoint.load(tmp_path)
    assert type(again) is type(net) and again.config == json.loads(json.dumps(net.config))
    y = labels(net)
    assert torch.equal(again.sample(4, y, seed=1), net.sample(4, y, seed=1))
    assert type(net) in MODELS.values()


@pytest.mark.parametrize("flags", ["gan --loss hinge", "wgan", "wgan --penalty 10",
                                   "conditional-gan --conditioning projection"])  # fmt: skip
def test_one_command_trains_and_one_samples(flags, tmp_path, capsys):
    out = tmp_path / "run"
    sizes = "--width 4 --batch-size 4 --test-images 20 --grids 1"
    assert cli.main(f"train {flags} --data digits --out {out} --steps 6 {sizes}".split()) == 0
    assert "critic_loss" in capsys.readouterr().out
    assert (out / "samples" / "step-0000006.png").exists()
    label = "--label 3" if "conditional" in flags else ""
    assert cli.main(f"sample {out} -n 6 {label} --out {tmp_path}/a.npy".split()) == 0
    drawn = np.load(tmp_path / "a.npy")
    assert drawn.shape == (6, 1, 8, 8) and 0 <= drawn.min() and drawn.max() <= 16
    name = flags.partition(" ")[0]
    assert cli.main(f"train {name} --out {out} --steps 8 --resume".split()) == 0


# other precisions, compilers


@EACH
def test_autocast_computes_losses_in_float32(kind):
    net = KINDS[kind]()
    y = labels(net)
    torch.manual_seed(1)
    expected = net.critic_loss(images(), y)[0]
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = net.critic_loss(images(), y)[0]
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected, rtol=0.05, atol=0.05)
        net.critic_step(net.critic_optimizer(), images(), y)
        net.generator_step(net.generator_optimizer(), 4, y)
    assert all(p.isfinite().all() for p in net.parameters())


@EACH
def test_float64_throughout(kind):
    net = KINDS[kind]().double()
    y = labels(net)
    loss, _ = net.critic_loss(images(), y)
    assert loss.dtype == net.generator_loss(4, y)[0].dtype == torch.float64


def test_the_critics_loss_compiles():
    net, x = model(), images()
    torch.manual_seed(1)
    expected = net.critic_loss(x)[0]

    def loss(x):
        return net.critic_loss(x)[0]

    torch.manual_seed(1)
    torch.testing.assert_close(torch.compile(loss, backend="eager", fullgraph=True)(x), expected)


# bad input


@EACH
@pytest.mark.parametrize(
    "options, named",
    [
        (dict(shape=(4, 3)), r"shape must be \(C, H, W\), got"),
        (dict(levels=1), "levels must be at least 2, got 1"),
        (dict(latent_dim=0), "latent_dim must be a positive int, got 0"),
        (dict(width=0), "width must be a positive int, got 0"),
        (dict(layers=-1), "layers must be a positive int, got -1"),
        (dict(ema=1.0), r"ema must lie in 0 .. 1, 1 excluded, got 1.0; None"),
        (dict(generator=lambda z: z), "generator must be an nn.Module, got function"),
    ],
)
def test_bad_arguments_say_what_to_do(kind, options, named):
    with pytest.raises((ValueError, TypeError), match=named):
        KINDS[kind](**options)


def test_bad_choices_say_what_to_do():
    with pytest.raises(ValueError, match="fastgen.models.GAN: loss must be of non_saturating, m"):
        model(loss="wasserstein")
    with pytest.raises(ValueError, match="conditioning must be of concat, projection, got 'add'"):
        model(ConditionalGAN, conditioning="add")
    with pytest.raises(ValueError, match="classes must be the number of labels, got None; give"):
        model(ConditionalGAN, classes=None)
    with pytest.raises(ValueError, match="net='conv' needs images of 8x8 or more"):
        model(net="conv")
    with pytest.raises(ValueError, match="layers is for net='mlp', got 2 for 'conv'"):
        model(shape=(1, 8, 8), layers=2)


@EACH
def test_bad_input_says_what_to_do(kind):
    net = KINDS[kind]()
    x, y = images(), labels(net)
    optimizer = net.critic_optimizer()
    with pytest.raises(ValueError, match=r"images must be \(B, 1, 4, 3\), got \(4, 1, 4, 2\)"):
        net.critic_step(optimizer, x[..., :2], y)
    with pytest.raises(ValueError, match="images must hold levels in 0 .. 4, got 5"):
        net.critic_step(optimizer, torch.full_like(x, 5), y)
    with pytest.raises(ValueError, match="all of them the critic's, got others"):
        net.critic_step(net.generator_optimizer(), x, y)
    with pytest.raises(ValueError, match=r"all of them the generator's, .*; generator_optimizer"):
        net.generator_step(optimizer, 4, y)
    with pytest.raises(ValueError, match="all of them the generator's, got others, too"):
        net.generator_step(torch.optim.SGD(net.parameters(), lr=0.1), 4, y)
    frozen = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    with pytest.raises(ValueError, match="must have parameters to train, .* got none"):
        net.generator_step(frozen, 4, y)
    with pytest.raises(ValueError, match="n must be a positive int, got 0"):
        net.generator_step(optimizer, 0, None)
    with pytest.raises(ValueError, match=r"z must be a tensor \(B, 3\), got \(4, 2\)"):
        net.decode(torch.zeros(4, 2), y)
    with pytest.raises(ValueError, match="truncation must be a positive number, got 0"):
        net.sample(1, None if y is None else y[:1], 0)
    with pytest.raises(ValueError, match="b must be as many as a, 4, got 3"):
        net.interpolate(net.latents(4), net.latents(3))
    if y is None:
        with pytest.raises(ValueError, match="condition must be None, got Tensor; ConditionalGAN"):
            net.critic_step(optimizer, x, torch.zeros(4).long())
        return
    with pytest.raises(ValueError, match=r"condition must be int64 labels \(4,\), got NoneType"):
        net.critic_step(optimizer, x)
    with pytest.raises(ValueError, match=f"labels in 0 .. {CLASSES - 1}, got {CLASSES}"):
        net.generator_step(optimizer, 4, torch.full((4,), CLASSES))


def test_networks_that_do_not_fit_say_what_they_must_give():
    sizes = {"shape": SHAPE, "levels": LEVELS, "latent_dim": D}
    wrong = GAN(nn.Linear(D, 5), None, **sizes)
    with pytest.raises(ValueError, match=r"generator must give \(4, 1, 4, 3\), got \(4, 5\)"):
        wrong.generator_loss(4)
    wrong = GAN(None, nn.Flatten(), **sizes)
    named = r"discriminator must give one number for each image, \(4,\) or \(4, 1\), got \(4, 12\)"
    with pytest.raises(ValueError, match=named):
        wrong.discriminate(images())


def test_a_conditional_gan_wants_data_with_labels(capsys, tmp_path):
    flags = f"train conditional-gan --data patches8 --out {tmp_path} --steps 1"
    assert cli.main(flags.split()) == 2
    assert "classes must be the number of labels" in capsys.readouterr().err


def test_least_squares_are_of_one_and_zero():
    ones, zeros = torch.ones(3), torch.zeros(3)
    critic, generator = LOSSES["least_squares"]
    assert critic(ones, zeros) == generator(ones) == 0
    assert critic(zeros, ones) == 1 and F.mse_loss(zeros, ones) / 2 == generator(zeros)
