"""What each ATen op does to the addresses of its operands.

A rule is ``rule(t, a)``: t the tracer, a the op's arguments by the names of its schema. It returns
the addresses of the result (a list for several; None for one that is not kept), or DECOMPOSE.
"""

from fastgen.sampling.rules import (  # noqa: F401  each registers its own
    activations,
    arithmetic,
    composites,
    convolution,
    linear,
    movement,
    normalisation,
    ours,
    pooling,
    reductions,
    tables,
)
from fastgen.sampling.rules.registry import (
    CHECKS,
    DECOMPOSE,
    FACTORIES,
    GUARD_REDUCTIONS,
    HOST_READS,
    RANGE_GUARDS,
    bound_arguments,
    decomposition,
    mutated_arguments,
    rule_for,
)

__all__ = [
    "CHECKS",
    "DECOMPOSE",
    "FACTORIES",
    "GUARD_REDUCTIONS",
    "HOST_READS",
    "RANGE_GUARDS",
    "bound_arguments",
    "decomposition",
    "mutated_arguments",
    "rule_for",
]
