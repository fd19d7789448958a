import pytest
import torch
from multi_tensor_cases import (
    DTYPES,
    Draw,
    all_same_bits,
    bits,
    copies,
    nan,
    needs_kernels,
    on_threads,
)
from torch import nn

import fastgen
from fastgen.ops.ema_update_ import OP
from fastgen.reference.ema_update_ import ema_update_ as reference


@bits
@pytest.mark.parametrize("first", range(0, 200, 50))
def test_has_the_bits_of_lerp(first):
    for seed in range(first, first + 50):
        draw = Draw(seed)
        shapes = draw.shapes()
        targets, sources = (
            [
                draw.laid_out(draw.values(shape, dtype, 1.0))
                for shape, dtype in zip(shapes, draw.dtypes(len(shapes)), strict=True)
            ]
            for _ in range(2)
        )
        if not draw.below(3):
            sources = [s.to(t.dtype) for s, t in zip(sources, targets, strict=True)]
        (ours,), (theirs,) = copies([targets]), copies([targets])
        decay = draw.pick(0.0, 0.3, 0.5, 0.9, 0.999, 1.0)
        assert OP(ours, sources, decay) is None
        reference(theirs, sources, decay)
        assert all_same_bits(ours, theirs), seed


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_number_of_threads_gives_the_same_bits(dtype):
    start = [torch.randn(70_001).to(dtype), torch.randn(3), torch.randn(257, 300).to(dtype).t()]
    sources = [torch.randn(t.shape) for t in start]
    results = []
    for threads in (1, 2, 3):
        (targets,) = copies([start])
        on_threads(threads, lambda t=targets: OP(t, sources, 0.9))
        results.append(targets)
    assert all(all_same_bits(targets, results[0]) for targets in results[1:])


def test_of_modules_averages_what_is_floating_point_and_copies_the_rest():
    average, module = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    module(torch.randn(8, 2))
    with torch.no_grad():
        module.weight.copy_(torch.tensor([3.0, nan]))
    want = [a.lerp(b, 0.25) for a, b in zip(average.parameters(), module.parameters(), strict=True)]
    mean = average.running_mean.lerp(module.running_mean, 0.25)
    fastgen.ema_update_(average, module, 0.75)
    assert all_same_bits([p.detach() for p in average.parameters()], [t.detach() for t in want])
    assert torch.equal(average.running_mean, mean)
    assert average.num_batches_tracked == 1


def test_follows_weights_of_another_dtype():
    targets = [torch.zeros(3)]
    fastgen.ema_update_(targets, [torch.ones(3).bfloat16()], 0.75)
    assert torch.equal(targets[0], torch.full((3,), 0.25))


def test_of_no_tensors_is_nothing():
    assert fastgen.ema_update_([], [], 0.5) is None


def test_versions_of_targets_move_on():
    target, source = nn.Parameter(torch.ones(3)), torch.ones(3)
    fastgen.ema_update_([target], [source], 0.5)
    assert target._version == 1 and source._version == 0


@pytest.mark.parametrize("decay", [-0.1, 1.1, nan])
def test_refuses_decays(decay):
    with pytest.raises(ValueError, match=r"fastgen.ema_update_: decay must be in \[0, 1\]"):
        fastgen.ema_update_([torch.ones(1)], [torch.ones(1)], decay)


@needs_kernels
@pytest.mark.parametrize(
    "target, source, error, text",
    [
        (torch.ones(2), torch.ones(3), ValueError, "sources must have the shapes of targets"),
        (torch.ones(2).long(), torch.ones(2), TypeError, "targets must be float32"),
        (torch.ones(2), torch.ones(2).long(), TypeError, "sources must be float32"),
        (torch.ones(2).cfloat(), torch.ones(2).cfloat(), TypeError, "targets must be float32"),
        (torch.ones(1).expand(2), torch.ones(2), RuntimeError, "targets must not overlap"),
    ],
)
def test_refuses_before_anything_is_written(target, source, error, text):
    first = torch.ones(3)
    with pytest.raises(error, match=f"fastgen.ema_update_: {text}"):
        fastgen.ema_update_([first, target], [torch.zeros(3), source], 0.5)
    assert torch.equal(first, torch.ones(3))


def test_refuses_lists_of_different_lengths():
    with pytest.raises(ValueError, match="sources must hold 2 tensors"):
        fastgen.ema_update_([torch.ones(1)] * 2, [torch.ones(1)], 0.5)
    with pytest.raises(TypeError, match="must be both modules or both tensors"):
        fastgen.ema_update_(nn.Linear(1, 1), [torch.ones(1)], 0.5)


def test_refuses_meta_tensors_among_others():
    with pytest.raises(ValueError, match="must be on one device, got meta beside cpu"):
        fastgen.ema_update_([torch.ones(1)], [torch.ones(1, device="meta")], 0.5)


def test_opcheck():
    lists = [torch.randn(3), torch.randn(2, 2)], [torch.randn(3), torch.randn(2, 2)]
    torch.library.opcheck(OP, (*lists, 0.9))


def test_compiles_without_a_break():
    @torch.compile(fullgraph=True, backend="aot_eager")
    def run(targets, sources):
        fastgen.ema_update_(targets, sources, 0.9)
        return targets[0] + 1

    ours, sources = [torch.randn(5), torch.randn(3, 3)], [torch.randn(5), torch.randn(3, 3)]
    (theirs,) = copies([ours])
    out = run(ours, sources)
    fastgen.ema_update_(theirs, sources, 0.9)
    assert all_same_bits(ours, theirs) and torch.equal(out, theirs[0] + 1)
