"""The CUDA kernels of the updates of many tensors, run on the CPU: the bits of the reference for
every dtype, layout and option, in both orders of lanes, and clean under sanitizers."""

import concurrent.futures

import emulated
import pytest
import torch
from emulated import Array, Call

from fastgen.reference import adam_clip_, clip_weights_, ema_update_, rmsprop_clip_

pytestmark = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "DEFAULT",
    reason="PyTorch fuses no multiply-adds at this CPU level, and a GPU does",
)
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
OPS = {
    "clip_weights_": (clip_weights_.clip_weights_, 1),
    "ema_update_": (ema_update_.ema_update_, 2),
    "rmsprop_clip_": (rmsprop_clip_.rmsprop_clip_, 5),
    "adam_clip_": (adam_clip_.adam_clip_, 5),
}
OPTIMISERS = ["rmsprop_clip_", "adam_clip_"]


def library(op, mode="fibers", *, edit=()):
    """`edit`: (text, other text), a bug to plant."""
    return emulated.build(f"csrc/cuda/{op}.cu", mode, edit=edit)


MISSING_BARRIER = (
    "of_warp[threadIdx.x / 32] = mine;\n  __syncthreads();",
    "of_warp[threadIdx.x / 32] = mine;",
)
WRONG_LANE = ("if (threadIdx.x % 32 == 0) of_warp", "if (threadIdx.x % 32 == 1) of_warp")
ONE_TOO_FAR = ("i < end; i += kThreads", "i <= end; i += kThreads")
STEP_OF_EVERY_BLOCK = ("if (first && row.step", "if (threadIdx.x == 0 && row.step")


@pytest.fixture(scope="module", autouse=True)
def built_ahead():
    """What the tests need, compiled by two processes at a time."""
    jobs = [(op, "address", ()) for op in OPTIMISERS] + [(op, "fibers", ()) for op in OPS]
    jobs += [(op, "thread", ()) for op in OPTIMISERS]
    jobs += [
        ("clip_weights_", "fibers", MISSING_BARRIER),
        ("clip_weights_", "thread", MISSING_BARRIER),
        ("clip_weights_", "fibers", WRONG_LANE),
        ("clip_weights_", "address", ONE_TOO_FAR),
        ("rmsprop_clip_", "thread", STEP_OF_EVERY_BLOCK),
    ]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda job: library(job[0], job[1], edit=job[2]), jobs))


def misaligned(t):
    return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)


def every_second(t):
    return torch.stack([t, torch.full_like(t, torch.nan)], -1)[..., 0]


def channels_last(t):
    return t.contiguous(memory_format=torch.channels_last)


def dims_reversed(t):
    order = list(reversed(range(t.dim())))
    return t.permute(order).contiguous().permute(order)


def same(t):
    return t


# shape, layout of the operands in turn
LAYOUTS = {
    "one": ((), [same]),
    "empty": ((0, 3), [same]),
    "tail": ((37,), [same]),
    "blocks": ((9001,), [same]),
    "misaligned": ((131,), [same, misaligned]),
    "channels last": ((5, 4, 3, 3), [channels_last]),
    "gradient in another order": ((5, 4, 3, 3), [channels_last, same]),
    "slice": ((7, 9), [every_second, same]),
    "six dimensions": ((2, 3, 2, 3, 2, 3), [same, dims_reversed]),
}


def draw(dtype, layouts=tuple(LAYOUTS), operands=5):
    """operands[j][i]: operand j of tensor i; what follows a gradient is an average of squares."""
    sets = []
    for j in range(operands):
        of_operand = []
        for name in layouts:
            shape, orders = LAYOUTS[name]
            value = torch.randn(shape, dtype=torch.float64).mul(0.02)
            if value.numel() > 20 and j < 2:
                value.view(-1)[3], value.view(-1)[11] = torch.nan, torch.inf
            value = (value if j < 2 else value.square()).to(dtype)
            of_operand.append(orders[j % len(orders)](value))
        sets.append(of_operand)
    return sets


def array(t):
    return Array(str(t.dtype).removeprefix("torch."), tuple(t.shape), t.stride(), t.data_ptr())


def arrays(values):
    return [array(v) if isinstance(v, torch.Tensor) else v for v in values]


class Update:
    """An op's arguments, for the reference and for the emulated kernel."""

    def __init__(self, op, operands, *, steps=(), numbers=None, **settings):
        self.op, self.steps, self.numbers = op, list(steps), numbers or {}
        reference, count = OPS[op]
        self.reference, self.operands = reference, operands[:count]
        self.settings = settings

    def expected(self):
        """(count, operands, steps) by the reference."""
        held = [[t.clone(memory_format=torch.contiguous_format) for t in o] for o in self.operands]
        steps = [torch.as_tensor(s).clone() for s in self.steps]
        s, low, high = self.settings, self.settings.get("low"), self.settings.get("high")
        if self.op == "clip_weights_":
            return self.reference(held[0], low, high).item(), held, steps
        if self.op == "ema_update_":
            return self.reference(*held, s["decay"]), held, steps
        scaler = [self.numbers.get(name) for name in ("grad_scale", "found_inf")]
        rate = self.numbers.get("rate", self.numbers.get("double_rate"))
        if self.op == "rmsprop_clip_":
            momentum = held[3] if s["momentum"] else []
            count = self.reference(
                *held[:3], momentum, held[4] if s["centered"] else [], steps, rate, s["lr"],
                s["alpha"], s["eps"], s["weight_decay"], s["momentum"], s["maximize"], low, high,
                *scaler,
            )  # fmt: skip
        else:
            count = self.reference(
                *held[:4], held[4] if s["amsgrad"] else [], steps, rate, s["lr"], s["beta1"],
                s["beta2"], s["eps"], s["weight_decay"], s["decoupled"], s["maximize"], low, high,
                *scaler,
            )  # fmt: skip
        return count.item(), held, steps

    def call(self, **order):
        operands = [arrays(o) for o in self.operands]
        flags = ()
        if self.op == "rmsprop_clip_":
            flags = bool(self.settings["momentum"]), self.settings["centered"]
            present = [True, True, True, *flags]
        elif self.op == "adam_clip_":
            flags = (self.settings["amsgrad"],)
            present = [True, True, True, True, *flags]
        else:
            present = [True] * len(operands)
        for j, here in enumerate(present):
            if not here:
                operands[j] = [None] * len(operands[j])
        names = {name for name, _ in emulated.SETTINGS[self.op]._fields_}
        settings = {k: v for k, v in self.settings.items() if k in names}
        if "grad_scale" in names:
            settings["grad_scale"] = 1.0
        # of a step that the host counts, the kernel gets the new number
        steps = [s if isinstance(s, Array) else s + 1 for s in arrays(self.steps)]
        numbers = {name: array(t) for name, t in self.numbers.items()}
        return Call(self.op, operands, settings, steps, flags, numbers, **order)


def check(update, **order):
    count, operands, steps = update.expected()
    got = emulated.run(library(update.op), update.call(**order))
    if count is not None:
        assert got == count
    for j, (held, expected) in enumerate(zip(update.operands, operands, strict=True)):
        for i, (tensor, value) in enumerate(zip(held, expected, strict=True)):
            assert torch.equal(tensor.isnan(), value.isnan()), (j, i)
            same_bits = torch.equal(tensor.nan_to_num(7.0), value.nan_to_num(7.0))
            assert same_bits, f"operand {j} of tensor {i}: {tensor} instead of {value}"
    for held, step in zip(update.steps, steps, strict=True):
        if isinstance(held, torch.Tensor):
            assert held.item() == step.item()


RMSPROP = {
    "lr": 3e-3, "alpha": 0.9, "eps": 1e-8, "weight_decay": 0.0, "momentum": 0.0, "centered": False,
    "maximize": False, "low": -0.01, "high": 0.02,
}  # fmt: skip
ADAM = {
    "lr": 3e-3, "beta1": 0.5, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.0, "decoupled": False,
    "amsgrad": False, "maximize": False, "low": -0.01, "high": 0.02,
}  # fmt: skip
DEFAULTS = {
    "clip_weights_": {"low": -0.01, "high": 0.02},
    "ema_update_": {"decay": 0.9},
    "rmsprop_clip_": RMSPROP,
    "adam_clip_": ADAM,
}


def steps_for(op, count, first=3):
    if op not in ("rmsprop_clip_", "adam_clip_"):
        return []
    return [torch.tensor(float(first + i)) for i in range(count)]


def update_of(op, operands, **changes):
    steps = changes.pop("steps", None)
    steps = steps_for(op, len(operands[0])) if steps is None else steps
    return Update(op, operands, steps=steps, **(DEFAULTS[op] | changes))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_every_dtype_and_layout_has_the_bits_of_the_reference(op, dtype):
    check(update_of(op, draw(dtype)))
    check(update_of(op, draw(dtype)), reverse=True, blocks=3)


@pytest.mark.parametrize(
    "changes",
    [
        {"momentum": 0.9},
        {"centered": True, "weight_decay": 0.1},
        {"momentum": 0.8, "centered": True, "maximize": True},
        {"low": -torch.inf, "high": torch.inf, "maximize": True, "weight_decay": 0.1},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_options_of_rmsprop(dtype, changes):
    check(update_of("rmsprop_clip_", draw(dtype, ["tail", "slice", "misaligned"]), **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"amsgrad": True},
        {"weight_decay": 0.1, "maximize": True},
        {"weight_decay": 0.1, "decoupled": True, "amsgrad": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_options_of_adam(dtype, changes):
    check(update_of("adam_clip_", draw(dtype, ["tail", "slice", "misaligned"]), **changes))


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.5, 1.0])
def test_averages_from_either_end(decay):
    check(update_of("ema_update_", draw(torch.float32, ["tail", "slice"]), decay=decay))


@pytest.mark.parametrize("found", [0.0, 1.0])
@pytest.mark.parametrize("op", OPTIMISERS)
def test_a_scaler_is_read_by_the_kernel(op, found):
    numbers = {"grad_scale": torch.tensor(1536.0), "found_inf": torch.tensor(found)}
    for dtype in DTYPES:
        check(update_of(op, draw(dtype, ["tail", "slice"]), numbers=numbers))


@pytest.mark.parametrize("name, dtype", [("rate", torch.float32), ("double_rate", torch.float64)])
@pytest.mark.parametrize("op", OPTIMISERS)
def test_a_rate_is_read_by_the_kernel(op, name, dtype):
    changes = {"weight_decay": 0.1, "decoupled": True} if op == "adam_clip_" else {}
    numbers = {name: torch.tensor(0.007, dtype=dtype)}
    for of in (torch.float32, torch.float64, torch.bfloat16):
        check(update_of(op, draw(of, ["tail"]), lr=torch.nan, numbers=numbers, **changes))


def test_adam_takes_steps_that_the_host_counts():
    check(update_of("adam_clip_", draw(torch.float32, ["tail", "slice"]), steps=[4.0, 0.0]))


@pytest.mark.parametrize("op", ["rmsprop_clip_", "ema_update_"])
def test_more_tensors_than_one_launch_takes(op):
    count = 700  # small table, large table and a second launch
    for many in (80, count):
        operands = [
            [torch.rand(i % 5 + 1, dtype=torch.float64).float() * 0.02 for i in range(many)]
            for _ in range(5)
        ]
        check(update_of(op, operands))


def test_more_steps_than_one_launch_counts():
    operands = [[torch.rand(2) * 0.02 for _ in range(300)] for _ in range(5)]
    check(update_of("adam_clip_", operands))


def test_no_tensors_at_all():
    assert emulated.run(library("clip_weights_"), Call("clip_weights_", [[]], {})) == 0


def test_mixed_dtypes_in_one_update():
    sets = [draw(dtype, ["tail", "slice"]) for dtype in DTYPES]
    check(update_of("rmsprop_clip_", [sum((s[j] for s in sets), []) for j in range(5)]))


@pytest.mark.parametrize(
    "name, rows, strided",
    [
        ("one", 1, 0),
        ("empty", 1, 0),
        ("misaligned", 1, 0),
        ("channels last", 1, 0),
        ("gradient in another order", 1, 1),
        ("slice", 1, 1),
        ("six dimensions", 2 * 3, 2 * 3),
    ],
)
def test_layouts_become_rows(name, rows, strided):
    call = update_of("rmsprop_clip_", draw(torch.float32, [name])).call()
    assert emulated.rows(library("rmsprop_clip_"), call) == (rows, strided)


def huge(sizes, strides, gradient_strides=None):
    # never read: rows are only counted
    operands = [
        [Array("float32", sizes, s, 1 << 40)] for s in (strides, gradient_strides or strides)
    ]
    return Call("rmsprop_clip_", operands, RMSPROP)


@pytest.mark.parametrize(
    "sizes, strides, gradient, rows",
    [
        ((2**32 + 5,), (1,), None, 5),
        ((3, 2**30), (2**30, 1), None, 3),
        ((3, 2**29), (2**29, 1), (1, 3), 2),
        ((4, 2**31), (2**31, 1), (1, 4), 8),
    ],
)
def test_an_index_within_a_row_needs_no_64_bits(sizes, strides, gradient, rows):
    call = huge(sizes, strides, gradient)
    assert emulated.rows(library("rmsprop_clip_"), call)[0] == rows


def small_calls(op):
    """An update of every kind of row that a sanitizer looks at, and its results."""
    layouts = ["one", "tail", "misaligned", "slice", "six dimensions"]
    update = update_of(op, draw(torch.float32, layouts))
    return update, [update.call(), update.call(reverse=True, blocks=2)]


@pytest.mark.parametrize("op", OPTIMISERS)
def test_memory_is_used_within_its_bounds(op):
    update, calls = small_calls(op)
    done = emulated.run_apart(library(op, "address"), "address", calls)
    found = emulated.results(done)
    want = emulated.run(library(op), calls[0]), emulated.contents(calls[0])
    assert found == [want, want]


def race_call(op):
    """Two blocks of one tensor at once, and of another."""
    shapes = [3000, 5]
    operands = [[torch.rand(n) * 0.02 for n in shapes] for _ in range(5)]
    update = update_of(op, operands)
    return update, update.call(blocks=2)


@pytest.mark.parametrize("op", OPTIMISERS)
def test_lanes_and_blocks_do_not_race(op):
    update, call = race_call(op)
    found = emulated.results(emulated.run_apart(library(op, "thread"), "thread", [call]))
    want = emulated.run(library(op), call), emulated.contents(call)
    assert found == [want]


def test_a_missing_barrier_is_found():
    library_ = library("clip_weights_", edit=MISSING_BARRIER)
    update = update_of("clip_weights_", draw(torch.float32, ["blocks"]))
    count = update.expected()[0]
    assert count > 100
    counts = [emulated.run(library_, update.call(reverse=reverse)) for reverse in (False, True)]
    assert counts != [count, count]
    done = emulated.run_apart(
        library("clip_weights_", "thread", edit=MISSING_BARRIER), "thread", [update.call()]
    )
    assert done.returncode == 66 and b"data race" in done.stderr


def test_a_wrong_lane_is_found():
    library_ = library("clip_weights_", edit=WRONG_LANE)
    update = update_of("clip_weights_", draw(torch.float32, ["blocks"]))
    assert emulated.run(library_, update.call()) != update.expected()[0]


def test_one_element_too_far_is_found():
    call = update_of("clip_weights_", draw(torch.float32, ["tail"])).call()
    library_ = library("clip_weights_", "address", edit=ONE_TOO_FAR)
    done = emulated.run_apart(library_, "address", [call])
    assert done.returncode != 0 and b"heap-buffer-overflow" in done.stderr


def test_a_step_that_every_block_counts_is_found():
    _, call = race_call("rmsprop_clip_")
    library_ = library("rmsprop_clip_", "thread", edit=STEP_OF_EVERY_BLOCK)
    done = emulated.run_apart(library_, "thread", [call])
    assert done.returncode == 66 and b"data race" in done.stderr
