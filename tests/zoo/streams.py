"""A vertical and a horizontal stream by padding and cropping, and how models pass them on."""

import torch
import torch.nn.functional as F
from torch import nn

from fastgen.likelihoods import Categorical
from zoo.case import Case


class GatedLayer(nn.Module):
    """streams is a tuple (vertical, horizontal, label embedding or None)."""

    def __init__(self, in_channels, channels, kernel, classes=None, first=False):
        super().__init__()
        self.first, self.reach = first, kernel // 2
        self.vertical = nn.Conv2d(in_channels, 2 * channels, (self.reach + 1, kernel))
        self.horizontal = nn.Conv2d(in_channels, 2 * channels, (1, self.reach + 1))
        self.link = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.residual = nn.Conv2d(channels, channels, 1)
        self.skip = nn.Conv2d(channels, channels, 1)
        self.label = nn.Embedding(classes, 2 * channels) if classes else None

    @staticmethod
    def gate(x):
        a, b = x.chunk(2, dim=1)
        return torch.tanh(a) * torch.sigmoid(b)

    def forward(self, streams):
        v_in, h_in, skips, label = streams
        reach = self.reach
        if self.first:
            v = self.vertical(F.pad(v_in, (reach, reach, reach + 1, 0)))[:, :, :-1]
            h = self.horizontal(F.pad(h_in, (reach + 1, 0)))[:, :, :, :-1]
        else:
            v = self.vertical(F.pad(v_in, (reach, reach, reach, 0)))
            h = self.horizontal(F.pad(h_in, (reach, 0, 0, 0)))
        h = h + self.link(v)
        if self.label is not None:
            bias = self.label(label)[:, :, None, None]
            v, h = v + bias, h + bias
        v, h = self.gate(v), self.gate(h)
        skips = skips + self.skip(h)
        h = self.residual(h)
        if not self.first:
            h = h + h_in
        return v, h, skips, label


class TupleStreams(nn.Module):
    def __init__(self, levels=6, channels=6, layers=3, classes=None):
        super().__init__()
        self.levels = levels
        self.layers = nn.Sequential(
            GatedLayer(1, channels, 5, classes, first=True),
            *(GatedLayer(channels, channels, 3, classes) for _ in range(layers)),
        )
        self.head = nn.Sequential(
            nn.ReLU(), nn.Conv2d(channels, channels, 1), nn.ReLU(), nn.Conv2d(channels, levels, 1)
        )

    def forward(self, codes, label=None):
        x = codes.float() / (self.levels - 1)
        _, _, skips, _ = self.layers((x, x, 0.0, label))
        return self.head(skips).unsqueeze(2)


def shift_down(x):
    return F.pad(x, (0, 0, 1, 0))[:, :, :-1, :]


def shift_right(x):
    return F.pad(x, (1, 0))[..., :-1]


class StackedStreams(nn.Module):
    """Both streams in one tensor, stacked on a new first axis; the gate is F.glu."""

    def __init__(self, levels=5, channels=6, layers=3):
        super().__init__()
        self.levels = levels
        self.embed = nn.Embedding(levels, channels)
        self.v = nn.ModuleList(nn.Conv2d(channels, 2 * channels, (2, 3)) for _ in range(layers))
        self.h = nn.ModuleList(nn.Conv2d(channels, 2 * channels, (1, 2)) for _ in range(layers))
        self.v2h = nn.ModuleList(nn.Conv2d(2 * channels, 2 * channels, 1) for _ in range(layers))
        self.head = nn.Linear(channels, levels)

    def forward(self, codes):
        x = self.embed(codes[:, 0]).permute(0, 3, 1, 2)
        both = torch.stack([shift_down(x), shift_right(x)])
        for v_conv, h_conv, link in zip(self.v, self.h, self.v2h, strict=True):
            v, h = both.unbind(0)
            v = v_conv(nn.functional.pad(v, [1, 1, 1, 0]))
            h = h_conv(nn.functional.pad(h, [1, 0, 0, 0])) + link(v)
            both = both + torch.stack([F.glu(v, dim=1), F.glu(h, dim=1)], 0)
        return self.head(both[1].movedim(1, -1)).movedim(-1, 1)[:, :, None]


class ConcatenatedStreams(nn.Module):
    """Both streams in one tensor, side by side in the channels; the gate by torch.split."""

    def __init__(self, levels=4, channels=6, layers=2):
        super().__init__()
        self.channels = channels
        self.entry = nn.Conv2d(levels, channels, 1)
        self.v = nn.ModuleList(
            nn.Conv2d(channels, 2 * channels, 3, padding=(2, 1)) for _ in range(layers)
        )
        self.h = nn.ModuleList(
            nn.Conv2d(2 * channels, 2 * channels, (1, 3), padding=(0, 2)) for _ in range(layers)
        )
        self.out = nn.Conv2d(channels, levels, 1)
        self.levels = levels

    def forward(self, codes):
        one_hot = F.one_hot(codes.squeeze(1), self.levels).permute(0, 3, 1, 2).float()
        x = self.entry(one_hot)
        height, width = x.shape[-2:]
        x = torch.cat((shift_down(x), shift_right(x)), dim=1)
        for v_conv, h_conv in zip(self.v, self.h, strict=True):
            v, h = torch.split(x, self.channels, 1)
            a, b = v_conv(v).narrow(2, 0, height).split([self.channels] * 2, dim=1)
            v_new = a.tanh() * b.sigmoid()
            a, b = h_conv(torch.cat([h, v], 1))[:, :, :, :width].tensor_split(2, dim=1)
            h_new = a.tanh_().mul_(b.sigmoid_())
            x = x + torch.cat([v_new, h_new], dim=1)
        return self.out(x[:, self.channels :])[:, :, None]


def labels(n, generator):
    return torch.randint(4, (n,), generator=generator)


CASES = [
    Case("streams in a tuple", TupleStreams, (1, 7, 6), Categorical(6)),
    Case(
        "streams in a tuple, labels",
        lambda: TupleStreams(classes=4),
        (1, 6, 6),
        Categorical(6),
        condition=labels,
    ),
    Case("streams stacked", StackedStreams, (1, 6, 7), Categorical(5)),
    Case("streams concatenated", ConcatenatedStreams, (1, 6, 6), Categorical(4)),
]
