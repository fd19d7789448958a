"""Random training of torch's own optimisers with a loop of clamps, and of fastgen's beside it."""

import random

import numpy as np
import pytest
import torch
from random_tensors import DTYPES

from fastgen.optim import ClippedAdam, ClippedRMSprop

TORCH = {ClippedRMSprop: torch.optim.RMSprop, ClippedAdam: torch.optim.Adam}
SHAPES = [(), (1,), (3,), (0,), (17,), (64,), (129,), (5, 7), (16, 33), (2, 3, 4, 5), (1, 300)]
# Without vector instructions torch rounds the product in a half's add(alpha=) everywhere.
COMPARED = DTYPES if torch.backends.cpu.get_cpu_capability() != "DEFAULT" else DTYPES[:2]
CLIPS = [None, 0.01, 0.1, 0, (-0.02, 0.05), [-0.3, 0.001], (0.001, 0.002), (-0.5, float("inf"))]


def tensor(choose, shape, dtype):
    """Of a random layout: in order, reversed, with holes, channels last."""
    layout = choose.choice(["in order", "reversed", "holes", "channels last", "in order"])
    if layout == "reversed":
        return torch.randn(shape[::-1]).to(dtype).permute(tuple(reversed(range(len(shape)))))
    if layout == "holes" and shape:
        return torch.randn(*shape[:-1], 2 * shape[-1] + 1).to(dtype)[..., 1::2]
    if layout == "channels last" and len(shape) == 4:
        return torch.randn(shape).to(dtype, memory_format=torch.channels_last)
    return torch.randn(shape).to(dtype)


def options(choose, cls):
    """Of the constructor, but clip."""
    found = dict(
        lr=choose.choice([5e-5, 1e-3, 0.1]),
        eps=choose.choice([1e-8, 1e-3]),
        weight_decay=choose.choice([0, 0, 0.1]),
        maximize=choose.random() < 0.3,
    )
    if cls is ClippedRMSprop:
        return found | dict(
            alpha=choose.choice([0.99, 0.9, 0.5]),
            momentum=choose.choice([0, 0, 0.9]),
            centered=choose.random() < 0.4,
        )
    return found | dict(
        betas=choose.choice([(0.5, 0.999), (0.9, 0.99), (0.0, 0.9)]),
        amsgrad=choose.random() < 0.4,
        decoupled_weight_decay=choose.random() < 0.5,
    )


def twin(x):
    """A copy for torch's optimiser. In half precision flat and of whole vectors: torch's own
    add(alpha=) rounds the product once more in strided tensors and behind the last whole vector."""
    if x.element_size() > 2:
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype).copy_(x)
    flat = torch.zeros(-(-x.numel() // 64) * 64, dtype=x.dtype)
    flat[: x.numel()] = x.flatten()
    return flat


def bounds(clip):
    return clip if isinstance(clip, (tuple, list)) else (-clip, clip)


class Pair:
    """An optimiser of fastgen and torch's own over copies of the same parameters."""

    def __init__(self, seed, dtypes=COMPARED):
        self.choose = choose = random.Random(seed)
        torch.manual_seed(seed)
        self.cls = choose.choice([ClippedRMSprop, ClippedAdam])
        groups = []
        for _ in range(choose.choice([1, 1, 2, 3])):
            params = [
                tensor(choose, choose.choice(SHAPES), choose.choice(dtypes))
                for _ in range(choose.randint(1, 4))
            ]
            groups.append((params, options(choose, self.cls), choose.choice(CLIPS)))
        self.ours = self.cls(
            [
                dict(params=[p.requires_grad_() for p in params], clip=clip, **own)
                for params, own, clip in groups
            ]
        )
        self.plain = TORCH[self.cls](
            [
                dict(params=[twin(p.detach()).requires_grad_() for p in params], **own)
                for params, own, _ in groups
            ],
            foreach=False,
        )

    def pairs(self):
        for ours, plain in zip(self.ours.param_groups, self.plain.param_groups, strict=True):
            yield from zip(ours["params"], plain["params"], strict=True)

    def give_gradients(self):
        scale = self.choose.choice([1e-3, 1.0, 30.0])
        for ours, plain in self.pairs():
            grad = None
            if self.choose.random() < 0.8:
                grad = tensor(self.choose, tuple(ours.shape), ours.dtype).mul_(scale)
            ours.grad = grad
            plain.grad = None if grad is None else twin(grad)

    def change_something(self):
        group = self.choose.randrange(len(self.ours.param_groups))
        ours, plain = (o.param_groups[group] for o in (self.ours, self.plain))
        key = self.choose.choice(["lr", "weight_decay", "clip", "maximize"])
        if key == "clip":
            ours["clip"] = self.choose.choice(CLIPS)
        else:
            value = options(self.choose, self.cls)[key]
            ours[key] = plain[key] = value

    def step(self):
        self.ours.step()
        self.plain.step()
        self.clamp()

    def clamp(self):
        with torch.no_grad():
            for ours, plain in zip(self.ours.param_groups, self.plain.param_groups, strict=True):
                for param in plain["params"] if ours["clip"] is not None else ():
                    param.clamp_(*bounds(ours["clip"]))

    def assert_equal(self):
        for ours, plain in self.pairs():
            assert same_bits(ours, plain)

    def assert_equal_states(self):
        for ours, plain in self.pairs():
            mine, theirs = self.ours.state.get(ours, {}), self.plain.state.get(plain, {})
            assert mine.keys() == theirs.keys()
            for key, value in theirs.items():
                assert mine[key].dtype == value.dtype and same_bits(mine[key], value), key


@pytest.fixture(autouse=True)
def exact_square_roots(monkeypatch):
    """MKL's square root, which is torch's, is one unit off for a fifth of float32 numbers on some
    processors; then torch gets a correctly rounded one here."""
    x = torch.rand(1000, dtype=torch.float64)
    if all(
        np.array_equal(x.to(t).sqrt(), np.sqrt(x.to(t).numpy())) for t in (torch.float32, x.dtype)
    ):
        return
    sqrt, sqrt_ = torch.Tensor.sqrt, torch.Tensor.sqrt_

    def exact(x):
        if torch.compiler.is_compiling() or x.element_size() == 2 or type(x) is not torch.Tensor:
            return sqrt(x)
        return torch.from_numpy(np.asarray(np.sqrt(x.numpy())))

    monkeypatch.setattr(torch.Tensor, "sqrt", exact)
    monkeypatch.setattr(
        torch.Tensor, "sqrt_", lambda x: sqrt_(x) if x.element_size() == 2 else x.copy_(exact(x))
    )


def same_bits(a, b):
    if a.shape != b.shape:
        a, b = a.flatten(), b[: a.numel()]
    return torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all())
