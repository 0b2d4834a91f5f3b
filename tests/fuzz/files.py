"""Files that are damaged or foreign, byte by byte or value by value."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tests.forked import REFUSED, Ended, forked

SECONDS = 20.0
SCALARS: tuple[Any, ...] = (None, True, False, 0, -1, 1.5, 10**400, "", "x", "\ud800", [], {}, [[]])
SCALARS += ([None], {"": None}, float("nan"), 2**63)


@dataclass(frozen=True)
class Loader:
    """A file and its reader.

    Args:
        file: Its name.
        write: Writes it, and what belongs to it, into a folder.
        read: Reads what it can of the folder; a ValueError is a refusal.
    """

    file: str
    write: Callable[[Path], object]
    read: Callable[[Path], object]


@dataclass(frozen=True)
class Edit:
    """One change of a content.

    Args:
        kind: What is done.
        place: Where, as a share of the content.
        length: How many bytes.
        other: What comes there.
    """

    kind: str
    place: float
    length: int
    other: bytes

    def apply(self, content: bytes) -> bytes:
        """Return the content with the change."""
        at = int(self.place * len(content))
        rest = content[at + self.length :]
        match self.kind:
            case "cut":
                return content[:at]
            case "delete":
                return content[:at] + rest
            case "zero":
                return content[:at] + bytes(min(self.length, len(content) - at)) + rest
            case "set":
                return content[:at] + self.other + content[at + len(self.other) :]
            case "insert":
                return content[:at] + self.other + content[at:]
            case "repeat":
                return content[: at + self.length] + content[at:]
            case _:
                return self._value(content, at)

    def _value(self, content: bytes, at: int) -> bytes:
        """Put another value into JSON, or into one of its lines."""
        texts, joint = [content.decode(errors="replace")], ""
        try:
            lines = [json.loads(text) for text in texts]
        except ValueError:
            texts, joint = texts[0].splitlines(), "\n"
            try:
                lines = [json.loads(text) for text in texts]
            except ValueError:
                return content
        number = min(int(self.place * len(lines)), len(lines) - 1)
        if not lines:
            return content
        draw = random.Random(at * 131 + self.length)
        node: Any = {"": lines[number]}
        places: list[tuple[Any, Any]] = []
        _walk(node, places)
        parent, key = draw.choice(places)
        parent[key] = draw.choice(SCALARS)
        lines[number] = node[""]
        return joint.join(json.dumps(line) for line in lines).encode()


def _walk(node: Any, places: list[tuple[Any, Any]]) -> None:
    keys = list(node) if isinstance(node, dict) else range(len(node))
    for key in keys:
        places.append((node, key))
        if isinstance(node[key], dict | list):
            _walk(node[key], places)


def damages() -> SearchStrategy[list[Edit]]:
    """One to three changes, or another content altogether."""
    kinds = ("cut", "delete", "zero", "set", "insert", "repeat", "value", "value", "value")
    others = st.sampled_from(
        (
            *(
                b"\xff",
                b"\x00",
                b"\n",
                b"[" * 100_000,
                b'{"a":' * 5000,
                b"\xef\xbb\xbf",
                b"\xff\xfe",
            ),
            *(
                b'"',
                b",",
                b"-",
                b"9" * 5000,
                b"\x80\x02]q\x00.",
                b"PK\x03\x04",
                b"1e999",
                b"\xed\xa0",
            ),
        )
    )
    edit = st.builds(
        Edit,
        st.sampled_from(kinds),
        st.floats(0, 1),
        st.sampled_from((1, 2, 4, 8, 64, 1000)),
        others | st.binary(min_size=1, max_size=4),
    )
    return st.lists(edit, min_size=1, max_size=3)


def damaged(content: bytes, edits: list[Edit]) -> bytes:
    """Return a content with changes, those of values first: they need it whole."""
    for edit in sorted(edits, key=lambda edit: edit.kind != "value"):
        content = edit.apply(content)
    return content


def read(loader: Loader, folder: Path, edits: list[Edit]) -> Ended:
    """Damage a loader's file and read it in a child: 0 read, 2 refused; else there is a fault.

    A refusal must name the file.
    """
    whole = (folder / loader.file).read_bytes()
    (folder / loader.file).write_bytes(damaged(whole, edits))

    def work() -> int:
        import warnings

        warnings.simplefilter("ignore")
        try:
            loader.read(folder)
        except ValueError as error:
            if Path(loader.file).name not in str(error) and str(folder) not in str(error):
                raise AssertionError(f"names no file: {error!r}") from error
            print(error)
            return REFUSED
        return 0

    try:
        return forked(work, SECONDS)
    finally:
        (folder / loader.file).write_bytes(whole)


def foreign(whole: bytes) -> dict[str, bytes]:
    """Return contents that stand in a file's place by mistake, or after an accident.

    Args:
        whole: What should stand there.
    """
    return {
        "nothing": b"",
        "blanks": b" \n\t\n",
        "half": whole[: len(whole) // 2],
        "all but the end": whole[:-1],
        "zeros": bytes(len(whole)),
        "zeros at its end": whole[: len(whole) // 2] + bytes(len(whole) // 2),
        "no UTF-8": b"\xff\xfe\x00" * 9,
        "twice": whole + whole,
        "deep lists": b"[" * 100_000,
        "deep objects": b'{"a":' * 100_000,
        "a long number": b"9" * 10_000,
        "null": b"null",
        "a number": b"7",
        "a text": b'"x"',
        "a list": b"[1, null, [], {}]",
        "an object": b'{"a": 1, "": [null]}',
        "empty objects": b"{}\n{}\n",
        "objects in a list": b'[{"": null}, {}]',
        "yaml": b"a: [1\nb: {\n",
        "a zip file": b"PK\x05\x06" + bytes(18),
        "a picture": b"\x89PNG\r\n\x1a\n" + bytes(20),
        "numpy": b"\x93NUMPY\x01\x00v\x00" + b"{" * 200,
        "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(200),
        "sqlite": b"SQLite format 3\x00" + bytes(200),
    }
