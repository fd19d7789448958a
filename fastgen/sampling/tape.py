"""The part of a model that depends on its condition and on no code: recorded once, run per call."""

import contextlib
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class _View:
    """A tensor as a view of a storage: the slot of the storage, and where in it."""

    slot: int
    dtype: torch.dtype
    shape: tuple
    stride: tuple
    offset: int


def flat_condition(condition):
    """The tensors of a condition in a fixed order."""
    if condition is None:
        return []
    if isinstance(condition, dict):
        return list(condition.values())
    return list(condition) if isinstance(condition, tuple) else [condition]


def rebuilt_condition(condition, tensors):
    """`condition` with other tensors in the order of flat_condition."""
    if condition is None:
        return None
    if isinstance(condition, dict):
        return dict(zip(condition, tensors, strict=True))
    return tuple(tensors) if isinstance(condition, tuple) else tensors[0]


@contextlib.contextmanager
def _one_thread():
    """Sums of torch's own ops, a group norm's for one, depend on the number of threads."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Tape:
    """ATen ops on storages. Storages are numbered; views are arithmetic on them, so only ops that
    compute or write are recorded, in-place ones included."""

    def __init__(self, batch=1):
        self.batch = batch
        self.names = None  # of the condition's dict
        self._slots = 0
        self._inputs = []
        self._steps = []  # (func, args, kwargs, slots of the results or None)
        self._sources = []

    def input(self):
        """The slot of the next tensor of the condition."""
        self._inputs.append(self.slot())
        return self._inputs[-1]

    def slot(self):
        self._slots += 1
        return self._slots - 1

    def view(self, tensor, slot):
        return _View(
            slot, tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.storage_offset()
        )

    def record(self, func, args, kwargs, results):
        self._steps.append((func, args, kwargs, results))

    def source(self, view):
        """Keeps the present value of a view; the number of the source."""
        self._steps.append((None, view, None, len(self._sources)))
        self._sources.append(view)
        return len(self._sources) - 1

    @property
    def sources(self):
        return len(self._sources)

    @torch.no_grad()
    def run(self, condition) -> list[Tensor]:
        """Values of every source, float64 1-D, for the condition of one image.

        Args:
            condition: what the model was traced with, in structure, dtypes and shapes.
        """
        if self.names is not None:
            condition = {name: condition[name] for name in self.names}
        tensors = flat_condition(condition)
        storages = {}
        for slot, tensor in zip(self._inputs, tensors, strict=True):
            fresh = prepared(tensor, self.batch)
            storages[slot] = fresh.untyped_storage()
        with contextlib.ExitStack() as stack:
            stack.enter_context(_one_thread())
            # the ops are those that an autocast has made, if there was one
            for device in {tensor.device.type for tensor in tensors}:
                stack.enter_context(torch.autocast(device, enabled=False))
            return self._run(storages)

    def _run(self, storages):
        last_use = self._last_uses()
        found = [None] * len(self._sources)
        for step, (func, args, kwargs, results) in enumerate(self._steps):
            if func is None:
                value = self._tensor(args, storages).detach()
                found[results] = value.cpu().double().reshape(-1).clone()
            else:
                out = func(*self._filled(args, storages), **self._filled(kwargs, storages))
                out = out if isinstance(out, (tuple, list)) else (out,)
                for slot, tensor in zip(results, out, strict=True):
                    if slot is not None:
                        storages[slot] = tensor.untyped_storage()
            for slot in last_use.get(step, ()):
                storages.pop(slot, None)
        return found

    def _tensor(self, view, storages):
        empty = torch.empty(0, dtype=view.dtype, device=storages[view.slot].device)
        return empty.set_(storages[view.slot], view.offset, view.shape, view.stride)

    def _filled(self, arg, storages):
        if isinstance(arg, _View):
            return self._tensor(arg, storages)
        if isinstance(arg, (list, tuple)):
            return type(arg)(self._filled(a, storages) for a in arg)
        if isinstance(arg, dict):
            return {key: self._filled(a, storages) for key, a in arg.items()}
        return arg

    def _last_uses(self):
        last = {}
        for step, (_, args, kwargs, results) in enumerate(self._steps):
            for slot in _slots_in((args, kwargs)):
                last[slot] = step
            for slot in results if isinstance(results, tuple) else ():
                last[slot] = step
        by_step = {}
        for slot, step in last.items():
            by_step.setdefault(step, []).append(slot)
        return by_step


def prepared(tensor, batch):
    """A copy that the model may write to, for `batch` images."""
    copy = tensor.detach().clone(memory_format=torch.contiguous_format)
    return copy if batch == 1 else copy.repeat(batch, *[1] * (copy.dim() - 1))


def _slots_in(arg):
    if isinstance(arg, _View):
        yield arg.slot
    elif isinstance(arg, (list, tuple)):
        for a in arg:
            yield from _slots_in(a)
    elif isinstance(arg, dict):
        yield from _slots_in(list(arg.values()))
