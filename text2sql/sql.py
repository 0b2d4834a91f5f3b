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

`parse(..., standard=True)` reads the same queries as SQL means them: for models to learn from, and
to compare queries that the official evaluation cannot read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import TypeAlias

from text2sql.guard import identifier
from text2sql.schema import Schema

AGGREGATES = ("max", "min", "count", "sum", "avg")
ARITHMETIC = ("-", "+", "*", "/")
COMPARISONS = (
    "not", "between", "=", ">", "<", ">=", "<=", "!=", "in", "like", "is", "exists",
)  # fmt: skip
COMBINATIONS = ("intersect", "union", "except")
_END = ""  # stands behind the last token
_CLAUSES = ("select", "from", "where", "group", "order", "limit", *COMBINATIONS, _END)
_JOINING = ("join", "on", "as")
_CLAUSE_ENDS = (*_CLAUSES, ")", ";")
_VALUE_ENDS = (*_CLAUSES, *_JOINING, ",", ")", "and")
_NO_ALIAS = (
    *_CLAUSE_ENDS, *_JOINING, ",", "(", "having", "left", "right", "full", "cross", "natural",
    "using",
)  # fmt: skip
_QUOTES = ('"', "`")
_TOO_SHORT = "the query ends too early"
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
    """A column unit, or two joined by one of ARITHMETIC; else `operator` is "", `right` None."""

    left: ColumnUnit
    operator: str = ""
    right: ColumnUnit | None = None


@dataclass(frozen=True, slots=True)
class SelectItem:
    """What a column of the result holds, under one of AGGREGATES or ""."""

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
        order: "asc", "desc", or "" without ORDER BY: of all that is sorted by; of several
            directions the last one, as in the official evaluation.
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


# Text, quoted name, number, word with dots, comparison, other sign; what is skipped has no group.
_SQL = re.compile(
    r"""\s+|--[^\n]*|/\*.*?\*/
    |(?P<text>'(?:[^']|'')*+'|"(?:[^"]|"")*+"(?!\.))
    |(?P<number>(?:(?<![\w)"`\]])-)?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?(?![\w.]))
    |(?P<name>(?:"(?:[^"]|"")*+"|`[^`]*`|\[[^\]]*\]|\w+)(?:\.(?:"(?:[^"]|"")*+"|`[^`]*`|\[[^\]]*\]|\w+))?)
    |(?P<sign>[!<>=]\s*=|<>|.)""",
    re.DOTALL | re.VERBOSE | re.IGNORECASE,
)
_NAME = re.compile(r'"(?:[^"]|"")*"|`[^`]*`|\[[^\]]*\]|\w+')
_DOT = "\0"  # between a table and its column, whose names may have dots in them
_SIGNS = {"<>": "!=", "==": "="}


def _lexemes(text: str) -> list[str]:
    """Split SQL as SQLite does, into tokens of the form of `tokenise`; a quoted name has backticks.

    Double quotes hold a text or a name, as their place tells. Without comments and INNER.

    Raises:
        SqlError: A quote is not closed.
    """
    tokens: list[str] = []
    for found in _SQL.finditer(text):
        word = found[0]
        if found["text"]:
            tokens.append(f'"{_bare(word)}"')
        elif found["name"]:
            parts = _NAME.findall(word)
            if len(parts) > 1:
                tokens.append(_DOT.join(map(_bare, parts)))
            elif word[0] in "`[":
                tokens.append(f"`{_bare(word)}`")
            elif word.lower() != "inner":
                tokens.append(word.lower())
        elif found["sign"] in ("'", '"', "`"):
            raise SqlError("a quote is not closed")
        elif found["number"] or found["sign"]:
            word = "".join(word.split())
            tokens.append(_SIGNS.get(word, word))
    return tokens


def _bare(word: str) -> str:
    """A text or a name without its quotes."""
    quote, close = word[0], word[-1]
    if quote not in "'\"`[":
        return word.lower()
    return word[1:-1].replace(2 * close, close) if quote == close and len(word) > 1 else word[1:-1]


# --- tokens to tree ------------------------------------------------------------------------------


def parse(text: str, schema: Schema, standard: bool = False) -> Query:
    """Read a query of the benchmarks' SQL.

    Args:
        text: The query; what follows it is ignored.
        schema: What its names mean.
        standard: Read it as SQL: names in quotes, signs without blanks around them, comments, INNER
            JOIN, aliases without AS and of results, each alias in its own FROM; nothing may follow.
            The official evaluation knows one meaning for each alias in the whole text, the last
            one; a model learns better from trees that are right.

    Raises:
        SqlError: It is outside of that language, or names what the schema does not have.
    """
    try:
        parser = _Parser(_lexemes(text) if standard else tokenise(text), schema, standard)
        query = parser.query()
        if standard and not parser.has(_END):
            raise SqlError(f"{parser.token!r} follows a whole query")
        return query
    except RecursionError as error:
        raise SqlError("nested too deeply") from error


@dataclass(slots=True)
class _Scope:
    """What names mean in a query: its tables, in order, and table and occurrence by alias."""

    tables: list[int]
    aliases: dict[str, tuple[int, int]]


class _Parser:
    """Recursive descent: a method reads from `position` on, and leaves it behind what it read."""

    def __init__(self, tokens: list[str], schema: Schema, standard: bool) -> None:
        self.tokens, self.schema, self.standard = [*tokens, _END], schema, standard
        self.position, self.scope = 0, _Scope([], {})
        self.aliases: dict[str, str] = {}  # what `AS` defines in the whole text
        for position, token in enumerate(tokens):
            if token == "as":
                if position + 1 == len(tokens):
                    raise SqlError(_TOO_SHORT)
                self.aliases[tokens[position + 1]] = tokens[position - 1]
        for table in schema.tables:
            if table.name.lower() in self.aliases:
                raise SqlError(f"the alias {table.name} is a table's name")

    @property
    def token(self) -> str:
        """The next one, which must be there."""
        if self.has(_END):
            raise SqlError(_TOO_SHORT)
        return self.tokens[self.position]

    def next(self) -> str:
        token = self.token
        self.position += 1
        return token

    def has(self, *words: str) -> bool:
        return self.tokens[self.position] in words

    def take(self, *words: str) -> str:
        """The next token if it is one of these, else nothing."""
        return self.next() if self.has(*words) else ""

    def expect(self, word: str) -> None:
        if (token := self.next()) != word:
            raise SqlError(f"{word!r} expected, not {token!r}")

    def query(self) -> Query:
        in_block = self.token == "("
        start = self.position + in_block
        around, self.scope = self.scope, _Scope([], {})
        # FROM first: what SELECT's columns mean depends on it.
        sources, on = self.from_clause()
        end, self.position = self.position, start
        select, distinct = self.select()
        self.position = end
        where = self.conditions() if self.take("where") else ()
        group_by = self.group_by()
        having = self.conditions() if self.take("having") else ()
        order_by, order = self.order_by()
        limit = None
        if self.take("limit"):
            number = self.next()
            is_number = number.isdecimal() and len(number) < 19
            if self.standard and not is_number:
                raise SqlError(f"LIMIT {number}")
            limit = int(number) if is_number else 1
        while self.take(";"):
            pass
        if in_block:
            self.expect(")")
        while self.take(";"):
            pass
        combination = self.take(*COMBINATIONS)
        combined = self.query() if combination else None
        self.scope = around
        return Query(
            select, sources, on, where, group_by, having, order_by, order, limit, distinct,
            combination, combined,
        )  # fmt: skip

    def from_clause(self) -> tuple[tuple[int | Query, ...], Conditions]:
        if "from" not in self.tokens[self.position :]:
            raise SqlError("no FROM")
        self.position = self.tokens.index("from", self.position) + 1
        sources: list[int | Query] = []
        on: list[Condition | str] = []
        while not self.has(_END):
            in_block = self.take("(")
            if self.token == "select":
                sources.append(self.query())
            else:
                self.take("join")
                table = self.table(self.next())
                if self.take("as") or (self.standard and not self.has(*_NO_ALIAS)):
                    self.scope.aliases[self.name(self.next())] = (
                        table,
                        self.scope.tables.count(table),
                    )
                sources.append(table)
                self.scope.tables.append(table)
            if self.take("on"):
                conditions = self.conditions()
                on += ["and", *conditions] if on else conditions
            if in_block:
                self.expect(")")
            if self.has(*_CLAUSE_ENDS):
                break
        return tuple(sources), tuple(on)

    def table(self, name: str) -> int:
        # A chain of aliases is followed one step, as in the definition.
        found = self.schema.find_table(self.name(self.aliases.get(name, name)))
        if found is None:
            raise SqlError(f"no table {name!r}")
        return found

    def name(self, token: str) -> str:
        """A name without its quotes."""
        return token[1:-1] if self.standard and token[0] in _QUOTES else token

    def select(self) -> tuple[tuple[SelectItem, ...], bool]:
        self.expect("select")
        distinct = bool(self.take("distinct"))
        items: list[SelectItem] = []
        while not self.has(*_CLAUSES):
            aggregate = self.take(*AGGREGATES, "none").removeprefix("none")
            items.append(SelectItem(self.value_unit(), aggregate))
            if self.standard and self.take("as"):
                self.next()  # what a result is called says nothing
            self.take(",")
        return tuple(items), distinct

    def column(self) -> tuple[int, int]:
        """A column's index and the occurrence of its table."""
        token = self.next()
        if token == "*":
            return STAR, 0
        dot = _DOT if self.standard else "."
        if dot in token:
            alias, _, name = token.partition(dot)
            here = self.scope.aliases.get(alias)
            table = here[0] if here and self.standard else self.table(alias)
            found = self.schema.find_column(table, name)
            if found is None or dot in name:
                raise SqlError(f"no column {token!r}")
            return found, here[1] if here and here[0] == table else 0
        for table in self.scope.tables:
            found = self.schema.find_column(table, self.name(token))
            if found is not None:
                return found, 0
        raise SqlError(f"no column {token!r} in the tables of its FROM")

    def column_unit(self) -> ColumnUnit:
        in_block = self.take("(")
        aggregate = self.take(*AGGREGATES, "none")
        if aggregate:
            self.expect("(")
        distinct = bool(self.take("distinct"))
        column, occurrence = self.column()
        # A bracket around an aggregate stays open: its end is left to what comes after.
        if in_block or aggregate:
            self.expect(")")
        return ColumnUnit(column, aggregate.removeprefix("none"), distinct, occurrence)

    def value_unit(self) -> ValueUnit:
        in_block = self.take("(")
        left = self.column_unit()
        operator, right = self.take(*ARITHMETIC, "none"), None
        if operator:
            right = self.column_unit()
        if in_block:
            self.expect(")")
        return ValueUnit(left, operator.removeprefix("none"), right)

    def value(self) -> Value:
        start = self.position
        in_block = self.take("(")
        token = self.token
        value: Value
        if token == "select":
            value = self.query()
        elif token[0] == '"':
            value = self.next()[1:-1]
        else:
            try:
                value = float(token)
                self.position += 1
            except ValueError:
                while not self.has(*_VALUE_ENDS):
                    self.position += 1
                # All words up to there are the value; those after its column say nothing.
                whole, end, self.position = self.tokens, self.position, start
                self.tokens = [*whole[:end], _END]
                value = self.column_unit()
                self.tokens, self.position = whole, end
        if in_block:
            self.expect(")")
        return value

    def conditions(self) -> Conditions:
        found: list[Condition | str] = []
        while not self.has(_END):
            left = self.value_unit()
            negated = bool(self.take("not"))
            operator = self.next()
            if operator not in COMPARISONS:
                raise SqlError(f"a comparison expected, not {operator!r}")
            right, upper = self.value(), None
            if operator == "between":
                self.expect("and")
                upper = self.value()
            found.append(Condition(left, operator, right, upper, negated))
            if self.has(*_CLAUSE_ENDS, *_JOINING):
                break
            if self.has("and", "or"):
                found.append(self.next())
        return tuple(found)

    def group_by(self) -> tuple[ColumnUnit, ...]:
        units: list[ColumnUnit] = []
        if self.take("group"):
            self.expect("by")
            while not self.has(*_CLAUSE_ENDS):
                units.append(self.column_unit())
                if not self.take(","):
                    break
        return tuple(units)

    def order_by(self) -> tuple[tuple[ValueUnit, ...], str]:
        units: list[ValueUnit] = []
        if not self.take("order"):
            return (), ""
        order = ""
        self.expect("by")
        while not self.has(*_CLAUSE_ENDS):
            units.append(self.value_unit())
            named = self.take("asc", "desc")
            if self.standard and order not in ("", named or "asc"):
                raise SqlError("ORDER BY in two directions")
            order = named or order or "asc"
            if not self.take(","):
                break
        return tuple(units), order or "asc"


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
    benchmarks' aliases hold everywhere, and none that is a table's name. Names with other signs
    than letters, digits and `_` are quoted; the benchmarks' language has no such names, so that
    `parse` does not read them.

    Raises:
        SqlError: A column's table is in no FROM around it.
    """
    free = (n for n in count(1) if schema.find_table(f"T{n}") is None)
    return _Writer(query, schema, (), free).text()


# The tables of a FROM, each with its occurrence and what it is called there ("" without alias).
_Names = dict[tuple[int, int], str]


class _Writer:
    """Writes one SELECT; `outer` has the tables around it, nearest first; `numbers` are free."""

    def __init__(
        self, query: Query, schema: Schema, outer: tuple[_Names, ...], numbers: Iterator[int]
    ) -> None:
        self.query, self.schema, self.outer, self.numbers = query, schema, outer, numbers
        self.names: _Names = {}
        for table in (source for source in query.sources if isinstance(source, int)):
            occurrence = sum(other == table for other, _ in self.names)
            alias = f"T{next(numbers)}" if len(query.sources) > 1 else ""
            self.names[table, occurrence] = alias

    def text(self) -> str:
        query = self.query
        items = ", ".join(map(self.item, query.select))
        parts = [f"SELECT {'DISTINCT ' * query.distinct}{items}", self.sources()]
        if query.where:
            parts.append(f"WHERE {self.conditions(query.where)}")
        if query.group_by:
            parts.append(f"GROUP BY {', '.join(map(self.column, query.group_by))}")
        if query.having:
            parts.append(f"HAVING {self.conditions(query.having)}")
        if query.order_by:
            direction = " DESC" if query.order == "desc" else ""
            units = ", ".join(self.value_unit(unit) + direction for unit in query.order_by)
            parts.append(f"ORDER BY {units}")
        if query.limit is not None:
            parts.append(f"LIMIT {query.limit}")
        if query.combined is not None:
            parts += [query.combination.upper(), self.inner(query.combined, self.outer)]
        return " ".join(parts)

    def inner(self, query: Query, outer: tuple[_Names, ...]) -> str:
        return _Writer(query, self.schema, outer, self.numbers).text()

    def sources(self) -> str:
        """Write FROM; each join condition stands at the first table that completes its columns."""
        query, late = self.query, ""
        waiting = [part for part in query.on if isinstance(part, Condition)]
        words = [part for part in query.on if isinstance(part, str)]
        if "or" in words or len(words) != max(0, len(waiting) - 1):
            waiting, late = [], self.conditions(query.on)
        text, there, names = "FROM ", set[tuple[int, int]](), iter(self.names.items())
        for position, source in enumerate(query.sources):
            text += " JOIN " * (position > 0)
            if isinstance(source, Query):
                text += f"({self.inner(source, self.outer)})"
            else:
                key, alias = next(names)
                there.add(key)
                text += _name(self.schema.tables[source].name) + (f" AS {alias}" if alias else "")
            is_last = position == len(query.sources) - 1
            ready = []  # in the tree's order, which comparison minds inside of sub-queries
            while waiting and (is_last or (position and self._keys(waiting[0]) <= there)):
                ready.append(waiting.pop(0))
            if ready:
                text += " ON " + " AND ".join(map(self.condition, ready))
            if is_last and late:
                text += f" ON {late}"
        return text

    def _keys(self, condition: Condition) -> set[tuple[int, int]]:
        return {
            (self.schema.columns[unit.column].table, unit.occurrence)
            for unit in columns_of(condition)
            if unit.column != STAR
        }

    def item(self, item: SelectItem) -> str:
        text = self.value_unit(item.value)
        return f"{item.aggregate.upper()}({text})" if item.aggregate else text

    def value_unit(self, unit: ValueUnit) -> str:
        left = self.column(unit.left)
        return left if unit.right is None else f"{left} {unit.operator} {self.column(unit.right)}"

    def column(self, unit: ColumnUnit) -> str:
        name = "*" if unit.column == STAR else self.qualified(unit)
        name = f"DISTINCT {name}" if unit.distinct else name
        return f"{unit.aggregate.upper()}({name})" if unit.aggregate else name

    def qualified(self, unit: ColumnUnit) -> str:
        column = self.schema.columns[unit.column]
        name, scopes = _name(column.name), (self.names, *self.outer)
        for depth, names in enumerate(scopes):
            alias = names.get((column.table, unit.occurrence))
            if alias is None:
                continue
            if alias:
                return f"{alias}.{name}"
            return f"{_name(self.schema.tables[column.table].name)}.{name}" if depth else name
        if unit.occurrence:
            return self.qualified(ColumnUnit(unit.column))
        if any(scopes):
            raise SqlError(f"the table of column {column.name!r} is in no FROM around it")
        return name  # of a sub-query in FROM

    def conditions(self, conditions: Conditions) -> str:
        return " ".join(
            part.upper() if isinstance(part, str) else self.condition(part) for part in conditions
        )

    def condition(self, condition: Condition) -> str:
        operator = ("NOT " if condition.negated else "") + condition.operator.upper()
        right = self.value(condition.right)
        if condition.operator == "in" and not isinstance(condition.right, Query):
            right = f"({right})"
        text = f"{self.value_unit(condition.left)} {operator} {right}"
        return text if condition.upper is None else f"{text} AND {self.value(condition.upper)}"

    def value(self, value: Value) -> str:
        if isinstance(value, Query):
            return f"({self.inner(value, (self.names, *self.outer))})"
        if isinstance(value, ColumnUnit):
            return self.column(value)
        if isinstance(value, str):
            return "'" + value.replace("'", "''") + "'"
        return number(value)


def number(value: float) -> str:
    """Write a number as SQL reads it: whole ones without a point, infinity as what overflows."""
    if math.isinf(value):
        return "9e999" if value > 0 else "-9e999"
    return str(int(value)) if value == value // 1 and abs(value) < 2**53 else repr(value)


def _name(name: str) -> str:
    is_plain = _PLAIN_NAME.fullmatch(name) and name.lower() not in _RESERVED
    return name if is_plain else identifier(name)
