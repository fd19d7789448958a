"""How an op and its backward op are connected: in C++ where it was built, else in Python."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import fastgen
from fastgen import _load

ROOT = Path(__file__).resolve().parents[1]
CONNECTED = ("add_noise", "bernoulli_nll", "dmol_nll", "gaussian_nll", "reparam_kl")


def leaves(*shapes):
    return [torch.randn(shape, dtype=torch.double, requires_grad=True) for shape in shapes]


@pytest.mark.skipif(_load.EXTENSION is None, reason="not built")
@pytest.mark.parametrize("op", CONNECTED)
def test_is_connected_in_cpp_where_that_was_built(op):
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    assert has_kernel(f"fastgen::{op}", "Autograd")
    assert not has_kernel(f"fastgen::{op}", "AutogradCPU"), "Python has registered it again"


def test_without_the_extension_python_connects_them():
    code = """
import sys, warnings
sys.modules["fastgen._C"] = None
warnings.simplefilter("ignore")
import torch, fastgen
assert fastgen._load.EXTENSION is None
x, y, p, q = (torch.randn(3, 4, dtype=torch.double, requires_grad=True) for _ in range(4))
t = torch.rand(3, 4, dtype=torch.double, requires_grad=True)
params = torch.randn(2, 20, 2, 2, dtype=torch.double, requires_grad=True)
pixels = torch.randint(256, (2, 3, 2, 2))
check = torch.autograd.gradcheck
assert check(lambda *a: fastgen.reparam_kl(*a, seed=1), (x, y))
assert check(lambda *a: fastgen.reparam_kl(*a, seed=1), (x, y, p, q))
assert check(fastgen.bernoulli_nll, (x, t))
assert check(fastgen.gaussian_nll, (x, y, p))
assert check(lambda a: fastgen.dmol_nll(a, pixels, components=2), (params,))
assert check(lambda a: fastgen.add_noise(a, "mask", 0.5, seed=1), (x,))
assert torch.autograd.gradgradcheck(fastgen.bernoulli_nll, (x, t))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr


def test_only_what_is_needed_gets_gradients():
    mean, target = leaves((3, 4), (3, 4))
    fixed = target.detach()
    (got,) = torch.autograd.grad(fastgen.gaussian_nll(mean, fixed, 0.0).sum(), mean)
    assert torch.allclose(got, mean - fixed)
    (got,) = torch.autograd.grad(fastgen.gaussian_nll(mean, target, 0.0).sum(), target)
    assert torch.allclose(got, target - mean)
    nll = fastgen.gaussian_nll(mean.detach(), fixed, 0.0)
    assert not nll.requires_grad
    with torch.no_grad():
        assert not fastgen.gaussian_nll(mean, target, 0.0).requires_grad


def test_each_result_alone_gives_its_gradient():
    mu, logvar = leaves((3, 4), (3, 4))
    z, kl = fastgen.reparam_kl(mu, logvar, seed=1)
    by_z = torch.autograd.grad(z.sum(), (mu, logvar), retain_graph=True)
    by_kl = torch.autograd.grad(kl.sum(), (mu, logvar), retain_graph=True)
    both = torch.autograd.grad(z.sum() + kl.sum(), (mu, logvar))
    for a, b, c in zip(by_z, by_kl, both, strict=True):
        assert torch.allclose(a + b, c)
    assert torch.allclose(by_z[0], torch.ones_like(mu))
    assert torch.allclose(by_kl[0], mu)


def test_a_graph_is_used_twice_and_then_freed():
    mu, logvar = leaves((3, 4), (3, 4))
    z, kl = fastgen.reparam_kl(mu, logvar, seed=1)
    loss = z.square().sum() + kl.sum()
    first = torch.autograd.grad(loss, mu, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(loss, mu)[0])
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, mu)


def test_a_result_written_in_place_is_noticed():
    mu, logvar = leaves((3, 4), (3, 4))
    z, _ = fastgen.reparam_kl(mu, logvar, seed=1)
    with torch.no_grad():
        z.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_draws_the_same_noise_when_checkpointed(reentrant):
    mu, logvar = leaves((3, 4), (3, 4))

    def loss(mu, logvar):
        z, kl = fastgen.reparam_kl(mu, logvar)
        return z.pow(3).sum() + kl.sum()

    torch.manual_seed(3)
    plain = torch.autograd.grad(loss(mu, logvar), (mu, logvar))
    torch.manual_seed(3)
    checkpoint(loss, mu, logvar, use_reentrant=reentrant).backward()
    assert torch.allclose(plain[0], mu.grad) and torch.allclose(plain[1], logvar.grad)


def test_saved_tensors_pass_through_hooks():
    logits, target = leaves((3, 4))[0], torch.rand(3, 4, dtype=torch.double)
    packed = []

    def pack(x):
        packed.append(x.shape)
        return x.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        nll = fastgen.bernoulli_nll(logits, target)
    (got,) = torch.autograd.grad(nll.sum(), logits)
    assert len(packed) == 2
    assert torch.allclose(got, torch.sigmoid(logits) - target)


def test_second_derivatives():
    logits, target = leaves((3, 4))[0], torch.rand(3, 4, dtype=torch.double)
    (first,) = torch.autograd.grad(
        fastgen.bernoulli_nll(logits, target).sum(), logits, create_graph=True
    )
    (second,) = torch.autograd.grad(first.sum(), logits)
    s = torch.sigmoid(logits)
    assert torch.allclose(second, s * (1 - s))


def test_compiled_autograd_traces_the_nodes():
    mu, logvar = leaves((3, 4), (3, 4))
    z, kl = fastgen.reparam_kl(mu, logvar, seed=1)
    expected = torch.autograd.grad(z.square().sum() + kl.sum(), (mu, logvar))
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager")):
        z, kl = fastgen.reparam_kl(mu, logvar, seed=1)
        (z.square().sum() + kl.sum()).backward()
    assert torch.allclose(mu.grad, expected[0]) and torch.allclose(logvar.grad, expected[1])


@pytest.mark.parametrize("fill", [fastgen.rand, fastgen.randn])
def test_what_is_filled_in_place_is_noticed(fill):
    a = torch.ones(3, requires_grad=True)
    b = a * 2
    c = b * b
    fill(3, out=b.detach())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        c.sum().backward()
