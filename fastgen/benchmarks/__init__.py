"""Benchmarks. In a checkout they live in the top-level benchmarks/; wheels carry them here."""

from pathlib import Path

_checkout = Path(__file__).resolve().parents[2] / "benchmarks"
if _checkout.is_dir():
    __path__.append(str(_checkout))
