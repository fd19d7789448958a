"""Where cells lie: slots of one arena, taken at birth and given back after the last reader."""

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
