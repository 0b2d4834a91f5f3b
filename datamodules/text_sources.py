"""Where text comes from: each source is a stream of pieces that reads the same each time.

A piece is a document, or a part of one where a text file is too large to hold. Nothing here imports
torch or Lightning, and nothing but `docstrings` (16 million characters) is ever held whole.
"""

import bz2
import difflib
import functools
import glob
import gzip
import hashlib
import json
import lzma
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TypedDict, cast

from annotated_types import Ge, Interval

from datamodules.generated.docstrings import list_modules, package_folders, read_code, read_documents

FILE_SOURCES = ("text", "jsonl", "parquet")
SOURCES = ("docstrings", "code", *FILE_SOURCES, "hub")
PIECE_BYTES = 1 << 16  # text files are read in parts of this size, cut at a line's end
MAX_PARSERS = 8  # parsing the environment takes 15 core-seconds: more processes gain nothing
DOCSTRING_CHARS = 16_000_000  # about; how many there are is known after parsing only
PARQUET_ROWS = 1000  # held at once
HUB_TIMEOUT = 10.0  # seconds; without an early probe datasets and transformers retry for 25 to 50
BYTE_VOCABULARY = 257  # 256 bytes and the end-of-text token

DATASET_KEYS = ("path", "name", "data_dir", "split", "revision", "text_column", "weight")
OLD_DOMAIN_KEYS = (
    *("source", "files", "val_files", "text_column", "datasets", "streaming"),
    *("val_fraction", "val_batches", "max_tokens"),
)
TOKENIZER_KEYS = ("pretrained", "sample_chars")


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of text on the training or the validation side.

    Args:
        text: At least one character.
        ends_document: Whether an end-of-text token belongs after it.
        held_out: Whether it belongs to the validation part.
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
    if kind == "docstrings":
        modules, digest = list_modules(package_folders())
        workers = min(MAX_PARSERS, os.cpu_count() or 1)
        documents = functools.cache(lambda: read_documents(modules, workers))
        return TextSource(
            {"source": kind, "modules": digest, "val_fraction": fraction},
            lambda: _split(documents(), fraction),
            size=DOCSTRING_CHARS,
        )
    if kind == "code":
        modules, digest = list_modules(package_folders()[:1])  # the standard library's
        return TextSource(
            {"source": kind, "modules": digest, "val_fraction": fraction},
            lambda: _split(map(read_code, modules), fraction),
            size=sum(module.stat().st_size for module in modules),
        )
    if kind == "hub":
        return _open_hub(settings)

    found = find_parts(settings, ("val_files", "files"))
    files, val_files = found["files"], found["val_files"]
    if val_files:
        fraction = None
    column = settings["text_column"]
    read: Callable[[Path, bool], Iterator[Piece]] = {
        "text": lambda file, held_out: _read_text(file, fraction, held_out),
        "jsonl": lambda file, held_out: _split(_read_jsonl(file, column), fraction, held_out),
        "parquet": lambda file, held_out: _split(_read_parquet(file, column), fraction, held_out),
    }[kind]

    def pieces() -> Iterator[Piece]:
        for file in files:
            yield from read(file, False)
        for file in val_files:
            yield from read(file, True)

    identity = {
        "source": kind,
        "files": [digest_file(file) for file in files],
        "val_files": [digest_file(file) for file in val_files],
        "text_column": None if kind == "text" else column,
        "val_fraction": fraction,
    }
    return TextSource(identity, pieces, size=sum(map(_size, files + val_files)))


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


# --- files -------------------------------------------------------------------------------------


def find_files(patterns: str | list[str] | None, key: str) -> list[Path]:
    """Return the files that are named, or match a glob pattern, each once, sorted by path.

    A name that a file or a folder bears is its own, whatever characters are in it
    (`notes [v2].txt`, `run[1]/*.txt`).

    Raises:
        ValueError: A pattern matches no file, or a file is empty or may not be read; names
            `datamodule.KEY`.
    """
    found: dict[str, Path] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns or []:
        path = Path(pattern).expanduser()
        there = next(p for p in (path, *path.parents) if p.exists())
        sought = Path(glob.escape(str(there))) / path.relative_to(there)
        names = glob.glob(str(sought), recursive=True)
        files = [Path(name) for name in names if os.path.isfile(name)]
        if not files:
            what = "matches only folders" if names else "matches no file"
            raise ValueError(
                f"datamodule.{key}: {pattern!r} {what} (looked in {Path.cwd()}); give a file or a "
                "pattern such as data/*.txt"
            )
        found.update((os.path.realpath(file), file) for file in files)
    for file in found.values():
        if not os.access(file, os.R_OK):
            raise ValueError(f"datamodule.{key}: {file} may not be read; change its permissions")
        if file.stat().st_size == 0:
            raise ValueError(f"datamodule.{key}: {file} is empty; remove it or leave it out")
    return sorted(found.values())


def find_parts(settings: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, list[Path]]:
    """Return the files that each of the keys names; those of the last key without all others.

    Whatever path leads to a file, it is not trained on if it is held out.

    Args:
        settings: The datamodule's arguments.
        keys: Of held-out files, then that of the training files.

    Raises:
        ValueError: As `find_files`.
    """
    found = {key: find_files(settings.get(key), key) for key in keys}
    held_out = {os.path.realpath(file) for key in keys[:-1] for file in found[key]}
    found[keys[-1]] = [f for f in found[keys[-1]] if os.path.realpath(f) not in held_out]
    return found


def digest_file(file: Path) -> str:
    """Return a digest of the content (about 1 s a gigabyte), whatever the file's name and times.

    Copying a file or checking it out again changes its times and not its content; an edit that is
    followed by restoring the times does the reverse.
    """
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # of UTF-8: some editors write it, it is no part of the text
OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
DAMAGES = (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error)
FORMATS = {  # what a file that is no text may begin with
    b"\xff\xfe": "UTF-16; convert it: iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "UTF-16; convert it: iconv -f UTF-16 -t UTF-8",
    b"\x1f\x8b": "compressed by gzip; let its name end with .gz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it: unzstd",
    b"PK\x03\x04": "a zip archive; unpack it",
    b"PAR1": "parquet; choose datamodule.source=parquet",
}


@contextmanager
def _open(file: Path) -> Iterator[BinaryIO]:
    """Open a file of text as its bytes, unpacked if its name ends with .gz, .bz2 or .xz."""
    try:
        with OPENERS.get(file.suffix, open)(file, "rb") as stream:
            yield cast(BinaryIO, stream)
    except DAMAGES as error:
        raise ValueError(f"datamodule.files: {file} is damaged or cut off: {error}") from error
    except OSError as error:
        raise ValueError(f"datamodule.files: {file} cannot be read: {error}") from error


def _size(file: Path) -> int:
    """Return how many bytes of text a file has, unpacked."""
    if file.suffix not in OPENERS:
        return file.stat().st_size
    with _open(file) as stream:
        return stream.seek(0, os.SEEK_END)


def _no_utf8(where: str, head: bytes, error: UnicodeDecodeError, byte: int) -> ValueError:
    """Say of bytes that are no UTF-8 what they are, as far as a file's first bytes tell."""
    known = next((words for start, words in FORMATS.items() if head.startswith(start)), None)
    if known is not None:
        return ValueError(f"{where} is {known}")
    return ValueError(
        f"{where} is not UTF-8 at byte {byte} ({error.object[error.start]:#04x}: {error.reason}); "
        "convert it, for example with iconv -f WINDOWS-1252 -t UTF-8"
    )


def _read_text(file: Path, val_fraction: float | None, held_out: bool) -> Iterator[Piece]:
    size = _size(file)
    with _open(file) as stream:
        head = stream.read(4)
        begin = len(BYTE_ORDER_MARK) if head.startswith(BYTE_ORDER_MARK) else 0
        if begin >= size:
            raise ValueError(f"datamodule.files: {file} has no text; remove it or leave it out")
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
                    where = f"datamodule.files: {file}"
                    raise _no_utf8(where, head, error, offset + error.start) from error
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


def jsonl_rows(file: Path, example: str) -> Iterator[tuple[str, Any]]:
    """Read a file of JSON lines: yields where each object stands, for messages, and the object.

    Args:
        file: The file, which may be compressed; empty lines are passed over.
        example: What a line should look like, for messages.

    Yields:
        Place and object. In place of an object that is not JSON, or has a key twice, stands a
        `ValueError` that says so, with file and line: the caller decides.

    Raises:
        ValueError: The file is not UTF-8 or cannot be read.
    """
    offset, head = 0, b""
    with _open(file) as stream:
        for number, line in enumerate(stream, start=1):
            where = f"datamodule.files: {file}:{number}"
            head = head or line[:4]
            record: Any
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                record = json.loads(text, object_pairs_hook=_object) if text.strip() else None
            except UnicodeDecodeError as error:
                raise _no_utf8(where, head, error, offset + error.start) from error
            except json.JSONDecodeError as error:
                record = ValueError(
                    f"{where} is not JSON: {error.msg} at column {error.colno}; each line must be "
                    f"one object such as {example}"
                )
            except (ValueError, RecursionError) as error:  # ValueError: also of too long numbers
                record = ValueError(f"{where} cannot be read: {error}")
            offset += len(line)
            if line.strip():
                yield where, record


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands there twice")
    return found


def parquet_rows(file: Path, where: str | None = None) -> Iterator[tuple[str, Any]]:
    """Read a parquet file: yields where each row stands, for messages, and the row.

    Args:
        file: The file.
        where: What messages call it; None: one of `datamodule.files`.

    Raises:
        ValueError: It cannot be read as parquet.
    """
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    where = where or f"datamodule.files: {file}"
    number = 0
    try:
        with pq.ParquetFile(file) as content:
            for batch in content.iter_batches(PARQUET_ROWS):
                for row in batch.to_pylist():
                    yield f"{where}, row {number}", row
                    number += 1
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{where} cannot be read as parquet: {error}") from error


def _read_jsonl(file: Path, column: str) -> Iterator[str]:
    for where, record in jsonl_rows(file, f'{{"{column}": "..."}}'):
        yield _text_of(record, column, where)


def _read_parquet(file: Path, column: str) -> Iterator[str]:
    for where, record in parquet_rows(file):
        yield _text_of(record, column, where)


def _text_of(record: object, column: str, where: str) -> str:
    if isinstance(record, ValueError):
        raise record
    text = record.get(column) if isinstance(record, Mapping) else None
    if not isinstance(text, str):
        has = ", ".join(map(str, record)) if isinstance(record, Mapping) else repr(record)[:40]
        raise ValueError(
            f"{where} has no text in {column!r} (it has: {has}); set datamodule.text_column, for "
            "datamodule.datasets the text_column of the data set"
        )
    refuse_surrogates(text, f"{where}: {column!r}")
    return text


def refuse_surrogates(text: str, where: str) -> None:
    """Refuse text with half of a surrogate pair, which JSON can say and no encoding can."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} holds half a surrogate pair: {error}") from error


# --- the Hugging Face hub ----------------------------------------------------------------------


def _open_hub(settings: Mapping[str, Any]) -> TextSource:
    nodes = {name: node for name, node in settings["datasets"].items() if node is not None}

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


def identity_of(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the rows of one of `datamodule.datasets` depend on.

    The hub's own content is known by revision only; a folder on this machine is read.
    """
    return {**node, "files": [digest_file(file) for file in files_under(node["path"])]}


def files_under(folder: str) -> list[Path]:
    """Return all files in a folder and below, sorted; none if there is no such folder."""
    return sorted(file for file in Path(folder).expanduser().rglob("*") if file.is_file())


def load_rows(name: str, node: Mapping[str, Any], streaming: bool) -> Any:
    """Open one of `datamodule.datasets` as an iterable data set of the `datasets` library.

    Raises:
        ValueError: It cannot be reached or loaded; names its key.
    """
    from datasets import load_dataset

    key, path = f"datamodule.datasets.{name}", node["path"]
    try:
        if not Path(path).exists():
            probe_hub("dataset", path, node.get("revision"))
        rows = load_dataset(
            path,
            node.get("name"),
            data_dir=node.get("data_dir"),
            split=node.get("split") or "train",
            revision=node.get("revision"),
            streaming=streaming,
        )
    except Exception as error:
        raise ValueError(
            f"{key}: cannot load {path!r}: {error}. Without a network choose another source, "
            "such as datamodule=docstrings or datamodule=text; for a gated data set, log in with "
            "`hf auth login`"
        ) from error
    return rows if streaming else rows.to_iterable_dataset()


def _texts(name: str, node: Mapping[str, Any], streaming: bool) -> Any:
    column, where = node.get("text_column") or "text", f"datamodule.datasets.{name}: a row"
    rows = load_rows(name, node, streaming)
    return rows.map(lambda row: {"text": _text_of(row, column, where)}).select_columns(["text"])


def probe_hub(kind: str, name: str, revision: str | None = None) -> None:
    """Ask the hub once, for a few seconds, whether it has a repository.

    Does nothing under HF_HUB_OFFLINE=1, where only what was downloaded before can be found.

    Args:
        kind: "dataset" or "model".
        name: The repository, such as "openai-community/gpt2".
        revision: A branch, tag or commit; None for the newest.

    Raises:
        Exception: As the hub's client raises it, when there is no network or no such repository.
    """
    from huggingface_hub import HfApi, constants

    if not constants.HF_HUB_OFFLINE:
        HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=HUB_TIMEOUT)


# --- settings ----------------------------------------------------------------------------------

# What is larger is a slip, for which there would be no memory or no end.
Vocabulary = Annotated[int, Interval(ge=1, le=10_000_000)]
ContextLength = Annotated[int, Interval(ge=2, le=10_000_000)]
Workers = Annotated[int, Interval(ge=0, le=1024)]


class TokenizerSettings(TypedDict, total=False):
    """What turns text into token ids: a folder or hub name, or how much text to train one on."""

    pretrained: str | None
    sample_chars: Annotated[int, Ge(1)]


# The least value of each whole number; those in LEAST_OR_NULL may also be null.
LEAST = {"context_length": 2, "batch_size": 1, "seed": 0, "num_workers": 0, "vocab_size": 1}
LEAST_OR_NULL = {"max_tokens": 1, "val_batches": 1}


def check(settings: Mapping[str, Any], dimensions: Mapping[str, int] | None = None) -> None:
    """Refuse settings that cannot work, in milliseconds, before anything is imported or computed.

    Args:
        settings: The datamodule's config node or arguments; absent ones keep their defaults.
        dimensions: Not used: the sizes of a model, which other checks take.

    Raises:
        ValueError: Names the full config key, what is wrong with it and what is allowed.
    """
    check_old_domain(settings)
    check_numbers(settings)
    source = settings.get("source", "docstrings")
    if source not in SOURCES:
        raise ValueError(f"datamodule.source={source}: {choices(source, SOURCES)}")
    for key in ("files", "val_files"):
        if settings.get(key) and source not in FILE_SOURCES:
            raise ValueError(
                f"datamodule.{key} is not read by source={source}; choose datamodule=text, jsonl "
                "or parquet"
            )
    found = find_parts(settings, ("val_files", "files"))
    if source in FILE_SOURCES and not found["files"]:
        raise ValueError(
            f"datamodule.files: source={source} needs training files that are not validation "
            "files; give a path or a pattern such as datamodule.files=data/*.txt"
        )
    check_fraction(settings, bool(found["val_files"]))
    check_datasets(source, settings.get("datasets"))
    check_tokenizer(settings)


def check_old_domain(settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Refuse settings of the text that is validated beside; return those that were given."""
    if settings.get("old_domain") is None:
        return None
    _check_keys("datamodule.old_domain", settings["old_domain"], OLD_DOMAIN_KEYS)
    chosen = {key: value for key, value in settings["old_domain"].items() if value is not None}
    try:
        check(chosen)
    except ValueError as error:
        raise ValueError(str(error).replace("datamodule.", "datamodule.old_domain.", 1)) from error
    return chosen


def check_numbers(settings: Mapping[str, Any], further: Mapping[str, int] | None = None) -> None:
    """Refuse whole numbers that are too small; `further` names more of them with their least."""
    for key, least in {**LEAST, **LEAST_OR_NULL, **(further or {})}.items():
        value = settings.get(key, least)
        if value is None and key in LEAST_OR_NULL:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"datamodule.{key}={value}: give a whole number of at least {least}")


def check_fraction(settings: Mapping[str, Any], has_val_files: bool) -> None:
    """Refuse a share to hold out that leaves nothing on one side."""
    fraction = settings.get("val_fraction", 0.5)
    if not has_val_files and not (isinstance(fraction, int | float) and 0 < fraction < 1):
        raise ValueError(
            f"datamodule.val_fraction={fraction}: give a fraction between 0 and 1, both excluded, "
            "or for files datamodule.val_files"
        )


def check_tokenizer(settings: Mapping[str, Any]) -> None:
    """Refuse a tokenizer's settings, and a vocabulary that is too small to train one."""
    tokenizer = settings.get("tokenizer") or {}
    _check_keys("datamodule.tokenizer", tokenizer, TOKENIZER_KEYS)
    pretrained, sample_chars = tokenizer.get("pretrained"), tokenizer.get("sample_chars", 1)
    if not isinstance(sample_chars, int) or sample_chars < 1:
        raise ValueError(
            f"datamodule.tokenizer.sample_chars={sample_chars}: give a whole number of characters"
        )
    vocab_size = settings.get("vocab_size", BYTE_VOCABULARY)
    if pretrained is None and vocab_size < BYTE_VOCABULARY:
        raise ValueError(
            f"datamodule.vocab_size={vocab_size}: a byte-level tokenizer needs at least "
            f"{BYTE_VOCABULARY} (256 bytes and the end-of-text token)"
        )


def check_datasets(
    source: str, datasets: Mapping[str, Any] | None, further: tuple[str, ...] = ()
) -> None:
    """Refuse `datamodule.datasets` that cannot be read; `further` keys are allowed in each."""
    if source != "hub":
        if datasets:
            raise ValueError(f"datamodule.datasets is read by source=hub only, not by {source}")
        return
    nodes = {name: node for name, node in (datasets or {}).items() if node is not None}
    if not nodes:
        raise ValueError(
            "datamodule.datasets: source=hub needs at least one data set, such as "
            "{mine: {path: OWNER/NAME, split: train, text_column: text}}"
        )
    for name, node in nodes.items():
        key = f"datamodule.datasets.{name}"
        _check_keys(key, node, DATASET_KEYS + further)
        if not isinstance(node.get("path"), str):
            raise ValueError(f"{key}.path: give the data set's name on the hub, such as OWNER/NAME")
        weight = node.get("weight", 1)
        if not isinstance(weight, int | float) or weight <= 0:
            raise ValueError(f"{key}.weight={weight}: give a share above 0")


def _check_keys(key: str, node: object, allowed: tuple[str, ...]) -> None:
    if not isinstance(node, Mapping):
        raise ValueError(f"{key}={node}: give a group of keys, of {', '.join(allowed)}")
    for name in node:
        if name not in allowed:
            raise ValueError(f"{key}.{name}: no such key; {choices(str(name), allowed)}")


def choices(wrong: object, allowed: tuple[str, ...]) -> str:
    """Say what is allowed, with the nearest to what was given."""
    close = difflib.get_close_matches(str(wrong), allowed, n=1)
    meant = f"did you mean {close[0]!r}? " if close else ""
    return f"{meant}choose one of {', '.join(allowed)}"
