"""A conversation with a database in a terminal: question, SQL and result of every turn.

Nothing that is typed, pressed or stored ends it but its own end: what goes wrong is said, and the
next question is waited for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import Any

import sqlparse
from rich.console import Console
from rich.table import Table
from rich.text import Text

from terminal import ask, literal
from text2sql.dialogue import Example
from text2sql.execute import Database, Limits, Result
from text2sql.linking import link, read_cells, stamp
from text2sql.schema import Schema

_ROWS = 20  # of a result that are shown
_CELL, _LINES = 500, 10  # characters and lines of a cell that are shown
_COLUMN = 8  # characters that a shown column has at least
_WORDS, _LENGTH = 120, 2000  # of a question: more than parsers read
_BEAM = 3  # queries that `:why` shows
_SILENT = 1.0  # seconds that pass before it is said what takes long

COMMANDS = {
    ":why": "what was read in the last turn, what it was linked with, and which queries came next",
    ":schema": "tables, columns and what joins them",
    ":reset": "forget the conversation",
    ":help": "these commands",
    ":quit": "leave; so do Ctrl-D and a second Ctrl-C",
}
_LEAVE = "Ctrl-C once more, :quit or Ctrl-D leaves; :help lists the commands."


@dataclass(frozen=True)
class Reader:
    """The models of a conversation.

    Args:
        rewrite: Makes a turn into a question that needs no turns before it.
        rank: Parses such a question: question, schema, SQLite file, and how many queries; each
            comes with its log-likelihood in nats.
        read: The turns before one that its rewriting reads, oldest first.
        right: Share of answers this likely that were right on validation data; None: not measured.
    """

    rewrite: Callable[[Example], str]
    rank: Callable[[str, Schema, Path, int], Sequence[tuple[str, float]]]
    read: Callable[[Example], Sequence[str]]
    right: Callable[[float], float | None]


class Conversation:
    """Questions about one SQLite file, in which each turn may build on those before.

    Raises:
        ValueError: There is no such file, it is no SQLite database, or there is no table in it.
    """

    def __init__(self, path: Path, reader: Reader, limits: Limits, console: Console) -> None:
        self.path, self.reader, self.console = path, reader, console
        self.database = Database(path, limits)
        self.schema = self._read()
        self.answers: list[tuple[Example, str]] = []
        self.turns, self.slowest = 0, 0.0
        self._stamp = stamp(path)

    def hold(self, about: Sequence[str] = ()) -> None:
        """Answer until `:quit`, the end of the input, a second Ctrl-C, or a closed output.

        What the parser was trained on and is fit for (`about`) is said first.
        """
        try:
            self._open(about)
            while (line := ask(self.console, _LEAVE)) is not None and line.lower() != ":quit":
                try:
                    self._answer(line)
                except KeyboardInterrupt:
                    self._print("Stopped. The conversation goes on.")
                except BrokenPipeError:
                    raise
                except Exception as error:  # noqa: BLE001
                    # Whatever a question or a database sets off, the next one may be answered.
                    self._print(f"No answer: {type(error).__name__}: {error}")
        except BrokenPipeError:
            return

    def _print(self, *words: str | Text) -> None:
        texts = (each if isinstance(each, Text) else literal(each) for each in words)
        self.console.print(*texts, soft_wrap=True)

    # --- what is typed

    def _answer(self, line: str) -> None:
        if not line:
            return
        if line.startswith(":"):
            self._command(line.lower())
        elif f":{line.lower()}" in COMMANDS:
            self._print(f"A command begins with a colon: :{line.lower()}")
        elif len(line) > _LENGTH or len(line.split()) > _WORDS:
            self._print(
                f"A question may have {_WORDS} words and {_LENGTH:,} characters; this one has "
                f"{len(line.split()):,} and {len(line):,}."
            )
        elif not any(character.isalnum() for character in line):
            self._print("There is no word in that. :help lists the commands.")
        else:
            self._turn(line)

    def _command(self, line: str) -> None:
        if line == ":schema":
            self._read_again()
            self._show_schema()
        elif line == ":reset":
            self.answers.clear()
            self._print("The conversation is forgotten.")
        elif line == ":why":
            self._show_why()
        elif line == ":help":
            for name, what in COMMANDS.items():
                self._print(f"{name:9}{what}")
        else:
            self._print(f"There is no command {line}. :help lists them.")

    # --- what is answered

    def _turn(self, line: str) -> None:
        start = time.perf_counter()
        self._read_again()
        self._read_cells()
        history = tuple(example.utterance for example, _ in self.answers)
        example = Example(0, len(history), history, line, None, None, self.schema, self.path)
        question = self.reader.rewrite(example)
        sql, score = self.reader.rank(question, self.schema, self.path, 1)[0]
        self.answers.append((example, question))
        self._print(f"question  {question}")
        self._apart(question)
        self._print(sqlparse.format(sql, reindent=True))
        right = self.reader.right(score)
        if right is not None and right < 0.5:
            words = f"Unsure: of answers this likely, {100 * right:.0f} in 100 were right on "
            words += "validation data. :why shows what came next."
            self._print(Text(words, "yellow"))
        self._show(sql)
        seconds = time.perf_counter() - start
        self._print(Text(f"{seconds:.2f} s", "dim"))
        self.slowest, self.turns = max(self.slowest, seconds), self.turns + 1

    def _read_cells(self) -> None:
        """Read the cells that questions may name, once; said where it takes more than a second."""

        def say() -> None:
            with suppress(OSError):  # nobody reads it: the next line that is shown says so
                self._print("Reading what stands in the tables, for questions that name it; once.")

        timer = Timer(_SILENT, say)
        timer.start()
        try:
            read_cells(self.path, self.schema)
        finally:
            timer.cancel()

    def _read(self) -> Schema:
        schema = Schema.from_sqlite(self.path, self.database.limits.seconds)
        if not any(table.columns for table in schema.tables):
            raise ValueError(f"database={self.path}: it has no tables, so there is nothing to ask")
        return schema

    def _read_again(self) -> None:
        """Follow a database that has changed since it was read."""
        now = stamp(self.path)
        if now == self._stamp:
            return
        schema = self._read()
        self._stamp = now
        if schema != self.schema:
            self.schema = schema
            self._print("The database's tables have changed and were read again.")

    def _show(self, sql: str) -> None:
        result = self.database.execute(sql)
        count = f"{len(result.rows):,}"
        if result.status == "stopped" and result.seconds < self.database.limits.seconds:
            # Too large to be fetched: its first rows are not, and counting fetches none.
            first = self.database.execute(f"SELECT * FROM ({sql}) LIMIT {_ROWS}")
            counted = self.database.execute(f"SELECT COUNT(*) FROM ({sql})")
            result = first if first.status == "ok" else result
            count = f"{counted.rows[0][0]:,}" if counted.status == "ok" else "more"
        if result.status == "ok":
            self._show_rows(result, count)
        else:
            self._print(f"{result.status}: {result.message}")

    def _show_rows(self, result: Result, count: str) -> None:
        """Print the first rows; `count` says how many there are."""
        fit = max(1, self.console.width // _COLUMN)
        table = Table()
        for name in result.columns[:fit]:
            table.add_column(literal(name))
        for row in result.rows[:_ROWS]:
            table.add_row(*(literal(value, _CELL, _LINES) for value in row[:fit]))
        self.console.print(table)
        if len(result.columns) > fit:
            self._print(f"... {len(result.columns):,} columns in all")
        if not result.rows:
            self._print("no rows")
        elif count != str(min(len(result.rows), _ROWS)):
            self._print(f"... {count} rows in all")

    def _apart(self, question: str) -> None:
        """Say where a question names tables that nothing joins."""
        named = link(question, self.schema).named(self.schema, ("exact",))["tables"]
        if len(parts := self._parts(named)) > 1:
            words = " with ".join(parts)
            self._print(f"No key joins {words}: a query has the one or the other.")

    def _parts(self, names: Sequence[str]) -> list[str]:
        """Names of tables, those that keys connect in one text."""
        parts: dict[int, list[str]] = {}
        for index, table in enumerate(self.schema.tables):
            if table.name in names:
                component = self.schema.joinable.components[index]
                parts.setdefault(component, []).append(table.name)
        return list(map(", ".join, parts.values()))

    # --- what is shown

    def _open(self, about: Sequence[str]) -> None:
        for line in about:
            self._print(line)
        inferred = _keys(self.schema, declared=False)
        if inferred:
            self._print(f"Joined by their names, without a declared key: {', '.join(inferred)}.")
        self._print(f"{self.path.name}: {len(self.schema.tables)} tables. {' '.join(COMMANDS)}")

    def _show_schema(self) -> None:
        table = Table("table", "columns", title=literal(self.schema.db_id), title_justify="left")
        for entry in self.schema.tables:
            names = ", ".join(self.schema.columns[index].name for index in entry.columns)
            table.add_row(literal(entry.name), literal(names))
        self.console.print(table)
        for words, declared in (("keys", True), ("joined by their names", False)):
            if keys := _keys(self.schema, declared):
                self._print(f"{words}: {', '.join(keys)}")
        if len(parts := self._parts([entry.name for entry in self.schema.tables])) > 1:
            self._print(f"parts that nothing joins: {' | '.join(parts)}")

    def _show_why(self) -> None:
        if not self.answers:
            self._print("Nothing was asked yet.")
            return
        example, question = self.answers[-1]
        schema = self.schema
        table = Table(show_header=False)
        links = link(question, schema, self.path)
        values = {
            f"{c.value} ({', '.join(schema.full_name(i) for i in c.columns)})"
            for c in links.candidates
            if c.columns
        }
        rows: dict[str, Any] = {
            "turns read": "\n".join(self.reader.read(example)) or "none before",
            "utterance": example.utterance,
            "question": question,
            **{f"names {what}": ", ".join(n) or "none" for what, n in links.named(schema).items()},
            "cells": ", ".join(sorted(values)) or "none",
        }
        for name, words in rows.items():
            table.add_row(name, literal(words))
        for sql, score in self.reader.rank(question, schema, self.path, _BEAM):
            table.add_row(f"{score:.2f} nats", literal(sql))
        self.console.print(table)


def _keys(schema: Schema, declared: bool) -> list[str]:
    """Keys in words: the declared ones, or those that names tell."""
    keys = schema.keys if declared else schema.joinable.keys[len(schema.keys) :]
    return [
        " and ".join(f"{schema.full_name(own)} = {schema.full_name(its)}" for own, its in key)
        for key in keys
    ]
