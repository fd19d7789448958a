"""Which rule an ATen op has."""

import importlib
import pkgutil
from types import SimpleNamespace

import fastgen.reference

DECOMPOSE = object()  # what a rule returns for a case it leaves to simpler ops
HOST_READS = set(
    "_local_scalar_dense equal is_nonzero nonzero masked_select unique _unique2 unique_dim "
    "unique_consecutive allclose bincount".split()
)
# a guard's result may be read by the host: what it checks is no business of a sampler
GUARD_REDUCTIONS = {"min", "max", "aminmax", "amin", "amax", "all", "any"}
RANGE_GUARDS = GUARD_REDUCTIONS | set(
    "eq ne lt le gt ge isnan isfinite isinf logical_and logical_or logical_not bitwise_and "
    "bitwise_or bitwise_not _local_scalar_dense is_nonzero".split()
)
# their results depend on the argument's shape only
FACTORIES = set(
    "empty_like zeros_like ones_like full_like new_empty new_empty_strided new_zeros new_ones "
    "new_full".split()
)
CHECKS = {"_assert_async", "_assert_tensor_metadata", "_assert_scalar"}

_RULES = {}
_DECOMPOSITIONS = {}


def rule(*names):
    """Registers a rule for ops, in place or not; names of other libraries' ops with namespace."""

    def register(function):
        for name in names:
            _RULES[name] = function
        return function

    return register


def decomposes(*names):
    """Registers a function of an op's arguments that computes it by simpler ops."""

    def register(function):
        for name in names:
            _DECOMPOSITIONS[name] = function
        return function

    return register


def rule_for(func):
    name = func._schema.name
    short = name.split("::")[1]
    if name.startswith("fastgen::"):
        return _RULES.get(name)
    found = _RULES.get(short)
    if found is None and short.startswith("__i") and short.endswith("__"):
        return _RULES.get(f"__{short[3:]}")
    if found is None and short.endswith("_"):
        return _RULES.get(short[:-1])
    return found


def bound_arguments(func, args, kwargs):
    """The arguments of a call by the names of the schema, with defaults."""
    bound = {}
    for i, argument in enumerate(func._schema.arguments):
        if i < len(args):
            bound[argument.name] = args[i]
        elif argument.name in kwargs:
            bound[argument.name] = kwargs[argument.name]
        else:
            bound[argument.name] = argument.default_value if argument.has_default_value() else None
    return SimpleNamespace(**bound)


def mutated_arguments(func, args, kwargs):
    found = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            if isinstance(value, (list, tuple)):
                found.extend(value)
            elif value is not None:
                found.append(value)
    return found


def decomposition(func):
    """A function of the same arguments in simpler ops, or None."""
    namespace, name = func._schema.name.split("::")
    if namespace == "fastgen":
        return _fastgen_reference(name)
    if name in _DECOMPOSITIONS:
        return _DECOMPOSITIONS[name]
    # imported here: it costs a second, and few models need it
    from torch._decomp import core_aten_decompositions

    found = core_aten_decompositions().get(func)
    return func.decompose if found is None else found


def _fastgen_reference(name):
    for module in pkgutil.iter_modules(fastgen.reference.__path__):
        found = getattr(importlib.import_module(f"fastgen.reference.{module.name}"), name, None)
        if found is not None:
            return found
    return None
