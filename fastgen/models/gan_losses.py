"""What generator and critic minimise, given the critic's numbers for real and generated images.

Each loss is a pair of functions: of the critic (real (B,), fake (B,)) -> (), of the generator
(fake (B,)) -> (). The critic of the first three gives logits, log D / (1 - D) of a discriminator D.
"""

import torch.nn.functional as F
from torch import Tensor


def _cross_entropy(real: Tensor, fake: Tensor) -> Tensor:
    # -log D(x) - log(1 - D(G(z))); at its least, of the best D, 2 log 2 - 2 JSD
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def _minimax(fake: Tensor) -> Tensor:
    # log(1 - D(G(z))), whose gradient vanishes where D is sure: the saturating loss
    return -F.softplus(fake).mean()


def _non_saturating(fake: Tensor) -> Tensor:
    return F.softplus(-fake).mean()  # -log D(G(z))


def _hinges(real: Tensor, fake: Tensor) -> Tensor:
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def _squares(real: Tensor, fake: Tensor) -> Tensor:
    return 0.5 * ((real - 1).square().mean() + fake.square().mean())


def _square(fake: Tensor) -> Tensor:
    return 0.5 * (fake - 1).square().mean()


def _difference(real: Tensor, fake: Tensor) -> Tensor:
    return fake.mean() - real.mean()


def _lowered(fake: Tensor) -> Tensor:
    return -fake.mean()


LOSSES = {
    "non_saturating": (_cross_entropy, _non_saturating),
    "minimax": (_cross_entropy, _minimax),
    "hinge": (_hinges, _lowered),
    "least_squares": (_squares, _square),
    "wasserstein": (_difference, _lowered),
}
