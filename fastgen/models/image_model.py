"""What every model of images here checks alike: its sizes, and the codes it is given."""

import torch
from torch import Tensor, nn


class ImageModel(nn.Module):
    """A model of images as int64 codes (B, C, H, W) in 0 .. levels - 1.

    Args:
        shape: (C, H, W) of the images.
        levels: number of values a code takes.
        classes: number of labels; then a condition is int64 labels (B,).
    """

    conditional = "a conditional model"  # what takes the labels that this one refuses

    def __init__(self, shape, levels, classes=None):
        super().__init__()
        remedy = "an 8-bit grey image has shape (1, H, W) and 256 levels"
        if not isinstance(shape, (tuple, list)) or len(shape) != 3:
            self._refuse("shape", "must be (C, H, W)", shape, remedy)
        for size in shape:
            self._check_int("shape", size, remedy)
        self._check_int("levels", levels, remedy)
        if classes is not None:
            self._check_int("classes", classes, "leave it out for a model without")
        self.shape, self.levels, self.classes = tuple(shape), levels, classes

    def _check_int(self, argument, value, remedy, least=1):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            expected = "a positive int" if least == 1 else f"an int >= {least}"
            self._refuse(argument, f"must be {expected}", value, remedy)

    def _check_multiple(self, argument, value, multiple):
        if value % multiple:
            self._refuse(
                argument,
                f"must be a multiple of {multiple} for images of {self.shape[0]} colours",
                value,
                f"use {max(1, round(value / multiple)) * multiple}",
            )

    def _refuse(self, argument, expected, got, remedy, error=ValueError):
        name = type(self).__name__
        raise error(f"fastgen.models.{name}: {argument} {expected}, got {got}; {remedy}")

    def _check_codes(self, codes):
        if not isinstance(codes, Tensor) or codes.dtype != torch.int64:
            got = codes.dtype if isinstance(codes, Tensor) else type(codes).__name__
            self._refuse("codes", "must be an int64 tensor", got, "convert with .long()", TypeError)
        if codes.dim() != 4 or tuple(codes.shape[1:]) != self.shape:
            expected = f"must be (B, {', '.join(map(str, self.shape))})"
            self._refuse("codes", expected, tuple(codes.shape), "or build the model for that shape")

    def _check_range(self, argument, what, values, count):
        if values.numel():
            low, high = (int(v) for v in torch.aminmax(values))
            if low < 0 or high >= count:
                self._refuse(
                    argument,
                    f"must hold {what} in 0 .. {count - 1}",
                    low if low < 0 else high,
                    "check the data, or build the model for more",
                )

    def _check_choice(self, argument, value, known):
        if value not in known:
            self._refuse(argument, f"must be of {', '.join(known)}", repr(value), "choose one")

    def _check_module(self, argument, module):
        """One's own network, or None for a default one."""
        if isinstance(module, str):
            name = type(self).__name__
            raise ValueError(
                f"fastgen.models.{name}: {argument} was your own module {module}, which a "
                f"checkpoint's config cannot rebuild; build the {name} with it and give that "
                "to fastgen.checkpoint.load(directory, model)"
            )
        if module is not None and not isinstance(module, nn.Module):
            got = type(module).__name__
            self._refuse(argument, "must be an nn.Module", got, "None is a default", TypeError)

    @staticmethod
    def _name_of(module):
        """In a config."""
        return None if module is None else type(module).__qualname__

    def _checked(self, images, condition):
        """The labels, after a look at everything that was given."""
        if not isinstance(images, Tensor):
            self._refuse("images", "must be a tensor", type(images).__name__, "use torch.as_tensor",
                         TypeError)  # fmt: skip
        if images.dim() != 4 or tuple(images.shape[1:]) != self.shape:
            expected = f"must be (B, {', '.join(map(str, self.shape))})"
            self._refuse("images", expected, tuple(images.shape), "or build the model for that")
        if not images.is_floating_point():
            if self.levels is None:
                remedy = "convert them, or give the model levels="
                self._refuse("images", "must be floats", images.dtype, remedy, TypeError)
            if images.device.type == "cpu" and not torch.compiler.is_compiling():
                self._check_range("images", "levels", images, self.levels)
        return self._labels(condition, len(images), images.device)

    def _labels(self, condition, batch, device):
        """int64 (batch,); zeros where there are no classes."""
        if self.classes is None:
            if condition is not None:
                got = type(condition).__name__
                self._refuse("condition", "must be None", got, f"{self.conditional} takes labels")
            return torch.zeros(batch, dtype=torch.int64, device=device)
        expected, remedy = f"must be int64 labels ({batch},)", "give one for each image"
        if not isinstance(condition, Tensor):
            self._refuse("condition", expected, type(condition).__name__, remedy)
        if condition.dtype != torch.int64:
            self._refuse("condition", expected, condition.dtype, "use .long()", TypeError)
        if tuple(condition.shape) != (batch,):
            self._refuse("condition", expected, tuple(condition.shape), remedy)
        if condition.device.type == "cpu" and not torch.compiler.is_compiling():
            self._check_range("condition", "labels", condition, self.classes)
        return condition
