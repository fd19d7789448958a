import copy

import pytest
import torch
from torch import nn

from fastgen.nn import GatedBlock

CHANNELS = 6


class Stacks(nn.Module):
    """A first block and `depth` more; gives both stacks."""

    def __init__(self, colors, color_order, depth, **kwargs):
        super().__init__()
        torch.manual_seed(1)
        options = dict(colors=colors, color_order=color_order, dtype=torch.float64)
        self.first = GatedBlock(colors, CHANNELS, 3, "A", **options)
        self.blocks = nn.ModuleList(
            GatedBlock(CHANNELS, CHANNELS, 3, "B", **options) for _ in range(depth)
        )

    def forward(self, x):
        v, h = self.first(x, x)
        for block in self.blocks:
            v, h = block(v, h)
        return v, h


@torch.no_grad()
def dependence(fn, shape):
    """Which outputs a change of each single input changes, for both results of fn:
    two bool (inputs, channels, H, W)."""
    x = torch.randn(1, *shape, dtype=torch.float64)
    inputs = x.numel()
    changed = x.repeat(inputs, 1, 1, 1)
    changed.view(inputs, -1).diagonal().add_(1.0)
    return [(b - a).abs() > 1e-12 for a, b in zip(fn(x), fn(changed), strict=True)]


def rank(color, position, colors):
    return position * colors + color


def color_of(channel, colors, color_order):
    return channel * colors // CHANNELS if color_order == "blocks" else channel % colors


@pytest.mark.parametrize(
    "colors, color_order", [(1, "blocks"), (3, "blocks"), (3, "interleaved"), (2, "interleaved")]
)
def test_every_position_and_colour_sees_exactly_those_before_it(colors, color_order):
    """Both ways: nothing later is seen (causal), everything earlier is (no blind spot)."""
    height, width = 4, 5
    # each block reaches one row up, and the vertical stack one column to either side per block
    net = Stacks(colors, color_order, depth=5)
    v, h = dependence(net, (colors, height, width))
    for source in range(colors * height * width):
        color, position = divmod(source, height * width)
        for row in range(height):
            for column in range(width):
                above = position // width < row
                assert (v[source, :, row, column] == above).all()
                for channel in range(CHANNELS):
                    mine = rank(
                        color_of(channel, colors, color_order), row * width + column, colors
                    )
                    seen = rank(color, position, colors) < mine
                    assert h[source, channel, row, column] == seen


def test_the_first_block_sees_its_kernel_and_no_more():
    v, h = dependence(Stacks(1, "blocks", depth=0), (1, 5, 5))
    v, h = v.view(5, 5, -1, 5, 5)[:, :, 0], h.view(5, 5, -1, 5, 5)[:, :, 0]
    assert v[:, :, 3, 2].nonzero().tolist() == [[2, 1], [2, 2], [2, 3]]
    assert h[:, :, 3, 2].nonzero().tolist() == [[2, 1], [2, 2], [2, 3], [3, 1]]


def test_labels_and_maps_reach_both_stacks():
    torch.manual_seed(0)
    block = GatedBlock(4, 4, classes=3, condition_channels=2)
    v, h = torch.randn(2, 4, 5, 5), torch.randn(2, 4, 5, 5)
    labels, features = torch.tensor([0, 1]), torch.randn(2, 2, 5, 5)
    v0, h0 = block(v, h, (labels, features))
    for changed in ((labels + 1, features), (labels, features + 1)):
        v1, h1 = block(v, h, changed)
        assert ((v0 - v1).abs().amax(1) > 1e-6).all()
        assert ((h0 - h1).abs().amax(1) > 1e-6).all()


def test_a_label_is_one_vector_for_all_pixels_and_a_map_one_for_each():
    block = GatedBlock(4, 4, classes=3, condition_channels=2)
    labels, features = torch.tensor([2, 0]), torch.randn(2, 2, 5, 5)
    term = block.term((labels, features))
    expected = block.term.label.weight[labels][:, :, None, None] + torch.einsum(
        "oi,bihw->bohw", block.term.map.weight[:, :, 0, 0], features
    )
    torch.testing.assert_close(term, expected)
    assert GatedBlock(4, 4).term(None) is None


def test_the_block_is_its_docstring():
    torch.manual_seed(0)
    block = GatedBlock(4, 4, classes=3).double()
    v, h = torch.randn(2, 2, 4, 5, 5, dtype=torch.float64)
    labels = torch.tensor([2, 0])

    def gate(x):
        a, b = x.chunk(2, dim=1)
        return torch.tanh(a) * torch.sigmoid(b)

    def conv(layer, x):
        same = tuple(k // 2 for k in layer.kernel_size)
        return nn.functional.conv2d(x, layer.weight * layer.mask, layer.bias, padding=same)

    term = block.term.label(labels)[:, :, None, None]
    v_pre = conv(block.vertical, v)
    h_pre = conv(block.horizontal, h) + conv(block.link, v_pre) + term
    got_v, got_h = block(v, h, labels)
    torch.testing.assert_close(got_v, gate(v_pre + term))
    torch.testing.assert_close(got_h, h + conv(block.out, gate(h_pre)))


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    block = GatedBlock(4, 4, dropout=0.5)
    v, h = torch.randn(2, 1, 4, 3, 3)
    assert not torch.equal(block(v, h)[1], block(v, h)[1])
    block.eval()
    assert torch.equal(block(v, h)[1], block(v, h)[1])


def test_stays_in_channels_last():
    x = torch.randn(2, 4, 5, 5).to(memory_format=torch.channels_last)
    for y in GatedBlock(4, 4, classes=2)(x, x, torch.tensor([0, 1])):
        assert y.is_contiguous(memory_format=torch.channels_last)


def test_copies_and_checkpoints_compute_the_same():
    block = GatedBlock(4, 4)
    other = GatedBlock(4, 4)
    other.load_state_dict(block.state_dict())
    x = torch.randn(1, 4, 3, 3)
    for twin in (copy.deepcopy(block), other):
        assert all(map(torch.equal, block(x, x), twin(x, x)))


def test_halves_the_precision_under_autocast():
    block = GatedBlock(4, 4, classes=2)
    x = torch.randn(2, 4, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        v, h = block(x, x, torch.tensor([0, 1]))
    assert v.dtype == torch.bfloat16
    expected = block(x, x, torch.tensor([0, 1]))[1]
    torch.testing.assert_close(h.float(), expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    "arguments, named",
    [
        (dict(mask_type="VA"), "mask_type must be 'A' or 'B', got 'VA'"),
        (dict(in_channels=3), "in_channels must equal out_channels=6, got 3"),
    ],
)
def test_bad_arguments_say_what_to_do(arguments, named):
    with pytest.raises(ValueError, match=f"fastgen.nn.GatedBlock: {named}"):
        GatedBlock(**(dict(in_channels=6, out_channels=6) | arguments))


def test_colours_must_divide_the_channels():
    with pytest.raises(ValueError, match="multiple of colors=3"):
        GatedBlock(3, 64, 3, "A", colors=3)
