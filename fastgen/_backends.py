"""What is built, what would run and why: the only place that knows.

An op is one dispatcher schema with a kernel per backend:

- "reference": plain PyTorch, every device; the op's default kernel.
- "cpu": C++, registered under the CPU key by fastgen._C.
- "cuda": CUDA C++, registered under the CUDA key by fastgen._C when it was built with CUDA.
- "triton": registered here under the CUDA key when no CUDA C++ kernel holds it.

Forcing a backend registers its kernels over the CPU and CUDA keys, so that autograd, backward ops
and torch.compile follow without a check per call. A forced backend that cannot run raises.
"""

import contextlib
import functools
import importlib
import importlib.util
import os
import warnings
from dataclasses import dataclass

import torch

from fastgen import _load

NAMES = ("reference", "cpu", "cuda", "triton")
_KEYS = ("CPU", "CUDA")
_library = torch.library.Library("fastgen", "FRAGMENT")
_ops: dict[str, "_Op"] = {}
_forced: list[str] = []  # innermost last; only the last one's kernels are registered
_layer: torch.library.Library | None = None  # the registrations of _forced[-1]


@dataclass(frozen=True)
class Backend:
    """One backend of one op. `runs_on` holds the devices it would serve now."""

    name: str
    available: bool
    runs_on: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class _Op:
    stem: str
    reference: callable
    triton: str | None  # "module:function" below fastgen.kernels
    example: callable  # device -> small arguments, or None
    has_cpp: dict  # key -> whether fastgen._C registered a kernel


def define(schema, reference, *, stem=None, triton=None, example=None, every_device=False, tags=()):
    """Defines `fastgen::<schema>` with its reference kernel and, on CUDA, its Triton kernel.

    `triton` names the launcher as "module:function" below fastgen.kernels; it is imported when
    first used. `stem` is the public op a helper op (such as a backward) belongs to.
    `example(device)` makes small arguments for the self-test of `fastgen info`. A helper that does
    no arithmetic has one kernel for every device and backend (`every_device`). `tags` are torch's.
    """
    name = schema[: schema.index("(")]
    _library.define(schema, tags=tags)
    if every_device:
        _library.impl(name, reference, "CompositeExplicitAutograd")
        return getattr(torch.ops.fastgen, name).default
    has_cpp = {
        key: torch._C._dispatch_has_kernel_for_dispatch_key(f"fastgen::{name}", key)
        for key in _KEYS
    }
    op = _ops[name] = _Op(stem or name, reference, triton, example, has_cpp)
    _library.impl(name, _announced_reference(name, reference), "CompositeExplicitAutograd")
    if triton is not None and not has_cpp["CUDA"] and _triton_installed():
        _library.impl(name, _launcher(op), "CUDA")
    return getattr(torch.ops.fastgen, name).default


def _announced_reference(name, reference):
    """The reference as a fallback: right, slow, and said once."""

    @functools.wraps(reference)
    def run(*args):
        _warn_reference_runs(_ops[name].stem)
        return reference(*args)

    return run


@functools.cache
def _warn_reference_runs(stem):
    reason = _load.MISSING or "this device has no kernel of its own"
    warnings.warn(f"fastgen.{stem}: running the plain PyTorch reference: {reason}", stacklevel=4)


@functools.cache
def _triton_installed():
    return importlib.util.find_spec("triton") is not None


def _interpreting():
    return os.environ.get("TRITON_INTERPRET") == "1"


def _launcher(op):
    module, _, function = op.triton.partition(":")

    def launch(*args):
        return getattr(importlib.import_module(f"fastgen.kernels.{module}"), function)(*args)

    return launch


def _unavailable(op, name, key):
    """Why backend `name` cannot serve dispatch key `key` for `op`; "" if it can."""
    if name == "reference":
        return ""
    if name in ("cpu", "cuda"):
        if key != name.upper():
            return f"it serves {name} tensors only"
        if op.has_cpp[key]:
            return ""
        if name == "cpu":
            return _load.MISSING or "it has no C++ kernel"
        if _load.EXTENSION is not None and _load.EXTENSION.cuda_build() is not None:
            return "it has no CUDA C++ kernel"
        return _load.MISSING or "fastgen was built without CUDA"
    if op.triton is None:
        return "it has no Triton kernel"
    if not _triton_installed():
        return "Triton is not installed"
    if key == "CPU" and not _interpreting():
        return "Triton runs on a GPU (or, slowly, under TRITON_INTERPRET=1)"
    return ""


def _natural(op, key):
    """The backend that serves `key` when none is forced."""
    if op.has_cpp[key]:
        return key.lower()
    if key == "CUDA" and not _unavailable(op, "triton", key):
        return "triton"
    return "reference"


def backends(stem):
    """The backends of one op: which exist, which would run on which device, and why not the others.

    Args:
        stem: the op's name, such as "masked_conv2d".

    Returns:
        A list of Backend(name, available, runs_on, why), one for each of reference, cpu, cuda,
        triton.

    Raises:
        ValueError: no op has that name.
    """
    op = _ops.get(stem)
    if op is None or op.stem != stem:
        known = ", ".join(stems())
        raise ValueError(f"fastgen.backends: stem must be one of {known}, got {stem!r}")
    keys = _KEYS if torch.cuda.is_available() else _KEYS[:1]
    rows = []
    for name in NAMES:
        reasons = {key: _unavailable(op, name, key) for key in _KEYS}
        available = not all(reasons.values())
        runs_on = tuple(key.lower() for key in keys if _serving(op, key) == name)
        home = "CPU" if name in ("reference", "cpu") else "CUDA"
        if runs_on:
            why = "runs" + (" (forced)" if _forced else "")
        elif not available:
            why = reasons[home]
        elif _forced:
            why = f"{_forced[-1]} is forced"
        elif name == "reference":
            why = "a kernel is faster; force it with fastgen.use_backend('reference')"
        else:
            why = "no GPU is visible" if home not in keys else "another backend comes first"
        rows.append(Backend(name, available, runs_on, why))
    return rows


def _serving(op, key):
    if not _forced:
        return _natural(op, key)
    name = _forced[-1]
    return None if _unavailable(op, name, key) else name


def self_test(name, device):
    """The largest difference between op `name` and its reference, relative to the largest value,
    on its example arguments."""
    arguments, again = _ops[name].example(device), _ops[name].example(device)
    got = getattr(torch.ops.fastgen, name)(*arguments)
    want = _ops[name].reference(*again)
    # also what it has written into its arguments
    pairs = zip(_tensors((got, arguments)), _tensors((want, again)), strict=True)
    return max(_relative_difference(g, w) for g, w in pairs if w.numel())


def _tensors(nested):
    if isinstance(nested, torch.Tensor):
        yield nested
    elif isinstance(nested, (tuple, list)):
        for part in nested:
            yield from _tensors(part)


def _relative_difference(got, want):
    got, want = got.double(), want.double()
    return ((got - want).abs().max() / want.abs().max().clamp_min(1)).item()


def self_tested():
    """The names of the ops that have example arguments."""
    return sorted(name for name, op in _ops.items() if op.example is not None)


def stems():
    """The names of the library's public ops."""
    return sorted({op.stem for op in _ops.values()})


def _apply_forced():
    """Registers the kernels of the innermost forced backend, after dropping the former ones."""
    global _layer
    if _layer is not None:
        _layer._destroy()
        _layer = None
    if not _forced:
        return
    name = _forced[-1]
    _layer = torch.library.Library("fastgen", "IMPL")
    for op_name, op in _ops.items():
        for key in _KEYS:
            reason = _unknown(name) or _unavailable(op, name, key)
            if reason:
                kernel = _refuse(op.stem, name, key, reason)
            elif name == "reference":
                kernel = op.reference
            elif name == "triton":
                kernel = _launcher(op)
            else:
                continue  # fastgen._C holds this key
            with warnings.catch_warnings():  # replacing a kernel is the purpose here
                warnings.simplefilter("ignore")
                _layer.impl(op_name, kernel, key, allow_override=True)


def _unknown(name):
    return "" if name in NAMES else f"there are only {', '.join(NAMES)}"


def _refuse(stem, name, key, reason):
    def refuse(*args):
        raise RuntimeError(
            f"fastgen.{stem}: backend {name!r} is forced and cannot run on {key.lower()} tensors: "
            f"{reason}"
        )

    return refuse


def forced():
    """The name of the backend in force for all ops, or None."""
    return _forced[-1] if _forced else None


@contextlib.contextmanager
def use_backend(name):
    """Forces one backend ("reference", "cpu", "cuda" or "triton") for all ops inside the block.

    A tensor that backend cannot serve raises RuntimeError; nothing falls back silently. Process
    wide, not per thread. FASTGEN_BACKEND in the environment does the same for a whole process.

    Raises:
        ValueError: unknown name.
        RuntimeError: no op of the library has that backend here, with the reason.
    """
    if _unknown(name):
        raise ValueError(
            f"fastgen.use_backend: name must be one of {', '.join(NAMES)}, got {name!r}"
        )
    if all(_unavailable(op, name, key) for op in _ops.values() for key in _KEYS):
        reason = _unavailable(next(iter(_ops.values())), name, "CPU" if name == "cpu" else "CUDA")
        raise RuntimeError(f"fastgen.use_backend: backend {name!r} cannot run: {reason}")
    _forced.append(name)
    _apply_forced()
    try:
        yield
    finally:
        _forced.pop()
        _apply_forced()


def force_from_environment():
    """Honours FASTGEN_BACKEND; called once, when all ops are defined. An unknown name is told at
    the first call of an op, because an import never fails."""
    name = os.environ.get("FASTGEN_BACKEND")
    if name:
        _forced.append(name)
        _apply_forced()
