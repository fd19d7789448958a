"""Shifts and windows without padding: assignment, rolling, index tensors, unfolded views."""

import torch
import torch.nn.functional as F
from torch import nn

from fastgen.likelihoods import Categorical
from zoo.case import Case


class Assigned(nn.Module):
    """Zeros, then slices of them assigned; a rolled copy whose first column is cleared."""

    def __init__(self, levels=5, channels=6):
        super().__init__()
        self.levels = levels
        self.above = nn.Conv2d(1, channels, (1, 3), padding=(0, 1))
        self.left = nn.Conv2d(1, channels, 1)
        self.mix = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(3))
        self.head = nn.Conv2d(channels, levels, 1)

    def forward(self, codes):
        x = codes.float() / self.levels
        rows = self.above(x)
        above = torch.zeros_like(rows)
        above[:, :, 1:] = rows[:, :, :-1]
        left = self.left(x).roll(1, dims=3)
        left[..., 0] = 0
        y = torch.empty_like(left).copy_(left)
        y += above
        for mix in self.mix:
            z = torch.roll(F.gelu(mix(y)), shifts=(1, 1), dims=(2, 3))
            z[:, :, 0, :] = 0
            z[:, :, :, 0].zero_()
            y[:, ::2] += z[:, ::2]
            y[:, 1::2].sub_(z[:, 1::2])
        return self.head(y)[:, :, None]


class Gathered(nn.Module):
    """Neighbours by an index tensor into the flattened image, place 0 being a learned one."""

    def __init__(self, height, width, levels=4, channels=6):
        super().__init__()
        self.levels = levels
        index = torch.arange(height * width).view(1, 1, height, width) + 1.0
        around = F.unfold(F.pad(index, (1, 1, 1, 0)), (2, 3)).long()  # 0 outside
        self.register_buffer("around", around[0, :4].T.contiguous())  # (H W, 4)
        self.start = nn.Parameter(torch.zeros(channels))
        self.embed = nn.Embedding(levels, channels)
        self.hidden = nn.Linear(4 * channels, 2 * channels)
        self.again = nn.Linear(4 * channels, channels)
        self.head = nn.Linear(channels, levels)

    def forward(self, codes):
        n, _, h, w = codes.shape
        x = self.embed(codes.view(n, -1))
        x = torch.cat([self.start.expand(n, 1, -1), x], dim=1)
        y = x[:, self.around].flatten(2)  # (B, H W, 4 channels)
        y = F.glu(self.hidden(y), dim=-1)
        y = torch.cat([self.start.view(1, 1, -1).repeat(n, 1, 1), y], dim=1)
        z = torch.index_select(y, 1, self.around.reshape(-1)).view(n, h * w, -1)
        z = F.relu(self.again(z)) + y[:, 1:]
        return torch.stack(self.head(z).unbind(2), 1).reshape(n, self.levels, 1, h, w)


class Windows(nn.Module):
    """Tensor.unfold and einsum instead of a convolution, with weights shared by two streams."""

    def __init__(self, levels=4, channels=5, reach=3):
        super().__init__()
        self.levels, self.reach = levels, reach
        self.embed = nn.Parameter(torch.randn(levels, channels))
        self.kernel = nn.Parameter(torch.randn(reach, channels, channels) / channels)
        self.head = nn.Parameter(torch.randn(2 * channels, levels) / channels)

    def forward(self, codes):
        x = self.embed[codes[:, 0]]  # (B, H, W, channels)
        left = F.pad(x, (0, 0, self.reach, -1)).unfold(2, self.reach, 1)
        above = F.pad(x, (0, 0, 0, 0, self.reach, -1)).unfold(1, self.reach, 1)
        both = torch.stack([left, above])  # (2, B, H, W, channels, reach)
        y = torch.einsum("sbhwct,tcd->bhwsd", both, self.kernel).tanh().flatten(3)
        return torch.einsum("bhwd,dk->bkhw", y, self.head).unsqueeze(2)


class Buffered(nn.Module):
    """A loop over the rows that keeps a state, and writes each row where it belongs."""

    def __init__(self, levels=4, channels=5):
        super().__init__()
        self.levels, self.channels = levels, channels
        self.read = nn.Conv1d(1, channels, 3, padding=1)
        self.carry = nn.Conv1d(channels, channels, 1)
        self.left = nn.Conv1d(1, channels, 1)
        self.head = nn.Conv2d(channels, levels, 1)

    def forward(self, codes):
        x = codes.float()
        n, _, h, w = x.shape
        state = x.new_zeros(n, self.channels, w)
        out = x.new_empty(n, self.channels, h, w)
        for row in range(h):
            left = self.left(F.pad(x[:, :, row], (1, -1)))
            out[:, :, row] = state + left
            state = torch.tanh(self.carry(state) + self.read(x[:, :, row]))
        return self.head(out.relu())[:, :, None]


class Recurrent(nn.Module):
    """A gated recurrent cell over a sequence, step by step."""

    def __init__(self, levels=4, channels=6):
        super().__init__()
        self.levels = levels
        self.embed = nn.Embedding(levels + 1, channels)
        self.cell = nn.GRUCell(channels, channels)
        self.head = nn.Linear(channels, levels)

    def forward(self, codes):
        tokens = F.pad(codes[:, 0], (1, -1), value=self.levels)
        state, out = None, []
        for x in self.embed(tokens).unbind(1):
            state = self.cell(x, state)
            out.append(self.head(state))
        return torch.stack(out, -1)[:, :, None]


CASES = [
    Case("shifts by assignment", Assigned, (1, 6, 5), Categorical(5)),
    Case("neighbours by index", lambda: Gathered(5, 6), (1, 5, 6), Categorical(4)),
    Case("unfolded windows", Windows, (1, 6, 6), Categorical(4)),
    Case("rows in a loop", Buffered, (1, 5, 6), Categorical(4)),
    Case("recurrent cell", Recurrent, (1, 12), Categorical(4)),
]
