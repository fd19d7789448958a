"""Tables of figures: rows that measure themselves, goals beside what was reached."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Row:
    """One measured row.

    values: column key -> number, word or None.
    goals: column key -> least value aimed at.
    most: column key -> largest value aimed at, where less is better.
    bounds: column key -> most the measured limit leaves possible; said beside goals beyond it.
    step: the function the row is about, for whoever wants to time it again.
    wrong: what is wrong with the results; such a row has no figures.
    """

    values: dict[str, float | str | None]
    goals: dict[str, float] = field(default_factory=dict)
    bounds: dict[str, float] = field(default_factory=dict)
    step: Callable[[], object] | None = None
    wrong: str | None = None
    most: dict[str, float] = field(default_factory=dict)

    @property
    def missed(self) -> list[str]:
        """The keys of the columns that were measured and do not reach their goal."""
        measured = {k: v for k, v in self.values.items() if isinstance(v, float)}
        below = [k for k, goal in self.goals.items() if measured.get(k, goal) < goal]
        return below + [k for k, goal in self.most.items() if measured.get(k, goal) > goal]


@dataclass(frozen=True)
class Table:
    """A table not yet measured.

    title, note: what is compared, and how to read it.
    columns: key -> (heading, format). "{:.2f}" formats are rounded to the worse side: 0.879 has
        not reached 0.88.
    cases: row name -> function that measures the row; it raises AssertionError when a result is
        wrong, before anything is timed.
    """

    title: str
    columns: dict[str, tuple[str, str]]
    cases: dict[str, Callable[[], Row]]
    note: str = ""

    def heading(self) -> list[str]:
        """The first two lines of the Markdown."""
        headings = [heading for heading, _ in self.columns.values()]
        rules = ["-" * (width - 1) + ":" for width in self._widths()[1:]]
        return [self._line("case", headings), self._line("-" * self._widths()[0], rules)]

    def line(self, name: str, row: Row) -> str:
        """The line of one measured case."""
        if row.wrong is not None:
            return f"| {name.ljust(self._widths()[0])} | WRONG: {row.wrong} |"
        return self._line(name, [self._cell(row, key) for key in self.columns])

    def report(self, rows: dict[str, Row]) -> dict:
        """Everything about the table and its rows, for JSON."""
        return {
            "title": self.title,
            "note": self.note,
            "markdown": self.heading() + [self.line(name, row) for name, row in rows.items()],
            "rows": [
                {
                    "case": name,
                    "values": row.values,
                    "goals": row.goals,
                    "most": row.most,
                    "bounds": row.bounds,
                    "wrong": row.wrong,
                }
                for name, row in rows.items()
            ],
        }

    def _widths(self) -> list[int]:
        names = max(map(len, ["case", *self.cases]))
        return [names, *(max(len(heading), 8) for heading, _ in self.columns.values())]

    def _line(self, name: str, cells: list[str]) -> str:
        first, *widths = self._widths()
        padded = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        return f"| {name.ljust(first)} | {' | '.join(padded)} |"

    def _cell(self, row: Row, key: str) -> str:
        value, goal = row.values.get(key), row.goals.get(key, row.most.get(key))
        if value is None:
            return ""
        text = value
        if not isinstance(value, str):
            text = _formatted(self.columns[key][1], value, up=key in row.most)
        if goal is None:
            return text
        if isinstance(value, str):
            return f"{text} ({goal:g})"
        bound = row.bounds.get(key, math.inf)
        limit = f", limit {bound:.1f}" if bound < goal else ""
        return f"{text} ({goal:g}{limit}) {'✗' if key in row.missed else '✓'}"


def _formatted(style: str, value: float, up: bool) -> str:
    if ".2f" in style and math.isfinite(value):
        value = (math.ceil if up else math.floor)(value * 100) / 100
    return style.format(value)
