"""Where cells lie: one arena for everything an image needs."""

import numpy as np

from fastgen.sampling.lower.plan import STATIC
from fastgen.sampling.lower.slots import allocate, allocate_pair, common_widths, padded
from fastgen.sampling.program import Column


class Arena:
    """Slots of every cell: the zero cell, the static ones, then those that are used repeatedly.

    `needed` int32 (steps,): how many entries of the queue each step waits for.
    """

    def __init__(self, plan, rows, entries, queue):
        with_linear = plan.computed_with()
        nodes = [n for n in plan.nodes if n.kind in STATIC or n in plan.step] + list(with_linear)
        self.graph, self.static = plan.graph, [n for n in nodes if n.kind in STATIC]
        operands = [operand.addresses for part in rows for operand in part.operands]
        self.width = common_widths(self.graph, nodes, operands)
        counts = [operand.count for part in rows for operand in part.operands]
        self.zero_width = top = padded(max([*self.width.values(), *counts], default=1))
        self.slots = {node: np.full(node.npos, -1, np.int64) for node in nodes}
        for node in self.static:
            self.slots[node] = top + np.arange(node.npos) * self.width[node]
            top += node.npos * self.width[node]

        queued = {rows[i].node for i in np.unique(queue[:, 0])}
        birth = {n: np.full(n.npos, -1, np.int64) for n in nodes if n in plan.step}
        for sequence in (entries, queue):
            for at, (instruction, first, count) in enumerate(sequence[:, :3].tolist()):
                if instruction >= 0:
                    part = rows[instruction]
                    birth[part.node][part.positions[first : first + count]] = at
        for node, (linear, positions) in with_linear.items():
            birth[node] = birth[linear][positions]
            queued |= {node} if linear in queued else set()
        # the last reader of every cell, in the entries and in the queue
        last_entry = {node: np.full(node.npos, -1, np.int64) for node in self.graph.nodes}
        last_queued = {node: np.full(node.npos, -1, np.int64) for node in self.graph.nodes}

        def read(addresses, at, last):
            for node, mask, positions in self.graph.decode(addresses):
                np.maximum.at(last[node], positions, _along(at, mask)[mask])

        draw_entry = np.flatnonzero(entries[:, 0] < 0)
        drawn_at = np.repeat(draw_entry[plan.draw_step, None], plan.params.shape[1], 1)
        read(plan.params, drawn_at, last_entry)
        for part in rows:
            at = birth[part.node][part.positions]
            for operand in part.operands:
                read(operand.addresses, at, last_queued if part.node in queued else last_entry)

        cells = []
        for number, node in enumerate(birth):
            (positions,) = np.nonzero(birth[node] >= 0)
            cell = np.zeros((len(positions), 7), np.int64)
            cell[:, 0], cell[:, 1], cell[:, 6] = number, positions, node in queued
            cell[:, 2], cell[:, 3] = self.width[node], birth[node][positions]
            cell[:, 4], cell[:, 5] = last_entry[node][positions], last_queued[node][positions]
            cells.append(cell)
        cells = np.concatenate(cells) if cells else np.zeros((0, 7), np.int64)
        cells = cells[np.argsort(cells[:, 3], kind="stable")]
        # the step of an entry, by which entries and queue wait for each other
        step = np.searchsorted(draw_entry, np.arange(len(entries)))
        self.needed = np.zeros(plan.steps, np.int32)
        if len(queue):
            first = self._first_entry_reads(rows, entries, birth, queued, plan)
            for node, at in first.items():
                some = (at >= 0) & (birth[node] >= 0)
                np.maximum.at(self.needed, step[at[some]], birth[node][some] + 1)
            self.needed = np.maximum.accumulate(self.needed)
            offsets, top = allocate_pair(cells[:, 2:], step, queue[:, 3], self.needed, top)
        else:
            death = np.maximum(cells[:, 4], cells[:, 3])
            offsets, top = allocate(np.stack([cells[:, 3], death, cells[:, 2]], 1), top)
        owners = list(birth)
        for number in range(len(owners)):
            mine = cells[:, 0] == number
            self.slots[owners[number]][cells[mine, 1]] = offsets[mine]
        self.unread = top  # what is computed besides and nowhere read
        self.floats = top + self.zero_width

    def _first_entry_reads(self, rows, entries, birth, queued, plan):
        """node of the queue -> the first entry that reads each cell, -1 for none."""
        never = len(entries)
        first = {node: np.full(node.npos, never, np.int64) for node in queued}

        def read(addresses, at):
            for node, mask, positions in self.graph.decode(addresses):
                if node in first:
                    np.minimum.at(first[node], positions, _along(at, mask)[mask])

        draw_entry = np.flatnonzero(entries[:, 0] < 0)
        read(plan.params, np.repeat(draw_entry[plan.draw_step, None], plan.params.shape[1], 1))
        for part in rows:
            if part.node not in queued:
                for operand in part.operands:
                    read(operand.addresses, birth[part.node][part.positions])
        return {node: np.where(at == never, -1, at) for node, at in first.items()}

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


def _along(rows, mask):
    """One value a row in the shape of a mask (rows, ...)."""
    return np.broadcast_to(rows.reshape(rows.shape + (1,) * (mask.ndim - rows.ndim)), mask.shape)
