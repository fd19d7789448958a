"""Runs a model once and writes down which values it computes from which codes."""

import contextlib
import sys

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastgen.sampling.arguments import device_of
from fastgen.sampling.errors import UnsupportedModelError
from fastgen.sampling.graph import NEVER, Traced
from fastgen.sampling.module_paths import ModulePaths
from fastgen.sampling.tape import Tape, flat_condition, prepared, rebuilt_condition
from fastgen.sampling.tracer import CONDITION, HostReads, Tracer


def trace(fn, shape, order_ranks, *, condition=None, params=None, levels=256, seed=0) -> Traced:
    """Traces a model.

    Args:
        fn: ``fn(codes)`` or ``fn(codes, condition)`` for int64 codes (B, C, *space).
        shape: (C, H, W) or (C, L).
        order_ranks: int64 (C, positions), when each code is drawn; any integers, equal ones in the
            same step.
        condition: None, or an example of batch 1: a tensor, tuple or dict of tensors.
        params: None, or a function from fn's result to (B, K, C or 1, *space).
        levels: of the random codes that the model is run on.
        seed: of these.

    Raises:
        UnsupportedModelError: the model cannot be compiled.
    """
    shape = tuple(shape)
    ranks = np.unique(np.asarray(order_ranks), return_inverse=True)[1].reshape(shape[0], -1)
    with torch.no_grad():
        try:
            return _traced(fn, shape, ranks, condition, params, levels, seed, batch=1)
        except UnsupportedModelError:
            raise
        except Exception as error:  # some models need more than one image
            first = error
        try:
            return _traced(fn, shape, ranks, condition, params, levels, seed, batch=2)
        except UnsupportedModelError:
            raise
        except Exception:
            raise first from None


def _traced(fn, shape, ranks, condition, params, levels, seed, batch):
    # the device is named here and elsewhere for callers inside `with torch.device(...)`
    generator = torch.Generator("cpu").manual_seed(seed)
    codes = torch.randint(0, levels, (batch, *shape), generator=generator, device="cpu")
    codes = codes.to(device_of(fn, condition, None))
    paths, tape = ModulePaths(fn), Tape(batch)
    if isinstance(condition, dict):
        tape.names = list(condition)
    tracer = Tracer(tape, paths, levels)

    def run(codes, tensors):
        arguments = () if condition is None else (rebuilt_condition(condition, tensors),)
        out = fn(codes, *arguments)
        return out if params is None else params(out)

    def copies():
        return codes.clone(), [prepared(t, batch) for t in flat_condition(condition)]

    own_codes, tensors = copies()
    code_addresses = _code_nodes(tracer, own_codes, ranks)
    for tensor in tensors:
        tracer.register(tensor, CONDITION).slot = tape.input()
    with _no_fused_layers():
        with paths, HostReads(tracer), tracer:
            out = run(own_codes, tensors)
        tracer.func = None
        _check_output(tracer, out, shape, batch)
        again = run(*copies())
        # decomposed ops round otherwise, which shows in halves: a difference alone says nothing
        if not _close(out, again) and not _close(again, run(*copies())):
            tracer.refuse(
                "gave different results for equal codes", "it must keep no state between calls"
            )
    found = tracer.addresses(out)[0].reshape(out.shape[1], out.shape[2], -1)
    return Traced(
        graph=tracer.builder.graph,
        codes=code_addresses[0].reshape(-1),
        params=found,
        ranks=ranks,
        steps=int(ranks.max()) + 1,
        tape=tape,
        leaves=list(tracer.leaves.values()),
        ops=tracer.ops,
        modules=paths.modules,
    )


@contextlib.contextmanager
def _no_fused_layers():
    """A whole transformer layer, an attention or a compiled module would be one opaque op."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), contextlib.ExitStack() as stack:
            if "torch._dynamo" in sys.modules:  # modules compiled inside of the model
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _check_output(tracer, out, shape, batch):
    if not isinstance(out, torch.Tensor):
        tracer.refuse(
            f"returned {type(out).__name__}", "return a tensor, or take it out with params="
        )
    fits = out.dim() == len(shape) + 2 and out.shape[0] == batch
    if not fits or out.shape[2] not in (1, shape[0]) or tuple(out.shape[3:]) != shape[1:]:
        expected = ", ".join(map(str, (batch, "K", f"{shape[0]} or 1", *shape[1:])))
        tracer.refuse(
            f"returned shape {tuple(out.shape)} where ({expected}) is needed",
            "rearrange it with params=",
        )


def _close(a, b):
    """Equal but for the rounding of sums in another order, as some GPU kernels have it."""
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=1e-5, equal_nan=True)


def _code_nodes(tracer, codes, ranks):
    """One node if the colours of a position are drawn together, else one for each colour."""
    batch, colors = codes.shape[:2]
    positions = ranks.shape[1]
    index = np.arange(ranks.size).reshape(ranks.shape)
    addresses = np.zeros((batch, *ranks.shape), np.int64)
    together = (ranks == ranks[:1]).all()
    groups = [np.arange(colors)] if together else [np.array([c]) for c in range(colors)]
    for sample in range(batch):
        for group in groups:
            ready = ranks[group[0]] + 1 if sample == 0 else NEVER
            node = tracer.builder.add(
                "code", positions, len(group), ready, code_index=index[group].T
            )
            addresses[sample, group] = tracer.builder.graph.addresses(node).T
    tracer.put(codes, addresses.reshape(codes.shape))
    return addresses
