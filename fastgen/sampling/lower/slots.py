"""Slots of the arena: taken at birth, given back after the last reader."""

import heapq

import numpy as np


def padded(channels: int) -> int:
    """Floats of a slot: whole vectors of 16 floats, except for narrow cells such as codes."""
    return channels if channels < 16 else -(-channels // 16) * 16


def common_widths(graph, nodes, columns) -> dict:
    """node -> width. Cells read by one column of a table must have one width."""
    root = {node: node for node in nodes}

    def find(node):
        while root[node] is not node:
            root[node] = root[root[node]]
            node = root[node]
        return node

    for addresses in columns:
        index = np.unique(graph.node_index(addresses))
        producers = [graph.nodes[i] for i in index[index >= 0]]
        for other in producers[1:]:
            root[find(other)] = find(producers[0])
    width = {}
    for node in nodes:
        width[find(node)] = max(width.get(find(node), 0), padded(node.nch))
    return {node: width[find(node)] for node in nodes}


def allocate(cells: np.ndarray, first_free: int):
    """cells int64 (n, 3): (birth, death, width), entries counted from 0, sorted by birth. Returns
    (offsets, end of the arena). Last in, first out for each width, so that slots stay in cache."""
    offsets = np.empty(len(cells), np.int64)
    free, dying, gone, top = {}, {}, -1, first_free
    for i, (birth, death, width) in enumerate(cells.tolist()):
        while gone < birth - 1:
            gone += 1
            for slot_width, offset in dying.pop(gone, ()):
                free.setdefault(slot_width, []).append(offset)
        slots = free.get(width)
        if slots:
            offset = slots.pop()
        else:
            offset, top = top, top + width
        offsets[i] = offset
        dying.setdefault(death, []).append((width, offset))
    return offsets, top


def allocate_pair(cells, step, queue_wait, needed, first_free: int):
    """Slots where one thread runs entries and another one a queue. What one of them writes lies
    only where it wrote before, and not before the other one is known to have read that.

    cells int64 (n, 5): (width, birth, last reading entry, last reading tile, whether the queue's),
    sorted by birth, which counts entries or tiles. step: of every entry. queue_wait: steps over
    before a tile. needed: tiles done before a step. Returns (offsets, end of the arena).
    """
    offsets, top = np.empty(len(cells), np.int64), first_free
    for of_queue in (0, 1):
        dying, gone, free = {}, -1, {}  # free: width -> heap of (other thread's last reader, slot)
        for i in np.flatnonzero(cells[:, 4] == of_queue):
            width, birth, last_entry, last_tile = cells[i, :4].tolist()
            while gone < birth - 1:
                gone += 1
                for slot_width, other, offset in dying.pop(gone, ()):
                    heapq.heappush(free.setdefault(slot_width, []), (other, offset))
            # what the other thread has read for sure by now: steps over, or tiles done
            safe = queue_wait[birth] if of_queue else needed[step[birth]]
            slots = free.get(width)
            if slots and slots[0][0] < safe:
                offset = heapq.heappop(slots)[1]
            else:
                offset, top = top, top + width
            offsets[i] = offset
            own, other = (last_tile, last_entry) if of_queue else (last_entry, last_tile)
            if of_queue:
                other = step[other] if other >= 0 else -1
            dying.setdefault(max(own, birth), []).append((width, int(other), offset))
    return offsets, top
