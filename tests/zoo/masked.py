"""Plain stacks of masked convolutions: the mask's many forms, and what stands between layers."""

import torch
import torch.nn.functional as F
from torch import nn

from fastgen.likelihoods import Bernoulli, Categorical
from zoo.case import Case


def spatial_mask(kind, size):
    mask = torch.ones(size, size)
    mask[size // 2, size // 2 + (kind == "B") :] = 0
    mask[size // 2 + 1 :] = 0
    return mask


class InPlaceBuffer(nn.Conv2d):
    def __init__(self, kind, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer("mask", self.weight.data.clone())
        self.mask[:] = spatial_mask(kind, self.kernel_size[0])

    def forward(self, x):
        self.weight.data *= self.mask
        return super().forward(x)


class ParameterMask(nn.Conv2d):
    def __init__(self, kind, *args, **kwargs):
        super().__init__(*args, **kwargs)
        mask = spatial_mask(kind, self.kernel_size[0]).expand_as(self.weight).clone()
        self.mask = nn.Parameter(mask, requires_grad=False)

    def forward(self, x):
        self.weight.data.mul_(self.mask.data)
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)


class AttributeMask(nn.Conv2d):
    """A mask that is neither a buffer nor a parameter, of shape (1, 1, k, k), out of place."""

    def __init__(self, kind, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.mask = spatial_mask(kind, self.kernel_size[0])[None, None]

    def forward(self, x):
        weight = self.mask.to(self.weight) * self.weight
        return F.conv2d(x, weight, self.bias, padding=self.padding)


class SamePadding(nn.Conv2d):
    def __init__(self, kind, in_channels, out_channels, kernel_size, padding=0):
        super().__init__(in_channels, out_channels, kernel_size, padding="same", bias=False)
        self.register_buffer("mask", spatial_mask(kind, kernel_size), persistent=False)

    def forward(self, x):
        return self._conv_forward(x, self.weight * self.mask, None)


class Plain(nn.Module):
    """Scaled codes, BatchNorm and ReLU behind every layer."""

    def __init__(self, conv, levels=6, channels=8, layers=3, scale=True):
        super().__init__()
        self.levels, self.scale = levels, scale
        stack = [conv("A", 1, channels, 5, padding=2), nn.BatchNorm2d(channels), nn.ReLU(True)]
        for _ in range(layers):
            stack += [conv("B", channels, channels, 3, padding=1)]
            stack += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
        self.net = nn.Sequential(*stack, nn.Conv2d(channels, levels, 1))

    def forward(self, codes):
        x = codes.to(self.net[0].weight.dtype)
        if self.scale:
            x = x / (self.levels - 1) * 2.0 - 1.0
        return self.net(x).unsqueeze(2)


class Residual(nn.Module):
    """ReLU, 1x1 down, 3x3, 1x1 up, added to its input; the head on a sum of skips."""

    def __init__(self, levels=5, channels=8, blocks=3):
        super().__init__()
        half = channels // 2
        self.first = InPlaceBuffer("A", 1, channels, 7, padding=3)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(),
                nn.Conv2d(channels, half, 1),
                nn.BatchNorm2d(half),
                nn.ReLU(),
                InPlaceBuffer("B", half, half, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(half, channels, 1),
            )
            for _ in range(blocks)
        )
        self.head = nn.Sequential(nn.ReLU(), nn.Conv2d(channels, levels, kernel_size=1))

    def forward(self, codes):
        x = self.first(codes.float())
        skips = 0
        for block in self.blocks:
            x = x + block(x)
            skips = skips + x
        return self.head(skips).reshape(len(codes), -1, 1, *codes.shape[2:])


class ZeroedSlices(nn.Module):
    """No mask at all: slices of weight.data are cleared before use."""

    class Conv(nn.Conv2d):
        def __init__(self, strict, *args):
            super().__init__(*args, padding=args[2] // 2)
            self.strict = strict

        def forward(self, x):
            middle = self.kernel_size[0] // 2
            self.weight.data[:, :, middle + 1 :].zero_()
            self.weight.data[:, :, middle, middle + (not self.strict) :].fill_(0)
            return super().forward(x)

    def __init__(self, channels=7):
        super().__init__()
        self.a = self.Conv(True, 1, channels, 3)
        self.b = self.Conv(False, channels, channels, 5)
        self.c = self.Conv(False, channels, 1, 3)
        self.slope = nn.PReLU()

    def forward(self, codes):
        x = self.slope(self.a(codes.float() - 0.5))
        x = F.leaky_relu(self.b(x), 0.2)
        return self.c(torch.tanh(x))[:, :, None]


class WeightNormed(nn.Module):
    """Both weight norms; the direction's slices are cleared, which survives the norm."""

    def __init__(self, levels=4, channels=6):
        super().__init__()
        self.old = nn.ModuleList()
        self.new = nn.ModuleList()
        for layer in range(2):
            conv = nn.Conv2d(channels if layer else 1, channels, 3, padding=1)
            self.old.append(torch.nn.utils.weight_norm(conv) if layer else conv)
            conv = nn.Conv2d(channels, channels, 3, padding=1)
            self.new.append(torch.nn.utils.parametrizations.weight_norm(conv))
        with torch.no_grad():
            self.old[0].weight[:, :, 1, 1:] = 0
            self.old[0].weight[:, :, 2:] = 0
        self.head = torch.nn.utils.weight_norm(nn.Conv2d(channels, levels, 1), dim=None)

    def forward(self, codes):
        x = F.elu(self.old[0](codes.float()))
        self.old[1].weight_v.data[:, :, 2:].zero_()
        self.old[1].weight_v.data[:, :, 1, 2].zero_()
        x = F.elu(self.old[1](x))
        for conv in self.new:
            direction = conv.parametrizations.weight.original1
            direction.data[:, :, 2:].zero_()
            direction.data[:, :, 1, 2:].zero_()
            x = x + F.elu(conv(x), inplace=True)
        return self.head(x)[:, :, None]


class Activations(nn.Module):
    """A layer for every activation, most of them used once by someone."""

    FUNCTIONS = (
        F.relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.softplus, F.softsign, F.hardtanh,
        F.hardswish, F.hardsigmoid, F.relu6, F.leaky_relu, F.logsigmoid, torch.tanh, torch.sigmoid,
        torch.sin, torch.abs, torch.square, torch.erf, torch.exp, torch.arctan, torch.sign,
        lambda x: F.gelu(x, approximate="tanh"), lambda x: x.clamp(-1, 1),
        lambda x: x.clamp(min=-2),
        lambda x: torch.log1p(x.square()), lambda x: (x * x + 1).sqrt(), lambda x: 1 / (1 + x**2),
        lambda x: (x.pow(2) + 0.5) ** -0.5, lambda x: torch.where(x > 0, x, -0.3 * x),
        lambda x: torch.maximum(x, -x), lambda x: F.threshold(x, 0.1, -0.1),
        lambda x: (x > 0).float() * x, lambda x: torch.cos(x) + (7 * x).floor(),
        lambda x: torch.lerp(x, -x, 0.3), lambda x: x.masked_fill(x < 0, 0.5),
        lambda x: torch.addcmul(x, x, x, value=-0.1),
        lambda x: x.sub(1, alpha=2).neg(), lambda x: torch.rsub(x, 1), lambda x: F.hardshrink(x),
        lambda x: F.softshrink(x, 0.2), lambda x: torch.frac(x), lambda x: torch.exp2(-x.abs()),
    )  # fmt: skip

    def __init__(self, levels=3):
        super().__init__()
        count = len(self.FUNCTIONS)
        self.first = InPlaceBuffer("A", 1, count, 3, padding=1)
        self.mix = InPlaceBuffer("B", count, 6, 3, padding=1)
        self.head = nn.Conv2d(6, levels, 1)

    def forward(self, codes):
        parts = self.first(codes.float() / 2).split(1, dim=1)
        x = torch.cat([f(p) for f, p in zip(self.FUNCTIONS, parts, strict=True)], 1)
        return self.head(F.elu(self.mix(x))).unsqueeze(2)


CASES = [
    Case("plain, mask buffer, in place", lambda: Plain(InPlaceBuffer), (1, 7, 6), Categorical(6)),
    Case("plain, mask parameter", lambda: Plain(ParameterMask), (1, 6, 7), Categorical(6)),
    Case("plain, mask attribute", lambda: Plain(AttributeMask), (1, 6, 5), Categorical(6)),
    Case("plain, same padding", lambda: Plain(SamePadding), (1, 6, 6), Categorical(6)),
    Case("residual blocks", Residual, (1, 7, 7), Categorical(5)),
    Case("zeroed slices", ZeroedSlices, (1, 8, 6), Bernoulli()),
    Case("weight norm", WeightNormed, (1, 6, 6), Categorical(4)),
    Case("activations", Activations, (1, 4, 5), Categorical(3)),
]
HALF = [
    Case("bfloat16", lambda: Plain(InPlaceBuffer).bfloat16(), (1, 6, 5), Categorical(6)),
    Case("float16", lambda: Plain(AttributeMask).half(), (1, 6, 5), Categorical(6)),
]
