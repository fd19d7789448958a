"""What a model trains on: codes and labels, split into training and held-out test images."""

import dataclasses

import torch
from torch import Tensor

MOST_CLASSES = 65_536  # a label beyond this is a damaged file, not a class


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """images: uint8 codes (N, C, H, W). labels: int64 (N,), or None."""

    images: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Images as codes 0..levels - 1, with a test split that no training image overlaps.

    name: what the data is called. shape: (C, H, W), C is 1 or 3. levels: 2..256.
    classes: number of classes, or None without labels. train, test: the two splits; train has
    at least one image. label_names: a name for each class, or None.

    Raises ValueError or TypeError where these do not fit together.
    """

    name: str
    shape: tuple[int, int, int]
    levels: int
    classes: int | None
    train: Split
    test: Split
    label_names: tuple[str, ...] | None = None

    def __post_init__(self):
        if not 2 <= self.levels <= 256:
            raise ValueError(f"fastgen.data: levels must be in 2..256, got {self.levels}")
        if len(self.shape) != 3 or self.shape[0] not in (1, 3) or min(self.shape) < 1:
            raise ValueError(
                f"fastgen.data: shape must be (C, H, W) with C 1 or 3 and no empty side, "
                f"got {tuple(self.shape)}"
            )
        if self.classes is not None and not 1 <= self.classes <= MOST_CLASSES:
            raise ValueError(
                f"fastgen.data: classes must be in 1..{MOST_CLASSES}, got {self.classes}"
            )
        names = self.label_names
        if names is not None and len(names) != self.classes:
            raise ValueError(
                f"fastgen.data: label_names must hold a name for each of {self.classes} classes, "
                f"got {len(names)} names"
            )
        if not len(self.train):
            raise ValueError(f"fastgen.data: train must hold images, got none in {self.name}")
        for side in ("train", "test"):
            self._check(side, getattr(self, side))

    def _check(self, side: str, split: Split) -> None:
        images, labels = split.images, split.labels
        if images.dtype != torch.uint8:
            raise TypeError(f"fastgen.data: {side} images must be uint8 codes, got {images.dtype}")
        if images.dim() != 4 or tuple(images.shape[1:]) != tuple(self.shape):
            raise ValueError(
                f"fastgen.data: {side} images must have shape (N, {', '.join(map(str, self.shape))}"
                f"), got {tuple(images.shape)}"
            )
        if len(images) and self.levels < 256 and images.max() >= self.levels:
            raise ValueError(
                f"fastgen.data: {side} images must be codes in 0..{self.levels - 1}, "
                f"got {images.max()}"
            )
        if (labels is None) != (self.classes is None):
            got = "no labels" if labels is None else "labels"
            raise ValueError(
                f"fastgen.data: {side} has {got}, but classes is {self.classes}; "
                "give both splits labels, or neither and classes=None"
            )
        if labels is None:
            return
        if labels.dtype != torch.int64:
            raise TypeError(f"fastgen.data: {side} labels must be int64, got {labels.dtype}")
        if labels.shape != images.shape[:1]:
            raise ValueError(
                f"fastgen.data: {side} labels must be one for each of {len(images)} images, "
                f"got shape {tuple(labels.shape)}"
            )
        if len(labels) and not (0 <= labels.min() and labels.max() < self.classes):
            raise ValueError(
                f"fastgen.data: {side} labels must be in 0..{self.classes - 1}, "
                f"got {labels.min()}..{labels.max()}"
            )
