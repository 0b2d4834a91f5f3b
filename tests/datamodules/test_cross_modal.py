"""Feature files of the field are read, refused by file and row, split by the protocol."""

import inspect
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from datamodules.cross_modal import CrossModalDataModule, session_of_items
from datamodules.cross_modal_sources import OPTIONS
from datamodules.feature_files import read_features
from datamodules.generated.pictures import render
from datamodules.picture_folders import encode_folder
from runner.validate import CONF

LABELS = np.eye(3, dtype=np.uint8)[np.arange(30) % 3]
IMAGE = np.arange(120, dtype=np.float32).reshape(30, 4)
TEXT = np.arange(60, dtype=np.float32).reshape(30, 2)


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path / "f.npz", **arrays)
    return path / "f.npz"


def same(items: Any) -> None:
    np.testing.assert_array_equal(items.image, IMAGE)
    np.testing.assert_array_equal(items.text, TEXT)
    np.testing.assert_array_equal(items.labels, LABELS)
    assert items.text.dtype == items.image.dtype == np.float32


@pytest.mark.parametrize(
    "names",
    [("IAll", "YAll", "LAll"), ("images", "tags", "labels"), ("img", "txt_minilm", "labels")],
)
def test_whole_layouts(names: tuple[str, str, str], tmp_path: Path) -> None:
    same(read_features([npz(tmp_path, **dict(zip(names, (IMAGE, TEXT, LABELS), strict=True)))]))


def test_wikipedia_layout_keeps_the_published_split(tmp_path: Path) -> None:
    numbers = LABELS.argmax(1)
    parts = {"I": IMAGE, "T": TEXT, "L": numbers}
    arrays = {f"{k}_tr": v[:20] for k, v in parts.items()}
    arrays |= {f"{k}_te": v[20:] for k, v in parts.items()}
    items = read_features([npz(tmp_path, **arrays)])
    same(items)
    assert items.split is not None
    assert items.split["query"].tolist() == list(range(20, 30))


def test_roph_struct_counts_columns_from_one(tmp_path: Path) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    from scipy.sparse import csc_matrix

    split = {"ind_train": np.arange(1, 21), "ind_test": np.arange(21, 31)}
    content = {"X1": IMAGE.T, "X2": TEXT.T, "Y": csc_matrix(LABELS.T.astype(bool)), "split": split}
    scipy_io.savemat(tmp_path / "wiki.mat", {"data": content})
    items = read_features([tmp_path / "wiki.mat"])
    same(items)
    assert items.split is not None
    assert items.split["retrieval"].tolist() == list(range(20))


def test_parts_in_separate_files_and_matlab_7_3(tmp_path: Path) -> None:
    scipy_io, h5py = pytest.importorskip("scipy.io"), pytest.importorskip("h5py")
    scipy_io.savemat(tmp_path / "yall.mat", {"YAll": TEXT})
    scipy_io.savemat(tmp_path / "lall.mat", {"LAll": LABELS})
    with h5py.File(tmp_path / "iall.mat", "w") as file:  # stored column by column, as MATLAB does
        file["IAll"] = IMAGE.T
    same(read_features([tmp_path / f"{part}all.mat" for part in "iyl"]))
    with h5py.File(tmp_path / "all.h5", "w") as file:
        for name, values in (("a", IMAGE), ("b", TEXT), ("c", LABELS)):
            file[name] = values
    fields = {"image": "a", "text": "b", "labels": "c"}
    same(read_features([tmp_path / "all.h5"], fields))


def test_pictures_come_channels_first(tmp_path: Path) -> None:
    pictures = np.zeros((30, 8, 8, 3), dtype=np.uint8)
    items = read_features([npz(tmp_path, images=pictures, tags=TEXT, labels=LABELS)])
    assert items.image.shape == (30, 3, 8, 8)
    assert items.image.dtype == np.uint8


def broken(**changes: Any) -> dict[str, Any]:
    return {"image": IMAGE.copy(), "text": TEXT.copy(), "labels": LABELS.copy(), **changes}


def with_value(values: Any, row: int, value: Any) -> Any:
    values = values.copy()
    values[row] = value
    return values


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (broken(text=TEXT[:29]), r"f\.npz: .*text \(29, 2\).*same items"),
        (broken(image=with_value(IMAGE, 7, np.nan)), r"f\.npz, row 7: image that is not finite"),
        (broken(labels=with_value(LABELS, 4, 0)), r"f\.npz, row 4: no class \(1 such rows"),
        (broken(labels=np.c_[LABELS, np.zeros(30, int)]), r"class 3: occurs in no item"),
        (broken(labels=with_value(LABELS.astype(int), 5, -1)), r"labels, row 5: labels must be 0"),
        ({"image": IMAGE, "labels": LABELS}, r"no fields \(IAll, YAll, LAll\)"),
    ],
)
def test_bad_input_is_refused_by_file_and_row(
    arrays: Mapping[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        read_features([npz(tmp_path, **arrays)])


def test_bad_rows_can_be_skipped_and_are_counted(tmp_path: Path) -> None:
    labels = np.c_[with_value(LABELS, 4, 0), np.zeros(30, int)]
    path = npz(tmp_path, **broken(image=with_value(IMAGE, 7, np.nan), labels=labels))
    items = read_features([path], bad_rows="skip")
    assert len(items) == 28
    assert items.labels.shape == (28, 3)
    assert items.skipped == {
        "no class": 1,
        "image that is not finite": 1,
        "class without items": 1,
    }
    assert items.names[4].endswith("row 5")


def test_an_item_with_any_new_class_arrives_with_its_last() -> None:
    labels = np.array([[1, 0, 0, 0], [1, 0, 1, 0], [0, 0, 1, 1], [0, 1, 0, 0]], dtype=np.uint8)
    sessions = session_of_items(labels, np.arange(4), [2, 1, 1])
    assert sessions.tolist() == [0, 1, 2, 0]
    drawn = session_of_items(labels, np.array([3, 2, 1, 0]), [2, 1, 1])
    assert drawn.tolist() == [2, 2, 0, 1]
    with pytest.raises(ValueError, match=r"3 \+ 2 is 5, and the data has 4 classes"):
        session_of_items(labels, np.arange(4), [3, 2])


def test_parts_do_not_meet_and_moments_are_of_the_originals(tmp_path: Path) -> None:
    datamodule = CrossModalDataModule(
        path=str(npz(tmp_path, **broken())),
        classes_per_session=[2, 1],
        queries=6,
        validation=0.25,
        split_seed=3,
    )
    datamodule.setup("fit")
    rows = [datamodule.parts[part].rows for part in ("query", "validation", "retrieval")]
    assert [len(part) for part in rows] == [6, 6, 18]
    assert sorted(np.concatenate(rows)) == list(range(30))
    original = np.flatnonzero(datamodule.groups["retrieval"] == 0)
    known = datamodule.parts["retrieval"][original]["image"].numpy()
    np.testing.assert_allclose(known.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(known.std(0), 1, atol=1e-5)
    assert datamodule.describe()["items_by_session"]["query"]


def test_a_column_that_is_constant_among_the_originals_is_not_blown_up(tmp_path: Path) -> None:
    """float32 says 1.5e-8 for the deviation of some hundred times 0.1."""
    labels = np.eye(2, dtype=np.uint8)[np.arange(2000) // 1900]
    text = np.where(labels[:, :1] == 1, 0.1, 0.5).astype(np.float32)
    assert text[:1900].std(0) > 0
    arrays = {"image": np.arange(2000, dtype=np.float32)[:, None], "text": text, "labels": labels}
    datamodule = CrossModalDataModule(
        path=str(npz(tmp_path, **arrays)), classes_per_session=[1, 1], bad_rows="skip"
    )
    datamodule.setup("fit")
    for part, groups in datamodule.groups.items():
        found = datamodule.parts[part][np.arange(len(groups))]["text"].numpy()[:, 0]
        np.testing.assert_allclose(found, np.where(groups == 0, 0, 0.4), atol=1e-6)


def test_a_fingerprint_says_whether_codes_belong_to_the_data(tmp_path: Path) -> None:
    """The same items at another place have it; other values, orders, parts and words do not."""

    def of(items: Any = None, **settings: Any) -> str:
        given = {"path": str(path), "classes_per_session": [2, 1], "queries": 10, **settings}
        datamodule = CrossModalDataModule(**{"validation": 0.4, **given})
        if items is not None:
            datamodule._read = lambda: items  # type: ignore[method-assign]
        datamodule.setup("test")
        return datamodule.fingerprint

    path = npz(tmp_path, image=IMAGE, text=TEXT, labels=LABELS)
    first = of()
    path = path.rename(tmp_path / "moved.npz")
    assert of() == first
    order = np.r_[3, 1, 2, 0, 4:30]  # within a class: labels stay as they are
    for changed in (
        {"split_seed": 1},
        {"classes_per_session": [1, 2]},
        {"class_names": ["a", "b", "c"]},
    ):
        assert of(**changed) != first, changed
    assert of(classes_per_session=[3]) != of(classes_per_session=[3], split_seed=1), "rows alone"
    for name, values in (
        ("image", IMAGE[order]),
        ("text", TEXT * 2),
        ("labels", LABELS[:, [1, 0, 2]]),
    ):
        path = npz(tmp_path, **{"image": IMAGE, "text": TEXT, "labels": LABELS, name: values})
        assert of() != first, name

    drawn = render(30, size=16)
    settings: dict[str, Any] = {"source": "generated", "classes_per_session": [7, 3]}
    settings |= {"validation": 0.4, "queries": 10}
    first = of(drawn, **settings)
    assert of(replace(drawn, image=drawn.image ^ 1), **settings) == first, "a last digit"
    assert drawn.captions is not None
    assert of(replace(drawn, captions=drawn.captions[::-1]), **settings) != first
    assert of(render(30, size=20), **settings) != first


def test_axes_that_shapes_leave_open_are_a_setting(tmp_path: Path) -> None:
    """30 items of 30 features, written by columns beside an image written by rows."""
    draw = np.random.default_rng(0)
    text, labels = draw.random((30, 30)), np.arange(30) % 3
    settings = {
        "path": str(npz(tmp_path, image=text, text=text, labels=labels)),
        "classes_per_session": [2, 1],
        "standardise": [],
        "queries": 10,
    }
    with pytest.raises(ValueError, match=r"axes of image may be FN or NF .*datamodule\.axes="):
        CrossModalDataModule(**settings).setup("fit")
    datamodule = CrossModalDataModule(**settings, axes={"image": "NF", "text": "FN"})
    datamodule.setup("fit")
    assert datamodule.items is not None
    np.testing.assert_array_equal(datamodule.items.image, text.astype(np.float32))
    np.testing.assert_array_equal(datamodule.items.text, text.T.astype(np.float32))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"path": None}, "path=null: give a feature file"),
        ({"path": "nowhere.npz"}, r"path=nowhere\.npz: no such file"),
        ({"classes_per_session": []}, "classes_per_session"),
        ({"queries": 1.5}, "queries=1.5"),
        ({"validation": 0.0}, "validation=0.0"),
        ({"standardise": ["video"]}, "standardise"),
        ({"fields": {"picture": "X"}}, r"fields\.picture: no such key"),
        ({"options": {"count": 5}}, r"options\.count: source=features has no such option"),
        ({"source": "generated", "options": {"sise": 5}}, r"options\.sise: no such key"),
        ({"source": "generated", "options": {"on_bad": "skip"}}, r"options\.on_bad: .*has count"),
        ({"source": "generated", "options": {"count": 0}}, r"options\.count=0: must be greater"),
        ({"source": "generated", "options": {"size": 8}}, r"options\.size=8: must be greater"),
        ({"source": "generated", "options": {"seed": -1}}, r"options\.seed=-1: must be greater"),
        ({"options": {"on_bad": "drop"}}, r"options\.on_bad='drop': must be 'refuse' or 'skip'"),
        ({"options": {"batch_size_encode": 0}}, r"options\.batch_size_encode=0"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    given: Any = {"path": str(npz(tmp_path, **broken())), "classes_per_session": [2, 1], **settings}
    with pytest.raises(ValueError, match=words):
        CrossModalDataModule(**given)


@pytest.mark.parametrize(
    ("name", "function", "own"),
    [
        ("pictures_folder", encode_folder, {"path", "cache_dir"}),
        ("generated_pictures", render, {"cache_dir"}),
    ],
)
def test_options_are_those_of_the_config_and_of_messages(
    name: str, function: Callable[..., Any], own: Collection[str]
) -> None:
    """Each source's options stand in its config, and messages name keys that are there."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", [f"datamodule={name}"]).datamodule
    taken = set(inspect.signature(function).parameters) - set(own)
    assert set(OPTIONS[config.source]) == taken == set(config.options)
    source = Path(inspect.getfile(function)).read_text()
    keys = set(re.findall(r"\bdatamodule\.([a-z_]+(?:\.[a-z_]+)*)", source)) - {"options"}
    assert keys <= {*config, *(f"options.{key}" for key in config.options)}


@pytest.mark.skipif("FRUGAL_DATA" not in os.environ, reason="FRUGAL_DATA: a folder of real data")
def test_real_files_agree() -> None:
    """The same Wikipedia pairs, as an npz file and as RoPH's struct."""
    folder = Path(os.environ["FRUGAL_DATA"]) / "crossmodal" / "wikipedia-roph"
    one = read_features([folder / "wikipedia_cnn128_txt100.npz"])
    other = read_features([folder / "wiki.mat"])
    assert other.split is not None
    order = np.concatenate([other.split["retrieval"], other.split["query"]])
    np.testing.assert_array_equal(one.labels, other.labels[order])
    np.testing.assert_allclose(one.image, other.image[order], rtol=1e-5)
