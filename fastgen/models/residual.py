"""The convolutional encoder and decoder of the VQ-VAE."""

import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """x + 1x1(relu(3x3(relu(x)))), with `hidden` channels inside."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.spatial = nn.Conv2d(channels, hidden, 3, padding=1)
        self.expand = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.expand(F.relu(self.spatial(F.relu(x))))


def residual_stack(inputs: int, channels: int, blocks: int) -> list[nn.Module]:
    """A 3x3 convolution to `channels`, residual blocks of a quarter as many inside, a ReLU."""
    hidden = max(1, channels // 4)
    residual = [ResidualBlock(channels, hidden) for _ in range(blocks)]
    return [nn.Conv2d(inputs, channels, 3, padding=1), *residual, nn.ReLU()]


def encoder(inputs: int, channels: int, blocks: int, halvings: int) -> nn.Sequential:
    """(B, inputs, H, W) -> (B, channels, H / 2^halvings, W / 2^halvings)."""
    layers: list[nn.Module] = []
    for i in range(halvings):
        # the first one runs at the highest resolution: half the channels
        width = max(1, channels // 2) if i == 0 else channels
        layers += [nn.Conv2d(inputs, width, 4, stride=2, padding=1), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, *residual_stack(inputs, channels, blocks))


def decoder(inputs: int, outputs: int, channels: int, blocks: int, doublings: int) -> nn.Sequential:
    """(B, inputs, h, w) -> (B, outputs, h 2^doublings, w 2^doublings)."""
    layers = residual_stack(inputs, channels, blocks)
    for i in reversed(range(doublings)):
        width = max(1, channels // 2) if i == 1 else channels
        if i == 0:
            layers.append(nn.ConvTranspose2d(channels, outputs, 4, stride=2, padding=1))
        else:
            layers += [nn.ConvTranspose2d(channels, width, 4, stride=2, padding=1), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers)
