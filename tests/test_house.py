"""The house checks itself: stems, import arrows, headers, and what an import may load."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fastgen import _backends

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "fastgen"
STEMS = _backends.stems()


def test_stems_are_the_op_pages():
    pages = sorted(p.stem for p in (PACKAGE / "ops").glob("[a-z]*.py"))
    assert pages == STEMS


@pytest.mark.parametrize("stem", STEMS)
def test_each_op_has_its_reference_kernels_test_benchmark_and_page(stem):
    for path in (
        f"fastgen/reference/{stem}.py",
        f"csrc/{stem}.cpp",
        f"tests/test_{stem}.py",
        f"benchmarks/bench_{stem}.py",
        f"docs/{stem}.md",
    ):
        assert (ROOT / path).is_file(), f"{stem} has no {path}"
    gpu = [ROOT / f"kernels/{stem}.py", ROOT / f"csrc/cuda/{stem}.cu"]
    assert any(path.is_file() for path in gpu), f"{stem} has no kernel for a GPU"
    readme = (ROOT / "README.md").read_text()
    assert f"fastgen.{stem}(" in readme, f"README's op table has no line for {stem}"


@pytest.mark.parametrize("stem", STEMS)
def test_each_op_is_exported_documented_and_differentiable(stem):
    import fastgen

    function = getattr(fastgen, stem)
    assert stem in fastgen.__all__
    for heading in ("Args:", "Returns:", "Raises:", "Source:"):
        assert heading in function.__doc__, f"fastgen.{stem}'s docstring has no {heading}"
    page = (PACKAGE / "ops" / f"{stem}.py").read_text()
    assert 'register_fake("fastgen::' in page
    if "Not differentiable." in function.__doc__:
        return
    page = page.replace("\n    ", "")
    assert f'register_fake("fastgen::{stem}"' in page
    by_hand = f'register_autograd("fastgen::{stem}"' in page
    assert by_hand or f'_autograd.by_backward_op("{stem}")' in page
    assert f"{stem}_backward" in _backends._ops


def imports_of(path):
    """Modules a file imports when it is imported: not those inside functions."""
    todo, found = [ast.parse(path.read_text())], []
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found += [f"{module}.{alias.name}" for alias in node.names]
        todo += ast.iter_child_nodes(node)
    return found


# what the modules of a layer may import of fastgen
ARROWS = {
    "reference": ["fastgen.reference"],
    "ops": ["fastgen.ops", "fastgen.reference", "fastgen._backends", "fastgen._load"],
    "nn": ["fastgen.nn", "fastgen.ops", "fastgen.reference"],
    "optim": ["fastgen.optim", "fastgen.ops", "fastgen._backends"],
    "cluster": ["fastgen.cluster", "fastgen.ops", "fastgen.reference"],
    "sampling": [
        "fastgen.sampling",
        "fastgen.ops",
        "fastgen.reference",
        "fastgen.progress",
        "fastgen.likelihoods",
        "fastgen._backends",
        "fastgen._load",
    ],
}


def names_of(module):
    """What a module's imports of fastgen resolve to: `from fastgen import ops` is fastgen.ops."""
    return [name for name in module if name == "fastgen" or name.startswith("fastgen.")]


@pytest.mark.parametrize("layer", ARROWS)
def test_imports_go_one_way(layer):
    for path in sorted((PACKAGE / layer).glob("**/*.py")):
        for name in names_of(imports_of(path)):
            allowed = any(name == a or name.startswith(a + ".") for a in ARROWS[layer])
            assert allowed, f"{path.relative_to(ROOT)} imports {name}"


def test_triton_kernels_import_torch_and_triton_only():
    for path in sorted((ROOT / "kernels").glob("*.py")):
        for name in imports_of(path):
            beside = name.startswith(".")
            allowed = sys.stdlib_module_names | {"torch", "triton"}
            assert beside or name.split(".")[0] in allowed, f"{path} imports {name}"
    assert not (ROOT / "kernels" / "__init__.py").exists(), "kernels is another package's name"


def test_kernels_include_no_torch_header():
    for folder in ("cpu", "cuda", "engine", "common"):
        for path in (ROOT / "csrc" / folder).glob("**/*"):
            if path.is_file():
                for header in re.findall(r"#include [<\"]([^>\"]+)", path.read_text()):
                    bad = header.startswith(("torch/", "ATen/", "c10/", "pybind11/"))
                    assert not bad or header.startswith("ATen/cpu/vec/"), f"{path}: {header}"


def test_glue_includes_narrow_torch_headers():
    wide = {"torch/extension.h", "torch/torch.h", "torch/all.h", "ATen/ATen.h"}
    for path in (ROOT / "csrc").glob("**/*"):
        if path.is_file():
            found = wide & set(re.findall(r"#include [<\"]([^>\"]+)", path.read_text()))
            assert not found, f"{path} includes {found}: nine times the compile time"


def test_no_raw_openmp_pragma():
    for path in (ROOT / "csrc").glob("**/*.cpp"):
        assert not re.search(r"#pragma omp parallel", path.read_text()), (
            f"{path}: an exception inside a raw OpenMP region aborts Python; use at::parallel_for"
        )


def test_every_submodule_of_the_pages_needs_no_import_of_its_own():
    text = "".join(p.read_text() for p in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    names = sorted(set(re.findall(r"\bfastgen\.(\w+)\.\w+\(", text)))
    assert "train" in names
    for name in names:
        run = subprocess.run([sys.executable, "-c", f"import fastgen; fastgen.{name}"], cwd=ROOT)
        assert run.returncode == 0, f"fastgen.{name}"


def test_import_loads_neither_triton_nor_a_compiler_and_is_quick():
    code = """
import sys, time
import torch
before = set(sys.modules)
start = time.process_time()
import fastgen
seconds = time.process_time() - start
new = {name.split(".")[0] for name in set(sys.modules) - before}
print(seconds, *sorted(new - set(sys.stdlib_module_names) - {"fastgen", "torch"}))
"""
    best = None
    for _ in range(3):
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
        assert run.returncode == 0, run.stderr
        seconds, *loaded = run.stdout.split()
        best = min(float(seconds), best or 9)
    assert loaded == [], f"import fastgen loads {loaded}"
    assert best <= 0.150, f"import fastgen adds {best * 1e3:.0f} ms to import torch"
