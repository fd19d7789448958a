"""Conditions of every form, and networks that prepare them."""

import torch
import torch.nn.functional as F
from torch import nn

from fastgen.likelihoods import Categorical
from zoo.case import Case
from zoo.masked import InPlaceBuffer


class Conditioned(nn.Module):
    """Adds to every layer what `term(condition)` gives, (B, 2 channels, 1 or H, 1 or W)."""

    def __init__(self, levels=5, channels=6, layers=2):
        super().__init__()
        self.levels = levels
        self.first = InPlaceBuffer("A", 1, channels, 3, padding=1)
        self.layers = nn.ModuleList(
            InPlaceBuffer("B", channels, 2 * channels, 3, padding=1) for _ in range(layers)
        )
        self.head = nn.Conv2d(channels, levels, 1)

    def term(self, condition):
        raise NotImplementedError

    def forward(self, codes, condition):
        term = self.term(condition)
        x = self.first(codes.float() / self.levels)
        for layer in self.layers:
            a, b = (layer(x) + term).chunk(2, dim=1)
            x = x + torch.tanh(a) * torch.sigmoid(b)
        return self.head(x)[:, :, None]


class OneHotLabel(Conditioned):
    def __init__(self):
        super().__init__()
        self.project = nn.Linear(4, 12, bias=False)

    def term(self, label):
        return self.project(F.one_hot(label, num_classes=4).float())[:, :, None, None]


class FilmLabel(Conditioned):
    """An embedding gives scale and shift; BatchNorm without parameters of its own."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(4, 24)
        self.norm = nn.BatchNorm2d(12, affine=False)

    def forward(self, codes, condition):
        scale, shift = self.embed(condition).view(-1, 24, 1, 1).chunk(2, 1)
        x = self.first(codes.float() / self.levels)
        for layer in self.layers:
            y = self.norm(layer(x)) * (1 + scale) + shift
            x = x + F.glu(y, dim=1)
        return self.head(x)[:, :, None]


class SpatialMap(Conditioned):
    """A coarse map through a network with norms over space, which sees no code, doubled."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1),
            nn.GroupNorm(2, 8),
            nn.ReLU(),
            nn.InstanceNorm2d(8),
            nn.ConvTranspose2d(8, 12, 4, stride=2, padding=1),
        )

    def term(self, condition):
        return self.network(condition)


class TupleCondition(SpatialMap):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(3, 12)

    def term(self, condition):
        label, coarse = condition
        return self.network(coarse) + self.embed(label)[..., None, None]


class DictCondition(Conditioned):
    """An index map through an embedding beside the image, and a vector that gates the output."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(6, 12)
        self.gate = nn.Linear(3, 5)

    def forward(self, codes, condition):
        term = self.embed(condition["map"]).permute(0, 3, 1, 2)
        x = self.first(codes.float() / self.levels)
        for layer in self.layers:
            a, b = (layer(x) + term).chunk(2, dim=1)
            x = x + torch.tanh(a) * torch.sigmoid(b)
        gate = torch.sigmoid(self.gate(condition["vector"]))
        return (self.head(x) * gate[:, :, None, None]).unsqueeze(2)


class CrossAttention(Conditioned):
    """Pixels look at the words of a sentence, padding left out by its mask."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(7, 6)
        self.query = nn.Linear(6, 6)

    def forward(self, codes, condition):
        words, lengths = condition
        memory = self.words(words)  # (B, 4, 6)
        padding = torch.arange(4) >= lengths[:, None]
        x = self.first(codes.float() / self.levels)
        for layer in self.layers:
            a, b = layer(x).chunk(2, dim=1)
            x = x + torch.tanh(a) * torch.sigmoid(b)
            query = self.query(x.flatten(2).transpose(1, 2))
            scores = torch.bmm(query, memory.transpose(1, 2))
            scores = scores.masked_fill(padding[:, None], float("-inf"))
            y = torch.bmm(scores.softmax(2), memory)
            x = x + y.transpose(1, 2).view_as(x)
        return self.head(x)[:, :, None]


def label(n, generator):
    return torch.randint(4, (n,), generator=generator)


def coarse_map(n, generator):
    return torch.randn(n, 2, 3, 3, generator=generator)


def label_and_map(n, generator):
    return torch.randint(3, (n,), generator=generator), coarse_map(n, generator)


def index_map_and_vector(n, generator):
    return {
        "map": torch.randint(6, (n, 6, 6), generator=generator),
        "vector": torch.randn(n, 3, generator=generator),
    }


def sentence(n, generator):
    words = torch.randint(7, (n, 4), generator=generator)
    return words, torch.randint(1, 5, (n,), generator=generator)


CASES = [
    Case(name, build, (1, 6, 6), Categorical(5), condition=condition)
    for name, build, condition in (
        ("one-hot label", OneHotLabel, label),
        ("scale and shift by label", FilmLabel, label),
        ("map through norms over space", SpatialMap, coarse_map),
        ("tuple of label and map", TupleCondition, label_and_map),
        ("dict of index map and vector", DictCondition, index_map_and_vector),
        ("attention to words", CrossAttention, sentence),
    )
]
