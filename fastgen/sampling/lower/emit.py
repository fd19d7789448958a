"""A scheduled plan as a program: the order of entries, slots, tables."""

import numpy as np

from fastgen.sampling.lower import columns, expressions
from fastgen.sampling.lower.arena import Arena
from fastgen.sampling.lower.background import background, queued
from fastgen.sampling.lower.gates import GATE
from fastgen.sampling.lower.plan import Plan
from fastgen.sampling.lower.schedule import chains, in_order
from fastgen.sampling.program import Column, Draws, Instruction, Program


def emit(plan: Plan, chunk: int = 0, pair: bool = False) -> Program:
    """chunk: positions a turn of chained linears takes; 0: all of a step. pair: for two threads on
    one image, see background.py; then without chains."""
    waits = background(plan) if pair else {}
    rows = [
        part
        for node in plan.nodes
        if node in plan.step
        for part in columns.split_rows(
            plan, node, waits[node].order if node in waits else in_order(plan.step[node])
        )
    ]
    entries = _entries(plan, rows, waits, 0 if pair else chunk)
    queue = queued(plan, rows, waits)
    arena = Arena(plan, rows, entries, queue)
    return Program(
        steps=plan.steps,
        parameters=plan.params.shape[1],
        codes=plan.codes.size,
        floats=arena.floats,
        zero_width=arena.zero_width,
        instructions=[_instruction(plan, part, arena) for part in rows],
        entries=entries,
        background=queue,
        needed=arena.needed,
        draws=_draws(plan, arena),
        constants=[
            (arena.slots[n].astype(np.int32), arena.width[n], n.values)
            for n in arena.static
            if n.kind == "const"
        ],
        conditions=[
            (n.source, arena.slots[n].astype(np.int32), arena.width[n], n.elements)
            for n in arena.static
            if n.kind == "condition"
        ],
    )


def _entries(plan, rows, waits, chunk):
    """int32 (n, 3). Within a step in the nodes' order, a chained linear right behind its head."""
    follows = chains(plan) if chunk else {}
    heads = set(follows.values())
    order = {node: i for i, node in enumerate(plan.nodes)}
    parts = []
    for i, part in enumerate(rows):
        if part.node in waits:
            continue
        step = plan.step[part.node][part.positions]
        starts = np.flatnonzero(np.diff(step, prepend=-1))
        counts = np.diff(np.append(starts, len(step)))
        head = follows.get(part.node, part.node)
        turn = np.zeros_like(starts)
        if part.node in follows or part.node in heads:
            pieces = -(-counts // chunk)
            turn = np.concatenate([np.arange(p) for p in pieces])
            ends = np.repeat(starts + counts, pieces)
            starts = np.repeat(starts, pieces) + turn * chunk
            counts = np.minimum(chunk, ends - starts)
        entry = np.stack([np.full(len(starts), i), starts, counts], 1)
        key = np.stack([step[starts], np.full(len(starts), order[head]), turn], 1)
        parts.append(np.concatenate([key, entry], 1))
    draws = np.zeros((plan.steps, 6), np.int64)
    draws[:, 0] = draws[:, 4] = np.arange(plan.steps)
    draws[:, 1], draws[:, 3] = len(plan.nodes), -1
    table = np.concatenate([*parts, draws])
    table = table[np.lexsort((table[:, 3], table[:, 2], table[:, 1], table[:, 0]))]
    return np.ascontiguousarray(table[:, 3:].astype(np.int32))


def _instruction(plan, part, arena):
    node = part.node
    out, out_slots = node, arena.slots[node]
    if node in plan.gates:
        out, positions = plan.gates[node]
        out_slots = arena.slots_beside(out, positions, node)
    table, described = [out_slots[part.positions]], []
    for operand in part.operands:
        slots, column = arena.column(operand)
        table.append(slots)
        described.append(column)
    instruction = Instruction(
        node.kind,
        table,
        arena.width[out],
        out.nch,
        described,
        module=node.module,
        critical=plan.batch(node) < 2,
        pick=part.pick,
        lookup=node.table,
        function=node.function,
        args=node.args,
    )
    if node.kind == "linear":
        instruction.weight, instruction.bias = node.weight, node.bias
        instruction.taps, instruction.adds = len(node.taps), len(node.adds)
    if node.kind in ("linear", "map"):
        sides = [side.expr for side, _ in plan.sides.get(node, ())]
        _set_epilogue(instruction, node, out is not node, sides)
    if out is not node:
        table.append(arena.slots[node][part.positions])
        instruction.second_width = arena.width[node]
    for side, positions in plan.sides.get(node, ()):
        table.append(arena.slots_beside(side, positions, node)[part.positions])
        instruction.sides.append(Column(arena.width[side], 0, side.nch))
    if node.kind == "attention":
        table, instruction.pairs = _pairs(*table)
    assert all((slots >= (-1 if node.kind in ("row", "mix") else 0)).all() for slots in table)
    instruction.table = np.ascontiguousarray(np.stack(table, 1).astype(np.int32))
    return instruction


def _pairs(out, query, keys, values):
    """Table columns of an attention, and the pool of (key, value) slots its rows point into. Causal
    rows see prefixes of one list, which is then stored once."""
    present = keys >= 0
    counts = present.sum(1)
    order = np.argsort(-present.sum(0), kind="stable")
    nested = np.arange(keys.shape[1]) < counts[:, None]
    key, value = keys.max(0), values.max(0)
    alone = (keys == 0).any(1)  # one value, and the zero cell for its key
    alike = (((keys == key) & (values == value) | ~present) | alone[:, None]).all()
    if alike and (present[:, order] == nested)[~alone].all():
        own = np.stack([np.zeros(alone.sum(), int), values[alone].max(1)], 1)
        pool = np.concatenate([np.stack([key[order], value[order]], 1), own])
        first = np.zeros_like(counts)
        first[alone] = len(key) + np.arange(alone.sum())
    else:
        pool = np.stack([keys[present], values[present]], 1)
        first = np.cumsum(counts) - counts
    return [out, query, first, counts], pool.astype(np.int32)


def _set_epilogue(instruction, node, with_gate, sides):
    if with_gate:
        instruction.epilogue = "gate_both"
    elif node.expr == GATE:
        instruction.epilogue = "gate"
    elif not sides and node.expr == ("acc", 0) and node.nch == node.nacc:
        instruction.epilogue = "none"
    elif not sides and node.expr == ("relu", ("acc", 0)) and node.nch == node.nacc:
        instruction.epilogue = "relu"
    else:
        channels = -(-max(node.nch, instruction.nacc) // 64) * 64
        exprs = [node.expr, *sides]
        code, consts, temporaries = expressions.straight_line(exprs, channels)
        instruction.epilogue = "code"
        instruction.code, instruction.consts, instruction.temporaries = code, consts, temporaries


def _draws(plan, arena):
    steps = np.searchsorted(plan.draw_step, np.arange(plan.steps + 1))
    return Draws(
        step_start=steps.astype(np.int32),
        param=arena.scalars(plan.params[:, 0]),
        cell=arena.scalars(plan.codes),
        index=plan.code_index.astype(np.int32),
    )
