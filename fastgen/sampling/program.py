"""The lowered model: instructions over one arena, and the order in which to run them.

A plain data object that knows neither torch nor the CPU. Every executor gives it the same meaning.

A cell (a channel vector) lies in a slot of the arena. With B images in flight, channel c of image b
is `arena[offset * B + b * width + c]`: offsets do not depend on the batch. Slots are reused when
their cell dies; [0, zero_width) is the zero cell, always 0. An instruction is a table with one row
per position: the slot it writes, then the slots it reads, one column an operand. All cells of a
column have one width and one first channel. Offset -1 in a `row` or `mix` means absent.
"""

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Column:
    """How one column of a table reads (or writes) its slots."""

    width: int  # scalars between images
    channel: int  # the first channel
    count: int  # channels from there on; 1 with broadcast: one scalar for all channels
    broadcast: bool = False


@dataclass
class Instruction:
    """kind: as in graph.py: linear map gather lookup row dot mix attention.

    table int32 (rows, 1 + len(columns) [+ second out] [+ len(sides)]): out, one per column,
      further outs.
    columns by kind:
      linear  taps, then `adds`, then operands of the expression
      map     operands
      gather  cells; channel c of the result is channel pick[c, 1] (counted from the cell's first
              channel, Column.channel is 0) of the cell in column pick[c, 0]
      lookup  one scalar: the row of `lookup` to copy (rounded to the nearest integer)
      row     runs of channels, side by side the row; absent (-1) only for columns of count 1
      dot     a, b
      mix     J weights of count 1, then J cells; absent (-1) in both at once
      attention  query, key, value; the table's rows are (out, query, first pair, pairs): which of
              `pairs` int32 (n, 2), slots of a key and a value, the query attends to. The weights
              are softmax(args["scale"] * (query . key))
    epilogue of linear: "none", "relu", "gate", "gate_both" or "code"; of map: "code". "gate": nacc
    is 2 * nch and the result tanh(acc[:nch]) * sigmoid(acc[nch:]); "gate_both" also stores acc into
    the second out, of width `second_width`. How weights are packed for that is the executor's.
    code: straight-line program over values: [(function, result, arguments)], an argument being
    ("acc", first channel) | ("op", operand, first channel) | ("const", index, first channel) |
    ("tmp", index, 0), the result ("tmp", index), ("out",), or ("out", k) for the k-th of `sides`,
    counted from 1, cells that a linear with epilogue "code" computes besides; consts (count, padded
    channels).
    """

    kind: str
    table: np.ndarray
    width: int  # of the slots it writes
    nch: int
    columns: list
    module: str = ""
    critical: bool = False  # on the path every step waits for: its weights should stay near
    # linear
    weight: np.ndarray | None = None  # float64 (sum of tap counts, nacc)
    bias: np.ndarray | None = None
    taps: int = 0
    adds: int = 0
    epilogue: str = "none"
    second_width: int = 0
    sides: list = field(default_factory=list)  # Columns, as wide as their cells
    code: list = field(default_factory=list)
    consts: np.ndarray | None = None
    temporaries: int = 0
    # other kinds
    pick: np.ndarray | None = None  # int32 (nch, 2)
    pairs: np.ndarray | None = None  # int32 (n, 2)
    lookup: np.ndarray | None = None  # float64 (rows, nch)
    function: str | None = None
    args: dict = field(default_factory=dict)

    @property
    def nacc(self):
        return 0 if self.weight is None else self.weight.shape[1]


@dataclass
class Draws:
    """What is drawn, in order. Draw d reads K parameters and writes the cells of its codes:
    one code, or all colours of a pixel for a coupled likelihood."""

    step_start: np.ndarray  # int32 (steps + 1,): the draws of each step
    param: np.ndarray  # int32 (draws, 3): slot, width, first channel
    cell: np.ndarray  # int32 (draws, codes, 3): slot, width, channel where the code is written
    index: np.ndarray  # int32 (draws, codes): flat index in (C, *space)


@dataclass
class Program:
    steps: int
    parameters: int  # K
    codes: int  # C * positions
    floats: int  # of arena per image
    zero_width: int
    instructions: list
    entries: np.ndarray  # int32 (n, 3): (instruction, first row, rows); (-1, step, 0) draws a step
    draws: Draws
    # static cells, loaded before the first entry
    constants: list  # [(slots int32 (npos,), width, values float64 (npos, nch))]
    conditions: list  # [(source, slots int32 (npos,), width, elements int64 (npos, nch))]
    # Of a program for two threads on one image, else empty: what the second thread runs, int32
    # (m, 4): (instruction, first row, rows, steps that must be over); and int32 (steps,), how many
    # of these must be done before the entries of a step.
    background: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.int32))
    needed: np.ndarray | None = None

    @property
    def multiply_adds(self) -> int:
        """Of matrix products, for one image."""
        total = 0
        for instruction in self.instructions:
            counts, rows = [c.count for c in instruction.columns], len(instruction.table)
            if instruction.kind == "linear":
                total += rows * sum(counts[: instruction.taps]) * instruction.nacc
            elif instruction.kind == "dot":
                total += rows * counts[0]
            elif instruction.kind == "mix":
                terms = len(counts) // 2
                present = int((instruction.table[:, 1 : 1 + terms] >= 0).sum())
                total += present * instruction.nch
            elif instruction.kind == "attention":
                total += int(instruction.table[:, 3].sum()) * (counts[0] + counts[2])
        return total
