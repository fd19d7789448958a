"""A folder of images, read through Pillow."""

import warnings
from pathlib import Path

import numpy as np

from fastgen.data.pixels import Pixels, fit, require

_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
_MOST_PIXELS = 89_478_485  # Pillow's own limit, where it only warns
_GREY_MODES = {"1", "L", "LA", "La", "I;16", "I;16B", "I;16L"}
_COLOUR_MODES = {"RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "CMYK", "YCbCr"}


def read(
    directory: Path, size: tuple[int, int] | None, crop: bool, grey: bool
) -> tuple[Pixels, Pixels | None, tuple[str, ...] | None]:
    """Training images, test images (None without train/ and test/) and names of the classes.

    Subfolders are classes, in alphabetical order, and may be nested; one subfolder alone gives
    no labels. Colour if any image has colour. Transparent parts become white, the camera's
    orientation is followed, 16-bit grey becomes 8-bit."""
    splits = {side: directory / side for side in ("train", "test")}
    if not splits["train"].is_dir():
        splits = {"train": directory}
    listed = {side: _by_class(path) for side, path in splits.items() if path.is_dir()}
    names = tuple(listed["train"])
    stranger = next((c for found in listed.values() for c in found if c not in names), None)
    if stranger is not None:
        raise ValueError(
            f"fastgen.data: the subfolders of {splits['test']} must be among those of "
            f"{splits['train']}, got {stranger!r}; add training images of it, or take it away"
        )
    every = [path for found in listed.values() for paths in found.values() for path in paths]
    has_colour, common = _survey(every, size)
    channels = 3 if has_colour and not grey else 1
    label_names = names if len(names) > 1 else None
    sides = {
        side: _side(found, names, common, crop, channels, bool(label_names))
        for side, found in listed.items()
    }
    return sides["train"], sides.get("test"), label_names


def _by_class(directory: Path) -> dict[str, list[Path]]:
    """Sorted images of each subfolder; of "" where the images lie in the folder itself."""
    entries = sorted(e for e in directory.iterdir() if not e.name.startswith("."))
    loose = [e for e in entries if _is_image(e)]
    found = {e.name: sorted(filter(_is_image, e.rglob("*"))) for e in entries if e.is_dir()}
    found = {name: images for name, images in found.items() if images}
    if loose and found:
        raise ValueError(
            f"fastgen.data: {directory} must hold either images or subfolders of images, got "
            f"{loose[0].name} and {next(iter(found))}/; move the loose images into a subfolder"
        )
    if not loose and not found:
        raise ValueError(
            f"fastgen.data: {directory} must hold images ({' '.join(sorted(_SUFFIXES))}) or IDX "
            f"files, got {len(entries)} other entries; give the folder that holds them"
        )
    return {"": loose} if loose else found


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith(".") and path.is_file()


def _survey(paths: list[Path], size: tuple[int, int] | None) -> tuple[bool, tuple[int, int]]:
    """Reads every header, decodes nothing: (whether any image has colour, the size of all)."""
    has_colour, first = False, None
    for path in paths:
        with _opened(path) as picture:
            has_colour |= picture.mode in _COLOUR_MODES
            sideways = picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            found = picture.size if sideways else picture.size[::-1]
        first = first or found
        if size is None and found != first:
            raise ValueError(
                f"fastgen.data: images must have one size, got {first[0]}x{first[1]} (height x "
                f"width) in {paths[0]} and {found[0]}x{found[1]} in {path}; give size= to resize "
                "them all, and crop=True to cut rather than stretch"
            )
    return has_colour, size or first


def _side(found, names, size, crop: bool, channels: int, labelled: bool) -> Pixels:
    data, labels = bytearray(), []  # grown image by image: headers may promise what never comes
    for name, paths in found.items():
        for path in paths:
            data += _decoded(path, size, crop, channels).tobytes()
            labels.append(names.index(name))
    images = np.frombuffer(data, np.uint8).reshape(len(labels), *size, channels)
    return Pixels(images, np.array(labels, np.int64) if labelled else None)


def _decoded(path: Path, size: tuple[int, int], crop: bool, channels: int) -> np.ndarray:
    image = require("PIL.Image", "Pillow", "a folder of images")
    ops = require("PIL.ImageOps", "Pillow", "a folder of images")
    with _opened(path) as picture:
        try:
            picture = ops.exif_transpose(picture)
            if picture.mode.startswith("I;16"):  # convert("L") would clip, not scale
                picture = image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
            if picture.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in picture.info:
                picture = picture.convert("RGBA")
                white = image.new("RGBA", picture.size, "white")
                picture = image.alpha_composite(white, picture)
            picture = picture.convert("RGB" if channels == 3 else "L")
        except Exception as error:  # decoders raise whatever their format breaks
            raise _unreadable(path, error) from error
    return np.asarray(picture if picture.size == size[::-1] else fit(picture, size, crop))


def _opened(path: Path):
    """An image of which only the header has been read."""
    image = require("PIL.Image", "Pillow", "a folder of images")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", image.DecompressionBombWarning)  # refused below
            picture = image.open(path, formats=_FORMATS)
    except Exception as error:  # decoders raise whatever their format breaks
        raise _unreadable(path, error) from error
    if picture.width * picture.height > _MOST_PIXELS:
        picture.close()
        raise ValueError(
            f"fastgen.data: {path} must have at most {_MOST_PIXELS:,} pixels, got "
            f"{picture.width}x{picture.height}; shrink it or take it away"
        )
    if picture.mode not in _GREY_MODES | _COLOUR_MODES:
        picture.close()
        raise ValueError(
            f"fastgen.data: {path} must be an 8-bit or 16-bit grey or a colour image, got Pillow "
            f"mode {picture.mode}; save it as 8-bit"
        )
    return picture


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"fastgen.data: {path} must be a readable image, got {type(error).__name__}: {error}; "
        "replace it or take it away"
    )
