"""Measurements that need a Python process of their own: settings that libraries read once, and how
much memory a call takes."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import fastgen

_CODE = "import sys; from fastgen.benchmarks.own_process import _answer; _answer(*sys.argv[1:])"


def in_own_process(function: Callable, *arguments, **environment: str):
    """``function(*arguments)`` in a fresh process with these variables in its environment.

    Args:
        function: of a module of fastgen.benchmarks; its arguments and result have a form in JSON.

    Raises:
        AssertionError: the function raised one.
        RuntimeError: the process failed.
    """
    package = str(Path(fastgen.__file__).resolve().parents[1])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, **environment, "PYTHONPATH": os.pathsep.join(paths)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "answer.json")
        where = [function.__module__, function.__qualname__, json.dumps(arguments), str(path)]
        done = subprocess.run([sys.executable, "-c", _CODE, *where], env=environment)
        if done.returncode:
            raise RuntimeError(
                f"fastgen.bench: {function.__qualname__}{arguments} failed in a process of its own "
                f"with exit code {done.returncode}"
            )
        answer = json.loads(path.read_text("utf-8"))
    if "wrong" in answer:
        raise AssertionError(answer["wrong"])
    return answer["result"]


def _answer(module: str, function: str, arguments: str, path: str) -> None:
    try:
        result = getattr(importlib.import_module(module), function)(*json.loads(arguments))
        answer = {"result": result}
    except AssertionError as error:
        answer = {"wrong": str(error)}
    Path(path).write_text(json.dumps(answer), "utf-8")


def extra_megabytes(call: Callable[[], object]) -> float | None:
    """By how much `call` raises the peak of this process's resident memory, less what its results
    keep; None where the system does not tell. To be asked once a process."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before would be taken again unseen
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = _status("VmRSS")
        results = call()
        grown = _status("VmHWM") - before
    except (OSError, AttributeError):
        return None
    kept = results if isinstance(results, tuple) else (results,)
    return grown / 2**20 - sum(t.numel() * t.element_size() for t in kept) / 2**20


def _status(key: str) -> int:
    """Bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) << 10
    raise OSError(f"no {key}")
