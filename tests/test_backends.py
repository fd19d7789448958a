import os
import subprocess
import sys

import pytest
import torch

import fastgen
from fastgen import _backends, _load


def serving(stem="gated_activation"):
    return {b.name for b in fastgen.backends(stem) if "cpu" in b.runs_on}


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def test_compiled_kernels_serve_the_cpu():
    for stem in _backends.stems():
        assert serving(stem) == {"cpu"}


def test_every_backend_is_listed_with_a_reason():
    for stem in _backends.stems():
        rows = fastgen.backends(stem)
        assert [b.name for b in rows] == ["reference", "cpu", "cuda", "triton"]
        assert all(b.why for b in rows)


def test_unknown_stem_lists_the_known_ones():
    with pytest.raises(ValueError, match="masked_conv2d.*got 'conv'"):
        fastgen.backends("conv")


def test_forcing_nests_and_ends():
    x = torch.randn(2, 4, 3, 3, requires_grad=True)
    with fastgen.use_backend("reference"):
        assert serving() == {"reference"}
        want = fastgen.gated_activation(x)
        with fastgen.use_backend("cpu"):
            assert serving() == {"cpu"}
        assert serving() == {"reference"}
        want.sum().backward()
    assert serving() == {"cpu"}
    torch.testing.assert_close(fastgen.gated_activation(x), want)


def test_a_forced_backend_that_cannot_run_is_an_error():
    with pytest.raises(ValueError, match="one of reference, cpu, cuda, triton, got 'gpu'"):
        with fastgen.use_backend("gpu"):
            pass
    with pytest.raises(RuntimeError, match="cannot run"):
        with fastgen.use_backend("cuda"):  # which a build without CUDA refuses here already
            fastgen.gated_activation(torch.zeros(1, 2, 1, 1))
    assert serving() == {"cpu"}


@pytest.mark.parametrize(
    "environment, words",
    [
        ({"FASTGEN_BACKEND": "cuda"}, "'cuda' is forced and cannot run on cpu tensors"),
        ({"FASTGEN_BACKEND": "fast"}, "there are only reference, cpu, cuda, triton"),
        ({"FASTGEN_ISA": "sse9"}, "FASTGEN_ISA must be default, avx2 or avx512, got 'sse9'"),
    ],
)
def test_bad_environment_is_told_at_first_use_and_not_at_import(environment, words):
    code = "import fastgen, torch; print('imported'); fastgen.gated_activation(torch.ones(1, 2))"
    result = run(code, **environment)
    assert "imported" in result.stdout
    assert result.returncode == 1 and words in result.stderr


def test_environment_forces_a_backend():
    code = "import fastgen; print([b.name for b in fastgen.backends('masked_conv2d') if b.runs_on])"
    assert run(code, FASTGEN_BACKEND="reference").stdout.strip() == "['reference']"


def test_without_the_extension_the_reference_runs_and_says_so():
    code = """
import sys, warnings
sys.modules["fastgen._C"] = None  # as if it were not built
import torch, fastgen
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        x, weight = torch.ones(1, 1, 2, 2), torch.ones(1, 1, 3, 3)
        y = fastgen.masked_conv2d(x, weight, mask=torch.ones(3, 3))
print(y.flatten().tolist(), [str(w.message) for w in caught if "reference" in str(w.message)])
"""
    result = run(code)
    assert result.stdout.startswith("[4.0, 4.0, 4.0, 4.0] ['fastgen.masked_conv2d: running the")
    assert result.stdout.count("not built") == 1


@pytest.mark.parametrize("name", _backends.self_tested())
def test_self_test_passes(name):
    assert _backends.self_test(name, "cpu") < 1e-5


def test_info_reports_and_exits_zero():
    result = subprocess.run(
        [sys.executable, "-m", "fastgen", "info", "--json"], capture_output=True, text=True
    )
    import json

    report = json.loads(result.stdout)
    assert result.returncode == 0
    assert report["cpu"]["level"] == _load.EXTENSION.isa()
    assert set(report["ops"]) == set(_backends.stems())
    executors = {row["executor"]: row["available"] for row in report["sampler"]}
    assert executors == {"cuda": False, "cpu": True, "reference": True}
    assert all(row["passed"] for row in report["self_test"])


def test_more_than_one_thread_takes_part():
    # at::parallel_for is silently serial in a file compiled without OpenMP
    code = """
import os, threading, torch, fastgen
torch.set_num_threads(2)
x = torch.randn(64, 128, 64, 64)
fastgen.gated_activation(x)
print(len(os.listdir("/proc/self/task")))
"""
    assert int(run(code, OMP_NUM_THREADS="2").stdout) >= 2
