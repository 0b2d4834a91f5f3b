"""Image-text pairs from feature files, and which settings of such data cannot work.

The layouts are those that cross-modal retrieval exchanges: one file or one for each part, with or
without a published split. Nothing here imports torch or Lightning.
"""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.cross_modal_items import CrossModalItems

# Keys of `datamodule.options`: arguments of generated_pictures.render and encoders.encode_folder.
OPTIONS: dict[str, tuple[str, ...]] = {
    "features": (),
    "generated": ("count", "size", "seed", "label_words_in_captions"),
    "folder": ("table", "image_encoder", "text_encoder", "batch_size_encode", "on_bad"),
}
SOURCES = tuple(OPTIONS)
SUFFIXES = (".npz", ".mat", ".h5", ".hdf5")
FIELDS = ("image", "text", "labels")

# Names of the three parts in files of the field; with a split, of its training and its query part.
WHOLE = (
    ("IAll", "YAll", "LAll"),  # DCMH's MIRFlickr-25K and NUS-WIDE; IAll may be pictures
    ("images", "tags", "labels"),
    ("img", "txt_minilm", "labels"),
    ("image", "text", "labels"),
    ("I", "T", "L"),
    ("XAll", "YAll", "LAll"),
    ("ImgFea", "TxtFea", "Label"),
)
SPLIT = (
    (("I_tr", "T_tr", "L_tr"), ("I_te", "T_te", "L_te")),
    (("I_db", "T_db", "L_db"), ("I_te", "T_te", "L_te")),
    (("retrieval_I", "retrieval_T", "retrieval_L"), ("query_I", "query_T", "query_L")),
)


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
    for name in settings.get("fields") or {}:
        if name not in FIELDS:
            raise ValueError(f"fields.{name}: no such part; there are {', '.join(FIELDS)}")


def paths_of(path: str | Sequence[str] | None) -> list[Path]:
    """Return the files that `datamodule.path` names."""
    return [Path(each) for each in ([path] if isinstance(path, str) else path or [])]


def read_features(
    paths: Sequence[Path],
    fields: Mapping[str, str] | None = None,
    class_names: Sequence[str] | None = None,
    bad_rows: str = "refuse",
) -> CrossModalItems:
    """Read image features, text features and labels from one file or several.

    Several files hold the parts one by one, such as MIRFlickr's `mirflickr25k-iall.mat`,
    `-yall.mat` and `-lall.mat`. Known field names are found; others are named by `fields`. Labels
    are multi-hot rows, or one class number for each item. What a row lies along is found by the
    labels' length.

    Args:
        paths: .npz, .mat (MATLAB 5 needs scipy, 7.3 needs h5py) or .h5 files.
        fields: Names of `image`, `text` and `labels` in the files.
        class_names: The classes' names, in the order of the labels' columns.
        bad_rows: `refuse` items with NaN or without a class, or `skip` and count them.

    Raises:
        ValueError: A part is missing, rows do not match, a value is not finite, a row has no class,
            or a class never occurs; with the file and the row.
    """
    content: dict[str, NDArray[Any]] = {}
    where: dict[str, Path] = {}
    for path in paths:
        for name, values in _arrays(path).items():
            if name in content:
                raise ValueError(f"path={path}: {name} is in {where[name]} as well")
            content[name], where[name] = values, path
    files = ", ".join(map(str, paths))
    parts, split = _parts(content, fields, files)
    image, text, labels = parts
    names = tuple(f"{files}, row {row}" for row in range(len(labels)))
    items = CrossModalItems(
        image=image,
        text=text.astype(np.float32),
        labels=labels,
        classes=tuple(class_names or map(str, range(labels.shape[1]))),
        names=names,
        split=split,
    )
    return checked(items, bad_rows)


def checked(items: CrossModalItems, bad_rows: str = "refuse") -> CrossModalItems:
    """Return items of any source, refused or reduced to what can be trained on.

    Args:
        items: As a source gives them.
        bad_rows: `refuse` or `skip`.

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
    problems = {"text that is not finite": _not_finite(items.text), "no class": _empty(items)}
    if items.image.dtype != np.uint8:
        problems["image that is not finite"] = _not_finite(items.image)
    bad = np.zeros(len(items), dtype=bool)
    skipped = dict(items.skipped)
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
        raise ValueError(
            f"class {', '.join(absent)}: occurs in no item of {items.names[0].split(', row')[0]}; "
            "drop the column, or leave it out with datamodule.bad_rows=skip"
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
    rows = np.flatnonzero(kept)
    place = np.cumsum(kept) - 1
    split = items.split and {part: place[r[kept[r]]] for part, r in items.split.items()}
    return CrossModalItems(
        image=items.image[rows],
        text=items.text[rows],
        labels=items.labels[np.ix_(kept, classes)],
        classes=tuple(c for c, there in zip(items.classes, classes, strict=True) if there),
        names=tuple(items.names[row] for row in rows),
        captions=items.captions and tuple(items.captions[row] for row in rows),
        skipped=skipped,
        split=split,
    )


def _not_finite(values: NDArray[Any]) -> NDArray[np.bool_]:
    return ~np.isfinite(values.reshape(len(values), -1)).all(1)


def _empty(items: CrossModalItems) -> NDArray[np.bool_]:
    return np.asarray(items.labels.sum(1) == 0)


def _parts(
    content: Mapping[str, NDArray[Any]], fields: Mapping[str, str] | None, files: str
) -> tuple[list[NDArray[Any]], Mapping[str, NDArray[np.int64]] | None]:
    """Find image, text and labels, as rows; and the published split, if there is one."""
    if {"X1", "X2", "Y"} <= content.keys():  # RoPH's struct: items are columns, rows count from 1
        parts = [_as_rows(content[key].T, content[key].shape[1]) for key in ("X1", "X2")]
        parts.append(_multi_hot(content["Y"].T, f"{files}, Y"))
        if "ind_train" not in content or "ind_test" not in content:
            return parts, None
        return parts, {
            part: content[key].ravel().astype(np.int64) - 1
            for part, key in (("retrieval", "ind_train"), ("query", "ind_test"))
        }
    if fields is None:
        for train, query in SPLIT:
            if set(train + query) <= content.keys():
                sides = [_side(content, names, files) for names in (train, query)]
                width = max(side[2].shape[1] for side in sides)
                for side in sides:
                    side[2] = np.pad(side[2], ((0, 0), (0, width - side[2].shape[1])))
                joined = [np.concatenate(pair) for pair in zip(*sides, strict=True)]
                rows = np.arange(len(joined[2]))
                end = len(sides[0][2])
                return joined, {"retrieval": rows[:end], "query": rows[end:]}
    named = [(fields["image"], fields["text"], fields["labels"])] if fields else list(WHOLE)
    for names in named:
        if set(names) <= content.keys():
            return _side(content, names, files), None
    wanted = " or ".join(f"({', '.join(names)})" for names in named[:3])
    found = ", ".join(f"{name} {values.shape}" for name, values in content.items())
    raise ValueError(
        f"path={files}: no fields {wanted}; there are {found}. Name them with datamodule.fields="
        "{image: ..., text: ..., labels: ...}, or add the file that is missing"
    )


def _side(
    content: Mapping[str, NDArray[Any]], names: Sequence[str], files: str
) -> list[NDArray[Any]]:
    """Return image, text and labels of one set of fields, row by row."""
    labels = _multi_hot(content[names[2]], f"{files}, {names[2]}")
    parts = [_as_rows(content[name], len(labels)) for name in names[:2]]
    for name, part in zip(names, parts, strict=False):
        if len(part) != len(labels):
            raise ValueError(
                f"path={files}: {name} has {len(part)} rows, {names[2]} has {len(labels)}: they "
                "must describe the same items"
            )
    return [*parts, labels]


def _as_rows(values: NDArray[Any], count: int) -> NDArray[Any]:
    """Items first; MATLAB files read by h5py come with their axes reversed."""
    if values.ndim == 2 and values.shape[0] != count and values.shape[1] == count:
        values = values.T
    if values.ndim == 4:
        if values.shape[0] != count and values.shape[-1] == count:
            values = np.moveaxis(values, -1, 0)
        if values.shape[1] != 3 and values.shape[-1] == 3:
            values = np.moveaxis(values, -1, 1)
        return np.ascontiguousarray(values, dtype=np.uint8)
    return values.astype(np.float32)


def _multi_hot(labels: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """Rows of 0 and 1, from such rows or from one class number for each item."""
    if labels.ndim == 2 and 1 not in labels.shape:
        values = labels.T if labels.shape[0] < labels.shape[1] and len(labels) < 100 else labels
        if not np.isin(values, (0, 1)).all():
            row = int(np.argmax(~np.isin(values, (0, 1)).all(1)))
            raise ValueError(f"{name}, row {row}: labels must be 0 or 1, -1 is not allowed either")
        return values.astype(np.uint8)
    numbers = labels.ravel().astype(np.int64)
    if (numbers != labels.ravel()).any() or numbers.min() < 0:
        raise ValueError(f"{name}: one class number for each item must be whole and at least 0")
    return np.eye(int(numbers.max()) + 1, dtype=np.uint8)[numbers]


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of a file by name, those of groups and structs by their own names."""
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except (ValueError, OSError) as error:
            raise ValueError(f"path={path}: {error}") from error
    if path.suffix == ".mat":
        loaded = _package("scipy.io", path)
        try:
            return _flatten(loaded.loadmat(path, squeeze_me=False, struct_as_record=True))
        except (NotImplementedError, ValueError, OSError) as error:
            if not _package("h5py", path).is_hdf5(path):  # MATLAB 7.3 is HDF5
                raise ValueError(f"path={path}: {error}") from error
    h5py = _package("h5py", path)
    found: dict[str, NDArray[Any]] = {}
    try:
        with h5py.File(path) as file:
            matlab = path.suffix == ".mat"

            def visit(name: str, node: Any) -> None:
                if isinstance(node, h5py.Dataset) and node.dtype.kind in "biuf":
                    values = node[()]
                    # MATLAB stores arrays column by column, so h5py sees the axes reversed.
                    found[name.rpartition("/")[2]] = values.T if matlab else values

            file.visititems(visit)
    except OSError as error:
        raise ValueError(f"path={path}: {error}") from error
    return found


def _flatten(content: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = {}
    for name, value in content.items():
        if hasattr(value, "toarray"):
            found[name] = value.toarray()
        elif isinstance(value, np.ndarray) and value.dtype.names and value.size == 1:
            found |= _flatten({key: value[key].item() for key in value.dtype.names})
        elif isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            found[name] = value
    return found


def _package(name: str, path: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.split(".")[0]
        raise ImportError(
            f"datamodule.path={path}: needs the package {package}, of the extra hashing: "
            f"pip install {package} -c constraints.txt"
        ) from error
