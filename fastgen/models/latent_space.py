"""What one does in a latent space: reconstruct, interpolate, traverse, add and subtract."""

import torch
from torch import Tensor

_MODES = ("linear", "spherical")


class LatentVectors:
    """For models with `decode(z, condition) -> images` of latent vectors z (B, D)."""

    def _between(self, start, end, steps, mode, condition):
        """The images of `steps` vectors from each of `start` to that of `end`."""
        if mode not in _MODES:
            self._refuse("mode", f"must be of {', '.join(_MODES)}", repr(mode), "choose one")
        self._check_int("steps", steps, "both ends count", least=2)
        if start.shape != end.shape:
            got, expected = f"{len(end)}", f"must be as many as a, {len(start)}"
            self._refuse("b", expected, got, "pair them")
        t = torch.linspace(0, 1, steps, dtype=start.dtype, device=start.device)[:, None]
        start, end = start[:, None], end[:, None]
        z = torch.lerp(start, end, t) if mode == "linear" else _slerp(start, end, t)
        return self._decoded_rows(z, condition)

    def _decoded_rows(self, z, condition):
        if condition is not None:
            condition = condition.repeat_interleave(z.shape[1])
        return self.decode(z.flatten(0, 1), condition).unflatten(0, z.shape[:2])


class LatentSpace(LatentVectors):
    """For models with `latent(images, condition) -> z (B, D)`, what an image is there, and
    `decode(z, condition) -> images`. All of these return what `decode` does, without gradients."""

    @torch.no_grad()
    def reconstruct(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        """What the latent vectors keep of images (B, C, H, W)."""
        return self.decode(self.latent(images, condition), condition)

    @torch.no_grad()
    def interpolate(
        self,
        a: Tensor,
        b: Tensor,
        steps: int = 8,
        mode: str = "linear",
        *,
        condition: Tensor | None = None,
    ) -> Tensor:
        """(B, steps, C, H, W): from the reconstructions of images a to those of images b, both
        included.

        mode: "linear", or "spherical", which keeps the length that vectors of a normal
            distribution have: a straight line between two of them passes nearer to 0.
        """
        start, end = self.latent(a, condition), self.latent(b, condition)
        return self._between(start, end, steps, mode, condition)

    @torch.no_grad()
    def traverse(
        self,
        images: Tensor,
        dim: int,
        range: tuple[float, float] = (-3.0, 3.0),
        steps: int = 8,
        *,
        condition: Tensor | None = None,
    ) -> Tensor:
        """(B, steps, C, H, W): the reconstructions of images with latent variable `dim` set to
        evenly spaced values of `range`."""
        z = self.latent(images, condition)
        if isinstance(dim, bool) or not isinstance(dim, int) or not 0 <= dim < z.shape[1]:
            expected = f"must be an int in 0 .. {z.shape[1] - 1}"
            self._refuse("dim", expected, repr(dim), "it counts the latent variables")
        self._check_int("steps", steps, "both ends count", least=2)
        if not isinstance(range, (tuple, list)) or len(range) != 2:
            self._refuse("range", "must be (first, last)", repr(range), "(-3, 3) shows most")
        z = z[:, None].repeat(1, steps, 1)
        z[..., dim] = torch.linspace(*range, steps, dtype=z.dtype, device=z.device)
        return self._decoded_rows(z, condition)

    @torch.no_grad()
    def latent_arithmetic(
        self, a: Tensor, b: Tensor, c: Tensor, *, condition: Tensor | None = None
    ) -> Tensor:
        """The image of a - b + c, taken among latent vectors."""
        if not len(a) == len(b) == len(c):
            got = f"{len(a)}, {len(b)} and {len(c)}"
            self._refuse("a, b, c", "must be as many images each", got, "expand the shorter ones")
        a, b, c = (self.latent(images, condition) for images in (a, b, c))
        return self.decode(a - b + c, condition)


def _slerp(a, b, t):
    cosine = torch.cosine_similarity(a, b, dim=-1).clamp(-1, 1)[..., None]
    angle = torch.acos(cosine)
    sine = torch.sin(angle)
    along = (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / sine
    # (nearly) one direction, or opposite ones, between which no arc is the shortest
    return torch.where(sine < 1e-4, torch.lerp(a, b, t), along)
