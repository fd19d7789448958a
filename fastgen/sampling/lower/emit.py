"""A scheduled plan as a program: the order of entries, slots, tables."""

import numpy as np

from fastgen.sampling.lower import columns, expressions
from fastgen.sampling.lower.gates import GATE
from fastgen.sampling.lower.plan import STATIC, Plan
from fastgen.sampling.lower.schedule import chains, in_order
from fastgen.sampling.lower.slots import allocate, common_widths
from fastgen.sampling.program import Column, Draws, Instruction, Program


def emit(plan: Plan, chunk: int = 0) -> Program:
    """chunk: positions a turn of chained linears takes; 0: all of a step."""
    rows = [
        part
        for node in plan.nodes
        if node in plan.step
        for part in columns.split_rows(plan, node, in_order(plan.step[node]))
    ]
    entries = _entries(plan, rows, chunk)
    arena = _Arena(plan, rows, entries)
    return Program(
        steps=plan.steps,
        parameters=plan.params.shape[1],
        codes=plan.codes.size,
        floats=arena.floats,
        zero_width=arena.zero_width,
        instructions=[_instruction(plan, part, arena) for part in rows],
        entries=entries,
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


def _entries(plan, rows, chunk):
    """int32 (n, 3). Within a step in the nodes' order, a chained linear right behind its head."""
    follows = chains(plan) if chunk else {}
    heads = set(follows.values())
    order = {node: i for i, node in enumerate(plan.nodes)}
    parts = []
    for i, part in enumerate(rows):
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


class _Arena:
    """Slots of every cell: the zero cell, then the static ones, then those that are reused."""

    def __init__(self, plan, rows, entries):
        graph = plan.graph
        with_linear = plan.computed_with()
        nodes = [n for n in plan.nodes if n.kind in STATIC or n in plan.step] + list(with_linear)
        self.graph, self.static = graph, [n for n in nodes if n.kind in STATIC]
        operands = [operand.addresses for part in rows for operand in part.operands]
        self.width = common_widths(graph, nodes, operands)
        self.zero_width = top = max(self.width.values(), default=1)
        self.slots = {node: np.full(node.npos, -1, np.int64) for node in nodes}
        for node in self.static:
            self.slots[node] = top + np.arange(node.npos) * self.width[node]
            top += node.npos * self.width[node]

        birth = {n: np.full(n.npos, -1, np.int64) for n in nodes if n in plan.step}
        for at, (instruction, first, count) in enumerate(entries.tolist()):
            if instruction >= 0:
                part = rows[instruction]
                birth[part.node][part.positions[first : first + count]] = at
        for node, (linear, positions) in with_linear.items():
            birth[node] = birth[linear][positions]
        death = {node: np.full(node.npos, -1, np.int64) for node in graph.nodes}

        def read(addresses, at):
            for node, mask, positions in graph.decode(addresses):
                np.maximum.at(death[node], positions, at[mask])

        draw_entry = np.flatnonzero(entries[:, 0] < 0)
        read(plan.params, np.repeat(draw_entry[plan.draw_step, None], plan.params.shape[1], 1))
        for part in rows:
            at = birth[part.node][part.positions]
            for operand in part.operands:
                read(operand.addresses, at)

        cells, owners = [], []
        for node in birth:
            (positions,) = np.nonzero(birth[node] >= 0)
            born = birth[node][positions]
            width = np.full(len(positions), self.width[node])
            cells.append(np.stack([born, np.maximum(death[node][positions], born), width], 1))
            owners.append((node, positions))
        if cells:
            table = np.concatenate(cells)
            order = np.argsort(table[:, 0], kind="stable")
            offsets = np.empty(len(table), np.int64)
            offsets[order], top = allocate(table[order], top)
            for (node, positions), part in zip(
                owners, np.split(offsets, np.cumsum([len(p) for _, p in owners])[:-1]), strict=True
            ):
                self.slots[node][positions] = part
        self.unread = top  # what is computed besides and nowhere read
        self.floats = top + self.zero_width

    def slots_beside(self, node, positions, linear):
        """Where a map that is computed with a linear goes, for the linear's positions."""
        slots = np.full(linear.npos, self.unread)
        slots[positions] = np.where(self.slots[node] < 0, self.unread, self.slots[node])
        return slots

    def column(self, operand) -> tuple:
        """(slots (rows,), Column)"""
        slots = np.where(operand.addresses < 0, -1, 0)
        width, channel = self.zero_width, 0
        for node, mask, positions in self.graph.decode(operand.addresses):
            slots[mask] = self.slots[node][positions]
            width, channel = (
                self.width[node],
                int((operand.addresses[mask][0] - node.base) % node.nch),
            )
        return slots, Column(width, channel, operand.count, operand.broadcast)

    def scalars(self, addresses):
        """int32 (..., 3): slot, width, channel of each address."""
        place = np.zeros((*addresses.shape, 3), np.int32)
        place[..., 1] = self.zero_width
        for node, mask, positions in self.graph.decode(addresses):
            place[mask, 0] = self.slots[node][positions]
            place[mask, 1] = self.width[node]
            place[mask, 2] = (addresses[mask] - node.base) % node.nch
        return place


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
        table, described, instruction.pairs = _pairs(table, described)
        instruction.columns = described
    assert all((slots >= (-1 if node.kind in ("row", "mix") else 0)).all() for slots in table)
    instruction.table = np.ascontiguousarray(np.stack(table, 1).astype(np.int32))
    return instruction


def _pairs(table, columns):
    """The table of an attention, its columns, and the pool of (key, value) slots its rows point
    into. Causal rows see prefixes of one list, which is then stored once."""
    out, query, *slots = table
    terms = len(slots) // 2
    keys, values = np.stack(slots[:terms], 1), np.stack(slots[terms:], 1)
    present = keys >= 0
    counts = present.sum(1)
    described = [columns[0]] + [
        next(c for c, some in zip(part, present.any(0), strict=True) if some)
        for part in (columns[1 : 1 + terms], columns[1 + terms :])
    ]
    order = np.argsort(-present.sum(0), kind="stable")
    nested = np.arange(terms) < counts[:, None]
    key, value = keys.max(0), values.max(0)
    alike = ((keys == key) & (values == value) | ~present).all()
    if alike and (present[:, order] == nested).all():
        pool = np.stack([key[order], value[order]], 1)
        first = np.zeros_like(counts)
    else:
        pool = np.stack([keys[present], values[present]], 1)
        first = np.cumsum(counts) - counts
    return [out, query, first, counts], described, pool.astype(np.int32)


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
