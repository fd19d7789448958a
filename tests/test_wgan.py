"""WGAN: clipped weights, the gradient penalty, the estimate of the distance."""

import math

import pytest
import torch
from adversaries import LEVELS, SHAPE, D, data, images, model, penalised, same, state
from torch import nn

from fastgen.models import WGAN
from fastgen.optim import ClippedRMSprop
from fastgen.train import train

pytestmark = pytest.mark.filterwarnings("ignore:fastgen.* running the plain PyTorch reference")


def within(module, clip):
    # the bounds of float32
    return all(p.abs().max() <= torch.tensor(clip) for p in module.parameters())


def own(critic, **options):
    return WGAN(None, critic, shape=SHAPE, levels=LEVELS, latent_dim=D, width=8, **options)


@pytest.mark.parametrize("optimizer", ["its own", "plain RMSprop", "SGD"])
def test_weights_are_clipped_after_every_update_of_the_critic(optimizer):
    net = model(WGAN, clip=0.01)
    assert within(net.critic, 0.01)
    kinds = {"plain RMSprop": torch.optim.RMSprop, "SGD": torch.optim.SGD}
    if optimizer == "its own":
        optimizer = net.critic_optimizer(lr=0.004)
        assert isinstance(optimizer, ClippedRMSprop)
    else:
        optimizer = kinds[optimizer](net.critic.parameters(), lr=0.004)
    for _ in range(5):
        before = state(net.critic)
        figures = net.critic_step(optimizer, images())
        assert within(net.critic, 0.01) and not same(before, state(net.critic))
        at = [(p.abs() == torch.tensor(0.01)).double() for p in net.critic.parameters()]
        share = torch.cat([a.flatten() for a in at]).mean()
        assert figures["saturation"].item() == pytest.approx(share.item(), abs=1e-6)
    net.generator_step(net.generator_optimizer(lr=0.1), 4)
    assert not within(net.generator, 0.01)


def test_a_fresh_critic_is_made_smaller_and_not_clipped():
    net, free = model(WGAN, clip=0.01), model(WGAN, penalty=1.0)
    for p, q in zip(net.critic.parameters(), free.critic.parameters(), strict=True):
        torch.testing.assert_close(p, q * (0.01 / q.abs().max()).clamp(max=1))


def test_the_default_clip_is_the_papers_but_for_a_default_mlp():
    assert own(nn.Sequential(nn.Flatten(), nn.Linear(12, 1))).clip == 0.01
    assert model(WGAN, shape=(1, 8, 8)).clip == model(WGAN, shape=(1, 8, 8)).config["clip"] == 0.01
    assert model(WGAN).clip == 0.1 and penalised().clip is None


def test_scales_of_normalisation_layers_are_not_clipped():
    critic = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.LayerNorm(8), nn.Linear(8, 1))
    net = own(critic)
    for optimizer in (net.critic_optimizer(lr=1e-3), torch.optim.SGD(critic.parameters(), 1e-3)):
        net.critic_step(optimizer, images())
        assert within(critic[1], 0.01) and within(critic[3], 0.01)
        assert critic[2].weight.min() > 0.9


def test_the_distance_is_the_difference_of_means():
    net = model(WGAN)
    torch.manual_seed(3)
    loss, figures = net.critic_loss(images())
    torch.manual_seed(3)
    fake = net.generator(net._noise(4, net._like()))
    real = net.pixels.scaled(images(), torch.float32)
    expected = net.critic(real).mean() - net.critic(fake).mean()
    torch.testing.assert_close(figures["wasserstein"], expected)
    torch.testing.assert_close(loss, -expected)


def test_a_clipped_critic_learns_the_distance_and_the_generator_lowers_it():
    net = model(WGAN, clip=0.1)
    x = torch.full((32, *SHAPE), LEVELS - 1)
    critic, generator = net.critic_optimizer(lr=5e-3), net.generator_optimizer(lr=5e-3)
    first = [net.critic_step(critic, x)["wasserstein"] for _ in range(20)][-1]
    for _ in range(60):
        last = net.critic_step(critic, x)["wasserstein"]
        net.generator_step(generator, 32)
    assert first > 0 and last < first / 4


# the gradient penalty


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(12, dtype=torch.float64))

    def forward(self, x):
        return x.flatten(1) @ self.weight


def test_the_penalty_of_a_linear_critic_is_its_weights_norm():
    net = own(Linear(), penalty=7.0).double()
    _, figures = net.critic_loss(images())
    norm = net.critic.weight.norm()
    torch.testing.assert_close(figures["gradient_penalty"], 7 * (norm - 1) ** 2)
    expected = torch.autograd.grad(7 * (norm - 1) ** 2, net.critic.weight)[0]
    got = torch.autograd.grad(figures["gradient_penalty"], net.critic.weight)[0]
    torch.testing.assert_close(got, expected)


class Quadratic(nn.Module):
    """x' A x / 2, whose gradient at x is A x."""

    def __init__(self):
        super().__init__()
        a = torch.randn(12, 12, dtype=torch.float64)
        self.a = nn.Parameter(a + a.T)

    def forward(self, x):
        x = x.flatten(1)
        return ((x @ self.a) * x).sum(1) / 2


def test_the_penalty_is_taken_between_images_of_a_quadratic_critic():
    net = own(Quadratic(), penalty=1.0).double()
    with torch.no_grad():
        real, fake = torch.rand(5, *SHAPE, dtype=torch.float64), torch.rand(5, *SHAPE).double()
    seen = []
    net.critic.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    excess = net._excess(real, fake)
    between = seen[0].flatten(1)
    t = ((between - fake.flatten(1)) / (real - fake).flatten(1)).mean(1, keepdim=True)
    assert ((t >= 0) & (t < 1)).all() and len(t.unique()) == 5
    torch.testing.assert_close(between, fake.flatten(1).lerp(real.flatten(1), t))
    torch.testing.assert_close(excess, ((between @ net.critic.a).norm(dim=1) - 1).square().mean())


def test_the_gradient_of_the_penalty_is_that_of_finite_differences():
    torch.manual_seed(4)
    critic = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    net = own(critic, penalty=3.0).double()
    weight = critic[1].weight

    def penalty():
        torch.manual_seed(5)
        return net.critic_loss(images())[1]["gradient_penalty"]

    (gradient,) = torch.autograd.grad(penalty(), weight)
    for i, j in ((0, 0), (3, 7), (5, 11)):
        ends = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                weight[i, j] += step
            ends.append(penalty().item())
            with torch.no_grad():
                weight[i, j] -= step
        slope = (ends[0] - ends[1]) / 2e-5
        assert slope == pytest.approx(gradient[i, j].item(), rel=1e-6, abs=1e-8)


def test_a_gradient_of_zero_has_a_finite_penalty():
    net = penalised()
    nn.init.zeros_(net.critic.head.weight)
    figures = net.critic_step(net.critic_optimizer(), images())
    assert figures["gradient_penalty"] == 10
    assert all(p.isfinite().all() for p in net.critic.parameters())


def test_the_penalty_makes_the_slope_one():
    net = penalised()
    optimizer = net.critic_optimizer(lr=0.01)
    penalties = [net.critic_step(optimizer, images(32))["gradient_penalty"] for _ in range(100)]
    assert penalties[-1] < penalties[0] / 5


def test_the_papers_optimisers():
    net = model(WGAN, clip=0.01)
    for optimizer, clip in ((net.critic_optimizer(), 0.01), (net.generator_optimizer(), None)):
        assert type(optimizer) is ClippedRMSprop
        assert [group["clip"] for group in optimizer.param_groups] == [clip]
    net = penalised()
    for optimizer in (net.critic_optimizer(lr=3e-4), net.generator_optimizer(lr=3e-4)):
        assert optimizer.param_groups[0]["betas"] == (0.5, 0.9)
        assert optimizer.param_groups[0]["lr"] == 3e-4


def test_the_generator_is_trained_after_every_n_critic_steps(tmp_path):
    net = model(WGAN, n_critic=3, ema=None)
    weights = []
    train(
        net,
        data(),
        out=tmp_path,
        steps=7,
        grids=0,
        evaluations=1,
        progress=False,
        schedule="constant",
        after_step=lambda step: weights.append(state(net.generator)),
    )
    assert [not same(a, b) for a, b in zip(weights, weights[1:], strict=False)] == [
        step in (3, 6) for step in range(2, 8)
    ]


@pytest.mark.parametrize(
    "options, named",
    [
        (dict(clip=0.0), "clip must be a positive number, got 0.0; 0.01 is the paper's"),
        (dict(clip=math.nan), "clip must be a positive number, got nan"),
        (dict(penalty=-1.0), "penalty must be a positive number, got -1.0"),
        (dict(clip=0.01, penalty=10.0), "clip takes the penalty's place, got 0.01 and 10.0; giv"),
        (dict(n_critic=0), "n_critic must be a positive int, got 0"),
    ],
)
def test_bad_arguments_say_what_to_do(options, named):
    with pytest.raises(ValueError, match=f"fastgen.models.WGAN: {named}"):
        model(WGAN, **options)


def test_a_penalised_critic_has_no_batch_norm():
    critic = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 1))
    with pytest.raises(ValueError, match=r"critic must not have batch norm, got BatchNorm1d\(12"):
        own(critic, penalty=10.0)
    own(critic)
