"""A layer of fastgen beside the same layer of vector-quantize-pytorch, and what both are fed."""

import copy

import pytest
import torch

import fastgen.nn as ours


def rows(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def state_of(layer):
    return {name: value.clone() for name, value in layer.state_dict().items()}


def assert_unchanged(layer, state):
    for name, value in layer.state_dict().items():
        assert torch.equal(value, state[name]), name


def peer_of(cls):
    """The package's class of this name; skips the test without the package."""
    return getattr(pytest.importorskip("vector_quantize_pytorch"), cls)


def twins(cls, **options):
    """Our layer and the package's, from the same seed."""
    peer = peer_of(cls)
    torch.manual_seed(1)
    layer = getattr(ours, cls)(**options)
    torch.manual_seed(1)
    return layer, peer(**options)


def assert_same_state(layer, peer):
    state, expected = layer.state_dict(), peer.state_dict()
    assert list(state) == list(expected)
    for name, value in expected.items():
        assert state[name].dtype == value.dtype
        torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-6, msg=name)


def assert_same_training(layer, peer, x, *, steps=3, **arguments):
    """Outputs, gradients and state over some training steps, and outputs in eval mode."""
    assert_same_state(layer, peer)
    for step in range(steps):
        results, inputs = [], []
        for module in (layer, peer):
            inputs.append((x * (1 + step / 10)).requires_grad_())
            module.zero_grad()
            quantized, *rest = module(inputs[-1], **copy.deepcopy(arguments))
            weight = torch.linspace(-1, 1, quantized.numel()).view_as(quantized)
            ((quantized * weight).sum() + rest[1].sum()).backward()
            results.append((quantized, *rest))
        assert_same_results(*results)
        ours, theirs = (i.grad for i in inputs)
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
        pairs = zip(layer.named_parameters(), peer.parameters(), strict=True)
        for (name, ours), theirs in pairs:
            ours, theirs = (
                torch.zeros_like(p) if p.grad is None else p.grad for p in (ours, theirs)
            )
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5, msg=name)
        assert_same_state(layer, peer)
    layer.eval(), peer.eval()
    assert_same_results(layer(x, **arguments), peer(x, **copy.deepcopy(arguments)))


def assert_same_results(results, expected):
    assert len(results) == len(expected)
    for result, other in zip(results, expected, strict=True):
        if isinstance(result, tuple):
            assert_same_results(result, other)
        else:
            torch.testing.assert_close(result, other, rtol=1e-4, atol=1e-5)
