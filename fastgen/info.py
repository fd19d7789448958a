"""`fastgen info`: what is installed, which kernels would run and why, and a short self-test."""

import json as json_format
import os
import platform
import sys

import torch

import fastgen
from fastgen import _backends, _load

TOLERANCE = 1e-5  # float32 kernels against the float32 reference, relative


def collect() -> dict:
    """Everything `fastgen info` prints, as plain data for JSON."""
    return {
        "versions": _versions(),
        "build": _build(),
        "cpu": _cpu(),
        "gpu": _gpus(),
        "environment": {k: v for k, v in os.environ.items() if k.startswith("FASTGEN_")},
        "ops": {stem: _op(stem) for stem in _backends.stems()},
        "sampler": _sampler(),
        "self_test": _self_test(),
    }


def _versions():
    try:
        from importlib.metadata import version

        triton = version("triton")
    except Exception:  # whatever keeps Triton's metadata from being read: it is not usable
        triton = None
    return {
        "fastgen": fastgen.__version__,
        "torch": torch.__version__,
        "triton": triton,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def _build():
    if _load.EXTENSION is None:
        return {"extension": None, "why": _load.MISSING}
    return {
        "extension": _load.EXTENSION.__file__,
        "compiler": _load.EXTENSION.compiler(),
        "cuda": _load.EXTENSION.cuda_build(),
    }


def _cpu():
    cpu = {
        "threads": torch.get_num_threads(),
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
    }
    if _load.EXTENSION is not None:
        try:
            cpu["level"] = _load.EXTENSION.isa()
        except RuntimeError as error:
            cpu["level"] = f"error: {error}"
        else:
            cpu["bfloat16_products"] = _load.EXTENSION.multiplies_bfloat16()
        cpu["levels_supported"] = _load.EXTENSION.supported_isa_levels()
    return cpu


def _gpus():
    return [
        {
            "name": torch.cuda.get_device_name(i),
            "capability": ".".join(map(str, torch.cuda.get_device_capability(i))),
        }
        for i in range(torch.cuda.device_count())
    ]


def _op(stem):
    return [
        {"backend": b.name, "available": b.available, "runs_on": list(b.runs_on), "why": b.why}
        for b in fastgen.backends(stem)
    ]


def _sampler():
    from fastgen.sampling.targets import executors

    return [{"executor": name, "available": not why, "why": why} for name, why in executors()]


def _self_test():
    devices = ["cpu"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return [_check(name, device) for name in _backends.self_tested() for device in devices]


def _check(name, device):
    row = {"op": name, "device": device}
    try:
        error = _backends.self_test(name, device)
    except Exception as problem:  # a broken kernel is what a self-test is there to report
        return row | {"passed": False, "error": f"{type(problem).__name__}: {problem}"}
    return row | {"passed": error <= TOLERANCE, "error": error}


def main(json: bool = False) -> int:
    """Prints the report; returns 0, or 1 when the self-test fails."""
    report = collect()
    passed = all(row["passed"] for row in report["self_test"])
    if json:
        json_format.dump(report, sys.stdout, indent=2)
        print()
    else:
        print("\n".join(_lines(report)))
    return 0 if passed else 1


def _lines(report):
    v, build, cpu = report["versions"], report["build"], report["cpu"]
    yield f"fastgen {v['fastgen']}, torch {v['torch']}, triton {v['triton'] or 'not installed'}"
    yield f"python {v['python']}, {v['platform']}"
    if build["extension"] is None:
        yield f"kernels: {build['why']}"
    else:
        yield f"kernels: {build['extension']}, compiler {build['compiler']}"
        yield f"cuda: {_cuda_line(build['cuda'])}"
    yield (
        f"cpu: level {cpu.get('level', 'reference')} of {cpu.get('levels_supported', [])}, "
        f"{cpu['threads']} threads (torch {cpu['torch_capability']})"
        + (", bfloat16 products" if cpu.get("bfloat16_products") else "")
    )
    yield "gpu: " + (", ".join(f"{g['name']} ({g['capability']})" for g in report["gpu"]) or "none")
    for name, value in report["environment"].items():
        yield f"{name}={value}"
    yield ""
    for stem, rows in report["ops"].items():
        yield stem
        for row in rows:
            mark = "*" if row["runs_on"] else " "
            where = f" on {', '.join(row['runs_on'])}" if row["runs_on"] else ""
            yield f"  {mark} {row['backend']:<10} {row['why']}{where}"
    yield "sampler"
    runs = next(row for row in report["sampler"] if row["available"])
    for row in report["sampler"]:
        level = f" at level {cpu['level']}" if row["executor"] == "cpu" and "level" in cpu else ""
        why = row["why"] or (f"runs{level}" if row is runs else "backend='reference' picks it")
        yield f"  {'*' if row is runs else ' '} {row['executor']:<10} {why}"
    yield ""
    for row in report["self_test"]:
        error = row["error"]
        told = error if isinstance(error, str) else f"relative error {error:.1e}"
        verdict = "ok  " if row["passed"] else "FAIL"
        yield f"self-test {verdict} {row['op']} ({row['device']}): {told}"


def _cuda_line(cuda):
    if cuda is None:
        return "not built (no nvcc was found)"
    line = f"runtime {cuda['runtime']}, for {cuda['architectures']}, {cuda['devices']} devices"
    if cuda["kernel_architecture"]:
        line += f", kernels for {cuda['kernel_architecture']} run"
    return line + (f"; {cuda['error']}" if cuda["error"] else "")
