"""The ahead-of-time gate (aot.py, in a process without the interpreter): it passes on a few kernels
and sees planted faults. CI runs it on all of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

AOT = Path(__file__).with_name("aot.py")
CASE = "bf16 gate 64x8 plain"
WITH_TILES_TOO_LARGE = """
import sys
sys.path[:0] = sys.argv.pop(1), sys.argv.pop(1)
from fastgen.kernels import gated_activation
gated_activation.SMALL = 128, 64
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


def test_the_gate_sees_kernels_that_got_worse_than_their_rows(tmp_path):
    table = tmp_path / "table.json"
    assert run(AOT, "--only", CASE, "--table", table, "--write").returncode == 0
    versions = json.loads(table.read_text())
    first, second, third, *_ = (row for rows in versions.values() for row in rows.values())
    first["registers"] -= 1
    second["shared"] -= 1
    third["HGMMA"] = 1
    table.write_text(json.dumps(versions))
    done = run(AOT, "--only", CASE, "--table", table)
    assert done.returncode == 1 and done.stdout.count("FAULT") == 3
    for fault in ("registers", "shared", "no HGMMA instruction"):
        assert f": {fault}" in done.stdout


def test_the_gate_sees_spills(tmp_path):
    paths = AOT.parents[2], AOT.parent
    arguments = "--only", CASE, "--table", tmp_path / "none.json"
    done = run("-c", WITH_TILES_TOO_LARGE, *paths, *arguments)
    assert done.returncode == 1 and "spills" in done.stdout, done.stdout + done.stderr
