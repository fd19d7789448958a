"""IDX, .npy and .npz readers that believe no header: sizes are compared with the file before
anything is allocated, compressed data is read in bounded steps, and nothing is unpickled."""

import gzip
import io
import math
import re
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np

from fastgen.data.pixels import Pixels, from_array, labels_from_array

_MOST_UNPACKED = 4 << 30  # bytes of one compressed array; larger ones can be unpacked first
_MOST_RATIO = 1032  # deflate packs at most 258 bytes into 2 bits
_STEP = 1 << 20  # bytes asked for at once
_MOST_NPY_HEADER = 10_000  # as NumPy itself

_IDX_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_IDX_IMAGES = re.compile(r"(.*?)(train|t10k|test)[-_]images[-_.]idx[34][-_.]ubyte(\.gz)?")

# names of images and labels in an .npz, in order of preference
_NPZ_TRAIN = (
    ("x_train", "y_train"),
    ("train_images", "train_labels"),
    ("images", "labels"),
    ("codes", "labels"),
    ("x", "y"),
    ("X", "y"),
    ("data", "labels"),
)
_NPZ_TEST = (("x_test", "y_test"), ("test_images", "test_labels"))


def read(path: Path, levels: int | None) -> tuple[Pixels, Pixels | None]:
    """Training and test images of an IDX folder, or of an IDX, .npz or .npy file; None for the
    test where the file has none."""
    if path.is_dir():
        train, test = _idx_pair(path)
        return _idx_pixels(train, levels), _idx_pixels(test, levels) if test else None
    if path.suffix == ".npz":
        return _npz_pixels(path, levels)
    if path.suffix == ".npy":
        return _with_labels(path, _read_npy, levels), None
    return _idx_pixels(path, levels), None


def has_idx(directory: Path) -> bool:
    return any(_IDX_IMAGES.fullmatch(entry.name) for entry in directory.iterdir())


def _idx_pair(directory: Path) -> tuple[Path, Path | None]:
    found: dict[str, Path] = {}
    for entry in sorted(directory.iterdir()):  # the unpacked file sorts before its .gz
        match = _IDX_IMAGES.fullmatch(entry.name)
        if match is None:
            continue
        side = "train" if match[2] == "train" else "test"
        other = found.setdefault(side, entry)
        if other != entry and entry.name != f"{other.name}.gz":
            raise ValueError(
                f"fastgen.data: {directory} must hold one file of {side} images, got "
                f"{other.name} and {entry.name}; give the path of one of them"
            )
    if "train" not in found:
        return found["test"], None
    return found["train"], found.get("test")


def _idx_pixels(path: Path, levels: int | None) -> Pixels:
    return _with_labels(path, _read_idx, levels)


def _with_labels(path: Path, reader, levels: int | None) -> Pixels:
    """Images and the labels beside them: "images" in the file's name turned into "labels"."""
    pixels = from_array(reader(path), str(path), levels)
    plain = path.name.removesuffix(".gz")
    name = re.sub(r"idx[34]", "idx1", plain.replace("images", "labels"))
    beside = [path.with_name(name), path.with_name(f"{name}.gz")] if name != plain else []
    labels = next((p for p in beside if p.is_file()), None)
    if labels is not None:
        pixels.labels = labels_from_array(reader(labels), len(pixels.images), str(labels))
    return pixels


def _read_idx(path: Path) -> np.ndarray:
    """The array of an IDX file (http://yann.lecun.com/exdb/mnist), gzipped or not."""
    packed = path.stat().st_size
    with path.open("rb") as raw:
        is_gzip = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream = gzip.GzipFile(fileobj=raw) if is_gzip else raw
        try:
            magic = stream.read(4)
            if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _IDX_DTYPES:
                raise ValueError(
                    f"fastgen.data: {path} must be an IDX, .npz or .npy file or a folder, got a "
                    f"file that starts with {magic.hex(' ') or 'nothing'}; convert it"
                )
            sizes = _exactly(stream, 4 * magic[3], path)
            shape = struct.unpack(f">{magic[3]}I", sizes)
            dtype = np.dtype(_IDX_DTYPES[magic[2]])
            rest = None if is_gzip else packed - 4 - 4 * magic[3]
            return _body(stream, shape, dtype, path, rest=rest, packed=packed)
        except (EOFError, OSError, zlib.error) as error:
            raise _damaged(path, error) from error


def _read_npy(path: Path) -> np.ndarray:
    with path.open("rb") as stream:
        return _npy_array(stream, path, size=path.stat().st_size, packed=None)


def _npy_array(stream, where, *, size: int, packed: int | None) -> np.ndarray:
    """size: bytes of the .npy. packed: what they take in a compressed file, else None."""
    head = _exactly(stream, 8, where)
    if head[:6] != b"\x93NUMPY" or tuple(head[6:8]) not in ((1, 0), (2, 0)):
        raise ValueError(
            f"fastgen.data: {where} must be an .npy array of format 1.0 or 2.0, got a start of "
            f"{head.hex(' ')}; save it with numpy.save"
        )
    field = _exactly(stream, 2 if head[6] == 1 else 4, where)
    length = int.from_bytes(field, "little")
    if length > min(_MOST_NPY_HEADER, size):
        raise ValueError(
            f"fastgen.data: the header of {where} must be at most {_MOST_NPY_HEADER} bytes, got "
            f"{length}; save it with numpy.save"
        )
    header = io.BytesIO(field + _exactly(stream, length, where))
    parse = np.lib.format.read_array_header_1_0
    if head[6] == 2:
        parse = np.lib.format.read_array_header_2_0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's, about the source text of a damaged header
            shape, fortran_order, dtype = parse(header)
    except Exception as error:  # the parser lets through whatever ast and tokenize raise
        raise _damaged(where, error) from error
    if dtype.kind not in "buif" or dtype.names or dtype.subdtype:
        raise TypeError(
            f"fastgen.data: {where} must hold numbers, got dtype {dtype}; save uint8 images and "
            "integer labels (objects are never unpickled)"
        )
    if any(side < 0 for side in shape):
        raise ValueError(f"fastgen.data: {where} must have no negative side, got shape {shape}")
    rest = size - len(head) - len(field) - length
    if fortran_order:
        return _body(stream, shape[::-1], dtype, where, rest=rest, packed=packed).T
    return _body(stream, shape, dtype, where, rest=rest, packed=packed)


def _npz_pixels(path: Path, levels: int | None) -> tuple[Pixels, Pixels | None]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {i.filename.removesuffix(".npy"): i for i in archive.infolist()}
            train = next((pair for pair in _NPZ_TRAIN if pair[0] in members), None)
            if train is None and len(members) == 1:
                train = (next(iter(members)), "")
            if train is None:
                raise ValueError(
                    f"fastgen.data: {path} must hold images and labels (or x_train, y_train, "
                    f"x_test, y_test), got {', '.join(sorted(members)[:8]) or 'nothing'}; "
                    "rename the arrays"
                )
            test = next((pair for pair in _NPZ_TEST if pair[0] in members), None)
            return tuple(
                pair and _npz_side(archive, members, pair, path, levels) for pair in (train, test)
            )
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, zlib.error) as error:
        raise _damaged(path, error) from error


def _npz_side(archive, members, pair: tuple[str, str], path: Path, levels) -> Pixels:
    images, labels = pair
    where = f"{images} of {path}"
    pixels = from_array(_npz_member(archive, members[images], where), where, levels)
    if labels in members:
        where = f"{labels} of {path}"
        array = _npz_member(archive, members[labels], where)
        pixels.labels = labels_from_array(array, len(pixels.images), where)
    return pixels


def _npz_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str) -> np.ndarray:
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
        raise ValueError(
            f"fastgen.data: {where} must be stored or deflated and not encrypted; "
            "save it with numpy.savez"
        )
    packed = min(info.compress_size, Path(archive.filename).stat().st_size)
    with archive.open(info) as stream:
        return _npy_array(stream, where, size=info.file_size, packed=packed)


def _body(stream, shape, dtype: np.dtype, where, *, rest, packed) -> np.ndarray:
    """The array that follows a header, after its size was found possible.

    rest: bytes that follow, where the file says so. packed: size of the compressed file."""
    claimed = math.prod(shape) * dtype.itemsize  # Python integers: no overflow
    if rest is not None and claimed != rest:
        raise ValueError(
            f"fastgen.data: {where} must hold the {claimed:,} bytes that its header promises "
            f"(shape {tuple(shape)}, {dtype}), got {rest:,}; the file is truncated or damaged, "
            "get it again"
        )
    if packed is not None and claimed > _MOST_RATIO * packed:
        raise ValueError(
            f"fastgen.data: {where} promises {claimed:,} bytes (shape {tuple(shape)}, {dtype}), "
            f"more than {packed:,} compressed bytes can hold; the file is damaged, get it again"
        )
    if packed is not None and claimed > _MOST_UNPACKED:
        raise ValueError(
            f"fastgen.data: {where} must unpack to at most {_MOST_UNPACKED:,} bytes, got "
            f"{claimed:,}; unpack it first (gunzip, or numpy.savez without compression)"
        )
    data = _exactly(stream, claimed, where)
    if stream.read(1):
        raise ValueError(
            f"fastgen.data: {where} goes on after the {claimed:,} bytes that its header promises "
            f"(shape {tuple(shape)}, {dtype}); the file is damaged, get it again"
        )
    array = np.frombuffer(data, dtype).reshape(shape)
    return array.astype(dtype.newbyteorder("="), copy=False)


def _exactly(stream, count: int, where) -> bytearray:
    """`count` bytes; memory grows only with what the stream delivers."""
    data = bytearray()
    while len(data) < count:
        piece = stream.read(min(count - len(data), _STEP))
        if not piece:
            raise ValueError(
                f"fastgen.data: {where} must go on for {count:,} bytes, got {len(data):,}; "
                "the file is truncated, get it again"
            )
        data += piece
    return data


def _damaged(where, error: Exception) -> ValueError:
    return ValueError(
        f"fastgen.data: {where} must be a readable file, got {type(error).__name__}: {error}; "
        "the file is damaged, get it again"
    )
