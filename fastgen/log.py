"""The training log: a CSV file that a crash cannot tear and resuming continues."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

from fastgen.checkpoint import write_atomically


class Log:
    """A CSV file that grows by whole lines; rows after step `keep` are dropped on opening."""

    def __init__(self, path: Path, columns: list[str], *, keep: int):
        self.path, self.columns = path, columns
        rows = [row for row in read_log(path) if row["step"] <= keep] if path.exists() else []
        text = "".join(map(self._line, [dict(zip(columns, columns, strict=True)), *rows]))
        write_atomically(path, text.encode())

    def append(self, row: dict) -> None:
        # one write on a descriptor in append mode: a crash leaves the whole line or nothing
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(handle, self._line(row).encode())
        finally:
            os.close(handle)

    def _line(self, row: dict) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self.columns, lineterminator="\n").writerow(row)
        return text.getvalue()


def read_log(path: str | os.PathLike) -> list[dict[str, float]]:
    """The rows of a log.csv."""
    with open(path, newline="") as file:
        return [
            {k: int(v) if k == "step" else float(v) for k, v in row.items()}
            for row in csv.DictReader(file)
        ]
