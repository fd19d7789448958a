"""A data set and a model small enough to train in a test."""

from types import SimpleNamespace

import torch

from fastgen.models import GatedPixelCNN

SHAPE, LEVELS, CLASSES = (1, 4, 4), 3, 2


def tiny_data(count=22, labelled=True):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, LEVELS, (count, *SHAPE), generator=generator, dtype=torch.uint8)
    labels = torch.arange(count) % CLASSES if labelled else None
    split = SimpleNamespace(images=images, labels=labels)
    return SimpleNamespace(
        train=split,
        test=SimpleNamespace(images=images[:7], labels=labels[:7] if labelled else None),
        shape=SHAPE,
        levels=LEVELS,
        classes=CLASSES if labelled else None,
        name="tiny",
    )


def tiny_model(seed=0, **options):
    options = {"channels": 4, "layers": 1, "first_kernel_size": 3, "classes": CLASSES} | options
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GatedPixelCNN(SHAPE, LEVELS, **options)
