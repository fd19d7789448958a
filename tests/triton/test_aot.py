"""The ahead-of-time gate (aot.py, in a process without the interpreter): it passes on a few kernels
and sees planted faults. CI runs it on all of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

AOT = Path(__file__).with_name("aot.py")
CASE = "bf16 gate 64x8 plain"
WITH_A_TILE_OF_ONE_WARP = """
import sys
sys.path[:0] = sys.argv.pop(1), sys.argv.pop(1)
from fastgen.kernels import masked_conv2d
masked_conv2d.TILES[2] = masked_conv2d._tiles((128, 128, 64, 1, 2))
import aot
sys.exit(aot.main())
"""


def run(*command):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = sys.executable, "-W", "ignore", *map(str, command), "--jobs", "1"
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_kernels_keep_their_resources():
    done = run(AOT, "--only", CASE)
    assert done.returncode == 0 and " 0 faults" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(
    "column, change, fault",
    [
        ("registers", -1, "registers"),
        ("shared", -1, "shared"),
        ("HGMMA", 1, "no HGMMA instruction"),
    ],
)
def test_the_gate_sees_a_kernel_that_got_worse_than_its_row(tmp_path, column, change, fault):
    table = tmp_path / "table.json"
    assert run(AOT, "--only", CASE, "--table", table, "--write").returncode == 0
    versions = json.loads(table.read_text())
    row = next(row for rows in versions.values() for row in rows.values() if row["shared"])
    row[column] = row.get(column, 0) + change
    table.write_text(json.dumps(versions))
    done = run(AOT, "--only", CASE, "--table", table)
    assert done.returncode == 1 and done.stdout.count("FAULT") == 1 and fault in done.stdout


def test_the_gate_sees_spills(tmp_path):
    paths = AOT.parents[2], AOT.parent
    arguments = "--only", "f16 64", "--table", tmp_path / "none.json"
    done = run("-c", WITH_A_TILE_OF_ONE_WARP, *paths, *arguments)
    assert done.returncode == 1 and "spills" in done.stdout, done.stdout + done.stderr
