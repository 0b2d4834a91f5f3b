"""Where text comes from: each source is a stream of pieces that reads the same each time.

A piece is a document, or a part of one where a text file is too large to hold. Nothing here imports
torch or Lightning, and nothing but `docstrings` (16 million characters) is ever held whole.
"""

import functools
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from typing_extensions import TypedDict

from datamodules.files import (
    digest_file,
    find_parts,
    no_utf8,
    open_bytes,
    read_rows,
    refuse_surrogates,
    unpacked_size,
)
from datamodules.generated.docstrings import (
    list_modules,
    package_folders,
    read_code,
    read_documents,
)
from datamodules.hub import TextDataSet, datasets_of, identity_of, load_rows
from datamodules.settings import Whole

Source = Literal["docstrings", "code", "text", "jsonl", "parquet", "hub"]
FILE_SOURCES = ("text", "jsonl", "parquet")
KEYS = ("val_files", "files")  # of files, held-out ones first
PIECE_BYTES = 1 << 16  # text files are read in parts of this size, cut at a line's end
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # of UTF-8: some editors write it, it is no part of the text
MAX_PARSERS = 8  # parsing the environment takes 15 core-seconds: more processes gain nothing
DOCSTRING_CHARS = 16_000_000  # about; how many there are is known after parsing only
BYTE_VOCABULARY = 257  # 256 bytes and the end-of-text token


class OldDomain(TypedDict, total=False):
    """A text that is validated beside another one; what is null keeps its default."""

    source: Source | None
    files: str | list[str] | None
    val_files: str | list[str] | None
    text_column: str | None
    datasets: dict[str, TextDataSet | None] | None
    streaming: bool | None
    val_fraction: float | None
    val_batches: Whole | None
    max_tokens: Whole | None


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of text, of a character at least, on the training or the validation side.

    Where it ends a document, an end-of-text token belongs after it.
    """

    text: str
    ends_document: bool
    held_out: bool


@dataclass(frozen=True)
class TextSource:
    """A corpus that can be read again and again.

    Args:
        identity: What the pieces depend on, as JSON data: other content has another identity.
        pieces: Reads everything from the start, in the same order each time.
        size: Bytes to be read, roughly; None where only reading would tell.
        streamed: Whether it is read over a network and may have no end within reach.
    """

    identity: dict[str, Any]
    pieces: Callable[[], Iterator[Piece]]
    size: int | None
    streamed: bool = False


def open_source(settings: Mapping[str, Any]) -> TextSource:
    """Find the text that the settings name, without reading more than its fingerprint needs.

    Without validation files, `val_fraction` of the text is held out, whatever the seed: of a text
    file its end, from the next line on; of all other sources the documents whose content hash falls
    below the fraction, so that equal documents are never on both sides.

    Args:
        settings: The datamodule's arguments, as `check` takes them.

    Raises:
        ValueError: A file is missing or empty, or the hub or the data set cannot be reached.
    """
    kind, fraction = settings["source"], settings["val_fraction"]
    if kind in ("docstrings", "code"):
        # Code is the standard library's alone.
        folders = package_folders() if kind == "docstrings" else package_folders()[:1]
        modules, digest = list_modules(folders)
        size = sum(module.stat().st_size for module in modules)
        documents: Callable[[], Iterable[str]] = functools.partial(map, read_code, modules)
        if kind == "docstrings":
            workers, size = min(MAX_PARSERS, os.cpu_count() or 1), DOCSTRING_CHARS
            documents = functools.cache(functools.partial(read_documents, modules, workers))
        identity = {"source": kind, "modules": digest, "val_fraction": fraction}
        return TextSource(identity, lambda: _split(documents(), fraction), size)
    if kind == "hub":
        return _open_hub(settings)

    found = find_parts(settings, KEYS)
    if found["val_files"]:
        fraction = None
    column = settings["text_column"]

    def pieces() -> Iterator[Piece]:
        for key, held_out in (("files", False), ("val_files", True)):
            for file in found[key]:
                where = f"datamodule.{key}: {file}"
                if kind == "text":
                    yield from _read_text(file, where, fraction, held_out)
                else:
                    rows = read_rows(kind, file, where, f'{{"{column}": "..."}}')
                    texts = (_text_of(record, column, place) for place, record in rows)
                    yield from _split(texts, fraction, held_out)

    digests = {key: [digest_file(file) for file in found[key]] for key in ("files", "val_files")}
    identity = {
        "source": kind,
        **digests,
        "text_column": None if kind == "text" else column,
        "val_fraction": fraction,
    }
    sizes = (unpacked_size(f, f"datamodule.{key}: {f}") for key in KEYS for f in found[key])
    return TextSource(identity, pieces, size=sum(sizes))


def _split(
    documents: Iterable[str], val_fraction: float | None, held_out: bool = False
) -> Iterator[Piece]:
    for text in documents:
        if val_fraction is not None:
            held_out = falls_below(text, val_fraction)
        if text:
            yield Piece(text, ends_document=True, held_out=held_out)


def falls_below(text: str, fraction: float) -> bool:
    """Whether a text's hash falls below a fraction of all hashes: equal texts, equal answers."""
    fingerprint = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(fingerprint) < fraction * 2**64


# --- text files ----------------------------------------------------------------------------------


def _read_text(
    file: Path, where: str, val_fraction: float | None, held_out: bool
) -> Iterator[Piece]:
    """Read a file in parts, the last `val_fraction` of its lines as held-out text."""
    size = unpacked_size(file, where)
    with open_bytes(file, where) as stream:
        head = stream.read(4)
        begin = len(BYTE_ORDER_MARK) if head.startswith(BYTE_ORDER_MARK) else 0
        if begin >= size:
            raise ValueError(f"{where} has no text; remove it or leave it out")
        border = size
        if val_fraction is not None:
            border = max(begin, _find_border(stream, size, val_fraction))
        for start, end, side in ((begin, border, held_out), (border, size, True)):
            offset, rest = start, b""
            stream.seek(start)
            while offset < end:
                block = rest + stream.read(min(PIECE_BYTES, end - offset - len(rest)))
                is_last = offset + len(block) >= end
                cut = len(block) if is_last else block.rfind(b"\n") + 1 or _character_start(block)
                try:
                    text = block[:cut].decode()
                except UnicodeDecodeError as error:
                    raise no_utf8(where, head, error, offset + error.start) from error
                yield Piece(text, ends_document=is_last, held_out=side)
                offset, rest = offset + cut, block[cut:]


def _find_border(stream: BinaryIO, size: int, val_fraction: float) -> int:
    border = max(1, int(size * (1 - val_fraction)))
    stream.seek(border - 1)
    ahead = stream.read(PIECE_BYTES)
    line_start = border + ahead.find(b"\n")
    if border <= line_start < size:
        return line_start
    while ahead[1:] and ahead[1] & 0xC0 == 0x80:  # in the middle of a character
        border, ahead = border + 1, ahead[1:]
    return border


def _character_start(block: bytes) -> int:
    """Return where the last character of `block` starts: it may be cut off there."""
    start = len(block) - 1
    while start > 1 and block[start] & 0xC0 == 0x80:
        start -= 1
    return start


def _text_of(record: object, column: str, where: str) -> str:
    if isinstance(record, ValueError):
        raise record
    text = record.get(column) if isinstance(record, Mapping) else None
    if isinstance(record, Mapping) and column in record and not isinstance(text, str):
        raise ValueError(f"{where}: {column!r} is no text but {text!r:.40}; leave the row out")
    if not isinstance(text, str):
        has = ", ".join(map(str, record)) if isinstance(record, Mapping) else repr(record)[:40]
        raise ValueError(
            f"{where} has no {column!r} (it has: {has}); set datamodule.text_column, for "
            "datamodule.datasets the text_column of the data set"
        )
    refuse_surrogates(text, f"{where}: {column!r}")
    return text


# --- the Hugging Face hub ----------------------------------------------------------------------


def _open_hub(settings: Mapping[str, Any]) -> TextSource:
    nodes = datasets_of(settings)

    def documents() -> Iterator[str]:
        from datasets import interleave_datasets  # type: ignore[import-untyped]

        parts = [_texts(name, node, settings["streaming"]) for name, node in nodes.items()]
        weights = [node.get("weight") or 1 for node in nodes.values()]
        # Seed 0 always: the runs of several seeds read one token cache. Ends with the first part.
        shares = [weight / sum(weights) for weight in weights]
        mixture = interleave_datasets(parts, shares, seed=0) if len(parts) > 1 else parts[0]
        return (row["text"] for row in mixture)

    identity = {
        "source": "hub",
        "datasets": {name: identity_of(node) for name, node in nodes.items()},
        "val_fraction": settings["val_fraction"],
    }
    return TextSource(
        identity,
        lambda: _split(documents(), settings["val_fraction"]),
        size=None,
        streamed=settings["streaming"],
    )


def _texts(name: str, node: Mapping[str, Any], streaming: bool) -> Any:
    column, where = node.get("text_column") or "text", f"datamodule.datasets.{name}: a row"
    rows = load_rows(name, node, streaming)
    return rows.map(lambda row: {"text": _text_of(row, column, where)}).select_columns(["text"])


# --- settings ------------------------------------------------------------------------------------


def check(settings: Mapping[str, Any], dimensions: Mapping[str, int] | None = None) -> None:
    """Refuse settings that cannot work together, before anything heavy is imported or computed.

    Absent settings keep their defaults; `dimensions`, of a model, are not used.

    Raises:
        ValueError: Names the full config key, what is wrong with it and what is allowed.
    """
    check_sources({"source": "docstrings", **settings}, FILE_SOURCES, KEYS)


def check_sources(
    settings: Mapping[str, Any], file_sources: tuple[str, ...], keys: tuple[str, ...]
) -> None:
    """Refuse what cannot work of the settings that texts and conversations share.

    Keys are of files, held-out ones first, which some sources read.

    Raises:
        ValueError: Names the full config key, what is wrong with it and what is allowed.
    """
    with old_domain_errors():
        if (chosen := old_domain_of(settings)) is not None:
            check(chosen)
    source = settings["source"]
    for key in keys:
        if settings.get(key) and source not in file_sources:
            raise ValueError(
                f"datamodule.{key} is not read by source={source}; set datamodule.source to one of "
                f"{', '.join(file_sources)}"
            )
    found = find_parts(settings, keys)
    if source in file_sources and not found["files"]:
        raise ValueError(
            f"datamodule.files: source={source} needs training files that are not held out; give "
            "a path or a pattern such as datamodule.files=data/*.txt"
        )
    fraction = settings.get("val_fraction", 0.5)
    if not found["val_files"] and not 0 < fraction < 1:
        raise ValueError(
            f"datamodule.val_fraction={fraction}: give a fraction between 0 and 1, both excluded, "
            "or for files datamodule.val_files"
        )
    datasets_of(settings)
    pretrained = (settings.get("tokenizer") or {}).get("pretrained")
    vocab_size = settings.get("vocab_size", BYTE_VOCABULARY)
    if pretrained is None and vocab_size < BYTE_VOCABULARY:
        raise ValueError(
            f"datamodule.vocab_size={vocab_size}: a byte-level tokenizer needs at least "
            f"{BYTE_VOCABULARY} (256 bytes and the end-of-text token)"
        )


def old_domain_of(settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what is set of the text that is validated beside; None for no such text."""
    given = settings.get("old_domain")
    return given and {key: value for key, value in given.items() if value is not None}


@contextmanager
def old_domain_errors() -> Iterator[None]:
    """Name the keys of `datamodule.old_domain` in errors, which its own reader does not know."""
    try:
        yield
    except ValueError as error:
        words = str(error).removeprefix("datamodule.")
        own = re.match(r"\w+", words)
        joint = "." if own is not None and own[0] in OldDomain.__annotations__ else ": "
        raise ValueError(
            f"datamodule.old_domain{joint}{words if joint == '.' else error}"
        ) from error
