"""What the generated dialogues are about: small domains in domains.yaml, and rows that are drawn.

The last three domains are for testing: no other dialogue is about them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from typing_extensions import TypedDict

from datamodules.settings import read_table


@dataclass(frozen=True)
class Field:
    """A column that people ask about.

    Args:
        words: Its name for people.
        values: What it may hold: texts, or the bounds of whole numbers.
        phrase: Of a text: how a row is said to have one, "from {}". Empty for the row's own name.
        more: Of a number: "older than"; with `less`, `most` and `least`: "younger than", "oldest",
            "youngest".
        less: See `more`.
        most: See `more`.
        least: See `more`.
    """

    words: str
    values: tuple[str, ...] | tuple[int, int]
    phrase: str = ""
    more: str = ""
    less: str = ""
    most: str = ""
    least: str = ""

    @property
    def is_number(self) -> bool:
        """Whether it holds numbers."""
        return bool(self.more)


@dataclass(frozen=True)
class Things:
    """A table of a domain.

    Args:
        noun: What one row is.
        fields: Its columns but for keys; the first one holds the row's own name.
        parent: The noun of the table that its foreign key refers to; "" for none.
        relation: What stands between the two: albums BY singers.
        person: Whether a row is a person.
    """

    noun: str
    fields: tuple[Field, ...]
    parent: str = ""
    relation: str = ""
    person: bool = False

    @property
    def name(self) -> Field:
        """The column with the row's own name."""
        return self.fields[0]

    @property
    def numbers(self) -> list[Field]:
        """The columns that hold numbers."""
        return [field for field in self.fields if field.is_number]

    @property
    def categories(self) -> list[Field]:
        """The columns that hold texts which rows share."""
        return [field for field in self.fields if field.phrase]

    def field(self, words: str) -> Field:
        """The column of that name."""
        return next(field for field in self.fields if field.words == words)


@dataclass(frozen=True)
class Domain:
    """A generated database: its tables, parents first, and how it writes names (YearlyPay)."""

    db_id: str
    tables: tuple[Things, ...]
    style: Literal["snake", "camel", "upper"] = "snake"

    def table(self, noun: str) -> Things:
        """The table whose rows are called so."""
        return next(things for things in self.tables if things.noun == noun)

    def children(self, noun: str) -> list[Things]:
        """The tables whose foreign key refers to that table."""
        return [things for things in self.tables if things.parent == noun]

    def written(self, words: str) -> str:
        """A name as the database writes it."""
        if self.style == "camel":
            return "".join(word.capitalize() for word in words.split())
        joined = words.replace(" ", "_")
        return joined.upper() if self.style == "upper" else joined


class Table(TypedDict):
    """What stands in domains.yaml; `numbers` and `columns` are what its domains refer to."""

    numbers: dict[str, dict[str, str]]
    columns: dict[str, Field]
    domains: tuple[Domain, ...]


@cache
def domains() -> tuple[Domain, ...]:
    """Return the domains of the table."""
    table: Table = read_table(Path(__file__).with_suffix(".yaml"), Table)
    return table["domains"]


def databases_for_testing() -> tuple[str, ...]:
    """Return the names of the databases that only test dialogues are about."""
    return tuple(domain.db_id for domain in domains()[-3:])


# --- rows ------------------------------------------------------------------------------------

Row = dict[str, str | int]


@dataclass(frozen=True)
class World:
    """A domain with its rows by noun; these have fields, an "id" and, with a parent, "parent"."""

    domain: Domain
    rows: Mapping[str, tuple[Row, ...]]

    def script(self) -> str:
        """The database as SQL: tables, keys and rows."""
        lines = []
        for things in self.domain.tables:
            written = self.domain.written
            key = written(f"{things.noun} id")
            columns = [f"{key} INTEGER PRIMARY KEY"]
            columns += [
                f"{written(field.words)} {'INTEGER' if field.is_number else 'TEXT'}"
                for field in things.fields
            ]
            names = ["id", *(field.words for field in things.fields)]
            if things.parent:
                parent = written(f"{things.parent} id")
                target = f"{written(things.parent)} ({parent})"
                columns += [f"{parent} INTEGER", f"FOREIGN KEY ({parent}) REFERENCES {target}"]
                names.append("parent")
            lines.append(f"CREATE TABLE {written(things.noun)} ({', '.join(columns)});")
            for row in self.rows[things.noun]:
                values = ", ".join(
                    f"'{value}'" if isinstance(value, str) else str(value)
                    for value in map(row.__getitem__, names)
                )
                lines.append(f"INSERT INTO {written(things.noun)} VALUES ({values});")
        return "\n".join(lines)


def make_worlds(seed: int) -> dict[str, World]:
    """Draw the rows of every domain's database; another seed, other rows in the same tables."""
    return {domain.db_id: _make_world(domain, seed) for domain in domains()}


def _make_world(domain: Domain, seed: int) -> World:
    draw = random.Random(f"{seed} {domain.db_id} rows")
    rows: dict[str, tuple[Row, ...]] = {}
    for things in domain.tables:
        count = min(
            draw.randint(20, 30) if things.parent else draw.randint(9, 14), len(things.name.values)
        )
        names = draw.sample([str(value) for value in things.name.values], count)
        # Some parents have no child, so that asking for those finds something.
        parents = [row["id"] for row in rows[things.parent]][2:] if things.parent else []
        made = []
        for number, name in enumerate(names, start=1):
            row: Row = {"id": number, things.name.words: name}
            for field in things.fields[1:]:
                if field.is_number:
                    low, high = (int(value) for value in field.values)
                    row[field.words] = draw.randint(low, high)
                else:
                    row[field.words] = draw.choice([str(value) for value in field.values])
            if parents:
                row["parent"] = draw.choice(parents)
            made.append(row)
        rows[things.noun] = tuple(made)
    return World(domain, rows)
