"""Colours drawn one after the other: channel groups in thirds or interleaved, sub-pixel order."""

import torch
import torch.nn.functional as F
from torch import nn

from fastgen.likelihoods import Categorical, DiscretizedLogisticMixture
from zoo.case import Case


class ColourConv(nn.Conv2d):
    """group_of(channel, channels): the colour a channel belongs to."""

    def __init__(self, kind, group_of, in_channels, out_channels, kernel_size):
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        middle = kernel_size // 2
        mask = torch.zeros_like(self.weight)
        mask[:, :, :middle] = 1
        mask[:, :, middle, :middle] = 1
        for o in range(out_channels):
            for i in range(in_channels):
                to, of = group_of(o, out_channels), group_of(i, in_channels)
                if to > of or (to == of and kind == "B"):
                    mask[o, i, middle, middle] = 1
        self.register_buffer("mask", mask)

    def forward(self, x):
        self.weight.data *= self.mask
        return super().forward(x)


def thirds(channel, channels):
    return channel * 3 // channels


def interleaved(channel, channels):
    return channel % 3


class GroupLayerNorm(nn.Module):
    """Over each colour's channels at a position."""

    def __init__(self, channels):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(channels // 3) for _ in range(3))

    def forward(self, x):
        x = x.permute(0, 2, 3, 1)
        parts = [norm(part) for norm, part in zip(self.norms, x.chunk(3, dim=-1), strict=True)]
        return torch.cat(parts, -1).permute(0, 3, 1, 2).contiguous()


class ByHandNorm(nn.Module):
    """The same from mean and variance, over groups in one tensor."""

    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x):
        n, c, h, w = x.shape
        grouped = x.view(n, 3, c // 3, h, w)
        mean = grouped.mean(2, keepdim=True)
        variance = (grouped - mean).pow(2).mean(2, keepdim=True)
        normed = (grouped - mean) / torch.sqrt(variance + 1e-5)
        return normed.view(n, c, h, w) * self.weight + self.bias


class ColourNet(nn.Module):
    def __init__(self, group_of, levels=4, channels=9, layers=2, norm=nn.Identity):
        super().__init__()
        self.levels, self.group_of = levels, group_of
        self.first = ColourConv("A", group_of, 3, channels, 5)
        self.layers = nn.ModuleList(
            ColourConv("B", group_of, channels, channels, 3) for _ in range(layers)
        )
        self.norms = nn.ModuleList(norm(channels) for _ in range(layers))
        self.head = ColourConv("B", group_of, channels, 3 * levels, 1)

    def forward(self, codes):
        x = self.first(codes.float() / (self.levels - 1) - 0.5)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = x + layer(F.relu(norm(x)))
        y = self.head(F.relu(x))
        n, _, h, w = y.shape
        if self.group_of is thirds:
            return y.view(n, 3, self.levels, h, w).transpose(1, 2)
        return y.view(n, self.levels, 3, h, w)


class ColoursTogether(nn.Module):
    """All colours of a pixel in one step: none sees another; a mixture for each."""

    def __init__(self, levels=16, components=2, channels=8):
        super().__init__()
        self.first = nn.Conv2d(3, channels, (2, 3))
        self.left = nn.Conv2d(3, channels, (1, 2))
        self.head = nn.Conv2d(channels, 3 * 3 * components, 1)
        self.levels = levels

    def forward(self, codes):
        x = codes / (self.levels - 1)
        above = self.first(F.pad(x, (1, 1, 2, 0)))[:, :, :-1]
        left = self.left(F.pad(x, (2, 0)))[..., :-1]
        y = self.head(F.silu(above + left))
        return y.unflatten(1, (3, -1)).transpose(1, 2)


class ChannelConditioned(nn.Module):
    """Two channels of codes; the second's logits also see the first's one-hot code."""

    def __init__(self, levels=5, channels=8):
        super().__init__()
        self.levels = levels
        self.embed = nn.Embedding(2 * levels, channels)
        self.above = nn.Conv2d(2 * channels, channels, (1, 3), padding=(0, 1))
        self.heads = nn.ModuleList(
            [nn.Conv2d(channels, levels, 1), nn.Conv2d(channels + levels, levels, 1)]
        )
        self.register_buffer("offset", torch.tensor([0, levels]).view(1, 2, 1, 1))

    def forward(self, codes):
        x = self.embed(codes + self.offset)  # (B, 2, H, W, channels)
        x = x.permute(0, 1, 4, 2, 3).flatten(1, 2)
        x = torch.tanh(F.pad(self.above(x), (0, 0, 1, 0))[:, :, :-1])
        first = F.one_hot(codes[:, 0], self.levels).permute(0, 3, 1, 2).to(x)
        logits = [self.heads[0](x), self.heads[1](torch.cat([x, first], 1))]
        return torch.stack(logits, dim=2)


CASES = [
    Case(
        "colours in thirds",
        lambda: ColourNet(thirds),
        (3, 5, 5),
        Categorical(4),
        "subpixel",
    ),
    Case(
        "colours interleaved",
        lambda: ColourNet(interleaved),
        (3, 5, 6),
        Categorical(4),
        "subpixel",
    ),
    Case(
        "colours, LayerNorm each",
        lambda: ColourNet(thirds, norm=GroupLayerNorm),
        (3, 5, 5),
        Categorical(4),
        "subpixel",
    ),
    Case(
        "colours, norm by hand",
        lambda: ColourNet(thirds, norm=ByHandNorm),
        (3, 4, 5),
        Categorical(4),
        "subpixel",
    ),
    Case(
        "colours together, mixture",
        ColoursTogether,
        (3, 5, 6),
        DiscretizedLogisticMixture(2, levels=16, coupled=False),
    ),
    Case("two channels of codes", ChannelConditioned, (2, 5, 5), Categorical(5), "subpixel"),
]
