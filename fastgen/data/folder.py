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
    every = (path for found in listed.values() for paths in found.values() for path in paths)
    channels = 1 if grey or not any(map(_has_colour, every)) else 3
    label_names = names if len(names) > 1 else None
    frame = _Frame(size, crop)
    sides = {
        side: _side(found, names, channels, frame, bool(label_names))
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


def _has_colour(path: Path) -> bool:
    with _opened(path) as picture:
        return picture.mode in _COLOUR_MODES


def _side(found, names, channels: int, frame, labelled: bool) -> Pixels:
    data, labels = bytearray(), []  # grown image by image: headers may promise what never comes
    for name, paths in found.items():
        for path in paths:
            data += frame(_decoded(path, channels), path).tobytes()
            labels.append(names.index(name))
    images = np.frombuffer(data, np.uint8).reshape(len(labels), *frame.size, channels)
    return Pixels(images, np.array(labels, np.int64) if labelled else None)


class _Frame:
    """Brings every image to one size, or demands the first one's if none was asked for."""

    def __init__(self, size: tuple[int, int] | None, crop: bool):
        self.size, self.crop, self.first = size, crop, None

    def __call__(self, picture, path: Path):
        found = picture.size[::-1]
        if self.size is None:
            self.size, self.first = found, path
        if found == self.size:
            return np.asarray(picture)
        if self.first is not None:
            raise ValueError(
                f"fastgen.data: images must have one size, got {self.size[0]}x{self.size[1]} "
                f"(height x width) in {self.first} and {found[0]}x{found[1]} in {path}; give size= "
                "to resize them all, and crop=True to cut rather than stretch"
            )
        return np.asarray(fit(picture, self.size, self.crop))


def _decoded(path: Path, channels: int):
    """An upright, opaque 8-bit Pillow image of 1 or 3 channels."""
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
            return picture.convert("RGB" if channels == 3 else "L")
        except Exception as error:  # decoders raise whatever their format breaks
            raise _unreadable(path, error) from error


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
