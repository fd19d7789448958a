"""Small adversarial models, and images for them."""

import torch
from tiny import CLASSES
from torch import nn

from fastgen.data import Dataset, Split
from fastgen.models import GAN, WGAN, ConditionalGAN

SHAPE, LEVELS, D = (1, 4, 3), 5, 3


def model(kind=GAN, seed=0, **options):
    sizes = {"shape": SHAPE, "levels": LEVELS, "latent_dim": D, "width": 8}
    sizes |= {"classes": CLASSES} if kind is ConditionalGAN else {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(**sizes | options)


def penalised(**options):
    return model(WGAN, penalty=10.0, **options)


KINDS = {
    "gan": model,
    "wgan": lambda **options: model(WGAN, **options),
    "wgan-gp": penalised,
    "conditional-gan": lambda **options: model(ConditionalGAN, **options),
}


def images(n=4, shape=SHAPE, levels=LEVELS):
    return torch.randint(levels, (n, *shape), generator=torch.Generator().manual_seed(1))


def labels(net, n=4):
    return None if net.classes is None else torch.arange(n) % net.classes


def data(n=40):
    codes = images(n).to(torch.uint8)
    y = torch.arange(n) % CLASSES
    parts = (slice(0, n - 8), slice(n - 8, n))
    return Dataset("noise", SHAPE, LEVELS, CLASSES, *(Split(codes[p], y[p]) for p in parts))


def state(*modules: nn.Module) -> list:
    return [t.detach().clone() for module in modules for t in module.state_dict().values()]


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
