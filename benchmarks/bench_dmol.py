"""The mixture-of-logistics likelihood: the table of dmol_nll."""

from fastgen.benchmarks.bench_dmol_nll import ALSO_AT, tables

__all__ = ["ALSO_AT", "tables"]
