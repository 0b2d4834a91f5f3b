"""What arrays of features, pictures and labels mean: how their axes lie, and what their values are.

The shapes of all arrays together say which axis is that of the items; what they leave open is asked
for. Values become float32 features, RGB pictures in bytes, or multi-hot labels.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from datamodules.array_files import Array
from datamodules.pictures import byte_scale, over_white

# How axes lie: N items, F features or classes, C channels, H height, W width.
MatrixAxes = Literal["NF", "FN"]
# Pictures, then the same with all axes reversed, as Python sees what MATLAB or Fortran wrote.
PictureAxes = Literal[
    "NCHW", "NHWC", "HWCN", "NHW", "HWN", "WHCN", "CWHN", "NCWH", "WHN", "NWH"
]  # fmt: skip
MATRICES: tuple[str, ...] = get_args(MatrixAxes)
PICTURES: tuple[str, ...] = get_args(PictureAxes)[:5]
REVERSED: tuple[str, ...] = get_args(PictureAxes)[5:]
CHANNELS = (1, 3, 4)  # grey, RGB, RGBA

MAX_CLASSES = 10_000  # numbers of classes beyond are numbers of something else


# --- axes: where items, features, channels lie ---------------------------------------------------


def item_count(array: Array, axes: str) -> int:
    """How many items an array has."""
    return math.prod(array.shape) if axes == "N" else array.shape[axes.index("N")]


def find_axes(
    sides: Mapping[str, Sequence[Array]], wanted: Mapping[str, str], files: str
) -> dict[str, str]:
    """Decide how the axes of each field lie: all parts must have as many items in each field.

    Raises:
        ValueError: No way fits, or several do.
    """
    shapes = ", ".join(f"{a.name} {a.shape}" for arrays in sides.values() for a in arrays)
    options = {
        field: _possible(field, arrays, wanted.get(field)) for field, arrays in sides.items()
    }
    ways = []
    for choice in itertools.product(*options.values()):
        way = dict(zip(options, choice, strict=True))
        counts = {tuple(item_count(a, way[f]) for a in arrays) for f, arrays in sides.items()}
        # Only a file whose matrices are reversed as well has reversed pictures.
        turned = way["image"] in REVERSED and "image" not in wanted
        if len(counts) == 1 and not (turned and (way["text"] == "NF" or way["labels"] == "NF")):
            ways.append(way)
    if not ways:
        raise ValueError(
            f"datamodule.path={files}: "
            f"{shapes}: they must describe the same items, along one axis of each"
            + (f", with datamodule.axes={dict(wanted)}" if wanted else "")
        )
    if len(ways) > 1:  # what lies open lies as the rest
        alike = [w for w in ways if len({a[0] == "N" for a in w.values() if a != "N"}) == 1]
        ways = alike or ways
    open_fields = [field for field in options if len({way[field] for way in ways}) > 1]
    if open_fields:
        field = open_fields[0]
        possible = sorted({way[field] for way in ways})
        raise ValueError(
            f"datamodule.path={files}: {shapes}: the axes of {field} may be "
            f"{' or '.join(possible)} (N items, F features or classes, C channels, H height, W "
            f"width); say which with 'datamodule.axes={{{field}: {possible[0]}}}'"
        )
    return ways[0]


def _possible(field: str, arrays: Sequence[Array], wanted: str | None) -> list[str]:
    """The ways in which the axes of a field may lie, by its own shapes."""
    dimensions = {len(array.shape) for array in arrays}
    whole = all(array.kind in "biu" for array in arrays)
    one_number = all(math.prod(a.shape) == max(a.shape) for a in arrays)
    if field == "labels" and one_number and wanted is None:
        return ["N"]
    names: tuple[str, ...] = ()
    if dimensions == {2} and not any(array.words for array in arrays):
        names = MATRICES
    elif field == "image" and (dimensions == {4} or (dimensions == {3} and whole)):
        # MATLAB shows its own arrays as they are; Python may have given it reversed ones.
        own = all(array.matlab for array in arrays) and wanted is None
        turned = (axes for axes in REVERSED if axes[0] == "N" or not own)
        names = tuple(
            axes
            for axes in (*PICTURES, *turned)
            if {len(axes)} == dimensions and all(_is_picture(a.shape, axes) for a in arrays)
        )
    if not names:
        what = "must be a matrix, (items, features)"
        if field == "labels":
            what = "must be a matrix, (items, classes), or a class number or name for each item"
        elif field == "image":
            what = (
                "must be features (items, features) or pictures with 1, 3 or 4 channels, whose "
                "sides are longer; of feature maps take the means over places, or flatten them"
            )
        raise ValueError(f"datamodule.path={arrays[0]}: of shape {arrays[0].shape}: {what}")
    fits = []
    for axes in names if wanted is None else (wanted,):
        if axes not in names:
            raise ValueError(
                f"datamodule.axes.{field}={axes}: {arrays[0]} is of shape {arrays[0].shape}"
            )
        item = axes.index("N")
        if len({array.shape[:item] + array.shape[item + 1 :] for array in arrays}) == 1:
            fits.append(axes)
    if not fits:
        shapes = ", ".join(f"{array.name} {array.shape}" for array in arrays)
        raise ValueError(
            f"datamodule.path={arrays[0].path}: {shapes}: {field} must have the same columns in "
            "every part; nothing is filled up"
        )
    return fits


def _is_picture(shape: Sequence[int], axes: str) -> bool:
    channels = shape[axes.index("C")] if "C" in axes else 1
    sides = shape[axes.index("H")], shape[axes.index("W")]
    return channels in CHANNELS and min(sides) > channels


# --- values: what they mean ----------------------------------------------------------------------


def read_matrix(arrays: Sequence[Array], axes: str) -> NDArray[np.float32]:
    """Features of all parts, one row for each item; what float32 cannot hold becomes infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        if len(arrays) == 1:
            values = arrays[0].read()
            return np.ascontiguousarray(values if axes == "NF" else values.T, dtype=np.float32)
        counts = [item_count(array, axes) for array in arrays]
        width = arrays[0].shape[1 - axes.index("N")]
        joined = np.empty((sum(counts), width), dtype=np.float32)
        for array, end in zip(arrays, itertools.accumulate(counts), strict=True):
            values = array.read()
            joined[end - item_count(array, axes) : end] = values if axes == "NF" else values.T
    return joined


def read_labels(
    arrays: Sequence[Array], axes: str, class_names: Sequence[str] | None
) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Multi-hot rows and the classes' names, from such rows, from class numbers or from words.

    Raises:
        ValueError: A value is neither 0 nor 1, no class number, or no name of a class.
    """
    if any(array.words for array in arrays):
        return _of_words(arrays, class_names)
    if axes == "N":
        return _of_numbers(arrays, class_names)
    rows = []
    for array in arrays:
        values = array.read() if axes == "NF" else array.read().T
        wrong = ((values != 0) & (values != 1)).any(1)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise ValueError(f"{array}, row {row}: labels must be 0 or 1, -1 is not allowed either")
        rows.append(values.astype(np.uint8))
    labels = rows[0] if len(rows) == 1 else np.concatenate(rows)
    return labels, tuple(class_names or map(str, range(labels.shape[1])))


def _of_numbers(
    arrays: Sequence[Array], class_names: Sequence[str] | None
) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    for array in arrays:
        values = array.read().ravel()
        with np.errstate(invalid="ignore"):
            wrong = (values < 0) | (values != np.floor(values)) | ~np.isfinite(values)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise ValueError(
                f"{array}, row {row}: {values[row]}: one class number for each item must be whole "
                "and at least 0"
            )
    numbers = np.concatenate([array.read().ravel().astype(np.int64) for array in arrays])
    distinct, place = np.unique(numbers, return_inverse=True)
    if class_names:
        if 0 < distinct[0] <= distinct[-1] < len(class_names) and not arrays[0].matlab:
            raise ValueError(
                f"{arrays[0]}: class numbers from {distinct[0]} to {distinct[-1]} and "
                f"{len(class_names)} class_names: whether they count from 0 or from 1 cannot be "
                "told; give a multi-hot row for each item, or the names of the classes that occur"
            )
        first = 0 if distinct[0] == 0 else 1
        if distinct[-1] - first >= len(class_names):
            raise ValueError(
                f"datamodule.class_names: {len(class_names)} names, and {arrays[0]} has class "
                f"numbers from {distinct[0]} to {distinct[-1]}"
            )
        distinct, place = np.arange(first, first + len(class_names)), numbers - first
    return _one_hot(arrays, place, tuple(class_names or map(str, distinct.tolist())))


def _of_words(
    arrays: Sequence[Array], class_names: Sequence[str] | None
) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Blanks around a name say nothing; an item with an empty one has no class."""
    said: list[str] = []
    for array in arrays:
        if not array.words:
            raise ValueError(f"{array}: holds numbers and {arrays[0]} words: must all be the same")
        words = array.read().ravel().tolist()
        said += [(w.decode() if isinstance(w, bytes) else w).strip() for w in words]
    classes = tuple(class_names or sorted({*said} - {""}))
    if unknown := {*said} - {"", *classes}:
        raise ValueError(f"datamodule.class_names: {arrays[0]} has {min(unknown)!r} as well")
    columns = {name: column for column, name in enumerate(classes)} | {"": -1}
    return _one_hot(arrays, np.array([columns[name] for name in said]), classes)


def _one_hot(
    arrays: Sequence[Array], columns: NDArray[np.int64], classes: tuple[str, ...]
) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """A row for each item, with a 1 in its column; none for column -1."""
    if len(classes) > MAX_CLASSES:
        raise ValueError(
            f"{arrays[0]}: {len(classes):,} different values are no classes ({MAX_CLASSES:,} at "
            "most); name the labels with datamodule.fields"
        )
    labels = np.zeros((len(columns), len(classes)), dtype=np.uint8)
    rows = np.flatnonzero(columns >= 0)
    labels[rows, columns[rows]] = 1
    return labels, classes


def read_pictures(
    arrays: Sequence[Array], axes: str
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """RGB pictures of all parts, uint8 (n, 3, height, width); and which have values not finite.

    Raises:
        ValueError: Their values are no pixels.
    """
    sides = []
    for array in arrays:
        values = array.read()
        order = axes if "C" in axes else f"{axes}C"
        values = values if "C" in axes else values[..., None]
        sides.append(values.transpose([order.index(axis) for axis in "NCHW"]))
    extent = np.array([(p.min(), p.max()) for values in sides for p in values], dtype=np.float64)
    finite = np.asarray(np.isfinite(extent).all(axis=1))
    known = extent[finite] if finite.any() else np.zeros((1, 2))
    stored = all(values.dtype == np.uint8 for values in sides)
    try:
        scale = byte_scale(known.min(), known.max(), stored)
    except ValueError as error:
        raise ValueError(f"datamodule.path={arrays[0]}: pictures {error}") from error
    if stored and scale == 1 and len(sides) == 1 and sides[0].shape[1] == 3:
        return np.ascontiguousarray(sides[0]), ~finite
    pictures: NDArray[np.uint8] = np.zeros((len(finite), 3, *sides[0].shape[2:]), dtype=np.uint8)
    for row, picture in enumerate(picture for values in sides for picture in values):
        if finite[row]:
            pixels = picture * np.float32(scale)
            pictures[row] = np.rint(over_white(pixels) if len(pixels) == 4 else pixels)
    return pictures, ~finite
