"""`fastgen bench`: runs benchmarks, prints their tables, and keeps them as Markdown and JSON.

A benchmark is a module `bench_<name>` of the folder benchmarks/ with

    tables(effort) -> Iterator[Table]     what to measure; see benchmarks/measure.py and table.py
    ALSO_AT: tuple[str, ...]              lower CPU levels whose tables belong to the answer
"""

from __future__ import annotations

import ast
import importlib
import json as json_format
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from fastgen import benchmarks

LEVELS = ("default", "avx2", "avx512")  # ascending
# A level holds PyTorch and its oneDNN to the same instructions.
_HELD = {
    "default": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "avx512": {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "DEFAULT"},
}


def main(
    names: Sequence[str] = (),
    *,
    quick: bool = False,
    full: bool = False,
    threads: int = 2,
    isa: Literal["default", "avx2", "avx512"] | None = None,
    json: str | None = None,
    markdown: str | None = None,
    out: str | None = None,
) -> int:
    """Measures ops against PyTorch and prints the tables.

    Results are compared with float64 before anything is timed: a row whose results are wrong has
    no figures, and makes the exit code 1.

    names: benchmarks to run; none lists them.
    quick: a few seconds a table, no torch.compile, one thread: shows that it runs, not how fast.
    full: also the tables over many shapes, which take long.
    threads: of the tables about several threads; 1 leaves them out.
    isa: hold fastgen and PyTorch to this CPU level; default is the machine's own, and after it the
        lower ones that the benchmark has goals for.
    json: a file for all figures.
    markdown: a file for the tables.
    out: a folder that gets both for each benchmark, as NAME-CPU.md and .json; those of the
        repository stand in benchmarks/results.

    Raises ValueError for an unknown name.
    """
    known = available()
    if not names:
        print("benchmarks, for `fastgen bench NAME`:")
        for name, summary in known.items():
            print(f"  {name:<22}{summary}")
        return 0
    for name in names:
        if name not in known:
            raise ValueError(
                f"fastgen.bench: names must be of {', '.join(known)}, got {name!r}; "
                "`fastgen bench` lists them"
            )
    flags = {"quick": quick, "full": full, "threads": threads}
    reports = [_report(name, flags, isa) for name in names]
    if json is not None:
        _write(Path(json), _as_json(reports))
    if markdown is not None:
        _write(Path(markdown), _as_markdown(reports))
    for report in reports if out is not None else ():
        keep(report, out)
    tables = [t for report in reports for part in report["parts"] for t in part["tables"]]
    return int(any(row["wrong"] is not None for table in tables for row in table["rows"]))


def keep(report: dict, folder: str | os.PathLike) -> None:
    """Writes a report as NAME-CPU.md and NAME-CPU.json into a folder."""
    stem = f"{report['name']}-{_slug(report['parts'][0]['machine']['cpu'])}"
    _write(Path(folder, f"{stem}.md"), _as_markdown([report]))
    _write(Path(folder, f"{stem}.json"), _as_json([report]))


def available() -> dict[str, str]:
    """name -> first sentence of each benchmark there is, without importing them."""
    found = {}
    for module in pkgutil.iter_modules(benchmarks.__path__):
        if module.name.startswith("bench_"):
            source = Path(module.module_finder.path, f"{module.name}.py").read_text("utf-8")
            summary = " ".join((ast.get_docstring(ast.parse(source)) or "").split())
            found[module.name.removeprefix("bench_")] = summary
    return dict(sorted(found.items()))


def _report(name: str, flags: dict, isa: str | None) -> dict:
    """All tables of one benchmark: {name, command, parts: [{machine, tables}]}, one part for each
    CPU level."""
    from fastgen.benchmarks import measure

    if isa is not None:
        parts = [_measure_held(name, flags, isa)]
    else:
        own = measure.isa()
        lower = LEVELS[: LEVELS.index(own)] if own in LEVELS else ()
        parts = [_measure(_module(name), flags)] + [
            _measure_held(name, flags | {"threads": 1, "full": False}, level)
            for level in _module(name).ALSO_AT
            if level in lower
        ]
    return {"name": name, "command": _command(name, flags, isa), "parts": parts}


def _measure(module, flags: dict) -> dict:
    """Measures in this process, and prints each row when it is there."""
    from fastgen.benchmarks import measure

    machine = measure.machine()
    print(f"\n{_machine_lines(machine)}", flush=True)
    tables = []
    for table in module.tables(measure.Effort(**flags)):
        print(f"\n{table.title}\n", *table.heading(), sep="\n", flush=True)
        rows = {}
        for name, measure_row in table.cases.items():
            rows[name] = _row_or_what_is_wrong(measure_row)
            print(table.line(name, rows[name]), flush=True)
        if table.note:
            print(f"\n{table.note}", flush=True)
        tables.append(table.report(rows))
    return {"machine": machine, "tables": tables}


def _row_or_what_is_wrong(measure_row):
    from fastgen.benchmarks.table import Row

    try:
        return measure_row()
    except AssertionError as error:
        return Row({}, wrong=str(error))


def _measure_held(name: str, flags: dict, isa: str) -> dict:
    """Measures in a process of its own: CPU levels are chosen once, when libraries load."""
    package = str(Path(__file__).resolve().parents[1])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, **_held(isa), "PYTHONPATH": os.pathsep.join(paths)}
    code = "import sys; from fastgen.bench import _measure_into; _measure_into(*sys.argv[1:])"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "part.json")
        words = [sys.executable, "-c", code, name, json_format.dumps(flags), str(path)]
        done = subprocess.run(words, env=environment)
        if done.returncode:
            raise RuntimeError(
                f"fastgen.bench: {name} held to {isa} failed with exit code {done.returncode}"
            )
        return json_format.loads(path.read_text("utf-8"))


def _measure_into(name: str, flags: str, path: str) -> None:
    part = _measure(_module(name), json_format.loads(flags))
    Path(path).write_text(json_format.dumps(part), "utf-8")


def _module(name: str):
    return importlib.import_module(f"fastgen.benchmarks.bench_{name}")


def _held(isa: str) -> dict[str, str]:
    return {"FASTGEN_ISA": isa, **_HELD[isa]}


def _command(name: str, flags: dict, isa: str | None) -> str:
    words = ["fastgen", "bench", name, *(f"--{flag}" for flag in ("quick", "full") if flags[flag])]
    words += [] if flags["threads"] == 2 else ["--threads", str(flags["threads"])]
    return " ".join(words + (["--isa", isa] if isa else []))


def _machine_lines(machine: dict[str, str]) -> str:
    return "\n".join(f"- {what}: {value}" for what, value in machine.items())


def _as_json(reports: list[dict]) -> str:
    return json_format.dumps(reports, indent=1) + "\n"


def _as_markdown(reports: list[dict]) -> str:
    text = []
    for report in reports:
        text.append(f"# {report['name']}\n\n`{report['command']}`")
        for part in report["parts"]:
            text.append(_machine_lines(part["machine"]))
            for table in part["tables"]:
                text += [f"## {table['title']}", "\n".join(table["markdown"])]
                text += [table["note"]] if table["note"] else []
    return "\n\n".join(text) + "\n"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    print(f"wrote {path}")


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
