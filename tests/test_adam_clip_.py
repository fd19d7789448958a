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
    plan,
)

from fastgen import ops
from fastgen.ops.adam_clip_ import OP
from fastgen.reference.adam_clip_ import adam_clip_ as reference


def state(draw, shapes, dtypes, amsgrad, strided=True):
    """params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps."""
    lay = draw.laid_out if strided else lambda t: t
    pairs = list(zip(shapes, dtypes, strict=True))

    def tensors(scale, of=lambda t: t):
        return [lay(of(draw.values(shape, dtype, scale))) for shape, dtype in pairs]

    return [
        tensors(0.02),
        tensors(1.0),
        tensors(0.3),
        tensors(1.0, torch.abs),
        tensors(1.0, torch.abs) if amsgrad else [],
        [torch.tensor(float(draw.pick(0, 0, 3, 1000, 10**7))) for _ in shapes],
    ]


def settings(draw):
    rate = draw.pick(None, None, torch.tensor(2e-3), torch.tensor([1e-3], dtype=torch.float64))
    low, high = draw.pick((-0.01, 0.01), (-0.3, 0.002), (0.0, 0.0), (-float("inf"), float("inf")))
    return (
        rate, 0.0 if rate is not None else draw.pick(1e-3, 0.1), draw.pick(0.5, 0.9, 0.0, 0.2),
        draw.pick(0.999, 0.9, 0.0), draw.pick(1e-8, 1e-3), draw.pick(0.0, 0.0, 0.1),
        bool(draw.below(2)), bool(draw.below(2)), low, high,
        draw.pick(None, None, torch.tensor(3.0)),
        draw.pick(None, None, torch.tensor(0.0), torch.tensor(1.0)),
    )  # fmt: skip


@bits
@pytest.mark.parametrize("first", range(0, 240, 40))
def test_has_the_bits_of_the_reference(first):
    for seed in range(first, first + 40):
        draw = Draw(seed)
        shapes = draw.shapes()
        lists = state(draw, shapes, draw.dtypes(len(shapes)), draw.below(2))
        numbers = settings(draw)
        ours, theirs = copies(lists), copies(lists)
        count = OP(*ours, *numbers)
        assert count == reference(*theirs, *numbers), seed
        for got, want in zip(ours, theirs, strict=True):
            assert all_same_bits(got, want), seed
        assert all_same_bits(ours[1], lists[1])  # gradients are only read


def large(dtype):
    draw = Draw(5)
    shapes = [(70_001,), (3,), (300, 257), (64, 1000), (1,)]
    lists = state(draw, shapes, [dtype] * 5, True, strided=False)
    lists[0][2] = lists[0][2].t().contiguous().t()  # beside contiguous gradients
    return lists


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_number_of_threads_gives_the_same_bits(dtype):
    numbers = (None, 1e-3, 0.5, 0.9, 1e-8, 0.1, False, False, -0.01, 0.01, None, None)
    results = []
    for threads in (1, 2, 3):
        lists = copies(large(dtype))
        count = on_threads(threads, lambda lists=lists: OP(*lists, *numbers))
        results.append((count, sum(lists, [])))
    for count, tensors in results[1:]:
        assert count == results[0][0] and all_same_bits(tensors, results[0][1])


def test_the_public_function_clips_and_counts():
    params, grads = [torch.tensor([0.5, -0.5, 0.001, nan])], [torch.zeros(4)]
    zeros, step = [[torch.zeros(4)] for _ in range(2)], torch.zeros(())
    count = ops.adam_clip_.adam_clip_(params, grads, *zeros, (), [step], clip=0.01)
    assert step == 1
    assert count == 2 and count.dtype == torch.int64 and count.shape == ()
    want = torch.tensor([0.01, -0.01, 0.001, nan])
    torch.testing.assert_close(params[0], want, rtol=0, atol=0, equal_nan=True)


def test_versions_of_what_is_written_move_on():
    lists = state(Draw(1), [(4,), (3, 2)], [torch.float32] * 2, True, strided=False)
    for p in lists[0]:
        p.requires_grad_()
    before = [[t._version for t in tensors] for tensors in lists]
    with torch.no_grad():
        OP(*lists, None, 1e-3, 0.5, 0.9, 1e-8, 0.0, False, False, -1.0, 1.0, None, None)
    for i, tensors in enumerate(lists):
        moved = 0 if i == 1 else 1
        assert [t._version for t in tensors] == [v + moved for v in before[i]]


def small(device="cpu"):
    p, g = [torch.linspace(-1, 1, n, device=device) for n in (5, 40)], []
    g = [t.flip(0) for t in p]
    average, square = [t / 2 for t in p], [t.abs() for t in p]
    return [p, g, average, square, [], [torch.zeros((), device=device) for _ in p]]


NUMBERS = (None, 1e-3, 0.5, 0.9, 1e-8, 0.0, False, False, -0.01, 0.01, None, None)


def test_opcheck():
    torch.library.opcheck(OP, (*small(), *NUMBERS))


def test_compiles_without_a_break():
    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(lists):
        return OP(*lists, *NUMBERS) + 1

    ours, theirs = small(), small()
    assert step(ours) == OP(*theirs, *NUMBERS) + 1
    assert all_same_bits(ours[0], theirs[0]) and all_same_bits(ours[2], theirs[2])


def test_has_a_fake_kernel():
    assert OP(*small("meta"), *NUMBERS).shape == ()


def swapped(list_index, tensor, index=1):
    lists = small()
    lists[list_index] = [*lists[list_index]]
    lists[list_index][index] = tensor
    return lists


@needs_kernels
@pytest.mark.parametrize(
    "lists, error, text",
    [
        (swapped(1, torch.zeros(41)), ValueError, "grads must have the shapes of params"),
        (swapped(1, torch.zeros(40).half()), TypeError, "grads must have the dtypes of params"),
        (swapped(0, torch.zeros(40).long()), TypeError, "params must be float32, float64,"),
        (swapped(0, torch.zeros(40).cfloat()), TypeError, "params must be float32, float64,"),
        (swapped(2, torch.zeros(1).expand(40)), RuntimeError, "exp_avgs must not overlap"),
        (swapped(0, torch.zeros(42).as_strided((5, 8), (1, 1))), RuntimeError, "params must not"),
        (swapped(5, torch.zeros(2)), ValueError, "steps must be dense tensors of one element"),
        (swapped(5, torch.zeros(()).long()), TypeError, "steps must be float32"),
        ([*small()[:4], [torch.zeros(5)], small()[5]], ValueError, "max_exp_avg_sqs must hold 2"),
    ],
)
def test_refuses_before_anything_is_written(lists, error, text):
    before = [t.clone() for t in lists[0]]
    with pytest.raises(error, match=f"fastgen.adam_clip_: {text}"):
        OP(*lists, *NUMBERS)
    assert all(torch.equal(t, b) for t, b in zip(lists[0], before, strict=True))


@pytest.mark.parametrize("place", [1, 2])
def test_refuses_meta_tensors_among_others(place):
    with pytest.raises(ValueError, match="must be on one device, got meta beside cpu"):
        OP(*swapped(place, torch.zeros(40, device="meta")), *NUMBERS)


@needs_kernels
def test_a_plan_refuses_state_on_another_device():
    lists = swapped(2, torch.zeros(40, device="meta"))
    adam = plan("AdamPlan", lists[0], lists[2], lists[3], [], lists[5])
    lists[0][1].grad = lists[1][1]
    with pytest.raises(ValueError, match="exp_avgs must be on one device, got meta beside cpu"):
        adam.step(*NUMBERS)


@needs_kernels
def test_refuses_sparse_gradients():
    lists = swapped(1, torch.zeros(40).to_sparse())
    adam = plan("AdamPlan", lists[0], lists[2], lists[3], [], lists[5])
    lists[0][0].grad, lists[0][1].grad = torch.zeros(5), lists[1][1]
    with pytest.raises(RuntimeError, match="grads must be dense, got a Sparse tensor"):
        adam.step(*NUMBERS)


def test_rate_of_several_elements_is_refused():
    with pytest.raises(ValueError, match="lr must be a tensor of one element"):
        OP(*small(), torch.ones(2), *NUMBERS[1:])


@bits
@needs_kernels
@pytest.mark.parametrize("seed", range(40))
def test_a_plan_does_what_the_op_does(seed):
    draw = Draw(seed)
    shapes = draw.shapes()
    lists = state(draw, shapes, draw.dtypes(len(shapes)), draw.below(2))
    numbers, without = settings(draw), draw.below(len(shapes))
    ours, theirs = copies(lists), copies(lists)
    adam = plan("AdamPlan", ours[0], *ours[2:])
    for i, (p, g) in enumerate(zip(ours[0], ours[1], strict=True)):
        p.grad = None if i == without else g
    count = adam.step(*numbers)
    clipped = 0
    if numbers[8] > -float("inf"):
        one = [x[without : without + 1] for x in theirs]
        clipped = reference(*one, *numbers[:-1], torch.ones(()))
    rest = [x[:without] + x[without + 1 :] for x in theirs]
    updated = reference(*rest, *numbers) if len(shapes) > 1 else 0
    assert count == updated + clipped
    for got, want in zip(ours, theirs, strict=True):
        assert all_same_bits(got, want)


@needs_kernels
def test_a_plan_leaves_everything_when_state_is_missing():
    lists = small()
    none = torch.empty(0)
    adam = plan("AdamPlan", lists[0], *([t[0], none] for t in lists[2:4]), [], [lists[5][0], none])
    lists[0][0].grad = lists[1][0]
    assert adam.step(*NUMBERS) == 45 - 1  # both clipped, 0 is inside
    before = [t.clone() for t in lists[0]]
    lists[0][1].grad = lists[1][1]
    assert adam.step(*NUMBERS) is None
    assert all(torch.equal(a, b) for a, b in zip(lists[0], before, strict=True))
    assert lists[5][0] == 1


@needs_kernels
def test_a_plan_without_clip_leaves_parameters_without_gradient():
    lists = small()
    adam = plan("AdamPlan", lists[0], lists[2], lists[3], [], lists[5])
    assert adam.step(*NUMBERS[:8], -float("inf"), float("inf"), None, None) == 0
    assert lists[0][0]._version == 0 and lists[5][0] == 0


@needs_kernels
@pytest.mark.parametrize("kind", ["negated", "zero", "fake"])
def test_a_plan_leaves_gradients_that_are_not_ordinary_to_the_op(kind):
    lists, theirs = small(), small()
    adam = plan("AdamPlan", lists[0], lists[2], lists[3], [], lists[5])
    grad = theirs[1][1]
    if kind == "zero":
        grad.zero_()
        lists[0][1].grad = torch._efficientzerotensor((40,))
    elif kind == "negated":
        lists[0][1].grad = torch._neg_view(-grad)
    lists[0][0].grad = lists[1][0]
    if kind == "fake":
        with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
            lists[0][1].grad = torch.empty(40)
            assert isinstance(adam.step(*NUMBERS), torch._subclasses.FakeTensor)
        return
    assert adam.step(*NUMBERS) == reference(*theirs, *NUMBERS)
    assert all_same_bits(lists[0], theirs[0]) and all_same_bits(lists[2], theirs[2])


@needs_kernels
def test_an_empty_plan():
    assert plan("AdamPlan", [], [], [], [], []).step(*NUMBERS) == 0


@needs_kernels
def test_tensors_larger_than_an_int_can_tell(tmp_path):
    path, elements = str(tmp_path / "sparse"), 2**31 + 2
    memory = torch.from_file(path, shared=True, size=elements)  # a hole: no page is stored
    param = memory[:: 2**30]
    param.copy_(torch.tensor([0.5, -0.5, 0.001]))
    lists = [[param], *([torch.zeros(3)] for _ in range(3)), [], [torch.zeros(())]]
    assert OP(*lists, *NUMBERS) == 2
    assert torch.equal(param, torch.tensor([0.01, -0.01, 0.001]))
