"""Nothing that is typed, pressed or stored ends a conversation but its own end."""

import io
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.text2sql.conftest import make
from text2sql import conversation as conversations
from text2sql import linking
from text2sql.conversation import COMMANDS, Conversation, Reader
from text2sql.dialogue import Example
from text2sql.execute import Limits
from text2sql.schema import Schema

CELLS = [
    "[/b]", "[red]Bob[/red]", "\x1b[31mred\x1b[0m", "a\rb\x07", "tab\there", "🙂", "\udcff",
]  # fmt: skip


class Script:
    """Types lines, presses keys (exceptions), and keeps what is shown."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, width: int = 120) -> None:
        self.out = io.StringIO()
        self.console = Console(file=self.out, width=width)
        self._patch = monkeypatch

    def hold(
        self, talk: Conversation, *lines: str | BaseException | Iterator[str | BaseException]
    ) -> str:
        """Hold the conversation; lines may be made while it goes on."""
        first = lines[0] if lines else ""
        given = iter(lines) if isinstance(first, str | BaseException) else first
        before, left = len(self.out.getvalue()), chain(given, [EOFError()])

        def typed(*_: object) -> str:
            line = next(left)
            assert isinstance(line, str | BaseException)
            if isinstance(line, BaseException):
                raise line
            return line

        self._patch.setattr("builtins.input", typed)
        talk.hold()
        return self.out.getvalue()[before:]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    return Script(monkeypatch)


def reader(
    answer: str | Callable[[str], str] = "SELECT name FROM singer", right: float | None = None
) -> Reader:
    """Answers with SQL of its own; a question is what was said, and two turns are read."""

    def rank(question: str, schema: Schema, path: Path, count: int) -> list[tuple[str, float]]:
        sql = answer if isinstance(answer, str) else answer(question)
        return [(sql, -1.0 - place) for place in range(count)]

    return Reader(lambda e: e.utterance, rank, lambda e: e.history[-2:], lambda _: right)


def conversation(path: Path, script: Script, own: Reader, **limits: int) -> Conversation:
    return Conversation(path, own, Limits(seconds=5, **limits), script.console)


def test_text_of_every_kind_is_shown_and_harmless(tmp_path: Path, script: Script) -> None:
    ddl = 'CREATE TABLE "[bold]" ("[/b]" TEXT, "select" TEXT)'
    path = make(tmp_path / "[red]x.sqlite", ddl)
    with closing(sqlite3.connect(path)) as db:
        rows = [(cell.encode("utf-8", "surrogatepass"),) for cell in CELLS]
        db.executemany('INSERT INTO "[bold]" VALUES (CAST(? AS TEXT), NULL)', rows)
        db.commit()
    own = reader('SELECT "[/b]", "select" FROM "[bold]" ORDER BY rowid')
    out = script.hold(
        conversation(path, script, own),
        "Show books [/b] please \x1b[2J",
        ":why",
        ":schema",
        ":[/b]",
    )
    for shown in ("[/b]", "[red]Bob[/red]", "\\x1b[31mred", "a\\rb\\x07", "🙂", "[red]x", "[bold]"):
        assert shown in out
    assert "question  Show books [/b] please \\x1b[2J" in out
    assert "no command :[/b]" in out
    assert not {"\x1b", "\r", "\x07"} & set(out)


@pytest.mark.parametrize(
    "line",
    [
        "", "   ", "?!", "...", "🙂", "'", '"', "a" * 3000, "word " * 10_000, "How\tmany?",
        "é", "漢字", "9" * 500, "1e999 -1 0x10", "%_%", "SELECT 1; DROP TABLE singer", "²", "\x00",
        ":", ":nothing", ": why", "show 'it''s' \"x\" `y`", "\u202ex", "\ud800",
    ],
)  # fmt: skip
def test_whatever_is_typed_the_next_question_is_answered(
    line: str, database: Path, script: Script
) -> None:
    out = script.hold(conversation(database, script, reader()), line, ":why", "Show all.")
    assert "Ann" in out
    assert "Traceback" not in out
    assert "No answer" not in out


def test_what_is_no_question_is_said(database: Path, script: Script) -> None:
    talk = conversation(database, script, reader())
    out = script.hold(
        talk, "?!", "word " * 10_000, "x" * 5000, ":Help", ":nope", "Quit", ":QUIT", "?"
    )
    assert "A command begins with a colon: :quit" in out
    assert out.count("no word in that") == 1
    assert "no word in that" in out
    assert "10,000" in out
    assert all(name in out and what in out for name, what in COMMANDS.items())
    assert "no command :nope" in out
    assert talk.turns == 0


def test_keys_stop_a_query_and_a_second_one_leaves(database: Path, script: Script) -> None:
    def pressed(question: str) -> str:
        if question == "slow":
            raise KeyboardInterrupt
        return "SELECT name FROM singer"

    talk = conversation(database, script, reader(pressed))
    out = script.hold(
        talk, KeyboardInterrupt(), "Show all.", "slow", KeyboardInterrupt(), "Show all.",
        KeyboardInterrupt(), KeyboardInterrupt(), "Show all.",
    )  # fmt: skip
    assert out.count("Ann") == 2
    assert "Stopped" in out
    assert "The conversation ends." in out
    assert talk.turns == 2
    assert [example.utterance for example, _ in talk.answers] == ["Show all.", "Show all."]


@pytest.mark.parametrize("end", [":quit", EOFError(), OSError("gone"), ValueError("closed file")])
def test_every_end_of_the_input_is_an_end(
    end: str | BaseException, database: Path, script: Script
) -> None:
    assert "Ann" not in script.hold(conversation(database, script, reader()), end, "Show all.")


def test_bytes_that_are_no_text_are_asked_for_again(database: Path, script: Script) -> None:
    wrong = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
    out = script.hold(conversation(database, script, reader()), wrong, "Show all.")
    assert "not text" in out
    assert "Ann" in out


def test_a_closed_output_ends_it_without_an_error(
    database: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = conversation(database, script, reader())

    def closed(*_: object, **__: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(script.console, "print", closed)
    script.hold(talk, "Show all.")
    assert talk.turns == 0


def test_a_broken_model_or_database_is_said(tmp_path: Path, script: Script) -> None:
    def broken(question: str) -> str:
        if question == "break":
            raise RuntimeError("[/b] out of memory")
        return "SELECT name FROM singer"

    path = make(tmp_path / "own.sqlite")
    talk = conversation(path, script, reader(broken))

    def lines() -> Iterator[str]:
        yield "break"
        yield "Show all."
        content = path.read_bytes()
        path.unlink()
        yield "Show all of it."
        path.write_bytes(content[:100])
        yield "Show again."
        path.write_bytes(b"")
        yield "Show what is left."
        path.write_bytes(content)
        yield "Show once more."
        with closing(sqlite3.connect(path)) as db:
            db.execute("ALTER TABLE singer ADD COLUMN shoe TEXT")
        yield ":schema"

    out = script.hold(talk, lines())
    assert "RuntimeError: [/b] out of memory" in out
    assert out.count("Ann") == 2
    assert out.count("No answer: ValueError") == 3
    assert "it has no tables" in out
    assert "have changed and were read again" in out
    assert "shoe" in out


def test_a_result_of_any_size_shows_its_first_rows(tmp_path: Path, script: Script) -> None:
    path = make(
        tmp_path / "large.sqlite",
        """CREATE TABLE t (n INTEGER, text TEXT);
        WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c LIMIT 500)
        INSERT INTO t SELECT n, CASE n WHEN 1 THEN printf('%.300000c', 'x') END FROM c""",
    )
    answers = {
        "all": "SELECT n, text FROM t ORDER BY n",
        "some": "SELECT n FROM t WHERE n <= 20",
        "more": "SELECT n FROM t WHERE n <= 21",
        "none": "SELECT n FROM t WHERE n < 0",
        "twice": "SELECT n, n FROM t",
        "odd": "SELECT x'00ff', NULL, 9223372036854775807, 9e999, -9e999, 0.1",
        "wrong": "SELECT gone FROM t",
    }
    talk = conversation(path, script, reader(answers.__getitem__), rows=100, value_bytes=10**6)
    out = {name: script.hold(talk, name) for name in answers}
    assert "... 500 rows in all" in out["all"]
    assert "(300,000 characters)" in out["all"]
    assert "│ 20 " in out["all"]
    assert "│ 21 " not in out["all"]
    assert "rows in all" not in out["some"]
    assert "... 21 rows in all" in out["more"]
    assert "no rows" in out["none"]
    assert "... 500 rows in all" in out["twice"]
    for value in ("x'00ff'", "NULL", "9223372036854775807", "inf", "-inf", "0.1"):
        assert value in out["odd"]
    assert "failed: no such column: gone" in out["wrong"]


def test_more_columns_than_fit_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = Script(monkeypatch, width=40)
    path = make(
        tmp_path / "wide.sqlite", f"CREATE TABLE t ({', '.join(f'c{i}' for i in range(99))})"
    )
    talk = conversation(path, narrow, reader("SELECT * FROM t"))
    assert "... 99 columns in all" in narrow.hold(talk, "Show all.")


def test_a_database_without_tables_is_refused(tmp_path: Path, script: Script) -> None:
    for number, ddl in enumerate(("", "CREATE TABLE t (x); DROP TABLE t; VACUUM")):
        path = make(tmp_path / f"{number}.sqlite", ddl)
        with pytest.raises(ValueError, match="no tables"):
            conversation(path, script, reader())


def test_what_joins_and_what_does_not_is_said(tmp_path: Path, script: Script) -> None:
    ddl = """CREATE TABLE customers (id, name); CREATE TABLE orders (id, customer_id);
    CREATE TABLE weather (day, rain)"""
    talk = conversation(make(tmp_path / "own.sqlite", ddl), script, reader("SELECT id FROM orders"))
    out = script.hold(talk, "Show orders and customers.", ":schema")
    assert "without a declared key: orders.customer_id = customers.id." in out
    assert "parts that nothing joins: customers, orders | weather" in out
    assert "No key joins" not in out
    assert "No key joins orders with weather" in script.hold(talk, "Show orders by weather.")


def test_only_turns_that_were_read_are_listed(database: Path, script: Script) -> None:
    talk = conversation(database, script, reader())
    script.hold(talk, "One.", "Two.", "Three.", "Four.")
    out = script.hold(talk, ":why")
    assert "Two." in out
    assert "Three." in out
    assert "One." not in out
    assert "-3.00 nats" in out
    script.hold(talk, ":reset")
    assert "Nothing was asked yet" in script.hold(talk, ":why")


def test_names_are_shown_as_they_are_written(database: Path, script: Script) -> None:
    """`year` is a keyword to some formatters; in SQLite it is a name."""
    own = reader("SELECT year, Title FROM concert WHERE year = 'value of date'")
    out = script.hold(conversation(database, script, own), "Show years.")
    assert "SELECT year," in out
    assert "year = 'value of date'" in out


@pytest.mark.parametrize(("right", "marked"), [(None, False), (0.9, False), (0.3, True)])
def test_an_answer_that_is_likely_wrong_is_marked(
    right: float | None, marked: bool, database: Path, script: Script
) -> None:
    out = script.hold(conversation(database, script, reader(right=right)), "Show all.")
    assert ("Unsure: of answers this likely, 30 in 100 were right" in out) == marked
    assert "Ann" in out


def test_turns_carry_the_conversation(database: Path, script: Script) -> None:
    seen: list[Example] = []
    own = reader()

    def rewrite(example: Example) -> str:
        seen.append(example)
        return example.utterance

    talk = conversation(database, script, replace(own, rewrite=rewrite))
    script.hold(talk, "One.", "Two.", ":reset", "Three.")
    assert [(e.turn, e.history) for e in seen] == [(0, ()), (1, ("One.",)), (0, ())]


def test_what_takes_longer_than_a_second_is_said_once(
    database: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = linking.cells

    def slow(*given: Any) -> Iterator[Any]:
        time.sleep(0.3)
        yield from read(*given)

    monkeypatch.setattr(linking, "cells", slow)
    monkeypatch.setattr(conversations, "_SILENT", 0.05)
    linking._cells.cache_clear()
    shown = script.hold(conversation(database, script, reader()), "Who sings?", "Where?")
    assert shown.count("Reading what stands in the tables") == 1
    assert shown.index("Reading what") < shown.index("question  Who sings?")
    monkeypatch.setattr(conversations, "_SILENT", 60.0)
    linking._cells.cache_clear()
    assert "Reading what" not in script.hold(conversation(database, script, reader()), "Who sings?")
