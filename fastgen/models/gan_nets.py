"""Default generators and critics: fully connected for points and small images, convolutional in the
manner of DCGAN for larger ones."""

import math

import torch
from torch import Tensor, nn

from fastgen.models.image_nets import Net, mlp

_MOST_CHANNELS = 512
_EMBEDDING = 16  # numbers that a label becomes for the generator
_SLOPE = 0.2  # of LeakyReLU in convolutional critics, DCGAN's


def image_generator(
    latent_dim: int,
    shape: tuple[int, int, int],
    *,
    net: Net | None = None,
    width: int | None = None,
    layers: int | None = None,
    classes: int | None = None,
) -> nn.Module:
    """A module z (B, latent_dim) -> images (B, C, H, W) in [-1, 1]; with classes it is called with
    labels too.

    net: default "conv" for images of at least 8x8, else "mlp".
    width: units of the hidden layers, default 128; or channels at full resolution, default 32,
        twice as many with each halving.
    layers: hidden layers of "mlp", default 3; "conv" has one for each halving down to about 4x4.
    """
    kind, width, layers = _sizes(shape, net, width, layers)
    inputs = latent_dim + (_EMBEDDING if classes else 0)
    if kind == "mlp":
        body = MLPGenerator(inputs, shape, width, layers)
    else:
        body = ConvGenerator(inputs, shape, width)
    return LabelledGenerator(body, classes) if classes else body


def image_critic(
    shape: tuple[int, int, int],
    *,
    net: Net | None = None,
    width: int | None = None,
    layers: int | None = None,
    classes: int | None = None,
    conditioning: str = "concat",
) -> nn.Module:
    """A module images (B, C, H, W) -> (B,); otherwise as `image_generator`.

    conditioning: how labels enter: "concat", their embedding is one more channel of the image;
        "projection", its inner product with the last features is added.
    """
    kind, width, layers = _sizes(shape, net, width, layers)
    joined = classes is not None and conditioning == "concat"
    seen = (shape[0] + joined, *shape[1:])
    made = mlp_features(seen, width, layers) if kind == "mlp" else conv_features(seen, width)
    features, count = made
    if classes is None:
        return Critic(features, count)
    if joined:
        return ConcatCritic(features, count, classes, shape)
    return ProjectionCritic(features, count, classes)


class MLPGenerator(nn.Module):
    def __init__(self, inputs, shape, width, layers):
        super().__init__()
        self.shape, self.body = shape, mlp(inputs, width, layers, math.prod(shape))

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(self.body(z)).unflatten(1, self.shape)


class ConvGenerator(nn.Module):
    """One layer to about 4x4, transposed convolutions up to full resolution, each with batch norm,
    and a convolution to colours. What the doublings give beyond the sides is cut off."""

    def __init__(self, inputs, shape, width):
        super().__init__()
        widths, self.size = _widths(shape, width), shape[1:]
        h, w = (-(-side >> (len(widths) - 1)) for side in self.size)
        self.start = (widths[-1], h, w)
        self.stem = nn.Linear(inputs, math.prod(self.start), bias=False)
        layers: list[nn.Module] = [nn.BatchNorm2d(widths[-1]), nn.ReLU()]
        for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True):
            up = nn.ConvTranspose2d(a, b, 4, stride=2, padding=1, bias=False)
            layers += [up, nn.BatchNorm2d(b), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Conv2d(widths[0], shape[0], 3, padding=1))

    def forward(self, z: Tensor) -> Tensor:
        x = self.body(self.stem(z).unflatten(1, self.start))
        return torch.tanh(x[..., : self.size[0], : self.size[1]])


class LabelledGenerator(nn.Module):
    """A generator of z with the label's embedding joined to it."""

    def __init__(self, body, classes):
        super().__init__()
        self.embedding, self.body = nn.Embedding(classes, _EMBEDDING), body

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        return self.body(torch.cat((z, self.embedding(labels).to(z.dtype)), 1))


class Critic(nn.Module):
    """Of `count` features."""

    def __init__(self, features, count):
        super().__init__()
        self.features, self.head = features, nn.Linear(count, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))[:, 0]


class ConcatCritic(Critic):
    """The label is one more channel of the image."""

    def __init__(self, features, count, classes, shape):
        super().__init__(features, count)
        self.embedding = nn.Embedding(classes, math.prod(shape[1:]))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        plane = self.embedding(labels).to(x.dtype).unflatten(1, (1, *x.shape[2:]))
        return super().forward(torch.cat((x, plane), 1))


class ProjectionCritic(Critic):
    """The label's embedding is a direction among the features."""

    def __init__(self, features, count, classes):
        super().__init__(features, count)
        self.embedding = nn.Embedding(classes, count)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        features = self.features(x)
        along = (self.embedding(labels) * features).sum(1)
        return self.head(features)[:, 0] + along


def mlp_features(shape, width: int, layers: int) -> tuple[nn.Module, int]:
    """Hidden layers with ReLU, and their width. On the ring of eight Gaussians clipped weights
    cover 8 modes with it for every seed, with LeakyReLU as few as 5."""
    hidden = mlp(math.prod(shape), width, layers, 1)[:-1]
    return nn.Sequential(nn.Flatten(), *hidden), width


def conv_features(shape, width: int) -> tuple[nn.Sequential, int]:
    """Strided convolutions down to about 4x4, and how many features they give. Without batch norm:
    a clipped scale of at most c = 0.01 in each layer would leave nothing of the signal, and the
    gradient penalty is of each image alone, which batch norm makes a function of the others."""
    widths = _widths(shape, width)
    layers: list[nn.Module] = [nn.Conv2d(shape[0], widths[0], 3, padding=1), nn.LeakyReLU(_SLOPE)]
    for a, b in zip(widths, widths[1:], strict=False):
        layers += [nn.Conv2d(a, b, 4, stride=2, padding=1), nn.LeakyReLU(_SLOPE)]
    sides = math.prod(side >> (len(widths) - 1) for side in shape[1:])
    return nn.Sequential(*layers, nn.Flatten()), widths[-1] * sides


def _widths(shape, width):
    """Channels at full resolution, at half of it, ... down to a side of 4."""
    halvings = int(math.log2(min(shape[1:]) / 4))
    return [min(width << i, max(width, _MOST_CHANNELS)) for i in range(halvings + 1)]


def default_net(shape) -> Net:
    return "mlp" if min(shape[1:]) < 8 else "conv"


def _sizes(shape, net, width, layers):
    """net, width and layers with their defaults."""
    if net is None:
        net = default_net(shape)
    if net not in ("mlp", "conv"):
        raise ValueError(
            f"fastgen.models: net must be 'mlp' or 'conv', got {net!r}; leave it out for the one "
            "that fits the size"
        )
    if net == "mlp":
        return net, width or 128, layers or 3
    if min(shape[1:]) < 8:
        raise ValueError(
            f"fastgen.models: net='conv' needs images of 8x8 or more, got {tuple(shape)}; "
            "use net='mlp'"
        )
    if layers is not None:
        raise ValueError(
            f"fastgen.models: layers is for net='mlp', got {layers} for 'conv', which has one for "
            "each halving of the image; leave it out, or change width"
        )
    return net, width or 32, None
