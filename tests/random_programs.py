"""Programs of random instructions over random tables, for comparing executors."""

import numpy as np

from fastgen.sampling.program import Column, Draws, Instruction, Program

ZERO_WIDTH = 320


class Cells:
    """Slots that hold nch scalars each and can be read."""

    def __init__(self, slots, width, nch):
        self.slots, self.width, self.nch = slots, width, nch


# Expressions over acc or an operand x, another operand y and a scalar s, tame for any input.


def expressions(x, y, s):
    bounded = ("tanh", x)
    positive = ("add", ("abs", x), ("num", 0.5))
    return [
        ("relu", x),
        ("elu", x),
        ("tanh", x),
        ("sigmoid", ("mul", x, ("num", 3.0))),
        ("exp", bounded),
        ("expm1", ("mul", bounded, ("num", 0.01))),
        ("log", positive),
        ("log1p", ("abs", x)),
        ("sqrt", positive),
        ("rsqrt", positive),
        ("reciprocal", positive),
        ("abs", ("neg", x)),
        ("sign", x),
        ("add", ("floor", x), ("add", ("ceil", x), ("round", x))),
        ("add", ("sin", x), ("cos", x)),
        ("erf", x),
        ("sub", ("mul", x, s), y),
        ("div", y, positive),
        ("maximum", x, y),
        ("minimum", x, y),
        ("pow", positive, ("num", 1.5)),
        ("add", ("eq", x, x), ("ne", x, y)),
        ("add", ("lt", x, y), ("add", ("le", x, y), ("add", ("gt", x, y), ("ge", x, y)))),
        ("where", ("gt", x, ("num", 0.0)), x, ("mul", y, ("val", None))),
        ("mul", ("tanh", x), ("sigmoid", y)),
        ("add", x, ("elu", ("neg", y))),
        x,
    ]


class Builder:
    def __init__(self, rng, parameters=7, codes_a_draw=1, levels=7, rows=5, draws=2):
        self.rng, self.rows = rng, rows
        self.parameters, self.codes_a_draw, self.levels = parameters, codes_a_draw, levels
        self.draws_a_step = draws
        self.floats = ZERO_WIDTH
        self.readable, self.instructions, self.entries = [], [], []
        self.constants, self.conditions = [], []
        self.codes = 0
        self.step_start, self.param, self.cell, self.index = [0], [], [], []
        for nch in (3, 40):
            cells = self.allocate(4, nch)
            self.constants.append((cells.slots, cells.width, rng.normal(size=(4, nch))))
            self.readable.append(cells)
        cells = self.allocate(3, 6)
        elements = rng.integers(0, 10, size=(3, 6))
        self.conditions.append((0, cells.slots, cells.width, elements))
        self.readable.append(cells)

    def allocate(self, count, nch):
        width = nch + int(self.rng.integers(0, 3))
        slots = self.floats + width * self.rng.permutation(count)
        self.floats += width * count
        return Cells(slots.astype(np.int32), width, nch)

    def read(self, count, rows, broadcast=False, absent=False):
        """A column of `count` channels and what it reads, some of it the zero cell."""
        cells = self.rng.choice([c for c in self.readable if c.nch >= count])
        channel = int(self.rng.integers(0, cells.nch - count + 1))
        slots = self.rng.choice(cells.slots, rows)
        slots[self.rng.random(rows) < 0.15] = 0
        if absent:
            slots[self.rng.random(rows) < 0.3] = -1
        return Column(cells.width, channel, count, broadcast), slots

    def instruction(self, kind, nch, reads, second=None, beside=(), table=None, **fields):
        out = self.allocate(self.rows, nch)
        if table is None:
            table = [slots for _, slots in reads]
        if second is not None:
            table.append(second.slots)
            fields["second_width"] = second.width
        table = [out.slots, *table, *(cells.slots for cells in beside)]
        table = np.ascontiguousarray(np.stack(table, 1).astype(np.int32))
        columns = [column for column, _ in reads]
        self.entries += [(len(self.instructions), 0, self.rows // 2)]
        self.entries += [(len(self.instructions), self.rows // 2, self.rows - self.rows // 2)]
        self.instructions.append(Instruction(kind, table, out.width, nch, columns, **fields))
        self.readable.append(out)
        if second is not None:
            self.readable.append(second)
        self.readable += beside
        return out

    def straight_line(self, expr, nch):
        """The expression as `code`, `consts`, `temporaries`; "val" is a random vector."""
        code, consts = [], []

        def visit(expr):
            if expr[0] in ("op", "acc"):
                return expr
            if expr[0] in ("num", "val"):
                consts.append(
                    np.full(nch, expr[1]) if expr[0] == "num" else self.rng.normal(size=nch)
                )
                return ("const", len(consts) - 1, 0)
            arguments = [visit(argument) for argument in expr[1:]]
            code.append((expr[0], ("tmp", len(code)), arguments))
            return ("tmp", len(code) - 1, 0)

        root = visit(expr)
        if root[0] in ("op", "acc"):
            code.append(("copy", ("out",), [root]))
        else:
            code[-1] = (code[-1][0], ("out",), code[-1][2])
        consts = np.array(consts).reshape(len(consts), nch)
        return {"code": code, "consts": consts, "temporaries": len(code)}

    def linear(self, nch, epilogue="none", taps=(), adds=0, expression=0, bias=True, sides=0):
        gate = epilogue.startswith("gate")
        extra = int(self.rng.integers(0, 4)) if epilogue == "code" else 0
        nacc = 2 * nch if gate else nch + extra
        reads = [self.read(count, self.rows) for count in taps]
        if adds and max(c.nch for c in self.readable) < nacc:
            adds = 0
        reads += [self.read(nacc, self.rows) for _ in range(adds)]
        depth = max(sum(taps), 1)
        fields = {
            "weight": self.rng.normal(size=(sum(taps), nacc)) / np.sqrt(depth),
            "bias": self.rng.normal(size=nacc) if bias else None,
            "taps": len(taps),
            "adds": adds,
            "epilogue": epilogue,
            "critical": bool(self.rng.random() < 0.5),
        }
        if epilogue == "code":
            y, s = self.read(1, self.rows, broadcast=True), self.read(1, self.rows, broadcast=True)
            reads += [y, s]
            x = ("acc", int(self.rng.integers(0, extra + 1)))
            expr = expressions(x, ("op", 0, 0), ("op", 1, 0))[expression]
            fields |= self.straight_line(expr, nch)
        second = self.allocate(self.rows, nacc) if epilogue == "gate_both" else None
        beside = [self.allocate(self.rows, nch) for _ in range(sides)]
        for k in range(1, sides + 1):  # some before the cell itself
            line = (("neg", "tanh")[k % 2], ("out", k), [x])
            fields["code"].insert(0 if k == 1 else len(fields["code"]), line)
        fields["sides"] = [Column(cells.width, 0, nch) for cells in beside]
        return self.instruction("linear", nch, reads, second, beside, **fields)

    def map(self, nch, expression):
        nch = min(nch, max(c.nch for c in self.readable))
        offset = int(self.rng.integers(0, min(3, max(c.nch for c in self.readable) - nch + 1)))
        reads = [
            self.read(nch + offset, self.rows),
            self.read(nch, self.rows),
            self.read(1, self.rows, broadcast=True),
        ]
        expr = expressions(("op", 0, offset), ("op", 1, 0), ("op", 2, 0))[expression]
        return self.instruction("map", nch, reads, **self.straight_line(expr, nch))

    def gather(self, nch):
        cells = [self.rng.choice(self.readable) for _ in range(3)]
        reads = [
            (Column(c.width, 0, c.nch), self.rng.choice([0, *c.slots], self.rows)) for c in cells
        ]
        pick = [(k, self.rng.integers(0, cells[k].nch)) for k in self.rng.integers(0, 3, nch)]
        return self.instruction("gather", nch, reads, pick=np.array(pick, np.int32))

    def lookup(self, nch):
        codes = [c for c in self.readable if getattr(c, "is_code", False)]
        cells = self.rng.choice(codes) if codes else None
        slots = self.rng.choice(cells.slots, self.rows) if codes else np.zeros(self.rows)
        channel = int(self.rng.integers(0, cells.nch)) if codes else 0
        column = Column(cells.width if codes else 1, channel, 1)
        table = self.rng.normal(size=(self.levels, nch))
        return self.instruction("lookup", nch, [(column, slots)], lookup=table)

    def row(self, function, runs=(5, 1, 1, 3)):
        reads = [self.read(count, self.rows, absent=False) for count in runs]
        for i, count in enumerate(runs):
            if count == 1:
                reads[i] = self.read(1, self.rows, absent=function != "layer_norm")
        length, args = sum(runs), {}
        if function == "layer_norm":
            args = {"eps": 1e-5, "weight": self.rng.normal(size=length), "bias": None}
            if self.rng.random() < 0.5:
                args["bias"] = self.rng.normal(size=length)
        if function == "variance":
            args = {"correction": int(self.rng.integers(0, 2))}
        whole = function in ("softmax", "log_softmax", "layer_norm")
        out = self.instruction("row", length if whole else 1, reads, function=function, args=args)
        if function == "log_softmax":
            self.readable.remove(out)  # holds -inf where a scalar is absent
            self.unread = out
        return out

    def dot(self, width):
        return self.instruction("dot", 1, [self.read(width, self.rows) for _ in range(2)])

    def mix(self, nch, terms):
        weights = [self.read(1, self.rows) for _ in range(terms)]
        cells = [self.read(nch, self.rows) for _ in range(terms)]
        gone = self.rng.random((terms, self.rows)) < 0.3
        for i in range(terms):
            weights[i][1][gone[i]] = -1
            cells[i][1][gone[i]] = -1
        return self.instruction("mix", nch, weights + cells)

    def attention(self, width, nch, most):
        query, keys = self.read(width, self.rows), self.read(width, self.rows * most)
        values = self.read(nch, self.rows * most)
        counts = self.rng.integers(1, most + 1, self.rows)
        table = [query[1], np.arange(self.rows) * most, counts]
        return self.instruction(
            "attention",
            nch,
            [query, keys, values],
            table=table,
            pairs=np.stack([keys[1], values[1]], 1).astype(np.int32),
            args={"scale": 1.3},
        )

    def draw_step(self):
        """Parameters from a linear, then the draws of the step."""
        step = len(self.step_start) - 1
        rows, self.rows = self.rows, self.draws_a_step
        params = self.linear(self.parameters + 1, taps=(3, 6), adds=0)
        self.rows = rows
        cells = self.allocate(self.draws_a_step, self.codes_a_draw)
        for d in range(self.draws_a_step):
            self.param.append((params.slots[d], params.width, 1))
            self.cell.append([(cells.slots[d], cells.width, c) for c in range(self.codes_a_draw)])
            self.index.append([self.codes + c for c in range(self.codes_a_draw)])
            self.codes += self.codes_a_draw
        self.entries.append((-1, step, 0))
        self.step_start.append(len(self.param))
        cells.is_code = True
        self.readable.append(cells)

    def program(self):
        order = self.rng.permutation(self.codes)  # codes are not drawn in raster order
        return Program(
            steps=len(self.step_start) - 1,
            parameters=self.parameters,
            codes=self.codes,
            floats=self.floats,
            zero_width=ZERO_WIDTH,
            instructions=self.instructions,
            entries=np.array(self.entries, np.int32),
            draws=Draws(
                step_start=np.array(self.step_start, np.int32),
                param=np.array(self.param, np.int32),
                cell=np.array(self.cell, np.int32),
                index=order[np.array(self.index)].astype(np.int32),
            ),
            constants=self.constants,
            conditions=self.conditions,
        )
