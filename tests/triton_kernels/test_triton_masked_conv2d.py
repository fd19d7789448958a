"""The Triton kernels of masked_conv2d against float64, in the interpreter."""

import pytest
import torch
from guard import Outputs, guarded
from tolerances import assert_as_exact_as_torch

import fastgen
from fastgen.kernels import masked_conv2d as kernels
from fastgen.reference import masked_conv2d as reference

FORMATS = {"plain": torch.contiguous_format, "channels-last": torch.channels_last}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
DILATED = (2, 1)


def causal(outputs, inputs, kh, kw, colors=1, own=True):
    """The mask of a PixelCNN layer: type B (or A) with `colors` interleaved colours."""
    mask = torch.zeros(outputs, inputs, kh, kw)
    mask[:, :, : kh // 2] = 1
    mask[:, :, kh // 2, : kw // 2] = 1
    later = torch.arange(outputs)[:, None] % colors - torch.arange(inputs)[None, :] % colors
    mask[:, :, kh // 2, kw // 2] = (later >= (0 if own else 1)).float()
    return mask


def plan(mask):
    taps, partial = fastgen.TapPlan(mask, mask.shape).on(torch.device("cpu"))
    # rows the plan does not count, as it may have
    return taps, torch.cat([partial, partial.new_full((1, *mask.shape[:2]), 7)])


def sample(batch, inputs, outputs, size, kernel, dtype=torch.float32, layout="plain"):
    x = torch.randn(batch, inputs, *size).to(dtype, memory_format=FORMATS[layout])
    weight = (torch.randn(outputs, inputs, *kernel) / 4).to(dtype)
    return x, weight, torch.randn(outputs).to(dtype)


@pytest.fixture
def outputs(monkeypatch):
    made = Outputs(kernels.empty_in_format_of)
    monkeypatch.setattr(kernels, "empty_in_format_of", made)
    yield made
    made.check()


def check(x, weight, bias, mask, dilation=(1, 1), grad=None, taps=None):
    """Forward and all gradients as exact as the same computation in plain PyTorch."""
    taps = plan(mask) if taps is None else taps
    wide = [t.double() for t in (x, weight, bias)]
    y = kernels.masked_conv2d(x, weight, bias, *taps, dilation)
    plain = reference.masked_conv2d(x, weight, bias, *taps, dilation)
    exact = reference.masked_conv2d(*wide, *taps, dilation)
    assert_as_exact_as_torch(y, plain, exact, "reduction")
    assert y.dtype == x.dtype and y.stride() == plain.stride()

    grad = torch.randn(y.shape).to(y) if grad is None else grad
    needs = (True, True, True)
    back = kernels.masked_conv2d_backward(grad, x, weight, *taps, dilation, needs)
    plain = reference.masked_conv2d_backward(grad, x, weight, *taps, dilation, needs)
    exact = reference.masked_conv2d_backward(grad.double(), *wide[:2], *taps, dilation, needs)
    for actual, plainly, exactly in zip(back, plain, exact, strict=True):
        assert_as_exact_as_torch(actual, plainly, exactly, "reduction")
        assert actual.dtype == x.dtype and actual.stride() == plainly.stride()
    assert (back[1][mask == 0] == 0).all()


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("inputs, colors", [(20, 1), (21, 3), (3, 3), (1, 1)])
def test_forward_and_gradients_match_float64(outputs, inputs, colors, dtype, layout):
    x, weight, bias = sample(2, inputs, 18, (3, 5), (3, 3), dtype, layout)
    tensors = map(guarded, (x, weight, bias))
    check(*tensors, causal(18, inputs, 3, 3, colors))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_halves_are_rounded_once_and_to_nearest(outputs, dtype):
    x, weight, _ = sample(2, 1, 3, (6, 7), (1, 1), dtype)
    y = kernels.masked_conv2d(x, weight, None, *plan(torch.ones(3, 1, 1, 1)), (1, 1))
    assert torch.equal(y, (x.float() * weight.float()[None, :, 0]).to(dtype))


@pytest.mark.parametrize("kernel", [(1, 1), (1, 5), (5, 1), (3, 7), (7, 3)], ids=str)
@pytest.mark.parametrize("dilation", [(1, 1), (2, 3)], ids=str)
def test_rectangular_and_dilated_kernels(outputs, kernel, dilation):
    x, weight, bias = sample(1, 17, 5, (6, 4), kernel)
    check(*map(guarded, (x, weight, bias)), causal(5, 17, *kernel), dilation)


@pytest.mark.parametrize("tile", [t for ts in kernels.TILES.values() for t in ts], ids=str)
def test_every_tile_of_the_convolution(outputs, monkeypatch, tile):
    every_tile(monkeypatch, kernels.TILES, tile, "tiles_of", (3, 3))


@pytest.mark.parametrize("tile", [t for ts in kernels.PARTIAL_TILES.values() for t in ts], ids=str)
def test_every_tile_with_partial_taps(outputs, monkeypatch, tile):
    every_tile(monkeypatch, kernels.PARTIAL_TILES, tile, "tiles_of", (3, 3), 5)


@pytest.mark.parametrize("tile", [t for ts in kernels.GRADIENT_TILES.values() for t in ts], ids=str)
def test_every_tile_of_the_weight_gradient(outputs, monkeypatch, tile):
    every_tile(monkeypatch, kernels.GRADIENT_TILES, tile, "fitting", (1, 3), 5)


def every_tile(monkeypatch, table, tile, chooser, kernel, colors=1):
    """One tile, on a layer a little wider than it."""
    size = next(size for size, tiles in table.items() if tile in tiles)
    dtype = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}[size]
    monkeypatch.setattr(kernels, chooser, lambda *_: (tile,))
    inputs, outputs = min(tile.kwargs["BLOCK_I"], 32) + 3, min(tile.kwargs["BLOCK_O"], 64) + 6
    x, weight, bias = sample(1, inputs, outputs, (9, 5), kernel, dtype, "channels-last")
    mask = causal(outputs, inputs, *kernel, colors)
    taps = fastgen.TapPlan(mask, mask.shape).on(x.device)
    check(x, weight, bias, mask, taps=taps)


@pytest.mark.parametrize("inputs", [20, 3])
def test_64_bit_offsets(outputs, monkeypatch, inputs):
    monkeypatch.setattr(kernels, "needs_int64", lambda *_: True)
    x, weight, bias = sample(2, inputs, 6, (4, 5), (3, 3))
    check(x, weight, bias, causal(6, inputs, 3, 3, 2))


def test_needs_int64_is_asked_of_the_farthest_element():
    assert not kernels.needs_int64(torch.empty(2**15, 2**16, device="meta"))
    assert kernels.needs_int64(
        torch.empty(1, device="meta"), torch.empty(2**16, 2**16, device="meta")
    )


def test_any_strides(outputs):
    x, weight, bias = sample(2, 17, 6, (5, 4), (3, 3))
    check(
        guarded(x, spread=2).flip(3).transpose(2, 3),
        guarded(weight.contiguous(memory_format=torch.channels_last), spread=3),
        guarded(bias, spread=5),
        causal(6, 17, 3, 3, 2),
        grad=torch.randn(2, 6, 1, 1).expand(2, 6, 4, 5),
    )


def test_expanded_input(outputs):
    x, weight, bias = sample(1, 17, 6, (1, 4), (3, 3))
    check(x.expand(3, 17, 5, 4), weight, bias[:1].expand(6), causal(6, 17, 3, 3))


@pytest.mark.parametrize(
    "batch, inputs, outputs_, size",
    [(0, 3, 4, (5, 5)), (2, 0, 4, (5, 5)), (2, 3, 0, (5, 5)), (2, 3, 4, (0, 5)), (1, 1, 1, (1, 1))],
)
def test_empty_and_single(outputs, batch, inputs, outputs_, size):
    x, weight, bias = sample(batch, inputs, outputs_, size, (3, 3))
    check(x, weight, bias, causal(outputs_, inputs, 3, 3))


def test_everything_masked_is_the_bias(outputs):
    x, weight, bias = sample(2, 17, 6, (4, 4), (3, 3))
    mask = torch.zeros(6, 17, 3, 3)
    check(x, weight, bias, mask)
    y = kernels.masked_conv2d(x * float("nan"), weight, bias, *plan(mask), (1, 1))
    assert torch.equal(y, bias[None, :, None, None].expand_as(y))


def test_no_bias_and_only_what_is_needed(outputs):
    x, weight, _ = sample(2, 17, 6, (4, 4), (3, 3))
    taps = plan(causal(6, 17, 3, 3))
    y = kernels.masked_conv2d(x, weight, None, *taps, (1, 1))
    torch.testing.assert_close(y, reference.masked_conv2d(x, weight, None, *taps, (1, 1)))
    for needed in range(3):
        needs = [i == needed for i in range(3)]
        back = kernels.masked_conv2d_backward(y, x, weight, *taps, (1, 1), needs)
        assert [g.numel() > 0 for g in back] == needs


@pytest.mark.parametrize("inputs", [19, 4])
@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_arbitrary_masks(outputs, density, inputs):
    x, weight, bias = sample(2, inputs, 7, (4, 5), (3, 3))
    check(x, weight, bias, (torch.rand(7, inputs, 3, 3) < density).float(), DILATED)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("inputs", [20, 4])
def test_what_is_not_finite_goes_where_the_mask_lets_it(inputs, dtype, bad):
    mask = causal(6, inputs, 3, 3, 2)
    taps = plan(mask)
    x, weight, bias = sample(1, inputs, 6, (5, 5), (3, 3), dtype)
    x[0, 1, 2, 2] = bad  # colour 1: colour 0 of the same position must not see it
    weight[mask == 0] = bad
    y = kernels.masked_conv2d(x, weight, bias, *taps, (1, 1))
    expected = reference.masked_conv2d(x, weight, bias, *taps, (1, 1))
    reached = ~expected.isfinite()
    assert reached.any() and not reached[0, ::2, 2, 2].any()
    same = {"atol": 0.05, "rtol": 0.02, "equal_nan": True}
    torch.testing.assert_close(y, expected, **same)

    grad = torch.randn(y.shape).to(dtype)
    grad[0, 0, 2, 2] = bad
    back = kernels.masked_conv2d_backward(grad, x, weight, *taps, (1, 1), (True, False, False))
    expected = reference.masked_conv2d_backward(
        grad, x, weight, *taps, (1, 1), (True, False, False)
    )
    torch.testing.assert_close(back[0], expected[0], **same)


def test_an_unmasked_infinite_weight_at_a_partial_tap():
    mask = causal(4, 20, 1, 1, 2)
    x, weight, bias = sample(1, 20, 4, (2, 2), (1, 1))
    x[0, 0, 0, 0], weight[2, 0] = float("-inf"), float("inf")
    taps = plan(mask)
    y = kernels.masked_conv2d(x, weight, bias, *taps, (1, 1))
    torch.testing.assert_close(y, reference.masked_conv2d(x, weight, bias, *taps, (1, 1)))
    assert y[0, 2, 0, 0] == float("-inf")


@pytest.mark.parametrize("inputs", [17, 2])
def test_weight_gradient_in_several_parts_has_the_same_bits_each_time(inputs):
    x, weight, bias = sample(3, inputs, 5, (16, 16), (1, 3))
    assert kernels._parts(3 * 256, 5, inputs, 3)[0] == 2
    mask = causal(5, inputs, 1, 3)
    check(x, weight, bias, mask)
    grad = torch.randn(3, 5, 16, 16)
    one, two = (
        kernels.masked_conv2d_backward(grad, x, weight, *plan(mask), (1, 1), (False, True, False))
        for _ in range(2)
    )
    assert torch.equal(one[1], two[1])


def test_the_parts_cover_all_positions_once():
    for positions in (1, 63, 64, 511, 513, 12544, 10**6 + 1):
        for channels in (1, 64, 256):
            parts, part = kernels._parts(positions, channels, channels, 25)
            assert (parts - 1) * part < positions <= parts * part


def test_float32_products_follow_pytorchs_tf32_setting():
    assert kernels.precision() == "ieee"
    former = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        assert kernels.precision() == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = former
