"""Gives each row of a benchmark's tables to pytest: `measured` is the row, taken after its check.

pytest-benchmark then times our step once more, alone, for its own histories. What compares us with
others, in turns, stands in the `extra_info` of its JSON and in the tables printed at the end;
`--results DIR` keeps these as Markdown and JSON. `fastgen bench` is the same without pytest.
"""

import time

import pytest

from fastgen import bench
from fastgen.benchmarks import measure

_tables = pytest.StashKey()  # benchmark -> [(table, its rows so far)]


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="short and without torch.compile")
    parser.addoption("--full", action="store_true", help="also the tables over many shapes")
    parser.addoption("--results", metavar="DIR", help="folder for the tables and all figures")


def pytest_configure(config):
    config.stash[_tables] = {}


def pytest_generate_tests(metafunc):
    if "measured" not in metafunc.fixturenames:
        return
    option = metafunc.config.getoption
    effort = measure.Effort(quick=option("--quick"), full=option("--full"), threads=1)
    tables = [(table, {}) for table in metafunc.module.tables(effort)]
    name = metafunc.module.__name__.rpartition("bench_")[2]
    metafunc.config.stash[_tables][name] = tables
    cases = [(table, rows, case) for table, rows in tables for case in table.cases]
    metafunc.parametrize("measured", cases, ids=[case for *_, case in cases], indirect=True)


def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=time.process_time, min_rounds=3, max_time=0.1))


@pytest.fixture
def measured(request, benchmark):
    table, rows, case = request.param
    row = rows[case] = table.cases[case]()
    benchmark.group = table.title
    benchmark.extra_info |= row.values
    with measure.threads(1):
        yield row


def pytest_terminal_summary(terminalreporter, config):
    for name, tables in config.stash[_tables].items():
        reports = [table.report(rows) for table, rows in tables if rows]
        for report in reports:
            terminalreporter.section(report["title"])
            terminalreporter.write("\n".join([*report["markdown"], "", report["note"], ""]))
        if reports and config.getoption("--results"):
            part = {"machine": measure.machine(), "tables": reports}
            command = f"pytest benchmarks/bench_{name}.py"
            bench.keep({"name": name, "command": command, "parts": [part]}, config.option.results)
