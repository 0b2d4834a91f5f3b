"""Dialogues about databases, in the layouts in which the field exchanges them.

A file's first entry tells its layout by the fields that it has; every later entry must have them
too. Whatever annotation is not there stays absent: no SQL and no rewrite is made up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.files import parquet_rows, refuse_surrogates
from text2sql.dialogue import Interaction, Turn
from text2sql.schema import read_list
from text2sql.sql import SqlError, tokenise


@dataclass(frozen=True)
class Dialogues:
    """What a file holds.

    Args:
        layout: The name of its layout, one of LAYOUTS.
        interactions: In the order of the file; each has at least one turn.
        skipped: How many entries or annotations were left out, by reason.
    """

    layout: str
    interactions: tuple[Interaction, ...]
    skipped: Mapping[str, int]


def read_dialogues(path: str | Path) -> Dialogues:
    """Read a file of questions or dialogues.

    Args:
        path: A list in JSON, or rows in a .parquet file (as the Hugging Face hub has Spider).

    Raises:
        ValueError: The file cannot be read, its layout is unknown, or an entry is malformed; names
            the file, the entry (from 0) and the field.
    """
    path = Path(path)
    entries = _entries(path)
    if not entries:
        raise ValueError(f"{path}: is empty; give a file with at least one question")
    name, layout = _recognise(entries[0], f"{path}: entry 0")
    skipped: Counter[str] = Counter()
    read = (
        layout.read(_Entry(entry, f"{path}: entry {number}", name), skipped)
        for number, entry in enumerate(entries)
    )
    return Dialogues(name, tuple(found for found in read if found is not None), dict(skipped))


def _entries(path: Path) -> list[Any]:
    if path.suffix != ".parquet":
        return read_list(path, "questions or dialogues")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    return [row for _, row in parquet_rows(path, str(path))]


# --- what is read from an entry --------------------------------------------------------------


class _Entry:
    """An object of the file, or a turn inside of one, that knows where it stands."""

    def __init__(self, fields: Any, where: str, layout: str) -> None:
        if not isinstance(fields, Mapping):
            raise ValueError(f"{where}: must be an object, as in the layout {layout}: {fields!r}")
        self.fields, self.where, self.layout = fields, where, layout

    def text(self, field: str) -> str:
        """The text of a field, which must be there and hold at least one word."""
        value = self.fields.get(field)
        if not isinstance(value, str) or not value.strip():
            raise self.malformed(field, "a text that is not empty")
        return self._stripped(value, field)

    def optional(self, field: str) -> str | None:
        """The text of an annotation; None if the field is absent, null or empty."""
        value = self.fields.get(field)
        if value is not None and not isinstance(value, str):
            raise self.malformed(field, "a text, or null where there is no annotation")
        return self._stripped(value or "", field) or None

    def texts(self, field: str) -> list[str]:
        """The texts of a list."""
        value = self.fields.get(field)
        if not isinstance(value, list) or not all(isinstance(t, str) and t.strip() for t in value):
            raise self.malformed(field, "a list of texts that are not empty")
        return [self._stripped(text, field) for text in value]

    def _stripped(self, text: str, field: str) -> str:
        refuse_surrogates(text, f"{self.where}: {field}")
        return text.strip()

    def inner(self, field: str) -> list[_Entry]:
        """The objects of a list."""
        value = self.fields.get(field)
        if not isinstance(value, list):
            raise self.malformed(field, "a list of turns")
        return [
            _Entry(turn, f"{self.where}, {field}[{number}]", self.layout)
            for number, turn in enumerate(value)
        ]

    def final(self) -> _Entry | None:
        """The object that sums up a dialogue, None if there is none."""
        value = self.fields.get("final")
        return None if value is None else _Entry(value, f"{self.where}, final", self.layout)

    def malformed(self, field: str, allowed: str) -> ValueError:
        """An error that says what a field must hold."""
        has = repr(self.fields[field])[:60] if field in self.fields else "nothing"
        return ValueError(f"{self.where}: {field} must be {allowed} ({self.layout}); has {has}")


# --- the layouts -----------------------------------------------------------------------------


def _question(entry: _Entry, skipped: Counter[str]) -> Interaction | None:
    turn = Turn(entry.text("question"), entry.optional("query"))
    return Interaction(entry.text("db_id"), (turn,))


def _interaction(entry: _Entry, skipped: Counter[str]) -> Interaction | None:
    """Read turns; what the dialogue ends on rewrites its last turn if it has the same SQL.

    In SParC `final` is the question that the dialogue was made from, which the last turn completes
    in 411 of 422 dialogues of the dev set; in CoSQL it is the goal, which is often left behind.
    """
    turns = [
        Turn(turn.text("utterance"), turn.optional("query"), turn.optional("rewrite"))
        for turn in entry.inner("interaction")
    ]
    if not turns:
        raise entry.malformed("interaction", "a list of at least one turn")
    final = entry.final()
    last, goal = turns[-1], None if final is None else final.optional("query")
    if final is not None and last.rewrite is None and last.query and goal:
        if _same_words(last.query, goal):
            turns[-1] = Turn(last.utterance, last.query, final.optional("utterance"))
        else:
            skipped["final questions with other SQL than the last turn"] += 1
    return Interaction(entry.text("database_id"), tuple(turns))


def _same_words(one: str, other: str) -> bool:
    try:
        words = [[t.lower() for t in tokenise(text) if t != ";"] for text in (one, other)]
    except SqlError:
        return False
    return words[0] == words[1]


def _unannotated(entry: _Entry, skipped: Counter[str]) -> Interaction | None:
    """Read turns of which only the last has annotation, which is the final question's."""
    said, final = entry.texts("turns_heuristic"), entry.final()
    if final is None or len(said) < 2:
        skipped["dialogues whose turns are not told apart"] += 1
        return None
    query = final.optional("query")
    if query is None:
        skipped["queries without their values as written"] += 1
    last = Turn(said[-1], query, final.text("utterance"))
    return Interaction(entry.text("database_id"), (*map(Turn, said[:-1]), last))


def _last_turn(entry: _Entry, skipped: Counter[str]) -> Interaction | None:
    rewrite: str | None = entry.text("rewrite")
    if entry.fields.get("same_sql_as_final") is False:
        skipped["final questions with other SQL than the last turn"] += 1
        rewrite = None
    last = Turn(entry.text("utterance"), entry.optional("query"), rewrite)
    return Interaction(entry.text("database_id"), (*map(Turn, entry.texts("history")), last))


def _dialogue(entry: _Entry, skipped: Counter[str]) -> Interaction | None:
    """Read the user's questions that a query answers; the SQL stands in the answer after each."""
    said = entry.inner("turns")
    turns = []
    for turn, answer in zip(said, [*said[1:], None], strict=True):
        if turn.fields.get("isUser") is not True:
            continue
        if turn.fields.get("type") != "INFORM_SQL":
            skipped["what users said that no query answers"] += 1
            continue
        query = None
        if answer is not None and answer.fields.get("isUser") is False:
            query = answer.optional("query")
        turns.append(Turn(turn.text("text"), query))
    if not turns:
        skipped["dialogues without a question"] += 1
        return None
    return Interaction(entry.text("db_name"), tuple(turns))


def _passage(entry: _Entry, skipped: Counter[str]) -> Interaction | None:
    """Read a question with what was said before, from an article's and a section's title on."""
    last = Turn(entry.text("Question"), rewrite=entry.text("Rewrite"))
    return Interaction("", (*map(Turn, entry.texts("History")), last))


@dataclass(frozen=True)
class _Layout:
    """The fields that every entry of a layout has, and how one is read.

    Reading returns None, and counts, if there is nothing to be had from an entry.
    """

    fields: tuple[str, ...]
    read: Callable[[_Entry, Counter[str]], Interaction | None]


LAYOUTS: dict[str, _Layout] = {
    "Spider": _Layout(("question", "db_id"), _question),
    "SParC and CoSQL": _Layout(("database_id", "interaction"), _interaction),
    "SParC without the SQL of earlier turns": _Layout(
        ("database_id", "turns_heuristic", "final"), _unannotated
    ),
    "rewritten last turns": _Layout(("database_id", "history", "utterance", "rewrite"), _last_turn),
    "CoSQL's full dialogues": _Layout(("db_name", "turns"), _dialogue),
    "CANARD": _Layout(("History", "Question", "Rewrite"), _passage),
}


def _recognise(entry: Any, where: str) -> tuple[str, _Layout]:
    fields = set(entry) if isinstance(entry, Mapping) else set()
    for name, layout in LAYOUTS.items():
        if fields.issuperset(layout.fields):
            return name, layout
    known = "; ".join(f"{name}: {', '.join(layout.fields)}" for name, layout in LAYOUTS.items())
    has = ", ".join(sorted(map(str, fields))) if fields else repr(entry)[:60]
    raise ValueError(
        f"{where}: its fields are of no layout that is known here: {has}. Known: {known}"
    )


# --- settings ----------------------------------------------------------------------------------


def check(settings: Mapping[str, Any], dimensions: Mapping[str, int] | None = None) -> None:
    """Refuse settings that cannot work together, before anything is read.

    Absent settings keep their defaults; `dimensions`, of a model, are not used.

    Raises:
        ValueError: Names the config key, what is wrong with it and what is allowed.
    """
    files = ("root", "train", "test", "tables", "databases")
    if settings.get("source", "generated") == "generated":
        for key in files:
            if settings.get(key):
                raise ValueError(f"datamodule.{key} is read by source=files only")
        return
    for key in ("train", "test"):
        if not settings.get(key):
            raise ValueError(f"datamodule.{key}: source=files needs at least one file")
    for key, places in paths_of(settings).items():
        for place in places:
            if not (place.is_dir() if key == "databases" else place.is_file()):
                what = "folder" if key == "databases" else "file"
                remedy = "; null reads the schemas from the SQLite files" * (key == "tables")
                raise ValueError(f"datamodule.{key}: no such {what}: {place}{remedy}")


def paths_of(settings: Mapping[str, Any]) -> dict[str, list[Path]]:
    """Return what `train`, `test`, `tables` and `databases` name, each under `root`."""
    root = Path(settings.get("root") or ".").expanduser()
    found: dict[str, list[Path]] = {}
    for key in ("train", "test", "tables", "databases"):
        given = settings.get(key) or []
        found[key] = [root / name for name in ([given] if isinstance(given, str) else given)]
    return found
