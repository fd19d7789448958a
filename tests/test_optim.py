import copy
import io
import pickle

import pytest
import torch
from optim_programs import TORCH, Pair, exact_square_roots, same_bits  # noqa: F401

import fastgen
from fastgen.optim import ClippedAdam, ClippedRMSprop

both = pytest.mark.parametrize("cls", [ClippedRMSprop, ClippedAdam])
EVERYTHING = {
    ClippedRMSprop: dict(lr=0.01, momentum=0.9, centered=True, weight_decay=0.1),
    ClippedAdam: dict(lr=0.01, betas=(0.5, 0.99), amsgrad=True, weight_decay=0.1),
}


def parameters(*sizes):
    return [torch.nn.Parameter(torch.linspace(-1, 1, size)) for size in sizes or (3, 70)]


def give_gradients(params):
    for param in params:
        param.grad = torch.randn_like(param)


def trained(cls, params, steps=3, **options):
    optimizer = cls(params, **options)
    for _ in range(steps):
        give_gradients(params)
        optimizer.step()
    return optimizer


# 100 programs of 100 steps
@pytest.mark.parametrize("seed", range(100))
def test_random_steps_are_the_bits_of_torch_and_clamp(seed):
    pair = Pair(seed)
    for _ in range(100):
        pair.give_gradients()
        if pair.choose.random() < 0.1:
            pair.change_something()
        pair.step()
        pair.assert_equal()
    pair.assert_equal_states()


# --- state dicts ---


def test_state_is_torchs_own():
    for seed in range(6):
        pair = Pair(seed)
        pair.give_gradients()
        pair.step()
        ours, plain = pair.ours.state_dict(), pair.plain.state_dict()
        assert ours["state"].keys() == plain["state"].keys()
        for mine, theirs in zip(ours["param_groups"], plain["param_groups"], strict=True):
            assert mine.keys() - theirs.keys() == {"clip"} and not theirs.keys() - mine.keys()


def test_state_dicts_load_both_ways():
    for seed in range(8):
        pair = Pair(seed, (torch.float32, torch.float64))
        for _ in range(3):
            pair.give_gradients()
            pair.step()
        clips = [group["clip"] for group in pair.ours.param_groups]
        ours, plain = (copy.deepcopy(o.state_dict()) for o in (pair.ours, pair.plain))
        pair.plain.load_state_dict(ours)
        pair.ours.load_state_dict(plain)
        assert [group["clip"] for group in pair.ours.param_groups] == clips
        for _ in range(3):
            pair.give_gradients()
            pair.step()
            pair.assert_equal()
        pair.assert_equal_states()


@both
def test_its_own_state_brings_the_clip(cls):
    saved = trained(cls, parameters(), clip=0.5)
    other = cls(parameters(), clip=None)
    other.load_state_dict(saved.state_dict())
    assert other.param_groups[0]["clip"] == 0.5
    give_gradients(other.param_groups[0]["params"])
    other.step()
    assert all(p.abs().max() <= 0.5 for p in other.param_groups[0]["params"])


def test_steps_of_double_precision_are_counted_in_float32():
    params = parameters()
    plain = torch.optim.Adam(params)
    give_gradients(params)
    torch.set_default_dtype(torch.float64)
    try:
        plain.step()
        ours = ClippedAdam(params)
        ours.load_state_dict(plain.state_dict())
        ours.step()
        fresh = trained(ClippedAdam, parameters())
    finally:
        torch.set_default_dtype(torch.float32)
    for optimizer in (ours, fresh):
        assert {s["step"].dtype for s in optimizer.state.values()} == {torch.float32}


@both
@pytest.mark.parametrize(
    "other",
    ["SGD", "Adadelta", "Adagrad", "Adamax", "NAdam", "RAdam", "ASGD", "RMSprop", "Adam"],
)
@pytest.mark.parametrize("steps", [0, 1])
def test_state_of_another_optimiser_is_refused(cls, other, steps):
    if TORCH[cls].__name__ == other:
        return
    ours = trained(cls, parameters())
    before = copy.deepcopy(ours.state_dict())
    state = trained(getattr(torch.optim, other), parameters(), steps, lr=0.1).state_dict()
    with pytest.raises(ValueError, match=r"fastgen.optim.*state_dict must be one of.*nothing was"):
        ours.load_state_dict(state)
    after = ours.state_dict()
    assert before["param_groups"] == after["param_groups"]
    for index, values in before["state"].items():
        for key, value in values.items():
            assert torch.equal(value, after["state"][index][key])


@both
def test_state_that_does_not_fit_is_refused(cls):
    ours = trained(cls, parameters(3, 70))
    with pytest.raises(ValueError, match=r"of shape \(4,\) for a parameter of \(3,\)"):
        ours.load_state_dict(trained(cls, parameters(4, 70)).state_dict())
    with pytest.raises(ValueError, match="doesn't match the size"):
        ours.load_state_dict(trained(cls, parameters(3)).state_dict())
    with pytest.raises(ValueError, match="different number of parameter groups"):
        ours.load_state_dict(cls([dict(params=[p]) for p in parameters()]).state_dict())
    state = ours.state_dict()
    state["param_groups"][0]["clip"] = (1, 0)
    with pytest.raises(ValueError, match="clip must be a range that is not empty"):
        ours.load_state_dict(state)


def test_the_users_own_hooks_see_the_state_first():
    ours = trained(ClippedRMSprop, parameters())
    foreign = dict(state={}, param_groups="of another file")
    ours.register_load_state_dict_pre_hook(lambda optimizer, state: saved)
    saved = copy.deepcopy(ours.state_dict())
    saved["param_groups"][0]["lr"] = 7.0
    ours.load_state_dict(foreign)
    assert ours.param_groups[0]["lr"] == 7.0
    assert len(ours._optimizer_load_state_dict_pre_hooks) == 1


@both
def test_copies_and_pickles_go_on_alike(cls):
    params = parameters()
    first = trained(cls, params, clip=0.3, **EVERYTHING[cls])
    file = io.BytesIO()
    torch.save(first, file)
    file.seek(0)
    others = [
        copy.deepcopy(first),
        pickle.loads(pickle.dumps(first)),
        torch.load(file, weights_only=False),
    ]
    grads = [[torch.randn_like(p) for p in params] for _ in range(3)]
    for optimizer in (first, *others):
        own = optimizer.param_groups[0]["params"]
        for step in grads:
            for param, grad in zip(own, step, strict=True):
                param.grad = grad.clone()
            optimizer.step()
        assert all(map(torch.equal, own, params))
        assert torch.equal(optimizer.saturation, first.saturation)


# --- groups ---


@both
def test_each_group_has_its_own_clip(cls):
    free, clipped, shifted = parameters(40, 40, 40)
    optimizer = cls(
        [
            dict(params=[free], clip=None),
            dict(params=[clipped]),
            dict(params=[shifted], clip=(0.2, 0.4)),
        ],
        lr=1e-6,
        clip=0.1,
    )
    for param in (free, clipped, shifted):
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert free.abs().max() > 0.9
    assert clipped.abs().max() == torch.tensor(0.1)
    assert (shifted.min(), shifted.max()) == (torch.tensor(0.2), torch.tensor(0.4))
    later = parameters(10)[0]
    optimizer.add_param_group(dict(params=later))
    optimizer.step()  # which has no gradient
    assert later.abs().max() == torch.tensor(0.1)


@both
def test_parameters_without_gradient_are_clipped(cls):
    params = parameters()
    optimizer = cls(params, clip=0.5)
    optimizer.step()
    assert all(p.abs().max() == 0.5 for p in params) and not optimizer.state
    versions = [p._version for p in params]
    params[0].grad = torch.ones(3)
    optimizer.step()
    assert list(optimizer.state) == params[:1]
    assert [p._version > v for p, v in zip(params, versions, strict=True)] == [True, True]


@both
def test_a_change_between_steps_is_seen_at_the_next(cls):
    params = parameters()
    optimizer = trained(cls, params, clip=[-0.5, 0.5])
    group = optimizer.param_groups[0]
    group["clip"][1] = 0.25
    optimizer.step()
    assert max(p.max() for p in params) <= 0.25
    group["clip"] = 0.125
    optimizer.step()
    assert max(p.abs().max() for p in params) <= 0.125
    before = [p.detach().clone() for p in params]
    for clip, error in ((-1, ValueError), (float("nan"), ValueError), ("0.1", TypeError)):
        group["clip"] = clip
        with pytest.raises(error, match=r"fastgen.optim.*: clip must be"):
            optimizer.step()
    assert all(map(torch.equal, params, before))


@both
def test_one_wrong_group_stops_the_step_of_all(cls):
    params = parameters()
    optimizer = trained(cls, [params[0]], clip=None)
    optimizer.add_param_group(dict(params=[params[1]]))
    optimizer.param_groups[1]["clip"] = (1, 0)
    before = params[0].detach().clone()
    with pytest.raises(ValueError):
        optimizer.step()
    assert torch.equal(params[0], before)


@pytest.mark.parametrize(
    ("cls", "switches"),
    [(ClippedRMSprop, dict(momentum=0.9, centered=True)), (ClippedAdam, dict(amsgrad=True))],
)
def test_what_is_switched_on_later_starts_at_zero(cls, switches):
    params = parameters()
    optimizer = trained(cls, params, 1, clip=None)
    optimizer.param_groups[0].update(switches)
    twin = copy.deepcopy(optimizer)
    for key, switch in cls._STATE:
        for param, state in twin.state.items():
            if switch:
                state[key] = torch.zeros_like(param)
    plain = TORCH[cls](twin.param_groups[0]["params"])
    plain.load_state_dict(twin.state_dict())
    for _ in range(2):
        for ours, theirs in zip(params, plain.param_groups[0]["params"], strict=True):
            ours.grad = torch.randn_like(ours)
            theirs.grad = ours.grad.clone()
        optimizer.step()
        plain.step()
    assert all(map(same_bits, params, plain.param_groups[0]["params"]))


@both
def test_state_that_is_taken_away_is_made_again(cls):
    params = parameters()
    optimizer = trained(cls, params, clip=None, lr=0.1)
    for take in (optimizer.state.clear, lambda: optimizer.state.pop(params[1])):
        take()
        optimizer.step()
        assert optimizer.state[params[1]]["step"] == 1
    optimizer.state[params[0]] = {k: v.clone() for k, v in optimizer.state[params[0]].items()}
    step = optimizer.state[params[0]]["step"].item()
    optimizer.step()
    assert optimizer.state[params[0]]["step"] == step + 1
    fresh = torch.nn.Parameter(torch.ones(9))
    fresh.grad = torch.ones(9)
    optimizer.param_groups[0]["params"].append(fresh)
    optimizer.step()
    assert optimizer.state[fresh]["step"] == 1 and fresh.max() < 1


@both
def test_plans_are_kept_while_they_fit(cls):
    params = parameters(3, 70)
    optimizer = trained(cls, params)
    plans = list(optimizer._plans)
    if plans[0].parts is None:
        pytest.skip("no kernel")
    params[0].grad = None
    optimizer.param_groups[0].update(lr=0.5, clip=(-1, 1), weight_decay=0.1)
    optimizer.step()
    assert optimizer._plans == plans  # of objects, so the same
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()
    assert optimizer._plans != plans


@both
def test_a_dispatch_mode_sees_the_step(cls):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.append(function.name())
            return function(*args, **(kwargs or {}))

    names = []
    optimizer = trained(cls, parameters())
    with Names():
        optimizer.step()
    assert cls._OP.name() in names


@both
def test_the_default_device_has_no_say(cls):
    params = parameters()
    with torch.device("meta"):
        optimizer = cls(params)
        optimizer.step()
        params[0].grad = torch.ones(3, device="cpu")
        optimizer.step()
    assert optimizer.saturation.device.type == "cpu"
    assert {t.device.type for s in optimizer.state.values() for t in s.values()} == {"cpu"}


# --- what is refused ---


@both
@pytest.mark.parametrize(
    ("clip", "error"),
    [
        (-0.01, ValueError),
        ((1, -1), ValueError),
        (float("nan"), ValueError),
        ((float("nan"), 1), ValueError),
        ((1, 2, 3), TypeError),
        ("0.01", TypeError),
        (True, TypeError),
        (torch.tensor(0.1), TypeError),
    ],
)
def test_bad_clips(cls, clip, error):
    with pytest.raises(error, match=r"fastgen\.optim\.Clipped\w+: clip must be .* got .*; give"):
        cls(parameters(), clip=clip)
    optimizer = cls(parameters())
    with pytest.raises(error, match="clip must be"):
        optimizer.add_param_group(dict(params=parameters(5), clip=clip))
    assert len(optimizer.param_groups) == 1


@both
def test_bad_parameters(cls):
    one = parameters(3)[0]
    for dtype in (torch.int64, torch.bool, torch.float8_e4m3fn):
        with pytest.raises(TypeError, match=f"params must be float32.*got {dtype}; leave it out"):
            cls([torch.zeros(2, dtype=dtype)])
    with pytest.raises(ValueError, match="params must hold each parameter once"):
        cls([one, one])
    with pytest.raises(ValueError, match="more than one parameter group"):
        cls([dict(params=[one]), dict(params=[one])])
    with pytest.raises(ValueError, match="empty parameter list"):
        cls([])
    with pytest.raises(TypeError, match="iterable of Tensors or dicts"):
        cls(one)
    with pytest.raises(TypeError, match="ordered collections"):
        cls(dict(params={one}) for _ in range(1))
    with pytest.raises(ValueError, match="non-leaf"):
        cls([one * 2])
    for key in ("foreach", "fused", "differentiable"):
        with pytest.raises(ValueError, match=f"{key} must be left out of a group, got True"):
            cls([{"params": [one], key: True}])
    with pytest.raises(TypeError):
        cls([one], foreach=True)


@both
@pytest.mark.parametrize(
    "bad",
    [
        dict(lr=-1.0),
        dict(eps=-1.0),
        dict(weight_decay=-1.0),
        dict(lr=torch.zeros(2)),
        dict(momentum=-1.0),
        dict(alpha=-1.0),
        dict(betas=(1.0, 0.5)),
        dict(betas=(0.5, -1.0)),
        dict(betas=(0.5, torch.tensor(0.5))),
    ],
)
def test_bad_numbers_are_refused_as_torch_does(cls, bad):
    name = next(iter(bad))
    if name not in cls(parameters()).defaults:
        return
    with pytest.raises(ValueError) as theirs:
        TORCH[cls](parameters(), **bad)
    with pytest.raises(ValueError) as ours:
        cls(parameters(), **bad)
    assert str(ours.value) == str(theirs.value)


def test_betas_are_numbers():
    with pytest.raises(TypeError, match="betas must be two numbers, got tensors"):
        ClippedAdam(parameters(), betas=(torch.tensor(0.5), torch.tensor(0.9)))


@both
@pytest.mark.parametrize("steps", [0, 2])
def test_sparse_gradients_are_refused_in_torchs_words(cls, steps):
    weight = torch.nn.Parameter(torch.ones(4, 3))
    other = parameters(5)[0]
    with pytest.raises(RuntimeError) as theirs:
        weight.grad = torch.ones(4, 3).to_sparse()
        TORCH[cls]([weight]).step()
    weight.grad = None
    optimizer = trained(cls, [other, weight], steps)
    before = other.detach().clone()
    weight.grad = torch.ones(4, 3).to_sparse()
    with pytest.raises(RuntimeError) as ours:
        optimizer.step()
    assert str(theirs.value) in str(ours.value)
    assert torch.equal(other, before)


@both
def test_capturable_needs_a_gpu_as_torchs(cls):
    with pytest.raises(AssertionError) as theirs:
        trained(TORCH[cls], parameters(), capturable=True)
    with pytest.raises(AssertionError) as ours:
        trained(cls, parameters(), capturable=True)
    assert str(ours.value) == str(theirs.value)


@both
def test_complex_parameters_are_torchs_to_update(cls):
    shapes = [(4,), (2, 3)]
    own = [torch.nn.Parameter(torch.randn(s, dtype=torch.complex64)) for s in shapes]
    own.append(torch.nn.Parameter(torch.randn(5)))
    plain = [torch.nn.Parameter(p.detach().clone()) for p in own]
    ours, theirs = cls(own, clip=None, **EVERYTHING[cls]), TORCH[cls](plain, **EVERYTHING[cls])
    for _ in range(3):
        for a, b in zip(own, plain, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        ours.step()
        theirs.step()
    assert all(map(torch.equal, own, plain))
    match = "clip must be None for complex parameters"
    with pytest.raises(TypeError, match=match):
        cls(own, clip=0.1)
    ours.param_groups[0]["clip"] = 0.1
    with pytest.raises(TypeError, match=match):
        ours.step()


@both
def test_every_backend_runs_it(cls):
    found = []
    for backend in (None, "reference"):
        torch.manual_seed(0)
        params = parameters(1, 90)
        if backend is None:
            trained(cls, params, clip=0.5, **EVERYTHING[cls])
        else:
            with fastgen.use_backend(backend):
                trained(cls, params, clip=0.5, **EVERYTHING[cls])
        found.append(params)
    assert all(map(torch.equal, *found))


@both
def test_meta_and_fake_tensors(cls):
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        params = parameters()
        optimizer = trained(cls, params, **EVERYTHING[cls])
    assert [p.shape for p in params] == [(3,), (70,)]
    assert optimizer.state[params[0]]["step"].shape == ()
