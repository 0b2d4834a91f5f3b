"""Image-text pairs from feature files, and which settings of such data cannot work.

The layouts are those that cross-modal retrieval exchanges: one file or several, each part of a
published split by itself or named by its rows, items along any axis. One path leads through all of
them: arrays are found, their names say which part and field they are, their shapes together how
their axes lie, their values what they mean; then the split is compared with the rows. What does
not fit is refused by file and array. Nothing here imports torch or Lightning.
"""

import hashlib
import itertools
import logging
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.array_files import SUFFIXES, Array, arrays_of
from datamodules.cross_modal_items import CrossModalItems
from datamodules.pictures import byte_scale, over_white

log = logging.getLogger(__name__)

# Keys of `datamodule.options`: arguments of generated_pictures.render and encoders.encode_folder.
OPTIONS: dict[str, tuple[str, ...]] = {
    "features": (),
    "generated": ("count", "size", "seed", "label_words_in_captions"),
    "folder": ("table", "image_encoder", "text_encoder", "batch_size_encode", "on_bad"),
}
SOURCES = tuple(OPTIONS)
FIELDS = ("image", "text", "labels")

# Words of an array's name, or of its groups' and file's, that say to which part it belongs.
PARTS = {
    "train": "train tr tra trn training",
    "database": "database db retrieval gallery",
    "query": "query queries test te testing",
    "validation": "validation valid val dev",
}
# What remains of a name: fields, and the rows of a part. `y` is the text beside other labels.
NAMES = {
    "image": "image images img imgs i iall xall x x1 imgfea imagefea imagefeatures",
    "text": "text texts txt txts tag tags t tall yall x2 txtminilm txtfea textfea textfeatures",
    "labels": "labels label l lall lab gnd y",
    "rows": "ind inds index indices idx idxs row rows mask split",
}
_PART_OF = {word: part for part, words in PARTS.items() for word in words.split()}
_FIELD_OF = {word: field for field, words in NAMES.items() for word in words.split()}

# How axes lie: N items, F features or classes, C channels, H height, W width.
MATRICES = ("NF", "FN")
PICTURES = ("NCHW", "NHWC", "HWCN", "NHW", "HWN")
# The same with all axes reversed, as Python sees what MATLAB or Fortran wrote.
REVERSED = ("WHCN", "CWHN", "NCWH", "WHN", "NWH")
CHANNELS = (1, 3, 4)  # grey, RGB, RGBA

MAX_CLASSES = 10_000  # numbers of classes beyond are numbers of something else


def check(settings: Mapping[str, Any], sizes: Mapping[str, int] | None = None) -> None:
    """Raise `ValueError` for settings of `CrossModalDataModule` that cannot work; reads no data.

    Args:
        settings: The datamodule's arguments.
        sizes: Of a language model; not used.
    """
    source = settings.get("source", "features")
    if source not in SOURCES:
        raise ValueError(f"source={source!r}: must be one of {', '.join(SOURCES)}")
    for name in settings.get("options") or {}:
        if name not in OPTIONS[source]:
            known = ", ".join(OPTIONS[source]) or "none"
            raise ValueError(f"options.{name}: source={source} has no such option; it has {known}")
    paths = paths_of(settings.get("path"))
    if source == "features":
        if not paths:
            raise ValueError(
                "path=null: give a feature file (.npz, .mat or .h5), or a list of them"
            )
        for path in paths:
            if not path.is_file():
                raise ValueError(f"path={path}: no such file")
            if path.suffix not in SUFFIXES:
                raise ValueError(f"path={path}: must end with one of {', '.join(SUFFIXES)}")
    if source == "folder" and not (len(paths) == 1 and paths[0].is_dir()):
        raise ValueError(f"path={settings.get('path')}: must be one folder of pictures and texts")
    classes = settings.get("classes_per_session", [])
    if not classes or any(count < 1 for count in classes):
        raise ValueError(
            f"classes_per_session={classes}: a list of counts of at least 1, the original classes "
            "first, e.g. [8, 2] or [6, 2, 2]"
        )
    if settings.get("batch_size", 1) < 1:
        raise ValueError(f"batch_size={settings['batch_size']}: must be at least 1")
    for key in ("seed", "class_seed"):
        if (settings.get(key) or 0) < 0:
            raise ValueError(f"{key}={settings[key]}: must be at least 0")
    if not 0 < settings.get("validation", 0.1) < 1:
        raise ValueError(f"validation={settings['validation']}: a share in (0, 1)")
    queries = settings.get("queries", 0.1)
    if queries <= 0 or (isinstance(queries, float) and queries >= 1):
        raise ValueError(f"queries={queries}: a number of items, or a share in (0, 1)")
    if settings.get("bad_rows", "refuse") not in ("refuse", "skip"):
        raise ValueError(f"bad_rows={settings['bad_rows']!r}: must be refuse or skip")
    for name in settings.get("standardise", []):
        if name not in ("image", "text"):
            raise ValueError(f"standardise={settings['standardise']}: image, text, both or none")
    for key in ("fields", "class_names", "axes"):
        if settings.get(key) and source != "features":
            raise ValueError(f"{key}: of feature files; source={source} finds it by itself")
    for key in ("fields", "axes"):
        for name in settings.get(key) or {}:
            if name not in FIELDS:
                raise ValueError(f"{key}.{name}: no such part; there are {', '.join(FIELDS)}")
    for name, axes in (settings.get("axes") or {}).items():
        allowed = MATRICES + (PICTURES + REVERSED if name == "image" else ())
        if axes not in allowed:
            raise ValueError(
                f"axes.{name}={axes}: must be one of {', '.join(allowed)}: N items, F features or "
                "classes, C channels, H height, W width, in the file's order"
            )


def paths_of(path: str | Sequence[str] | None) -> list[Path]:
    """Return the files that `datamodule.path` names."""
    return [Path(each) for each in ([path] if isinstance(path, str) else path or [])]


def read_features(
    paths: Sequence[Path],
    fields: Mapping[str, str] | None = None,
    class_names: Sequence[str] | None = None,
    bad_rows: str = "refuse",
    axes: Mapping[str, str] | None = None,
) -> CrossModalItems:
    """Read image features or pictures, text features and labels from one file or several.

    Several files hold the parts one by one, such as MIRFlickr's `mirflickr25k-iall.mat`,
    `-yall.mat` and `-lall.mat`, or `train.h5` and `test.h5`. Names that the field uses are found
    (`PARTS`, `NAMES`), also in groups and structs; others are named by `fields`. A published split
    is one of names (`I_tr`, `test/image`) or of rows (`ind_train`: numbers from 0 or 1, or masks).
    Training rows that lie in a database as well are read once. How axes lie follows from all shapes
    together. Labels are multi-hot, or one class number for each item.

    Args:
        paths: .npz, .mat (MATLAB 5 needs scipy, 7.3 needs h5py) or .h5 files.
        fields: Names of `image`, `text` and `labels` in the files, where they are others: with
            their groups, or without the words for the part (`a` for `a_train` and `test/a`).
        class_names: The classes' names, in the order of the labels' columns or numbers.
        bad_rows: `refuse` items with NaN, without a class, or equal to a query; or `skip` and count
            them.
        axes: How the axes of a field lie (`NF`, `FN`, `NCHW`, ...), where shapes leave it open; of
            a MATLAB file as MATLAB shows them.

    Raises:
        ValueError: A file cannot be read; a part is missing or there twice; shapes, values, rows of
            the split or names do not fit; with the file, the array and the row.
    """
    files = ", ".join(map(str, paths))
    with ExitStack() as opened:
        arrays = [array for path in paths for array in arrays_of(path, opened)]
        parts, rows = _parts(arrays, fields or {}, files, len(paths) > 1)
        sides = {field: [part[field] for part in parts.values()] for field in FIELDS}
        lie = _axes(sides, axes or {}, files)
        labels, classes = _labels(sides["labels"], lie["labels"], class_names)
        text = _matrix(sides["text"], lie["text"])
        broken = np.zeros(len(labels), dtype=bool)
        if lie["image"] in MATRICES:
            image: NDArray[Any] = _matrix(sides["image"], lie["image"])
        else:
            image, broken = _pictures(sides["image"], lie["image"])
        counts = [_count(array, lie["labels"]) for array in sides["labels"]]
        rows_of = _rows_of_parts(dict(zip(parts, counts, strict=True)), rows)
    items = CrossModalItems(
        image=image,
        text=text,
        labels=labels,
        classes=classes,
        names=tuple(
            f"{files}, {part and part + ' '}row {row}"
            for part, count in zip(parts, counts, strict=True)
            for row in range(count)
        ),
    )
    problems = {"image that is not finite": broken}
    left_out: dict[str, NDArray[np.bool_]] = {}
    if rows_of:
        learned = [rows_of[part] for part in ("database", "train") if part in rows_of]
        split = {p: rows for p, rows in rows_of.items() if p in ("query", "validation")}
        items = replace(items, split={**split, "retrieval": np.concatenate(learned)})
        repeated, left_out = _repeated(items, rows_of)
        problems["an item of the query or validation part as well"] = repeated
    return checked(items, bad_rows, problems, left_out)


# --- parts: which array is what ------------------------------------------------------------------


def _place(name: str) -> tuple[str, str]:
    """The part that an array's name tells, empty for none, and what remains of the name.

    `I_tr`, `train/I` and `I/train` are all `i` of `train`. What stands innermost decides.
    """
    part = rest = ""
    for component in reversed(name.split("/")):
        words = [w.lower() for w in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", component)]
        told = {_PART_OF[word] for word in words if word in _PART_OF}
        if not part and len(told) == 1:
            part = told.pop()
        rest = rest or "".join(word for word in words if word not in _PART_OF)
    return part, rest


def _parts(
    arrays: Sequence[Array], fields: Mapping[str, str], files: str, several: bool
) -> tuple[dict[str, dict[str, Array]], dict[str, Array]]:
    """Return each part's arrays by field, in the order of rows; and the rows of a split.

    Raises:
        ValueError: A field is missing or there twice, or parts do not make a split.
    """
    places = [_place(f"{a.path.stem}/{a.name}" if several else a.name) for a in arrays]
    has_labels = any(_FIELD_OF.get(rest) == "labels" and rest != "y" for _, rest in places)
    exact = {wanted for wanted in fields.values() if any(a.name == wanted for a in arrays)}
    there = ", ".join(f"{a.name} {a.shape if a.kind else '(no array)'}" for a in arrays) or "none"
    found: dict[str, dict[str, Array]] = {}
    rows: dict[str, Array] = {}
    unread = []
    for array, (part, rest) in zip(arrays, places, strict=True):
        chosen = [
            field
            for field, wanted in fields.items()
            if array.name == wanted or (wanted not in exact and rest == _place(wanted)[1])
        ]
        readable = array.numeric and math.prod(array.shape) > 0 and array.shape != ()
        field = "text" if rest == "y" and has_labels else _FIELD_OF.get(rest, "")
        if field == "rows" and not part:
            field = ""
        if chosen:
            field = chosen[0]
            if not readable:
                raise ValueError(f"path={array}: holds no numbers")
        if not field or (field in fields and not chosen) or not readable:
            unread.append(array)
            continue
        side, key = (rows, part) if field == "rows" else (found.setdefault(part, {}), field)
        if key in side:
            raise ValueError(
                f"path={array}: is {field}{part and f' of the {part} part'}, as {side[key]} is; "
                "name the one to read with datamodule.fields"
            )
        side[key] = array
    for field, wanted in fields.items():
        if not any(field in side for side in found.values()):
            raise ValueError(f"fields.{field}={wanted}: not in {files}; there are {there}")
    _check_parts(found, files, there)
    if len(found) == 1:
        found = {"": next(iter(found.values()))}
    else:
        unread += rows.values()
        rows = {}
    if unread:
        names = ", ".join(f"{array.name} {array.shape}" for array in unread)
        log.warning("%s: not read, as no name of a field: %s", files, names)
    # Training rows last, where a database has most of them: what it has is then cut off at the end.
    first = "database" if "database" in found else "train"
    order = dict.fromkeys(("", first, "query", "validation", "train"))
    return {part: found[part] for part in order if part in found}, rows


def _check_parts(found: Mapping[str, Mapping[str, Array]], files: str, there: str) -> None:
    """Refuse parts that are not whole, or of which no split can be made."""
    if not found or (len(found) == 1 and set(FIELDS) - set(next(iter(found.values())))):
        raise ValueError(
            f"path={files}: no fields (IAll, YAll, LAll) or (images, tags, labels) or (I_tr, T_tr, "
            f"L_tr, I_te, T_te, L_te); there are {there}. Name them with datamodule.fields="
            "{image: ..., text: ..., labels: ...}, or add the file that is missing"
        )
    if "" in found and len(found) > 1:
        part = max(found)
        one, other = next(iter(found[""].values())), next(iter(found[part].values()))
        raise ValueError(
            f"path={files}: {one.name} is of all items and {other.name} of the {part} part: which "
            "is meant? Name those to read with datamodule.fields"
        )
    for part, side in found.items():
        missing = [field for field in FIELDS if field not in side]
        if missing:
            raise ValueError(
                f"path={files}: the {part} part has {', '.join(a.name for a in side.values())} and "
                f"no {' and no '.join(missing)}; there are {there}"
            )
    if len(found) > 1 and ("query" not in found or not {"train", "database"} & set(found)):
        raise ValueError(
            f"path={files}: there are parts for {' and '.join(found)}; a split needs query (test) "
            "and train or database"
        )


# --- axes: where items, features, channels lie ----------------------------------------------------


def _count(array: Array, axes: str) -> int:
    """How many items an array has."""
    return math.prod(array.shape) if axes == "N" else array.shape[axes.index("N")]


def _axes(
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
        counts = {tuple(_count(a, way[f]) for a in arrays) for f, arrays in sides.items()}
        # Only a file whose matrices are reversed as well has reversed pictures.
        turned = way["image"] in REVERSED and "image" not in wanted
        if len(counts) == 1 and not (turned and (way["text"] == "NF" or way["labels"] == "NF")):
            ways.append(way)
    if not ways:
        raise ValueError(
            f"path={files}: {shapes}: they must describe the same items, along one axis of each"
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
            f"path={files}: {shapes}: the axes of {field} may be {' or '.join(possible)} (N items, "
            "F features or classes, C channels, H height, W width); say which with "
            f"datamodule.axes={{{field}: {possible[0]}}}"
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
    if dimensions == {2}:
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
            what = "must be a matrix, (items, classes), or a class number for each item"
        elif field == "image":
            what = (
                "must be features (items, features) or pictures with 1, 3 or 4 channels, whose "
                "sides are longer; of feature maps take the means over places, or flatten them"
            )
        raise ValueError(f"path={arrays[0]}: of shape {arrays[0].shape}: {what}")
    fits = []
    for axes in names if wanted is None else (wanted,):
        if axes not in names:
            raise ValueError(f"axes.{field}={axes}: {arrays[0]} is of shape {arrays[0].shape}")
        item = axes.index("N")
        if len({array.shape[:item] + array.shape[item + 1 :] for array in arrays}) == 1:
            fits.append(axes)
    if not fits:
        shapes = ", ".join(f"{array.name} {array.shape}" for array in arrays)
        raise ValueError(
            f"path={arrays[0].path}: {shapes}: {field} must have the same columns in every part; "
            "nothing is filled up"
        )
    return fits


def _is_picture(shape: Sequence[int], axes: str) -> bool:
    channels = shape[axes.index("C")] if "C" in axes else 1
    sides = shape[axes.index("H")], shape[axes.index("W")]
    return channels in CHANNELS and min(sides) > channels


# --- values: what they mean -----------------------------------------------------------------------


def _matrix(arrays: Sequence[Array], axes: str) -> NDArray[np.float32]:
    """Features of all parts, one row for each item; what float32 cannot hold becomes infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        if len(arrays) == 1:
            values = arrays[0].read()
            return np.ascontiguousarray(values if axes == "NF" else values.T, dtype=np.float32)
        counts = [_count(array, axes) for array in arrays]
        width = arrays[0].shape[1 - axes.index("N")]
        joined = np.empty((sum(counts), width), dtype=np.float32)
        for array, end in zip(arrays, itertools.accumulate(counts), strict=True):
            values = array.read()
            joined[end - _count(array, axes) : end] = values if axes == "NF" else values.T
    return joined


def _labels(
    arrays: Sequence[Array], axes: str, class_names: Sequence[str] | None
) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Multi-hot rows and the classes' names, from such rows or from class numbers.

    Raises:
        ValueError: A value is neither 0 nor 1, or no class number.
    """
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
        first = 0 if distinct[0] == 0 else 1
        if distinct[-1] - first >= len(class_names):
            raise ValueError(
                f"class_names: {len(class_names)} names, and {arrays[0]} has class numbers from "
                f"{distinct[0]} to {distinct[-1]}"
            )
        distinct, place = np.arange(first, first + len(class_names)), numbers - first
    if len(distinct) > MAX_CLASSES:
        raise ValueError(
            f"{arrays[0]}: {len(distinct):,} different numbers are no classes ({MAX_CLASSES:,} at "
            "most); name the labels with datamodule.fields"
        )
    labels = np.zeros((len(numbers), len(distinct)), dtype=np.uint8)
    labels[np.arange(len(numbers)), place] = 1
    return labels, tuple(class_names or map(str, distinct.tolist()))


def _pictures(arrays: Sequence[Array], axes: str) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
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
        raise ValueError(f"path={arrays[0]}: pictures {error}") from error
    if stored and scale == 1 and len(sides) == 1 and sides[0].shape[1] == 3:
        return np.ascontiguousarray(sides[0]), ~finite
    pictures: NDArray[np.uint8] = np.zeros((len(finite), 3, *sides[0].shape[2:]), dtype=np.uint8)
    for row, picture in enumerate(picture for values in sides for picture in values):
        if finite[row]:
            pixels = picture * np.float32(scale)
            pictures[row] = np.rint(over_white(pixels) if len(pixels) == 4 else pixels)
    return pictures, ~finite


# --- splits: which rows belong where --------------------------------------------------------------


def _rows_of_parts(
    counts: Mapping[str, int], rows: Mapping[str, Array]
) -> dict[str, NDArray[np.int64]]:
    """Return the rows of each part, none twice, in the file's order; nothing without a split.

    Args:
        counts: Items of each part, in order.
        rows: Numbers or masks of each part's rows, where `counts` is of one whole.

    Raises:
        ValueError: Rows are doubled, out of range or of two parts, or may count from 0 or from 1.
    """
    if len(counts) > 1:
        all_rows = np.arange(sum(counts.values()))
        ends = np.cumsum(list(counts.values()))[:-1]
        return dict(zip(counts, np.split(all_rows, ends), strict=True))
    if not rows:
        return {}
    if "query" not in rows:
        names = ", ".join(map(str, rows.values()))
        raise ValueError(f"path={names}: rows of a split without those of its query (test) part")
    chosen = _chosen_rows(rows, counts[""])
    for one, other in itertools.combinations(chosen, 2):
        both = np.intersect1d(chosen[one], chosen[other])
        if len(both) and {one, other} != {"train", "database"}:
            raise ValueError(
                f"path={rows[one]}: has {len(both)} rows that are in {rows[other].name} too, first "
                f"row {both[0]} (from 0): what is asked for must not be learned from"
            )
    if {"train", "database"} <= set(chosen):
        chosen["train"] = np.setdiff1d(chosen["train"], chosen["database"])
    elif not {"train", "database"} & set(chosen):
        asking = np.concatenate(list(chosen.values()))
        chosen["train"] = np.setdiff1d(np.arange(counts[""]), asking)
    return chosen


def _chosen_rows(rows: Mapping[str, Array], count: int) -> dict[str, NDArray[np.int64]]:
    """Rows of each part from 0, from masks or from numbers that count from 0 or from 1."""
    numbers = {}
    for part, array in rows.items():
        values = array.read()
        if math.prod(values.shape) != max(values.shape):
            raise ValueError(f"path={array}: of shape {values.shape}: give the rows of one split")
        numbers[part] = values.ravel()
        if not (np.isfinite(values).all() and (values == np.floor(values)).all()):
            raise ValueError(f"path={array}: rows must be whole numbers")
    if all(len(n) == count and np.isin(n, (0, 1)).all() for n in numbers.values()):
        return {part: np.flatnonzero(mask) for part, mask in numbers.items()}
    lowest, highest = min(n.min() for n in numbers.values()), max(n.max() for n in numbers.values())
    if lowest > 0 and highest < count and any(a.path.suffix != ".mat" for a in rows.values()):
        names = ", ".join(array.name for array in rows.values())
        raise ValueError(
            f"path={next(iter(rows.values())).path}: {names} name rows {lowest} to {highest} of "
            f"{count}: from 0 or from 1 cannot be told; give masks of {count} values instead"
        )
    first = 0 if lowest == 0 else 1  # MATLAB counts from 1
    chosen = {}
    for part, values in numbers.items():
        outside = (values < first) | (values >= count + first)
        if outside.any():
            raise ValueError(
                f"path={rows[part]}: row {values[outside][0]} of {count} rows, which count from "
                f"{first} here"
            )
        distinct, times = np.unique(values, return_counts=True)
        if (times > 1).any():
            raise ValueError(f"path={rows[part]}: has row {distinct[times > 1][0]} twice")
        chosen[part] = values.astype(np.int64) - first
    return chosen


def _repeated(
    items: CrossModalItems, parts: Mapping[str, NDArray[np.int64]]
) -> tuple[NDArray[np.bool_], dict[str, NDArray[np.bool_]]]:
    """Which rows equal one that is only asked for; and what is left out without harm, by reason."""
    asking: set[bytes] = set()
    searched: set[bytes] = set()
    repeated = np.zeros(len(items), dtype=bool)
    again = np.zeros(len(items), dtype=bool)
    of_none = np.ones(len(items), dtype=bool)
    for part in sorted(parts, key=("query", "validation", "database", "train").index):
        of_none[parts[part]] = False
        own = set()
        for row in parts[part].tolist():
            sides = (side[row].tobytes() for side in (items.image, items.text, items.labels))
            digest = hashlib.blake2b(b"".join(sides), digest_size=16).digest()
            repeated[row] = digest in asking
            again[row] = part == "train" and digest in searched
            own.add(digest)
        (asking if part in ("query", "validation") else searched).update(own)
    left_out = {
        "training row that the database has as well": again & ~repeated,
        "row of no part": of_none,
    }
    return repeated, left_out


# --- rows: what can be trained on -----------------------------------------------------------------


def checked(
    items: CrossModalItems,
    bad_rows: str = "refuse",
    problems: Mapping[str, NDArray[np.bool_]] | None = None,
    left_out: Mapping[str, NDArray[np.bool_]] | None = None,
) -> CrossModalItems:
    """Return items of any source, refused or reduced to what can be trained on.

    Args:
        items: As a source gives them.
        bad_rows: `refuse` or `skip`.
        problems: Further bad rows that the source found, by what is wrong.
        left_out: Rows that are left out and counted in any case, by reason.

    Raises:
        ValueError: A row has NaN or no class (with `refuse`), rows do not match, or a class never
            occurs (skipped: its column is left out).
    """
    lengths = {"image": len(items.image), "text": len(items.text), "names": len(items.names)}
    if set(lengths.values()) != {len(items.labels)}:
        counts = ", ".join(f"{key} {count}" for key, count in lengths.items())
        raise ValueError(f"rows do not match: labels {len(items.labels)}, {counts}")
    if len(items.classes) != items.labels.shape[1]:
        raise ValueError(
            f"class_names: {len(items.classes)} names for {items.labels.shape[1]} columns of labels"
        )
    problems = {
        **(problems or {}),
        "text that is not finite": _not_finite(items.text),
        "no class": np.asarray(items.labels.sum(1) == 0),
    }
    if items.image.dtype != np.uint8:
        problems["image that is not finite"] = _not_finite(items.image)
    bad = np.zeros(len(items), dtype=bool)
    for rows in (left_out or {}).values():
        bad |= rows
    problems = {words: rows & ~bad for words, rows in problems.items()}
    lost = {words: int(rows.sum()) for words, rows in (left_out or {}).items() if rows.any()}
    skipped = {**items.skipped, **lost}
    for words, rows in problems.items():
        if bad_rows == "refuse" and rows.any():
            first = int(np.argmax(rows))
            raise ValueError(
                f"{items.names[first]}: {words} ({int(rows.sum())} such rows in all); mend the "
                "file, or leave such rows out with datamodule.bad_rows=skip"
            )
        if rows.any():
            skipped[words] = skipped.get(words, 0) + int(rows.sum())
        bad |= rows
    present: NDArray[np.bool_] = np.any(items.labels[~bad], axis=0)
    if bad_rows == "refuse" and not present.all():
        absent = [name for name, there in zip(items.classes, present, strict=True) if not there]
        source = re.sub(r", (\w+ )?row \d+$", "", items.names[0])
        raise ValueError(
            f"class {', '.join(absent)}: occurs in no item of {source}; drop "
            "the column, or leave it out with datamodule.bad_rows=skip"
        )
    if bad.any() or not present.all():
        if not present.all():
            skipped["class without items"] = int((~present).sum())
        items = _select(items, ~bad, present, skipped)
    return items


def _select(
    items: CrossModalItems,
    kept: NDArray[np.bool_],
    classes: NDArray[np.bool_],
    skipped: Mapping[str, int],
) -> CrossModalItems:
    count = int(kept.sum())
    # A slice where only the end is left out: that copies nothing.
    rows: Any = slice(count) if kept[:count].all() else np.flatnonzero(kept)
    place = np.cumsum(kept) - 1
    split = items.split and {part: place[r[kept[r]]] for part, r in items.split.items()}
    return CrossModalItems(
        image=items.image[rows],
        text=items.text[rows],
        labels=np.ascontiguousarray(items.labels[rows][:, classes]),
        classes=tuple(c for c, there in zip(items.classes, classes, strict=True) if there),
        names=tuple(itertools.compress(items.names, kept)),
        captions=items.captions and tuple(itertools.compress(items.captions, kept)),
        skipped=skipped,
        split=split,
    )


def _not_finite(values: NDArray[Any]) -> NDArray[np.bool_]:
    return ~np.isfinite(values.reshape(len(values), -1)).all(1)
