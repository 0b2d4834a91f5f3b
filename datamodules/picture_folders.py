"""Pairs of a folder through pretrained encoders: pictures and texts become features, once.

The pairs are listed in a table (`pairs.tsv`, `.csv` or `.jsonl` with path, labels and text), or a
text lies beside each picture (`cat.png`, `cat.txt`) and the names of its folders are its labels.
Features are kept by the content of pictures, texts and encoders, so that the next run reads them.
"""

import csv
import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from datamodules.cache import build_once
from datamodules.cross_modal_items import CrossModalItems
from datamodules.encoders import (
    EFFICIENTNET,
    MINILM,
    VERSION,
    Encoder,
    load_image_encoder,
    load_text_encoder,
)
from datamodules.files import digest_file, files_under, jsonl_rows, read_text, refuse_surrogates
from datamodules.pictures import SUFFIXES, TooLargeError, is_picture, read_picture

log = logging.getLogger(__name__)

TABLES = ("pairs.tsv", "pairs.csv", "pairs.jsonl")
COLUMNS = ("path", "labels", "text")
_WORDS = (str, int, float)  # what JSON may have for them


@dataclass(frozen=True)
class Pair:
    """One row of the source; `where` is for messages: the table and line, or the picture's file."""

    where: str
    file: Path
    labels: tuple[str, ...]
    text: str


# Of a pair that cannot be used: its number, the reason, and what is wrong with which file.
Bad = tuple[int, str, str]


def encode_folder(
    path: str,
    table: str | None = None,
    image_encoder: str = EFFICIENTNET,
    text_encoder: str = MINILM,
    batch_size_encode: int = 32,
    cache_dir: str = "cache",
    on_bad: Literal["refuse", "skip"] = "refuse",
) -> CrossModalItems:
    """Read a folder's pairs and return their features, computed once for the same content.

    Args:
        path: The folder of the pictures.
        table: The list of pairs, absolute or in the folder; None for `pairs.tsv`, `pairs.csv` or
            `pairs.jsonl`, else the texts beside the pictures. A row whose file is no picture
            (`cat.svg`) means the picture of the same name (`cat.png`).
        image_encoder: `efficientnet_lite0` of its Python packages, or a folder or hub id of a
            transformers model such as openai/clip-vit-base-patch32.
        text_encoder: `minilm` of its Python package, or likewise.
        batch_size_encode: Pictures or texts that are held and encoded at once.
        cache_dir: Where features are kept.
        on_bad: A pair without labels or text, or whose picture is absent, unreadable or above 50
            megapixels: `refuse` to start, or `skip` and count it in `skipped`.

    Raises:
        ValueError: The source cannot be read, or has a bad pair; the message names file and row.
        ImportError: An encoder's package is not installed; the message names it.
    """
    skipped: Counter[str] = Counter()
    pairs = read_pairs(path, table)
    pairs = _usable(pairs, _without_file_or_words(pairs), on_bad, skipped)
    encoders = (load_image_encoder(image_encoder), load_text_encoder(text_encoder))
    content: list[Any] = [VERSION, [encoder.identity for encoder in encoders]]
    content += [[digest_file(pair.file), pair.text] for pair in pairs]
    key = hashlib.blake2b(json.dumps(content).encode(), digest_size=12).hexdigest()
    folder = Path(cache_dir).expanduser() / "features" / key

    def build(unfinished: Path) -> dict[str, Any]:
        bad = _bad_pictures(pairs)
        _encode(_usable(pairs, bad, on_bad, Counter()), *encoders, batch_size_encode, unfinished)
        return {"bad": bad}

    # What an earlier run skipped may have to be refused now.
    bad = [] if not pairs else build_once(folder, build)["bad"]
    kept = _usable(pairs, bad, on_bad, skipped)
    if not kept:
        raise ValueError(f"datamodule.path={path}: no pair can be used; skipped: {dict(skipped)}")
    if skipped:
        log.warning("%s: %d pairs skipped: %s", path, skipped.total(), dict(skipped))
    return _items(kept, folder, skipped)


def _usable(
    pairs: Sequence[Pair], bad: Sequence[Bad], on_bad: str, skipped: Counter[str]
) -> list[Pair]:
    """Refuse bad pairs, or leave them out and count them by reason."""
    if bad and on_bad == "refuse":
        row, _, problem = bad[0]
        raise ValueError(
            f"{pairs[row].where}: {problem} ({len(bad)} such pairs in all); mend or remove it, or "
            "leave such pairs out with datamodule.options.on_bad=skip"
        )
    skipped.update(reason for _, reason, _ in bad)
    left_out = {row for row, _, _ in bad}
    return [pair for row, pair in enumerate(pairs) if row not in left_out]


def _without_file_or_words(pairs: Sequence[Pair]) -> list[Bad]:
    """Find the pairs that lack a part."""
    bad = []
    for row, pair in enumerate(pairs):
        if not pair.labels:
            reason = "no label"
        elif not pair.text.strip():
            reason = "empty text"
        elif not pair.file.is_file():
            reason = "absent picture"
        else:
            continue
        bad.append((row, reason, f"{reason} ({pair.file})"))
    return bad


def _items(pairs: Sequence[Pair], folder: Path, skipped: Counter[str]) -> CrossModalItems:
    """Put pairs and their features in `folder` together."""
    classes = tuple(sorted({label for pair in pairs for label in pair.labels}))
    columns = {label: column for column, label in enumerate(classes)}
    labels = np.zeros((len(pairs), len(classes)), dtype=np.uint8)
    for row, pair in enumerate(pairs):
        labels[row, [columns[label] for label in pair.labels]] = 1
    image, text = (
        np.fromfile(folder / f"{name}.bin", dtype=np.float32).reshape(len(pairs), -1)
        for name in ("image", "text")
    )
    return CrossModalItems(
        image=image,
        text=text,
        labels=labels,
        classes=classes,
        names=tuple(str(pair.file) for pair in pairs),
        captions=tuple(pair.text for pair in pairs),
        skipped=dict(skipped),
    )


def encode_query(
    query: str, image_encoder: str = EFFICIENTNET, text_encoder: str = MINILM
) -> tuple[Literal["image", "text"], NDArray[np.float32]]:
    """Turn words, or the path of a picture, into features, as `encode_folder` makes them.

    Returns:
        `text` or `image`, and float32 (1, features).

    Raises:
        ValueError: The query is empty, or its picture cannot be read.
    """
    if is_picture(query):
        return "image", load_image_encoder(image_encoder).encode([read_picture(Path(query))])
    if not query.strip():
        raise ValueError("query: give words, or the path of a picture")
    return "text", load_text_encoder(text_encoder).encode([query])


def _bad_pictures(pairs: Sequence[Pair]) -> list[Bad]:
    """Read every picture once, before anything is computed, and find those that cannot be read."""
    bad = []
    for row, pair in enumerate(pairs):
        try:
            read_picture(pair.file)
        except ValueError as error:
            large = isinstance(error, TooLargeError)
            bad.append((row, "too large picture" if large else "unreadable picture", str(error)))
    return bad


def _encode(
    pairs: Sequence[Pair],
    image_encoder: Encoder,
    text_encoder: Encoder,
    batch_size: int,
    folder: Path,
) -> None:
    """Write `image.bin` and `text.bin`, a batch at a time."""
    reported = time.monotonic()
    with (folder / "image.bin").open("wb") as images, (folder / "text.bin").open("wb") as texts:
        for start in range(0, len(pairs), batch_size):
            some = pairs[start : start + batch_size]
            image_encoder.encode([read_picture(pair.file) for pair in some]).tofile(images)
            text_encoder.encode([pair.text for pair in some]).tofile(texts)
            if time.monotonic() > reported + 10:
                reported = time.monotonic()
                log.info("Encoded %d of %d pairs", start + len(some), len(pairs))


# --- the list of pairs ---------------------------------------------------------------------------


def read_pairs(path: str, table: str | None = None) -> list[Pair]:
    """List a folder's pairs, in the table's order or by the pictures' paths; reads no picture.

    Raises:
        ValueError: The folder or the table is absent, or a row of it is not of the right form.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ValueError(f"datamodule.path={path}: no such folder (looked in {Path.cwd()})")
    if table is not None:
        file = folder / Path(table).expanduser()
        if not file.is_file() or file.suffix not in (".tsv", ".csv", ".jsonl"):
            raise ValueError(
                f"datamodule.options.table={table}: give a .tsv, .csv or .jsonl file (looked for "
                f"{file})"
            )
        return list(_read_table(folder, file))
    for name in TABLES:
        if (folder / name).is_file():
            return list(_read_table(folder, folder / name))
    pairs = []
    for picture in files_under(str(folder)):
        names = picture.relative_to(folder).parts
        is_hidden = any(name.startswith(".") or name == "__MACOSX" for name in names)
        if picture.suffix.lower() in SUFFIXES and not is_hidden:
            beside = picture.with_suffix(".txt")
            text = read_text(beside, str(beside)) if beside.is_file() else ""
            pairs.append(Pair(str(picture), picture, tuple(dict.fromkeys(names[:-1])), text))
    if not pairs:
        raise ValueError(
            f"datamodule.path={path}: holds neither {', '.join(TABLES)} nor a picture; set "
            "datamodule.options.table"
        )
    return pairs


def _read_table(folder: Path, file: Path) -> Iterator[Pair]:
    for where, row in _rows(file):
        if isinstance(row, ValueError):
            raise row
        if not isinstance(row, dict) or any(row.get(k) is None for k in COLUMNS):
            has = f", it has {', '.join(map(str, row))}" if isinstance(row, dict) else ""
            raise ValueError(f"{where}: needs path, labels and text{has}")
        labels, text = row["labels"], row["text"]
        is_list = isinstance(labels, list)
        if not all(isinstance(each, _WORDS) for each in (text, *(labels if is_list else [labels]))):
            raise ValueError(f"{where}: labels must be words, or a list of them, and text words")
        picture = folder / str(row["path"])
        if picture.suffix.lower() not in SUFFIXES:
            same = (picture.with_suffix(suffix) for suffix in SUFFIXES)
            picture = next((other for other in same if other.is_file()), picture)
        names = labels if is_list else str(labels).split(",")
        refuse_surrogates("".join(map(str, (*names, text))), where)
        stripped = (str(name).strip() for name in names)
        yield Pair(where, picture, tuple(dict.fromkeys(filter(None, stripped))), str(text))


def _rows(file: Path) -> Iterator[tuple[str, Any]]:
    """Yield where each row of a table stands, and the row."""
    if file.suffix == ".jsonl":
        example = '{"path": "cat.png", "labels": ["cat"], "text": "A cat."}'
        yield from jsonl_rows(file, str(file), example)
        return
    form: dict[str, Any] = {"strict": True}
    if file.suffix == ".tsv":
        form = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    with file.open(encoding="utf-8-sig", newline="") as stream:
        table = csv.DictReader(stream, **form)
        try:
            names = list(table.fieldnames or ())
            if twice := [name for name in COLUMNS if names.count(name) > 1]:
                raise ValueError(f"{file}:1: has the column {twice[0]} twice")
            for row in table:
                where = f"{file}:{table.line_num}"
                if any(row.get(None) or ()):
                    mark = "a tab" if file.suffix == ".tsv" else "a comma that is not quoted"
                    raise ValueError(
                        f"{where}: has more columns than {', '.join(names)}: is {mark} in one?"
                    )
                yield where, row
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{file}:{table.line_num + 1}: cannot be read: {error}") from error
