"""Links between a question and a database: names, cell values, and the schema's own structure.

The relations are those of RAT-SQL (arXiv 1911.04942); values found in the database serve as in
BRIDGE (arXiv 2012.12627). Which values a query may contain is decided here: those of `values`.
"""

from __future__ import annotations

import math
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import compress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from text2sql.execute import Database, Limits
from text2sql.guard import identifier
from text2sql.schema import Schema
from text2sql.sql import STAR, number
from text2sql.words import stem, unaccented

_WORD = re.compile(r"(?<!\w)-\d+(?:[.,]\d+)*|\d+(?:[.,:/-]\d+)*|\w+|[^\w\s]")
_PART = re.compile(r"\d+(?:[.,:/-]\d+)*|[^\W_]+|[^\w\s]")  # of a name: stadium_id has two
_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")
_QUOTES = "\"'`\u2018\u2019\u201c\u201d"
_TEXTS, _CHARACTERS = 5000, 60  # distinct cells of a column that are read, and their length
_SPAN = 10  # words of the longest value that is looked for; an address by e-mail has 7
_NUMERALS = """zero one two three four five six seven eight nine ten eleven twelve thirteen
    fourteen fifteen sixteen seventeen eighteen nineteen twenty""".split()  # noqa: SIM905
_ORDINALS = "second third fourth fifth sixth seventh eighth ninth tenth".split()  # noqa: SIM905
_TIMES = {"once": 1, "twice": 2, **{word: number for number, word in enumerate(_NUMERALS)}}
_TIMES |= {word: number for number, word in enumerate(_ORDINALS, start=2)}
# Words that name nothing by themselves, though a column or cell may be called so.
_STOP = frozenset(
    """a about all an and any are as at be by can did do does each every find for from give had has
    have how i in is it its list many me much of on or out please show tell than that the their
    them there these they this those to was were what when where which who whom whose with you
    """.split()  # noqa: SIM905
)

_NAMED = ("column", "table")
# What relates two nodes of an example; `r` marks the same relation seen from the other side.
RELATIONS: tuple[str, ...] = (
    "none",
    *(f"distance {d}" for d in (-2, -1, 0, 1, 2)),
    *(f"{kind} {what}{r}" for what in ("column", "table") for kind in ("partial", "exact")
      for r in ("", " r")),
    "value column", "value column r",
    "same column", "same table", "foreign key", "foreign key r",
    "of table", "of table r", "primary key", "primary key r",
    "table", "table key", "table key r", "table key both",
)  # fmt: skip
_RELATION = {name: index for index, name in enumerate(RELATIONS)}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A value that a query may contain.

    Args:
        value: A number or a text.
        first: Its first word in the question; -1 if it is not from the question.
        last: Its last word, included.
        columns: Columns that hold it; empty if that is not known.
    """

    value: float | str
    first: int
    last: int
    columns: tuple[int, ...] = ()


@dataclass(frozen=True)
class Links:
    """What is known about a question before a model reads it.

    Nodes are the question's words, then the schema's columns, then its tables.

    Args:
        words: Of the question.
        candidates: Values, at least one; the first is the number 1.
        relations: For each pair of nodes, an index of RELATIONS; uint8 of shape (nodes, nodes).
    """

    words: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    relations: NDArray[np.uint8]

    @property
    def values(self) -> tuple[float | str, ...]:
        """The candidates' values."""
        return tuple(candidate.value for candidate in self.candidates)

    def named(
        self, schema: Schema, how: Sequence[str] = ("partial", "exact")
    ) -> dict[str, list[str]]:
        """Return the tables and columns that words of the question name, by `tables`, `columns`.

        Args:
            schema: Of the links.
            how: By their whole names (`exact`), or words of them (`partial`).
        """
        columns = len(schema.columns)
        hit = np.atleast_1d(self.linked(_NAMED, how).any(axis=0))
        return {
            "tables": [t.name for i, t in enumerate(schema.tables) if hit[columns + i]],
            "columns": [schema.full_name(i) for i in range(columns) if hit[i]],
        }

    def linked(
        self, what: Sequence[str], how: Sequence[str] = ("partial", "exact")
    ) -> NDArray[np.bool_]:
        """Return which words name which columns and tables: bool (words, columns and tables)."""
        kinds = [_RELATION[f"{each} {kind}"] for each in how for kind in what]
        count = len(self.words)
        return np.isin(self.relations[:count, count:], kinds)


def link(question: str, schema: Schema, database: Path | None = None) -> Links:
    """Find what a question, or all that a parser reads of a conversation, may mean in a database.

    Args:
        question: Any text.
        schema: The database's.
        database: The SQLite file whose cells are looked up; None: no cell is known.
    """
    question = unicodedata.normalize("NFC", question)
    spans = [match.span() for match in _WORD.finditer(question)]
    words = tuple(question[start:end] for start, end in spans)
    parts = [(part, index) for index, word in enumerate(words) for part in _stems(word)]
    cells = _cells(database, schema, stamp(database)) if database else {}
    candidates = tuple(_candidates(words, _quoted(question, words, spans), cells))
    count, columns = len(words), len(schema.columns)
    relations = np.zeros((count + columns + len(schema.tables),) * 2, dtype=np.uint8)
    offsets = np.clip(np.arange(count)[None, :] - np.arange(count)[:, None], -2, 2)
    relations[:count, :count] = _RELATION["distance 0"] + offsets
    relations[count:, count:] = _structure(schema)

    def relate(kind: str, word: int, node: int) -> None:
        relations[word, node] = _RELATION[kind]
        relations[node, word] = _RELATION[f"{kind} r"]

    # Stronger links are written later, over the weaker ones.
    for candidate in candidates:
        for column in candidate.columns:
            for word in range(candidate.first, candidate.last + 1):
                relate("value column", word, count + column)
    for what, named, start in (
        ("column", [column.words for column in schema.columns], count),
        ("table", [table.words for table in schema.tables], count + columns),
    ):
        for index, text in enumerate(named):
            if what == "column" and index == STAR:
                continue
            name = _stems(text)
            for part, word in parts:
                if part in name and part not in _STOP and relations[word, start + index] == 0:
                    relate(f"partial {what}", word, start + index)
            for first in range(len(parts) - len(name) + 1):
                same = parts[first : first + len(name)]
                if name and tuple(part for part, _ in same) == name:
                    for _, word in same:
                        relate(f"exact {what}", word, start + index)
    return Links(words, candidates, relations)


@dataclass(frozen=True, slots=True)
class Content:
    """Stems of the words of a text that say something of a database.

    Args:
        values: Of cells, numbers, quoted words, and names, which are capitalised in a sentence.
        columns: Of names of columns.
        tables: Of names of tables.
    """

    values: frozenset[str]
    columns: frozenset[str]
    tables: frozenset[str]


def content(text: str, schema: Schema, database: Path | None = None) -> Content:
    """Return what a text says of a database; without its SQLite file no cell is known."""
    links = link(text, schema, database)
    count = len(links.words)
    values = np.zeros(count, dtype=bool)
    for candidate in links.candidates:
        first, last = candidate.first, candidate.last + 1
        word = links.words[first] if first >= 0 else ""
        if candidate.columns or last - first > 1 or word.lstrip("-")[:1].isdigit():
            values[max(first, 0) : last] = True
        elif first > 0 and word[0].isupper():
            values[first] = True
    named = [links.linked([what]).any(axis=1) & ~values for what in _NAMED]

    def said(kept: NDArray[np.bool_]) -> frozenset[str]:
        words = compress(links.words, kept)
        return stems(" ".join(w for w in words if w[-1].isalnum() and w.casefold() not in _STOP))

    return Content(*map(said, (values, *named)))


def stems(text: str) -> frozenset[str]:
    """Return the stems of a text's words."""
    return frozenset(_stems(text))


@lru_cache(maxsize=100_000)
def _stems(words: str) -> tuple[str, ...]:
    return tuple(map(stem, _PART.findall(unaccented(words))))


@lru_cache(maxsize=1000)
def _structure(schema: Schema) -> NDArray[np.uint8]:
    """Relations among columns and tables."""
    columns, tables = len(schema.columns), len(schema.tables)
    of = np.array([column.table for column in schema.columns])
    found = np.zeros((columns + tables,) * 2, dtype=np.uint8)
    found[:columns, :columns][of[:, None] == of[None, :]] = _RELATION["same table"]
    found[range(columns), range(columns)] = _RELATION["same column"]
    keys = set(schema.primary_keys)
    for index, table in enumerate(of):
        if index == STAR:
            continue
        kind = "primary key" if index in keys else "of table"
        found[index, columns + table] = _RELATION[kind]
        found[columns + table, index] = _RELATION[f"{kind} r"]
    found[range(columns, columns + tables), range(columns, columns + tables)] = _RELATION["table"]
    for own, its in schema.foreign_keys:
        found[own, its] = _RELATION["foreign key"]
        found[its, own] = _RELATION["foreign key r"]
        here, there = columns + of[own], columns + of[its]
        if here == there:
            continue
        both = found[here, there] == _RELATION["table key r"]
        found[here, there] = _RELATION["table key both" if both else "table key"]
        found[there, here] = _RELATION["table key both" if both else "table key r"]
    return found


def cells(database: Path, schema: Schema) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield each column's index and its distinct texts: 5,000 at most, of 1 to 60 characters.

    A column that the file does not have has none; of one that `Limits` stop, the first ones.

    Raises:
        ValueError: There is no such file, or it is no SQLite database.
    """
    reader = Database(database, Limits(value_bytes=1_000_000_000))
    for index, column in enumerate(schema.columns):
        if column.table < 0:
            continue
        name, table = identifier(column.name), identifier(schema.tables[column.table].name)
        # Without a table's name before it SQLite reads a quoted name that it lacks as a text.
        found = reader.execute(
            f"SELECT DISTINCT t.{name} FROM {table} AS t WHERE typeof(t.{name}) = 'text' "
            f"AND length(t.{name}) BETWEEN 1 AND {_CHARACTERS} LIMIT {_TEXTS}"
        )
        yield index, tuple(text for (text,) in found.rows)


# --- values --------------------------------------------------------------------------------------

Cells = dict[str, tuple[tuple[str, tuple[int, ...]], ...]]
"""By normalised text: the cells that read so, each with the columns that hold it."""


def _candidates(
    words: Sequence[str], quoted: Iterable[tuple[str, int, int]], cells: Cells
) -> Iterator[Candidate]:
    yield Candidate(1.0, -1, -1)
    # Of words in capitals, as the grade A, the first one of a question is none.
    stop = {
        index
        for index, word in enumerate(words)
        if word.casefold() in _STOP and not (index and word.isupper() and word != "I")
    }
    taken, quotation = set[int](), set[int]()
    for text, first, last in quoted:
        found = list(_lookup(text, first, last, cells))
        yield from found
        known = (value.casefold() for value, _ in cells.get(_normal(text), ()))
        if text.casefold() not in known:
            yield Candidate(text, first, last)
        # A quotation that is no cell may have some in it: first and last name.
        (taken if found else quotation).update(range(first, last + 1))
    spans = (
        (first, first + size - 1)
        for size in range(min(_SPAN, len(words)), 0, -1)
        for first in range(len(words) - size + 1)
    )
    for first, last in spans:
        span = range(first, last + 1)
        # A value inside of a longer one says nothing new.
        if taken.issuperset(span) or stop.issuperset(span):
            continue
        found = list(_lookup(" ".join(words[first : last + 1]), first, last, cells))
        if found:
            yield from found
            taken.update(span)
    taken |= quotation
    for index, word in enumerate(words):
        if _NUMBER.fullmatch(word) and math.isfinite(amount := float(word.replace(",", ""))):
            # Zeros before it, and what a float rounds off, are kept by the text alone.
            is_exact = not word.lstrip("-").isdecimal() or number(amount) == word
            yield Candidate(amount if is_exact else word, index, index)
        elif word[0].isdigit():  # a date or a time
            yield Candidate(word, index, index)
        elif word.casefold() in _TIMES:
            yield Candidate(float(_TIMES[word.casefold()]), index, index)
    # Names that no cell holds: runs of capitalised words, not the one that begins the question.
    index = 1
    while index < len(words):
        end = index
        while end < len(words) and words[end][0].isupper() and end not in taken:
            end += 1
        if end > index and not (end == index + 1 and index in stop):
            yield Candidate(" ".join(words[index:end]), index, end - 1)
        index = max(end, index + 1)
    # Whatever else may be meant by a word, such as the part of a name after "containing".
    for index, word in enumerate(words):
        if index not in taken | stop and word[0].isalpha():
            yield Candidate(word, index, index)


def _quoted(
    question: str, words: Sequence[str], spans: Sequence[tuple[int, int]]
) -> Iterator[tuple[str, int, int]]:
    """Texts between quotation marks, with their first and last word.

    An apostrophe inside of a word is none of them here.
    """
    opened: int | None = None
    for index, (word, (start, end)) in enumerate(zip(words, spans, strict=True)):
        in_word = question[start - 1 : start].isalnum() and question[end : end + 1].isalnum()
        if word not in _QUOTES or in_word:
            continue
        if opened is not None and 0 < index - opened - 1 <= 12:
            yield question[spans[opened][1] : start].strip(), opened + 1, index - 1
            opened = None
        else:
            opened = index


def _lookup(text: str, first: int, last: int, cells: Cells) -> Iterator[Candidate]:
    for value, columns in cells.get(_normal(text), ())[:4]:
        # A text of digits is a number only if it reads the same: 007 does not, nor a long one.
        is_number = _NUMBER.fullmatch(value) and "," not in value and number(float(value)) == value
        yield Candidate(float(value) if is_number else value, first, last, columns)


def _normal(text: str) -> str:
    return " ".join(_stems(text))


def stamp(path: Path) -> tuple[tuple[int, int], ...]:
    """Tell one state of a SQLite file from another: times and sizes of it and of its log.

    Raises:
        ValueError: The file is gone.
    """
    found = []
    for file in (path, Path(f"{path}-wal")):
        try:
            state = os.stat(file)
        except OSError as error:
            if file == path:
                raise ValueError(f"{path}: cannot be read any more: {error.strerror}") from error
            continue
        found.append((state.st_mtime_ns, state.st_size))
    return tuple(found)


def read_cells(database: Path, schema: Schema) -> None:
    """Read what `link` looks up in a database; it does so itself, and once for each state of it.

    A million rows take some 0.4 s for each column.

    Raises:
        ValueError: There is no such file, or it is no SQLite database.
    """
    _cells(database, schema, stamp(database))


@lru_cache(maxsize=400)
def _cells(database: Path, schema: Schema, state: object) -> Cells:
    """Where each text of a database stands; another `stamp` is another database."""
    found: dict[str, dict[str, set[int]]] = {}
    for index, texts in cells(database, schema):
        for value in texts:
            normal = _normal(value)
            if normal:
                found.setdefault(normal, {}).setdefault(value, set()).add(index)
    return {
        normal: tuple((value, tuple(sorted(columns))) for value, columns in values.items())
        for normal, values in found.items()
    }
