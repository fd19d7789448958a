"""The dispatch mode under which a model is run to be traced.

It sees every ATen op. Tensors are of three classes: those that depend on a code (each storage has a
shadow with the address of every element), those that depend on the condition and on no code (their
ops go on a tape), and all others, whose ops are run and forgotten: masks multiplied into weights,
weight norm and positional tables are constants of the graph. A view of a storage is the same view
of its shadow, so in-place ops on views need no rules of their own.
"""

import collections

import numpy as np
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from fastgen.sampling import rules
from fastgen.sampling.build import Builder
from fastgen.sampling.errors import UnsupportedModelError

OUTSIDE, CONDITION, CODES = range(3)
_SWEEP = 64  # ops between two looks for storages that are gone


class _Storage:
    """What is known of one storage. The weak reference keeps its address from being reused."""

    __slots__ = ("weak", "kind", "shadow", "slot", "writes", "guard", "known")

    def __init__(self, storage, kind):
        self.weak = StorageWeakRef(storage)
        self.kind = kind
        self.shadow = self.slot = None
        self.writes = 0  # of condition values; inference tensors have no version to tell them by
        self.guard = False  # a range check's result: may be read by the host
        self.known = True


class Tracer(TorchDispatchMode):
    """Fills a Builder's graph and a tape while a model runs under it.

    leaves: storage -> tensor, of all tensors the model reads that were there before.
    ops: Counter of the ATen ops on codes.
    """

    def __init__(self, tape, paths, levels):
        super().__init__()
        self.levels = levels
        self.builder = Builder()
        self.tape = tape
        self.paths = paths
        self.storages = {}
        self.leaves = {}
        self.ops = collections.Counter()
        self.func = None
        self._conditions = {}
        self._since_sweep = 0

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # guarding the dispatch from dynamo would import it, which takes a second

    # classes of tensors

    def _record(self, tensor):
        return self.storages.get(tensor.untyped_storage()._cdata)

    def _class(self, tensor):
        record = self._record(tensor)
        return OUTSIDE if record is None else record.kind

    def is_constant(self, value):
        return not isinstance(value, torch.Tensor) or self._class(value) == OUTSIDE

    def register(self, tensor, kind):
        storage = tensor.untyped_storage()
        record = self.storages.get(storage._cdata)
        if record is None:
            record = self.storages[storage._cdata] = _Storage(storage, kind)
        return record

    def _sweep(self):
        self._since_sweep += 1
        if self._since_sweep >= _SWEEP:
            self._since_sweep = 0
            gone = [key for key, record in self.storages.items() if record.weak.expired()]
            for key in gone:
                del self.storages[key]

    # values and addresses of arguments, for the rules

    def value(self, tensor):
        """float64 array of a constant."""
        if not isinstance(tensor, torch.Tensor):
            return np.float64(tensor)
        if self._class(tensor) != OUTSIDE:
            self.refuse("needs a constant here", "compute it from neither codes nor condition")
        return tensor.detach().to("cpu", torch.float64).resolve_neg().numpy()

    def operand(self, value):
        """Addresses int64 of what depends on codes or condition, else values float64."""
        if isinstance(value, torch.Tensor) and self._class(value) != OUTSIDE:
            return self.addresses(value)
        return self.value(value)

    def addresses(self, tensor):
        """int64 array in the tensor's shape; constants and condition become nodes."""
        if not isinstance(tensor, torch.Tensor):
            return self.builder.constants(np.float64(tensor))
        record = self._record(tensor)
        if record is None or record.kind == OUTSIDE:
            return self.builder.constants(self.value(tensor))
        if record.kind == CONDITION:
            return self._condition_addresses(tensor, record)
        if not record.known:
            self.refuse("uses a result that is not kept", "use the op's first result only")
        view = record.shadow.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
        return view.numpy().copy()

    def _condition_addresses(self, tensor, record):
        view = self.tape.view(tensor, record.slot)
        key = (view, record.writes)
        if key not in self._conditions:
            source = self.tape.source(view)
            index = np.arange(tensor.numel()).reshape(tensor.shape)
            last = np.moveaxis(index, 1, -1) if index.ndim >= 3 else np.atleast_1d(index)
            elements = last.reshape(-1, last.shape[-1])
            node = self.builder.add(
                "condition", *elements.shape, 0, source=source, elements=elements
            )
            found = np.empty(tensor.numel(), np.int64)
            found[elements] = self.builder.graph.addresses(node)
            self._conditions[key] = found.reshape(tensor.shape)
        return self._conditions[key]

    def refuse(self, problem, remedy):
        raise UnsupportedModelError(self.message(problem, remedy))

    def message(self, problem, remedy):
        op = "the model" if self.func is None else str(self.func)
        path = self.paths.current()
        where = f" in module {path!r}" if path else ""
        return f"fastgen.compile_sampler: {op}{where} {problem}; {remedy}"

    # results

    def put(self, tensor, addresses):
        """Makes a tensor's elements those at `addresses`."""
        storage = tensor.untyped_storage()
        record = self.register(tensor, CODES)
        count = max(1, storage.nbytes() // tensor.element_size())
        if record.kind != CODES:
            self._drop_leaf(tensor)
            if tensor.numel() < count:
                self._promote(tensor, record)
            record.kind = CODES
        record.known = record.known or tensor.numel() == count
        if record.shadow is None:
            record.shadow = torch.zeros(count, dtype=torch.int64, device="cpu")
        view = record.shadow.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
        view.numpy()[...] = np.asarray(addresses).reshape(tensor.shape)

    def _promote(self, tensor, record):
        """A storage that held constants or condition values is written to from codes."""
        addresses = self.addresses(_whole_storage(tensor))
        record.shadow = torch.from_numpy(np.array(addresses, np.int64))

    # dispatch

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = _tensors_in(args) + _tensors_in(tuple(kwargs.values()))
        kind = max(map(self._class, tensors), default=OUTSIDE)
        self._refuse_random(func, args, kwargs)
        self._sweep()
        if kind == OUTSIDE:
            return self._outside(func, args, kwargs, tensors)
        name = func._schema.name.split("::")[1]
        if torch.Tag.inplace_view in func.tags or name in rules.CHECKS:
            return func(*args, **kwargs)
        if func.is_view:
            out = func(*args, **kwargs)
            if _same_storage(out, tensors):
                self._refuse_other_type(func, out, tensors[0])
                return out  # else it copied, as a reshape may
        if name in rules.FACTORIES:
            out = func(*args, **kwargs)
            self.register(out, OUTSIDE)
            return out
        self.func = func
        self.builder.module = self.paths.current()
        self.builder.op = func._schema.name
        if kind == CONDITION:
            return self._on_condition(func, args, kwargs, tensors)
        self.ops[func._schema.name] += 1
        return self._on_codes(func, args, kwargs, tensors)

    def _refuse_random(self, func, args, kwargs):
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return
        bound = rules.bound_arguments(func, args, kwargs)
        training = getattr(bound, "training", getattr(bound, "train", True))
        if getattr(bound, "dropout_p", 1.0) == 0 or training is False:
            return
        self.func = func
        self.refuse("draws random numbers", "call .eval(), or take the noise out of the model")

    def _refuse_other_type(self, func, out, tensor):
        if any(o.dtype != tensor.dtype or o.is_neg() for o in _tensors_in((out,))):
            self.func = func
            self.refuse("reads a tensor's memory as another type", "convert it with .to()")

    def _outside(self, func, args, kwargs, tensors):
        out = func(*args, **kwargs)
        if func is torch.ops.aten.lift_fresh.default:  # of torch.tensor: made here and now
            self.register(out, OUTSIDE)
            return out
        for tensor in tensors:
            self._note_leaf(tensor)
        for tensor in _tensors_in((out,)):
            if not _same_storage(tensor, tensors):
                self.register(tensor, OUTSIDE)
        return out

    def _note_leaf(self, tensor):
        """A tensor that was there before the trace; of those that share memory a parameter, which
        may get other memory later."""
        storage = tensor.untyped_storage()._cdata
        if storage in self.storages:
            return
        if storage not in self.leaves or isinstance(tensor, nn.Parameter):
            self.leaves[storage] = tensor

    def _on_condition(self, func, args, kwargs, tensors):
        name = func._schema.name.split("::")[1]
        guard = name in rules.RANGE_GUARDS and self._is_guard(name, args, kwargs)
        if name in rules.HOST_READS:
            if not guard:
                self.refuse(
                    "reads values that depend on the condition",
                    "the program may not branch on them: compute with tensors, or compile one "
                    "sampler for each case",
                )
            return func(*args, **kwargs)
        for tensor in tensors:
            self._note_leaf(tensor)
        for tensor in rules.mutated_arguments(func, args, kwargs):
            self._put_on_tape(tensor)
        recorded = self._on_tape(args), self._on_tape(kwargs)
        out = func(*args, **kwargs)
        results = []
        inputs = {t.untyped_storage()._cdata for t in tensors}
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if not isinstance(tensor, torch.Tensor) or tensor.untyped_storage()._cdata in inputs:
                results.append(None)
                continue
            record = self.register(tensor, CONDITION)
            record.slot, record.guard = self.tape.slot(), guard
            results.append(record.slot)
        self.tape.record(func, *recorded, tuple(results))
        return out

    def _put_on_tape(self, tensor):
        """The tensor is about to get values of the condition. If it was made elsewhere, its storage
        goes on the tape as it is now."""
        record = self.register(tensor, OUTSIDE)
        record.writes += 1
        if record.kind == CONDITION:
            return
        record.kind, record.slot = CONDITION, self.tape.slot()
        self._drop_leaf(tensor)
        now = _whole_storage(tensor).clone()
        self.tape.record(torch.ops.aten.clone.default, (now,), {}, (record.slot,))

    def _drop_leaf(self, tensor):
        """A leaf that the model writes codes or condition to is no constant."""
        self.leaves.pop(tensor.untyped_storage()._cdata, None)

    def _on_tape(self, arg):
        if isinstance(arg, torch.Tensor):
            record = self._record(arg)
            if record is not None and record.kind == CONDITION:
                return self.tape.view(arg, record.slot)
            # made during the trace: may be written to later on
            return arg if record is None else arg.detach().clone()
        if isinstance(arg, (list, tuple)):
            return type(arg)(self._on_tape(a) for a in arg)
        if isinstance(arg, dict):
            return {key: self._on_tape(a) for key, a in arg.items()}
        return arg

    def _is_guard(self, name, args, kwargs):
        """Reductions of anything are guards, comparisons only of guards and constants. A float that
        is read is more likely to be calculated with."""
        if name in rules.GUARD_REDUCTIONS:
            return True
        tensors = _tensors_in(args) + _tensors_in(tuple(kwargs.values()))
        if name == "_local_scalar_dense" and tensors[0].is_floating_point():
            return False
        return all(self._class(t) == OUTSIDE or self._record(t).guard for t in tensors)

    def _on_codes(self, func, args, kwargs, tensors):
        name = func._schema.name.split("::")[1]
        guard = name in rules.RANGE_GUARDS and self._is_guard(name, args, kwargs)
        if name in rules.HOST_READS:
            if not guard:
                self.refuse(
                    "reads values that depend on the codes",
                    "its control flow or shapes would differ from image to image: compute with "
                    "tensors, such as torch.where, and check a range by bool(x.max() <= 1)",
                )
            return func(*args, **kwargs)
        for tensor in tensors:
            self._note_leaf(tensor)
        mutated = rules.mutated_arguments(func, args, kwargs)
        for tensor in mutated:
            self.register(tensor, OUTSIDE)
        rule = rules.rule_for(func)
        if rule is None:
            return self._decomposed(func, args, kwargs)
        # torch checks the arguments better than a rule does; but a rule needs what is written over
        out = None if mutated else func(*args, **kwargs)
        with _disable_current_modes():
            found = self._by_rule(rule, rules.bound_arguments(func, args, kwargs))
        if found is rules.DECOMPOSE:
            return self._decomposed(func, args, kwargs)
        if mutated:
            out = func(*args, **kwargs)
        with _disable_current_modes():
            results = out if isinstance(out, (tuple, list)) else (out,)
            found = found if isinstance(found, list) else [found]
            for tensor, addresses in zip(results, found, strict=False):
                if isinstance(tensor, torch.Tensor):
                    self._put_result(tensor, addresses, guard)
            for tensor in mutated:
                if not _same_storage(tensor, results):  # something on the side, such as noise
                    self._put_result(tensor, None, False)
        return out

    def _by_rule(self, rule, bound):
        try:
            return rule(self, bound)
        except UnsupportedModelError:
            raise
        except Exception as error:
            message = self.message(f"is not supported in this form ({error})", "report it")
            raise UnsupportedModelError(message) from error

    def _put_result(self, tensor, addresses, guard):
        if addresses is None:
            record = self.register(tensor, CODES)
            record.kind, record.known = CODES, False
        else:
            self.put(tensor, addresses)
            self._record(tensor).guard = guard

    def _decomposed(self, func, args, kwargs):
        """Once more, in terms of simpler ops."""
        simpler = rules.decomposition(func)
        if simpler is None:
            self.refuse("is not supported", "express it by supported ops, or ask for it")
        with self:
            out = simpler(*args, **kwargs)
        if out is NotImplemented:
            self.func = func
            self.refuse("is not supported", "express it by supported ops, or ask for it")
        return out


class HostReads(TorchFunctionMode):
    """Refuses what takes values out of tensors without an ATen op."""

    _READS = (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__)

    def __init__(self, tracer):
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in self._READS and not self.tracer.is_constant(args[0]):
            self.tracer.func = f"Tensor.{func.__name__}"
            self.tracer.refuse(
                "takes values that depend on codes or condition out of torch",
                "compute with tensors",
            )
        return func(*args, **(kwargs or {}))


def _same_storage(out, tensors):
    known = {tensor.untyped_storage()._cdata for tensor in tensors}
    return all(tensor.untyped_storage()._cdata in known for tensor in _tensors_in((out,)))


def _whole_storage(tensor):
    count = tensor.untyped_storage().nbytes() // tensor.element_size()
    return tensor.detach().as_strided((count,), (1,), 0)


def _tensors_in(values):
    found = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found.extend(_tensors_in(value))
    return found
