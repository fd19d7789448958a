"""Builds fastgen._C: CPU kernels once per instruction-set level, CUDA kernels where nvcc is found.

Environment:
  FASTGEN_BUILD=auto|require|none   without a C++ compiler: install pure Python | fail; none: no _C
  FASTGEN_CUDA=auto|0|1             auto: build the CUDA half when an nvcc is found
  TORCH_CUDA_ARCH_LIST              default "8.0 9.0+PTX"
"""

import concurrent.futures
import os
import platform
import re
import shutil
import subprocess
import sys
from glob import glob
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.modified import newer_group

ROOT = Path(__file__).resolve().parent
os.chdir(ROOT)

AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512"]
ISA_FLAGS = {"default": []}
if platform.machine() in ("x86_64", "AMD64"):
    ISA_FLAGS |= {"avx2": AVX2, "avx512": AVX512}
# Kernels rely on IEEE NaN and infinity, so no -ffast-math; these two only drop errno and traps.
KERNEL_FLAGS = ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fno-exceptions"]


def env_choice(name, choices):
    value = os.environ.get(name, choices[0])
    if value not in choices:
        sys.exit(f"fastgen: {name} must be one of {', '.join(choices)}, got {value!r}")
    return value


BUILD = env_choice("FASTGEN_BUILD", ("auto", "require", "none"))
CUDA = env_choice("FASTGEN_CUDA", ("auto", "0", "1"))


def torch_or_exit():
    try:
        import torch
    except ImportError as error:
        sys.exit(
            "fastgen builds against the torch that is installed, and found none "
            f"({error}). Run `pip install torch` first, then `pip install .` again."
        )
    return torch


def cxx_compiler():
    return shutil.which(os.environ.get("CXX") or "c++") or shutil.which("g++")


def nvcc_and_toolkit():
    """(nvcc, toolkit folder) or None. nvcc itself says where its toolkit is: the nvcc on PATH may
    be a wrapper script, whose folder is not the toolkit's."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    nvcc = shutil.which("nvcc", path=os.path.join(home, "bin")) or shutil.which("nvcc")
    if nvcc is None:
        return None
    dry = subprocess.run([nvcc, "--dryrun", "-c", "x.cu"], capture_output=True, text=True)
    top = re.search(r"^#\$ TOP=(.*)$", dry.stderr, re.MULTILINE)
    toolkit = Path(top.group(1).strip() if top else Path(nvcc).resolve().parent.parent).resolve()
    return nvcc, toolkit


def cuda_library(toolkit, name):
    for folder in ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"):
        if (toolkit / folder / name).exists():
            return str(toolkit / folder / name)
    sys.exit(
        f"fastgen: {name} is not in the CUDA toolkit at {toolkit}; set CUDA_HOME to a complete "
        "toolkit, or FASTGEN_CUDA=0 to build without CUDA"
    )


def cuda_architectures():
    """Names like 80, 90, 90+PTX."""
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST") or "8.0 9.0+PTX"
    return listed.replace(";", " ").replace(".", "").split()


def gencode(architecture):
    number, _, ptx = architecture.partition("+")
    flags = ["-gencode", f"arch=compute_{number},code=sm_{number}"]
    return flags + (["-gencode", f"arch=compute_{number},code=compute_{number}"] if ptx else [])


class copy_kernels(build_py):
    """Puts the top-level kernels/ and benchmarks/ into the package of a wheel; in a checkout and in
    an editable install the shims fastgen/kernels and fastgen/benchmarks find them in place."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        for folder in ("kernels", "benchmarks"):
            for source in sorted(glob(f"{folder}/*.py")):
                target = Path(self.build_lib, "fastgen", source)
                target.parent.mkdir(parents=True, exist_ok=True)
                self.copy_file(source, str(target))


def extension_arguments():
    """The setup() arguments that build fastgen._C, or none of them with the reason printed."""
    if BUILD == "none":
        print("fastgen: FASTGEN_BUILD=none: installing pure Python; CPU ops run the reference")
        return {}
    if cxx_compiler() is None:
        if BUILD == "require":
            sys.exit(
                "fastgen: FASTGEN_BUILD=require, and no C++ compiler was found; install g++ "
                "or clang++, or set CXX"
            )
        print(
            "fastgen: no C++ compiler found: installing pure Python; CPU ops run the reference. "
            "Install g++ and run the same command again for the compiled kernels."
        )
        return {}
    torch_or_exit()
    import pybind11
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    class build_levels_and_cuda(BuildExtension):
        def build_extension(self, ext):
            for level, flags in ISA_FLAGS.items():
                ext.extra_objects += self.compile_level(ext, level, flags)
            ext.extra_objects += self.compile_cuda(ext)
            super().build_extension(ext)

        def compile_level(self, ext, level, flags):
            flags = [
                *ext.extra_compile_args["cxx"],
                *KERNEL_FLAGS,
                *flags,
                f"-DFASTGEN_ISA_NS=isa_{level}",
            ]
            return self.compiler.compile(
                sorted(glob("csrc/cpu/*.cpp")),
                output_dir=os.path.join(self.build_temp, f"isa_{level}"),
                include_dirs=ext.include_dirs,
                extra_postargs={"cxx": flags} if self.use_ninja else flags,
                depends=ext.depends,
            )

        def compile_cuda(self, ext):
            """Objects of csrc/cuda/*.cu. They include no torch header, so nvcc needs no CUDA build
            of torch, and no GPU: only the toolkit decides."""
            found = nvcc_and_toolkit() if CUDA != "0" else None
            if found is None:
                if CUDA == "1":
                    sys.exit("fastgen: FASTGEN_CUDA=1, and no nvcc was found; set CUDA_HOME")
                return []
            nvcc, toolkit = found
            names = cuda_architectures()
            common = [
                "-O3",
                "-std=c++17",
                "-lineinfo",
                "-fmad=false",  # a product is fused with a sum where it is written so, as on CPUs
                "-Icsrc",
                "-Xcompiler",
                "-fPIC,-fvisibility=hidden",
                "-Xptxas",
                "-v",
            ]
            for name in names:
                common += gencode(name)
            folder = Path(self.build_temp, "cuda", "_".join(names))
            folder.mkdir(parents=True, exist_ok=True)
            included = glob("csrc/**/*.h", recursive=True) + glob("csrc/cuda/*.cuh") + ["setup.py"]

            def compile_one(source):
                target = str(folder / (Path(source).stem + ".o"))
                if self.force or newer_group([source, *included], target):
                    subprocess.run([nvcc, *common, "-c", source, "-o", target], check=True)
                return target

            jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
            with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
                objects = list(pool.map(compile_one, sorted(glob("csrc/cuda/*.cu"))))
            ext.extra_compile_args["cxx"] += [
                "-DFASTGEN_WITH_CUDA",
                f'-DFASTGEN_CUDA_ARCHITECTURES="{" ".join(names)}"',
            ]
            ext.extra_link_args += [
                cuda_library(toolkit, "libcudart_static.a"),
                "-ldl",
                "-lrt",
                "-lpthread",
                "-Wl,--exclude-libs,libcudart_static.a",
            ]
            return objects

    # -fopenmp on every file: at::parallel_for is silently serial in one compiled without it.
    flags = ["-O3", "-g0", "-fvisibility=hidden", "-fopenmp", "-Wall"]
    extension = CppExtension(
        "fastgen._C",
        sorted(glob("csrc/*.cpp") + glob("csrc/common/*.cpp") + glob("csrc/engine/*.cpp")),
        include_dirs=[str(ROOT / "csrc"), pybind11.get_include()],
        depends=sorted(glob("csrc/**/*.h", recursive=True)),
        extra_compile_args={"cxx": flags},
        extra_link_args=["-fopenmp"],
    )
    return {"ext_modules": [extension], "cmdclass": {"build_ext": build_levels_and_cuda}}


arguments = extension_arguments()
arguments.setdefault("cmdclass", {})["build_py"] = copy_kernels
setup(**arguments)
