"""Loads the compiled extension if it is there, and remembers in one sentence why not."""

import importlib

EXTENSION = None
MISSING = None  # why EXTENSION is None

try:
    EXTENSION = importlib.import_module("fastgen._C")
except ModuleNotFoundError:
    MISSING = (
        "the compiled kernels are not built; install a C++ compiler and run "
        "`pip install .` (or `python setup.py build_ext --inplace` in a checkout)"
    )
except ImportError as error:
    import torch

    MISSING = (
        f"the compiled kernels do not load with torch {torch.__version__} "
        f"({str(error).splitlines()[0]}); rebuild fastgen against this torch with `pip install .`"
    )
