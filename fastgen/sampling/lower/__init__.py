"""From a traced graph to a program: one pass a file, each from plan to plan, then `emit`."""

import numpy as np

from fastgen.sampling.graph import Traced
from fastgen.sampling.lower.attention import fuse_attention
from fastgen.sampling.lower.emit import emit
from fastgen.sampling.lower.fuse import fuse
from fastgen.sampling.lower.gates import gates_in_registers
from fastgen.sampling.lower.plan import Plan, begin
from fastgen.sampling.lower.schedule import schedule
from fastgen.sampling.lower.sides import sides_of_linears
from fastgen.sampling.lower.split import split_by_readiness
from fastgen.sampling.program import Program

__all__ = ["emit", "lower", "optimize"]


def lower(traced: Traced, *, chunk: int = 0, **passes) -> Program:
    """The program of a causal traced model."""
    return emit(optimize(traced, **passes), chunk)


def optimize(
    traced: Traced, *, attention=True, fusing=True, splitting=True, gates=True, sides=True
) -> Plan:
    """The scheduled plan, from which `emit` makes a program for each way of running it. Every pass
    can be left out, without a change of the result beyond rounding."""
    plan = begin(traced)
    _gather_parameters(plan)
    plan.drop_dead_nodes()
    if attention:
        fuse_attention(plan)
    if fusing:
        fuse(plan)
    plan.find_live_cells()
    if splitting:
        schedule(plan)
        split_by_readiness(plan)
        plan.find_live_cells()
    if gates:
        gates_in_registers(plan)
    if sides:
        sides_of_linears(plan)
    schedule(plan)
    return plan


def _gather_parameters(plan):
    """Parameters of a draw that are not one channel run of a cell are gathered into one."""
    params, graph = plan.params, plan.graph
    first, nodes = params[:, :1], graph.node_index(params)
    run = (params == first + np.arange(params.shape[1])).all(1) & (nodes == nodes[:, :1]).all(1)
    overhang = np.zeros(len(params), np.int64)  # channels of the run beyond its cell
    for node, mask, _ in graph.decode(first[:, 0]):
        overhang[mask] = (first[mask, 0] - node.base) % node.nch + params.shape[1] - node.nch
    direct = run & (overhang <= 0) & (nodes[:, 0] >= 0)
    if direct.all():
        return
    sources = params[~direct]
    node = graph.add(
        "gather",
        len(sources),
        params.shape[1],
        graph.ready(sources).max(1),
        sources=sources,
        module="",
        op="parameters",
    )
    plan.nodes.append(node)
    plan.params = params.copy()
    plan.params[~direct] = graph.addresses(node)
