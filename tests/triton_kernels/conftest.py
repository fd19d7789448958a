"""The Triton kernels in Triton's interpreter, on CPU tensors, in a process of their own:

    python -m pytest tests/triton_kernels

Triton reads TRITON_INTERPRET when a kernel is defined; it must be set before Triton is imported.
"""

import importlib.util
import os
from pathlib import Path

import pytest

os.environ.setdefault("TRITON_INTERPRET", "1")
INSTALLED = importlib.util.find_spec("triton") is not None
# these import kernels; test_aot.py stays, to say why nothing ran
collect_ignore_glob = [] if INSTALLED else ["test_triton_*.py"]

if INSTALLED:
    import triton

    if not triton.knobs.runtime.interpret:
        raise pytest.UsageError(
            "these tests need Triton's interpreter, and something imported Triton before it could "
            "be switched on; run `TRITON_INTERPRET=1 python -m pytest tests/triton_kernels`"
        )


def pytest_collection_modifyitems(items):
    if not INSTALLED:
        reason = "Triton is not installed (it has no wheel for this platform, or was left out)"
        for item in items:
            if item.path.parent == Path(__file__).parent:
                item.add_marker(pytest.mark.skip(reason=reason))
