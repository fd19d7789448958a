"""Benchmarks that need a process of their own, and the data and rules of the vector-quantisation
ones. Never how fast anything is."""

import os

import pytest
import torch

from fastgen.benchmarks import own_process, vq_problems
from fastgen.benchmarks.own_process import extra_megabytes, in_own_process
from fastgen.benchmarks.vq_problems import Shape


def test_a_setting_reaches_the_process_and_only_it():
    found = in_own_process(os.getenv, "FASTGEN_TEST_SETTING", FASTGEN_TEST_SETTING="7")
    assert found == "7" and os.getenv("FASTGEN_TEST_SETTING") is None


def test_arguments_and_results_cross_over():
    assert in_own_process(vq_problems.megabytes, 3 * 2**20) == 3.0


def test_a_process_that_fails_is_named(monkeypatch):
    monkeypatch.setattr(own_process, "_CODE", "assert 0")
    with pytest.raises(RuntimeError, match=r"megabytes\(1,\) failed .* exit code 1"):
        in_own_process(vq_problems.megabytes, 1)


def test_what_is_wrong_there_is_wrong_here(monkeypatch):
    code = "import sys; open(sys.argv[4], 'w').write('{\"wrong\": \"a code\"}')"
    monkeypatch.setattr(own_process, "_CODE", code)
    with pytest.raises(AssertionError, match="a code"):
        in_own_process(vq_problems.megabytes, 1)


def test_memory_beside_results():
    def call():
        scratch = torch.ones(64 << 18)  # 64 MiB
        return scratch[: 4 << 18].clone(), scratch.sum()

    found = extra_megabytes(call)
    if found is None:
        pytest.skip("this system does not tell")
    assert 50 < found < 80


def test_fewer_rows_and_flops():
    shape = Shape(65536, 512, 64)
    assert shape.flops == 2 * 65536 * 512 * 64
    assert shape.fewer_rows(1 << 20) == (2048, 512, 64) and shape.fewer_rows(1) == (1, 512, 64)
    assert shape.fewer_rows(1 << 40) == shape


def test_a_wrong_code_has_no_speed():
    x, codebook = vq_problems.data(Shape(50, 7, 4))
    nearest = torch.cdist(x.double(), codebook.double()).argmin(1)
    assert vq_problems.check_nearest(nearest, x, codebook) == 0
    nearest[3] = (nearest[3] + 1) % 7
    with pytest.raises(AssertionError, match="too far"):
        vq_problems.check_nearest(nearest, x, codebook)
