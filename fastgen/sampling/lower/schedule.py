"""When each cell is computed: every live cell once, in as few and as large batches as its readers
allow.

Backwards, each cell has a deadline, the first step a reader of it runs. What has no time to wait
runs at its deadline, one position a step: pulled earlier, a border position that is ready early
would drag its operands' deadlines along and shatter the row batches of everything before it. What
can wait is stabbed: at the earliest open deadline everything that is ready is computed. That finds
the row-by-row schedule of a vertical stack by itself.
"""

import numpy as np

from fastgen.sampling.lower.fuse import positions_in
from fastgen.sampling.lower.plan import STATIC, Plan

_CAN_WAIT = 4  # steps, in the median over positions


def schedule(plan: Plan):
    """Sets plan.step, and that of a gate computed with its linear to the linear's."""
    deadline = {node: np.full(node.npos, plan.steps, np.int32) for node in plan.graph.nodes}

    plan.note_earliest(deadline, plan.params, plan.draw_step)
    plan.step, with_linear = {}, list(plan.computed_with().items())
    for node in reversed(plan.nodes):
        if node.kind in STATIC:
            continue
        live = np.flatnonzero(plan.live[node])
        for other, (linear, positions) in with_linear:
            if linear is node:
                np.minimum.at(deadline[node], positions, deadline[other])
        last = deadline[node][live]
        step = np.full(node.npos, -1, np.int32)
        step[live] = _steps(node.ready[live], last)
        plan.step[node] = step
        for addresses in node.reads():
            plan.note_earliest(deadline, addresses[live], step[live])


def _steps(ready, deadline):
    if len(ready) == 0 or np.median(deadline - ready) < _CAN_WAIT:
        return deadline
    step = np.empty_like(deadline)
    order = np.argsort(deadline, kind="stable")
    while len(order):
        now = deadline[order[0]]
        runs = ready[order] <= now
        step[order[runs]] = now
        order = order[~runs]
    return step


def in_order(step):
    """Live positions by step."""
    live = np.flatnonzero(step >= 0)
    return live[np.argsort(step[live], kind="stable")]


def chains(plan: Plan) -> dict:
    """linear -> the batched linear it follows position by position: run in turns, a few positions
    at a time, what one leaves in the cache is what the other reads."""
    follows = {}
    computed_by = plan.computed_with()
    for node in plan.nodes:
        if node.kind != "linear" or len(node.taps) != 1 or node.adds or node.operands:
            continue
        producers = plan.producers(node.taps[0][0])
        if len(producers) != 1 or plan.batch(node) < 2:
            continue
        (producer,) = producers
        head, position = computed_by.get(producer, (producer, np.arange(producer.npos)))
        if head not in plan.step or head in follows or head.kind != "linear":
            continue
        found = positions_in(producer, node.taps[0][0])
        if found is None:
            continue
        rows, head_rows = in_order(plan.step[node]), in_order(plan.step[head])
        same_steps = np.array_equal(plan.step[node][rows], plan.step[head][head_rows])
        if same_steps and np.array_equal(position[found[0]][rows], head_rows):
            follows[node] = head
    return follows
