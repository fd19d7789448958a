"""Encoders of images into vectors, and decoders back: fully connected for small images,
convolutional for larger ones."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.models import residual

Net = Literal["mlp", "conv"]
_MLP_VALUES = 1024  # up to so many values of an image, 28x28 among them


def image_encoder(
    shape: tuple[int, int, int],
    outputs: int,
    *,
    net: Net | None = None,
    width: int | None = None,
    layers: int = 2,
    classes: int | None = None,
) -> nn.Module:
    """A module (B, C, H, W) floats -> (B, outputs); with classes it is called with labels too.

    net: default "mlp" for up to 1024 values of an image, else "conv".
    width: units of the hidden layers, default 256; or channels, default 64.
    layers: hidden layers; or residual blocks.
    """
    kind, width = _kind(shape, net, width)
    return (MLPEncoder if kind == "mlp" else ConvEncoder)(shape, outputs, width, layers, classes)


def image_decoder(
    inputs: int,
    shape: tuple[int, int, int],
    *,
    out: int | None = None,
    net: Net | None = None,
    width: int | None = None,
    layers: int = 2,
    classes: int | None = None,
) -> nn.Module:
    """A module (B, inputs) -> (B, out, H, W), `out` numbers for each pixel, default C; otherwise
    as `image_encoder`."""
    kind, width = _kind(shape, net, width)
    out = shape[0] if out is None else out
    decoder = MLPDecoder if kind == "mlp" else ConvDecoder
    return decoder(inputs, shape, out, width, layers, classes)


class MLPEncoder(nn.Module):
    def __init__(self, shape, outputs, width, layers, classes=None):
        super().__init__()
        self.classes = classes
        self.body = mlp(math.prod(shape) + (classes or 0), width, layers, outputs)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.body(_with_labels(x.flatten(1), labels, self.classes))


class MLPDecoder(nn.Module):
    def __init__(self, inputs, shape, out, width, layers, classes=None):
        super().__init__()
        self.classes, self.shape = classes, (out, *shape[1:])
        self.body = mlp(inputs + (classes or 0), width, layers, math.prod(self.shape))

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.body(_with_labels(z, labels, self.classes)).unflatten(1, self.shape)


class ConvEncoder(nn.Module):
    """Strided convolutions down to about 4x4, residual blocks, one layer to `outputs`. Labels enter
    as planes of ones. Sides that the strides do not divide are padded with zeros."""

    def __init__(self, shape, outputs, channels, blocks, classes=None):
        super().__init__()
        self.classes = classes
        halvings, (h, w) = _halved(shape)
        self.pad = (0, (w << halvings) - shape[2], 0, (h << halvings) - shape[1])
        self.body = residual.encoder(shape[0] + (classes or 0), channels, blocks, halvings)
        self.head = nn.Linear(channels * h * w, outputs)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        x = F.pad(_with_labels(x, labels, self.classes), self.pad)
        return self.head(self.body(x).flatten(1))


class ConvDecoder(nn.Module):
    """The mirror image of `ConvEncoder`."""

    def __init__(self, inputs, shape, out, channels, blocks, classes=None):
        super().__init__()
        self.classes, self.size = classes, shape[1:]
        halvings, (h, w) = _halved(shape)
        self.start = (channels, h, w)
        self.stem = nn.Linear(inputs + (classes or 0), channels * h * w)
        self.body = residual.decoder(channels, out, channels, blocks, halvings)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        x = self.stem(_with_labels(z, labels, self.classes)).unflatten(1, self.start)
        return self.body(x)[..., : self.size[0], : self.size[1]]


def mlp(inputs: int, width: int, layers: int, outputs: int) -> nn.Sequential:
    """`layers` hidden layers of `width` units with ReLU, then one to `outputs`."""
    sizes = [inputs, *[width] * layers]
    hidden = [(nn.Linear(a, b), nn.ReLU()) for a, b in zip(sizes, sizes[1:], strict=False)]
    return nn.Sequential(*sum(hidden, ()), nn.Linear(sizes[-1], outputs))


def _with_labels(x: Tensor, labels: Tensor | None, classes: int | None) -> Tensor:
    """x (B, N, ...) with the labels, one-hot, as `classes` more of its axis 1."""
    if classes is None:
        return x
    hot = F.one_hot(labels, classes).to(x.dtype)
    hot = hot.view(*hot.shape, *[1] * (x.dim() - 2)).expand(-1, -1, *x.shape[2:])
    return torch.cat((x, hot), 1)


def _kind(shape, net, width):
    if net is None:
        net = "mlp" if math.prod(shape) <= _MLP_VALUES else "conv"
    if net not in ("mlp", "conv"):
        raise ValueError(
            f"fastgen.models: net must be 'mlp' or 'conv', got {net!r}; leave it out for the one "
            "that fits the size"
        )
    if net == "conv" and min(shape[1:]) < 8:
        raise ValueError(
            f"fastgen.models: net='conv' needs images of 8x8 or more, got {tuple(shape)}; "
            "use net='mlp'"
        )
    return net, width or (256 if net == "mlp" else 64)


def _halved(shape):
    """How often to halve the sides, and what is left of them: at least 4."""
    halvings = int(math.log2(min(shape[1:]) / 4))
    return halvings, tuple(-(-side >> halvings) for side in shape[1:])
