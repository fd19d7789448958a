import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastgen.nn import GatedMaskedConv2d, MaskedConv2d

MASK_TYPES = ["A", "B", "VA", "VB", "HA", "HB"]
CENTRE = 1, 2  # of a 3x5 kernel


def layer(*args, **kwargs):
    torch.manual_seed(0)
    return MaskedConv2d(*args, dtype=torch.float64, **kwargs)


@pytest.mark.parametrize(
    "mask_type, rows",
    [
        ("A", ["11111", "11000", "00000"]),
        ("B", ["11111", "11100", "00000"]),
        ("VA", ["11111", "00000", "00000"]),
        ("VB", ["11111", "11111", "00000"]),
        ("HA", ["00000", "11000", "00000"]),
        ("HB", ["00000", "11100", "00000"]),
    ],
)
def test_each_mask_type_is_what_its_picture_shows(mask_type, rows):
    expected = torch.tensor([[bit == "1" for bit in row] for row in rows])
    mask = MaskedConv2d(2, 3, (3, 5), mask_type).mask
    assert mask.dtype == torch.bool
    assert torch.equal(mask, expected.expand(3, 2, 3, 5))


@pytest.mark.parametrize(
    "color_order, out_color, in_color",
    [("blocks", [0, 0, 1, 1, 2, 2], [0, 1, 2]), ("interleaved", [0, 1, 2, 0, 1, 2], [0, 1, 2])],
)
@pytest.mark.parametrize("mask_type", ["A", "B", "HA", "HB"])
def test_colours_take_turns_at_the_centre_and_nowhere_else(
    mask_type, color_order, out_color, in_color
):
    mask = MaskedConv2d(3, 6, (3, 5), mask_type, 3, color_order).mask
    for o, c in enumerate(out_color):
        for i, seen in enumerate(in_color):
            allowed = seen < c or (seen == c and mask_type.endswith("B"))
            assert mask[(o, i, *CENTRE)] == allowed
    mask[(..., *CENTRE)] = False
    uncolored = MaskedConv2d(3, 6, (3, 5), mask_type).mask
    uncolored[(..., *CENTRE)] = False
    assert torch.equal(mask, uncolored)


@pytest.mark.parametrize("mask_type", ["VA", "VB"])
def test_the_vertical_stack_sees_every_colour(mask_type):
    colored = MaskedConv2d(3, 6, 3, mask_type, 3).mask
    assert torch.equal(colored, MaskedConv2d(3, 6, 3, mask_type).mask)


@pytest.mark.parametrize("colors, color_order", [(1, "blocks"), (3, "blocks"), (3, "interleaved")])
@pytest.mark.parametrize("mask_type", MASK_TYPES)
def test_equals_a_convolution_with_a_masked_weight(mask_type, colors, color_order):
    conv = layer(3, 6, (3, 5), mask_type, colors, color_order, dilation=(2, 1))
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    expected = F.conv2d(x, conv.weight * conv.mask, conv.bias, padding=(2, 2), dilation=(2, 1))
    torch.testing.assert_close(conv(x), expected)
    torch.testing.assert_close(conv(x[0]), expected[0])


def test_is_an_nn_conv2d_in_every_other_respect():
    torch.manual_seed(3)
    plain = nn.Conv2d(4, 6, (3, 5), padding=(1, 2), bias=True)
    torch.manual_seed(3)
    conv = MaskedConv2d(4, 6, (3, 5), "B")
    assert isinstance(conv, nn.Conv2d)
    assert list(conv.state_dict()) == list(plain.state_dict())
    for ours, theirs in zip(conv.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert repr(conv).startswith("MaskedConv2d(" + repr(plain)[len("Conv2d(") : -1])
    assert "mask_type='B'" in repr(conv)
    assert "colors" not in repr(conv)
    assert "colors=2, color_order='blocks'" in repr(MaskedConv2d(4, 6, 3, "B", 2))
    conv.load_state_dict(plain.state_dict())
    plain.load_state_dict(conv.state_dict())
    assert MaskedConv2d(4, 6, 3, "B", bias=False).bias is None


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_compute_the_same(clone):
    conv = layer(3, 6, 3, "A", 3, "interleaved")
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    twin = clone(conv)
    assert torch.equal(twin(x), conv(x))
    assert torch.equal(twin.mask, conv.mask)


def test_can_be_built_without_memory_and_filled_later():
    with torch.device("meta"):
        conv = MaskedConv2d(3, 6, 3, "B", 3)
    assert conv.weight.is_meta
    source = MaskedConv2d(3, 6, 3, "B", 3)
    conv.to_empty(device="cpu").load_state_dict(source.state_dict())
    x = torch.randn(1, 3, 4, 4)
    assert torch.equal(conv(x), source(x))


def test_masked_weights_get_no_gradient_and_pass_no_nan():
    conv = layer(2, 4, 3, "B", 2)
    with torch.no_grad():
        conv.weight[~conv.mask] = float("nan")
    y = conv(torch.randn(2, 2, 4, 4, dtype=torch.float64))
    assert y.isfinite().all()
    y.sum().backward()
    assert (conv.weight.grad[~conv.mask] == 0).all()
    assert (conv.weight.grad[conv.mask] != 0).all()


def test_masked_weights_of_a_checkpoint_are_kept_bit_for_bit():
    source = layer(2, 4, 3, "A")
    conv = MaskedConv2d(2, 4, 3, "A", dtype=torch.float64)
    conv.load_state_dict(source.state_dict())
    assert torch.equal(conv.weight, source.weight)
    assert (conv.weight[~conv.mask] != 0).all()


@pytest.mark.parametrize("kind", [MaskedConv2d, GatedMaskedConv2d])
def test_peer_state_dict_round_trip(kind):
    conv = kind(3, 6, 3, "B", 3)
    state = conv.to_peer_state_dict()
    assert list(state) == ["weight", "bias", "mask"]
    assert state["mask"].shape == conv.weight.shape
    assert state["mask"].dtype == conv.weight.dtype
    assert torch.equal(state["mask"].bool(), conv.mask)
    fresh = nn.Sequential(kind(3, 6, 3, "B", 3))
    fresh.load_state_dict({f"0.{name}": value for name, value in state.items()})
    assert torch.equal(fresh[0].weight, conv.weight)
    assert "0.mask" not in fresh.state_dict()
    assert "mask" in state  # the caller's dictionary is left alone


def test_a_stored_mask_may_be_broadcast():
    conv = MaskedConv2d(3, 6, 3, "A")
    conv.load_state_dict({**conv.state_dict(), "mask": conv.mask[:1, :1].float()})


@pytest.mark.parametrize(
    "stored, fits",
    [
        (("B", 3, "interleaved"), "mask_type='B', colors=3, color_order='interleaved'"),
        (("A", 3, "blocks"), "mask_type='A', colors=3, color_order='blocks'"),
        (("VB", 1, "blocks"), "mask_type='VB', colors=3"),
        (("B", 1, "blocks"), "mask_type='B', colors=1"),
    ],
)
def test_a_foreign_mask_is_refused_with_the_arguments_that_fit(stored, fits):
    net = nn.Sequential(MaskedConv2d(3, 6, 3, "B", 3, "blocks"))
    state = nn.Sequential(MaskedConv2d(3, 6, 3, *stored))[0].to_peer_state_dict()
    with pytest.raises(RuntimeError) as caught:
        net.load_state_dict({f"0.{name}": value for name, value in state.items()})
    assert "0.mask" in str(caught.value)
    assert fits in str(caught.value)


@pytest.mark.parametrize("stored", [torch.eye(3), torch.ones(5)])
def test_a_mask_that_nothing_fits_is_refused_too(stored):
    conv = MaskedConv2d(3, 6, 3, "B")
    with pytest.raises(RuntimeError, match="no mask type and colour order gives it"):
        conv.load_state_dict({**conv.state_dict(), "mask": stored})


@pytest.mark.parametrize(
    "arguments, named",
    [
        (dict(mask_type="C"), "mask_type must be one of A, B, VA, VB, HA, HB, got 'C'"),
        (dict(kernel_size=4), r"kernel_size must be odd, got \(4, 4\)"),
        (dict(kernel_size=(3, 2)), r"kernel_size must be odd, got \(3, 2\)"),
        (dict(color_order="rgb"), "color_order must be 'blocks' or 'interleaved', got 'rgb'"),
        (dict(colors=3), "in_channels must be a positive multiple of colors=3, got 4; use 3"),
        (dict(in_channels=3, colors=3), "out_channels must be a positive multiple of colors=3"),
        (dict(colors=0), "colors must be at least 1, got 0"),
        (dict(dilation=0), r"dilation must be at least 1, got \(0, 0\)"),
    ],
)
def test_bad_arguments_say_what_to_do(arguments, named):
    good = dict(in_channels=4, out_channels=8, kernel_size=3, mask_type="B")
    with pytest.raises(ValueError, match=f"fastgen.nn.MaskedConv2d: {named}"):
        MaskedConv2d(**(good | arguments))


@pytest.mark.parametrize("color_order", ["blocks", "interleaved"])
def test_both_halves_of_a_gated_convolution_hold_all_colours(color_order):
    gated = GatedMaskedConv2d(3, 6, 3, "B", 3, color_order)
    plain = MaskedConv2d(3, 6, 3, "B", 3, color_order)
    assert gated.weight.shape == (12, 3, 3, 3)
    assert torch.equal(gated.mask[:6], plain.mask)
    assert torch.equal(gated.mask[6:], plain.mask)


def test_gated_convolution_is_convolution_then_gate():
    gated = GatedMaskedConv2d(2, 3, 3, "B", dtype=torch.float64)
    x = torch.randn(2, 2, 4, 5, dtype=torch.float64)
    condition = torch.randn(2, 6, dtype=torch.float64)
    y, pre = gated(x, condition)
    expected = F.conv2d(x, gated.weight * gated.mask, gated.bias, padding=1)
    a, b = (expected + condition[:, :, None, None]).chunk(2, dim=1)
    torch.testing.assert_close(pre, expected)
    torch.testing.assert_close(y, torch.tanh(a) * torch.sigmoid(b))


def test_stays_in_channels_last():
    x = torch.randn(2, 4, 5, 5).to(memory_format=torch.channels_last)
    y = MaskedConv2d(4, 6, 3, "B")(x)
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_compiles_without_a_graph_break():
    conv = layer(3, 6, 3, "B", 3)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    compiled = torch.compile(conv, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), conv(x))
