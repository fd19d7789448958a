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
        self.graph = plan.graph
        beside = plan.computed_with()
        nodes = [n for n in plan.nodes if n.kind in STATIC or n in plan.step] + list(beside)
        self.static = [n for n in nodes if n.kind in STATIC]
        operands = [operand for part in rows for operand in part.operands]
        self.width = common_widths(self.graph, nodes, [o.addresses for o in operands])
        widest = max([*self.width.values(), *(o.count for o in operands)], default=1)
        self.zero_width = top = padded(widest)
        self.slots = {node: np.full(node.npos, -1, np.int64) for node in nodes}
        for node in self.static:
            self.slots[node] = top + np.arange(node.npos) * self.width[node]
            top += node.npos * self.width[node]
        self.needed = np.zeros(plan.steps, np.int32)
        top = self._place(_Lives(plan, rows, entries, queue, beside), plan, entries, queue, top)
        self.unread = top  # what is computed besides and nowhere read
        self.floats = top + self.zero_width

    def _place(self, lives, plan, entries, queue, top):
        """Slots of the cells that are computed; returns the end of the arena."""
        cells = lives.cells(self.width)
        if len(queue):
            # the step of an entry, by which entries and queue wait for each other
            step = np.searchsorted(lives.draw_entry, np.arange(len(entries)))
            for node in lives.queued:
                read = (lives.first_entry[node] < len(entries)) & (lives.birth[node] >= 0)
                at = step[lives.first_entry[node][read]]
                np.maximum.at(self.needed, at, lives.birth[node][read] + 1)
            self.needed = np.maximum.accumulate(self.needed)
            offsets, top = allocate_pair(cells[:, 2:], step, queue[:, 3], self.needed, top)
        else:
            death = np.maximum(cells[:, 4], cells[:, 3])
            offsets, top = allocate(np.stack([cells[:, 3], death, cells[:, 2]], 1), top)
        for number, node in enumerate(lives.birth):
            mine = cells[:, 0] == number
            self.slots[node][cells[mine, 1]] = offsets[mine]
        return top

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


class _Lives:
    """When every cell is written and read: birth, by the number of the entry or tile that computes
    it, and the first and last entries and the last tile that read it; -1 for none."""

    def __init__(self, plan, rows, entries, queue, beside):
        self.queued = {rows[i].node for i in np.unique(queue[:, 0])}
        self.birth = {n: np.full(n.npos, -1, np.int64) for n in plan.nodes if n in plan.step}
        for sequence in (entries, queue):
            for at, (instruction, first, count) in enumerate(sequence[:, :3].tolist()):
                if instruction >= 0:
                    part = rows[instruction]
                    self.birth[part.node][part.positions[first : first + count]] = at
        for node, (linear, positions) in beside.items():
            self.birth[node] = self.birth[linear][positions]
            if linear in self.queued:
                self.queued.add(node)

        nodes = plan.graph.nodes
        self.first_entry = {node: np.full(node.npos, len(entries), np.int64) for node in nodes}
        self.last_entry = {node: np.full(node.npos, -1, np.int64) for node in nodes}
        self.last_tile = {node: np.full(node.npos, -1, np.int64) for node in nodes}
        self.draw_entry = np.flatnonzero(entries[:, 0] < 0)
        reads = [(plan.params, self.draw_entry[plan.draw_step], False)]
        for part in rows:
            at = self.birth[part.node][part.positions]
            reads += [(o.addresses, at, part.node in self.queued) for o in part.operands]
        for addresses, at, by_queue in reads:
            plan.note_latest(self.last_tile if by_queue else self.last_entry, addresses, at)
            if len(queue) and not by_queue:
                plan.note_earliest(self.first_entry, addresses, at)

    def cells(self, width):
        """int64 (n, 7), by birth: number of the node in `birth`, position, width, birth, last
        entry, last tile, whether the queue computes it."""
        cells = [np.zeros((0, 7), np.int64)]
        for number, node in enumerate(self.birth):
            (positions,) = np.nonzero(self.birth[node] >= 0)
            cell = np.empty((len(positions), 7), np.int64)
            cell[:, 0], cell[:, 1], cell[:, 2] = number, positions, width[node]
            cell[:, 3] = self.birth[node][positions]
            cell[:, 4] = self.last_entry[node][positions]
            cell[:, 5] = self.last_tile[node][positions]
            cell[:, 6] = node in self.queued
            cells.append(cell)
        cells = np.concatenate(cells)
        return cells[np.argsort(cells[:, 3], kind="stable")]
