"""Files that users name: found, told apart by content, and read as bytes, JSON lines or parquet.

Readers take `where`, what messages call the file: the config key that names it, and its path.
"""

import bz2
import glob
import gzip
import hashlib
import json
import lzma
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

PARQUET_ROWS = 1000  # held at once
OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
DAMAGES = (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error)
FORMATS = {  # what a file that is no text may begin with; UTF-32 before UTF-16, as it begins so too
    b"\xff\xfe\0\0": "UTF-32; convert it: iconv -f UTF-32 -t UTF-8",
    b"\0\0\xfe\xff": "UTF-32; convert it: iconv -f UTF-32 -t UTF-8",
    b"\xff\xfe": "UTF-16; convert it: iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "UTF-16; convert it: iconv -f UTF-16 -t UTF-8",
    b"\x1f\x8b": "compressed by gzip; let its name end with .gz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it: unzstd",
    b"PK\x03\x04": "a zip archive; unpack it",
    b"PAR1": "parquet; choose datamodule.source=parquet",
}

# --- which files ---------------------------------------------------------------------------------


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

    The keys before the last one are of held-out files: whatever path leads to one of these, it is
    not trained on.

    Raises:
        ValueError: As `find_files`.
    """
    found = {key: find_files(settings.get(key), key) for key in keys}
    held_out = {os.path.realpath(file) for key in keys[:-1] for file in found[key]}
    found[keys[-1]] = [f for f in found[keys[-1]] if os.path.realpath(f) not in held_out]
    return found


def files_under(folder: str | Path) -> list[Path]:
    """Return all files in a folder and below, sorted; none if there is no such folder."""
    return sorted(file for file in Path(folder).expanduser().rglob("*") if file.is_file())


def digest_file(file: Path) -> str:
    """Return a digest of the content (about 1 s a gigabyte), whatever the file's name and times.

    Copying a file or checking it out again changes its times and not its content; an edit that is
    followed by restoring the times does the reverse.
    """
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


# --- what stands in them -------------------------------------------------------------------------


@contextmanager
def open_bytes(file: Path, where: str) -> Iterator[BinaryIO]:
    """Open a file as its bytes, unpacked if its name ends with .gz, .bz2 or .xz.

    Raises:
        ValueError: It is damaged or cannot be read.
    """
    try:
        with OPENERS.get(file.suffix, open)(file, "rb") as stream:
            yield cast(BinaryIO, stream)
    except DAMAGES as error:
        raise ValueError(f"{where} is damaged or cut off: {error}") from error
    except OSError as error:
        raise ValueError(f"{where} cannot be read: {error}") from error


def unpacked_size(file: Path, where: str) -> int:
    """Return how many bytes a file has, unpacked."""
    if file.suffix not in OPENERS:
        return file.stat().st_size
    with open_bytes(file, where) as stream:
        return stream.seek(0, os.SEEK_END)


def read_text(file: Path, where: str) -> str:
    """Return a file's text.

    Raises:
        ValueError: It is not UTF-8; names `where`.
    """
    content = file.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise no_utf8(where, content[:4], error, error.start) from error


def no_utf8(where: str, head: bytes, error: UnicodeDecodeError, byte: int) -> ValueError:
    """Say of bytes that are no UTF-8 what they are, as far as a file's first bytes tell."""
    known = next((words for start, words in FORMATS.items() if head.startswith(start)), None)
    if known is not None:
        return ValueError(f"{where} is {known}")
    return ValueError(
        f"{where} is not UTF-8 at byte {byte} ({error.object[error.start]:#04x}: {error.reason}); "
        "convert it, for example with iconv -f WINDOWS-1252 -t UTF-8"
    )


def jsonl_rows(file: Path, where: str, example: str) -> Iterator[tuple[str, Any]]:
    """Read a file of JSON lines: yields where each object stands, for messages, and the object.

    The file may be compressed; empty lines are passed over. In place of an object that is not JSON,
    or has a key twice, stands a `ValueError` that says so, with file and line: the caller decides.
    It shows an example of a line.

    Raises:
        ValueError: The file is not UTF-8 or cannot be read.
    """
    offset, head = 0, b""
    with open_bytes(file, where) as stream:
        for number, line in enumerate(stream, start=1):
            place = f"{where}:{number}"
            head = head or line[:4]
            record: Any
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                record = json.loads(text, object_pairs_hook=_object) if text.strip() else None
            except UnicodeDecodeError as error:
                raise no_utf8(place, head, error, offset + error.start) from error
            except json.JSONDecodeError as error:
                record = ValueError(
                    f"{place} is not JSON: {error.msg} at column {error.colno}; each line must be "
                    f"one object such as {example}"
                )
            except (ValueError, RecursionError) as error:  # ValueError: also of too long numbers
                record = ValueError(f"{place} cannot be read: {error}")
            offset += len(line)
            if line.strip():
                yield place, record


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands there twice")
    return found


def parquet_rows(file: Path, where: str) -> Iterator[tuple[str, Any]]:
    """Read a parquet file: yields where each row stands, for messages, and the row.

    Raises:
        ValueError: It cannot be read as parquet.
    """
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    number = 0
    try:
        with pq.ParquetFile(file) as content:
            for batch in content.iter_batches(PARQUET_ROWS):
                for row in batch.to_pylist():
                    yield f"{where}, row {number}", row
                    number += 1
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{where} cannot be read as parquet: {error}") from error


def read_rows(kind: str, file: Path, where: str, example: str) -> Iterator[tuple[str, Any]]:
    """Read a file of `kind`, jsonl or parquet: see `jsonl_rows` and `parquet_rows`."""
    return parquet_rows(file, where) if kind == "parquet" else jsonl_rows(file, where, example)


def refuse_surrogates(text: str, where: str) -> None:
    """Refuse text with half of a surrogate pair, which JSON can say and no encoding can."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} holds half a surrogate pair: {error}") from error
