"""The optimisers in the loops they are used in: scalers, schedulers, hooks, compiled steps."""

import copy
import inspect
import math
import os
import warnings

import pytest
import torch
from optim_programs import TORCH, Pair, exact_square_roots  # noqa: F401
from torch.optim import lr_scheduler
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from fastgen.optim import ClippedAdam, ClippedRMSprop

both = pytest.mark.parametrize("cls", [ClippedRMSprop, ClippedAdam])
CLIP = 0.05
OPTIONS = {
    ClippedRMSprop: dict(lr=0.01, momentum=0.5),
    ClippedAdam: dict(lr=0.01, betas=(0.5, 0.99), amsgrad=True),
}


def critic():
    net = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 1))
    net.unused = torch.nn.Parameter(torch.ones(3))
    return net


def two_critics(cls, dtype=torch.float32, **options):
    """(net, optimiser) of ours and of torch's."""
    options = OPTIONS[cls] | options
    first = critic().to(dtype)
    second = copy.deepcopy(first)
    ours = cls(first.parameters(), clip=CLIP, **options)
    return (first, ours), (second, TORCH[cls](second.parameters(), **options))


def clamp(net):
    with torch.no_grad():
        for param in net.parameters():
            param.clamp_(-CLIP, CLIP)


def assert_same(first, second):
    assert all(map(torch.equal, first.parameters(), second.parameters()))


# --- saturation ---


@both
def test_saturation_is_the_share_at_a_bound(cls):
    for seed in range(5):
        pair = Pair(seed)
        assert pair.ours.saturation.isnan()
        for _ in range(3):
            pair.give_gradients()
            pair.step()
            clipping = [g for g in pair.ours.param_groups if g["clip"] is not None]
            at, of = 0, 0
            for group in clipping:
                for param in group["params"]:
                    clip = group["clip"]
                    ends = clip if isinstance(clip, (tuple, list)) else (-clip, clip)
                    ends = torch.tensor(ends, dtype=torch.float64).to(param.dtype)
                    at += torch.isin(param.detach(), ends).sum().item()
                    of += param.numel()
            got = pair.ours.saturation
            assert got.dtype == torch.float32 and got.shape == ()
            assert got == torch.tensor(at / of) if of else got.isnan()


@both
def test_no_clip_no_saturation(cls):
    net = critic()
    optimizer = cls(net.parameters(), clip=None)
    net(torch.ones(2, 5)).mean().backward()
    optimizer.step()
    assert optimizer.saturation.isnan()
    empty = cls([dict(params=[])])
    empty.step()
    assert empty.saturation.isnan()


# --- learning rates ---


@both
def test_a_tensor_of_a_learning_rate(cls):
    (net, ours), (twin, plain) = two_critics(cls)
    ours.param_groups[0]["lr"] = torch.tensor(0.01, dtype=torch.float64)
    for _ in range(5):
        x = torch.randn(8, 5)
        for model, optimizer in ((net, ours), (twin, plain)):
            optimizer.zero_grad()
            model(x).mean().backward()
            optimizer.step()
        clamp(twin)
    torch.testing.assert_close(
        list(net.parameters()), list(twin.parameters()), rtol=1e-6, atol=1e-7
    )
    before = [p.detach().clone() for p in net.parameters()]
    ours.param_groups[0]["lr"].fill_(0.0)  # read at every step
    ours.step()
    if cls is ClippedRMSprop:
        assert all(map(torch.equal, before, net.parameters()))


@both
@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: lr_scheduler.StepLR(o, 2, 0.1),
        lambda o: lr_scheduler.OneCycleLR(o, 0.05, total_steps=12),
        lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.ConstantLR(o, 0.5), lr_scheduler.ExponentialLR(o, 0.9)], [3]
        ),
    ],
)
def test_schedulers(cls, schedule):
    (net, ours), (twin, plain) = two_critics(cls)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as steps in the wrong order
        schedules = schedule(ours), schedule(plain)
        for _ in range(10):
            x = torch.randn(8, 5)
            for model, optimizer, scheduler in zip(
                (net, twin), (ours, plain), schedules, strict=True
            ):
                optimizer.zero_grad()
                model(x).mean().backward()
                optimizer.step()
                scheduler.step()
            clamp(twin)
            assert ours.param_groups[0]["lr"] == plain.param_groups[0]["lr"]
            assert_same(net, twin)


# --- hooks, closures, profiles ---


@both
def test_hooks_are_called_as_torchs(cls):
    logs = []
    for net, optimizer in two_critics(cls):
        log = []
        logs.append(log)

        def before(optimizer, args, kwargs, log=log, own=None):
            log.append(("before", len(args), kwargs))

        def after(optimizer, args, kwargs, log=log):
            log.append(("after", len(args), kwargs))

        net(torch.ones(2, 5)).mean().backward()
        optimizer.step()
        handles = [
            optimizer.register_step_pre_hook(before),
            optimizer.register_step_post_hook(after),
        ]
        optimizer.step()
        optimizer.step(lambda log=log: log.append("closure") or 3.0)
        for handle in handles:
            handle.remove()
        optimizer.step()
        everywhere = [
            register_optimizer_step_pre_hook(before),
            register_optimizer_step_post_hook(after),
        ]
        optimizer.step()
        for handle in everywhere:
            handle.remove()
        optimizer.step()
    assert logs[0] == logs[1] and len(logs[0]) == 7


@both
def test_a_hook_may_change_the_arguments(cls):
    net = critic()
    optimizer = cls(net.parameters())
    optimizer.register_step_pre_hook(lambda o, args, kwargs: ((o, lambda: 5.0), kwargs))
    assert optimizer.step() == 5.0


@both
def test_a_profile_shows_the_step(cls):
    net = critic()
    optimizer = cls(net.parameters())
    net(torch.ones(2, 5)).mean().backward()
    with torch.profiler.profile() as profile:
        optimizer.step()
    names = [event.name for event in profile.events()]
    assert f"Optimizer.step#{cls.__name__}.step" in names


@both
def test_closures(cls):
    (net, ours), (twin, plain) = two_critics(cls)
    x = torch.randn(8, 5)
    for _ in range(4):
        losses = []
        for model, optimizer in ((net, ours), (twin, plain)):

            def closure(model=model, optimizer=optimizer):
                optimizer.zero_grad()
                loss = model(x).mean()
                loss.backward()
                return loss

            with torch.no_grad():
                losses.append(optimizer.step(closure))
        clamp(twin)
        assert torch.equal(*losses)
        assert_same(net, twin)


@both
def test_the_step_keeps_torchs_signature_and_subclasses_their_hooks(cls):
    assert list(inspect.signature(cls.step).parameters) == ["self", "closure"]

    class Counting(cls):
        steps = 0

        def step(self, closure=None):
            self.steps += 1
            return super().step(closure)

    net, calls = critic(), []
    optimizer = Counting(net.parameters(), clip=CLIP)
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    optimizer.step()
    assert optimizer.steps == 1 and calls
    assert max(p.abs().max() for p in net.parameters()) <= CLIP


@both
@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(cls, set_to_none):
    net = critic()
    optimizer = cls(net.parameters())
    net(torch.ones(2, 5)).mean().backward()
    optimizer.zero_grad(set_to_none)
    assert all(p.grad is None or not p.grad.any() for p in net.parameters())
    assert (net[0].weight.grad is None) == set_to_none


@both
def test_autograd_notices_the_step(cls):
    net = critic()
    optimizer = cls(net.parameters())
    loss = net(torch.ones(2, 5)).square().mean()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@both
def test_no_step_in_inference_or_grad_mode_leaves_a_graph(cls):
    net = critic()
    optimizer = cls(net.parameters())
    net(torch.ones(2, 5)).mean().backward()
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            optimizer.step()
        assert all(p.is_leaf and p.requires_grad for p in net.parameters())


# --- gradient scalers ---


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("unscale_first", [False, True])
def test_a_gradient_scaler_as_torchs(cls, dtype, unscale_first):
    options = dict(weight_decay=0.1)
    if dtype == torch.bfloat16:  # where torch's bits depend on a tensor's length
        options = dict(weight_decay=0, **(dict(momentum=0) if cls is ClippedRMSprop else {}))
    (net, ours), (twin, plain) = two_critics(cls, dtype, **options)
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3) for _ in "ab"]
    for step in range(8):
        x = torch.randn(8, 5, dtype=dtype)
        for model, optimizer, scaler in zip((net, twin), (ours, plain), scalers, strict=True):
            optimizer.zero_grad()
            loss = model(x).mean() * (math.inf if step == 4 else 1)
            scaler.scale(loss).backward()
            if unscale_first:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        clamp(twin)
        assert_same(net, twin)
        assert scalers[0].get_scale() == scalers[1].get_scale()
    assert {s["step"].item() for s in ours.state.values()} == {7.0}
    assert not hasattr(ours, "grad_scale") and not hasattr(ours, "found_inf")


@both
def test_an_overflow_leaves_the_update_out_not_the_clip(cls):
    net = critic()
    optimizer = cls(net.parameters(), clip=CLIP)
    scaler = torch.amp.GradScaler("cpu")
    before = [p.detach().clamp(-CLIP, CLIP) for p in net.parameters()]
    scaler.scale(net(torch.ones(2, 5)).mean() * math.inf).backward()
    scaler.step(optimizer)
    assert all(map(torch.equal, before, net.parameters()))
    assert all(state["step"] == 0 for state in optimizer.state.values())
    assert optimizer.saturation > 0


@both
def test_a_scaler_without_gradients(cls):
    net = critic()
    optimizer = cls(net.parameters(), clip=CLIP)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(()))
    scaler.step(optimizer)
    assert max(p.abs().max() for p in net.parameters()) <= CLIP


# --- torch.compile ---

# Inductor's C++ of torch 2.13 does not compile at the lowest level
INDUCTOR = "aot_eager" if os.environ.get("ATEN_CPU_CAPABILITY") else "inductor"


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@both
def test_a_compiled_step(cls, fresh_dynamo):
    (net, ours), (twin, plain) = two_critics(cls)
    backend = INDUCTOR if cls is ClippedRMSprop else "aot_eager"  # once: its start takes seconds
    step = torch.compile(ours.step, fullgraph=True, backend=backend)
    for _ in range(3):
        x = torch.randn(8, 5)
        for model, optimizer in ((net, ours), (twin, plain)):
            optimizer.zero_grad()
            model(x).mean().backward()
        step()
        plain.step()
        clamp(twin)
        assert_same(net, twin)
        at = sum((p.detach().abs() == torch.tensor(CLIP)).sum() for p in net.parameters())
        assert ours.saturation == at / sum(p.numel() for p in net.parameters())


@both
def test_a_whole_compiled_training_step(cls, fresh_dynamo):
    (net, ours), (twin, plain) = two_critics(cls)
    compiles = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    def train(model, optimizer, x):
        loss = model(x).mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    with torch._dynamo.config.patch(trace_autograd_ops=True):
        compiled = torch.compile(train, fullgraph=True, backend=compiles)
        for _ in range(4):
            x = torch.randn(8, 5)
            ours.zero_grad()
            plain.zero_grad()
            assert torch.equal(compiled(net, ours, x), train(twin, plain, x))
            clamp(twin)
            assert_same(net, twin)
    assert compiles.frame_count <= 2  # once more with state


@both
def test_compiled_steps_go_on_from_plain_ones_and_back(cls, fresh_dynamo):
    (net, ours), (twin, plain) = two_critics(cls)
    compiled = torch.compile(ours.step, fullgraph=True, backend="eager")
    for step in (ours.step, compiled, ours.step, compiled):
        x = torch.randn(8, 5)
        for model, optimizer in ((net, ours), (twin, plain)):
            optimizer.zero_grad()
            model(x).mean().backward()
        step()
        plain.step()
        clamp(twin)
        assert_same(net, twin)
