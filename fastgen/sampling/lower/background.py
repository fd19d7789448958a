"""Two threads on one image: one walks the steps, the other computes ahead what is ready early.

What is computed in batches (a vertical stack, partial sums of earlier rows) goes into a queue of
tiles, each with the number of steps that must be over before it may run; each step says how many
tiles it needs. Tiles are cut by when their cells can be computed, and the queue is sorted by it, so
that no step waits for a tile which waits for that step.
"""

from dataclasses import dataclass

import numpy as np

from fastgen.sampling.lower.plan import STATIC, Plan, along

_TILE = 4  # steps: what becomes ready within them is one tile
_URGENCY = 8  # steps: tiles are cut where their readers are so far apart


@dataclass
class Waits:
    """For the positions of a node: how many steps must be over, and the first step that needs it,
    in tiles; `order` is the order of its rows."""

    wait: np.ndarray
    urgency: np.ndarray
    order: np.ndarray


def background(plan: Plan) -> dict:
    """node -> Waits of what the second thread computes."""
    chosen = {node for node in plan.step if plan.batch(node) >= 2}
    chosen -= {node for node in chosen if node.kind in STATIC}
    while True:
        wait, deadline = _waits(plan, chosen), _deadlines(plan, chosen)
        late = {n for n in chosen if (wait[n] > deadline[n])[plan.live[n]].any()}
        if not late:
            break
        chosen -= late
    found = {}
    for node in plan.nodes:
        if node in chosen:
            rounded = -(-wait[node] // _TILE) * _TILE
            effective = np.minimum(rounded, deadline[node])
            urgency = deadline[node] // _URGENCY
            live = np.flatnonzero(plan.live[node])
            order = live[np.lexsort((urgency[live], effective[live]))]
            found[node] = Waits(effective, urgency, order)
    return found


def _waits(plan, chosen):
    """Steps that must be over before each cell of `chosen` can be computed."""
    beside = plan.computed_with()
    over = {}  # node -> steps after which a cell is there for the second thread
    for node in plan.nodes:
        if node.kind == "code":
            over[node] = node.ready
        elif node.kind in STATIC:
            over[node] = np.zeros(node.npos, np.int32)
        elif node in chosen:
            wait = np.zeros(node.npos, np.int32)
            for addresses in node.reads():
                for producer, mask, positions in plan.graph.decode(addresses):
                    rows = along(np.arange(node.npos), mask)[mask]
                    np.maximum.at(wait, rows, over[producer][positions])
            over[node] = wait
        else:
            over[node] = plan.step[node] + 1
        for other, (linear, positions) in beside.items():
            if linear is node:
                over[other] = over[node][positions]
    return {node: over[node] for node in chosen}


def _deadlines(plan, chosen):
    """The first step whose entries need each cell of `chosen`, directly or through others."""
    deadline = {node: np.full(node.npos, plan.steps, np.int32) for node in plan.graph.nodes}

    plan.note_earliest(deadline, plan.params, plan.draw_step)
    beside = plan.computed_with()
    for node in reversed(plan.nodes):
        if node.kind in STATIC:
            continue
        for other, (linear, positions) in beside.items():
            if linear is node:
                np.minimum.at(deadline[node], positions, deadline[other])
        live = np.flatnonzero(plan.live[node])
        step = deadline[node] if node in chosen else plan.step[node]
        for addresses in node.reads():
            plan.note_earliest(deadline, addresses[live], step[live])
    return {node: deadline[node] for node in chosen}


def queued(plan: Plan, rows, waits) -> np.ndarray:
    """int32 (n, 4): (instruction, first row, rows, steps that must be over)."""
    order = {node: i for i, node in enumerate(plan.nodes)}
    parts = [np.zeros((0, 6), np.int64)]
    for i, part in enumerate(rows):
        if part.node not in waits:
            continue
        wait = waits[part.node].wait[part.positions]
        urgency = waits[part.node].urgency[part.positions]
        cut = (np.diff(wait, prepend=-1) != 0) | (np.diff(urgency, prepend=-1) != 0)
        starts = np.flatnonzero(cut)
        counts = np.diff(np.append(starts, len(wait)))
        key = [wait[starts], urgency[starts], np.full(len(starts), order[part.node])]
        parts.append(np.stack([*key, np.full(len(starts), i), starts, counts], 1))
    table = np.concatenate(parts)
    table = table[np.lexsort((table[:, 3], table[:, 2], table[:, 1], table[:, 0]))]
    return np.ascontiguousarray(table[:, [3, 4, 5, 0]].astype(np.int32))
