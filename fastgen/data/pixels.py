"""What every source hands over, and the steps from there to codes: grey, size, levels."""

import dataclasses
import importlib

import numpy as np

_LUMA = (299, 587, 114)  # ITU-R BT.601, in thousandths


@dataclasses.dataclass
class Pixels:
    """images: uint8 (N, H, W, C), values 0..levels - 1. labels: int64 (N,), or None.

    are_codes: the values are codes without an order that could be averaged or quantised."""

    images: np.ndarray
    labels: np.ndarray | None = None
    levels: int = 256
    are_codes: bool = False


def require(module: str, package: str, purpose: str):
    """Imports an optional package, or says how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"fastgen.data: {purpose} needs {package}, which could not be imported ({error}); "
            "run `pip install fastgen[train]`"
        ) from error


def from_array(array: np.ndarray, where: str, levels: int | None) -> Pixels:
    """Pixels of an array (N, H, W), (N, H, W, C) or (N, C, H, W) with C 1 or 3.

    uint8: 256 levels. Floats in [0, 1]: v becomes floor(256 v), 1 becomes 255, which takes back
    both v = k / 255 and v = k / 256. bool and other integers: codes in 0..levels - 1 as they are
    (levels defaults to 2 and 256)."""
    images = _channels_last(array, where)
    if images.dtype == np.uint8:
        return Pixels(images)
    if images.dtype.kind == "f":
        if images.size and not (images.min() >= 0 and images.max() <= 1):  # False for NaN too
            raise ValueError(
                f"fastgen.data: floating-point images must be in [0, 1], got "
                f"{images.min():g}..{images.max():g} in {where}; rescale them, or save uint8"
            )
        wide = images.astype(np.promote_types(images.dtype, np.float32)) * 256
        return Pixels(np.minimum(wide, 255).astype(np.uint8))
    if images.dtype.kind not in "bui":
        raise TypeError(
            f"fastgen.data: images must be uint8, other integers, bool or floats, got "
            f"{images.dtype} in {where}; save uint8"
        )
    levels = levels or (2 if images.dtype.kind == "b" else 256)
    if images.size and not (images.min() >= 0 and images.max() < levels):
        raise ValueError(
            f"fastgen.data: images of {images.dtype} must be codes in 0..{levels - 1}, got "
            f"{images.min()}..{images.max()} in {where}; give levels={int(images.max()) + 1} "
            "(at most 256), or save uint8"
        )
    return Pixels(images.astype(np.uint8), levels=levels, are_codes=True)


def labels_from_array(array: np.ndarray, count: int, where: str) -> np.ndarray:
    """int64 (count,) from integers (count,) or (count, 1)."""
    if array.dtype.kind not in "ui":
        raise TypeError(
            f"fastgen.data: labels must be integers, got {array.dtype} in {where}; "
            "save class numbers 0, 1, ..."
        )
    if array.shape not in ((count,), (count, 1)):
        raise ValueError(
            f"fastgen.data: labels must be one for each of {count} images, got shape "
            f"{array.shape} in {where}; give the labels of these images"
        )
    if array.size and not (array.min() >= 0 and array.max() < 2**31):
        raise ValueError(
            f"fastgen.data: labels must be class numbers 0, 1, ..., got "
            f"{array.min()}..{array.max()} in {where}; number the classes from 0"
        )
    return array.reshape(count).astype(np.int64)


def _channels_last(array: np.ndarray, where: str) -> np.ndarray:
    if array.ndim in (3, 4) and 0 in array.shape[1:]:  # any number of such images takes no bytes
        raise ValueError(
            f"fastgen.data: images must have at least one pixel, got shape {array.shape} in "
            f"{where}; save the images again"
        )
    if array.ndim == 3:
        return array[..., None]
    if array.ndim == 4:
        first, last = array.shape[1] in (1, 3), array.shape[3] in (1, 3)
        if first and last and array.shape[1:] != (1, 1, 1):
            raise ValueError(
                f"fastgen.data: images must be (N, H, W, C) or (N, C, H, W), got {array.shape} in "
                f"{where}, which could be both; build fastgen.data.Dataset from the tensors"
            )
        if first or last:
            return array if last else np.moveaxis(array, 1, 3)
    raise ValueError(
        f"fastgen.data: images must be (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 "
        f"channels, got {array.shape} in {where}; reshape the array before saving it"
    )


def to_grey(pixels: Pixels, where: str) -> Pixels:
    if pixels.images.shape[3] == 1:
        return pixels
    if pixels.are_codes:
        raise ValueError(
            f"fastgen.data: grey takes uint8 or floating-point images, got codes in {where}; "
            "leave grey out, or save uint8"
        )
    luma = np.zeros(pixels.images.shape[:3], np.uint32)
    for channel, weight in enumerate(_LUMA):
        luma += weight * pixels.images[..., channel].astype(np.uint32)
    grey = ((luma + 500) // 1000).astype(np.uint8)
    return dataclasses.replace(pixels, images=grey[..., None])


def to_size(pixels: Pixels, size: tuple[int, int], crop: bool, where: str) -> Pixels:
    count, height, width, channels = pixels.images.shape
    if (height, width) == size:
        return pixels
    if pixels.are_codes or pixels.levels != 256:
        raise ValueError(
            f"fastgen.data: size must be {height}x{width} for {where}, whose codes cannot be "
            f"resized, got {size[0]}x{size[1]}; leave size out"
        )
    image = require("PIL.Image", "Pillow", "resizing images")
    resized = np.empty((count, *size, channels), np.uint8)
    for source, target in zip(pixels.images, resized, strict=True):
        picture = image.fromarray(source[..., 0] if channels == 1 else source)
        target[...] = np.asarray(fit(picture, size, crop)).reshape(target.shape)
    return dataclasses.replace(pixels, images=resized)


def fit(picture, size: tuple[int, int], crop: bool):
    """A Pillow image in size (H, W): stretched, or scaled and cut to the centre."""
    lanczos = require("PIL.Image", "Pillow", "resizing images").Resampling.LANCZOS
    if crop:
        ops = require("PIL.ImageOps", "Pillow", "cropping images")
        return ops.fit(picture, size[::-1], lanczos)
    return picture.resize(size[::-1], lanczos)


def to_levels(pixels: Pixels, levels: int, where: str) -> Pixels:
    """Equal bins: v becomes v * levels // pixels.levels."""
    if levels == pixels.levels:
        return pixels
    if levels > pixels.levels or pixels.are_codes:
        raise ValueError(
            f"fastgen.data: levels must be {'' if pixels.are_codes else 'at most '}"
            f"{pixels.levels} for {where}, got {levels}; leave levels out"
        )
    table = (np.arange(256) * levels // pixels.levels).astype(np.uint8)
    return dataclasses.replace(pixels, images=table[pixels.images], levels=levels)
