"""Transformers over pixels in the order they are drawn."""

import torch
import torch.nn as nn
import torch.nn.functional as F

from fastgen.likelihoods import Categorical
from zoo.case import Case


class SelfAttention(nn.Module):
    def __init__(self, width, heads, length):
        super().__init__()
        self.heads = heads
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)
        self.dropout = nn.Dropout(0.1)
        mask = torch.tril(torch.ones(length, length)).view(1, 1, length, length)
        self.register_buffer("bias", mask)

    def forward(self, x):
        n, length, width = x.size()
        q, k, v = self.c_attn(x).split(width, dim=2)
        k = k.view(n, length, self.heads, width // self.heads).transpose(1, 2)
        q = q.view(n, length, self.heads, width // self.heads).transpose(1, 2)
        v = v.view(n, length, self.heads, width // self.heads).transpose(1, 2)
        weights = (q @ k.transpose(-2, -1)) * (1.0 / k.size(-1) ** 0.5)
        weights = weights.masked_fill(self.bias[:, :, :length, :length] == 0, float("-inf"))
        weights = self.dropout(F.softmax(weights, dim=-1))
        y = (weights @ v).transpose(1, 2).contiguous().view(n, length, width)
        return self.c_proj(y)


class Block(nn.Module):
    def __init__(self, width, heads, length):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = SelfAttention(width, heads, length)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(0.1)
        )

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class PixelTransformer(nn.Module):
    """Token and position embeddings, a start token, colours one after the other."""

    def __init__(self, shape, levels=5, width=8, heads=2, layers=2):
        super().__init__()
        colors, height, width_ = shape
        length = colors * height * width_
        self.token = nn.Embedding(levels, width)
        self.position = nn.Embedding(length, width)
        self.start = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(Block(width, heads, length) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, levels, bias=False)

    def forward(self, codes):
        n, c, h, w = codes.shape
        tokens = codes.permute(0, 2, 3, 1).reshape(n, -1)  # sub-pixel order
        x = self.token(tokens)
        x = torch.cat([self.start.expand(n, -1, -1), x[:, :-1]], dim=1)
        x = x + self.position(torch.arange(x.shape[1], device=x.device))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        return logits.view(n, h, w, c, -1).permute(0, 4, 3, 1, 2)


class LibraryTransformer(nn.Module):
    """nn.TransformerEncoder with a causal mask, and nn.MultiheadAttention by itself, (L, B, C)."""

    def __init__(self, length, levels=4, width=8):
        super().__init__()
        self.embed = nn.Embedding(levels + 1, width)
        layer = nn.TransformerEncoderLayer(
            width, 2, 16, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.attention = nn.MultiheadAttention(width, 2)
        self.place = nn.Parameter(torch.randn(length, width))
        self.out = nn.Linear(width, levels)
        self.levels = levels

    def forward(self, codes):
        tokens = F.pad(codes.flatten(1), (1, 0), value=self.levels)[:, :-1]
        x = self.embed(tokens) + self.place
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        x = self.encoder(x, mask=mask, is_causal=True)
        t = x.transpose(0, 1)
        y, _ = self.attention(t, t, t, attn_mask=mask, need_weights=False)
        x = self.out(x + y.transpose(0, 1))
        return x.transpose(1, 2).unflatten(2, codes.shape[1:])


class ConvTokens(nn.Module):
    """Channels-last residual blocks: depthwise convolution over rows above, LayerNorm, GELU MLP,
    a learned scale."""

    class Block(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.depthwise = nn.Conv2d(channels, channels, (2, 3), groups=channels)
            self.norm = nn.LayerNorm(channels, eps=1e-6)
            self.widen = nn.Linear(channels, 3 * channels)
            self.narrow = nn.Linear(3 * channels, channels)
            self.gamma = nn.Parameter(1e-6 * torch.ones(channels))

        def forward(self, x):
            y = self.depthwise(F.pad(x, (2, 0, 1, 0))).permute(0, 2, 3, 1)
            y = self.narrow(F.gelu(self.widen(self.norm(y))))
            return x + (self.gamma * y).permute(0, 3, 1, 2)

    def __init__(self, levels=5, channels=8):
        super().__init__()
        self.levels = levels
        self.stem = nn.Conv2d(1, channels, (1, 3))
        self.blocks = nn.Sequential(self.Block(channels), self.Block(channels))
        self.head = nn.Conv2d(channels, levels, 1)

    def forward(self, codes):
        x = codes.float().div(self.levels - 1).sub(0.5).mul(2)
        x = self.stem(F.pad(x, (3, 0)))[:, :, :, :-1]
        return self.head(self.blocks(x))[:, :, None]


CASES = [
    Case("transformer", lambda: PixelTransformer((1, 5, 5)), (1, 5, 5), Categorical(5)),
    Case(
        "transformer over colours",
        lambda: PixelTransformer((3, 3, 3)),
        (3, 3, 3),
        Categorical(5),
        "subpixel",
    ),
    Case("library transformer", lambda: LibraryTransformer(20), (1, 4, 5), Categorical(4)),
    Case("channels-last blocks", ConvTokens, (1, 6, 6), Categorical(5)),
]
