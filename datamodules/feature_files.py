"""Image-text pairs from feature files, in the layouts that cross-modal retrieval exchanges.

One file or several, each part of a published split by itself or named by its rows, items along any
axis. One path leads through all of them: arrays are found, their names say which part and field
they are, `feature_arrays` says how their axes lie and what their values mean; then the split is
compared with the rows. What does not fit is refused by file and array.
"""

import hashlib
import itertools
import logging
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.array_files import Array, arrays_of
from datamodules.cross_modal_items import CrossModalItems, without_bad_rows
from datamodules.feature_arrays import (
    MATRICES,
    find_axes,
    item_count,
    read_labels,
    read_matrix,
    read_pictures,
)

log = logging.getLogger(__name__)

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
    together. Labels are multi-hot, or one class number or name for each item.

    Args:
        paths: .npz, .mat or .h5 files.
        fields: Names of `image`, `text` and `labels` in the files, where they are others: with
            their groups, or without the words for the part (`a` for `a_train` and `test/a`).
        class_names: The classes' names, in the order of the labels' columns or numbers; of labels
            in words, all that occur, in the order that columns get.
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
        lie = find_axes(sides, axes or {}, files)
        labels, classes = read_labels(sides["labels"], lie["labels"], class_names)
        text = read_matrix(sides["text"], lie["text"])
        broken = np.zeros(len(labels), dtype=bool)
        if lie["image"] in MATRICES:
            image: NDArray[Any] = read_matrix(sides["image"], lie["image"])
        else:
            image, broken = read_pictures(sides["image"], lie["image"])
        counts = [item_count(array, lie["labels"]) for array in sides["labels"]]
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
    return without_bad_rows(items, bad_rows, problems, left_out)


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


def _described(array: Array) -> str:
    if not array.kind:
        return f"{array.name} (no array)"
    return f"{array.name} {array.shape}{'' if array.numeric else ' (no numbers)'}"


def _parts(
    arrays: Sequence[Array], fields: Mapping[str, str], files: str, several: bool
) -> tuple[dict[str, dict[str, Array]], dict[str, Array]]:
    """Each part's arrays by field, in the order of rows; and the rows of a split."""
    places = [_place(f"{a.path.stem}/{a.name}" if several else a.name) for a in arrays]
    called = [_FIELD_OF.get(rest) == "labels" and rest != "y" for _, rest in places]
    has_labels, in_numbers = any(called), any(a.numeric for a in compress(arrays, called))
    exact = {wanted for wanted in fields.values() if any(a.name == wanted for a in arrays)}
    there = ", ".join(map(_described, arrays)) or "none"
    found: dict[str, dict[str, Array]] = {}
    rows: dict[str, Array] = {}
    unread = []
    for array, (part, rest) in zip(arrays, places, strict=True):
        chosen = [
            field
            for field, wanted in fields.items()
            if array.name == wanted or (wanted not in exact and rest == _place(wanted)[1])
        ]
        is_empty = array.numeric and math.prod(array.shape) == 0
        field = "text" if rest == "y" and has_labels else _FIELD_OF.get(rest, "")
        if field == "rows" and not part:
            field = ""
        field = chosen[0] if chosen else field
        in_words = array.words and field == "labels" and (bool(chosen) or not in_numbers)
        readable = (array.numeric or in_words) and not is_empty and array.shape != ()
        if chosen and not readable:
            raise ValueError(f"datamodule.path={array}: holds no numbers")
        is_named = bool(field) and (bool(chosen) or field not in fields)
        if is_named and is_empty:
            raise ValueError(
                f"datamodule.path={array}: is {field}{part and f' of the {part} part'} and holds "
                "nothing; leave it out of the file"
            )
        if not is_named or not readable:
            unread.append(array)
            continue
        side, key = (rows, part) if field == "rows" else (found.setdefault(part, {}), field)
        if key in side:
            raise ValueError(
                f"datamodule.path={array}: is {field}{part and f' of the {part} part'}, as "
                f"{side[key]} is; name the one to read with datamodule.fields"
            )
        side[key] = array
    for field, wanted in fields.items():
        if not any(field in side for side in found.values()):
            raise ValueError(
                f"datamodule.fields.{field}={wanted}: not in {files}; there are {there}"
            )
    _check_parts(found, files, there)
    if len(found) == 1:
        found = {"": next(iter(found.values()))}
    else:
        unread += rows.values()
        rows = {}
    if unread:
        names = ", ".join(map(_described, unread))
        log.warning("%s: not read, as no name of a field: %s", files, names)
    # Training rows last, where a database has most of them: what it has is then cut off at the end.
    first = "database" if "database" in found else "train"
    order = dict.fromkeys(("", first, "query", "validation", "train"))
    return {part: found[part] for part in order if part in found}, rows


def _check_parts(found: Mapping[str, Mapping[str, Array]], files: str, there: str) -> None:
    """Refuse parts that are not whole, or of which no split can be made."""
    if not found or (len(found) == 1 and set(FIELDS) - set(next(iter(found.values())))):
        raise ValueError(
            f"datamodule.path={files}: "
            "no fields (IAll, YAll, LAll) or (images, tags, labels) or (I_tr, T_tr, "
            f"L_tr, I_te, T_te, L_te); there are {there}. Name them with 'datamodule.fields="
            "{image: ..., text: ..., labels: ...}', or add the file that is missing"
        )
    if "" in found and len(found) > 1:
        part = max(found)
        one, other = next(iter(found[""].values())), next(iter(found[part].values()))
        raise ValueError(
            f"datamodule.path={files}: {one.name} is of all items and {other.name} of the {part} "
            "part: which is meant? Name those to read with datamodule.fields"
        )
    for part, side in found.items():
        missing = [field for field in FIELDS if field not in side]
        if missing:
            raise ValueError(
                f"datamodule.path={files}: "
                f"the {part} part has {', '.join(a.name for a in side.values())} and "
                f"no {' and no '.join(missing)}; there are {there}"
            )
    if len(found) > 1 and ("query" not in found or not {"train", "database"} & set(found)):
        raise ValueError(
            f"datamodule.path={files}: there are parts for {' and '.join(found)}; a split needs "
            "query (test) and train or database"
        )


# --- splits: which rows belong where -------------------------------------------------------------


def _rows_of_parts(
    counts: Mapping[str, int], rows: Mapping[str, Array]
) -> dict[str, NDArray[np.int64]]:
    """The rows of each part, none twice, in the file's order; nothing without a split."""
    if len(counts) > 1:
        all_rows = np.arange(sum(counts.values()))
        ends = np.cumsum(list(counts.values()))[:-1]
        return dict(zip(counts, np.split(all_rows, ends), strict=True))
    if not rows:
        return {}
    if "query" not in rows:
        names = ", ".join(map(str, rows.values()))
        raise ValueError(
            f"datamodule.path={names}: rows of a split without those of its query (test) part"
        )
    chosen = _chosen_rows(rows, counts[""])
    for one, other in itertools.combinations(chosen, 2):
        both = np.intersect1d(chosen[one], chosen[other])
        if len(both) and {one, other} != {"train", "database"}:
            raise ValueError(
                f"datamodule.path={rows[one]}: has {len(both)} rows that are in {rows[other].name} "
                f"too, first row {both[0]} (from 0): what is asked for must not be learned from"
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
            raise ValueError(
                f"datamodule.path={array}: of shape {values.shape}: give the rows of one split"
            )
        numbers[part] = values.ravel()
        if not (np.isfinite(values).all() and (values == np.floor(values)).all()):
            raise ValueError(f"datamodule.path={array}: rows must be whole numbers")
    chosen: dict[str, NDArray[np.int64]] = {}
    if all(len(n) == count and np.isin(n, (0, 1)).all() for n in numbers.values()):
        chosen = {part: np.flatnonzero(mask) for part, mask in numbers.items()}
        for part, found in chosen.items():
            if not len(found):
                raise ValueError(
                    f"datamodule.path={rows[part]}: names no row; leave it out of the file"
                )
        return chosen
    lowest, highest = min(n.min() for n in numbers.values()), max(n.max() for n in numbers.values())
    suffixes = {array.path.suffix.lower() for array in rows.values()}
    if lowest > 0 and highest < count and suffixes != {".mat"}:
        names = ", ".join(array.name for array in rows.values())
        raise ValueError(
            f"datamodule.path={next(iter(rows.values())).path}: "
            f"{names} name rows {lowest} to {highest} of "
            f"{count}: from 0 or from 1 cannot be told; give masks of {count} values instead"
        )
    first = 0 if lowest == 0 else 1  # MATLAB counts from 1
    for part, values in numbers.items():
        outside = (values < first) | (values >= count + first)
        if outside.any():
            raise ValueError(
                f"datamodule.path={rows[part]}: row {values[outside][0]} of {count} rows, which "
                f"count from {first} here"
            )
        distinct, times = np.unique(values, return_counts=True)
        if (times > 1).any():
            raise ValueError(
                f"datamodule.path={rows[part]}: has row {distinct[times > 1][0]} twice"
            )
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
