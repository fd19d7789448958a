import pytest
import torch
from multi_tensor_cases import (
    DTYPES,
    Draw,
    all_same_bits,
    copies,
    inf,
    nan,
    needs_kernels,
    on_threads,
)
from torch import nn

import fastgen
from fastgen.ops.clip_weights_ import OP
from fastgen.reference.clip_weights_ import clip_weights_ as reference

BOUNDS = [
    (-0.01, 0.01),
    (-0.3, 0.002),
    (0.0, 0.0),
    (-0.0, 0.5),
    (0.1, 0.1),
    (-inf, 0.0),
    (-inf, inf),
]


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_has_the_bits_of_clamp(first):
    for seed in range(first, first + 50):
        draw = Draw(seed)
        shapes = draw.shapes()
        pairs = zip(shapes, draw.dtypes(len(shapes)), strict=True)
        (tensors,) = copies([[draw.laid_out(draw.values(s, d, 0.02)) for s, d in pairs]])
        low, high = draw.pick(*BOUNDS)
        (theirs,) = copies([tensors])
        assert OP(tensors, low, high) == reference(theirs, low, high), seed
        assert all_same_bits(tensors, theirs), seed
        for t in theirs:
            t.clamp_(low, high)
        assert all_same_bits(tensors, theirs), seed


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_number_of_threads_gives_the_same_bits(dtype):
    start = [torch.randn(70_001).to(dtype), torch.randn(3), torch.randn(257, 300).to(dtype).t()]
    results = []
    for threads in (1, 2, 3):
        (tensors,) = copies([start])
        results.append((on_threads(threads, lambda t=tensors: OP(t, -0.1, 0.1)), tensors))
    for count, tensors in results[1:]:
        assert count == results[0][0] and all_same_bits(tensors, results[0][1])


def test_clips_a_module_and_tells_the_share_at_the_bound():
    layer = nn.Linear(3, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.5, -0.001, nan]]))
        layer.bias.fill_(-1)
    share = fastgen.clip_weights_(layer, 0.01, return_saturation=True)
    want = torch.tensor([[0.01, -0.001, nan]])
    torch.testing.assert_close(layer.weight.detach(), want, rtol=0, atol=0, equal_nan=True)
    assert layer.bias.item() == torch.tensor(-0.01).item()
    assert share == 0.5 and share.dtype == torch.float32 and share.shape == ()


def test_returns_nothing_unless_asked():
    assert fastgen.clip_weights_(torch.ones(2), (0.0, 0.5)) is None
    assert fastgen.clip_weights_([], 0.1) is None
    assert fastgen.clip_weights_([], 0.1, return_saturation=True).isnan()
    assert fastgen.clip_weights_([torch.empty(0)], 0.1, return_saturation=True).isnan()


def test_a_tensor_given_twice_is_counted_once():
    t = torch.tensor([1.0, 0.0])
    assert fastgen.clip_weights_([t, t], 0.5, return_saturation=True) == 0.5


def test_bounds_are_rounded_to_the_dtype():
    t = torch.tensor([1.0, -1.0, 0.0]).bfloat16()
    assert fastgen.clip_weights_(t, 0.1, return_saturation=True) * 3 == 2
    assert t[0] == torch.tensor(0.1).bfloat16()


def test_versions_move_on_and_gradients_know():
    p, other = nn.Parameter(torch.ones(3)), torch.ones(2, 2)[:, 0]
    product = (p * p).sum()
    fastgen.clip_weights_([p, other], 0.5)
    assert p._version == 1 and other._version == 1 and p.requires_grad
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@pytest.mark.parametrize(
    "clip, error",
    [
        (-0.1, ValueError), ((0.2, 0.1), ValueError), (nan, ValueError), ((nan, 1.0), ValueError),
        ("0.1", TypeError), ((0.1,), TypeError), (True, TypeError), (None, TypeError),
    ],
)  # fmt: skip
def test_refuses_clips(clip, error):
    with pytest.raises(error, match="fastgen.clip_weights_: clip must be"):
        fastgen.clip_weights_(torch.ones(2), clip)


@needs_kernels
@pytest.mark.parametrize(
    "tensors, error, text",
    [
        ([torch.ones(2).long()], TypeError, "must be float32, float64, bfloat16 or float16"),
        ([torch.ones(2).bool()], TypeError, "must be float32, float64, bfloat16 or float16"),
        ([torch.ones(2).cfloat()], TypeError, "must be float32, float64, bfloat16 or float16"),
        ([torch.ones(1).expand(3)], RuntimeError, "must not overlap themselves"),
    ],
)
def test_refuses_before_anything_is_written(tensors, error, text):
    first = torch.ones(3)
    with pytest.raises(error, match=f"fastgen.clip_weights_: .*{text}"):
        fastgen.clip_weights_([first, *tensors], 0.5)
    assert torch.equal(first, torch.ones(3))


def test_refuses_what_is_no_tensor():
    with pytest.raises(TypeError, match="params_or_module must be"):
        fastgen.clip_weights_(0.5, 0.1)


def test_opcheck():
    torch.library.opcheck(OP, ([torch.randn(3), torch.randn(2, 2)], -0.5, 0.25))


def test_compiles_without_a_break():
    @torch.compile(fullgraph=True, backend="aot_eager")
    def run(tensors):
        return fastgen.clip_weights_(tensors, 0.5, return_saturation=True)

    ours = [torch.randn(5), torch.randn(3, 3)]
    (theirs,) = copies([ours])
    assert run(ours) == fastgen.clip_weights_(theirs, 0.5, return_saturation=True)
    assert all_same_bits(ours, theirs)


def test_has_a_fake_kernel():
    assert OP([torch.ones(3, device="meta")], -1.0, 1.0).shape == ()
