"""A cached sampler for `TwoStacks` in plain PyTorch, as a careful user would write it by hand: each
activation once, the vertical stack a row at a time, the horizontal one a pixel at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen.benchmarks.sampling_nets import TwoStacks, gate


class CachedTwoStacks:
    """Prepared once for a network; `sample` draws images of one colour."""

    def __init__(self, net: TwoStacks):
        self.net = net
        self.first_h = self._matrix(net.first_h)
        self.h = [self._matrix(conv) for conv in net.h]
        self.out = [self._matrix(conv) for conv in net.out]
        self.head = [self._matrix(part) for part in net.head if isinstance(part, torch.nn.Conv2d)]

    @staticmethod
    def _matrix(conv):
        """(weight, bias) that map (n, taps * channels in), taps left to right, to (n, out)."""
        return conv.weight.permute(0, 2, 3, 1).flatten(1).contiguous(), conv.bias

    @torch.no_grad()
    def sample(self, uniforms: Tensor) -> Tensor:
        """int64 (n, 1, H, W) for float uniforms (n, 1, 1, H, W)."""
        n, rows, columns = uniforms.shape[0], *uniforms.shape[3:]
        codes = torch.zeros(n, rows, columns, dtype=torch.int64)
        x = torch.zeros(n, 1, rows + 3, columns + 6)  # padded: three rows above, three columns
        channels = self.net.out[0].in_channels
        above = [torch.zeros(n, channels, 1, columns + 2) for _ in self.net.v]
        for row in range(rows):
            vertical = self._vertical(x[:, :, row : row + 3], above)
            left = [torch.zeros(n, channels) for _ in self.h]
            for column in range(columns):
                near = x[:, 0, row + 3, column : column + 3]
                y = F.linear(near, *self.first_h) + vertical[0][:, :, column]
                h = F.linear(gate(y), *self.out[0])
                for i, matrix in enumerate(self.h):
                    y = F.linear(torch.cat([left[i], h], 1), *matrix)
                    left[i] = h
                    y = gate(y + vertical[i + 1][:, :, column])
                    h = h + F.linear(y, *self.out[i + 1])
                logits = F.linear(F.relu(F.linear(F.relu(h), *self.head[0])), *self.head[1])
                cdf = torch.softmax(logits, 1).cumsum(1)
                u = uniforms[:, 0, 0, row, column, None]
                drawn = (cdf <= u).sum(1).clamp_(max=logits.shape[1] - 1)
                codes[:, row, column] = drawn
                x[:, 0, row + 3, column + 3] = drawn * self.net.scale
        return codes[:, None]

    def _vertical(self, x, above):
        """The vertical stack's contributions to a row of the horizontal one, (n, 2 C, columns)
        for every layer; `above` holds each layer's last row."""
        v = self.net.first_v(x)
        given = [self.net.v_to_h[0](v)[:, :, 0]]
        for i, conv in enumerate(self.net.v):
            row = F.pad(gate(v), (1, 1))
            v = conv(torch.cat([above[i], row], 2))
            above[i] = row
            given.append(self.net.v_to_h[i + 1](v)[:, :, 0])
        return given
