"""The traced graph computes what the model does, on codes it was not traced with."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from graph_values import arena_of, check
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from fastgen.models import GatedPixelCNN, PixelCNN
from fastgen.sampling import graph as graph_module
from fastgen.sampling.arguments import ranks_of
from fastgen.sampling.errors import UnsupportedModelError
from fastgen.sampling.trace import trace

LEVELS = 5
SHAPE = (1, 4, 3)


def traced(fn, shape=SHAPE, order="raster", **kwargs):
    kwargs.setdefault("levels", LEVELS)
    return trace(fn, shape, ranks_of(order, shape, False), **kwargs)


def verify(fn, shape=SHAPE, order="raster", condition=None, params=None, other=None, **kwargs):
    """Traces fn and compares; `other` is the condition to compare with."""
    found = traced(fn, shape, order, condition=condition, params=params)
    check(found, fn, shape, LEVELS, condition if other is None else other, params, **kwargs)
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


def late(found):
    """How many parameters need a code that is drawn with theirs or later."""
    return int((found.graph.ready(found.params) > found.ranks).any(0).sum())


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
    "shrinking": lambda f, g: (
        F.hardshrink(f, 0.1) + F.softshrink(g, 0.1) + F.tanhshrink(f) + F.rrelu(g)
    ),
    "not numbers": lambda f, g: (
        torch.nan_to_num(f / (g > 0), 0.5, 2.0, -3.0) + torch.nan_to_num(torch.log(f), 1.0)
    ),
    "exponentials": lambda f, g: torch.exp(f) + torch.log(f.abs() + 1) + torch.log1p(g * g),
    "powers": lambda f, g: f**2 + f**3 + (f.abs() + 1) ** 0.5 + (f.abs() + 1) ** 1.7 + 2**f,
    "roots": lambda f, g: torch.sqrt(f.abs() + 1) + torch.rsqrt(g.abs() + 1) + f.square(),
    "rounding": lambda f, g: (
        (3.3 * f).floor() + (3.3 * f).ceil() + (3.3 * f).round() + (3.3 * f).trunc()
    ),
    "trigonometry": lambda f, g: torch.sin(f) + torch.cos(f) + torch.erf(f) + f.sign(),
    "inverse functions": lambda f, g: (
        torch.atan(9 * f) + torch.asin(f.tanh()) + torch.acos(g.tanh()) + torch.asinh(f)
    ),
    "hyperbolic functions": lambda f, g: (
        torch.sinh(f) + torch.cosh(f) + torch.atanh(f.tanh()) + torch.acosh(1 + g.abs())
    ),
    "sums of exponentials": lambda f, g: torch.logaddexp(f, g) + torch.tan(f) + torch.exp2(g),
    "clamps": lambda f, g: f.clamp(-0.1, 0.2) + f.clamp(min=0.1) + f.clamp_max(0.1) + f.clip(0, 1),
    "comparisons": lambda f, g: (f > g).float() + (f <= 0.1).float() - (f == g).float(),
    "logic": lambda f, g: ((f > g) & (f > 0) | ~(g > 0)).float() + torch.logical_xor(f > 0, g > 0),
    "finite or not": lambda f, g: (
        torch.isinf(1 / f.relu()).float()
        + torch.isfinite(torch.log(g)).float()
        + torch.isnan(g.log())
    ),
    "sums of bools": lambda f, g: ((f > 0) + (g > 0)).float() + (f > 0) + torch.tensor(True),
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
    "assignment by a mask": inplace(
        lambda f, g: (f.__setitem__(g > 0, 0.5), f.__setitem__(MAP.expand_as(f) > 0, -1.0))
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
    "many groups": lambda f, g: F.conv2d(
        torch.cat([f, g], 1), B.flatten()[:72].reshape(18, 2, 1, 2), V.repeat(3), groups=6
    ),
    "transposed": lambda f, g: F.conv_transpose2d(
        f, B.flatten()[:108].reshape(6, 2, 3, 3), None, stride=2, padding=1, output_padding=1
    ),
    "transposed in groups": lambda f, g: F.conv_transpose2d(
        f, B.flatten()[:72].reshape(6, 2, 2, 3), V[:4], stride=(1, 2), groups=2, dilation=2
    ),
    "transposed by channels": lambda f, g: F.conv_transpose2d(
        f, B.flatten()[:54].reshape(6, 1, 3, 3), V, stride=2, groups=6
    ),
    "sequences": lambda f, g: (
        F.conv1d(
            f.flatten(2), B.flatten()[:36].reshape(6, 2, 3), V, stride=2, dilation=2, groups=3
        )[..., :4]
        + F.conv_transpose1d(g.flatten(2), A.view(6, 3, 2), None, 2, 1, 1, 2)[..., :4]
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


def randomised(model):
    """In eval mode, with weights and statistics that hide nothing."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    for parameter in model.parameters():
        noise = torch.empty_like(parameter).normal_(0, 0.2, generator=generator)
        parameter.data.add_(noise)
    return model.eval()


def test_composite_ops_in_inference_mode():
    model = randomised(Attention(None))

    @torch.inference_mode()
    def fn(codes):
        return model(codes)

    assert late(verify(fn)) == 0


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_fused_attention_by_the_kernel_the_model_asks_for():
    def op(f, g):
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            f, g = tokens(f)[:, None].contiguous(), tokens(g)[:, None].contiguous()
            masked = F.scaled_dot_product_attention(f, g, f * 2, MASK, scale=0.3)
            return masked + F.scaled_dot_product_attention(f, g, f, is_causal=True)

    verify(on_features(op), params=as_parameters(SHAPE))


def test_halves():
    model = randomised(Plain(6, 2, 5)).bfloat16()

    def fn(codes):
        return model.net(codes.bfloat16() / 4)[:, :, None]

    verify(fn, tolerance=0.03)
    plain = randomised(Plain(6, 2, 5))

    def autocast(codes):
        with torch.autocast("cpu", torch.bfloat16):
            return plain(codes)

    verify(autocast, tolerance=0.03)


# codes


def embedded(codes):
    return F.embedding(codes[:, 0], B[:LEVELS]).permute(0, 3, 1, 2)


CODE_OPS = {
    "embedding": embedded,
    "table": lambda codes: (
        B[codes[:, 0]] + B[:, :LEVELS].index_select(1, codes.flatten()).T.view(1, 4, 3, 12)
    ),
    "one_hot": lambda codes: F.one_hot(codes[:, 0], LEVELS).permute(0, 3, 1, 2).float() * 2,
    "one_hot by scatter": lambda codes: torch.zeros(1, LEVELS, 4, 3).scatter_(1, codes, 1.0),
    "one_hot by comparison": lambda codes: (codes == torch.arange(LEVELS)[:, None, None]).float(),
    "one_hot of few levels": lambda codes: (codes[..., None] == torch.arange(3)).float(),
    "integers": lambda codes: codes // 2 + codes % 3 + (codes & 1) + (codes >> 1) - (codes << 1),
    "bits": lambda codes: (codes[..., None] >> torch.arange(3)) & 1,
    "bits by masks": lambda codes: (
        (codes[..., None] & 2 ** torch.arange(3)) + (codes & 3)[..., None]
    ),
    "division": lambda codes: torch.div(codes, 3, rounding_mode="floor") + (codes / 3).floor(),
    "scaling": lambda codes: (codes.float() / 255 - 0.5) / 0.25,
    "bytes": lambda codes: codes.to(torch.uint8).to(torch.float32).half().float(),
    "guarded": lambda codes: guarded(codes),
}


def guarded(codes):
    if codes.min() < 0 or int(codes.max()) > LEVELS or torch.isnan(codes.float()).any():
        raise ValueError("out of range")
    assert bool((codes.amax() < LEVELS).all())
    return codes.float()


@pytest.mark.parametrize("name", CODE_OPS)
def test_an_op_on_codes(name):
    verify(CODE_OPS[name], params=as_parameters(SHAPE))


def test_one_hot_is_a_lookup_however_it_is_written():
    for name in ("one_hot", "one_hot by scatter", "one_hot by comparison"):
        found = traced(CODE_OPS[name], params=as_parameters(SHAPE))
        assert "lookup" in [node.kind for node in found.graph.nodes], name


@pytest.mark.parametrize("shape", [(1, 7), (3, 5), (2, 1), (3, 2, 5), (1, 1, 1)])
def test_shapes(shape):
    found = verify(
        on_features(lambda f, g: torch.relu(f) * g, shape), shape, params=as_parameters(shape)
    )
    assert found.params.shape[2] == math.prod(shape[1:])
    assert found.codes.shape == (math.prod(shape),)


# orders


def test_ranks_are_dense_and_codes_drawn_together_share_a_cell():
    codes = lambda x: x.float()[:, None].expand(-1, 2, -1, -1, -1)  # noqa: E731
    together = traced(codes, (3, 2, 2), "raster")
    assert together.steps == 4 and together.graph.nodes[0].nch == 3
    apart = traced(codes, (3, 2, 2), "subpixel")
    assert apart.steps == 12
    backwards = traced(codes, (3, 2, 2), torch.tensor([[70, 50], [20, 20]]))
    np.testing.assert_array_equal(backwards.ranks[0], [2, 1, 0, 0])
    ready = backwards.graph.ready(backwards.codes).reshape(3, 4)
    np.testing.assert_array_equal(ready, backwards.ranks + 1)


# models


class MaskedConv(nn.Conv2d):
    """Multiplies its mask into weight.data on every forward."""

    def __init__(self, kind, cin, cout, k, colors=1):
        super().__init__(cin, cout, k, padding=k // 2)
        mask = torch.zeros_like(self.weight)
        c = k // 2
        mask[:, :, :c] = 1
        mask[:, :, c, :c] = 1
        source = torch.arange(cin) * colors // cin
        target = torch.arange(cout) * colors // cout
        sees = target[:, None] > source if kind == "A" else target[:, None] >= source
        mask[:, :, c, c] = sees.float()
        self.register_buffer("mask", mask)

    def forward(self, x):
        self.weight.data *= self.mask
        return super().forward(x)


class Plain(nn.Module):
    def __init__(self, channels=6, layers=2, k=5, colors=1):
        super().__init__()
        parts = []
        for i in range(layers):
            kind, cin = ("B", channels) if i else ("A", colors)
            parts += [MaskedConv(kind, cin, channels, k, colors)]
            parts += [nn.BatchNorm2d(channels), nn.ReLU()]
        self.net = nn.Sequential(*parts, MaskedConv("B", channels, colors * LEVELS, 1, colors))
        self.colors = colors

    def forward(self, codes):
        y = self.net(codes.float() / (LEVELS - 1))
        return y.unflatten(1, (self.colors, LEVELS)).transpose(1, 2)


@pytest.mark.parametrize("colors, order", [(1, "raster"), (3, "subpixel")])
def test_masks_multiplied_in_place(colors, order):
    model = randomised(Plain(6, 2, 5, colors))
    found = verify(model, (colors, 5, 4), order)
    assert late(found) == 0
    leaves = {id(leaf) for leaf in found.leaves}
    assert {id(parameter) for parameter in model.parameters()} <= leaves
    assert id(model.net[0].mask) in leaves and id(model.net[1].running_var) in leaves
    assert {"", "net", "net.0"} <= set(found.modules)
    assert "net.0" in {node.module for node in found.graph.nodes}
    assert found.ops["aten::convolution"] == 3


def test_one_class_of_outputs_in_a_net_of_one_colour():
    found = traced(randomised(Plain(6, 3, 3)), (1, 8, 8))
    count = [node.kind for node in found.graph.nodes].count("linear")
    assert count == 4


def test_a_weight_that_is_zero_by_chance_splits_no_channel_off():
    model = randomised(Plain(6, 2, 3))
    model.net[3].weight.data[2, 1] = 0
    model.net[3].weight.data[4] = 0
    found = verify(model, (1, 6, 5))
    # an output that reads nothing at all is a constant; the others stay together
    assert [node.nch for node in found.graph.nodes if node.kind == "linear"] == [6, 5, LEVELS]


def test_a_leak_is_seen():
    model = randomised(Plain(6, 1, 3))
    model.net[0].mask[0, 0, 1, 1] = 1
    model.net[0].weight.data[0, 0, 1, 1] = 0.3
    assert late(verify(model, (1, 5, 4))) > 0


@pytest.mark.parametrize("cls", [PixelCNN, GatedPixelCNN])
@pytest.mark.parametrize(
    "colors, classes, maps", [(1, None, None), (3, 4, 2), (1, 4, None), (1, None, 2)]
)
def test_our_models(cls, colors, classes, maps):
    shape = (colors, 4, 5)
    model = cls(shape, LEVELS, channels=6, layers=1, classes=classes, condition_channels=maps)
    model = randomised(model)
    conditions = []
    for label in (1, 3):
        parts = [torch.tensor([label])] if classes else []
        parts += [torch.randn(1, maps, 4, 5)] if maps else []
        conditions.append(tuple(parts) if len(parts) > 1 else parts[0] if parts else None)
    found = verify(model, shape, model.order, conditions[0], other=conditions[1])
    assert late(found) == 0
    assert (found.tape.sources > 0) == bool(classes or maps)


class Strided(nn.Module):
    """Shifted streams, down and up, concatenated elu, skips."""

    def __init__(self, channels=4):
        super().__init__()
        self.above = nn.Conv2d(1, channels, (2, 3))
        self.left = nn.Conv2d(1, channels, (1, 2))
        self.down = nn.Conv2d(2 * channels, channels, (2, 3), 2)
        self.up = nn.ConvTranspose2d(channels, 2 * channels, (2, 3), 2, output_padding=(0, 1))
        self.out = nn.Conv2d(4 * channels, LEVELS, 1)

    def forward(self, codes):
        x = codes.float() / LEVELS
        u = self.above(F.pad(x, (1, 1, 2, 0)))[:, :, :-1]
        u = u + F.pad(self.left(F.pad(x, (1, 0)))[..., :-1], (1, 0))
        d = self.down(F.pad(F.elu(torch.cat([u, -u], 1)), (1, 1, 1, 0)))
        y = self.up(torch.tanh(d))[:, :, : x.shape[2], 1 : x.shape[3] + 1]
        y = torch.cat([y, u, -u], 1)
        return self.out(F.elu(y))[:, :, None]


def test_strides_down_and_up():
    found = verify(randomised(Strided()), (1, 6, 8))
    ups = [n for n in found.graph.nodes if n.module == "up" and n.kind == "linear"]
    assert len(ups) == 4  # one for each phase


class Attention(nn.Module):
    """Transformer over pixels in raster order: position i sees codes before i."""

    def __init__(self, fill=-math.inf, width=8, heads=2, strict=False):
        super().__init__()
        self.start = nn.Parameter(torch.zeros(width))
        self.embed = nn.Embedding(LEVELS, width)
        self.place = nn.Parameter(torch.zeros(12, width))
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.head = nn.Linear(width, LEVELS)
        self.fill, self.heads, self.strict = fill, heads, strict

    def forward(self, codes):
        h = self.embed(codes.flatten(1))
        if not self.strict:
            h = torch.cat([self.start.expand(len(h), 1, -1), h[:, :-1]], 1)
        h = h + self.place
        b, t, d = h.shape
        q, k, v = (
            part.view(b, t, self.heads, -1).transpose(1, 2)
            for part in self.qkv(self.norm(h)).chunk(3, -1)
        )
        if self.strict:  # a query must not know its own code
            q = self.place.view(b, t, self.heads, -1).transpose(1, 2)
        if self.fill is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            seen = torch.ones(t, t).tril(-1 if self.strict else 0)
            scores = q @ k.transpose(-2, -1) / d**0.5
            scores = scores.masked_fill(seen == 0, self.fill)
            y = torch.softmax(scores, -1) @ v
        y = y.transpose(1, 2).reshape(b, t, d)
        h = y if self.strict else h + y
        h = h + self.mlp(h)
        return self.head(h).transpose(1, 2).view(b, LEVELS, *codes.shape[1:])


@pytest.mark.parametrize("fill", [-math.inf, -1e4, -1e10, None])
def test_causal_attention(fill):
    found = verify(randomised(Attention(fill)))
    assert late(found) == 0


def test_a_row_that_is_all_finite_fill_depends_on_everything():
    found = verify(randomised(Attention(-1e10, strict=True)))
    assert late(found) == 1


def test_a_row_that_is_all_minus_infinity_is_nan():
    found = verify(randomised(Attention(-math.inf, strict=True)))
    model = randomised(Attention(-math.inf, strict=True))
    codes = torch.ones(1, *SHAPE, dtype=torch.int64)
    arena = arena_of(found, codes[0])[found.params]
    assert np.isnan(arena[:, :, 0]).all() and model(codes)[:, :, 0, 0, 0].isnan().all()
    assert not np.isnan(arena[:, :, 1:]).any()
    assert late(found) == 0


class PerLocation(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, mask, weight):
        columns = F.unfold(x, 3, padding=1)
        ctx.save_for_backward(columns)
        return (weight.flatten(1) @ (columns * mask)).view(len(x), -1, *x.shape[2:])


def test_masks_for_each_location_and_any_order():
    order = torch.randperm(20, generator=torch.Generator().manual_seed(2)).view(4, 5)
    place = F.pad(order[None, None].double(), (1, 1, 1, 1), value=99)
    neighbours = F.unfold(place, 3)  # (1, 9, 20)
    weights = [torch.randn(6, 1, 3, 3), torch.randn(LEVELS, 6, 3, 3)]

    def fn(codes):
        x = codes.float()
        first = (neighbours < order.flatten()).float()
        x = torch.relu(PerLocation.apply(x, first, weights[0]))
        second = (neighbours <= order.flatten()).float().repeat_interleave(1, 0).repeat(1, 6, 1)
        return PerLocation.apply(x, second, weights[1])[:, :, None]

    # unfold has the channels outside the taps
    found = verify(fn, (1, 4, 5), order)
    assert late(found) in (0, 20)


class Dilated(nn.Module):
    """1-d stack; the second convolution folds time into the batch."""

    def __init__(self):
        super().__init__()
        self.a = nn.utils.weight_norm(nn.Conv1d(2, 6, 2))
        self.b = nn.Conv1d(6, 6, 2)
        self.c = nn.Conv1d(6, 2 * LEVELS, 1)

    def forward(self, codes):
        x = F.pad(codes.float(), (2, 0))[..., :-1]
        x = torch.relu(self.a(x))
        n, c, length = x.shape
        folded = F.pad(x, (2, 0)).view(n, c, -1, 2).permute(3, 0, 1, 2).reshape(2 * n, c, -1)
        y = self.b(folded).view(2, n, c, -1).permute(1, 2, 3, 0).reshape(n, c, -1)
        return self.c(x + y).view(n, 2, LEVELS, length).transpose(1, 2)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_dilation_by_folding_time_into_the_batch():
    assert late(verify(randomised(Dilated()), (2, 8))) == 0


@pytest.mark.parametrize("cell", [nn.GRU, nn.LSTM])
def test_recurrences(cell):
    rnn = randomised(cell(1, LEVELS, batch_first=True))

    def fn(codes):
        x = F.pad(codes.float(), (1, 0))[..., :-1]
        return rnn(x.transpose(1, 2))[0].transpose(1, 2)[:, :, None]

    assert late(verify(fn, (1, 5))) == 0


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_transformer_layers():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
    encoder = randomised(nn.TransformerEncoder(layer, 1, enable_nested_tensor=False))
    embed = torch.randn(LEVELS, 8)
    mask = nn.Transformer.generate_square_subsequent_mask(5)

    def fn(codes):
        h = F.pad(embed[codes[:, 0]], (0, 0, 1, 0))[:, :-1]
        return encoder(h, mask=mask, is_causal=True).transpose(1, 2)[:, :, None]

    assert late(verify(fn, (1, 5))) == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_modules_that_are_compiled_scripted_or_checkpointed():
    net = randomised(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 1)))
    compiled, scripted = torch.compile(net, backend="eager"), torch.jit.script(net)

    def fn(codes):
        x = codes.float()
        y = compiled(x) + scripted(x) + checkpoint(net, x, use_reentrant=False)
        return (y + torch.func.vmap(lambda x: net(x[None])[0])(x))[:, :, None]

    verify(fn)


# conditions


def test_a_condition_network_may_do_anything():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU()).eval()
    table = torch.randn(7, 4)

    def fn(codes, condition):
        assert condition["label"].max() < 7
        h = net(condition["map"])
        h = (h - h.mean((2, 3), keepdim=True)) / h.std((2, 3), keepdim=True)
        h[:, :2].mul_(2)
        buffer = torch.zeros(1, 4, 4, 3)
        buffer[:, 1:] = h[:, :3]
        scale = table[condition["label"]][:, :, None, None]
        f = features(codes)[0][:, :4]
        return torch.tanh(f * scale + h) + buffer * condition["scale"].view(-1, 1, 1, 1)

    features = Features()

    def condition(label, scale):
        maps = torch.randn(1, 2, 4, 3)
        return {"map": maps, "label": torch.tensor([label]), "scale": torch.tensor([scale])}

    one, two = condition(2, 0.5), condition(6, -1.5)
    found = verify(fn, condition=one, other=two, params=as_parameters(SHAPE))
    check(found, fn, SHAPE, LEVELS, one, as_parameters(SHAPE))
    first, second = found.tape.run(two), found.tape.run(two)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(a.dtype == torch.float64 and a.dim() == 1 for a in first)


@pytest.mark.parametrize("layout", ["tokens", "vector", "images"])
def test_conditions_of_any_layout(layout):
    features = Features()

    def fn(codes, condition):
        f, g = features(codes)
        if layout == "tokens":
            return tokens(f) * condition + tokens(g)
        if layout == "vector":
            return f + condition[:, :6, None, None] * g + condition[:, 6:, None, None]
        return torch.cat([f, condition], 1) * condition[:, :1]

    shape = {"tokens": (1, 12, 6), "vector": (1, 12), "images": (1, 6, 4, 3)}[layout]
    one, two = torch.randn(shape), torch.randn(shape)
    verify(fn, condition=one, other=two, params=as_parameters(SHAPE))


def test_a_condition_is_not_changed():
    condition = torch.ones(1, 12)

    def fn(codes, condition):
        condition.mul_(2)
        return codes.float() * condition.view(1, 1, 4, 3)

    verify(fn, condition=condition.clone(), other=condition.clone(), params=as_parameters(SHAPE))
    found = traced(fn, condition=condition, params=as_parameters(SHAPE))
    found.tape.run(condition)
    assert (condition == 1).all()


def test_a_condition_may_choose_weights():
    features = Features()

    def fn(codes, condition):
        f, _ = features(codes)
        return tokens(f) @ condition

    one, two = torch.randn(1, 6, 5), torch.randn(1, 6, 5)
    verify(fn, condition=one, other=two, params=as_parameters(SHAPE))


# what only works at some batch sizes, and what keeps state


def test_a_model_that_needs_two_images_is_traced_with_two():
    def fn(codes):
        if len(codes) == 1:
            raise RuntimeError("expected two")
        return codes.float()[:, None]

    found = traced(fn)
    assert late(found) == 12
    features = Features()

    def squeezed(codes, condition):
        if codes.squeeze().dim() < 3:
            raise RuntimeError("squeezed the batch away")
        return features(codes)[0] * condition[:, None]

    one = torch.randn(1, 4, 3)
    params = lambda y: y[:, :, None]  # noqa: E731
    found = traced(squeezed, condition=one, params=params)
    assert found.tape.batch == 2
    assert (found.graph.ready(found.params) < graph_module.NEVER).all()
    arena = arena_of(found, torch.ones(1, 4, 3), one * 2)
    expected = squeezed(torch.ones(2, *SHAPE), (one * 2).repeat(2, 1, 1))[0].detach()
    np.testing.assert_allclose(arena[found.params[:, 0]].reshape(6, 4, 3), expected, atol=1e-5)


def test_values_in_buffers_the_model_writes():
    class Buffered(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("last", torch.zeros(1, 6, 4, 3))
            self.features = Features()

        def forward(self, codes):
            self.last[:, :3] = self.features(codes)[0][:, :3]
            return self.last * 2 + 1

    model = Buffered().eval()
    found = verify(model, params=as_parameters(SHAPE))
    assert not any(leaf is model.last for leaf in found.leaves)


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, codes):
        self.calls += 1
        return codes[:, None] * float(self.calls)


class Named(nn.Module):
    """Runs a function inside a module, to see its path in messages."""

    def __init__(self, function):
        super().__init__()
        self.inner = nn.Module()
        self.inner.forward = function

    def forward(self, *args):
        return self.inner(*args)


REFUSED = {
    "batch norm in train mode": (
        nn.Sequential(Features(), nn.BatchNorm2d(6)).train(),
        "train mode.*eval",
    ),
    "dropout": (lambda codes: F.dropout(codes.float()), "random"),
    "noise": (lambda codes: codes + torch.randn(1), "random"),
    "item": (lambda codes: codes * codes.flatten()[0].item(), "control flow"),
    "a list": (lambda codes: torch.tensor(codes.flatten().tolist()), "out of torch"),
    "an array": (lambda codes: torch.from_numpy(codes.numpy() * 2), "out of torch"),
    "largest value": (lambda codes: codes * codes.float().max().item(), "control flow"),
    "branch": (lambda codes: codes if codes.sum() > 3 else -codes, "control flow"),
    "shape": (lambda codes: codes[codes > 2], "control flow|index|depend"),
    "nonzero": (lambda codes: codes.nonzero(), "control flow"),
    "sorting": (lambda codes: codes.sort().values, "not supported"),
    "group norm": (lambda codes: F.group_norm(codes.float().expand(1, 4, 4, 3), 2), "normalis"),
    "instance norm": (lambda codes: F.instance_norm(codes.float()), "normalis"),
    "computed places": (lambda codes: codes.float().gather(3, codes % 3), "places"),
    "another type": (lambda codes: codes.float().view(torch.int32) + 1, "another type"),
    "complex": (lambda codes: torch.fft.fft(codes.float()).real, "not supported|complex|another"),
    "an unknown form": (
        lambda codes: F.conv3d(codes[None].float(), torch.ones(1, 1, 1, 1, 1)),
        "dim",
    ),
    "bits": (lambda codes: codes ^ 3, "bits"),
    "state": (Counting().eval(), "different results"),
    "a tuple": (lambda codes: (codes, codes), "params="),
    "a wrong shape": (lambda codes: codes.float(), "shape.*params="),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_compiled_is_refused(name):
    fn, message = REFUSED[name]
    if name == "batch norm in train mode":
        fn = lambda codes, m=fn[1]: m(codes.float().expand(-1, 6, -1, -1))  # noqa: E731
    with pytest.raises(UnsupportedModelError, match=message):
        traced(fn)


def test_a_refusal_names_op_and_module():
    with pytest.raises(UnsupportedModelError, match=r"sort.*'inner'"):
        traced(Named(lambda codes: codes.sort().values).eval())


def test_host_reads_of_a_condition_are_refused():
    def fn(codes, condition):
        return codes if condition.sum() > 0 else -codes

    with pytest.raises(UnsupportedModelError, match="condition"):
        traced(fn, condition=torch.ones(1, 2))


def test_hooks_are_gone_after_a_failure():
    before = len(nn.modules.module._global_forward_hooks)
    with pytest.raises(ZeroDivisionError):
        traced(lambda codes: codes / (1 // 0))
    assert len(nn.modules.module._global_forward_hooks) == before


def test_an_activation_computed_twice_is_one_node():
    found = traced(
        on_features(lambda f, g: torch.tanh(f) + torch.tanh(f) * g), params=as_parameters(SHAPE)
    )
    assert [node.op for node in found.graph.nodes].count("aten::tanh") == 1


def test_errors_of_the_model_itself_come_through():
    def fn(codes):
        try:
            return codes + torch.ones(7, 9)
        except RuntimeError:
            return codes.float()[:, None] * 2

    verify(fn)
    with pytest.raises(RuntimeError, match="must match"):
        traced(lambda codes: codes + torch.ones(7, 9))


def test_a_condition_network_under_autocast_whoever_runs_the_tape():
    net = randomised(nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)))
    features = Features()

    def fn(codes, condition):
        with torch.autocast("cpu", torch.bfloat16, enabled=False):
            return features(codes)[0] + net(condition)[:, :, None, None]

    one = torch.randn(1, 6)
    with torch.autocast("cpu", torch.bfloat16):
        found = verify(fn, condition=one, params=as_parameters(SHAPE))
        inside = found.tape.run(one)
    assert torch.equal(inside[0], found.tape.run(one)[0])


def test_inside_a_device_context():
    ranks = ranks_of("raster", SHAPE, False)
    with torch.device("meta"):
        found = trace(on_cpu, SHAPE, ranks, levels=LEVELS)
    check(found, on_cpu, SHAPE, LEVELS)


def on_cpu(codes):
    return F.adaptive_avg_pool2d(F.pad(codes.float(), (1, 1, 1, 1), "reflect"), (4, 3))[:, None]
