"""check_causal: what every output of a model depends on, and whether it may."""

import math
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from fastgen.sampling.arguments import (
    check_condition,
    check_fn,
    module_of,
    ranks_of,
    unwrapped,
)
from fastgen.sampling.dependencies import Dependencies
from fastgen.sampling.errors import NotCausalError, UnsupportedModelError
from fastgen.sampling.perturbation import Probe
from fastgen.sampling.trace import trace

_PATH = 7  # longer paths lose their middle in texts


class Place(NamedTuple):
    """Of a code, or of the parameters of one. channel is None for all colours of a pixel, whose
    parameters a coupled likelihood has in common."""

    position: tuple[int, ...]
    channel: int | None

    def __str__(self):
        position = ", ".join(map(str, self.position))
        where = f"({position})" if len(self.position) > 1 else position
        return where if self.channel is None else f"{where}, channel {self.channel}"


class Dependency(NamedTuple):
    """`output`'s parameters and the code at `input`. path: modules and ops by which the one gets
    to the other; empty for a missing dependency, and where it is not known."""

    output: Place
    input: Place
    path: tuple[str, ...]


class Pairs(Sequence):
    """Dependencies of a report, earliest output first; made when asked for."""

    def __init__(self, pairs, places, path):
        self._pairs, self._places, self._path = pairs, places, path

    def __len__(self):
        return len(self._pairs)

    def __getitem__(self, i):
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        output, code = (int(v) for v in self._pairs[i])
        path = tuple(self._path(output, code)) if self._path else ()
        return Dependency(*self._places(output, code), path)

    def __repr__(self):
        return f"<{len(self)} dependencies>"


class CausalityReport:
    """What `check_causal` found.

    Attributes:
        causal: whether no output depends on a code that is drawn with it or after it.
        evidence: "proof": the dependencies were read off the model's own computation; or
            "perturbation": codes were changed and outputs watched, which can miss some.
        reason: why there is no proof, else "".
        violations: a sequence of `Dependency`: what must not be. `output` and `input` have
            `position` and `channel`; `path` names modules.
        blind_spots: a sequence of `Dependency`: what may be and is not: earlier codes that an
            output does not see although they lie in the box (over positions) around itself and all
            earlier codes it sees.
        sees: bool array (C or 1, *space, C, *space): the output depends on the code.
        allowed: bool, the same shape: it may.
        suggestion: an order in which the model would be causal, "" if none is known.
    """

    def __init__(self, sees, ranks, shape, order, evidence, path=None, reason=""):
        self.order, self.evidence, self.reason = order, evidence, reason
        outputs = len(sees) // math.prod(shape[1:])
        self.shape, self._outputs = shape, (outputs, *shape[1:])
        codes, ranks = ranks.reshape(-1), _output_ranks(ranks, outputs)
        self._late = codes[None] > ranks[:, None]
        allowed = codes[None] < ranks[:, None]
        blind = allowed & ~sees & _boxes(sees & allowed, self._outputs, shape)
        self.sees, self.allowed, self._blind = (
            array.reshape(*self._outputs, *shape) for array in (sees, allowed, blind)
        )
        self.violations = Pairs(_ordered(sees & ~allowed, ranks, codes), self._places, path)
        self.blind_spots = Pairs(_ordered(blind, ranks, codes), self._places, None)
        self.suggestion = "" if self.causal else _suggestion(sees, self._outputs, shape, order)

    @property
    def causal(self) -> bool:
        return not self.violations

    def plot(self, path: str | os.PathLike, output: tuple | None = None) -> None:
        """Draws what one output sees as PNG, a panel a colour: seen, seen against the order, and
        blind codes in colours of their own. Needs matplotlib.

        output: (position, channel), for example ((14, 14), 0); default the centre's last colour.
        """
        from fastgen.figures import receptive_field

        position, channel = self._centre if output is None else output
        index = (channel or 0, *position)
        sees, allowed, blind = (array[index] for array in (self.sees, self.allowed, self._blind))
        kinds = np.where(sees, np.where(allowed, 1, 2), np.where(blind, 3, 0))
        if len(self.shape) == 2:
            kinds, position = kinds[:, None], (0, *position)
        receptive_field(
            path, kinds, position, title=f"seen by {self._place(index)}", caption=self._verdict()
        )

    def __str__(self):
        lines = [self._verdict()]
        for first in self.violations[:1]:
            lines.append(f"the output at {first.output} depends on the code at {first.input}")
            if first.path:
                lines.append(f"by {_way(first.path)}")
        if self.suggestion:
            lines.append(self.suggestion)
        index = (len(self.sees) - 1, *self._centre.position)
        may = self.allowed[index]
        lines.append(
            f"the output at {self._centre} sees {int((self.sees[index] & may).sum())} of "
            f"{int(may.sum())} earlier codes"
        )
        if self.blind_spots:
            blind = self._blind.reshape(math.prod(self._outputs), -1).any(1)
            example = self.blind_spots[len(self.blind_spots) // 2]
            lines.append(
                f"blind spots: {int(blind.sum())} of {len(blind)} outputs; the one at "
                f"{example.output} does not see {example.input}"
            )
        if self.reason:
            lines.append(f"not traced: {self.reason}")
        return "\n  ".join(lines)

    def __repr__(self):
        counts = f"{len(self.violations)} violations, {len(self.blind_spots)} blind spots"
        return f"<CausalityReport: causal={self.causal}, {counts}, by {self.evidence}>"

    def _verdict(self):
        order = f"order {self.order!r}" if isinstance(self.order, str) else "this order"
        if not self.causal:
            wrong = len(np.unique(self.violations._pairs[:, 0]))
            total = math.prod(self._outputs)
            return f"not causal in {order}: {wrong} of {total} outputs see what they must not"
        if self.evidence == "proof":
            return f"causal in {order}; proved from the model's own computation"
        return f"no violation of {order} found by perturbation; this is evidence, not proof"

    @property
    def _centre(self):
        return self._place((len(self.sees) - 1, *(size // 2 for size in self.shape[1:])))

    def _place(self, index):
        """Of an output."""
        index = tuple(int(i) for i in index)
        alone = len(self.sees) < self.shape[0]
        return Place(index[1:], None if alone else index[0])

    def _places(self, output, code):
        code = tuple(int(i) for i in np.unravel_index(code, self.shape))
        return self._place(np.unravel_index(output, self._outputs)), Place(code[1:], code[0])


def check_causal(
    fn: Callable,
    shape: tuple[int, ...],
    *,
    order="raster",
    condition=None,
    params: Callable | None = None,
    levels: int | None = None,
) -> CausalityReport:
    """Finds out what every output of a model depends on, and whether it may.

    A model that `compile_sampler` can trace is judged by the computation itself, at the weights it
    has: a dependency is reported if and only if there is a way of non-zero weights from the code
    to the output. Any other model is probed: codes are changed one by one, in a few random images,
    and the outputs watched.

    Args:
        fn: ``fn(codes)`` or ``fn(codes, condition)`` to parameters (B, K, C or 1, H, W), for codes
            int64 (B, C, H, W). What torch.compile or DistributedDataParallel wraps is unwrapped.
        shape: (C, H, W), or (C, L) for sequences; then the last axis is dropped everywhere.
        order: "raster", "subpixel", or integer ranks (H, W) or (C, H, W), lowest first; equal
            ranks may not see each other.
        condition: an example of batch 1, if fn takes one: a tensor, or a tuple or dict of tensors.
        params: turns fn's result into the parameters.
        levels: codes are 0 .. levels - 1. Default: `fn.levels` if there is such an int, else as
            many of 256, 128, ..., 2 as fn takes without an error.

    Returns:
        `CausalityReport`.

    Raises:
        TypeError, ValueError: an argument is not as above; fn is a module in train mode.
        UnsupportedModelError: fn gives different results for equal codes, so that there is
            nothing to judge.
    """
    fn = unwrapped(fn)
    check_fn(module_of(fn) or fn, shape)
    shape = tuple(shape)
    ranks = ranks_of(order, shape, False)
    check_condition(condition, 1)
    probe = Probe(fn, shape, condition, params)
    with torch.no_grad():
        levels = probe.levels(levels)
        probe.check_state(levels)
        try:
            traced = trace(fn, shape, ranks, condition=condition, params=params, levels=levels)
            found = Dependencies(traced)
            sees, path, reason = found.sees(), found.path, ""
            if not probe.explained(sees, levels):
                reason = (
                    "outputs change that nothing traced explains; fn decides by the values of its "
                    "codes, or computes outside of torch"
                )
        except Exception as error:  # fn by itself did run
            known = isinstance(error, UnsupportedModelError)
            reason = str(error) if known else f"{type(error).__name__}: {error}"
        if reason:
            sees, path = probe.perturbed(levels), None
    evidence = "perturbation" if reason else "proof"
    return CausalityReport(sees, ranks.numpy(), shape, order, evidence, path, reason)


def violations(traced) -> bool:
    """Whether a parameter of a traced model is ready too late for the code it is for."""
    return bool((traced.graph.ready(traced.params) > traced.ranks[None]).any())


def not_causal_error(traced, shape: tuple[int, ...], order) -> NotCausalError:
    """Names an output, an input it must not see, one way between them, and what to do."""
    found = Dependencies(traced)
    report = CausalityReport(found.sees(), traced.ranks, shape, order, "proof", found.path)
    remedy = (
        "look at the masks, pads and shifts of these modules, or pass the order that the model "
        "was made for; print(fastgen.check_causal(fn, shape)) says more"
    )
    if report.causal:  # ready is a bound: the output waits for something it does not use
        return NotCausalError(
            "fastgen.compile_sampler: fn must be causal, got an output that can be computed only "
            f"after its own code; {remedy}"
        )
    first = report.violations[0]
    output, code = report.violations._pairs[0]
    when = "later" if report._late[output, code] else "in the same step"
    return NotCausalError(
        f"fastgen.compile_sampler: fn must be causal, got an output at {first.output} that depends "
        f"on the code at {first.input}, drawn {when}, by {_way(first.path)} (the first of "
        f"{len(report.violations)} such pairs); {report.suggestion or remedy}"
    )


def _output_ranks(ranks, outputs):
    """When the parameters are needed; those of all colours with the first of them."""
    return (ranks.min(0, keepdims=True) if outputs < len(ranks) else ranks).reshape(-1)


def _ordered(pairs, output_ranks, code_ranks):
    """int (n, 2): (output, code), in order of the output's rank, then of the code's."""
    output, code = np.nonzero(pairs)
    order = np.lexsort((code, code_ranks[code], output, output_ranks[output]))
    return np.stack([output[order], code[order]], 1)


def _boxes(sees, outputs, shape):
    """bool (outputs, codes): codes at positions in the box around what the output sees and its
    own position."""
    space = shape[1:]
    seen = sees.reshape(-1, *shape).any(1)  # (outputs, *space)
    own = np.eye(math.prod(space), dtype=bool).reshape(-1, *space)
    seen = seen | np.tile(own, (outputs[0], *[1] * len(space)))
    box = np.ones_like(seen)
    for axis in range(len(space)):
        others = tuple(a + 1 for a in range(len(space)) if a != axis)
        line = seen.any(others)  # (outputs, size)
        inside = np.logical_or.accumulate(line, 1)
        inside &= np.logical_or.accumulate(line[:, ::-1], 1)[:, ::-1]
        box &= np.expand_dims(inside, others) if others else inside
    return np.repeat(box[:, None], shape[0], 1).reshape(len(sees), -1)


def _suggestion(sees, outputs, shape, order):
    """A common order in which it would be causal, as a sentence."""
    colors, *space = shape
    raster = np.arange(math.prod(space)).reshape(space)
    separate = outputs[0] == colors

    def fits(ranks, backwards=False):
        """Colours of a pixel one after the other if the outputs are."""
        color = np.arange(colors)[:: -1 if backwards else 1, None] if separate else 0
        ranks = np.broadcast_to(ranks.reshape(1, -1) * colors + color, (colors, ranks.size))
        when = _output_ranks(ranks, outputs[0])
        return not (sees & (ranks.reshape(-1)[None] >= when[:, None])).any()

    if separate and colors > 1 and fits(raster):
        return 'each colour sees only colours of its pixel before it: pass order="subpixel"'
    if separate and colors > 1 and fits(raster, backwards=True):
        return (
            "each colour sees only colours of its pixel behind it: flip the colours and pass "
            'order="subpixel"'
        )
    if colors > 1 or len(space) != 2:
        return ""
    height, width = space
    turned = {
        f"arange({height * width}).view({width}, {height}).T": raster.reshape(width, height).T,
        f"arange({height * width}).view({height}, {width}).flip(1)": raster[:, ::-1],
        f"arange({height * width}).view({height}, {width}).flip(0)": raster[::-1],
    }
    for text, ranks in turned.items():
        if fits(np.ascontiguousarray(ranks)):
            return f"it is causal in another order: pass order=torch.{text}"
    return ""


def _way(path):
    if len(path) > _PATH:
        path = (*path[: _PATH // 2], "...", *path[-(_PATH // 2) :])
    return " -> ".join(path)
