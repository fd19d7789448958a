"""Priors of latent vectors z (B, D): what they weigh, how they are drawn, how far a Gaussian
posterior is from them.

    arguments(labels) -> tuple               the prior's of `fastgen.reparam_kl`
    log_prob(z, labels) -> nats (B, D)       z may have more axes before
    draw(noise, labels, temperature) -> z    noise: standard normal numbers (B, D)
    kl_of_each(mu, logvar, labels) -> nats (B, D)

Labels are int64 (B,); where there are no classes, zeros. Halves are computed with in float32.
"""

import math

import torch
from torch import Tensor, nn

_LOG_2PI = math.log(2 * math.pi)


def widened(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Each in at least float32."""
    return tuple(t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors)


def gaussian_log_prob(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """log N(z; mu, exp(logvar)) of each element."""
    z, mu, logvar = widened(z, mu, logvar)
    return -0.5 * (_LOG_2PI + logvar + (z - mu).square() * torch.exp(-logvar))


class StandardNormal(nn.Module):
    """N(0, I)."""

    is_gaussian = True

    def arguments(self, labels: Tensor) -> tuple:
        return ()

    def _moments(self, labels: Tensor) -> tuple:
        zero = torch.zeros((), device=labels.device)
        return zero, zero

    def log_prob(self, z: Tensor, labels: Tensor) -> Tensor:
        return gaussian_log_prob(z, *self._moments(labels))

    def draw(self, noise: Tensor, labels: Tensor, temperature: float) -> Tensor:
        mu, logvar = self._moments(labels)
        return mu + temperature * torch.exp(logvar / 2) * noise

    def kl_of_each(self, mu: Tensor, logvar: Tensor, labels: Tensor) -> Tensor:
        mu, logvar, m, p = widened(mu, logvar, *self._moments(labels))
        d = logvar - p
        return 0.5 * (torch.expm1(d) - d + (mu - m).square() * torch.exp(-p))


class ClassTable(StandardNormal):
    """A Gaussian for each class, a row of a table of means and log-variances; at first N(0, I)."""

    def __init__(self, latent_dim: int, classes: int):
        super().__init__()
        self.mu = nn.Parameter(torch.zeros(classes, latent_dim))
        self.logvar = nn.Parameter(torch.zeros(classes, latent_dim))

    def arguments(self, labels):
        return self.mu, self.logvar, labels

    def _moments(self, labels):
        return self.mu[labels], self.logvar[labels]


class LearnedNormal(StandardNormal):
    """A Gaussian whose mean and log-variance a small network makes of the label; at first
    N(0, I)."""

    def __init__(self, latent_dim: int, classes: int, width: int = 32):
        super().__init__()
        self.embedding = nn.Embedding(classes, width)
        self.head = nn.Linear(width, 2 * latent_dim)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def arguments(self, labels):
        return self._moments(labels)

    def _moments(self, labels):
        return tuple(self.head(torch.tanh(self.embedding(labels))).chunk(2, -1))


class Laplace(nn.Module):
    """Independent Laplace distributions of scale 1: density exp(-|z|) / 2. Unlike N(0, I) it is
    not the same in all directions: the axes mean something."""

    is_gaussian = False

    def arguments(self, labels):
        return ()

    def log_prob(self, z, labels):
        return -widened(z)[0].abs() - math.log(2)

    def draw(self, noise, labels, temperature):
        # through the distribution functions, by the tail, which keeps its digits
        size = -(math.log(2) + torch.special.log_ndtr(-noise.abs()))
        return temperature * noise.sign() * size

    def kl_of_each(self, mu, logvar, labels):
        mu, logvar = widened(mu, logvar)
        std = torch.exp(logvar / 2)
        ratio = mu / std
        mean_size = std * math.sqrt(2 / math.pi) * torch.exp(-ratio.square() / 2)
        mean_size = mean_size + mu * torch.special.erf(ratio / math.sqrt(2))
        return mean_size + math.log(2) - 0.5 * (_LOG_2PI + 1 + logvar)
