"""The meaning of a program, in plain PyTorch: the oracle for the fast executors."""

import torch
from torch import Tensor

from fastgen.sampling.executors.stepping import StepDraws, run_steps


class ReferenceExecutor:
    """Runs a program instruction by instruction on tensors (floats of arena, images).

    dtype: torch.float32 or float64. poison: cells that were never written hold NaN, so that
    reading one too early, or one of nobody's, shows. ahead: the second thread's queue runs as early
    as it may, else as late as it must.
    """

    def __init__(self, program, dtype=torch.float64, device="cpu", poison=False, ahead=False):
        self.program = program
        self.dtype = dtype
        self.device = torch.device(device)
        self.poison = poison
        self.ahead = ahead
        self._instructions = [
            _KINDS[i.kind](i, self.dtype, self.device) for i in program.instructions
        ]
        self._entries = [[] for _ in range(program.steps)]
        step_entries = []
        for instruction, first, rows in program.entries.tolist():
            if instruction < 0:
                self._entries[first] = step_entries
                step_entries = []
            else:
                step_entries.append((instruction, first, rows))

    @property
    def floats_per_image(self) -> int:
        return self.program.floats

    @property
    def weight_bytes(self) -> int:
        linears = [i for i in self.program.instructions if i.kind == "linear"]
        return self.dtype.itemsize * sum(i.weight.size for i in linears)

    @property
    def table_bytes(self) -> int:
        tables = sum(i.table.nbytes for i in self.program.instructions)
        return tables + self.program.entries.nbytes

    @torch.no_grad()
    def run(
        self,
        codes: Tensor,
        *,
        conditions=(),
        draw=None,
        known: Tensor | None = None,
        params: Tensor | None = None,
        group: int = 16,
        threads: int = 1,
        tick=None,
    ):
        """Draws codes, or reads them and gives the parameters they lead to.

        Args:
            codes: int64 (n, codes of the program), in place: written where drawn, read elsewhere.
            conditions: one tensor (n, numel) per condition source.
            draw: Draw, or None: every code is read.
            known: bool (n, codes), True where a code is read although others are drawn; or None.
            params: (n, draws, K), filled; or None.
            group: images at once.
            threads: makes no difference here.
            tick: called with the fraction done about every 50 ms; what it raises ends the run.

        Returns:
            None; or (sample, draw) of the first NaN parameter of the first sample that met one
            while drawing a code that is not known. Then codes and params mean nothing.
        """
        return run_steps(
            self,
            codes,
            conditions=conditions,
            draw=draw,
            known=known,
            params=params,
            group=group,
            tick=tick,
        )

    def stepper(self, n: int, conditions=()):
        """Runs the steps of n images one by one: `advance(step)` gives the parameters (n, draws of
        the step, K), `put(step, codes (n, draws, codes a draw))` what was drawn."""
        return _Stepper(self, n, conditions)

    def arena(self, n, conditions):
        """(floats, n): the static cells are there."""
        program = self.program
        start = float("nan") if self.poison else 0.0
        arena = torch.full((program.floats, n), start, dtype=self.dtype, device=self.device)
        arena[: program.zero_width] = 0
        for slots, _, values in program.constants:
            values = torch.as_tensor(values, dtype=self.dtype, device=self.device)
            arena[self._cells(slots, values.shape[1])] = values[:, :, None]
        for source, slots, _, elements in program.conditions:
            flat = conditions[source].to(self.device, self.dtype)
            values = flat[:, torch.as_tensor(elements, device=self.device)]
            arena[self._cells(slots, elements.shape[1])] = values.permute(1, 2, 0)
        return arena

    def _cells(self, slots, channels):
        slots = torch.as_tensor(slots, device=self.device).long()
        return slots[:, None] + torch.arange(channels, device=self.device)


class _Stepper:
    def __init__(self, executor, n, conditions):
        self.executor = executor
        self.arena = executor.arena(n, conditions)
        self.queued = 0  # entries of the background queue done
        self.values = torch.arange(executor.program.parameters, device=executor.device)

    @torch.no_grad()
    def advance(self, step) -> Tensor:
        executor = self.executor
        self._run_queue(step)
        for instruction, first, rows in executor._entries[step]:
            executor._instructions[instruction](self.arena, slice(first, first + rows))
        param = StepDraws(executor.program, step).param.to(executor.device)
        at = (param[:, 0] + param[:, 2])[:, None] + self.values
        return self.arena[at].permute(2, 0, 1)

    def _run_queue(self, step):
        program = self.executor.program
        waits = program.background[:, 3]
        end = program.needed[step] if len(waits) else 0
        assert (waits[:end] <= step).all(), "a step needs what waits for it"
        if self.executor.ahead:
            late = waits > step
            end = late.argmax() if late.any() else len(waits)
        for instruction, first, rows, _ in program.background[self.queued : end].tolist():
            self.executor._instructions[instruction](self.arena, slice(first, first + rows))
        self.queued = max(self.queued, end)

    def put(self, step, codes):
        cell = StepDraws(self.executor.program, step).cell.to(self.executor.device)
        values = codes.permute(1, 2, 0).to(self.executor.device, self.executor.dtype)
        self.arena[cell[..., 0] + cell[..., 2]] = values


class _Instruction:
    """Called with the arena and a slice of rows of the table. Values are (rows, channels, images),
    channels 1 for an operand that is one scalar for all."""

    def __init__(self, instruction, dtype, device):
        self.i = instruction
        self.dtype = dtype
        self.device = device
        self.table = torch.as_tensor(instruction.table, device=device).long()
        self.prepare()

    def prepare(self):
        pass

    def tensor(self, values):
        return None if values is None else self.as_value(torch.as_tensor(values))

    def as_value(self, values):
        return values.to(self.device, self.dtype)

    def __call__(self, arena, rows):
        table = self.table[rows]
        self.store(arena, table[:, 0], self.compute(arena, table))

    def store(self, arena, slots, values):
        channels = torch.arange(values.shape[1], device=self.device)
        arena[slots[:, None] + channels] = values

    def read(self, arena, table, column):
        """What the column of operands reads; 0 where a cell is absent."""
        columns, slots = self.i.columns[column], table[:, 1 + column]
        channels = columns.channel + torch.arange(columns.count, device=self.device)
        values = arena[slots.clamp(min=0)[:, None] + channels]
        return torch.where((slots < 0)[:, None, None], 0.0, values)

    def read_all(self, arena, table, columns):
        return [self.read(arena, table, column) for column in columns]

    def evaluate(self, arena, table, acc, operands):
        """The straight-line program `code`."""
        nch, temporaries = self.i.nch, {}

        def value(argument):
            kind, *at = argument
            if kind == "tmp":
                return temporaries[at[0]]
            if kind == "acc":
                return acc[:, at[0] : at[0] + nch]
            if kind == "const":
                return self.consts[at[0], at[1] : at[1] + nch][:, None]
            operand, column = operands[at[0]], self.i.columns[self.first_operand + at[0]]
            return operand if column.broadcast else operand[:, at[1] : at[1] + nch]

        rows, images = (acc if acc is not None else operands[0]).shape[::2]
        main, first_side = None, table.shape[1] - len(self.i.sides)
        for function, (kind, *at), arguments in self.i.code:
            result = _FUNCTIONS[function](*map(value, arguments))
            if kind == "tmp":
                temporaries[at[0]] = result
            elif at:
                side = table[:, first_side + at[0] - 1]
                self.store(arena, side, result.expand(rows, nch, images))
            else:
                main = result.expand(rows, nch, images)
        return main


class _Linear(_Instruction):
    def prepare(self):
        self.weight, self.bias = self.tensor(self.i.weight), self.tensor(self.i.bias)
        self.consts = self.tensor(self.i.consts)
        self.first_operand = self.i.taps + self.i.adds

    def compute(self, arena, table):
        i = self.i
        images = arena.shape[1]
        acc = torch.zeros(len(table), i.nacc, images, dtype=self.dtype, device=self.device)
        if self.bias is not None:
            acc = acc + self.bias[:, None]
        for add in self.read_all(arena, table, range(i.taps, i.taps + i.adds)):
            acc = acc + add
        if i.taps:
            taps = torch.cat(self.read_all(arena, table, range(i.taps)), 1)
            acc = acc + torch.einsum("rkb,kn->rnb", taps, self.weight)
        if i.epilogue == "none":
            return acc
        if i.epilogue == "relu":
            return acc.relu()
        if i.epilogue == "code":
            operands = range(self.first_operand, len(i.columns))
            return self.evaluate(arena, table, acc, self.read_all(arena, table, operands))
        if i.epilogue == "gate_both":
            self.store(arena, table[:, -1], acc)
        a, b = acc.split(i.nch, 1)
        return a.tanh() * b.sigmoid()


class _Map(_Instruction):
    first_operand = 0

    def prepare(self):
        self.consts = self.tensor(self.i.consts)

    def compute(self, arena, table):
        return self.evaluate(
            arena, table, None, self.read_all(arena, table, range(len(self.i.columns)))
        )


class _Gather(_Instruction):
    def compute(self, arena, table):
        columns, channels = torch.as_tensor(self.i.pick, device=self.device).long().unbind(1)
        return arena[table[:, 1:][:, columns] + channels]


class _Lookup(_Instruction):
    def prepare(self):
        self.lookup = self.tensor(self.i.lookup)

    def compute(self, arena, table):
        index = self.read(arena, table, 0)[:, 0]
        found = self.lookup[index.round().nan_to_num().long().clamp(0, len(self.lookup) - 1)]
        return torch.where(index.isnan()[..., None], float("nan"), found).transpose(1, 2)


class _Row(_Instruction):
    """Absent scalars take no part; those of a result with as many channels are 0."""

    def prepare(self):
        self.args = {
            name: self.tensor(value) if hasattr(value, "shape") else value
            for name, value in self.i.args.items()
        }

    def compute(self, arena, table):
        columns = range(len(self.i.columns))
        row = torch.cat(self.read_all(arena, table, columns), 1)
        counts = torch.tensor([c.count for c in self.i.columns], device=self.device)
        absent = (table[:, 1 : 1 + len(columns)] < 0).repeat_interleave(counts, 1)[:, :, None]
        return getattr(self, self.i.function)(row, absent, (~absent).sum(1, keepdim=True))

    def softmax(self, row, absent, count):
        weights = row.masked_fill(absent, -torch.inf).softmax(1)
        return weights.masked_fill(absent, 0)

    def log_softmax(self, row, absent, count):
        return row.masked_fill(absent, -torch.inf).log_softmax(1)

    def sum(self, row, absent, count):
        return row.sum(1, keepdim=True)

    def mean(self, row, absent, count):
        return row.sum(1, keepdim=True) / count

    def amax(self, row, absent, count):
        return row.masked_fill(absent, -torch.inf).amax(1, keepdim=True)

    def amin(self, row, absent, count):
        return row.masked_fill(absent, torch.inf).amin(1, keepdim=True)

    def prod(self, row, absent, count):
        return row.masked_fill(absent, 1).prod(1, keepdim=True)

    def variance(self, row, absent, count):
        centred = (row - self.mean(row, absent, count)).masked_fill(absent, 0)
        return centred.square().sum(1, keepdim=True) / (count - self.args["correction"])

    def layer_norm(self, row, absent, count):
        centred = (row - self.mean(row, absent, count)).masked_fill(absent, 0)
        variance = centred.square().sum(1, keepdim=True) / count
        out = centred * torch.rsqrt(variance + self.args["eps"])
        if self.args.get("weight") is not None:
            out = out * self.args["weight"][:, None]
        if self.args.get("bias") is not None:
            out = out + self.args["bias"][:, None]
        return out.masked_fill(absent, 0)


class _Dot(_Instruction):
    def compute(self, arena, table):
        a, b = self.read_all(arena, table, range(2))
        return (a * b).sum(1, keepdim=True)


class _Mix(_Instruction):
    def compute(self, arena, table):
        terms = len(self.i.columns) // 2
        out = 0
        for term in range(terms):
            out = out + self.read(arena, table, term) * self.read(arena, table, terms + term)
        return out


class _Attention(_Instruction):
    def prepare(self):
        self.pairs = torch.as_tensor(self.i.pairs, device=self.device).long()

    def compute(self, arena, table):
        query, key, value = self.i.columns
        rows = []
        for _, slot, first, count in table.tolist():
            keys, values = self.pairs[first : first + count].unbind(1)
            q = arena[slot + query.channel :][: query.count]
            k, v = self.cells(arena, keys, key), self.cells(arena, values, value)
            weights = (torch.einsum("db,jdb->jb", q, k) * self.i.args["scale"]).softmax(0)
            rows.append(torch.einsum("jb,jdb->db", weights, v))
        return torch.stack(rows)

    def cells(self, arena, slots, column):
        channels = column.channel + torch.arange(column.count, device=self.device)
        return arena[slots[:, None] + channels]


_KINDS = {
    "linear": _Linear,
    "map": _Map,
    "gather": _Gather,
    "lookup": _Lookup,
    "row": _Row,
    "dot": _Dot,
    "mix": _Mix,
    "attention": _Attention,
}


def _comparison(function):
    return lambda a, b: function(a, b).to(torch.promote_types(a.dtype, b.dtype))


_FUNCTIONS = {
    "copy": lambda a: a,
    "elu": torch.nn.functional.elu,
    "relu": torch.relu,
    "where": lambda c, a, b: torch.where(c != 0, a, b),
    **{
        name: getattr(torch, name)
        for name in (
            "tanh sigmoid exp expm1 log log1p sqrt rsqrt reciprocal abs neg sign floor ceil round "
            "sin cos erf add sub mul div maximum minimum pow"
        ).split()
    },
    **{name: _comparison(getattr(torch, name)) for name in "eq ne lt le gt ge".split()},
}
