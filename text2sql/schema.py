"""Database schemas: tables, columns and keys by index, from SQLite or Spider's tables.json."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, combinations, groupby
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict  # pydantic asks for this one below Python 3.12

from text2sql.execute import Database, Limits
from text2sql.guard import identifier
from text2sql.words import split_name, stem

Key = tuple[tuple[int, int], ...]
"""A foreign key: each of its columns with the one that it refers to."""

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


_LOOKED_AT = 1000  # rows of a table whose declared types say nothing
_KIND_HELD = {frozenset({"text"}): "text"} | {
    frozenset(numbers): "number" for numbers in (("integer",), ("real",), ("integer", "real"))
}


class _Entry(TypedDict):
    """What is read of an entry of a tables.json; pairs are of a table's index and a name."""

    db_id: str
    table_names: list[str]
    table_names_original: list[str]
    column_names: list[tuple[int, str]]
    column_names_original: list[tuple[int, str]]
    column_types: list[str]
    primary_keys: list[int | list[int]]
    foreign_keys: list[tuple[int, int]]


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
        primary_keys: Column indices; those of a table in the order of its key.
        foreign_keys: Pairs of column indices, each a column and the one that it refers to, in the
            order of the source.
        keys: The same pairs, those that are one key together; tables are joined over whole keys.
    """

    db_id: str
    tables: tuple[Table, ...]
    columns: tuple[Column, ...]
    primary_keys: tuple[int, ...]
    foreign_keys: tuple[tuple[int, int], ...]
    keys: tuple[Key, ...]

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
    def _joins(self) -> dict[tuple[int, int], dict[int, Key]]:
        """See `keys_between`; for tables in either order."""
        found: dict[tuple[int, int], dict[Key, None]] = {}
        for key in self.keys:
            own, its = (self.columns[column].table for column in key[0])
            if own != its:
                back = tuple((target, column) for column, target in key)
                found.setdefault((own, its), {})[key] = None
                found.setdefault((its, own), {})[back] = None
        return {tables: _told_apart(sorted(keys)) for tables, keys in found.items()}

    def keys_between(self, here: int, there: int) -> dict[int, Key]:
        """Return the foreign keys that join two tables, in either direction.

        Returns:
            Pairs of columns, of `here` and of `there`, by the column that tells the key from the
                others: of a source and a destination airport the column with the airport. Empty
                where no key joins the two.
        """
        return self._joins.get((here, there), {})

    @cached_property
    def neighbours(self) -> dict[int, tuple[int, ...]]:
        """For each table the others that a key joins with it, sorted."""
        found: dict[int, list[int]] = {table: [] for table in range(len(self.tables))}
        for here, there in sorted(self._joins):
            found[here].append(there)
        return {table: tuple(others) for table, others in found.items()}

    @cached_property
    def components(self) -> dict[int, int]:
        """For each table, the lowest table that keys connect it with, over others too."""
        found: dict[int, int] = {}
        for table in range(len(self.tables)):
            queue = [] if table in found else [table]
            found.setdefault(table, table)
            for here in queue:
                new = [other for other in self.neighbours[here] if other not in found]
                found.update(dict.fromkeys(new, table))
                queue += new
        return found

    @cached_property
    def joinable(self) -> Schema:
        """The schema with more keys: those that names tell, where no declared ones connect tables.

        Columns that are called like a table and its key (`orders.customer_id` refers to
        `customers.id`), and between other tables columns of equal name: those that look like keys,
        and where that leaves tables apart, the others. What says nothing about what a row belongs
        to, `id` or `name`, joins nothing. Several of Spider's schemas lack keys that their gold
        queries join over.
        """
        found = self
        for kinds in ((_references, _equal_keys), (_equal_names,)):
            joined: dict[tuple[int, int], list[Key]] = {}
            for kind in kinds:
                new: dict[tuple[int, int], list[Key]] = {}
                for one, other in kind(found):
                    here, there = self.columns[one].table, self.columns[other].table
                    if found.components[here] != found.components[there]:
                        new.setdefault((min(here, there), max(here, there)), []).append(
                            ((one, other),)
                        )
                joined = new | joined
            keys = chain.from_iterable(joined.values())
            found = replace(found, keys=(*found.keys, *keys)) if joined else found
        return found

    def joinable_with(self, table: int | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the tables with columns that can be joined with one, and their columns but `*`.

        Of None, all.
        """
        return self._joinable_with[None if table is None else self.joinable.components[table]]

    @cached_property
    def _joinable_with(self) -> dict[int | None, tuple[tuple[int, ...], tuple[int, ...]]]:
        members: dict[int | None, list[int]] = {None: [*range(len(self.tables))]}
        for table, component in sorted(self.joinable.components.items()):
            members.setdefault(component, []).append(table)
        return {
            component: (
                tuple(table for table in tables if self.tables[table].columns),
                tuple(sorted(chain.from_iterable(self.tables[t].columns for t in tables))),
            )
            for component, tables in members.items()
        }

    def join_path(self, tables: set[int]) -> tuple[tuple[int, int], ...] | None:
        """Return which tables are joined one after the other, over others where needed.

        Starts at the lowest table and takes the nearest missing one at each step; equal distances
        are decided by index.

        Returns:
            One pair for each table beyond the first, each (a table that is there already, the one
                that is added), in joining order; None if no keys connect them.
        """
        reached = {min(tables)}
        path: list[tuple[int, int]] = []
        while not tables <= reached:
            found = self._nearest(reached, tables - reached)
            if found is None:
                return None
            path += found
            reached |= {table for pair in found for table in pair}
        return tuple(path)

    def _nearest(self, reached: set[int], wanted: set[int]) -> list[tuple[int, int]] | None:
        """Breadth-first over keys, from any table reached to the first one wanted."""
        paths: dict[int, list[tuple[int, int]]] = {table: [] for table in sorted(reached)}
        queue = list(paths)
        for table in queue:
            if table in wanted:
                return paths[table]
            for other in self.neighbours[table]:
                if other not in paths:
                    paths[other] = [*paths[table], (table, other)]
                    queue.append(other)
        return None

    @classmethod
    def from_sqlite(cls, path: str | Path, seconds: float = 10.0) -> Schema:
        """Read the schema of a SQLite file, whose stem becomes `db_id`; nothing is written.

        A column whose declared type says nothing is of the kind that its first rows hold. A virtual
        table whose module this SQLite lacks is left out, with a warning that names it. Each part
        may take so many seconds, and another program's lock is waited for as long.

        Raises:
            ValueError: There is no such file, or it is no SQLite database.
        """
        path = Path(path)
        file = Database(path, Limits(seconds=seconds))
        tables: list[Table] = []
        columns = [Column("*", "*", -1, "text")]
        primary: list[int] = []
        try:
            for name in _readable(file):
                try:
                    described = file.catalogue(f"PRAGMA table_xinfo({identifier(name)})")
                except ValueError as error:
                    if not str(error).startswith("no such module"):
                        raise
                    warnings.warn(f"{path}: {name} is left out: {error}", stacklevel=2)
                    continue
                # Without those of a virtual table's own, which `*` leaves out.
                own = [row[1:] for row in described if row[6] != 1]
                kinds = {column: _kind(declared) for column, declared, *_ in own}
                kinds |= _held(file, name, [c for c, kind in kinds.items() if kind == "others"])
                first = len(columns)
                columns += [Column(c, split_name(c), len(tables), kinds[c]) for c, *_ in own]
                keyed = sorted((row[4], place) for place, row in enumerate(own, first) if row[4])
                primary += [place for _, place in keyed]
                tables.append(Table(name, split_name(name), tuple(range(first, len(columns)))))
            schema = cls(path.stem, tuple(tables), tuple(columns), tuple(primary), (), ())
            keys = tuple(
                key for index in range(len(tables)) for key in schema._declared(index, file)
            )
        except ValueError as error:
            raise ValueError(f"{path}: cannot be read as a SQLite database: {error}") from error
        return replace(schema, foreign_keys=tuple(chain.from_iterable(keys)), keys=keys)

    def _declared(self, table: int, file: Database) -> Iterator[Key]:
        """Read a table's foreign keys; one to a table or column that is not there says nothing."""
        rows = file.catalogue(f"PRAGMA foreign_key_list({identifier(self.tables[table].name)})")
        # Newest key first is SQLite's order; by number and part it is the file's.
        rows.sort(key=lambda row: (-row[0], row[1]))
        for _, parts in groupby(rows, lambda row: row[0]):
            pairs = [self._linked(table, *row[1:5]) for row in parts]
            found = tuple(pair for pair in pairs if pair is not None)
            if len(found) == len(pairs):
                yield found

    def _linked(
        self, table: int, part: int, target: str, name: str, to: str | None
    ) -> tuple[int, int] | None:
        """One column of a foreign key and what it refers to: without a name, the primary key."""
        source, other = self.find_column(table, name), self.find_table(target)
        if source is None or other is None:
            return None
        primary = [key for key in self.primary_keys if self.columns[key].table == other]
        implied = primary[part] if part < len(primary) else None
        there = implied if to is None else self.find_column(other, to)
        return None if there is None else (source, there)

    @classmethod
    def from_entry(cls, entry: Any, where: str = "entry") -> Schema:
        """Read an entry of a tables.json (Spider, arXiv 1809.08887), which errors call `where`.

        Raises:
            ValueError: A field is missing or of the wrong form; names it.
        """
        is_named = isinstance(entry, Mapping) and isinstance(entry.get("db_id"), str)
        where = f"{where} ({entry['db_id']})" if is_named else where
        found = _read_entry(entry, where)
        names = zip(found["column_names_original"], found["column_names"], strict=True)
        columns = tuple(
            Column(name, words, table, kind if kind in KINDS else "others")
            for ((table, name), (_, words)), kind in zip(names, found["column_types"], strict=True)
        )
        named = zip(found["table_names_original"], found["table_names"], strict=True)
        tables = tuple(
            Table(name, words, tuple(i for i, c in enumerate(columns) if c.table == index))
            for index, (name, words) in enumerate(named)
        )
        # Composite keys stand in newer files as lists within the list of primary keys.
        keys = [key if isinstance(key, list) else [key] for key in found["primary_keys"]]
        primary, foreign = tuple(chain.from_iterable(keys)), tuple(found["foreign_keys"])
        indices = [("primary_keys", index) for index in primary]
        indices += [
            (f"foreign_keys[{n}]", index) for n, pair in enumerate(foreign) for index in pair
        ]
        for place, index in indices:
            if not 0 < index < len(columns):
                raise ValueError(
                    f"{where}: {place}: {index} is no column; those are 1 to {len(columns) - 1}"
                )
        return cls(found["db_id"], tables, columns, primary, foreign, _grouped(foreign, columns))


def _read_entry(entry: Any, where: str) -> _Entry:
    """Return an entry of a tables.json whose lists fit each other."""
    from pydantic import TypeAdapter, ValidationError

    try:
        found = TypeAdapter(_Entry).validate_python(entry)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field, *steps = first["loc"] or ("it",)
        place = "".join(f"[{step}]" for step in steps if isinstance(step, int))
        words = first["msg"].replace("Input should be", "must be")
        raise ValueError(f"{where}: {field}{place}: {words}, has {first['input']!r:.40}") from error
    for one, other in (
        ("table_names", "table_names_original"),
        ("column_names", "column_names_original"),
        ("column_types", "column_names_original"),
    ):
        if len(entry[one]) != len(entry[other]):
            raise ValueError(
                f"{where}: {one} has {len(entry[one])} items, {other} {len(entry[other])}"
            )
    last = len(found["table_names"]) - 1
    for position, (table, name) in enumerate(found["column_names_original"] or [(0, "nothing")]):
        if not (0 <= table <= last if position else table == -1):
            wanted = f"index of a table, 0 to {last}" if position else "-1, of *"
            raise ValueError(
                f"{where}: column_names_original[{position}] must begin with the {wanted}: {name!r}"
            )
    return found


def read_tables(path: str | Path) -> dict[str, Schema]:
    """Read a tables.json, a list of entries in Spider's layout: every schema by its `db_id`.

    Raises:
        ValueError: There is no such file, it is not JSON, or an entry is malformed; names the file,
            the entry and the field.
    """
    schemas: dict[str, Schema] = {}
    for position, entry in enumerate(read_list(path, "schemas, one a database")):
        schema = Schema.from_entry(entry, f"{path}: entry {position}")
        if schema.db_id in schemas:
            raise ValueError(f"{path}: entry {position}: db_id {schema.db_id!r} stands there twice")
        schemas[schema.db_id] = schema
    return schemas


def read_list(path: str | Path, what: str) -> list[Any]:
    """Read a JSON file that must hold a list; `what` says in messages of what.

    Raises:
        ValueError: There is no such file, it is not JSON, or it is no list; names the file.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is not JSON: {error}") from error
    if not isinstance(content, list):
        raise ValueError(f"{path}: must be a list of {what}")
    return content


def _readable(file: Database) -> list[str]:
    """Tables, then views, in the order in which they were made, but for those that serve others."""
    inner = {row[1] for row in file.catalogue("PRAGMA table_list") if row[2] == "shadow"}
    made = file.catalogue(
        "SELECT type, name FROM sqlite_master WHERE substr(name, 1, 7) != 'sqlite_'"
    )
    tables, views = ([name for of, name in made if of == kind] for kind in ("table", "view"))
    return [name for name in tables if name not in inner] + [v for v in views if _works(file, v)]


def _held(file: Database, table: str, names: Sequence[str]) -> dict[str, str]:
    """The kinds of columns by what their first rows hold."""
    if not names:
        return {}
    columns = list(map(identifier, names))
    first = f"SELECT {', '.join(columns)} FROM {identifier(table)} LIMIT {_LOOKED_AT}"
    types = ", ".join(f"typeof({column})" for column in columns)
    quick = replace(file.limits, seconds=min(1.0, file.limits.seconds))
    rows = file.execute(f"SELECT DISTINCT {types} FROM ({first})", quick).rows
    held = [{*column} - {"null"} for column in zip(*rows, strict=True)] or [set()] * len(names)
    return {
        name: _KIND_HELD.get(frozenset(h), "others") for name, h in zip(names, held, strict=True)
    }


def _works(file: Database, view: str) -> bool:
    try:
        file.catalogue(f"SELECT 1 FROM {identifier(view)} LIMIT 0")
    except ValueError:
        return False
    return True


# --- keys ----------------------------------------------------------------------------------------

# Names of columns that tell rows of one table apart, and of those that tell what any row is like:
# that two tables have one of these says nothing about which rows belong together.
_IDENTIFIERS = frozenset(
    """id ids pk key keys code no nr num number uid uuid guid ref rowid""".split()  # noqa: SIM905
)
_DESCRIPTIONS = frozenset(
    """name title label description details comment comments note notes remark remarks type kind
    status state active date time day month year timestamp created updated modified createdat
    updatedat createdon updatedon startdate enddate starttime endtime value amount quantity total
    count price cost age sum weight height length size rank rating score order position url image
    text content""".split()  # noqa: SIM905
)

_SHARED = 40  # tables with a column of one name; in more of them, it tells no two apart


def _told_apart(keys: list[Key]) -> dict[int, Key]:
    """Name each of several keys by a column that none of the others has.

    A key all of whose columns are in others has no such column, and falls to them; the first one
    stays if that leaves none.
    """
    found: dict[int, Key] = {}
    columns = [{column for pair in key for column in pair} for key in keys]
    for place, key in enumerate(keys):
        others = set[int]().union(*columns[:place], *columns[place + 1 :])
        own = (column for side in zip(*key, strict=True) for column in side)
        mark = next((column for column in own if column not in others), None)
        if mark is not None:
            found[mark] = key
    return found or {keys[0][0][0]: keys[0]}


def _grouped(pairs: Sequence[tuple[int, int]], columns: Sequence[Column]) -> tuple[Key, ...]:
    """Put the pairs of a tables.json together to keys, which it lists pair by pair.

    Pairs of equal names between the same two tables are one key [D]: so are all of Spider's that
    have several columns, and a key from another role (source, destination) has another name.
    """
    groups: dict[object, list[tuple[int, int]]] = {}
    for place, (own, its) in enumerate(pairs):
        one, other = columns[own], columns[its]
        equal = one.name.lower() == other.name.lower()
        group = (one.table, other.table) if equal else place
        if (own, its) not in groups.setdefault(group, []):
            groups[group].append((own, its))
    return tuple(map(tuple, groups.values()))


def _compact(name: str) -> str:
    return "".join(char for char in name.lower() if char.isalnum())


def _references(schema: Schema) -> Iterator[tuple[int, int]]:
    """Find columns that are called like a table, or a table and its key.

    `customer_id`, `CustomerID`, `customerid`, `id_customer`, `fk_customer`, `customer` and
    `paying_customer_id`, `customer2_id` refer to the key of `customers`: the column with the rest
    of the name, if it tells rows apart, else the only primary key.
    """
    called: dict[str, list[int]] = {}
    for index, table in enumerate(schema.tables):
        called.setdefault(stem(_compact(table.name)), []).append(index)
    for own, column in enumerate(schema.columns[1:], 1):
        words = [_compact(word).rstrip("0123456789") for word in split_name(column.name).split()]
        for rest, name in dict.fromkeys(_readings([word for word in words if word])):
            for other in called.get(stem(name), ()):
                its = _key_called(schema, other, rest, column.kind)
                if other != column.table and its is not None:
                    yield own, its


def _readings(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Ways to read a column's name as (what is left, a table's name), but for a role around them.

    A role after them, as in `team_id_winner`, must follow the name of a key.
    """
    for first, last in combinations(range(len(words) + 1), 2):
        joined = "".join(words[first:last])
        for cut in range(len(joined), 1, -1):
            if last == len(words) or joined[cut:] in _IDENTIFIERS:
                yield joined[cut:], joined[:cut]
        if words[first] in _IDENTIFIERS and last == len(words):
            yield words[first], "".join(words[first + 1 :])


def _key_called(schema: Schema, table: int, rest: str, kind: str) -> int | None:
    """The column of a table that a name with this rest refers to."""
    own = schema.tables[table].columns
    primary = [column for column in schema.primary_keys if column in own]
    named = [column for column in own if _compact(schema.columns[column].name) == rest]
    if named and (rest in _IDENTIFIERS or named[0] in primary):
        return named[0]
    if rest:
        return primary[0] if len(primary) == 1 and rest in _IDENTIFIERS else None
    # A number that is called like a table stands for its key, a text may be the row's name.
    names = [column for column in own if _compact(schema.columns[column].name) == "name"]
    rows = [*primary, *names] if len(primary) < 2 else names
    return next((column for column in rows if schema.columns[column].kind == kind), None)


def _equal_keys(schema: Schema) -> Iterator[tuple[int, int]]:
    """Find columns of equal name that are a primary key or end as one does: `zip_code`."""
    for one, other in _equal_names(schema):
        last = split_name(schema.columns[one].name).split()[-1]
        if last in _IDENTIFIERS or not {one, other}.isdisjoint(schema.primary_keys):
            yield one, other


def _equal_names(schema: Schema) -> Iterator[tuple[int, int]]:
    """Find columns of equal name, but for names that any table's columns may have, or many have."""
    places: dict[str, list[int]] = {}
    for index, column in enumerate(schema.columns[1:], 1):
        name = _compact(column.name)
        if name and name not in _IDENTIFIERS | _DESCRIPTIONS:
            places.setdefault(name, []).append(index)
    for same in places.values():
        if len(same) <= _SHARED:
            yield from combinations(same, 2)


def _kind(declared: str) -> str:
    lowered = declared.lower()
    return next(
        (kind for kind, words in _AFFINITY if any(word in lowered for word in words)), "others"
    )
