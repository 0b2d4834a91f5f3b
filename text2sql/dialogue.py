"""Conversations with a database: what data sources yield and what models read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from text2sql.schema import Schema


@dataclass(frozen=True, slots=True)
class Turn:
    """What a person said, with what annotators added.

    Args:
        utterance: The words of the turn.
        query: Its SQL; None if nobody annotated it.
        rewrite: The same question, understood without the turns before it; None if nobody wrote
            it. That of the first turn of a conversation about a database is the utterance itself.
    """

    utterance: str
    query: str | None = None
    rewrite: str | None = None


@dataclass(frozen=True, slots=True)
class Interaction:
    """Turns about one database, in order; a single question is an interaction of one turn.

    A conversation about none (CANARD) has the db_id "".
    """

    db_id: str
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One turn as a model meets it. Equal only to itself, so that features can be kept for it.

    Args:
        interaction: Number of its interaction within its split, from 0.
        turn: Its number within the interaction, from 0.
        history: The utterances before it, oldest first.
        utterance: Its own.
        rewrite: See `Turn`.
        query: See `Turn`.
        schema: Of its database; None for a conversation about none.
        database: The SQLite file; None if there is none, then no cell values are known.
    """

    interaction: int
    turn: int
    history: tuple[str, ...]
    utterance: str
    rewrite: str | None
    query: str | None
    schema: Schema | None
    database: Path | None

    @property
    def is_judged(self) -> bool:
        """Whether SQL of the turn can be judged."""
        return self.schema is not None and self.query is not None

    @property
    def about(self) -> Schema:
        """The schema, of a turn that has one: whatever is parsed or judged has."""
        assert self.schema is not None, "the turn is about a database"
        return self.schema

    @property
    def gold(self) -> str:
        """The SQL, of a turn that has some."""
        assert self.query is not None, "the turn has a gold query"
        return self.query

    @property
    def complete(self) -> str:
        """The rewrite, of a turn that has one."""
        assert self.rewrite is not None, "the turn has a rewrite"
        return self.rewrite


def examples(
    interactions: Iterable[Interaction],
    schemas: Mapping[str, Schema],
    databases: Mapping[str, Path],
) -> Iterator[Example]:
    """Yield every turn of the interactions, in order.

    A database without a SQLite file, in `databases` by db_id, is None in its examples.

    Raises:
        ValueError: A conversation's database has no schema.
    """
    for number, interaction in enumerate(interactions):
        name = interaction.db_id
        if name and name not in schemas:
            raise ValueError(f"interaction {number}: there is no schema of database {name!r}")
        said = tuple(turn.utterance for turn in interaction.turns)
        for index, turn in enumerate(interaction.turns):
            is_complete = turn.rewrite is None and name and not index
            rewrite = turn.utterance if is_complete else turn.rewrite
            yield Example(
                number, index, said[:index], turn.utterance, rewrite, turn.query,
                schemas.get(name), databases.get(name),
            )  # fmt: skip


def by_database(some: Iterable[Example]) -> dict[str, list[str]]:
    """Return utterances and rewrites by the database that they are about."""
    texts: dict[str, list[str]] = {}
    for example in some:
        name = "" if example.schema is None else example.schema.db_id
        texts.setdefault(name, []).extend((example.utterance, example.rewrite or ""))
    return texts


class DialogueData(Protocol):
    """Data of dialogues, after its `setup`."""

    def prepare_data(self) -> None:
        """Fetch what is read."""

    def setup(self, stage: str) -> None:
        """Read the dialogues."""

    def examples(self, part: str) -> list[Example]:
        """Return the turns of `train`, `val` or `test`."""
