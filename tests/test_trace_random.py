"""Random chains of ops on small maps: paddings, crops and sums of anything with anything, as graphs
and as programs."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from graph_values import check

from fastgen.sampling.arguments import ranks_of
from fastgen.sampling.executors import ReferenceExecutor
from fastgen.sampling.lower import lower
from fastgen.sampling.trace import trace

LEVELS = 5


class Constants:
    """Numbers that are the same at every call of a chain, without torch's generators."""

    def __init__(self, seed):
        self.state = np.random.RandomState(seed)

    def normal(self, *shape):
        return torch.from_numpy(self.state.randn(*shape).astype(np.float32))

    def integer(self, low, high):
        return int(self.state.randint(low, high + 1))

    def of(self, values):
        return values[self.integer(0, len(values) - 1)]


def convolution(x, other, c):
    kernel = c.of([(1, 1), (3, 3), (2, 3), (1, 2)])
    weight = c.normal(c.integer(1, 6), x.shape[1], *kernel)
    weight[:, :, 0] *= c.integer(0, 1)
    if c.integer(0, 2) == 0:
        weight = weight * (c.normal(*weight.shape[:2], 1, 1) > 0)
    bias = c.of([None, c.normal(len(weight))])
    return F.conv2d(x, weight, bias, c.integer(1, 2), (c.integer(0, 1), c.integer(0, 2)))


def transposed(x, other, c):
    weight = c.normal(x.shape[1], c.integer(1, 4), 2, 3)
    return F.conv_transpose2d(x, weight, None, c.integer(1, 2), (0, 1))


def depthwise(x, other, c):
    channels = x.shape[1]
    return F.conv2d(x, c.normal(channels, 1, 3, 3), c.normal(channels), padding=1, groups=channels)


def sliced(x, other, c):
    axis = c.integer(1, 3)
    start = c.integer(0, x.shape[axis] - 1)
    stop = c.integer(start + 1, x.shape[axis])
    index = [slice(None)] * 4
    index[axis] = slice(start, stop, c.integer(1, 2))
    return x[tuple(index)]


def concatenated(x, other, c):
    axis = c.integer(1, 3)
    parts = c.of([[x, other], [x, -x, other], [x, c.normal(*x.shape)]])
    return torch.cat(parts, axis)


def attended(x, other, c):
    flat = x.flatten(2)
    length = flat.shape[2]
    above = torch.ones(length, length).triu(1).bool()
    scores = (flat.transpose(1, 2) @ flat).masked_fill(above, c.of([-torch.inf, -1e9]))
    return (F.softmax(scores, -1) @ flat.transpose(1, 2)).transpose(1, 2).view_as(x)


def written(x, other, c):
    y = torch.zeros(1, x.shape[1], x.shape[2] + 1, x.shape[3])
    y[:, :, 1:] = x
    y[:, :, 0, 0] = 2
    y[:, :1].mul_(3)
    return y


OPS = [
    convolution,
    convolution,
    transposed,
    depthwise,
    sliced,
    sliced,
    concatenated,
    concatenated,
    attended,
    written,
    lambda x, other, c: x + other,
    lambda x, other, c: x * other,
    lambda x, other, c: x[:, :, :, :1] * other[:, :1, :1],
    lambda x, other, c: c.of([torch.tanh, F.elu, torch.neg, torch.sigmoid])(x),
    lambda x, other, c: F.pad(x, [c.integer(0, 1) for _ in range(4)], value=c.of([0, 0, 0.5])),
    lambda x, other, c: F.pad(x, (0, 0, 1, 0))[:, :, :-1],
    lambda x, other, c: x[:, torch.from_numpy(c.state.permutation(x.shape[1]))],
    lambda x, other, c: x.transpose(*c.of([(1, 3), (2, 3), (1, 2)])),
    lambda x, other, c: x * (c.normal(1, 1, *x.shape[2:]) > 0),
    lambda x, other, c: x * (c.normal(1, x.shape[1], 1, 1) > 0) + c.normal(1, 1, *x.shape[2:]),
    lambda x, other, c: x * c.normal(*x.shape[1:]),
    lambda x, other, c: x.masked_fill(c.normal(*x.shape[2:]) > 0, c.of([0.0, -1.0])),
    lambda x, other, c: x.sum(c.integer(1, 3), keepdim=True),
    lambda x, other, c: x.amax(c.integer(1, 3), keepdim=True),
    lambda x, other, c: F.softmax(x, c.integer(1, 3)),
    lambda x, other, c: F.linear(x.permute(0, 2, 3, 1), c.normal(4, x.shape[1])).movedim(3, 1),
    lambda x, other, c: x.cumsum(c.integer(1, 3)),
    lambda x, other, c: F.interpolate(x, scale_factor=2),
    lambda x, other, c: F.avg_pool2d(x, 2, 1),
    lambda x, other, c: F.max_pool2d(x, 3, 1, 1),
    lambda x, other, c: x.reshape(1, 1, -1, x.shape[3]),
    lambda x, other, c: x.flip(c.integer(1, 3)),
]


def chain(seed):
    """(fn, shape, order)"""
    c = Constants(seed)
    shape = (c.integer(1, 3), c.integer(1, 5), c.integer(1, 5))
    ops = [(c.of(OPS), c.integer(0, 10**8)) for _ in range(c.integer(3, 9))]
    first = c.normal(c.integer(1, 6), shape[0], 3, 3)

    def fn(codes):
        maps = [codes.float() / 3 - 0.5, F.conv2d(codes.float(), first, padding=1)]
        for op, seed in ops:
            own = Constants(seed)
            try:
                made = op(own.of(maps), own.of(maps), own)
            except RuntimeError:  # shapes that do not go together
                continue
            if 0 < made.numel() < 1500:
                maps.append(made)
        flat = torch.cat([m.flatten() for m in maps[1:]])
        size = shape[1] * shape[2]
        return F.pad(flat, (0, -len(flat) % size)).view(1, -1, 1, *shape[1:])

    return fn, shape, c.of(["raster", "subpixel"])


@pytest.mark.parametrize("seed", range(40))
def test_a_random_chain(seed):
    fn, shape, order = chain(seed)
    traced = trace(fn, shape, ranks_of(order, shape, False), levels=LEVELS)
    check(traced, fn, shape, LEVELS, tolerance=2e-4)


@pytest.mark.parametrize("seed", range(20))
def test_a_random_chain_as_a_program(seed):
    """The chain reads the first `height` rows; one more row, drawn last, gets what it computes."""
    chained, (colors, height, width), _ = chain(seed + 1000)
    shape = (colors, height + 1, width)
    ranks = torch.arange(height + 1)[:, None].expand(-1, width) * width + torch.arange(width)
    ranks[-1] = height * width

    def fn(codes):
        values = chained(codes[:, :, :-1]).reshape(1, -1)
        values = F.pad(values, (0, -values.shape[1] % width)).view(1, -1, 1, 1, width)
        return F.pad(values, (0, 0, height, 0)).expand(-1, -1, colors, -1, -1)

    traced = trace(fn, shape, ranks_of(ranks, shape, False), levels=LEVELS)
    codes = torch.from_numpy(Constants(seed).state.randint(0, LEVELS, (1, *shape)))
    expected = fn(codes)
    executor = ReferenceExecutor(lower(traced), torch.float64, poison=True)
    draws = executor.program.draws
    found = torch.full((1, len(draws.param), expected.shape[1]), torch.nan).double()
    assert executor.run(codes.flatten(1).contiguous(), params=found) is None
    index = torch.as_tensor(draws.index[:, 0]).long()
    values = expected.flatten(2)[0, :, index].T.double()
    largest = max(1, float(values.abs().max()))
    torch.testing.assert_close(found[0], values, rtol=0, atol=2e-4 * largest)
