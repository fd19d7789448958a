"""Executors run a `fastgen.sampling.program.Program`; all give it the same meaning."""

from fastgen.sampling.executors.cpu import CpuExecutor
from fastgen.sampling.executors.reference import ReferenceExecutor
from fastgen.sampling.executors.stepping import Draw

__all__ = ["CpuExecutor", "Draw", "ReferenceExecutor"]
