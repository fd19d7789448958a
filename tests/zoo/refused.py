"""What cannot be compiled: (name, build, what the message must name)."""

import torch
import torch.nn.functional as F
from torch import nn

from zoo.masked import InPlaceBuffer

LEVELS = 4
SHAPE = (1, 5, 6)


class Between(nn.Module):
    """A masked network with something in its middle."""

    def __init__(self, middle):
        super().__init__()
        self.first = InPlaceBuffer("A", 1, 6, 3, padding=1)
        self.middle = middle
        self.head = nn.Conv2d(6, LEVELS, 1)

    def forward(self, codes):
        return self.head(self.middle(self.first(codes.float())))[:, :, None]


class Middle(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def around(middle):
    return lambda: Between(middle).eval()


def training(middle):
    """Only the middle is in train mode."""

    def build():
        model = Between(middle).eval()
        model.middle.train()
        return model

    return build


def branches(x):
    return x if x.sum() > 0 else -x


def selects(x):
    x = x.clone()
    x[x > 0.5] = 0
    return x[:, :, torch.nonzero(x.isfinite().all(dim=(0, 1, 3)))[:, 0]]


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls


class Remembers(nn.Module):
    """Adds its last input."""

    def __init__(self):
        super().__init__()
        self.last = None

    def forward(self, x):
        y = x if self.last is None else x + self.last
        self.last = x.detach()
        return y


CASES = [
    ("train-mode BatchNorm", training(nn.BatchNorm2d(6)), "middle"),
    ("dropout in training", training(nn.Dropout(0.5)), "middle"),
    ("functional dropout", around(Middle(F.dropout)), "middle"),
    ("GroupNorm over space", around(nn.GroupNorm(2, 6)), "middle"),
    ("InstanceNorm", around(nn.InstanceNorm2d(6)), "middle"),
    (
        "BatchNorm without statistics",
        around(nn.BatchNorm2d(6, track_running_stats=False)),
        "middle",
    ),
    ("random numbers", around(Middle(lambda x: x + torch.rand_like(x))), "middle"),
    ("random numbers apart", around(Middle(lambda x: x + torch.randn(1))), ""),
    ("a branch on codes", around(Middle(branches)), "middle"),
    ("a selection by codes", around(Middle(selects)), "middle"),
    ("a number read", around(Middle(lambda x: x * x.mean().item())), "middle"),
    ("a largest number read", around(Middle(lambda x: x * x.max().item())), ""),
    ("a counter", around(Counts()), ""),
    ("a memory", around(Remembers()), ""),
    ("a transform", around(Middle(lambda x: torch.fft.fft(x).real)), "middle"),
    ("a sort", around(Middle(lambda x: x.sort(dim=1).values)), "middle"),
    ("numpy", around(Middle(lambda x: torch.from_numpy(x.detach().numpy() * 2))), ""),
]

# outputs of a wrong shape
SHAPES = [
    ("no colours", lambda codes: torch.zeros(len(codes), LEVELS, *SHAPE[1:])),
    ("another size", lambda codes: torch.zeros(len(codes), LEVELS, 1, 5, 5)),
    ("levels last", lambda codes: torch.zeros(len(codes), 1, 5, 6, LEVELS)),
    ("other levels", lambda codes: torch.zeros(len(codes), LEVELS + 1, *SHAPE)),
    ("no batch", lambda codes: torch.zeros(LEVELS, *SHAPE)),
]
