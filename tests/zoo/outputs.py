"""Outputs that params= has to put right, and likelihoods of one's own."""

import torch
import torch.nn.functional as F
from torch import nn

from fastgen.likelihoods import Categorical
from zoo.case import Case
from zoo.masked import InPlaceBuffer


class Body(nn.Module):
    def __init__(self, outputs, kind="A", colors=1, channels=6):
        super().__init__()
        self.a = InPlaceBuffer(kind, colors, channels, 3, padding=1)
        self.b = InPlaceBuffer("B", channels, channels, 3, padding=1)
        self.c = nn.Conv2d(channels, outputs, 1)

    def forward(self, codes):
        x = F.relu(self.a(codes.float() / 3 - 0.5))
        return self.c(x + F.relu(self.b(x)))


class ChannelsLast(Body):
    """(B, H, W, colours x levels), with a bias of every pixel's own, in a tuple."""

    def __init__(self):
        super().__init__(2 * 4, colors=2)
        self.bias = nn.Parameter(torch.zeros(5, 6, 8))

    def forward(self, codes):
        y = super().forward(codes)
        return y.permute(0, 2, 3, 1) + self.bias, {"hidden": y}


def from_channels_last(out):
    y, _ = out
    return y.unflatten(3, (2, 4)).permute(0, 4, 3, 1, 2)


class Late(Body):
    """Output p is about the code behind p: the parameters of code 0 are a learned vector."""

    def __init__(self):
        super().__init__(4, "B")
        self.start = nn.Parameter(torch.zeros(1, 4, 1))

    def forward(self, codes):
        y = super().forward(codes).flatten(2)
        return torch.cat([self.start.expand(len(y), -1, -1), y], 2)


def without_last(out):
    return out[:, :, :-1].unflatten(2, (5, 6)).unsqueeze(2)


class Probabilities(Body):
    def __init__(self):
        super().__init__(4)

    def forward(self, codes):
        return super().forward(codes).softmax(1)


def logs(out):
    return out.clamp_min(1e-12).log()[:, :, None]


class LogProbabilities(Body):
    """Normalised, with a hard-coded table of one logit a position."""

    def __init__(self):
        super().__init__(4)
        self.table = torch.linspace(-1, 1, 5 * 6).view(1, 1, 5, 6)

    def forward(self, codes):
        return F.log_softmax(super().forward(codes) * self.table.exp(), dim=1).unsqueeze(2)


class Geometric:
    """A likelihood of one's own: a truncated geometric distribution with one logit a colour."""

    levels, coupled, uniforms = 6, False, 1

    def _table(self, params):
        k = torch.arange(self.levels, dtype=torch.float64).view(-1, *[1] * (params.dim() - 1))
        rate = F.logsigmoid(params[:, 0].double())
        return (k.to(params.device) * rate).log_softmax(0)  # (levels, m, C, ...)

    def sample(self, params, uniforms, temperature=1.0):
        cdf = (self._table(params) / temperature).softmax(0).cumsum(0)
        return (cdf <= uniforms[None, :, 0].double()).sum(0).clamp(max=self.levels - 1)

    def log_prob(self, params, codes):
        return self._table(params).gather(0, codes[None])[0].sum(1)


class Joint:
    """Coupled: both colours of a pixel are the digits of one number."""

    levels, coupled, uniforms = 3, True, 1

    def sample(self, params, uniforms, temperature=1.0):
        number = Categorical(9).sample(params, uniforms[:, :, :1], temperature)[:, 0]
        return torch.stack((number // 3, number % 3), 1)

    def log_prob(self, params, codes):
        number = codes[:, :1] * 3 + codes[:, 1:]
        return Categorical(9).log_prob(params, number)


def colours_behind(out):
    return out[:, :, None]


CASES = [
    Case(
        "channels last, tuple",
        ChannelsLast,
        (2, 5, 6),
        Categorical(4),
        params=from_channels_last,
    ),
    Case("late by one", Late, (1, 5, 6), Categorical(4), params=without_last),
    Case("probabilities", Probabilities, (1, 5, 6), Categorical(4), params=logs),
    Case("log probabilities", LogProbabilities, (1, 5, 6), Categorical(4)),
    Case("own likelihood", lambda: Body(1), (1, 5, 6), Geometric(), params=colours_behind),
    Case(
        "own coupled likelihood",
        lambda: Body(9, colors=2),
        (2, 5, 4),
        Joint(),
        params=colours_behind,
    ),
]
