"""Shifted convolutions without masks, down and up in resolution, logistic mixtures."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import weight_norm

from fastgen.likelihoods import Categorical, DiscretizedLogisticMixture
from zoo.case import Case


def concat_elu(x):
    return F.elu(torch.cat([x, -x], dim=1))


def down_shift(x):
    pad = nn.ZeroPad2d((0, 0, 1, 0))
    return pad(x[:, :, : x.shape[2] - 1, :])


def right_shift(x):
    pad = nn.ZeroPad2d((1, 0, 0, 0))
    return pad(x[:, :, :, : x.shape[3] - 1])


class NetworkInNetwork(nn.Module):
    """A 1x1 convolution as a linear layer over the flattened pixels."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.linear = weight_norm(nn.Linear(in_channels, out_channels))

    def forward(self, x):
        x = x.permute(0, 2, 3, 1).contiguous()
        n, h, w, c = x.shape
        y = self.linear(x.view(n * h * w, c))
        return y.view(n, h, w, -1).permute(0, 3, 1, 2)


class DownShifted(nn.Module):
    def __init__(self, in_channels, out_channels, kernel=(2, 3), stride=1):
        super().__init__()
        side = (kernel[1] - 1) // 2
        self.pad = nn.ZeroPad2d((side, side, kernel[0] - 1, 0))
        self.conv = weight_norm(nn.Conv2d(in_channels, out_channels, kernel, stride))

    def forward(self, x):
        return self.conv(self.pad(x))


class DownRightShifted(DownShifted):
    def __init__(self, in_channels, out_channels, kernel=(2, 2), stride=1):
        super().__init__(in_channels, out_channels, kernel, stride)
        self.pad = nn.ZeroPad2d((kernel[1] - 1, 0, kernel[0] - 1, 0))


class DownShiftedUp(nn.Module):
    """Transposed, cropped to the positions it may fill."""

    def __init__(self, channels):
        super().__init__()
        self.deconv = weight_norm(
            nn.ConvTranspose2d(channels, channels, (2, 3), 2, output_padding=1)
        )

    def forward(self, x):
        x = self.deconv(x)
        height, width = x.shape[2:]
        return x[:, :, : height - 1, 1 : width - 1]


class DownRightShiftedUp(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.deconv = weight_norm(
            nn.ConvTranspose2d(channels, channels, (2, 2), 2, output_padding=1)
        )

    def forward(self, x):
        x = self.deconv(x)
        return x[:, :, : x.shape[2] - 1, : x.shape[3] - 1]


class GatedResidual(nn.Module):
    def __init__(self, conv, channels, skip=0):
        super().__init__()
        self.enter = conv(2 * channels, channels)
        self.skip = NetworkInNetwork(2 * skip * channels, channels) if skip else None
        self.dropout = nn.Dropout2d(0.5)
        self.leave = conv(2 * channels, 2 * channels)

    def forward(self, original, also=None):
        x = self.enter(concat_elu(original))
        if also is not None:
            x += self.skip(concat_elu(also))
        x = self.dropout(concat_elu(x))
        a, b = torch.chunk(self.leave(x), 2, dim=1)
        return original + a * torch.sigmoid(b)


class ShiftedNet(nn.Module):
    """Two streams, one of all rows above, one also of what is to the left; resolution 1, 1/2, 1."""

    def __init__(self, colors, outputs, levels, channels=5):
        super().__init__()
        self.levels = levels
        self.u_init = DownShifted(colors + 1, channels)
        self.ul_init = nn.ModuleList(
            [
                DownShifted(colors + 1, channels, (1, 3)),
                DownRightShifted(colors + 1, channels, (2, 1)),
            ]
        )
        self.u_up = nn.ModuleList(GatedResidual(DownShifted, channels) for _ in range(2))
        self.ul_up = nn.ModuleList(GatedResidual(DownRightShifted, channels, 1) for _ in range(2))
        self.u_half = DownShifted(channels, channels, stride=2)
        self.ul_half = DownRightShifted(channels, channels, stride=2)
        self.u_double = DownShiftedUp(channels)
        self.ul_double = DownRightShiftedUp(channels)
        self.u_down = nn.ModuleList(GatedResidual(DownShifted, channels, 1) for _ in range(2))
        self.ul_down = nn.ModuleList(GatedResidual(DownRightShifted, channels, 2) for _ in range(2))
        self.out = NetworkInNetwork(channels, outputs)

    def forward(self, codes):
        x = codes.float() * (2 / (self.levels - 1)) - 1
        ones = torch.ones_like(x[:, :1])  # tells padding from black
        x = torch.cat([x, ones], 1)
        u = down_shift(self.u_init(x))
        ul = down_shift(self.ul_init[0](x)) + right_shift(self.ul_init[1](x))
        us, uls = [self.u_up[0](u)], [self.ul_up[0](ul, self.u_up[0](u))]
        us.append(self.u_half(us[-1]))
        uls.append(self.ul_half(uls[-1]))
        us.append(self.u_up[1](us[-1]))
        uls.append(self.ul_up[1](uls[-1], us[-1]))
        u, ul = us.pop(), uls.pop()
        u = self.u_down[0](u, us.pop())
        ul = self.ul_down[0](ul, torch.cat((u, uls.pop()), dim=1))
        u, ul = self.u_double(u), self.ul_double(ul)
        u = self.u_down[1](u, us.pop())
        ul = self.ul_down[1](ul, torch.cat((u, uls.pop()), 1))
        return self.out(F.elu(ul)).unsqueeze(2)


class NearestUp(nn.Module):
    """A coarse map of the rows above, by strided and dilated convolutions, average pooling and
    nearest-neighbour upsampling."""

    def __init__(self, levels=4, channels=6):
        super().__init__()
        self.levels = levels
        self.fine = nn.Conv2d(1, channels, (1, 3), padding=(0, 1))
        self.halve = nn.Conv2d(channels, channels, (2, 3), stride=2)
        self.wide = nn.Conv2d(channels, channels, (2, 3), dilation=(1, 2))
        self.left = nn.Conv2d(1, channels, (1, 2), dilation=(1, 2))
        self.merge = nn.Conv2d(3 * channels, channels, 1)
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.head = nn.Conv2d(channels, levels, 1)

    def forward(self, codes):
        x = codes.float()
        rows = down_shift(self.fine(x))  # the row above
        half = self.halve(F.pad(rows, (1, 1, 1, 0)))
        half = F.relu(self.wide(F.pad(half, (2, 2, 1, 0))))
        pooled = F.avg_pool2d(down_shift(rows), 2)
        left = self.left(F.pad(x, (3, 0)))[..., :-1]
        coarse = self.up(half)
        also = F.interpolate(pooled, size=x.shape[2:])
        return self.head(F.relu(self.merge(torch.cat([coarse, also, left], 1))))[:, :, None]


CASES = [
    Case(
        "shifted, coupled mixture",
        lambda: ShiftedNet(3, 20, 16),
        (3, 6, 8),
        DiscretizedLogisticMixture(2, levels=16),
    ),
    Case(
        "shifted, mixture of grey",
        lambda: ShiftedNet(1, 9, 256),
        (1, 6, 6),
        DiscretizedLogisticMixture(3),
    ),
    Case("shifted, categorical", lambda: ShiftedNet(1, 8, 8), (1, 8, 6), Categorical(8)),
    Case("strides, pooling, nearest", NearestUp, (1, 8, 8), Categorical(4)),
]
