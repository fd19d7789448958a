"""Networks to sample from, written the way people write them; none knows about fastgen."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def gate(x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    return torch.tanh(a) * torch.sigmoid(b)


class TwoStacks(nn.Module):
    """A gated PixelCNN of a vertical and a horizontal stack, made causal by padding and cropping:
    a 7x7 first layer, then `layers` of 3x3. Its kernels hold no masked weights, so that eager
    PyTorch wastes nothing on them."""

    def __init__(self, channels: int = 64, layers: int = 13, levels: int = 256):
        super().__init__()
        c, both = channels, 2 * channels
        self.scale = 1 / (levels - 1)
        self.first_v, self.first_h = nn.Conv2d(1, both, (3, 7)), nn.Conv2d(1, both, (1, 3))
        self.v = nn.ModuleList(nn.Conv2d(c, both, (2, 3)) for _ in range(layers))
        self.h = nn.ModuleList(nn.Conv2d(c, both, (1, 2)) for _ in range(layers))
        self.v_to_h = nn.ModuleList(nn.Conv2d(both, both, 1) for _ in range(layers + 1))
        self.out = nn.ModuleList(nn.Conv2d(c, c, 1) for _ in range(layers + 1))
        self.head = nn.Sequential(
            nn.ReLU(), nn.Conv2d(c, both, 1), nn.ReLU(), nn.Conv2d(both, levels, 1)
        )

    def forward(self, codes: Tensor) -> Tensor:
        x = codes * self.scale
        v = self.first_v(F.pad(x, (3, 3, 3, 0)))[:, :, :-1]
        h = self.first_h(F.pad(x, (3, 0, 0, 0)))[:, :, :, :-1]
        h = self.out[0](gate(h + self.v_to_h[0](v)))
        for i, (conv_v, conv_h) in enumerate(zip(self.v, self.h, strict=True), 1):
            v = conv_v(F.pad(gate(v), (1, 1, 1, 0)))
            y = conv_h(F.pad(h, (1, 0, 0, 0))) + self.v_to_h[i](v)
            h = h + self.out[i](gate(y))
        return self.head(h)[:, :, None]


class InPlaceMaskedConv2d(nn.Conv2d):
    """Multiplies the mask into its weights on every forward. groups of colours: a channel belongs
    to the colour of its third."""

    def __init__(self, kind, channels_in, channels_out, kernel_size, colors=1):
        super().__init__(channels_in, channels_out, kernel_size, padding=kernel_size // 2)
        mask, c = torch.zeros_like(self.weight), kernel_size // 2
        mask[:, :, :c] = 1
        mask[:, :, c, :c] = 1
        color_in = torch.arange(channels_in) * colors // channels_in
        color_out = torch.arange(channels_out)[:, None] * colors // channels_out
        mask[:, :, c, c] = (color_in < color_out if kind == "A" else color_in <= color_out).float()
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data *= self.mask
        return super().forward(x)


class PlainBatchNorm(nn.Module):
    """Masked 7x7 convolutions, batch norm and ReLU."""

    def __init__(self, channels: int = 64, layers: int = 8, levels: int = 256):
        super().__init__()
        self.scale = 1 / (levels - 1)
        parts = []
        for i in range(layers):
            conv = InPlaceMaskedConv2d("B" if i else "A", channels if i else 1, channels, 7)
            parts += [conv, nn.BatchNorm2d(channels), nn.ReLU()]
        self.net = nn.Sequential(*parts, nn.Conv2d(channels, levels, 1))

    def forward(self, codes: Tensor) -> Tensor:
        return self.net(codes * self.scale)[:, :, None]


class ColourGroups(nn.Module):
    """Residual masked convolutions whose channels belong to colours by thirds."""

    def __init__(self, channels: int = 96, layers: int = 8, levels: int = 256):
        super().__init__()
        self.levels = levels
        self.first = InPlaceMaskedConv2d("A", 3, channels, 7, 3)
        self.blocks = nn.ModuleList(
            InPlaceMaskedConv2d("B", channels, channels, 3, 3) for _ in range(layers)
        )
        self.head = InPlaceMaskedConv2d("B", channels, 2 * channels, 1, 3)
        self.logits = InPlaceMaskedConv2d("B", 2 * channels, 3 * levels, 1, 3)

    def forward(self, codes: Tensor) -> Tensor:
        h = self.first(codes * (2 / (self.levels - 1)) - 1)
        for block in self.blocks:
            h = h + block(F.relu(h))
        y = self.logits(F.relu(self.head(F.relu(h))))
        return y.unflatten(1, (3, self.levels)).transpose(1, 2)


def concat_elu(x: Tensor) -> Tensor:
    return F.elu(torch.cat([x, -x], 1))


class ShiftedStreams(nn.Module):
    """PixelCNN++ in small: a stream that sees the rows above and one that sees the left as well,
    made by shifts, halved in resolution and doubled again, with concatenated ELUs and skips."""

    def __init__(self, channels: int = 32, levels: int = 256):
        super().__init__()
        c = channels
        self.scale = 1 / (levels - 1)
        self.first_down, self.first_row = nn.Conv2d(1, c, (2, 3)), nn.Conv2d(1, c, (1, 2))
        self.first_left = nn.Conv2d(1, c, (2, 1))
        self.above, self.left = nn.Conv2d(2 * c, c, (2, 3)), nn.Conv2d(2 * c, c, (2, 2))
        self.across = nn.Conv2d(2 * c, c, 1)
        self.halve_above = nn.Conv2d(c, c, (2, 3), stride=2)
        self.halve_left = nn.Conv2d(c, c, (2, 2), stride=2)
        self.low_above = nn.Conv2d(2 * c, 2 * c, (2, 3))
        self.low_left, self.low_across = nn.Conv2d(2 * c, 2 * c, (2, 2)), nn.Conv2d(2 * c, 2 * c, 1)
        self.double_above = nn.ConvTranspose2d(c, c, (2, 3), 2, output_padding=(0, 1))
        self.double_left = nn.ConvTranspose2d(c, c, (2, 2), 2)
        self.skip, self.last = nn.Conv2d(2 * c, c, 1), nn.Conv2d(2 * c, 2 * c, (2, 2))
        self.last_across, self.logits = nn.Conv2d(2 * c, 2 * c, 1), nn.Conv2d(2 * c, levels, 1)

    def forward(self, codes: Tensor) -> Tensor:
        x = codes * self.scale
        rows, columns = x.shape[2:]

        def from_above(t):
            return F.pad(t, (1, 1, 1, 0))

        def from_left(t):
            return F.pad(t, (1, 0, 1, 0))

        above = F.pad(self.first_down(from_above(x))[:, :, :-1], (0, 0, 1, 0))
        left = F.pad(self.first_left(F.pad(x, (0, 0, 1, 0)))[:, :, :-1], (0, 0, 1, 0))
        left = left + F.pad(self.first_row(F.pad(x, (1, 0)))[..., :-1], (1, 0))
        above = above + self.above(from_above(concat_elu(above)))
        left = left + self.left(from_left(concat_elu(left))) + self.across(concat_elu(above))
        low_above = self.halve_above(from_above(above))
        low_left = self.halve_left(from_left(left))
        low_above = low_above + F.glu(self.low_above(from_above(concat_elu(low_above))), 1)
        y = self.low_left(from_left(concat_elu(low_left))) + self.low_across(concat_elu(low_above))
        low_left = low_left + F.glu(y, 1)
        above = self.double_above(low_above)[:, :, :rows, 1 : columns + 1]
        left = self.double_left(low_left)[:, :, :rows, :columns] + self.skip(concat_elu(left))
        y = self.last(from_left(concat_elu(left))) + self.last_across(concat_elu(above))
        left = left + F.glu(y, 1)
        return self.logits(concat_elu(left))[:, :, None]


class PixelTransformer(nn.Module):
    """A small decoder over the pixels in raster order: embeddings, causal attention, MLPs."""

    def __init__(self, shape=(16, 16), width: int = 64, heads: int = 4, layers: int = 3, levels=16):
        super().__init__()
        self.levels, self.heads, self.length = levels, heads, shape[0] * shape[1]
        self.embed = nn.Embedding(levels + 1, width)
        self.position = nn.Parameter(torch.randn(self.length, width) * 0.1)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * layers))
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(layers))
        self.out = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
            for _ in range(layers)
        )
        self.last_norm, self.logits = nn.LayerNorm(width), nn.Linear(width, levels)

    def forward(self, codes: Tensor) -> Tensor:
        batch, _, rows, columns = codes.shape
        tokens = F.pad(codes.flatten(1), (1, 0), value=self.levels)[:, :-1]
        x = self.embed(tokens) + self.position
        for i, (qkv, out, mlp) in enumerate(zip(self.qkv, self.out, self.mlp, strict=True)):
            q, k, v = (
                t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
                for t in qkv(self.norms[2 * i](x)).chunk(3, -1)
            )
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + out(y.transpose(1, 2).flatten(2))
            x = x + mlp(self.norms[2 * i + 1](x))
        y = self.logits(self.last_norm(x))
        return y.transpose(1, 2).reshape(batch, self.levels, 1, rows, columns)


def randomise(net: nn.Module, seed: int = 0) -> nn.Module:
    """Parameters 1.5 times their initial size and lively batch norm statistics, in eval mode: a
    fresh network hardly depends on its input."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.5)
        for part in net.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.3, generator=generator)
                part.running_var.uniform_(0.5, 2, generator=generator)
    return net.eval()
