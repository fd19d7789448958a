"""The traced graph computes what the model does, on codes it was not traced with."""

import math

import pytest
import torch
import torch.nn.functional as F
from graph_values import check
from torch import nn

from fastgen.sampling.arguments import ranks_of
from fastgen.sampling.trace import trace

LEVELS = 5
SHAPE = (1, 4, 3)


def traced(fn, shape=SHAPE, order="raster", **kwargs):
    kwargs.setdefault("levels", LEVELS)
    return trace(fn, shape, ranks_of(order, shape, False), **kwargs)


def verify(fn, shape=SHAPE, order="raster", condition=None, params=None, other=None, **kwargs):
    """Traces fn and compares; `other` is the condition to compare with."""
    found = traced(fn, shape, order, condition=condition, params=params, **kwargs)
    check(found, fn, shape, LEVELS, condition if other is None else other, params)
    return found


def as_parameters(shape):
    """Any tensor as (1, K, 1, *space)."""

    def params(y):
        size = math.prod(shape[1:])
        flat = y.reshape(-1)
        return F.pad(flat, (0, -len(flat) % size)).reshape(1, -1, 1, *shape[1:])

    return params


class Features(nn.Module):
    """Codes to two maps of 6 channels: what ops are tried on."""

    def __init__(self, colors=1, dims=2):
        super().__init__()
        torch.manual_seed(0)
        conv = nn.Conv2d if dims == 2 else nn.Conv1d
        self.f = conv(colors, 6, 3, padding=1)
        self.g = conv(colors, 6, 1)

    def forward(self, codes):
        x = codes.float() / (LEVELS - 1)
        return self.f(x), self.g(x)


def on_features(op, shape=SHAPE):
    features = Features(shape[0], len(shape) - 1)

    def fn(codes):
        return op(*features(codes))

    return fn


def kinds(found):
    return [node.kind for node in found.graph.nodes]


MASK = torch.ones(12, 12).tril().bool()
torch.manual_seed(5)
A, B, V = torch.randn(6, 6), torch.randn(12, 12), torch.randn(6)
MAP = torch.randn(1, 1, 4, 3)


def inplace(function):
    def op(f, g):
        f = f.clone()
        function(f, g)
        return f

    return op


def tokens(f):
    """(1, 12, 6)"""
    return f.flatten(2).transpose(1, 2)


OPS = {
    # pointwise
    "arithmetic": lambda f, g: (f + 2 * g - 1) * f / 3,
    "scalar on the left": lambda f, g: 1 - f + (2 / (g + 9)),
    "alpha": lambda f, g: torch.add(f, g, alpha=0.5) - torch.sub(f, g, alpha=2),
    "gates": lambda f, g: torch.tanh(f) * torch.sigmoid(g),
    "activations": lambda f, g: (
        F.relu(f) + F.elu(f) + F.elu(f, 0.5) + F.selu(f) + F.celu(f, 0.7) + F.gelu(f)
    ),
    "more activations": lambda f, g: (
        F.gelu(f, approximate="tanh") + F.silu(f) + F.softplus(f) + F.softplus(f, 2.0) + F.mish(f)
    ),
    "hard activations": lambda f, g: (
        F.leaky_relu(f, 0.2) + F.hardtanh(f) + F.relu6(f) + F.hardswish(f) + F.hardsigmoid(g)
    ),
    "rare activations": lambda f, g: (
        F.logsigmoid(f) + F.softsign(f) + F.threshold(f, 0.1, 2.0) + F.prelu(f, V)
    ),
    "exponentials": lambda f, g: torch.exp(f) + torch.log(f.abs() + 1) + torch.log1p(g * g),
    "powers": lambda f, g: f**2 + f**3 + (f.abs() + 1) ** 0.5 + (f.abs() + 1) ** 1.7 + 2**f,
    "roots": lambda f, g: torch.sqrt(f.abs() + 1) + torch.rsqrt(g.abs() + 1) + f.square(),
    "rounding": lambda f, g: (
        (3.3 * f).floor() + (3.3 * f).ceil() + (3.3 * f).round() + (3.3 * f).trunc()
    ),
    "trigonometry": lambda f, g: torch.sin(f) + torch.cos(f) + torch.erf(f) + f.sign(),
    "clamps": lambda f, g: f.clamp(-0.1, 0.2) + f.clamp(min=0.1) + f.clamp_max(0.1) + f.clip(0, 1),
    "comparisons": lambda f, g: (f > g).float() + (f <= 0.1).float() - (f == g).float(),
    "logic": lambda f, g: ((f > g) & (f > 0) | ~(g > 0)).float() + torch.logical_xor(f > 0, g > 0),
    "where": lambda f, g: torch.where(f > g, f, g * 2) + torch.where(MAP > 0, f, torch.tensor(0.5)),
    "extremes": lambda f, g: torch.maximum(f, g) + torch.min(f, g * 2),
    "lerp": lambda f, g: torch.lerp(f, g, 0.3) + torch.addcmul(f, f, g, value=0.5),
    "casts": lambda f, g: (4 * f).long().float() + f.double().float() + (f > 0).half().float(),
    "glu": lambda f, g: torch.cat(
        [F.glu(f, 1), F.glu(g.permute(0, 2, 3, 1), -1).permute(0, 3, 1, 2)], 1
    ),
    "per-channel and per-position constants": lambda f, g: f * V[:, None, None] + g * MAP + MAP,
    "a constant of ones and zeros": lambda f, g: f * (MAP > 0) + g * (V > 0).float()[:, None, None],
    "a constant with some zeros": lambda f, g: (
        f * MAP.clamp(min=0) + g * V.clamp(min=0)[:, None, None]
    ),
    "outer": lambda f, g: f[:, :, :, :1] * g[:, :, :1, :] + f[:, :1] * g,
    # movement
    "padding and shifts": lambda f, g: F.pad(f, (1, 0, 1, 0))[:, :, :-1, :-1] + g,
    "padding with a value": lambda f, g: F.pad(f, (1, 1, 0, 0), value=0.7)[..., :-2] * g,
    "other padding": lambda f, g: (
        F.pad(f, (1, 1, 1, 1), mode="reflect") + F.pad(g, (1, 1, 1, 1), mode="replicate")
    ),
    "circular padding": lambda f, g: F.pad(f, (1, 1, 1, 1), mode="circular"),
    "concat_elu": lambda f, g: F.elu(torch.cat([f, -f], 1)),
    "stack and unbind": lambda f, g: torch.stack([f, g], 2).unbind(2)[1] + torch.stack([f, g])[0],
    "chunks and thirds": lambda f, g: (
        f.chunk(2, 1)[0] * g.chunk(2, 1)[1] + torch.cat(f.tensor_split(3, 1)[:2], 1)[:, :3]
    ),
    "interleaved": lambda f, g: f[:, 0::3] + g[:, 1::3] * f[:, 2::3],
    "permuted channels": lambda f, g: f[:, [3, 1, 0, 2, 5, 4]] * g,
    "flip and roll": lambda f, g: f.flip(1) + g.roll(1, 2) + f.roll((1, 2), (2, 3)),
    "repeat": lambda f, g: f.repeat(1, 2, 1, 1) + g.tile(1, 2, 1, 1) + g.repeat_interleave(2, 1),
    "expand": lambda f, g: f[:, :1].expand(-1, 6, -1, -1) + g,
    "shuffles": lambda f, g: (
        F.channel_shuffle(f, 2)
        + F.pixel_unshuffle(F.pixel_shuffle(g.repeat(1, 4, 1, 1), 2), 2)[:, :6]
    ),
    "up-sampling": lambda f, g: (
        F.interpolate(f, scale_factor=2) + F.pixel_shuffle(g.repeat(1, 4, 1, 1), 2)
    ),
    "indices": lambda f, g: f[:, :, [2, 0, 1]] + g.index_select(2, torch.tensor([0, 0, 3])),
    "gather": lambda f, g: f.gather(
        1, torch.arange(6).flip(0)[None, :, None, None].expand(1, 6, 4, 3)
    ),
    "masks": lambda f, g: f.masked_fill(MAP > 0, -1.5) + torch.where(MAP > 0, g, f),
    "triangles": lambda f, g: f.tril() + g.triu(1),
    "scatters": lambda f, g: (
        torch.slice_scatter(f, g[:, :2], 1, 0, 2) + torch.select_scatter(f, g[:, :, 0], 2, 1)
    ),
    "in place": inplace(lambda f, g: f.mul_(2).add_(g).relu_()),
    "in place on views": inplace(lambda f, g: (f[:, :2].add_(g[:, 2:4]), f[:, :, 1].zero_())),
    "assignment": inplace(
        lambda f, g: (
            f.__setitem__((slice(None), 1), g[:, 2]),
            f.__setitem__((slice(None), slice(None), 2), 3.0),
            f.__setitem__((slice(None), torch.tensor([0, 5])), g[:, :2] * 2),
        )
    ),
    "written into zeros": lambda f, g: torch.zeros(1, 6, 4, 3).index_copy(
        1, torch.tensor([4, 1]), f[:, :2]
    ),
    "channels last": lambda f, g: f.permute(0, 2, 3, 1).contiguous().view(1, 12, 6).transpose(1, 2),
    # linear
    "strided and dilated": lambda f, g: F.conv2d(
        F.pad(f, (2, 2, 2, 2)),
        A[:, :, None, None].expand(6, 6, 3, 2).contiguous() * torch.arange(1.0, 7).view(3, 2),
        V,
        stride=2,
        dilation=(1, 2),
    ),
    "groups": lambda f, g: F.conv2d(
        f, torch.stack([A[:3, :3]] * 2).reshape(6, 3, 1, 1), V, groups=2
    ),
    "depthwise": lambda f, g: F.conv2d(
        f, B[:, :9].reshape(12, 1, 3, 3), V.repeat(2), padding=1, groups=6
    ),
    "transposed": lambda f, g: F.conv_transpose2d(
        f, B.flatten()[:108].reshape(6, 2, 3, 3), None, stride=2, padding=1, output_padding=1
    ),
    "transposed in groups": lambda f, g: F.conv_transpose2d(
        f, B.flatten()[:72].reshape(6, 2, 2, 3), V[:4], stride=(1, 2), groups=2, dilation=2
    ),
    "linear over channels last": lambda f, g: F.linear(f.permute(0, 2, 3, 1), A, V),
    "matmul": lambda f, g: (tokens(f) @ A).transpose(1, 2) + A @ f.flatten(2),
    "einsum": lambda f, g: torch.einsum("bchw,cd->bdhw", f, A),
    "positions mixed": lambda f, g: B.tril() @ tokens(f),
    "matrix times vector": lambda f, g: tokens(f)[0] @ V,
    "convolution of padded values": lambda f, g: F.conv2d(
        F.pad(f, (1, 1, 1, 1), value=0.5), B.flatten()[:108].reshape(2, 6, 3, 3)
    ),
    "convolution with coordinates": lambda f, g: F.conv2d(
        torch.cat([f, MAP, torch.ones(1, 1, 4, 3)], 1),
        B.flatten()[:144].reshape(2, 8, 3, 3),
        padding=1,
    ),
    "unfold and fold": lambda f, g: F.fold(F.unfold(f, 3, padding=1) * 0.5, (4, 3), 3, padding=1),
    "average pooling": lambda f, g: F.avg_pool2d(f, 2, 1) + F.adaptive_avg_pool2d(g, (3, 2)),
    "largest": lambda f, g: F.max_pool2d(f, 2, 1) + F.max_pool2d(f, 3, 1, 1)[:, :, :3, :2],
    "bilinear": lambda f, g: F.interpolate(f, scale_factor=2, mode="bilinear"),
    # reductions
    "sums": lambda f, g: (
        f.sum(1) + f.mean(1) + f.amax(1) + f.amin(1) + f.prod(1) + g.sum((1, 3))[..., None]
    ),
    "variances": lambda f, g: f.var(1) + f.std(1) + torch.var_mean(f, 1, correction=0)[0],
    "norms": lambda f, g: f.norm(dim=1) + F.normalize(g, dim=1)[:, 0] + f.abs().norm(p=1, dim=1),
    "logsumexp": lambda f, g: f.logsumexp(1) + F.log_softmax(g, 1)[:, 2] + F.softmax(f, 1)[:, 1],
    "largest of a dimension": lambda f, g: f.max(1).values + f.min(2).values.sum(),
    "running sums": lambda f, g: f.cumsum(1) + f.cumsum(2) + f.flatten(2).cumsum(2).view_as(f),
    "layer norm": lambda f, g: F.layer_norm(f.permute(0, 2, 3, 1), (6,), V, V, 1e-3),
    "rms norm": lambda f, g: F.rms_norm(f.permute(0, 2, 3, 1), (6,), V),
    "layer norm of groups": lambda f, g: F.layer_norm(
        f.view(1, 3, 2, 4, 3).permute(0, 3, 4, 1, 2), (2,)
    ),
    "group norm of positions": lambda f, g: F.group_norm(
        f.permute(0, 2, 3, 1).reshape(12, 6), 2, V, V
    ),
    # attention
    "products": lambda f, g: f.flatten(2).transpose(1, 2) @ g.flatten(2),
    "outer product": lambda f, g: tokens(f)[..., :1] @ tokens(g)[..., :1].transpose(1, 2),
    "masked attention": lambda f, g: (
        F.softmax((tokens(f) @ g.flatten(2)).masked_fill(~MASK, -math.inf), -1) @ tokens(g)
    ),
    "attention by channels": lambda f, g: torch.einsum(
        "bij,bcj->bci",
        F.softmax((tokens(f) @ g.flatten(2)).masked_fill(~MASK, -1e10), -1),
        g.flatten(2),
    ),
    "fused attention": lambda f, g: F.scaled_dot_product_attention(
        tokens(f)[:, None], tokens(g)[:, None], tokens(f * 2)[:, None], is_causal=True
    ),
    "fused attention with a mask": lambda f, g: F.scaled_dot_product_attention(
        tokens(f), tokens(g), tokens(f * 2), attn_mask=MASK
    ),
    "additive mask": lambda f, g: (
        F.softmax(tokens(f) @ g.flatten(2) + torch.where(MASK, 0.0, -1e9), -1) @ tokens(g)
    ),
    "multiplied mask": lambda f, g: (
        F.softmax((tokens(f) @ g.flatten(2)) * MASK - 1e4 * (1 - MASK.float()), -1) @ tokens(g)
    ),
}


@pytest.mark.parametrize("name", OPS)
def test_an_op(name):
    verify(on_features(OPS[name]), params=as_parameters(SHAPE))
