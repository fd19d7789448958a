"""GroupedResidualVQ: parts of a vector, each through a ResidualVQ of its own."""

import torch
from torch import Tensor, nn

from fastgen.nn.codebook_draw import shared_seed
from fastgen.nn.residual_vq import ResidualVQ
from fastgen.nn.vq_inputs import check_float
from fastgen.nn.vq_options import refuse


class GroupedResidualVQ(nn.Module):
    """Splits x into `groups` equal parts, quantises each by a `ResidualVQ`, and joins them. A
    drop-in for `GroupedResidualVQ` of vector-quantize-pytorch 1.32.

    Args:
        dim: D of x, a multiple of `groups`.
        groups: G.
        accept_image_fmap: for x (B, D, H, W).
        Others: those of `ResidualVQ`, for every group.

    Raises:
        NotImplementedError, ValueError: as `ResidualVQ`; a dim that is no multiple of groups.

    Source: Yang et al., HiFi-Codec, 2023, section 3.1.
    """

    def __init__(self, *, dim: int, groups: int = 1, accept_image_fmap: bool = False, **kwargs):
        super().__init__()
        if groups < 1 or dim % groups:
            refuse("GroupedResidualVQ", "groups", f"must divide dim={dim}", groups, "choose others")
        self.dim, self.groups, self.accept_image_fmap = dim, groups, accept_image_fmap
        self.rvqs = nn.ModuleList(
            ResidualVQ(dim=dim // groups, accept_image_fmap=accept_image_fmap, **kwargs)
            for _ in range(groups)
        )

    def forward(
        self,
        x: Tensor,
        indices: Tensor | list[Tensor] | None = None,
        return_all_codes: bool = False,
        sample_codebook_temp: float | None = None,
        freeze_codebook: bool = False,
        mask: Tensor | None = None,
    ):
        """`ResidualVQ.forward` for every group; see there. All groups drop the same stages.

        Returns:
            quantized: x's shape and dtype.
            indices: int64 (G, ..., Q).
            losses: (G, Q).
            all_codes: a tuple of G tensors (Q, ..., D of the codes), if asked for.
            With `indices=` (G, ..., Q): (quantized, cross entropy).
        """
        check_float(type(self).__name__, x)
        axis = self.split_dim
        if x.dim() < 2 or x.shape[axis] != self.dim:
            refuse(
                type(self).__name__,
                "x",
                f"must have {self.dim} values along axis {axis}",
                tuple(x.shape),
                "build the layer with that dim, or see accept_image_fmap",
            )
        if indices is not None and len(indices) != self.groups:
            refuse(
                type(self).__name__,
                "indices",
                f"must be those of {self.groups} groups",
                len(indices),
                "pass what a forward returned",
            )
        drops = self.training and indices is None and self.rvqs[0].quantize_dropout
        seed = shared_seed(x.device) if drops else None
        given = [None] * self.groups if indices is None else indices
        parts = zip(self.rvqs, x.chunk(self.groups, axis), given, strict=True)
        outs = [
            rvq(
                part,
                mask=mask,
                indices=at,
                return_all_codes=return_all_codes,
                sample_codebook_temp=sample_codebook_temp,
                freeze_codebook=freeze_codebook,
                rand_quantize_dropout_fixed_seed=seed,
            )
            for rvq, part, at in parts
        ]
        quantized, *found = zip(*outs, strict=True)
        quantized = torch.cat(quantized, axis)
        if indices is not None:
            return quantized, torch.stack(found[0]).sum()
        return quantized, torch.stack(found[0]), torch.stack(found[1]), *found[2:]

    @property
    def split_dim(self) -> int:
        return 1 if self.accept_image_fmap else -1

    @property
    def codebooks(self) -> Tensor:
        """(G, Q, K, D)."""
        return torch.stack([rvq.codebooks for rvq in self.rvqs])

    @property
    def usage(self) -> Tensor:
        """As of `ResidualVQ`, (G, Q)."""
        return torch.stack([rvq.usage for rvq in self.rvqs])

    @property
    def dead_codes(self) -> Tensor:
        """As of `ResidualVQ`, int64 (G, Q)."""
        return torch.stack([rvq.dead_codes for rvq in self.rvqs])

    @property
    def perplexity(self) -> Tensor:
        """As of `ResidualVQ`, (G, Q)."""
        return torch.stack([rvq.perplexity for rvq in self.rvqs])

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """(G, Q, ..., D) from indices (G, ..., Q)."""
        return torch.stack(
            [rvq.get_codes_from_indices(i) for rvq, i in zip(self.rvqs, indices, strict=True)]
        )

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """The quantized values that a forward with these indices (G, ..., Q) returns."""
        outputs = [
            rvq.get_output_from_indices(i) for rvq, i in zip(self.rvqs, indices, strict=True)
        ]
        return torch.cat(outputs, self.split_dim)
