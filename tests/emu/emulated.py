"""csrc/cuda/*.cu compiled for the CPU by cuda_on_cpu.h, and their launchers called through ctypes.

As a script, `emulated.py LIBRARY < calls > results`: the same calls in a process of their own,
without torch, for libraries that a sanitizer instruments.
"""

import ctypes
import functools
import hashlib
import pickle
import subprocess
import sys
import sysconfig
import tempfile
from ctypes import Structure, c_bool, c_double, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILT = ROOT / "build" / "emu"
COMPILER = (sysconfig.get_config_var("CXX") or "g++").split()[0]
FLAGS = ["-O0", "-g1", "-std=c++17", "-fPIC", "-pthread", "-ffp-contract=off"]
FLAGS += ["-Wall", "-Werror", "-Wno-unknown-pragmas"]
# What a build finds: fibers depend on an order, an address sanitizer sees memory, and with one host
# thread for each lane a thread sanitizer sees races.
MODES = {
    "fibers": [],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread", "-DCUDA_ON_CPU_THREADS"],
}
RUNTIMES = {"address": "libasan.so", "thread": "libtsan.so"}

OPERANDS, DIMS = 5, 8
STORAGES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}  # in the order of Storage


@functools.cache
def build(source: str, mode: str = "fibers", *, edit: tuple = ()) -> Path:
    """The shared library of one .cu with its bindings. `edit`: (text, other text) of what is
    changed in the CUDA sources first, to plant a bug."""
    path = ROOT / source
    sources = [str(path)]
    if path.parent.name == "cuda":
        sources += [str(HERE / "updates.cpp"), f"-DFASTGEN_OP={path.stem.upper()}"]
    folder = _folder(path.stem, mode, sources, edit)
    library = folder / "library.so"
    if not library.exists():
        if edit:
            changed = [f for f in {path, *ROOT.glob("csrc/cuda/*.cuh")} if edit[0] in f.read_text()]
            assert len(changed) == 1, f"{edit[0]!r} stands in {changed}"
            edited = folder / "csrc" / "cuda" / changed[0].name
            edited.parent.mkdir(parents=True, exist_ok=True)
            edited.write_text(changed[0].read_text().replace(*edit))
            sources = [str(edited) if s == str(changed[0]) else s for s in sources]
        shared = ["-shared", "-x", "c++", *sources, "-x", "none", str(_scheduler(mode))]
        _compile(library, mode, folder, shared)
    return library


@functools.cache
def _scheduler(mode):
    """cuda_on_cpu.cpp, which all libraries of a mode share."""
    folder = _folder("cuda_on_cpu", mode)
    built = folder / "cuda_on_cpu.o"
    if not built.exists():
        _compile(built, mode, folder, ["-c", str(HERE / "cuda_on_cpu.cpp")])
    return built


def _folder(name, mode, *rest):
    """Where a build goes: another one for other contents of any file it may include."""
    digest = hashlib.sha256(repr((COMPILER, FLAGS, MODES[mode], rest)).encode())
    files = [*ROOT.glob("csrc/cuda/*"), ROOT / "csrc/update_rules.h", ROOT / "csrc/common/half.h"]
    for file in sorted([*files, *HERE.glob("*.h"), *HERE.glob("*.c*")]):
        digest.update(file.read_bytes())
    return BUILT / f"{name}-{mode}-{digest.hexdigest()[:16]}"


def _compile(target, mode, folder, rest):
    folder.mkdir(parents=True, exist_ok=True)
    includes = [f"-I{f}" for f in (folder / "csrc", ROOT / "csrc", HERE)]
    # a name of its own until it is whole, in case others build it, too
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as unfinished:
        command = [COMPILER, *FLAGS, *MODES[mode], *includes, *rest, "-o", unfinished.name]
        subprocess.run(command, check=True)
    Path(unfinished.name).rename(target)


class _Tensor(Structure):
    _fields_ = [
        ("data", c_void_p * OPERANDS),
        ("storage", c_int32),
        ("dims", c_int32),
        ("item_size", c_int64),
        ("sizes", c_int64 * DIMS),
        ("strides", (c_int64 * DIMS) * OPERANDS),
        ("step", c_void_p),
        ("factors", c_void_p),
    ]


def _structure(name, **fields):
    return type(name, (Structure,), {"_fields_": list(fields.items())})


SETTINGS = {
    "clip_weights_": _structure("Clip", low=c_double, high=c_double),
    "ema_update_": _structure("Ema", decay=c_double),
    "rmsprop_clip_": _structure(
        "Rmsprop", lr=c_double, alpha=c_double, eps=c_double, weight_decay=c_double,
        momentum=c_double, maximize=c_bool, low=c_double, high=c_double, grad_scale=c_double,
    ),
    "adam_clip_": _structure(
        "Adam", lr=c_double, beta1=c_double, beta2=c_double, eps=c_double, weight_decay=c_double,
        decoupled=c_bool, maximize=c_bool, low=c_double, high=c_double, grad_scale=c_double,
    ),
}  # fmt: skip
_Numbers = _structure("Numbers", **dict.fromkeys(("rate", "double_rate", "grad_scale", "found_inf"),
                                                 c_void_p))  # fmt: skip
_AdamStep = _structure("AdamStep", at=c_void_p, value=c_float)


@dataclass
class Array:
    """Memory as a kernel sees it. `contents` takes its place in another process."""

    storage: str
    sizes: tuple
    strides: tuple
    address: int = 0
    contents: bytes = b""
    misaligned: int = 0  # bytes past a multiple of 16

    def span(self) -> int:
        """Bytes from the first element to the end of the last."""
        if 0 in self.sizes:
            return 0
        last = sum((n - 1) * s for n, s in zip(self.sizes, self.strides, strict=True))
        return (last + 1) * STORAGES[self.storage]

    def __getstate__(self):
        return self.__dict__ | {
            "contents": ctypes.string_at(self.address, self.span()),
            "misaligned": self.address % 16,
        }

    def __setstate__(self, state):
        self.__dict__ |= state
        bytes_ = self.misaligned + len(self.contents)
        # malloc itself, so that a sanitizer knows where the memory ends
        libc = ctypes.CDLL(None)
        libc.malloc.restype, libc.malloc.argtypes = c_void_p, [ctypes.c_size_t]
        self.address = libc.malloc(max(1, bytes_)) + self.misaligned
        ctypes.memmove(self.address, self.contents, len(self.contents))


@dataclass
class Call:
    """One update. `operands[j][i]`: operand j of tensor i, or None."""

    op: str
    operands: list
    settings: dict
    steps: list = field(default_factory=list)  # Arrays, or numbers
    flags: tuple = ()  # momentum and centered, or amsgrad
    numbers: dict = field(default_factory=dict)
    reverse: bool = False
    blocks: int = 1

    def arrays(self):
        """Every Array that there is."""
        found = [a for operand in self.operands for a in operand]
        found += [*self.steps, *self.numbers.values()]
        return [a for a in found if isinstance(a, Array)]


def _tensors(call, factors):
    count = len(call.operands[0])
    tensors = (_Tensor * max(1, count))()
    for i, tensor in enumerate(tensors[:count]):
        param = call.operands[0][i]
        tensor.storage = list(STORAGES).index(param.storage)
        tensor.item_size = STORAGES[param.storage]
        tensor.dims = len(param.sizes)
        tensor.sizes[: tensor.dims] = param.sizes
        for j, operand in enumerate(call.operands):
            if operand[i] is not None:
                tensor.data[j] = operand[i].address
                tensor.strides[j][: tensor.dims] = operand[i].strides
        if factors is not None:
            tensor.factors = ctypes.addressof(factors) + 16 * i
        elif call.steps:
            tensor.step = call.steps[i].address
    return tensors


@functools.cache
def _loaded(library):
    loaded = ctypes.CDLL(str(library))
    loaded.launch.restype = ctypes.c_char_p
    loaded.set_order.argtypes = [c_bool, ctypes.c_int]
    return loaded


def run(library: Path, call: Call) -> int | None:
    """Updates the call's memory; how many weights are at a bound."""
    loaded = _loaded(library)
    loaded.set_order(call.reverse, call.blocks)
    count = len(call.operands[0])
    at_bound = c_int64(-1)
    settings = SETTINGS[call.op](**call.settings)
    numbers = _Numbers(**{name: a.address for name, a in call.numbers.items()})
    rest = [ctypes.byref(settings), *map(c_bool, call.flags)]
    factors = None
    if call.op == "adam_clip_":
        factors = (c_double * (2 * count + 2))(*[float("nan")] * (2 * count + 2))
        steps = (_AdamStep * max(1, count))()
        for entry, step in zip(steps, call.steps, strict=False):
            if isinstance(step, Array):
                entry.at = step.address
            else:
                entry.value = step
        rest = [steps, factors, *rest]
    if call.op in ("rmsprop_clip_", "adam_clip_"):
        rest.append(ctypes.byref(numbers))
    if call.op != "ema_update_":
        rest.append(ctypes.byref(at_bound))
    error = loaded.launch(_tensors(call, factors), c_int64(count), *rest)
    assert error is None, error
    return None if call.op == "ema_update_" else at_bound.value


def rows(library: Path, call: Call) -> tuple[int, int]:
    """How many rows the call's tensors become, and how many of these are not flat."""
    strided = c_int64()
    loaded = _loaded(library)
    loaded.count_rows.restype = c_int64
    count = c_int64(len(call.operands[0]))
    return loaded.count_rows(_tensors(call, None), count, ctypes.byref(strided)), strided.value


def fixed_addresses():
    """For the process that begins: a thread sanitizer's shadow has no room for random ones."""
    ctypes.CDLL(None).personality(0x0040000)  # ADDR_NO_RANDOMIZE


def environment(mode: str) -> dict:
    """Of a process that loads a library of that mode."""
    if mode not in RUNTIMES:
        return {}
    command = [COMPILER, f"-print-file-name={RUNTIMES[mode]}"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return {
        "LD_PRELOAD": found.stdout.strip(),
        "ASAN_OPTIONS": "detect_leaks=0",
        "TSAN_OPTIONS": "halt_on_error=1 exitcode=66",
    }


def run_apart(library: Path, mode: str, calls: list[Call]) -> subprocess.CompletedProcess:
    """The calls in a process of their own; its stdout is for `results`."""
    return subprocess.run(
        [sys.executable, "-S", __file__, str(library)],
        input=pickle.dumps(calls), env=environment(mode), capture_output=True,
        preexec_fn=fixed_addresses,
    )  # fmt: skip


def results(done: subprocess.CompletedProcess) -> list:
    """[(count, contents of every array of the call)] of `run_apart`."""
    assert done.returncode == 0, done.stderr.decode()[-4000:]
    return pickle.loads(done.stdout)


def contents(call: Call) -> list[bytes]:
    return [ctypes.string_at(a.address, a.span()) for a in call.arrays()]


if __name__ == "__main__":
    # what was pickled by the importing process names its module
    sys.modules["emulated"] = sys.modules["tests.emu.emulated"] = sys.modules["__main__"]
    calls = pickle.load(sys.stdin.buffer)
    found = [(run(sys.argv[1], call), contents(call)) for call in calls]
    sys.stdout.buffer.write(pickle.dumps(found))
