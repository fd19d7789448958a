"""The Triton kernels in Triton's interpreter, on CPU tensors, in a process of their own:

    python -m pytest tests/triton_kernels

Triton reads TRITON_INTERPRET when a kernel is defined; it must be set before Triton is imported.
"""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

if os.environ.get("TRITON_INTERPRET", "1") != "1" or (
    "TRITON_INTERPRET" not in os.environ and sys.modules.get("triton") is not None
):
    raise pytest.UsageError(
        "these tests need Triton's interpreter, which is switched off, or Triton was imported "
        "before it was on; run `TRITON_INTERPRET=1 python -m pytest tests/triton_kernels`"
    )
os.environ["TRITON_INTERPRET"] = "1"
INSTALLED = importlib.util.find_spec("triton") is not None
# these import kernels; test_aot.py stays, to say why nothing ran
collect_ignore_glob = [] if INSTALLED else ["test_triton_*.py"]


def pytest_collection_modifyitems(items):
    if not INSTALLED:
        reason = "Triton is not installed (it has no wheel for this platform, or was left out)"
        for item in items:
            if item.path.parent == Path(__file__).parent:
                item.add_marker(pytest.mark.skip(reason=reason))
