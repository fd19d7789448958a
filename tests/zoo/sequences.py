"""One-dimensional dilated stacks, (C, L)."""

import torch
import torch.nn.functional as F
from torch import nn

from fastgen.likelihoods import Categorical
from zoo.case import Case


class CausalConv(nn.Conv1d):
    """Padded on both sides, the end cropped."""

    def __init__(self, in_channels, out_channels, kernel_size, dilation=1):
        pad = (kernel_size - 1) * dilation
        super().__init__(in_channels, out_channels, kernel_size, padding=pad, dilation=dilation)

    def forward(self, x):
        y = super().forward(x)
        return y[:, :, : -self.padding[0]] if self.padding[0] else y


class Dilated(nn.Module):
    def __init__(self, levels=6, channels=6, dilations=(1, 2, 4, 1, 2), labels=0):
        super().__init__()
        self.levels = levels
        self.first = CausalConv(levels, channels, 2)
        self.gates = nn.ModuleList(
            torch.nn.utils.weight_norm(CausalConv(channels, 2 * channels, 2, d)) for d in dilations
        )
        self.residuals = nn.ModuleList(nn.Conv1d(channels, channels, 1) for _ in dilations)
        self.skips = nn.ModuleList(nn.Conv1d(channels, channels, 1) for _ in dilations)
        self.head = nn.Sequential(
            nn.ReLU(), nn.Conv1d(channels, channels, 1), nn.ReLU(), nn.Conv1d(channels, levels, 1)
        )

    def forward(self, codes, local=None):
        x = F.one_hot(codes[:, 0], self.levels).transpose(1, 2).float()
        x = self.first(F.pad(x, (1, 0))[:, :, :-1])
        total = torch.zeros_like(x)
        for gate, residual, skip in zip(self.gates, self.residuals, self.skips, strict=True):
            y = gate(x)
            if local is not None:
                y = y + F.interpolate(local, size=y.shape[-1], mode="nearest")
            a, b = torch.chunk(y, 2, dim=1)
            y = torch.tanh(a) * torch.sigmoid(b)
            total += skip(y)
            x = residual(y) + x
        return self.head(total).unsqueeze(2)


class FoldedDilation(nn.Module):
    """Dilation by folding time into the batch; the input alone is padded."""

    def __init__(self, levels=5, channels=5, dilations=(1, 2, 4)):
        super().__init__()
        self.levels, self.dilations = levels, dilations
        self.embed = nn.Embedding(levels, channels)
        self.convs = nn.ModuleList(nn.Conv1d(channels, channels, 2) for _ in dilations)
        self.mix = nn.ModuleList(nn.Linear(channels, channels) for _ in dilations)
        self.out = nn.Linear(channels, levels)

    def forward(self, codes):
        x = self.embed(codes.squeeze(1)).transpose(1, 2)
        reach = sum(self.dilations)
        n, channels, length = x.shape
        x = F.pad(x, (reach + 1, -1))
        for dilation, conv, mix in zip(self.dilations, self.convs, self.mix, strict=True):
            spare = -x.shape[2] % dilation
            y = F.pad(x, (spare, 0)).view(n, channels, -1, dilation)
            y = y.permute(0, 3, 1, 2).reshape(n * dilation, channels, -1)
            y = F.relu(conv(y))
            y = y.view(n, dilation, channels, -1).permute(0, 2, 3, 1).reshape(n, channels, -1)
            y = y[:, :, spare:]
            x = x[:, :, dilation:] + mix(y.transpose(1, 2)).transpose(1, 2)
        return self.out(x.transpose(1, 2)).transpose(1, 2)[:, :, None]


class TwoTracks(nn.Module):
    """Two channels of a sequence, the second after the first."""

    def __init__(self, levels=4, channels=6):
        super().__init__()
        self.levels = levels
        self.shared = nn.Sequential(
            nn.ConstantPad1d((3, 0), 0.0), nn.Conv1d(2, channels, 3), nn.SiLU()
        )
        self.first = nn.Conv1d(channels, levels, 1)
        self.second = nn.Conv1d(channels + 1, levels, 1)

    def forward(self, codes):
        x = codes / (self.levels - 1.0)
        past = self.shared(x)[:, :, :-1]
        second = self.second(torch.cat((past, x[:, :1]), 1))
        return torch.stack((self.first(past), second), 2)


def local_condition(n, generator):
    return torch.randn(n, 12, 6, generator=generator)


CASES = [
    Case("dilated sequence", Dilated, (1, 24), Categorical(6)),
    Case(
        "dilated sequence, coarse condition",
        Dilated,
        (1, 18),
        Categorical(6),
        condition=local_condition,
    ),
    Case("dilation folded into the batch", FoldedDilation, (1, 21), Categorical(5)),
    Case("two tracks", TwoTracks, (2, 11), Categorical(4), "subpixel"),
]
