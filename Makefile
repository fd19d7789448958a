# make demo, make test: on a bare machine with Python 3.10+ and a C++ compiler, nothing else.
# Both use the active virtual environment, or make .venv.

SHELL := /bin/bash
TORCH ?= torch==2.13.0
PYTHON3 ?= python3

ifdef VIRTUAL_ENV
ENV := $(VIRTUAL_ENV)
else
ENV := $(CURDIR)/.venv
endif
PYTHON := $(ENV)/bin/python
# stamps live in the environment they speak of
TORCH_STAMP := $(ENV)/.fastgen-torch
BUILT := $(ENV)/.fastgen-built
TOOLS := $(ENV)/.fastgen-test-tools
SOURCES := setup.py pyproject.toml $(wildcard _build/*.py) \
           $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: demo test install lint format clean

demo: $(BUILT)
	$(PYTHON) -m fastgen demo

install: $(BUILT)

# Fast tests first. The Triton kernels run in the interpreter, in a process of their own, because a
# kernel decides at import whether it is interpreted.
test: $(BUILT) $(TOOLS)
	$(PYTHON) -m pytest -q tests --ignore=tests/triton_kernels
	set -e; for level in $$($(PYTHON) -c $(OTHER_LEVELS)); do \
	  echo "kernels at level $$level"; \
	  FASTGEN_ISA=$$level $(PYTHON) -m pytest -q $(KERNEL_TESTS); \
	  FASTGEN_ISA=$$level ATEN_CPU_CAPABILITY=$$level $(PYTHON) -m pytest -q $(SAME_BITS_TESTS); \
	done
	TRITON_INTERPRET=1 $(PYTHON) -m pytest -q tests/triton_kernels

OTHER_LEVELS := "from fastgen._load import EXTENSION as c; \
  print(*[l for l in c.supported_isa_levels() if l != c.isa()] if c else [])"
KERNEL_TESTS := tests/test_gated_activation.py tests/test_masked_conv2d.py \
                tests/test_gated_masked_conv2d.py tests/test_executors.py tests/test_sampler.py \
                tests/test_vq_nearest.py tests/test_vq_quantize.py tests/test_vq_ema_update_.py \
                tests/test_philox_normal.py tests/test_philox_uniform.py tests/test_reparam_kl.py \
                tests/test_add_noise.py tests/test_bernoulli_nll.py tests/test_gaussian_nll.py \
                tests/test_dmol_nll.py
# of kernels that promise PyTorch's bits: PyTorch is held to the same level
SAME_BITS_TESTS := tests/test_clip_weights_.py tests/test_rmsprop_clip_.py \
                   tests/test_adam_clip_.py tests/test_ema_update_.py tests/test_optim.py

$(PYTHON):
	$(PYTHON3) -m venv $(ENV)
	$(PYTHON) -m pip install --quiet --upgrade pip

$(TORCH_STAMP): | $(PYTHON)
	$(PYTHON) -c "import torch" 2>/dev/null || $(PYTHON) -m pip install --quiet "$(TORCH)"
	touch $@

$(BUILT): $(SOURCES) $(TORCH_STAMP)
	$(PYTHON) -m pip install --quiet "setuptools>=77" wheel "pybind11>=2.12" ninja
	$(PYTHON) -m pip install --quiet --no-build-isolation -e ".[train]"
	touch $@

$(TOOLS): requirements-dev.txt $(TORCH_STAMP)
	$(PYTHON) -m pip install --quiet -r requirements-dev.txt
	touch $@

lint: $(TOOLS)
	$(ENV)/bin/ruff check .
	$(ENV)/bin/clang-format --dry-run -Werror $(shell git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cuh' 'tests/emu/*.cpp' 'tests/emu/*.h')

format: $(TOOLS)
	$(ENV)/bin/ruff check --fix . && $(ENV)/bin/ruff format .
	$(ENV)/bin/clang-format -i $(shell git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cuh' 'tests/emu/*.cpp' 'tests/emu/*.h')

clean:
	rm -rf build demo .venv *.egg-info fastgen/*.so
