"""Causal attention over pixels, with every way of masking it, between convolutions."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from fastgen.likelihoods import Categorical
from zoo.case import Case
from zoo.masked import InPlaceBuffer


def strictly_before(count):
    return torch.tril(torch.ones(count, count), diagonal=-1)


def minus_infinity(scores):
    """The first row is NaN and cleared afterwards."""
    mask = strictly_before(scores.shape[-1]).to(scores.device)
    scores = scores.masked_fill(mask == 0, -math.inf)
    weights = F.softmax(scores, dim=-1)
    return weights.masked_fill(mask == 0, 0.0)


def large_and_start_mask(scores):
    """-1e4, and a factor that clears the first row, which would be uniform."""
    mask = strictly_before(scores.shape[-1])
    start = torch.ones(scores.shape[-1], 1)
    start[0] = 0
    scores = scores * mask - 1e4 * (1 - mask)
    return torch.softmax(scores, -1) * start


def very_large(scores):
    mask = strictly_before(scores.shape[-1]).bool()
    weights = torch.where(mask, scores, torch.full_like(scores, -1e10)).softmax(-1)
    return weights * mask


class Attention(nn.Module):
    def __init__(self, channels, heads, weigh):
        super().__init__()
        self.heads, self.weigh = heads, weigh
        self.query = nn.Conv2d(channels + 2, channels, 1)
        self.key_value = nn.Conv2d(channels + 3, 2 * channels, 1)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, x, image):
        n, channels, h, w = x.shape
        rows = torch.linspace(-1, 1, h).view(1, 1, h, 1).expand(n, 1, h, w)
        columns = torch.linspace(-1, 1, w).view(1, 1, 1, w).expand(n, 1, h, w)
        place = torch.cat([rows, columns], 1)
        query = self.query(torch.cat([x, place], 1))
        key, value = self.key_value(torch.cat([x, image, place], 1)).chunk(2, dim=1)

        def heads(t):
            return t.reshape(n, self.heads, channels // self.heads, h * w).transpose(2, 3)

        query, key, value = heads(query), heads(key), heads(value)
        scores = torch.matmul(query, key.transpose(-2, -1)) / math.sqrt(query.shape[-1])
        y = self.weigh(scores) @ value
        return self.project(y.transpose(2, 3).reshape(n, channels, h, w))


class AttentiveNet(nn.Module):
    """Strict attention, whose keys and values also see the image itself."""

    def __init__(self, weigh, levels=5, channels=6, blocks=2, heads=2):
        super().__init__()
        self.levels = levels
        self.first = InPlaceBuffer("A", levels, channels, 5, padding=2)
        self.convs = nn.ModuleList(
            InPlaceBuffer("B", channels, 2 * channels, 3, padding=1) for _ in range(blocks)
        )
        self.attentions = nn.ModuleList(Attention(channels, heads, weigh) for _ in range(blocks))
        self.merge = nn.ModuleList(nn.Conv2d(2 * channels, channels, 1) for _ in range(blocks))
        self.head = nn.Conv2d(channels, levels, 1)

    def forward(self, codes):
        image = codes.float() / self.levels
        hot = torch.zeros(len(codes), self.levels, *codes.shape[2:])
        hot.scatter_(1, codes, 1.0)
        x = self.first(hot)
        for conv, attention, merge in zip(self.convs, self.attentions, self.merge, strict=True):
            x = x + F.glu(conv(F.elu(x)), 1)
            x = x + merge(F.elu(torch.cat((x, attention(x, image)), 1)))
        return self.head(F.elu(x))[:, :, None]


class FusedAttention(nn.Module):
    """scaled_dot_product_attention with a flag, a bool mask or an additive mask, on one-hot codes
    shifted by one."""

    def __init__(self, form, positions, levels=4, width=8, heads=2):
        super().__init__()
        self.form, self.levels, self.heads = form, levels, heads
        self.embed = nn.Linear(levels, width, bias=False)
        self.place = nn.Parameter(torch.zeros(1, positions, width))
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, levels)
        bool_mask = torch.ones(positions, positions).tril().bool()
        self.register_buffer("bool_mask", bool_mask)
        additive = torch.zeros(positions, positions).masked_fill(~bool_mask, float("-inf"))
        self.register_buffer("additive", additive)

    def forward(self, codes):
        n, _, h, w = codes.shape
        x = self.embed(F.one_hot(codes.flatten(1), self.levels).float())
        x = F.pad(x, (0, 0, 1, -1)) + self.place
        q, k, v = (
            t.view(n, h * w, self.heads, -1).transpose(1, 2) for t in self.qkv(x).chunk(3, -1)
        )
        if self.form == "flag":
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            mask = self.bool_mask if self.form == "bool" else self.additive
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        y = y.transpose(1, 2).reshape(n, h * w, -1)
        return self.out(x + y).permute(0, 2, 1).view(n, self.levels, 1, h, w)


class RowAttention(nn.Module):
    """Attention within a row by einsum, after attention over whole rows above; fills of -1e9."""

    def __init__(self, levels=4, width=6):
        super().__init__()
        self.levels = levels
        self.embed = nn.Embedding(levels, width)
        self.start = nn.Parameter(torch.zeros(width))
        self.within = nn.Linear(width, 3 * width)
        self.above = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, levels)

    def forward(self, codes):
        x = self.embed(codes[:, 0])  # (B, H, W, width)
        n, h, w, width = x.shape
        start = self.start.expand(n, h, 1, width)
        shifted = torch.cat([start, x[:, :, :-1]], dim=2)
        q, k, v = self.within(shifted).split(width, dim=-1)
        scores = torch.einsum("bhic,bhjc->bhij", q, k) * width**-0.5
        later = torch.triu(torch.ones(w, w, dtype=torch.bool), 1)
        scores = scores.masked_fill(later, -1e9)
        y = shifted + torch.einsum("bhij,bhjc->bhic", scores.softmax(-1), v)

        q, k, v = self.above(torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)).chunk(3, -1)
        scores = torch.einsum("bimc,bjmc->bmij", q, k)
        later = torch.triu(torch.ones(h, h, dtype=torch.bool), 1)
        weights = torch.softmax(scores.masked_fill(later, torch.finfo(scores.dtype).min), dim=-1)
        y = y + torch.einsum("bmij,bjmc->bimc", weights, v)
        return self.out(y).permute(0, 3, 1, 2)[:, :, None]


CASES = [
    Case(
        "attention, -inf, first row cleared",
        lambda: AttentiveNet(minus_infinity),
        (1, 5, 5),
        Categorical(5),
    ),
    Case(
        "attention, -1e4 and a start mask",
        lambda: AttentiveNet(large_and_start_mask),
        (1, 4, 6),
        Categorical(5),
    ),
    Case("attention, -1e10", lambda: AttentiveNet(very_large), (1, 5, 4), Categorical(5)),
    Case(
        "fused attention, causal flag",
        lambda: FusedAttention("flag", 30),
        (1, 5, 6),
        Categorical(4),
    ),
    Case(
        "fused attention, bool mask",
        lambda: FusedAttention("bool", 25),
        (1, 5, 5),
        Categorical(4),
    ),
    Case(
        "fused attention, additive mask",
        lambda: FusedAttention("additive", 20),
        (1, 5, 4),
        Categorical(4),
    ),
    Case("attention in rows and columns", RowAttention, (1, 5, 6), Categorical(4)),
]
