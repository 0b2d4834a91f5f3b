"""One small data set, written in every layout of the field, is read back equal or asked about."""

import contextlib
import itertools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datamodules.cross_modal import CrossModalDataModule
from datamodules.cross_modal_items import CrossModalItems
from datamodules.feature_files import FIELDS, read_features
from datamodules.pictures import read_picture

scipy_io = pytest.importorskip("scipy.io")
h5py = pytest.importorskip("h5py")
from scipy.sparse import csc_matrix  # noqa: E402 after the skip

Arrays = dict[str, Any]

# --- writers: a dictionary of arrays, with slashes in names, in each container --------------------


def write_npz(path: Path, arrays: Arrays) -> Path:
    np.savez(path.with_suffix(".npz"), **arrays)
    return path.with_suffix(".npz")


def nested(arrays: Arrays) -> Arrays:
    tree: Arrays = {}
    for name, values in arrays.items():
        *groups, leaf = name.split("/")
        place = tree
        for group in groups:
            place = place.setdefault(group, {})
        place[leaf] = values
    return tree


def write_mat5(path: Path, arrays: Arrays) -> Path:
    scipy_io.savemat(path.with_suffix(".mat"), nested(arrays))
    return path.with_suffix(".mat")


def write_sparse_mat5(path: Path, arrays: Arrays) -> Path:
    return write_mat5(
        path, {n: csc_matrix(v) if v.ndim == 2 and "ind" not in n else v for n, v in arrays.items()}
    )


def write_h5(path: Path, arrays: Arrays) -> Path:
    with h5py.File(path.with_suffix(".h5"), "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return path.with_suffix(".h5")


def write_mat73(path: Path, arrays: Arrays, sparse: bool = False, header: bool = True) -> Path:
    """As MATLAB does: axes reversed, sparse matrices by columns, its name in the first bytes."""
    path = path.with_suffix(".mat")
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, values in arrays.items():
            values = np.atleast_2d(values)
            if sparse and values.ndim == 2 and "ind" not in name:
                matrix, group = csc_matrix(values), file.create_group(name)
                group.attrs["MATLAB_sparse"] = np.uint64(values.shape[0])
                group["data"], group["ir"], group["jc"] = (
                    matrix.data,
                    matrix.indices.astype(np.uint64),
                    matrix.indptr.astype(np.uint64),
                )
            else:
                file[name] = values.T
        file.create_group("#refs#")["a"] = np.zeros(3)
    if header:
        with path.open("r+b") as stream:
            stream.write(b"MATLAB 7.3 MAT-file")
    return path


WRITERS: dict[str, Callable[[Path, Arrays], Path]] = {
    "npz": write_npz,
    "mat5": write_mat5,
    "mat5 sparse": write_sparse_mat5,
    "h5": write_h5,
    "mat73": write_mat73,
    "mat73 sparse": lambda path, arrays: write_mat73(path, arrays, sparse=True),
    "mat73 without header": lambda path, arrays: write_mat73(path, arrays, header=False),
}

# --- layouts: how a data set becomes arrays ------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """Items in order: the first `trained` are learned from, the others ask."""

    image: Any
    text: Any
    labels: Any
    trained: int


def generate(
    seed: int, items: int, widths: tuple[int, int, int], picture: tuple[int, int] | None
) -> Data:
    draw = np.random.default_rng(seed)
    features, words, classes = widths
    image: Any = draw.normal(size=(items, features)).astype(np.float32)
    if picture:
        image = draw.integers(0, 256, (items, 3, *picture), dtype=np.uint8)
    labels = draw.integers(0, 2, (items, classes), dtype=np.uint8)
    labels[np.arange(items), np.arange(items) % classes] = 1
    labels[:classes] = np.eye(classes)  # each class occurs
    return Data(image, draw.normal(size=(items, words)).astype(np.float32), labels, items - 2)


# Matrices and pictures of an array whose first axis is that of the items.
ORIENTATIONS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any], str, str]] = {
    "rows": (lambda v: v, lambda v: v, "NF", "NCHW"),
    "rows, channels last": (lambda v: v, lambda v: v.transpose(0, 2, 3, 1), "NF", "NHWC"),
    "rows, pictures last": (lambda v: v, lambda v: v.transpose(2, 3, 1, 0), "NF", "HWCN"),
    "columns": (lambda v: v.T, lambda v: v.transpose(2, 3, 1, 0), "FN", "HWCN"),
    "transposed": (lambda v: v.T, lambda v: v.T, "FN", "WHCN"),
    "columns, pictures as MATLAB's": (
        lambda v: v.T,
        lambda v: v.transpose(0, 1, 3, 2),
        "FN",
        "NCWH",
    ),
}


def one_name(data: Data, turned: Callable[[str, Any], Any]) -> Arrays:
    return {
        name: turned(field, getattr(data, field))
        for field, name in zip(FIELDS, ("images", "YAll", "LAll"), strict=True)
    }


def of_parts(template: str, names: tuple[str, str, str], parts: tuple[str, str]) -> Any:
    def arrays(data: Data, turned: Callable[[str, Any], Any]) -> Arrays:
        rows = (slice(None, data.trained), slice(data.trained, None))
        return {
            template.format(name=name, part=part): turned(field, getattr(data, field)[some])
            for part, some in zip(parts, rows, strict=True)
            for field, name in zip(FIELDS, names, strict=True)
        }

    return arrays


def of_rows(kind: str) -> Any:
    def arrays(data: Data, turned: Callable[[str, Any], Any]) -> Arrays:
        rows = np.arange(len(data.labels))
        found = {
            f"data/{name}": turned(field, getattr(data, field))
            for field, name in zip(FIELDS, ("X1", "X2", "Y"), strict=True)
        }
        for name, some in (
            ("ind_train", rows < data.trained),
            ("ind_test", rows >= data.trained),
        ):
            values = some if kind == "masks" else rows[some] + (kind == "from one")
            found[f"data/split/{name}"] = values.astype(np.float64) if kind != "masks" else values
        return found

    return arrays


SPLITS: dict[str, Any] = {
    "none": one_name,
    "suffixes": of_parts("{name}_{part}", ("I", "T", "L"), ("tr", "te")),
    "database": of_parts("{name}_{part}", ("I", "T", "L"), ("db", "te")),
    "prefixes": of_parts("{part}_{name}", ("I", "T", "L"), ("retrieval", "query")),
    "camel": of_parts("{name}{part}", ("X", "Y", "L"), ("Train", "Test")),
    "groups": of_parts("{part}/{name}", ("image", "text", "labels"), ("train", "test")),
    "inner groups": of_parts("h/{name}/{part}", ("img", "txt", "label"), ("database", "query")),
    "from zero": of_rows("from zero"),
    "from one": of_rows("from one"),
    "masks": of_rows("masks"),
}


def same(items: CrossModalItems, data: Data, has_split: bool) -> None:
    np.testing.assert_array_equal(items.image, data.image)
    np.testing.assert_array_equal(items.text, data.text)
    np.testing.assert_array_equal(items.labels, data.labels)
    assert items.image.dtype == data.image.dtype
    assert items.image.flags.c_contiguous
    assert items.text.flags.c_contiguous
    assert items.skipped == {}
    if has_split:
        assert items.split is not None
        assert items.split["retrieval"].tolist() == list(range(data.trained))
        assert items.split["query"].tolist() == list(range(data.trained, len(data.labels)))
    else:
        assert items.split is None


class AxesAsked(Exception):
    """Several ways to read the axes fit."""


def read(file: Path) -> CrossModalItems:
    try:
        return read_features([file])
    except ValueError as error:
        if "datamodule.axes=" in str(error):
            raise AxesAsked from error
        raise


def write(folder: Path, data: Data, writer: str, orientation: str, split: str) -> Path:
    matrix, picture, *_ = ORIENTATIONS[orientation]

    def turned(field: str, values: Any) -> Any:
        return picture(values) if values.ndim == 4 else matrix(values)

    return WRITERS[writer](folder / "f", SPLITS[split](data, turned))


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("split", SPLITS)
def test_features_in_every_layout(writer: str, split: str, tmp_path: Path) -> None:
    data = generate(1, 14, (5, 7, 3), None)
    for orientation in ("rows", "transposed"):
        same(
            read_features([write(tmp_path, data, writer, orientation, split)]),
            data,
            split != "none",
        )


PICTURES_KNOWN = [
    *itertools.product(("npz", "h5", "mat5", "mat73"), list(ORIENTATIONS)[:3]),
    ("mat5", "columns"),
    ("mat73", "columns"),
    ("mat73 without header", "rows, pictures last"),
]


@pytest.mark.parametrize(("writer", "orientation"), PICTURES_KNOWN)
def test_pictures_in_every_layout(writer: str, orientation: str, tmp_path: Path) -> None:
    data = generate(2, 14, (5, 7, 4), (8, 9))
    for split in ("none", "suffixes", "from one"):
        same(
            read_features([write(tmp_path, data, writer, orientation, split)]),
            data,
            split != "none",
        )


@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 99),
    items=st.integers(5, 8),
    widths=st.tuples(st.integers(2, 8), st.integers(2, 8), st.integers(2, 3)),
    picture=st.sampled_from([None, None, (8, 9), (5, 8), (8, 8)]),
    writer=st.sampled_from(list(WRITERS)),
    orientation=st.sampled_from(list(ORIENTATIONS)),
    split=st.sampled_from(list(SPLITS)),
)
def test_no_layout_is_read_wrong_in_silence(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    items: int,
    widths: tuple[int, int, int],
    picture: tuple[int, int] | None,
    writer: str,
    orientation: str,
    split: str,
) -> None:
    """Sizes coincide on purpose: what they leave open is asked for, and read with the answer."""
    data = generate(seed, items, widths, picture)
    folder = tmp_path_factory.mktemp("layout")
    if writer.startswith("mat73") and orientation == "columns, pictures as MATLAB's":
        orientation = "columns"  # MATLAB shows its own pictures as they are
    file = write(folder, data, writer, orientation, split)
    _, _, matrices, pictures = ORIENTATIONS[orientation]
    axes = {"image": pictures if picture else matrices, "text": matrices, "labels": matrices}
    if picture is None or writer.startswith(("npz", "h5")) or orientation != "transposed":
        with contextlib.suppress(AxesAsked):
            same(read(file), data, split != "none")
    same(read_features([file], axes=axes), data, split != "none")


def test_columns_of_a_square_image_follow_the_other_parts(tmp_path: Path) -> None:
    data = generate(3, 6, (6, 20, 3), None)
    for orientation in ("rows", "transposed"):
        same(read_features([write(tmp_path, data, "npz", orientation, "none")]), data, False)


@pytest.mark.parametrize("classes", [80, 120])
def test_more_classes_than_items(classes: int, tmp_path: Path) -> None:
    labels = np.zeros((60, classes), dtype=np.uint8)
    labels[np.arange(classes) % 60, np.arange(classes)] = 1
    draw = np.random.default_rng(0)
    arrays = {"image": draw.random((60, 4)), "text": draw.random((60, 2))}
    for written in (labels, labels.T):
        items = read_features([write_npz(tmp_path / "f", {**arrays, "labels": written})])
        np.testing.assert_array_equal(items.labels, labels)


def test_a_query_part_of_fewer_items_than_classes_and_of_one(tmp_path: Path) -> None:
    data = generate(5, 30, (6, 7, 5), None)
    for asking in (4, 1):
        some = Data(data.image, data.text, data.labels, 30 - asking)
        for orientation in ("rows", "transposed"):
            file = write(tmp_path, some, "npz", orientation, "suffixes")
            same(read_features([file]), some, True)


def test_a_struct_array_holds_one_data_set_too_many(tmp_path: Path) -> None:
    entries = np.zeros(2, dtype=[(field, object) for field in FIELDS])
    entries[:] = tuple(WHOLE.values())
    for some, words in (
        (entries, r"data\(2\)/image: is image, as .*data\(1\)/image"),
        (entries[:1], ""),
    ):
        scipy_io.savemat(tmp_path / "f.mat", {"data": some})
        if words:
            with pytest.raises(ValueError, match=words):
                read_features([tmp_path / "f.mat"])
        else:
            same(read_features([tmp_path / "f.mat"]), DATA, False)


def test_files_of_one_part_each_and_of_one_field_each(tmp_path: Path) -> None:
    data = generate(6, 12, (4, 5, 3), None)
    fields = {f: getattr(data, f) for f in FIELDS}
    train = write_h5(tmp_path / "wiki_train", {f: v[:10] for f, v in fields.items()})
    test = write_h5(tmp_path / "wiki_test", {f: v[10:] for f, v in fields.items()})
    same(read_features([train, test]), data, True)
    one_each = [
        write_mat73(tmp_path / "iall", {"IAll": data.image}),
        write_mat5(tmp_path / "yall", {"YAll": data.text}),
        write_npz(tmp_path / "lall", {"LAll": data.labels}),
    ]
    same(read_features(one_each), data, False)
    same(
        read_features([write_npz(tmp_path / "only", {f"{f}_test": v for f, v in fields.items()})]),
        data,
        False,
    )


def test_training_rows_of_a_database_are_read_once(tmp_path: Path) -> None:
    """COCO and NUS-WIDE: `I_db` is searched, `I_tr` is a part of it or beside it."""
    data = generate(7, 20, (4, 5, 3), None)
    for train, kept in ((np.r_[2, 5, 9], 0), (np.r_[2, 18, 19], 2), (np.r_[18, 19], 2)):
        rows = {"db": np.arange(16), "te": np.r_[16, 17], "tr": train}
        arrays = {
            f"{name}_{part}": getattr(data, field)[some]
            for part, some in rows.items()
            for field, name in zip(FIELDS, "ITL", strict=True)
        }
        items = read_features([write_npz(tmp_path / "f", arrays)])
        assert items.split is not None
        assert items.split["query"].tolist() == [16, 17]
        assert items.split["retrieval"].tolist() == [*range(16), *range(18, 18 + kept)]
        np.testing.assert_array_equal(items.text, data.text[: 18 + kept])
        words = "training row that the database has as well"
        assert items.skipped == ({words: len(train) - kept} if kept < len(train) else {})


# --- labels -----------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 1, 7])
@pytest.mark.parametrize("shape", [(12,), (1, 12), (12, 1)])
def test_class_numbers_name_their_classes(
    first: int, shape: tuple[int, ...], tmp_path: Path
) -> None:
    data = generate(8, 12, (4, 5, 3), None)
    numbers = np.arange(12) % 3 + first
    arrays = {"image": data.image, "text": data.text}
    file = write_npz(tmp_path / "f", {**arrays, "labels": numbers.reshape(shape).astype(float)})
    items = read_features([file])
    np.testing.assert_array_equal(items.labels.argmax(1), numbers - first)
    assert items.classes == tuple(str(first + number) for number in range(3))
    if first < 2:
        named = read_features([file], class_names=["a", "b", "c"])
        assert named.classes == ("a", "b", "c")
        np.testing.assert_array_equal(named.labels, items.labels)
    with pytest.raises(ValueError, match=r"class_names: 2 names, and .*, labels has class numbers"):
        read_features([file], class_names=["a", "b"])
    if first == 1:
        with pytest.raises(ValueError, match=r"1 to 3 and 4 class_names: whether they count from"):
            read_features([file], class_names=["a", "b", "c", "d"], bad_rows="skip")


def test_class_names_tell_classes_apart(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="class_names: 'a' stands there 2 times"):
        read_features([write_npz(tmp_path / "f", WHOLE)], class_names=["a", "b", "a"])


@pytest.mark.parametrize("write", [write_npz, write_mat5, write_h5])
def test_labels_in_words_name_their_classes(write: Any, tmp_path: Path) -> None:
    """Bytes in npz, a matrix of signs in MATLAB, texts in HDF5; MATLAB fills up with blanks."""
    numbers = np.arange(len(WHOLE["labels"])) % 3
    words: Any = np.array(["dog", "cat", "Bär"])[numbers]
    said = {write_npz: np.char.encode(words, "utf-8"), write_h5: words.astype(object)}
    arrays = {**WHOLE, "labels": said.get(write, words)}
    items = read_features([write(tmp_path / "f", arrays)])
    assert items.classes == ("Bär", "cat", "dog")
    assert items.labels.argmax(1).tolist() == (2 - numbers).tolist()
    file = write(tmp_path / "g", {**arrays, "label": WHOLE["labels"]})
    assert np.array_equal(read_features([file]).labels, WHOLE["labels"])


def test_names_of_classes_in_words_are_all_that_occur(tmp_path: Path) -> None:
    numbers = np.arange(len(WHOLE["labels"])) % 3
    file = write_npz(tmp_path / "f", {**WHOLE, "labels": np.array(["a ", "b", ""])[numbers]})
    with pytest.raises(ValueError, match="no class"):
        read_features([file])
    items = read_features([file], class_names=["b", "a"], bad_rows="skip")
    assert items.classes == ("b", "a")
    assert items.labels[:2].tolist() == [[0, 1], [1, 0]]
    with pytest.raises(ValueError, match=r"datamodule\.class_names: .*labels has 'b' as well"):
        read_features([file], class_names=["a"])


def test_a_class_number_of_ten_digits_takes_no_memory(tmp_path: Path) -> None:
    data = generate(9, 12, (4, 5, 3), None)
    arrays = {"image": data.image, "text": data.text}
    numbers = np.where(np.arange(12) % 2, 10**9, 4)
    items = read_features([write_npz(tmp_path / "f", {**arrays, "labels": numbers})])
    assert items.classes == ("4", "1000000000")
    assert items.labels.shape == (12, 2)


def test_columns_that_a_part_lacks_are_not_filled_up(tmp_path: Path) -> None:
    data = generate(10, 12, (4, 5, 4), None)
    arrays = of_parts("{name}_{part}", ("I", "T", "L"), ("tr", "te"))(data, lambda f, v: v)
    arrays["L_te"] = arrays["L_te"][:, :3]
    file = write_npz(tmp_path / "f", arrays)
    with pytest.raises(
        ValueError, match=r"L_tr \(10, 4\), L_te \(2, 3\): labels must have the same"
    ):
        read_features([file])
    numbers = {**arrays, "L_tr": np.arange(10) % 4, "L_te": np.array([0, 2])}
    assert read_features([write_npz(tmp_path / "f", numbers)]).labels.shape == (12, 4)


# --- pictures ---------------------------------------------------------------------------------

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 3, 8, 9), dtype=np.uint8)
PIXELS[0, 0, 0, :2] = 0, 255
REST: Arrays = {"text": np.arange(24.0).reshape(12, 2), "labels": np.arange(12) % 3}


@pytest.mark.parametrize(
    "written",
    [
        PIXELS,
        PIXELS / 255,
        (PIXELS / 255).astype(np.float32),
        PIXELS.astype(np.float64),
        PIXELS.astype(np.uint16),
        PIXELS.astype(np.int64),
    ],
    ids=["uint8", "0..1", "0..1 float32", "0..255 floats", "uint16", "int64"],
)
def test_pixels_on_any_scale(written: Any, tmp_path: Path) -> None:
    items = read_features([write_npz(tmp_path / "f", {"image": written, **REST})])
    np.testing.assert_array_equal(items.image, PIXELS)
    assert items.image.dtype == np.uint8


@pytest.mark.parametrize("kind", [bool, np.uint8, np.float32])
def test_black_and_white(kind: Any, tmp_path: Path) -> None:
    written = (PIXELS > 99).astype(kind)
    items = read_features([write_npz(tmp_path / "f", {"image": written, **REST})])
    np.testing.assert_array_equal(items.image, np.where(PIXELS > 99, 255, 0))


def test_the_scale_is_that_of_all_parts_together(tmp_path: Path) -> None:
    dark = np.minimum(PIXELS, 200) // 200 * 255  # the query part holds 0 and 255, or is black
    dark[8:] = 0
    arrays = {"I_tr": dark[:8] / 255, "I_te": dark[8:] / 255 + np.linspace(0, 0.5, 9)}
    for name in ("text", "labels"):
        arrays |= {f"{name}_tr": REST[name][:8], f"{name}_te": REST[name][8:]}
    items = read_features([write_npz(tmp_path / "f", arrays)])
    assert items.image[:8].max() == 255
    assert items.image[8:].max() == 128


def test_grey_pictures_and_transparent_ones(tmp_path: Path) -> None:
    grey = PIXELS[:, :1]
    for written in (grey, grey.transpose(0, 2, 3, 1), grey[:, 0], grey[:, 0].astype(np.int32)):
        items = read_features([write_npz(tmp_path / "f", {"image": written, **REST})])
        np.testing.assert_array_equal(items.image, np.repeat(grey, 3, axis=1))
    layer = np.concatenate([PIXELS, PIXELS[:, :1]], axis=1)
    items = read_features([write_npz(tmp_path / "f", {"image": layer, **REST})])
    for picture, four in zip(items.image, layer, strict=True):
        Image.fromarray(np.ascontiguousarray(four.transpose(1, 2, 0))).save(tmp_path / "p.png")
        expected = np.asarray(read_picture(tmp_path / "p.png")).transpose(2, 0, 1)
        np.testing.assert_allclose(picture.astype(int), expected.astype(int), atol=1)


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ((PIXELS / 255 - 0.45) / 0.22, "with values from -2.04545 to 2.5: .* normalisation"),
        (PIXELS.astype(np.uint16) * 257, "with values from 0 to 65535"),
        (PIXELS.astype(np.int16) - 128, "with values from -128"),
        (PIXELS / 100, "with values from 0 to 2.55"),
        (np.ones((12, 512, 7, 7)), "feature maps take the means"),
        (np.ones((12, 512, 4, 4)), "they must describe the same items"),
        (np.ones((12, 36, 64)), "feature maps take the means"),
        (np.ones((12, 2, 3, 8, 9)), "feature maps take the means"),
        (np.ones(12), r"of shape \(12,\): must be features"),
        (PIXELS[:, 0, 0] * 1j, "no fields"),
    ],
)
def test_what_is_no_picture_is_refused(written: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"f\.npz.*{words}"):
        read_features([write_npz(tmp_path / "f", {"image": written, **REST})])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pictures_that_are_not_finite_are_bad_rows(value: float, tmp_path: Path) -> None:
    written = PIXELS / 255
    written[7, 1, 2, 3] = value
    file = write_npz(tmp_path / "f", {"image": written, **REST})
    with pytest.raises(ValueError, match=r"f\.npz, row 7: image that is not finite \(1 such"):
        read_features([file])
    items = read_features([file], bad_rows="skip")
    np.testing.assert_array_equal(items.image, np.delete(PIXELS, 7, axis=0))
    assert items.skipped == {"image that is not finite": 1}


def test_features_beyond_float32_are_bad_rows(tmp_path: Path) -> None:
    image = np.ones((12, 4))
    image[3, 1] = 1e300
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=r"row 3: image that is not finite"):
            read_features([write_npz(tmp_path / "f", {"image": image, **REST})])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.linspace(0, 1, 90, dtype=np.float32), 255),
        (np.linspace(0, 200, 90, dtype=np.float32), 200),
        (np.linspace(0, 200, 90).astype(np.int32), 200),
    ],
)
def test_a_picture_file_of_floats_is_not_cut_off(
    values: Any, expected: int, tmp_path: Path
) -> None:
    Image.fromarray(values.reshape(9, 10)).save(tmp_path / "p.tif")
    assert np.asarray(read_picture(tmp_path / "p.tif")).max() == expected
    Image.fromarray(values.reshape(9, 10) - 5).save(tmp_path / "p.tif")
    with pytest.raises(ValueError, match=r"p\.tif with values from -5 to"):
        read_picture(tmp_path / "p.tif")


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_picture_of_sixteen_bits_is_not_black(suffix: str, tmp_path: Path) -> None:
    """Of 16 bits the upper 8 are read: numbers of 8 to 12 bits would be nearly 0."""
    values = np.linspace(0, 1, 90).reshape(9, 10)
    for brightest, expected in ((65535, 255), (0, 0)):
        Image.fromarray((values * brightest).astype(np.uint16)).save(tmp_path / f"p.{suffix}")
        assert np.asarray(read_picture(tmp_path / f"p.{suffix}")).max() == expected
    for brightest in (255, 1023, 4095):
        Image.fromarray((values * brightest).astype(np.uint16)).save(tmp_path / f"p.{suffix}")
        with pytest.raises(ValueError, match=f"values up to {brightest} alone"):
            read_picture(tmp_path / f"p.{suffix}")


# --- splits -------------------------------------------------------------------------------------


def with_split(folder: Path, train: Any, test: Any, write: Any = write_mat5) -> Path:
    data = generate(11, 20, (4, 5, 3), None)
    arrays: Arrays = {"X1": data.image.T, "X2": data.text.T, "Y": data.labels.T}
    file: Path = write(folder / "f", {**arrays, "ind_train": train, "ind_test": test})
    return file


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        (
            np.arange(1, 13),
            np.arange(8, 21),
            r"ind_t\w+: has 5 rows that are in ind_t\w+ too, first row 7",
        ),
        (
            np.arange(0, 12),
            np.arange(12, 21),
            r"ind_test: row 20\.?0? of 20 rows, which count from 0",
        ),
        (
            np.arange(1, 12),
            np.arange(12, 22),
            r"ind_test: row 21\.?0? of 20 rows, which count from 1",
        ),
        (np.r_[-1, 1:12], np.arange(12, 21), r"ind_train: row -1\.?0? of 20"),
        (np.r_[1:12, 3], np.arange(12, 21), r"ind_train: has row 3 twice"),
        (np.r_[1:12] + 0.5, np.arange(12, 21), r"ind_train: rows must be whole"),
        (np.ones(20), np.zeros(20), r"ind_test: names no row"),
        (np.arange(20) < 12, np.arange(20) > 8, r"has 3 rows that are in ind_t\w+ too"),
        (np.ones((3, 4)), np.arange(12, 21), r"ind_train: of shape \(3, 4\): give the rows of one"),
    ],
)
@pytest.mark.parametrize("write", [write_mat5, write_npz, write_mat73])
def test_rows_that_are_no_split_are_refused(
    train: Any, test: Any, words: str, write: Any, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        read_features([with_split(tmp_path, train, test, write)], bad_rows="skip")


def test_rows_that_may_count_from_zero_or_one(tmp_path: Path) -> None:
    """MATLAB counts from 1; another file must tell."""
    train, test = np.arange(2, 12), np.arange(12, 18)
    items = read_features([with_split(tmp_path, train, test)])
    assert items.split is not None
    assert items.names[0].endswith("row 1")
    assert items.skipped == {"row of no part": 4}
    with pytest.raises(
        ValueError, match=r"name rows 2 to 17 of 20: from 0 or from 1 cannot be told"
    ):
        read_features([with_split(tmp_path, train, test, write_npz)])


def test_rows_stay_in_the_order_in_which_a_split_names_them(tmp_path: Path) -> None:
    """Validation items are drawn by it."""
    items = read_features([with_split(tmp_path, np.arange(14, 0, -1), np.r_[20, 15:20])])
    assert items.split is not None
    assert items.split["retrieval"].tolist() == list(range(13, -1, -1))
    assert items.split["query"].tolist() == [19, *range(14, 19)]


def test_the_rest_is_searched_where_only_queries_are_named(tmp_path: Path) -> None:
    data = generate(12, 10, (4, 5, 3), None)
    arrays = one_name(data, lambda f, v: v)
    items = read_features([write_npz(tmp_path / "f", {**arrays, "test_mask": np.arange(10) > 7})])
    same(items, data, True)
    with pytest.raises(ValueError, match=r"train_idx: rows of a split without those of its query"):
        read_features([write_npz(tmp_path / "f", {**arrays, "train_idx": np.arange(8)})])


def test_a_published_validation_part(tmp_path: Path) -> None:
    data = generate(13, 20, (4, 5, 3), None)
    arrays = one_name(data, lambda f, v: v)
    rows = {"train_idx": np.arange(12), "val_idx": np.arange(12, 15), "test_idx": np.arange(15, 20)}
    items = read_features([write_npz(tmp_path / "f", {**arrays, **rows})])
    assert items.split is not None
    assert {part: len(some) for part, some in items.split.items()} == {
        "query": 5,
        "validation": 3,
        "retrieval": 12,
    }
    with pytest.raises(ValueError, match=r"val_idx: has 1 rows that are in test_idx too"):
        read_features([write_npz(tmp_path / "f", {**arrays, **rows, "val_idx": np.r_[12, 15]})])


def test_queries_among_the_training_items_are_found_by_content(tmp_path: Path) -> None:
    data = generate(14, 20, (4, 5, 3), None)
    arrays = of_parts("{part}/{name}", FIELDS, ("train", "test"))(data, lambda f, v: v)
    for field in FIELDS:
        arrays[f"train/{field}"] = np.concatenate(
            [arrays[f"train/{field}"], arrays[f"test/{field}"][:1]]
        )
    file = write_h5(tmp_path / "f", arrays)
    with pytest.raises(ValueError, match=r"f\.h5, train row 18: an item of the query .*\(1 such"):
        read_features([file])
    items = read_features([file], bad_rows="skip")
    same_rows = Data(data.image, data.text, data.labels, 18)
    np.testing.assert_array_equal(items.text, same_rows.text)
    assert items.skipped == {"an item of the query or validation part as well": 1}


# --- names --------------------------------------------------------------------------------------

DATA = generate(15, 12, (4, 5, 3), None)
WHOLE = {field: getattr(DATA, field) for field in FIELDS}


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({**WHOLE, "zz/labels": DATA.labels}, r"zz/labels: is labels, as .*, labels is; name the"),
        ({**WHOLE, "I_te": DATA.image}, r"image is of all items and I_te of the query part"),
        ({f"train/{f}": v for f, v in WHOLE.items()} | {"test/text": DATA.text}, "query part has"),
        (
            {f"{p}/{f}": v for f, v in WHOLE.items() for p in ("train", "val")},
            "a split needs query",
        ),
        ({"image": DATA.image, "labels": DATA.labels}, r"no fields .* there are image \(12, 4\)"),
        ({**WHOLE, "text": np.zeros((0, 5))}, "text: is text and holds nothing"),
        ({**WHOLE, "text": DATA.text[:11]}, r"text \(11, 5\).*: they must describe the same items"),
        ({**WHOLE, "text": DATA.text[:, 0]}, r"text: of shape \(12,\): must be a matrix"),
        ({**WHOLE, "labels": DATA.labels * 0.5}, r"labels, row 0: labels must be 0 or 1"),
        ({**WHOLE, "labels": np.arange(12) - 1}, r"labels, row 0: -1: one class number"),
        ({**WHOLE, "labels": np.full(12, np.nan)}, r"labels, row 0: nan: one class number"),
    ],
)
@pytest.mark.parametrize("write", [write_npz, write_h5])
def test_what_the_names_do_not_make_clear_is_refused(
    arrays: Arrays, words: str, write: Any, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        read_features([write(tmp_path / "f", arrays)])


def test_more_numbers_than_classes_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.feature_arrays.MAX_CLASSES", 11)
    with pytest.raises(
        ValueError, match=r"labels: 12 different values are no classes \(11 at most"
    ):
        read_features([write_npz(tmp_path / "f", {**WHOLE, "labels": np.arange(12)})])


@pytest.mark.parametrize(
    "fields",
    [
        {"image": "zz/deep", "text": "words", "labels": "labels"},
        {"image": "deep", "text": "words"},
        {"image": "deep", "text": "words", "labels": "labels"},
    ],
)
def test_fields_name_arrays_with_or_without_their_groups(
    fields: Mapping[str, str], tmp_path: Path
) -> None:
    arrays = {
        "zz/deep": DATA.image,
        "words": DATA.text,
        "labels": DATA.labels,
        "images": 1 - DATA.image,
    }
    items = read_features([write_h5(tmp_path / "f", arrays)], fields)
    same(items, DATA, False)
    with pytest.raises(ValueError, match=r"fields.image=none: not in .*there are images"):
        read_features([write_h5(tmp_path / "f", arrays)], {**fields, "image": "none"})


def test_fields_name_arrays_of_all_parts(tmp_path: Path) -> None:
    arrays = of_parts("{part}/{name}", ("a", "b", "c"), ("train", "test"))(DATA, lambda f, v: v)
    fields = {"image": "a", "text": "b", "labels": "c"}
    same(read_features([write_mat5(tmp_path / "f", arrays)], fields), DATA, True)


def test_what_is_not_read_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    arrays = {**WHOLE, "params": np.zeros(3), "class_words": np.array(["a", "b"])}
    same(read_features([write_npz(tmp_path / "f", arrays)]), DATA, False)
    assert "not read, as no name of a field: params (3,), class_words (2,)" in caplog.text
    caplog.clear()
    read_features([write_npz(tmp_path / "f", WHOLE)])
    read_features([write_mat73(tmp_path / "f", WHOLE)])  # whose #refs# are MATLAB's own
    assert not caplog.text


# --- damaged files ------------------------------------------------------------------------------


@pytest.mark.parametrize("writer", WRITERS)
def test_cut_files_are_refused_by_name(writer: str, tmp_path: Path) -> None:
    whole = write(tmp_path, generate(16, 40, (30, 30, 3), None), writer, "rows", "none")
    content = whole.read_bytes()
    for length in (0, 10, 600, len(content) // 2, len(content) - 20):
        whole.write_bytes(content[:length])
        with pytest.raises(ValueError, match=rf"path=.*{whole.name}"):
            read_features([whole])


@pytest.mark.parametrize("name", ["f.npz", "f.mat", "f.h5"])
def test_files_that_are_something_else_are_refused_by_name(name: str, tmp_path: Path) -> None:
    for content in (b"", b"image,text\n1,2\n" * 99, b"PK\x03\x04" + bytes(99), bytes(2000)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"path=.*{name}"):
            read_features([tmp_path / name])


def test_a_sparse_matrix_whose_rows_lie_outside_is_refused(tmp_path: Path) -> None:
    file = write_mat73(tmp_path / "f", WHOLE, sparse=True)
    with h5py.File(file, "r+") as content:
        content["text/ir"][3] = 12
    with pytest.raises(ValueError, match=r"path=.*f\.mat, text: cannot be read"):
        read_features([file])


def test_pickles_are_not_opened(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write_npz(tmp_path / "f", {**WHOLE, "more": np.array([{}, {}])})
    same(read_features([file]), DATA, False)
    assert "not read, as no name of a field: more (no array)" in caplog.text
    with pytest.raises(ValueError, match=r"f\.npz, more: holds no numbers"):
        read_features([file], {"text": "more"})


def test_a_part_without_items_is_refused(tmp_path: Path) -> None:
    arrays = of_parts("{name}_{part}", ("I", "T", "L"), ("tr", "te"))(DATA, lambda field, v: v)
    arrays = {name: v[:0] if "te" in name else v for name, v in arrays.items()}
    with pytest.raises(ValueError, match=r"I_te: is image of the query part and holds nothing"):
        read_features([write_npz(tmp_path / "f", arrays)])


def test_axes_of_a_setting_are_checked_before_reading(tmp_path: Path) -> None:
    given: Any = {"path": str(write_npz(tmp_path / "f", WHOLE)), "classes_per_session": [2, 1]}
    CrossModalDataModule(**given, axes={"image": "NHWC", "text": "FN"})
    with pytest.raises(ValueError, match=r"axes\.text='NCHW': must be 'NF' or 'FN'"):
        CrossModalDataModule(**given, axes={"text": "NCHW"})
    with pytest.raises(ValueError, match=r"axes\.picture: no such key"):
        CrossModalDataModule(**given, axes={"picture": "NF"})
    with pytest.raises(ValueError, match="axes: of feature files; source=generated"):
        CrossModalDataModule(**given, source="generated", axes={"text": "FN"})
