"""The SQL of Spider, SParC and CoSQL as a tree: text to tree, tree to text, columns by index.

The benchmarks' official evaluation reads a restricted SQL, and a prediction outside of it counts
as wrong. That language is reproduced here from its definition (arXiv 1809.08887 and the behaviour
of its published evaluator), quirks included, because agreement is decided at its borders.
General SQL parsers accept another language, so none is used:

* tokens are those of English word splitting: `a=1` is one word and not understood, `a = 1` is;
* single and double quotes are the same; an odd number of them is an error;
* `AS` names tables only; aliases hold for the whole text, and the last definition of one counts;
* joins are inner joins by `JOIN`; commas, `LEFT JOIN` and named sub-queries are errors;
* a list after `IN` is an error, a sub-query or one value is not;
* what follows a complete query is ignored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from text2sql.schema import Schema

AGGREGATES = ("max", "min", "count", "sum", "avg")
ARITHMETIC = ("-", "+", "*", "/")
COMPARISONS = (
    "not", "between", "=", ">", "<", ">=", "<=", "!=", "in", "like", "is", "exists",
)  # fmt: skip
COMBINATIONS = ("intersect", "union", "except")
_CLAUSES = frozenset(
    ("select", "from", "where", "group", "order", "limit", "intersect", "union", "except")
)
_JOINING = frozenset(("join", "on", "as"))
STAR = 0  # the index of `*` among a schema's columns


class SqlError(ValueError):
    """A text that the benchmarks' SQL does not contain, or a name that the schema does not have."""


@dataclass(frozen=True, slots=True)
class ColumnUnit:
    """A column, perhaps aggregated.

    Args:
        column: Index in the schema; STAR for `*`.
        aggregate: One of AGGREGATES, or "".
        distinct: Whether `DISTINCT` stands before the column.
        occurrence: Which occurrence of the column's table in the FROM clause is meant, from 0:
            tells the sides of a self-join apart. Comparison ignores it, as the official one does.
    """

    column: int
    aggregate: str = ""
    distinct: bool = False
    occurrence: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class ValueUnit:
    """A column unit, or two that arithmetic joins.

    Args:
        left: The first.
        operator: One of ARITHMETIC, or "".
        right: The second; None without operator.
    """

    left: ColumnUnit
    operator: str = ""
    right: ColumnUnit | None = None


@dataclass(frozen=True, slots=True)
class SelectItem:
    """What a column of the result holds.

    Args:
        value: The unit.
        aggregate: Around it: one of AGGREGATES, or "".
    """

    value: ValueUnit
    aggregate: str = ""


# A number, a text (without quotes), a column or a sub-query.
Value: TypeAlias = "float | str | ColumnUnit | Query"


@dataclass(frozen=True, slots=True)
class Condition:
    """A comparison.

    Args:
        left: What is compared.
        operator: One of COMPARISONS.
        right: What it is compared with.
        upper: The upper bound of `between`, else None.
        negated: Whether `NOT` stands before the operator.
    """

    left: ValueUnit
    operator: str
    right: Value
    upper: Value | None = None
    negated: bool = False


# Comparisons and the words `and`, `or` between them, as they stand. The language has no brackets
# around conditions, so that no tree is needed.
Conditions = tuple[Condition | str, ...]


@dataclass(frozen=True, slots=True)
class Query:
    """A query of one SELECT, with what it is combined with.

    Args:
        select: What the result's columns hold.
        sources: Table indices and sub-queries of FROM, in order.
        on: The join conditions.
        where: Conditions on rows.
        group_by: Columns.
        having: Conditions on groups.
        order_by: What is sorted by.
        order: "asc", "desc", or "" without ORDER BY; of several directions the last one.
        limit: Number of rows, None for all. A limit that is no number is 1.
        distinct: Whether the SELECT has DISTINCT.
        combination: One of COMBINATIONS, or "".
        combined: The query after it.
    """

    select: tuple[SelectItem, ...]
    sources: tuple[int | Query, ...]
    on: Conditions = ()
    where: Conditions = ()
    group_by: tuple[ColumnUnit, ...] = ()
    having: Conditions = ()
    order_by: tuple[ValueUnit, ...] = ()
    order: str = ""
    limit: int | None = None
    distinct: bool = False
    combination: str = ""
    combined: Query | None = None


def columns_of(*parts: SelectItem | Condition | ValueUnit | Value | None) -> Iterator[ColumnUnit]:
    """Yield the columns that parts of a query name; those of queries inside are not among them."""
    for part in parts:
        if isinstance(part, ColumnUnit):
            yield part
        elif isinstance(part, ValueUnit):
            yield from columns_of(part.left, part.right)
        elif isinstance(part, SelectItem):
            yield from columns_of(part.value)
        elif isinstance(part, Condition):
            yield from columns_of(part.left, part.right, part.upper)


# --- text to tokens ------------------------------------------------------------------------------

# Word splitting by the rules of the Penn Treebank (Robert MacIntyre's, as NLTK applies them), as
# far as they can meet in a text whose quoted parts are masked.
_SENTENCE_END = re.compile(r"(?<=[.?!])\s+")
_FINAL_PERIOD = re.compile(r"(?<=[^.])\.(?=[\])}>»”’ ]*$)")  # noqa: RUF001
_COMMA = re.compile(r"([:,])(\D)|([:,])$")
_MARKS = re.compile(r"[;@#$%&?!*\[\](){}<>«“‘„»”’‒–—―]|`+|\.{2,}|--")  # noqa: RUF001
_CONTRACTION = re.compile(r"\b(can(?=not\b)|gim(?=me\b)|gon(?=na\b)|got(?=ta\b)|lem(?=me\b))")
_WANNA = re.compile(r"\bwan(?=na\s)")
_QUOTED = re.compile('"[^"]*"')


def tokenise(text: str) -> list[str]:
    """Split a text into the benchmarks' tokens: lower case, but for quoted texts (with quotes).

    Args:
        text: Any text.

    Raises:
        SqlError: Its quotes are odd in number.
    """
    text = text.replace("'", '"')
    if text.count('"') % 2:
        raise SqlError("an odd number of quotes")
    quoted: dict[str, str] = {}

    def mask(match: re.Match[str]) -> str:
        key = f"__val_{match.start()}_{match.end()}__"
        quoted[key] = match.group()
        return key

    words: list[str] = []
    for sentence in _SENTENCE_END.split(_QUOTED.sub(mask, text)):
        line = _FINAL_PERIOD.sub(" . ", sentence.rstrip())
        line = _COMMA.sub(lambda m: f" {m[1]} {m[2]}" if m[1] else f" {m[3]} ", line)
        line = _MARKS.sub(r" \g<0> ", line).lower()
        line = _WANNA.sub("wan ", _CONTRACTION.sub(r"\1 ", f"{line} "))
        words += line.split()
    tokens: list[str] = []
    for word in words:
        if word == "=" and tokens and tokens[-1] in ("!", ">", "<"):
            tokens[-1] += "="
        else:
            tokens.append(quoted.get(word, word))
    return tokens


# --- tokens to tree ------------------------------------------------------------------------------


def parse(text: str, schema: Schema, scoped: bool = False) -> Query:
    """Read a query of the benchmarks' SQL.

    Args:
        text: The query; what follows it is ignored.
        schema: What its names mean.
        scoped: Let an alias mean what it means in SQL: the table of its own FROM. The official
            evaluation knows one meaning for each alias in the whole text, the last one; a model
            learns better from trees that are right.

    Raises:
        SqlError: It is outside of that language, or names what the schema does not have.
    """
    try:
        return _Parser(tokenise(text), schema, scoped=scoped).query(0)[1]
    except RecursionError as error:
        raise SqlError("nested too deeply") from error


@dataclass(slots=True)
class _Scope:
    """What names mean in a query: its tables, in order, and table and occurrence by alias."""

    tables: list[int]
    aliases: dict[str, tuple[int, int]]


class _Parser:
    """Recursive descent. Every method takes a position and returns the next one with what it read.

    Args:
        tokens: Of the whole text, or of a part of it.
        schema: What its names mean.
        aliases: What `AS` defines in the whole text; None to look for it among the tokens.
        scoped: As in `parse`.
    """

    def __init__(
        self,
        tokens: list[str],
        schema: Schema,
        aliases: dict[str, str] | None = None,
        scoped: bool = False,
    ) -> None:
        self.tokens, self.schema, self.scoped = tokens, schema, scoped
        self.aliases: dict[str, str] = aliases or {}
        if aliases is not None:
            return
        for position, token in enumerate(tokens):
            if token == "as":
                self.aliases[self.at(position + 1)] = tokens[position - 1]
        for table in schema.tables:
            if table.name.lower() in self.aliases:
                raise SqlError(f"the alias {table.name} is a table's name")

    def at(self, position: int) -> str:
        if position >= len(self.tokens):
            raise SqlError("the query ends too early")
        return self.tokens[position]

    def has(self, position: int, *words: str) -> bool:
        return position < len(self.tokens) and self.tokens[position] in words

    def expect(self, position: int, word: str) -> int:
        if self.at(position) != word:
            raise SqlError(f"{word!r} expected, not {self.tokens[position]!r}")
        return position + 1

    def ends_clause(self, position: int) -> bool:
        return position < len(self.tokens) and (
            self.tokens[position] in _CLAUSES or self.tokens[position] in (")", ";")
        )

    def query(self, start: int) -> tuple[int, Query]:
        in_block = self.at(start) == "("
        end, sources, on, scope = self.from_clause(start)
        select, distinct = self.select(start + in_block, scope)
        position, where = self.conditions_after("where", end, scope)
        position, group_by = self.group_by(position, scope)
        position, having = self.conditions_after("having", position, scope)
        position, order_by, order = self.order_by(position, scope)
        limit = None
        if self.has(position, "limit"):
            number = self.at(position + 1)
            limit = int(number) if number.isdecimal() and len(number) < 19 else 1
            position += 2
        while self.has(position, ";"):
            position += 1
        if in_block:
            position = self.expect(position, ")")
        while self.has(position, ";"):
            position += 1
        combination, combined = "", None
        if self.has(position, *COMBINATIONS):
            combination = self.tokens[position]
            position, combined = self.query(position + 1)
        return position, Query(
            select, sources, on, where, group_by, having, order_by, order, limit, distinct,
            combination, combined,
        )  # fmt: skip

    def from_clause(self, start: int) -> tuple[int, tuple[int | Query, ...], Conditions, _Scope]:
        """Read FROM first: what SELECT's columns mean depends on it."""
        if "from" not in self.tokens[start:]:
            raise SqlError("no FROM")
        position = self.tokens.index("from", start) + 1
        sources: list[int | Query] = []
        scope = _Scope([], {})
        on: list[Condition | str] = []
        while position < len(self.tokens):
            in_block = self.tokens[position] == "("
            position += in_block
            if self.at(position) == "select":
                position, inner = self.query(position)
                sources.append(inner)
            else:
                position += self.tokens[position] == "join"
                name = self.at(position)
                table = self.table(name)
                if self.has(position + 1, "as"):
                    alias = self.at(position + 2)
                    scope.aliases[alias] = (table, scope.tables.count(table))
                    position += 3
                else:
                    position += 1
                sources.append(table)
                scope.tables.append(table)
            if self.has(position, "on"):
                position, conditions = self.conditions(position + 1, scope)
                on += ["and", *conditions] if on else conditions
            if in_block:
                position = self.expect(position, ")")
            if self.ends_clause(position):
                break
        return position, tuple(sources), tuple(on), scope

    def table(self, name: str) -> int:
        # A chain of aliases is followed one step, as in the definition.
        found = self.schema.find_table(self.aliases.get(name, name))
        if found is None:
            raise SqlError(f"no table {name!r}")
        return found

    def select(self, start: int, scope: _Scope) -> tuple[tuple[SelectItem, ...], bool]:
        position = self.expect(start, "select")
        distinct = self.has(position, "distinct")
        position += distinct
        items: list[SelectItem] = []
        while position < len(self.tokens) and self.tokens[position] not in _CLAUSES:
            aggregate = ""
            if self.tokens[position] in (*AGGREGATES, "none"):
                aggregate = self.tokens[position].removeprefix("none")
                position += 1
            position, value = self.value_unit(position, scope)
            items.append(SelectItem(value, aggregate))
            position += self.has(position, ",")
        return tuple(items), distinct

    def column(self, position: int, scope: _Scope) -> tuple[int, int]:
        """Return a column's index and the occurrence of its table."""
        token = self.at(position)
        if token == "*":
            return STAR, 0
        if "." in token:
            alias, _, name = token.partition(".")
            here = scope.aliases.get(alias)
            table = here[0] if here and self.scoped else self.table(alias)
            found = self.schema.find_column(table, name)
            if found is None or "." in name:
                raise SqlError(f"no column {token!r}")
            return found, here[1] if here and here[0] == table else 0
        for table in scope.tables:
            found = self.schema.find_column(table, token)
            if found is not None:
                return found, 0
        raise SqlError(f"no column {token!r} in the tables of its FROM")

    def column_unit(self, position: int, scope: _Scope) -> tuple[int, ColumnUnit]:
        in_block = self.at(position) == "("
        position += in_block
        if self.at(position) in (*AGGREGATES, "none"):
            aggregate = self.tokens[position].removeprefix("none")
            position = self.expect(position + 1, "(")
            distinct = self.at(position) == "distinct"
            position += distinct
            column, occurrence = self.column(position, scope)
            # A bracket around the aggregate stays open: its end is left to what comes after.
            return self.expect(position + 1, ")"), ColumnUnit(
                column, aggregate, distinct, occurrence
            )
        distinct = self.tokens[position] == "distinct"
        position += distinct
        column, occurrence = self.column(position, scope)
        position += 1
        if in_block:
            position = self.expect(position, ")")
        return position, ColumnUnit(column, "", distinct, occurrence)

    def value_unit(self, position: int, scope: _Scope) -> tuple[int, ValueUnit]:
        in_block = self.at(position) == "("
        position, left = self.column_unit(position + in_block, scope)
        operator, right = "", None
        if self.has(position, *ARITHMETIC, "none"):
            operator = self.tokens[position].removeprefix("none")
            position, right = self.column_unit(position + 1, scope)
        if in_block:
            position = self.expect(position, ")")
        return position, ValueUnit(left, operator, right)

    def value(self, start: int, scope: _Scope) -> tuple[int, Value]:
        in_block = self.at(start) == "("
        position = start + in_block
        token = self.at(position)
        value: Value
        if token == "select":
            position, value = self.query(position)
        elif '"' in token:
            value, position = token[1:-1], position + 1
        else:
            try:
                value, position = float(token), position + 1
            except ValueError:
                end = position
                while end < len(self.tokens) and not (
                    self.tokens[end] in (",", ")", "and")
                    or self.tokens[end] in _CLAUSES
                    or self.tokens[end] in _JOINING
                ):
                    end += 1
                # All words up to there are the value; those after its column say nothing.
                part = _Parser(self.tokens[start:end], self.schema, self.aliases, self.scoped)
                _, value = part.column_unit(0, scope)
                position = end
        if in_block:
            position = self.expect(position, ")")
        return position, value

    def conditions_after(self, word: str, position: int, scope: _Scope) -> tuple[int, Conditions]:
        if not self.has(position, word):
            return position, ()
        return self.conditions(position + 1, scope)

    def conditions(self, position: int, scope: _Scope) -> tuple[int, Conditions]:
        found: list[Condition | str] = []
        while position < len(self.tokens):
            position, left = self.value_unit(position, scope)
            negated = self.at(position) == "not"
            position += negated
            operator = self.at(position)
            if operator not in COMPARISONS:
                raise SqlError(f"a comparison expected, not {operator!r}")
            position, right = self.value(position + 1, scope)
            upper = None
            if operator == "between":
                position, upper = self.value(self.expect(position, "and"), scope)
            found.append(Condition(left, operator, right, upper, negated))
            if self.ends_clause(position) or self.has(position, *_JOINING):
                break
            if self.has(position, "and", "or"):
                found.append(self.tokens[position])
                position += 1
        return position, tuple(found)

    def group_by(self, position: int, scope: _Scope) -> tuple[int, tuple[ColumnUnit, ...]]:
        units: list[ColumnUnit] = []
        if self.has(position, "group"):
            position = self.expect(position + 1, "by")
            while position < len(self.tokens) and not self.ends_clause(position):
                position, unit = self.column_unit(position, scope)
                units.append(unit)
                if not self.has(position, ","):
                    break
                position += 1
        return position, tuple(units)

    def order_by(self, position: int, scope: _Scope) -> tuple[int, tuple[ValueUnit, ...], str]:
        units: list[ValueUnit] = []
        if not self.has(position, "order"):
            return position, (), ""
        order = "asc"
        position = self.expect(position + 1, "by")
        while position < len(self.tokens) and not self.ends_clause(position):
            position, unit = self.value_unit(position, scope)
            units.append(unit)
            if self.has(position, "asc", "desc"):
                order = self.tokens[position]
                position += 1
            if not self.has(position, ","):
                break
            position += 1
        return position, tuple(units), order


# --- tree to text --------------------------------------------------------------------------------

_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Words that SQLite takes for a name only in quotes (sqlite.org/lang_keywords.html), without the
# many that it takes as they are.
_RESERVED = frozenset(
    """add all alter and as autoincrement between case cast check collate commit constraint create
    current_date current_time current_timestamp default deferrable delete distinct drop else escape
    except exists foreign from group having if in index insert intersect into is isnull join limit
    not nothing notnull null on or order primary raise references returning select set table then
    to transaction union unique update using values when where""".split()  # noqa: SIM905
)


def to_sql(query: Query, schema: Schema) -> str:
    """Write a query as SQL that SQLite runs and `parse` reads back.

    Several tables get the aliases T1, T2, ..., each number once in the whole text, because the
    benchmarks' aliases hold everywhere. Names with other signs than letters, digits and `_` are
    quoted; the benchmarks' language has no such names, so that `parse` does not read them.

    Args:
        query: The tree.
        schema: Its names.

    Raises:
        SqlError: A column's table is in no FROM around it.
    """
    return _Writer(schema).query(query, ())


# The tables of a FROM, each with its occurrence and what it is called there ("" without alias).
_Names = dict[tuple[int, int], str]


class _Writer:
    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.used = 0

    def query(self, query: Query, outer: tuple[_Names, ...]) -> str:
        names: _Names = {}
        tables = [source for source in query.sources if isinstance(source, int)]
        seen: list[int] = []
        for table in tables:
            self.used += len(query.sources) > 1
            alias = f"T{self.used}" if len(query.sources) > 1 else ""
            names[table, seen.count(table)] = alias
            seen.append(table)
        scopes = (names, *outer)
        items = ", ".join(self.item(item, scopes) for item in query.select)
        parts = [f"SELECT {'DISTINCT ' * query.distinct}{items}", self.sources(query, scopes)]
        if query.where:
            parts.append(f"WHERE {self.conditions(query.where, scopes)}")
        if query.group_by:
            parts.append(
                f"GROUP BY {', '.join(self.column(unit, scopes) for unit in query.group_by)}"
            )
        if query.having:
            parts.append(f"HAVING {self.conditions(query.having, scopes)}")
        if query.order_by:
            units = ", ".join(self.value_unit(unit, scopes) for unit in query.order_by)
            parts.append(f"ORDER BY {units}{' DESC' * (query.order == 'desc')}")
        if query.limit is not None:
            parts.append(f"LIMIT {query.limit}")
        if query.combined is not None:
            parts += [query.combination.upper(), self.query(query.combined, outer)]
        return " ".join(parts)

    def sources(self, query: Query, scopes: tuple[_Names, ...]) -> str:
        """Write FROM; each join condition stands at the first table that completes its columns."""
        waiting = [part for part in query.on if isinstance(part, Condition)]
        words = [part for part in query.on if isinstance(part, str)]
        if "or" in words or len(words) != max(0, len(waiting) - 1):
            waiting, late = [], self.conditions(query.on, scopes)
        else:
            late = ""
        text, there, seen = "FROM ", set[tuple[int, int]](), list[int]()
        for position, source in enumerate(query.sources):
            text += " JOIN " * (position > 0)
            if isinstance(source, Query):
                text += f"({self.query(source, scopes[1:])})"
            else:
                key = (source, seen.count(source))
                seen.append(source)
                there.add(key)
                alias = scopes[0][key]
                text += _name(self.schema.tables[source].name) + (f" AS {alias}" if alias else "")
            is_last = position == len(query.sources) - 1
            ready = []  # in the tree's order, which comparison minds inside of sub-queries
            while waiting and (is_last or (position and self._keys(waiting[0]) <= there)):
                ready.append(waiting.pop(0))
            if ready:
                text += " ON " + " AND ".join(self.condition(c, scopes) for c in ready)
            if is_last and late:
                text += f" ON {late}"
        return text

    def _keys(self, condition: Condition) -> set[tuple[int, int]]:
        return {
            (self.schema.columns[unit.column].table, unit.occurrence)
            for unit in columns_of(condition)
            if unit.column != STAR
        }

    def item(self, item: SelectItem, scopes: tuple[_Names, ...]) -> str:
        text = self.value_unit(item.value, scopes)
        return f"{item.aggregate.upper()}({text})" if item.aggregate else text

    def value_unit(self, unit: ValueUnit, scopes: tuple[_Names, ...]) -> str:
        left = self.column(unit.left, scopes)
        if unit.right is None:
            return left
        return f"{left} {unit.operator} {self.column(unit.right, scopes)}"

    def column(self, unit: ColumnUnit, scopes: tuple[_Names, ...]) -> str:
        name = "*" if unit.column == STAR else self.qualified(unit, scopes)
        name = f"DISTINCT {name}" if unit.distinct else name
        return f"{unit.aggregate.upper()}({name})" if unit.aggregate else name

    def qualified(self, unit: ColumnUnit, scopes: tuple[_Names, ...]) -> str:
        column = self.schema.columns[unit.column]
        name = _name(column.name)
        for depth, names in enumerate(scopes):
            alias = names.get((column.table, unit.occurrence))
            if alias is None:
                continue
            if alias:
                return f"{alias}.{name}"
            return f"{_name(self.schema.tables[column.table].name)}.{name}" if depth else name
        if unit.occurrence:
            return self.qualified(ColumnUnit(unit.column), scopes)
        if any(isinstance(key, tuple) for names in scopes for key in names):
            raise SqlError(f"the table of column {column.name!r} is in no FROM around it")
        return name  # of a sub-query in FROM

    def conditions(self, conditions: Conditions, scopes: tuple[_Names, ...]) -> str:
        return " ".join(
            part.upper() if isinstance(part, str) else self.condition(part, scopes)
            for part in conditions
        )

    def condition(self, condition: Condition, scopes: tuple[_Names, ...]) -> str:
        operator = ("NOT " if condition.negated else "") + condition.operator.upper()
        text = f"{self.value_unit(condition.left, scopes)} {operator} "
        text += self.value(condition.right, scopes)
        if condition.upper is not None:
            text += f" AND {self.value(condition.upper, scopes)}"
        return text

    def value(self, value: Value, scopes: tuple[_Names, ...]) -> str:
        if isinstance(value, Query):
            return f"({self.query(value, scopes)})"
        if isinstance(value, ColumnUnit):
            return self.column(value, scopes)
        if isinstance(value, str):
            return "'" + value.replace("'", "''") + "'"
        return number(value)


def number(value: float) -> str:
    """Write a number as SQL reads it: whole ones without a point, infinity as what overflows."""
    if math.isinf(value):
        return "9e999" if value > 0 else "-9e999"
    return str(int(value)) if value == value // 1 and abs(value) < 2**53 else repr(value)


def _name(name: str) -> str:
    if _PLAIN_NAME.fullmatch(name) and name.lower() not in _RESERVED:
        return name
    return '"' + name.replace('"', '""') + '"'
