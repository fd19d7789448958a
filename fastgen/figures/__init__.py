"""Pictures: grids of images as bare PNG files, and labelled figures through matplotlib."""

from fastgen.figures.curves import training_curves
from fastgen.figures.field import receptive_field
from fastgen.figures.grids import paired, to_grid, write_grid, write_png
from fastgen.figures.samples import real_beside_samples

__all__ = [
    "paired",
    "real_beside_samples",
    "receptive_field",
    "to_grid",
    "training_curves",
    "write_grid",
    "write_png",
]
