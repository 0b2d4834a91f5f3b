"""Database schemas: tables, columns and keys by index, from SQLite or Spider's tables.json."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

# Spider's words for a column's content; `others` is what fits none of the rest.
KINDS = ("text", "number", "time", "boolean", "others")
# A declared SQLite type is one of these kinds if it contains one of the words (SQLite's affinity
# works in the same way); the first match counts.
_AFFINITY = (
    ("boolean", ("bool", "bit")),
    ("time", ("date", "time", "year")),
    ("number", ("int", "real", "floa", "doub", "num", "dec", "money")),
    ("text", ("char", "clob", "text", "string")),
)
_FIELDS = {
    "db_id": str,
    "table_names": list,
    "table_names_original": list,
    "column_names": list,
    "column_names_original": list,
    "column_types": list,
    "primary_keys": list,
    "foreign_keys": list,
}


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table, or `*`.

    Args:
        name: As the database writes it.
        words: Its name for people, lower case, such as "stadium id".
        table: Index of its table; -1 for `*`.
        kind: One of KINDS.
    """

    name: str
    words: str
    table: int
    kind: str


@dataclass(frozen=True, slots=True)
class Table:
    """A table.

    Args:
        name: As the database writes it.
        words: Its name for people, lower case.
        columns: Indices of its columns, in their order.
    """

    name: str
    words: str
    columns: tuple[int, ...]


@dataclass(frozen=True)
class Schema:
    """A database's tables, columns and keys; everything else in this package names them by index.

    Column 0 is `*`. Names are found without regard to case, as SQL has it.

    Args:
        db_id: The database's name.
        tables: In the order of the source.
        columns: In the order of the source, table by table.
        primary_keys: Column indices.
        foreign_keys: Pairs of column indices, each a column and the one that it refers to.
    """

    db_id: str
    tables: tuple[Table, ...]
    columns: tuple[Column, ...]
    primary_keys: tuple[int, ...]
    foreign_keys: tuple[tuple[int, int], ...]

    def find_table(self, name: str) -> int | None:
        """Return a table's index, None if there is no such table."""
        return self._tables.get(name.lower())

    def find_column(self, table: int, name: str) -> int | None:
        """Return the index of a table's column, None if it has no such column."""
        return self._columns.get((table, name.lower()))

    def full_name(self, column: int) -> str:
        """Return `table.column` of a column's index; `*` is itself."""
        found = self.columns[column]
        return found.name if found.table < 0 else f"{self.tables[found.table].name}.{found.name}"

    @cached_property
    def _tables(self) -> dict[str, int]:
        return {table.name.lower(): index for index, table in enumerate(self.tables)}

    @cached_property
    def _columns(self) -> dict[tuple[int, str], int]:
        return {(column.table, column.name.lower()): i for i, column in enumerate(self.columns)}

    @cached_property
    def merged(self) -> dict[int, int]:
        """For every column under a foreign key, the column that stands for it and all its equals.

        The grouping is that of Spider's evaluation: a key joins the first group that holds one of
        its columns, and two groups that meet later stay two (the later one then counts).
        """
        groups: list[set[int]] = []
        for pair in self.foreign_keys:
            group = next((known for known in groups if not known.isdisjoint(pair)), None)
            if group is None:
                group = set()
                groups.append(group)
            group.update(pair)
        return {column: min(group) for group in groups for column in group}

    @cached_property
    def neighbours(self) -> dict[int, tuple[tuple[int, int, int], ...]]:
        """The foreign-key graph: for each table, (other table, own column, its column), sorted."""
        edges: dict[int, set[tuple[int, int, int]]] = {i: set() for i in range(len(self.tables))}
        for source, target in self.foreign_keys:
            here, there = self.columns[source].table, self.columns[target].table
            edges[here].add((there, source, target))
            edges[there].add((here, target, source))
        return {table: tuple(sorted(found)) for table, found in edges.items()}

    @cached_property
    def components(self) -> dict[int, int]:
        """For each table, the lowest table that foreign keys connect it with, over others too."""
        found: dict[int, int] = {}
        for table in range(len(self.tables)):
            queue = [] if table in found else [table]
            found.setdefault(table, table)
            for here in queue:
                new = [other for other, *_ in self.neighbours[here] if other not in found]
                found.update(dict.fromkeys(new, table))
                queue += new
        return found

    @cached_property
    def joinable(self) -> Schema:
        """The schema with more foreign keys: columns of equal name where no keys connect tables.

        Several of Spider's schemas lack keys that their gold queries join over.
        """
        places: dict[str, list[int]] = {}
        for index, column in enumerate(self.columns[1:], 1):
            places.setdefault(column.name.lower(), []).append(index)
        of = [self.components.get(column.table, -1) for column in self.columns]
        added = [
            (one, other)
            for same in places.values()
            for position, one in enumerate(same)
            for other in same[position + 1 :]
            if of[one] != of[other]
        ]
        keys = (*self.foreign_keys, *added)
        return replace(self, foreign_keys=keys) if added else self

    def join_path(self, tables: set[int]) -> tuple[tuple[int, int], ...] | None:
        """Return pairs of columns whose equality joins the tables, over others where needed.

        Starts at the lowest table and takes the nearest missing one at each step; equal distances
        are decided by index.

        Args:
            tables: Indices of at least one table.

        Returns:
            One pair for each table beyond the first, each (column of a table that is there already,
            column of the one that it adds), in joining order; None if no keys connect them.
        """
        reached = {min(tables)}
        path: list[tuple[int, int]] = []
        while not tables <= reached:
            found = self._nearest(reached, tables - reached)
            if found is None:
                return None
            path += found
            reached |= {self.columns[column].table for pair in found for column in pair}
        return tuple(path)

    def _nearest(self, reached: set[int], wanted: set[int]) -> list[tuple[int, int]] | None:
        """Breadth-first over foreign keys, from any table reached to the first one wanted."""
        paths: dict[int, list[tuple[int, int]]] = {table: [] for table in sorted(reached)}
        queue = list(paths)
        for table in queue:
            if table in wanted:
                return paths[table]
            for other, own, its in self.neighbours[table]:
                if other not in paths:
                    paths[other] = [*paths[table], (own, its)]
                    queue.append(other)
        return None

    @classmethod
    def from_sqlite(cls, path: str | Path) -> Schema:
        """Read the schema of a SQLite file; nothing is written.

        Args:
            path: The file; its stem becomes `db_id`.

        Raises:
            ValueError: There is no such file, or it is no SQLite database.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"{path}: no such SQLite file")
        tables: list[Table] = []
        columns = [Column("*", "*", -1, "text")]
        primary: list[int] = []
        links: list[tuple[int, str, str, str | None, int]] = []
        try:
            with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as db:
                db.text_factory = lambda raw: raw.decode(errors="ignore")
                names = [
                    row[0]
                    for row in db.execute("SELECT name FROM sqlite_master WHERE type='table'")
                ]
                for index, name in enumerate(names):
                    quoted = name.replace('"', '""')
                    first = len(columns)
                    for row in db.execute(f'PRAGMA table_info("{quoted}")').fetchall():
                        if row[5]:
                            primary.append(len(columns))
                        columns.append(Column(row[1], _words(row[1]), index, _kind(row[2])))
                    tables.append(Table(name, _words(name), tuple(range(first, len(columns)))))
                    # Newest key first is SQLite's order; by number and part it is the file's.
                    keys = db.execute(f'PRAGMA foreign_key_list("{quoted}")').fetchall()
                    for row in sorted(keys, key=lambda key: (-key[0], key[1])):
                        links.append((index, row[3], row[2], row[4], row[1]))
        except sqlite3.Error as error:
            raise ValueError(f"{path}: cannot be read as a SQLite database: {error}") from error
        schema = cls(path.stem, tuple(tables), tuple(columns), tuple(primary), ())
        return cls(
            path.stem, schema.tables, schema.columns, schema.primary_keys, schema._linked(links)
        )

    def _linked(
        self, links: list[tuple[int, str, str, str | None, int]]
    ) -> tuple[tuple[int, int], ...]:
        """Resolve foreign keys; one to a table or column that is not there says nothing."""
        found = []
        for table, name, target, column, part in links:
            source, other = self.find_column(table, name), self.find_table(target)
            if other is None:
                continue
            keys = [key for key in self.primary_keys if self.columns[key].table == other]
            implied = keys[part] if column is None and part < len(keys) else None
            there = implied if column is None else self.find_column(other, column)
            if source is not None and there is not None:
                found.append((source, there))
        return tuple(found)

    @classmethod
    def from_entry(cls, entry: Any, where: str = "entry") -> Schema:
        """Read one entry of a tables.json (Spider, arXiv 1809.08887).

        Args:
            entry: The decoded entry.
            where: What errors call it.

        Raises:
            ValueError: A field is missing or of the wrong form; names it.
        """
        if not isinstance(entry, Mapping):
            raise ValueError(f"{where}: must be an object with {', '.join(_FIELDS)}")
        where = f"{where} ({entry['db_id']})" if isinstance(entry.get("db_id"), str) else where
        for field, kind in _FIELDS.items():
            if not isinstance(entry.get(field), kind):
                has = repr(entry[field])[:40] if field in entry else "nothing"
                raise ValueError(
                    f"{where}: {field} must be a {'list' if kind is list else 'string'}, has {has}"
                )
        names, originals = entry["column_names"], entry["column_names_original"]
        tables, table_words = entry["table_names_original"], entry["table_names"]
        for one, other in (
            ("table_names", "table_names_original"),
            ("column_names", "column_names_original"),
            ("column_types", "column_names_original"),
        ):
            if len(entry[one]) != len(entry[other]):
                raise ValueError(
                    f"{where}: {one} has {len(entry[one])} items, {other} {len(entry[other])}"
                )
        for field in ("table_names", "table_names_original", "column_types"):
            for position, name in enumerate(entry[field]):
                if not isinstance(name, str):
                    raise ValueError(f"{where}: {field}[{position}] must be a string: {name!r}")
        for field, listed in (("column_names", names), ("column_names_original", originals)):
            for position, pair in enumerate(listed):
                lowest, highest = (0, len(tables) - 1) if position else (-1, -1)
                if not (
                    isinstance(pair, list)
                    and len(pair) == 2
                    and isinstance(pair[0], int)
                    and isinstance(pair[1], str)
                    and lowest <= pair[0] <= highest
                ):
                    raise ValueError(
                        f"{where}: {field}[{position}] must be "
                        + ("[index of a table, name]" if position else '[-1, "*"]')
                        + f": {pair!r}"
                    )
        if not originals:
            raise ValueError(f"{where}: column_names_original must begin with [-1, '*']")
        columns = tuple(
            Column(original, words, table, kind if kind in KINDS else "others")
            for (table, original), (_, words), kind in zip(
                originals, names, entry["column_types"], strict=True
            )
        )
        return cls(
            entry["db_id"],
            tuple(
                Table(name, words, tuple(i for i, c in enumerate(columns) if c.table == index))
                for index, (name, words) in enumerate(zip(tables, table_words, strict=True))
            ),
            columns,
            tuple(_indices(entry["primary_keys"], len(columns), f"{where}: primary_keys")),
            tuple(
                (pair[0], pair[1])
                for position, key in enumerate(entry["foreign_keys"])
                for pair in [
                    list(_indices(key, len(columns), f"{where}: foreign_keys[{position}]", 2))
                ]
            ),
        )

    def to_entry(self) -> dict[str, Any]:
        """Return the schema as an entry of a tables.json."""
        return {
            "db_id": self.db_id,
            "table_names": [table.words for table in self.tables],
            "table_names_original": [table.name for table in self.tables],
            "column_names": [[column.table, column.words] for column in self.columns],
            "column_names_original": [[column.table, column.name] for column in self.columns],
            "column_types": [column.kind for column in self.columns],
            "primary_keys": list(self.primary_keys),
            "foreign_keys": [list(pair) for pair in self.foreign_keys],
        }


def read_tables(path: str | Path) -> dict[str, Schema]:
    """Read a tables.json: every schema by its `db_id`.

    Args:
        path: The file, a list of entries in Spider's layout.

    Raises:
        ValueError: There is no such file, it is not JSON, or an entry is malformed; names the
            file, the entry and the field.
    """
    schemas: dict[str, Schema] = {}
    for position, entry in enumerate(read_list(path, "schemas, one a database")):
        schema = Schema.from_entry(entry, f"{path}: entry {position}")
        if schema.db_id in schemas:
            raise ValueError(f"{path}: entry {position}: db_id {schema.db_id!r} stands there twice")
        schemas[schema.db_id] = schema
    return schemas


def read_list(path: str | Path, what: str) -> list[Any]:
    """Read a JSON file that must hold a list.

    Args:
        path: The file.
        what: What it is a list of, for messages.

    Raises:
        ValueError: There is no such file, it is not JSON, or it is no list; names the file.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path}: is not JSON: {error}") from error
    if not isinstance(content, list):
        raise ValueError(f"{path}: must be a list of {what}")
    return content


def _indices(values: Any, count: int, where: str, length: int | None = None) -> Iterator[int]:
    flat = isinstance(values, list) and (length is None or len(values) == length)
    if not flat:
        raise ValueError(f"{where}: must be a list of {length or 'column'} indices: {values!r}")
    for value in values:
        # Composite keys stand in newer files as lists within the list of primary keys.
        for index in value if isinstance(value, list) and length is None else [value]:
            if not (isinstance(index, int) and 0 < index < count):
                raise ValueError(f"{where}: {index!r} is no column; those are 1 to {count - 1}")
            yield index


def _words(name: str) -> str:
    """Split a name at underscores and at the humps of camel case."""
    spaced = "".join(
        f" {char}" if char.isupper() and name[i - 1 : i].islower() else char
        for i, char in enumerate(name)
    )
    return " ".join(spaced.replace("_", " ").lower().split())


def _kind(declared: str) -> str:
    lowered = declared.lower()
    return next(
        (kind for kind, words in _AFFINITY if any(word in lowered for word in words)), "others"
    )
