"""Other orders than raster: masks for each location, turned images, masked linear layers."""

import torch
import torch.nn.functional as F
from torch import nn

from fastgen.likelihoods import Bernoulli, Categorical
from zoo.case import Case


def snake(height, width):
    ranks = torch.arange(height * width).view(height, width)
    ranks[1::2] = ranks[1::2].flip(1)
    return ranks


def column_major(height, width):
    return torch.arange(height * width).view(width, height).T


def checkerboard(height, width):
    """Four groups; every group is drawn at once."""
    return 2 * (torch.arange(height)[:, None] % 2) + torch.arange(width) % 2


class LocalMask(torch.autograd.Function):
    """Unfold, times a mask for each location, times the weight; written without setup_context."""

    @staticmethod
    def forward(ctx, x, weight, bias, mask):
        ctx.save_for_backward(x, weight, mask)
        kernel = weight.shape[2]
        columns = F.unfold(x, kernel, padding=kernel // 2)  # (B, C k k, H W)
        columns = columns * mask
        out = weight.flatten(1).matmul(columns) + bias[:, None]
        return out.view(len(x), -1, *x.shape[2:])

    @staticmethod
    def backward(ctx, gradient):
        raise NotImplementedError


class LocalMaskWithContext(torch.autograd.Function):
    @staticmethod
    def forward(x, weight, bias, mask):
        kernel = weight.shape[2]
        columns = nn.Unfold(kernel, padding=kernel // 2)(x).mul_(mask)
        columns = columns.transpose(1, 2)
        out = columns @ weight.reshape(len(weight), -1).t() + bias
        return F.fold(out.transpose(1, 2), x.shape[2:], (1, 1))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        raise NotImplementedError


class LocallyMasked(nn.Conv2d):
    def __init__(self, function, ranks, strict, in_channels, out_channels, kernel=3):
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2)
        self.function = function
        last = int(ranks.max()) + 1
        around = F.unfold(F.pad(ranks, (kernel // 2,) * 4, value=last)[None, None].double(), kernel)
        here = ranks.flatten()
        mask = around < here if strict else around <= here
        if not strict:  # ties do not see each other, but the position sees itself
            mask = around < here
            mask[:, kernel**2 // 2] = True
        self.register_buffer("local_mask", mask.float().repeat(1, in_channels, 1))

    def forward(self, x):
        return self.function.apply(x, self.weight, self.bias, self.local_mask)


class AnyOrder(nn.Module):
    def __init__(self, ranks, function, levels=4, channels=6, layers=2):
        super().__init__()
        self.levels = levels
        self.first = LocallyMasked(function, ranks, True, levels, channels, 5)
        self.layers = nn.ModuleList(
            LocallyMasked(function, ranks, False, channels, 2 * channels) for _ in range(layers)
        )
        self.head = nn.Conv2d(channels, levels, 1)

    def forward(self, codes):
        x = F.one_hot(codes[:, 0], self.levels).permute(0, 3, 1, 2).float()
        x = self.first(x)
        for layer in self.layers:
            a, b = layer(F.elu(x)).chunk(2, 1)
            x = x + a * torch.sigmoid(b)
        return self.head(x).unsqueeze(2)


class Turned(nn.Module):
    """A raster model of the transposed and mirrored image."""

    def __init__(self, levels=4, channels=6):
        super().__init__()
        self.embed = nn.Embedding(levels, channels)
        self.above = nn.Conv2d(channels, channels, (2, 3), padding=(2, 1))
        self.left = nn.Conv2d(channels, channels, (1, 2), padding=(0, 2))
        self.head = nn.Conv2d(channels, levels, 1)

    def forward(self, codes):
        x = self.embed(codes[:, 0].transpose(1, 2).flip(2)).movedim(3, 1)
        height, width = x.shape[2:]
        y = self.above(x)[:, :, :height] + self.left(x)[..., :width]
        return self.head(F.relu(y)).flip(3).transpose(2, 3)[:, :, None]


class MaskedLinears(nn.Module):
    """Masked linear layers over the flattened image, in an order of its own; every hidden unit
    has a rank it may see."""

    def __init__(self, ranks, hidden=40):
        super().__init__()
        count = ranks.numel()
        ranks = ranks.flatten()
        hidden_ranks = torch.arange(hidden) * (int(ranks.max()) + 1) // hidden
        self.a = nn.Linear(count, hidden)
        self.b = nn.Linear(hidden, hidden)
        self.c = nn.Linear(hidden, count)
        self.direct = nn.Linear(count, count, bias=False)
        self.register_buffer("mask_a", hidden_ranks[:, None] >= ranks)
        self.register_buffer("mask_b", hidden_ranks[:, None] >= hidden_ranks)
        self.register_buffer("mask_c", ranks[:, None] > hidden_ranks)
        self.register_buffer("mask_d", ranks[:, None] > ranks)

    def forward(self, codes):
        x = codes.flatten(1).float()
        h = F.relu(F.linear(x, self.a.weight * self.mask_a, self.a.bias))
        h = F.relu(F.linear(h, self.b.weight * self.mask_b, self.b.bias))
        y = F.linear(h, self.c.weight * self.mask_c, self.c.bias)
        y = y + F.linear(x, self.direct.weight * self.mask_d)
        return y.view(len(codes), 1, *codes.shape[1:])


def shuffled(height, width):
    order = torch.randperm(height * width, generator=torch.Generator().manual_seed(5))
    return order.view(height, width)


def reversed_columns(height, width):
    return torch.arange(height * width).view(width, height).T.flip(0)


def local(ranks, function=LocalMask):
    return lambda: AnyOrder(ranks, function)


CASES = [
    Case("snake", local(snake(5, 6)), (1, 5, 6), Categorical(4), snake(5, 6)),
    Case(
        "column by column",
        local(column_major(6, 4), LocalMaskWithContext),
        (1, 6, 4),
        Categorical(4),
        column_major(6, 4),
    ),
    Case("four groups", local(checkerboard(6, 6)), (1, 6, 6), Categorical(4), checkerboard(6, 6)),
    Case("shuffled", local(shuffled(5, 5)), (1, 5, 5), Categorical(4), 3 * shuffled(5, 5) - 7),
    Case("turned", Turned, (1, 5, 6), Categorical(4), reversed_columns(5, 6)),
    Case(
        "masked linear layers",
        lambda: MaskedLinears(shuffled(5, 4)),
        (1, 5, 4),
        Bernoulli(),
        shuffled(5, 4),
    ),
    Case(
        "masked linear layers, colours",
        lambda: MaskedLinears(torch.arange(27).view(3, 3, 3).permute(2, 0, 1)),
        (3, 3, 3),
        Bernoulli(),
        "subpixel",
    ),
]
