"""A VAE and a conditional VAE of grey images in plain PyTorch, as one writes them by hand.

Fully connected networks, noise of torch.randn_like, and the formulas of the papers: what
`fastgen.models.VAE` and `ConditionalVAE` are compared with.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainVAE(nn.Module):
    """``forward(images, labels)`` -> (nll, kl) in nats, (B,), of int64 images (B, 1, H, W).

    likelihood: "bernoulli" or "dmol", of `components` logistics. With classes, encoder and decoder
    are given one-hot labels, and the prior is a Gaussian made of the label by a small network.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        levels: int,
        *,
        latent_dim: int = 16,
        likelihood: str = "dmol",
        components: int = 5,
        width: int = 256,
        classes: int | None = None,
    ):
        super().__init__()
        self.shape, self.levels, self.likelihood = shape, levels, likelihood
        self.components, self.classes = components, classes
        pixels, labels = math.prod(shape), classes or 0
        self.out = 1 if likelihood == "bernoulli" else 3 * components
        self.encoder = _network(pixels + labels, width, 2 * latent_dim)
        self.decoder = _network(latent_dim + labels, width, self.out * pixels)
        if classes is not None:
            self.embedding = nn.Embedding(classes, 32)
            self.prior = nn.Linear(32, 2 * latent_dim)

    def copy_(self, model: nn.Module) -> PlainVAE:
        """Takes the parameters of a fastgen model of the same sizes."""
        with torch.no_grad():
            for mine, theirs in zip(self.parameters(), model.parameters(), strict=True):
                mine.copy_(theirs)
        return self

    def forward(
        self, images: Tensor, labels: Tensor | None = None, eps: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        hot = None if self.classes is None else F.one_hot(labels, self.classes).float()
        unit = images.float() / (self.levels - 1)
        x = unit if self.likelihood == "bernoulli" else 2 * unit - 1
        mu, logvar = self.encoder(_joined(x.flatten(1), hot)).chunk(2, 1)
        logvar = logvar.clamp(-30, 20)
        eps = torch.randn_like(mu) if eps is None else eps
        z = mu + torch.exp(0.5 * logvar) * eps
        params = self.decoder(_joined(z, hot)).view(-1, self.out, *self.shape[1:])
        if self.likelihood == "bernoulli":
            nll = F.binary_cross_entropy_with_logits(params, x, reduction="none")
        else:
            nll = mixture_nll(params, x, self.levels)
        return nll.flatten(1).sum(1), self._kl(mu, logvar, labels)

    def _kl(self, mu: Tensor, logvar: Tensor, labels: Tensor | None) -> Tensor:
        if self.classes is None:
            return -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum(1)
        m, p = self.prior(torch.tanh(self.embedding(labels))).chunk(2, 1)
        ratio = (logvar.exp() + (mu - m).square()) / p.exp()
        return 0.5 * (p - logvar + ratio - 1).sum(1)


def mixture_nll(params: Tensor, x: Tensor, levels: int) -> Tensor:
    """Mixtures of discretised logistics, (B, 3 K, H, W), of x (B, 1, H, W) in [-1, 1]; by the
    difference of two sigmoids."""
    logits, means, log_scales = params.chunk(3, 1)
    half, inverse = 1 / (levels - 1), torch.exp(-log_scales.clamp(min=-7))
    upper, lower = inverse * (x - means + half), inverse * (x - means - half)
    inside = torch.log((torch.sigmoid(upper) - torch.sigmoid(lower)).clamp(min=1e-12))
    bins = torch.where(
        x < -1 + half, F.logsigmoid(upper), torch.where(x > 1 - half, F.logsigmoid(-lower), inside)
    )
    return -torch.logsumexp(F.log_softmax(logits, 1) + bins, 1)


def _network(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, outputs),
    )


def _joined(x: Tensor, hot: Tensor | None) -> Tensor:
    return x if hot is None else torch.cat((x, hot), 1)
