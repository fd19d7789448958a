"""Pictures: grids of images as bare PNG files, and labelled figures through matplotlib."""

from fastgen.figures.adversarial import (
    generator_gradient,
    generator_gradients,
    weight_histograms,
)
from fastgen.figures.curves import curve_panels, training_curves
from fastgen.figures.field import receptive_field
from fastgen.figures.grids import interleaved, to_grid, write_grid, write_png
from fastgen.figures.latent_space import kl_per_dimension, latent_scatter
from fastgen.figures.latents import (
    interpolation_strips,
    latent_arithmetic,
    latent_manifold,
    manifold_points,
    reconstructions,
    traversal_grid,
)
from fastgen.figures.points import plane, points, write_points
from fastgen.figures.quick import are_points, samples_shown, write_comparison, write_samples
from fastgen.figures.samples import real_beside_samples

__all__ = [
    "are_points",
    "curve_panels",
    "generator_gradient",
    "generator_gradients",
    "interleaved",
    "interpolation_strips",
    "kl_per_dimension",
    "latent_arithmetic",
    "latent_manifold",
    "latent_scatter",
    "manifold_points",
    "plane",
    "points",
    "real_beside_samples",
    "receptive_field",
    "reconstructions",
    "samples_shown",
    "to_grid",
    "training_curves",
    "traversal_grid",
    "weight_histograms",
    "write_comparison",
    "write_grid",
    "write_png",
    "write_points",
    "write_samples",
]
