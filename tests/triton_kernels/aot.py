"""Compiles every Triton kernel configuration for sm_80 and sm_90, without a GPU, and holds the
result against resources.json: registers, shared memory, no spills, tensor cores, wide loads.

    python tests/triton_kernels/aot.py            # the gate; exit status 1 and one line per fault
    python tests/triton_kernels/aot.py --write    # measure again and rewrite this Triton's rows

Runs without TRITON_INTERPRET, with the Triton that is installed or, through PYTHONPATH, another:
after `pip install --no-deps --target DIR triton==3.6.0`, with PYTHONPATH=DIR.

The launchers are called with meta tensors; what they would launch is recorded and specialised as
Triton's own launcher does (an int of 1 and None are constants, multiples of 16 are known as such).
"""

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

TABLE = Path(__file__).with_name("resources.json")
sys.path.insert(0, str(TABLE.parents[2]))

if os.environ.get("TRITON_INTERPRET") == "1":
    sys.exit("aot.py compiles: run it in a process without TRITON_INTERPRET")
os.environ.pop("FASTGEN_AUTOTUNE", None)  # all configurations, not the first

import torch  # noqa: E402
import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402
from triton.runtime.autotuner import Autotuner  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from fastgen.kernels import add_noise as noise  # noqa: E402
from fastgen.kernels import bernoulli_nll as bernoulli  # noqa: E402
from fastgen.kernels import dmol_nll as dmol  # noqa: E402
from fastgen.kernels import gated_activation as gate  # noqa: E402
from fastgen.kernels import gated_masked_conv2d as gated  # noqa: E402
from fastgen.kernels import gaussian_nll as gaussian  # noqa: E402
from fastgen.kernels import masked_conv2d as conv  # noqa: E402
from fastgen.kernels import philox_normal as normal  # noqa: E402
from fastgen.kernels import philox_uniform as uniform  # noqa: E402
from fastgen.kernels import reparam_kl as reparam  # noqa: E402
from fastgen.kernels import vq_ema_update_ as averages  # noqa: E402
from fastgen.kernels import vq_nearest as nearest  # noqa: E402
from fastgen.kernels import vq_quantize as quantize  # noqa: E402

ARCHITECTURES = (80, 90)
REGISTERS = 255  # more is a spill
SHARED = {80: 163 * 1024, 90: 227 * 1024}  # bytes a block may have
COMPILE_OPTIONS = ("num_warps", "num_stages", "maxnreg", "enable_fp_fusion")
# counted in the machine code; a row that has some must keep some
OPCODES = {
    "HGMMA": r"\bHGMMA\b",
    "HMMA": r"\bHMMA\b",
    "DMMA": r"\bDMMA\b",
    "copy.128": r"\bLDGSTS\.E\S*\.128\b",
    "load.128": r"\bLDG\.E\S*\.128\b",
    "store.128": r"\bSTG\.E\S*\.128\b",
}
SPILLS = r"\b(?:LDL|STL)\b"


def empty(*shape, dtype, channels_last=True):
    t = torch.empty(*shape, dtype=dtype, device="meta")
    return t.contiguous(memory_format=torch.channels_last) if channels_last else t


def plan(outputs, inputs, kernel, partial):
    taps = torch.empty(kernel * kernel + 1, 3, dtype=torch.int32, device="meta")
    return taps, torch.empty(partial, outputs, inputs, dtype=torch.uint8, device="meta")


def convolution(dtype, inputs, outputs, kernel, *, batch=16, size=32, channels_last=True):
    x = empty(batch, inputs, size, size, dtype=dtype, channels_last=channels_last)
    y = empty(batch, outputs, size, size, dtype=dtype, channels_last=channels_last)
    weight = torch.empty(outputs, inputs, kernel, kernel, dtype=dtype, device="meta")
    return x, y, weight, torch.empty(outputs, dtype=dtype, device="meta")


def run_convolution(*args, backward_to_x=True, partial=0, **kwargs):
    x, y, weight, bias = convolution(*args, **kwargs)
    taps = plan(*weight.shape[:3], partial)
    conv.masked_conv2d(x, weight, bias, *taps, (1, 1))
    conv.masked_conv2d_backward(y, x, weight, *taps, (1, 1), (backward_to_x, True, True))


def run_gated(*args, partial=0, **kwargs):
    x, y, weight, bias = convolution(*args, **kwargs)
    condition = torch.empty(y.shape[:2], dtype=y.dtype, device="meta")
    taps = plan(*weight.shape[:3], partial)
    gated.gated_masked_conv2d(x, weight, bias, condition, *taps, (1, 1))


def run_gate(dtype, channels, size, channels_last):
    x = empty(16, 2 * channels, size, size, dtype=dtype, channels_last=channels_last)
    grad = empty(16, channels, size, size, dtype=dtype, channels_last=channels_last)
    condition = torch.empty(x.shape[:2], dtype=dtype, device="meta")
    gate.gated_activation(x, None)
    gate.gated_activation(x, condition)
    gate.gated_activation_backward(grad, x, condition, True, extra=x)


def run_tf32():
    former = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        run_convolution(torch.float32, 64, 64, 3)
        run_gated(torch.float32, 64, 128, 3)
    finally:
        torch.backends.cuda.matmul.fp32_precision = former


def rows_and_codes(dtype, rows, codes, values, *, heads=None, image=False):
    shape = (heads,) if heads else ()
    x = torch.empty(rows, *shape, values, dtype=dtype, device="meta")
    dim = x.dim() - 1
    if image:
        x, dim = torch.empty(rows // 1024, values, 32, 32, dtype=dtype, device="meta"), 1
    dtype = torch.promote_types(dtype, torch.float32)
    return x, torch.empty(*shape, codes, values, dtype=dtype, device="meta"), dim


def run_lookup(*args, cosine=False, filter=None, **kwargs):
    nearest.vq_nearest(*rows_and_codes(*args, **kwargs), cosine, filter)


def run_quantize(*args, deterministic=False, masked=False, **kwargs):
    x, codebook, dim = rows_and_codes(*args, **kwargs)
    mask = torch.empty(x.shape[:1], dtype=torch.bool, device="meta") if masked else None
    former = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(deterministic)
    try:
        out = quantize.vq_quantize(x, codebook, dim, mask, False)
    finally:
        torch.use_deterministic_algorithms(former)
    for rotation in (False, True):
        quantize.vq_quantize_backward(x, out[2], x, out[1], codebook, dim, rotation)
    averages.vq_ema_update_(codebook, out[3].double(), codebook, out[3], out[4], 0.99, 1e-5)


def meta(*shape, dtype):
    return torch.empty(shape, dtype=dtype, device="meta")


def run_noise(dtype):
    seed, x = meta(dtype=torch.int64), meta(64, 3, 64, 64, dtype=dtype)
    normal.philox_normal(seed, x.shape, dtype)
    uniform.philox_uniform(seed, x.shape, dtype)
    for kind in range(3):
        noise.add_noise(x, kind, 0.5, 0.0, 1.0, seed, kind == 2)
        noise.add_noise_backward(x, kind, 0.5, seed)


def run_reparam(
    dtype, batch, values, *, prior=None, samples=1, clamp=None, parametrization=0, free_bits=0.0
):
    both = meta(batch, 2 * values, dtype=dtype)  # an encoder's output
    mu, logvar = both.chunk(2, 1)
    rows = {None: 0, "shared": 1, "rows": batch, "table": 16}[prior]
    priors = [meta(rows, values, dtype=dtype) if rows else None for _ in range(2)]
    index = meta(batch, dtype=torch.int64) if prior == "table" else None
    settings = (samples, *(clamp or (None, None)), free_bits, parametrization)
    z, kl, seed = reparam.reparam_kl(mu, logvar, *priors, index, None, None, *settings)
    needs = [True, True, prior is not None, prior is not None]
    reparam.reparam_kl_backward(z, kl, mu, logvar, *priors, index, None, z, seed, *settings, needs)


def run_likelihoods(dtype, target=None, batch=128, values=784):
    x = meta(batch, values, dtype=dtype)
    y = meta(batch, values, dtype=target or dtype)
    per_sample = meta(batch, dtype=torch.promote_types(dtype, F32))
    bernoulli.bernoulli_nll(x, y)
    bernoulli.bernoulli_nll_backward(per_sample, x, y, [True, target is None])
    if target is None:
        for logvar in (None, meta(1, dtype=dtype), x):
            gaussian.gaussian_nll(x, y, logvar, 0.0)
            gaussian.gaussian_nll_backward(
                per_sample, x, y, logvar, 0.0, [True, False, logvar is not None]
            )


def run_dmol(dtype, components, colors, *, coupled=True, last=False, exact=True, batch=16):
    count = (10 if coupled and colors == 3 else 3) * components
    shape = (batch, count, 32, 32) if coupled else (batch, count, colors, 32, 32)
    params, x = meta(*shape, dtype=dtype), meta(batch, colors, 32, 32, dtype=torch.uint8)
    if last:
        params, x = empty(*shape, dtype=dtype), empty(*x.shape, dtype=torch.uint8)
    settings = (components, coupled, 256, exact, False, False)
    nll = dmol.dmol_nll(params, x, *settings)
    dmol.dmol_nll_backward(nll, params, x, *settings)


BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
CASES = {
    "bf16 128": lambda: run_convolution(BF16, 128, 128, 3),
    "bf16 64": lambda: run_convolution(BF16, 64, 64, 3),
    "bf16 128 and 64": lambda: run_convolution(BF16, 64, 128, 3, backward_to_x=False),
    "bf16 32 and 64": lambda: run_convolution(BF16, 32, 64, 3, backward_to_x=False),
    "bf16 32": lambda: run_convolution(BF16, 32, 32, 3),
    "bf16 first layer": lambda: run_convolution(BF16, 3, 64, 7, backward_to_x=False),
    "bf16 plain layout": lambda: run_convolution(BF16, 64, 64, 3, channels_last=False),
    "bf16 64-bit offsets": lambda: run_convolution(BF16, 64, 64, 3, batch=2**16, size=64),
    "bf16 partial 96": lambda: run_convolution(BF16, 96, 96, 3, partial=1),
    "bf16 partial 48": lambda: run_convolution(BF16, 48, 48, 3, partial=1),
    "bf16 partial 24": lambda: run_convolution(BF16, 24, 24, 3, partial=1),
    "bf16 partial first layer": lambda: run_convolution(
        BF16, 3, 192, 7, partial=1, backward_to_x=False
    ),
    "bf16 gated": lambda: run_gated(BF16, 64, 128, 3),
    "bf16 gated partial": lambda: run_gated(BF16, 96, 192, 3, partial=1),
    "f16 64": lambda: run_convolution(F16, 64, 64, 3),
    "f32 64": lambda: run_convolution(F32, 64, 64, 3),
    "f32 32": lambda: run_convolution(F32, 32, 32, 3),
    "f32 first layer": lambda: run_convolution(F32, 3, 64, 7, backward_to_x=False),
    "f32 partial 96": lambda: run_convolution(F32, 96, 96, 3, partial=1),
    "f32 partial 24": lambda: run_convolution(F32, 24, 24, 3, partial=1),
    "f32 gated": lambda: run_gated(F32, 64, 128, 3),
    "tf32": run_tf32,
    "f64": lambda: run_convolution(F64, 32, 32, 3),
    "f64 partial": lambda: run_convolution(F64, 32, 32, 3, partial=1),
    "f64 gated": lambda: run_gated(F64, 32, 64, 3),
    "vq 512x64": lambda: run_lookup(F32, 65536, 512, 64),
    "vq 8192x256": lambda: run_lookup(F32, 16384, 8192, 256),
    "vq 1024x32 image": lambda: run_lookup(F32, 2**18, 1024, 32, image=True),
    "vq 16384x8": lambda: run_lookup(F32, 4096, 16384, 8),
    "vq 1024x128": lambda: run_lookup(F32, 16384, 1024, 128),
    "vq bf16 rows": lambda: run_lookup(BF16, 65536, 512, 64),
    "vq f64 rows": lambda: run_lookup(F64, 65536, 512, 64),
    "vq float32 scores": lambda: run_lookup(F32, 65536, 512, 64, filter=False),
    "vq cosine": lambda: run_lookup(F32, 65536, 512, 64, cosine=True),
    "vq train 512x64": lambda: run_quantize(F32, 65536, 512, 64),
    "vq train in order": lambda: run_quantize(F32, 65536, 512, 64, deterministic=True),
    "vq train image": lambda: run_quantize(F32, 65536, 512, 64, image=True),
    "vq train masked": lambda: run_quantize(BF16, 65536, 8192, 256, masked=True),
    "vq train f64": lambda: run_quantize(F64, 65536, 512, 64),
    "vq heads": lambda: run_lookup(F32, 65536, 512, 32, heads=4),
    "vq 64-bit offsets": lambda: run_lookup(F32, 2**26, 512, 64),
    "f32 noise": lambda: run_noise(F32),
    "bf16 noise": lambda: run_noise(BF16),
    "f64 noise": lambda: run_noise(F64),
    "f32 reparam": lambda: run_reparam(F32, 8192, 256),
    "bf16 reparam": lambda: run_reparam(BF16, 8192, 256),
    "f64 reparam": lambda: run_reparam(F64, 256, 128),
    "f32 reparam 64": lambda: run_reparam(F32, 65536, 64),
    "f32 reparam odd": lambda: run_reparam(F32, 256, 50),
    "f32 reparam huge": lambda: run_reparam(F32, 1, 2**20),
    "f32 reparam all": lambda: run_reparam(
        F32, 256, 128, prior="rows", samples=4, clamp=(-30, 20), parametrization=2, free_bits=0.1
    ),
    "f64 reparam all": lambda: run_reparam(
        F64, 256, 128, prior="rows", samples=4, clamp=(-30, 20), parametrization=2, free_bits=0.1
    ),
    "f32 reparam table": lambda: run_reparam(F32, 256, 128, prior="table"),
    "bf16 reparam shared": lambda: run_reparam(BF16, 256, 128, prior="shared"),
    "f32 likelihoods": lambda: run_likelihoods(F32),
    "f32 likelihoods of bytes": lambda: run_likelihoods(F32, torch.uint8, 256, 12288),
    "bf16 likelihoods": lambda: run_likelihoods(BF16),
    "f64 likelihoods": lambda: run_likelihoods(F64),
    "f32 dmol": lambda: run_dmol(F32, 10, 3),
    "f32 dmol channels-last": lambda: run_dmol(F32, 10, 3, last=True),
    "bf16 dmol": lambda: run_dmol(BF16, 10, 3),
    "bf16 dmol channels-last": lambda: run_dmol(BF16, 10, 3, last=True),
    "f64 dmol": lambda: run_dmol(F64, 10, 3),
    "f64 dmol channels-last": lambda: run_dmol(F64, 10, 3, last=True),
    "f32 dmol of 2017": lambda: run_dmol(F32, 10, 3, exact=False),
    "bf16 dmol of 2017": lambda: run_dmol(BF16, 10, 3, exact=False),
    "f64 dmol of 2017": lambda: run_dmol(F64, 10, 3, exact=False, last=True),
    "f32 dmol 32 components": lambda: run_dmol(F32, 32, 3, last=True),
    "f32 dmol uncoupled": lambda: run_dmol(F32, 10, 3, coupled=False),
    "f32 dmol grey channels-last": lambda: run_dmol(F32, 10, 1, last=True),
    **{
        f"{name} gate {channels}x{size} {'channels-last' if last else 'plain'}": (
            lambda dtype=dtype, channels=channels, size=size, last=last: run_gate(
                dtype, channels, size, last
            )
        )
        for name, dtype, channels, size in (
            ("bf16", BF16, 128, 32),
            ("bf16", BF16, 64, 8),
            ("f32", F32, 128, 32),
            ("f64", F64, 64, 8),
        )
        for last in (True, False)
    },
}


def record(case):
    """[(kernel, args, kwargs)] of every launch and configuration `case` would ask for."""
    launches = []
    run, tune = JITFunction.run, Autotuner.run
    JITFunction.run = lambda self, *a, grid, warmup, **k: launches.append((self, a, k))
    Autotuner.run = lambda self, *a, grid, warmup, **k: launches.extend(
        (self.fn, a, k | config.all_kwargs()) for config in self.configs
    )
    try:
        case()
    finally:
        JITFunction.run, Autotuner.run = run, tune
    return launches


def specialised(kernel, args, kwargs):
    """(signature, constants, attributes) as Triton's launcher derives them from the arguments."""
    values = dict(zip(kernel.arg_names, args, strict=False)) | {
        k: v for k, v in kwargs.items() if k in kernel.arg_names
    }
    pointers = {BF16: "*bf16", F16: "*fp16", F32: "*fp32", F64: "*fp64"}
    pointers |= {torch.int32: "*i32", torch.int64: "*i64", torch.uint8: "*u8"}
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        name, value = parameter.name, values[parameter.name]
        aligned = True  # as torch allocates
        if isinstance(value, torch.Tensor):
            signature[name] = pointers[value.dtype]
        elif parameter.is_constexpr or value is None or value == 1:
            signature[name], constants[(i,)], aligned = "constexpr", value, False
        elif isinstance(value, float):
            signature[name], aligned = parameter.annotation_type, False
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            aligned = value % 16 == 0
        if aligned:
            attributes[(i,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def options_of(kwargs):
    return {k: kwargs[k] for k in COMPILE_OPTIONS if kwargs.get(k) is not None}


def label(kernel, case, kwargs):
    blocks = [str(kwargs[k]) for k in (f"BLOCK_{axis}" for axis in "POICRKTDB") if k in kwargs]
    tail = "".join(f" {k[4:].lower()}" for k, v in kwargs.items() if k.startswith("HAS_") and v)
    if "num_stages" in kwargs:
        tail += f" {kwargs['num_warps']} warps {kwargs['num_stages']} stages"
    return f"{case}: {kernel.__name__.strip('_')} {'x'.join(blocks)}{tail}"


def measure(kernel, args, kwargs, architecture):
    source = ASTSource(kernel, *specialised(kernel, args, kwargs))
    target = GPUTarget("cuda", architecture, 32)
    compiled = triton.compile(source, target=target, options=options_of(kwargs))
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run([tool, flag, file.name], capture_output=True, text=True, check=True)
            for flag in ("-res-usage", "-sass")
        )
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage.stdout).groups())
    counts = {name: len(re.findall(pattern, code.stdout)) for name, pattern in OPCODES.items()}
    row = {"registers": registers, "shared": compiled.metadata.shared}
    row |= {name: n for name, n in counts.items() if n}
    spills = len(re.findall(SPILLS, code.stdout))
    return row, spills, stack


def faults(row, spills, stack, limit, architecture):
    """What a kernel's row gets wrong, in words. `limit` is its row in the table, or None."""
    if spills or stack:
        yield f"spills: {spills} local loads and stores, {stack} bytes of stack"
    if row["registers"] > REGISTERS or row["shared"] > SHARED[architecture]:
        yield f"does not fit the hardware: {row}"
    if limit is None:
        return
    if row["registers"] > limit["registers"]:
        yield f"registers {row['registers']}, the table allows {limit['registers']}"
    if row["shared"] != limit["shared"]:  # less means that a loop lost stages of its pipeline
        yield f"shared {row['shared']}, the table has {limit['shared']}"
    for name in OPCODES:
        if limit.get(name) and not row.get(name):
            yield f"no {name} instruction, the table has {limit[name]}"


def distinct_jobs(cases):
    """([(name, architecture, launch)], all launches): each kernel once, however often launched.
    The input gradient of a square layer, for one, is the forward kernel."""
    jobs, launches, seen, names = [], [], set(), set()
    for case, call in cases.items():
        for launch in record(call):
            launches.append(launch)
            kernel, _, kwargs = launch
            key = kernel.__name__, repr(specialised(*launch)), repr(options_of(kwargs))
            if key in seen:
                continue
            seen.add(key)
            for architecture in ARCHITECTURES:
                name = f"sm_{architecture} {label(kernel, case, kwargs)}"
                while name in names:
                    name += " again"  # other strides or alignment
                names.add(name)
                jobs.append((name, architecture, launch))
    return jobs, launches


_jobs = []


def _take(jobs):
    _jobs[:] = jobs


def _measure(i):
    _, architecture, launch = _jobs[i]
    try:
        return measure(*launch, architecture)
    except Exception as error:  # the compiler's own, of many types; it has printed the details
        return error


def uncovered(launches):
    """Tiles no case reaches."""
    names = ("BLOCK_P", "BLOCK_O", "BLOCK_I", "num_warps")
    used = {
        (kernel.__name__, kwargs.get("HAS_PARTIAL"), *(kwargs[k] for k in names))
        for kernel, _, kwargs in launches
        if "BLOCK_I" in kwargs
    }
    for tiles, kernel, has_partial in (
        (conv.TILES, "_masked_conv2d_kernel", False),
        (conv.PARTIAL_TILES, "_masked_conv2d_kernel", True),
        (conv.GRADIENT_TILES, "_weight_gradient_kernel", None),
    ):
        for tile in sum(tiles.values(), ()):
            key = (kernel, has_partial, *tile.kwargs.values(), tile.num_warps)
            if key not in used:
                yield key


def write(path, table):
    """As JSON, one line a kernel."""
    versions = []
    for version, rows in sorted(table.items()):
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
        versions.append(f" {json.dumps(version)}: {{\n{lines}\n }}")
    path.write_text("{\n" + ",\n".join(versions) + "\n}\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="rewrite this Triton version's rows")
    parser.add_argument("--only", default="", help="only rows whose name contains this")
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    options = parser.parse_args()
    table = json.loads(options.table.read_text()) if options.table.exists() else {}
    limits = table.get(triton.__version__)
    if limits is None and not options.write:
        known = ", ".join(table) or "none"
        print(f"{options.table.name} has rows for Triton {known}, not {triton.__version__}: "
              "checking spills and hardware limits only")  # fmt: skip
    jobs, launches = distinct_jobs(CASES)
    jobs = [job for job in jobs if options.only in job[0]]
    found, rows = [], {}
    with tempfile.TemporaryDirectory() as cache:
        triton.knobs.cache.dir = cache
        fork = multiprocessing.get_context("fork")  # kernels cannot be pickled
        with fork.Pool(options.jobs, initializer=_take, initargs=(jobs,)) as pool:
            results = pool.imap(_measure, range(len(jobs)))
            for (name, architecture, _), result in zip(jobs, results, strict=True):
                if isinstance(result, Exception):
                    found.append(f"{name}: does not compile: {result!r}")
                    continue
                rows[name] = result[0]
                print(name, json.dumps(result[0]), flush=True)
                limit = limits.get(name) if limits and not options.write else None
                if limits and not options.write and limit is None:
                    found.append(f"{name}: not in the table; run aot.py --write")
                found += [f"{name}: {fault}" for fault in faults(*result, limit, architecture)]
    found += [f"no case compiles {tile}" for tile in uncovered(launches)]
    if options.write:
        table[triton.__version__] = (limits or {}) | rows if options.only else rows
        write(options.table, table)
    print(f"Triton {triton.__version__}: {len(rows)} kernels, {len(found)} faults")
    for fault in found:
        print("FAULT", fault)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
