"""What a model depends on as far as calling it tells: codes are changed, and outputs watched."""

import copy
import math

import torch
from torch import Tensor, nn

from fastgen.sampling.arguments import device_of, each_tensor, module_of, refuse
from fastgen.sampling.errors import UnsupportedModelError

_LEVELS = (256, 128, 64, 32, 16, 8, 5, 4, 3, 2)  # tried one after the other
_IMAGES = 6  # to change every code of
_BATCH = 64
_VALUES = 1 << 24  # outputs of a batch at most, to bound memory
_TRIALS = 18  # random changes that a proof must explain


class Probe:
    """A model that can only be called."""

    def __init__(self, fn, shape, condition, params):
        self.fn, self.shape, self.condition, self.params = fn, shape, condition, params
        self.device = device_of(module_of(fn) or fn, condition, None)

    def __call__(self, codes):
        """(B, K, C or 1, positions); equal codes meet equal random numbers."""
        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            torch.manual_seed(0)
            codes = codes.to(self.device)
            given = (codes,)
            if self.condition is not None:
                given += (_repeated(self.condition, len(codes)),)
            result = self.fn(*given)
            result = result if self.params is None else self.params(result)
        return _checked(result, codes).flatten(3)

    def levels(self, levels):
        given = getattr(self.fn, "levels", None) if levels is None else levels
        if isinstance(given, int) and not isinstance(given, bool) and given >= 1:
            tried = (given,)
        elif levels is not None:
            refuse("levels", "must be an int >= 1", levels, "codes are 0 .. levels - 1")
        else:  # a wrong index ends a CUDA process, so that there is nothing to be tried out
            tried = _LEVELS if self.device.type == "cpu" else _LEVELS[-1:]
        for levels in tried:
            try:
                self(torch.full((1, *self.shape), levels - 1))
                return levels
            except Exception:  # too many levels for an embedding, say: fewer are tried
                if levels == tried[-1]:
                    raise

    def check_state(self, levels):
        codes = self._images(2, levels, torch.Generator().manual_seed(0))
        if _changed(self(codes), self(codes)).any():
            raise UnsupportedModelError(
                "fastgen.check_causal: fn must give equal results for equal codes, got two "
                "results that differ; take the state out of fn"
            )

    def _images(self, n, levels, generator):
        return torch.randint(levels, (n, *self.shape), generator=generator)

    def explained(self, sees, levels):
        """Whether only outputs change that see a code that does: values that leave torch on their
        way are not traced."""
        generator = torch.Generator().manual_seed(1)
        sees = torch.from_numpy(sees)
        for trial in range(_TRIALS):
            # bases without the highest codes: a single one of those may decide about all
            base = self._images(1, levels if trial % 2 else max(levels // 2, 1), generator)
            new = torch.full_like(base, levels - 1)
            new = new if trial % 4 < 2 else self._images(1, levels, generator)
            changes = torch.rand(base.shape, generator=generator) < 2.0 ** -(trial % 6)
            moved = _changed(self(torch.where(changes, new, base)), self(base))[0].any(0)
            explained = (sees & changes.flatten()).any(1)
            if (moved.flatten().cpu() & ~explained).any():
                return False
        return True

    def perturbed(self, levels):
        """bool (outputs, codes): outputs that changed when a code did."""
        call = self._in_double()
        generator = torch.Generator().manual_seed(0)

        def images(n):
            return self._images(n, levels, generator)

        codes, size = images(2), math.prod(self.shape)
        others = torch.cat([codes[:1], images(1)])
        mixes = _changed(call(codes), call(others))[0].any()
        fits = max(1, _VALUES // call(codes[:1]).numel())
        batch = 1 if mixes else min(_BATCH, size, fits)
        sees = None
        for probe in range(_IMAGES):
            # every other one without the highest codes: a single one of those may decide about all
            low = probe % 2 == 1
            base = self._images(1, max(levels // 2, 1) if low else levels, generator)
            before = call(base.expand(batch, *self.shape).contiguous())
            for start in range(0, size, batch):
                count = min(batch, size - start)
                changed = base.expand(batch, *self.shape).clone()
                flat, slot = changed.view(batch, size), torch.arange(count)
                step = torch.randint(1, max(levels, 2), (count,), generator=generator)
                new = (flat[slot, start + slot] + step) % levels
                flat[slot, start + slot] = levels - 1 if low else new
                moved = _changed(call(changed), before)[:count]
                moved = moved.any(1).flatten(1)  # (count, outputs)
                if sees is None:
                    sees = torch.zeros(moved.shape[1], size, dtype=torch.bool)
                sees[:, start : start + count] |= moved.T.cpu()
        return sees.numpy()

    def _in_double(self):
        """Small effects show in float64, if the model means the same in it."""
        if not isinstance(self.fn, nn.Module):
            return self
        try:
            call = Probe(copy.deepcopy(self.fn).double(), self.shape, self.condition, self.params)
            if self.condition is not None:
                call.condition = each_tensor(
                    self.condition, lambda t: t.double() if t.is_floating_point() else t
                )
            codes = torch.zeros(1, *self.shape, dtype=torch.int64)
            torch.testing.assert_close(call(codes), self(codes).double(), rtol=1e-2, atol=1e-2)
            return call
        except Exception:  # fn has no float64 form: its own precision must do
            return self


def _checked(result, codes):
    n, colors, *space = codes.shape
    expected = f"must return ({n}, K, {colors} or 1, {', '.join(map(str, space))})"
    if not isinstance(result, Tensor):
        refuse(
            "fn", expected, type(result).__name__, "give params= to turn it into that", TypeError
        )
    shape = tuple(result.shape)
    if len(shape) != len(space) + 3 or shape[0] != n or shape[3:] != tuple(space):
        refuse("fn", expected, shape, "K counts the parameters of one colour")
    if shape[2] not in (1, colors):
        refuse("fn", expected, shape, "K counts the parameters of one colour")
    return result


def _changed(a, b):
    """By more than rounding: equal sums can differ by where their operands lie in memory."""
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-5}.get(b.dtype, 1e-2)
    finite = b[b.isfinite()]
    largest = finite.abs().max().item() if finite.numel() else 1.0
    same = (a == b) | (a.isnan() & b.isnan()) | ((a - b).abs() <= tolerance * largest)
    return ~same


def _repeated(condition, n):
    return each_tensor(condition, lambda t: t.expand(n, *t.shape[1:]).contiguous())
