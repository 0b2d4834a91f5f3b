"""SQL as a sequence of choices, each among what the grammar and the schema allow.

A parser that decodes by these choices can only write queries that parse, name what exists and run.
In the spirit of grammar-based decoders over abstract syntax (IRNet, arXiv 1905.08205; RAT-SQL,
arXiv 1911.04942); the grammar itself is ours. FROM is not chosen: it holds the tables of the
columns that were named, joined over foreign keys, and what `*` and JOIN name beside them.

`derive` is the grammar, written once: a coroutine that yields what may come next, is sent the
choice, and returns the tree. `linearise` turns a tree into the choices that lead to it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from typing import Literal

from text2sql.schema import Key, Schema
from text2sql.sql import (
    AGGREGATES,
    ARITHMETIC,
    COMBINATIONS,
    STAR,
    ColumnUnit,
    Condition,
    Conditions,
    Query,
    SelectItem,
    SqlError,
    Value,
    ValueUnit,
    columns_of,
    number,
)

Kind = Literal["symbol", "column", "table", "value"]
Literals = Sequence["float | str"]
"""What values may be: those of a question, in the order in which a model scores them."""

_ROOTS = ("single", *COMBINATIONS)
_SELECTS = ("select", "select distinct")
_UNITS = ("plain", *AGGREGATES, "count distinct")
_OPERATORS = (
    "=", ">", "<", ">=", "<=", "!=", "like", "not like", "in", "not in", "between",
)  # fmt: skip
_RIGHTS = ("value", "column", "query")
_ORDERS = ("order asc", "order desc")
SYMBOLS: tuple[str, ...] = (
    *_ROOTS, *_SELECTS, *_UNITS, *ARITHMETIC, "where", "and", "or", *_OPERATORS, *_RIGHTS,
    "group", "having", *_ORDERS, "limit", "join", "end",
)  # fmt: skip
_INDEX = {symbol: index for index, symbol in enumerate(SYMBOLS)}
# Bounds that no gold query of Spider's training part exceeds; with them every derivation ends.
_ITEMS, _CONDITIONS, _GROUPS, _SORTS, _DEPTH = 8, 8, 4, 4, 5


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen: an index of SYMBOLS, of the schema's columns or tables, or of the values."""

    kind: Kind
    index: int


@dataclass(frozen=True, slots=True)
class Slot:
    """What may be chosen next: indices among a kind; never none."""

    kind: Kind
    allowed: tuple[int, ...]


Derivation = Generator[Slot, int, Query]


def symbol(name: str) -> Choice:
    """Return the choice of a symbol."""
    return Choice("symbol", _INDEX[name])


# --- the grammar ---------------------------------------------------------------------------------


def derive(schema: Schema, literals: Literals) -> Derivation:
    """Derive a query: yields slots, takes indices, returns the tree.

    The schema must have a table with a column, and there must be a value to choose from.
    """
    assert literals, "there must be a value to choose"
    return _query(schema, literals, 0)


def _query(schema: Schema, literals: Literals, depth: int, items: int | None = None) -> Derivation:
    """A query; `items` is how many result columns it must have, None for any number."""
    root = (yield from _choose(*_ROOTS)) if depth == 0 else "single"
    left = yield from _Core(schema, literals, depth, root != "single").derive(items)
    if root == "single":
        return left
    right = yield from _Core(schema, literals, depth, True).derive(len(left.select))
    return replace(left, combination=root, combined=right)


def _choose(*names: str) -> Generator[Slot, int, str]:
    return SYMBOLS[(yield _symbols(names))]


@cache
def _symbols(names: tuple[str, ...]) -> Slot:
    return Slot("symbol", tuple(_INDEX[name] for name in names))


class _Core:
    """One SELECT while it is derived, and which tables it has named so far.

    As a part of a combination it has no ORDER BY, which SQLite would refuse.
    """

    def __init__(self, schema: Schema, literals: Literals, depth: int, is_part: bool) -> None:
        self.schema, self.literals, self.depth, self.is_part = schema, literals, depth, is_part
        self.used: list[int] = []

    def derive(self, items: int | None) -> Derivation:
        distinct = (yield from _choose(*_SELECTS)) == "select distinct"
        select: list[SelectItem] = []
        # All columns (`*`) are one item whose width is not known here.
        starry = items is None and not self.is_part and self.depth == 0
        following = yield from _choose(*_UNITS, *ARITHMETIC)
        more: tuple[str, ...]
        while True:
            select.append((yield from self.item(following, starry)))
            more = (*_UNITS, *ARITHMETIC) if len(select) < (items or _ITEMS) else ()
            ends = self.ends("where", "group") if items in (None, len(select)) else ()
            following = yield from _choose(*more, *ends)
            if following not in (*_UNITS, *ARITHMETIC):
                break
        where, following = yield from self.conditions("where", following)
        groups: list[ColumnUnit] = []
        while following == "group":
            groups.append(ColumnUnit((yield from self.column())))
            more = ("group",) if len(groups) < _GROUPS else ()
            following = yield from _choose(*more, *self.ends("having"))
        having, following = yield from self.conditions("having", following)
        sorts: list[ValueUnit] = []
        order, limit = "", None
        while following in (*_ORDERS, "and"):
            order = order if following == "and" else following.removeprefix("order ")
            # SQLite sorts by aggregates of groups only, or where there is one row, an aggregate's.
            of_all = any(item.aggregate for item in select) and not distinct
            sorts.append((yield from self.value_unit(bool(groups) or of_all)))
            more = ("and",) if len(sorts) < _SORTS else ()
            following = yield from _choose(*more, "limit", "join", "end")
        if following == "limit":
            value = yield from self.value()
            limit = int(value) if isinstance(value, float) and 1 <= value < 10**6 else 1
            following = yield from _choose("join", "end")
        joins = 0
        while following == "join":
            yield from self.table()
            joins += 1
            following = yield from _choose(*(("join", "end") if joins < _ITEMS else ("end",)))
        keys: list[int] = []
        for options in choices_of_keys(self.schema, self.used):
            keys.append((yield Slot("column", options)))
        sources, on = join(self.schema, self.used, keys)
        return Query(
            tuple(select), sources, on, where, tuple(groups), having, tuple(sorts),
            order, limit, distinct,
        )  # fmt: skip

    def ends(self, *clauses: str) -> tuple[str, ...]:
        """These clauses, and what may end the SELECT."""
        return (*clauses, *(() if self.is_part else _ORDERS), "join", "end")

    def conditions(
        self, clause: str, following: str
    ) -> Generator[Slot, int, tuple[Conditions, str]]:
        """The conditions of WHERE or HAVING, if that follows, and the symbol behind them."""
        found: list[Condition | str] = []
        grouped = clause == "having"
        while following in (clause, "and", "or"):
            found += [] if following == clause else [following]
            found.append((yield from self.condition(grouped)))
            ends = self.ends() if grouped else self.ends("group")
            following = yield from _choose(*_joined(found), *ends)
        return tuple(found), following

    def condition(self, grouped: bool) -> Generator[Slot, int, Condition]:
        """A condition; of rows (no aggregates) or of groups."""
        nested = self.depth + 1 < _DEPTH
        operator = yield from _choose(*(o for o in _OPERATORS if nested or not o.endswith("in")))
        if grouped:
            left = yield from self.value_unit()
        else:
            name = yield from _choose("plain", *ARITHMETIC)
            unit = ColumnUnit((yield from self.column()))
            left = ValueUnit(unit)
            if name in ARITHMETIC:
                left = ValueUnit(unit, name, ColumnUnit((yield from self.column())))
        negated = operator.startswith("not ")
        operator = operator.removeprefix("not ")
        kind, upper = "query" if operator == "in" else "value", None
        if operator not in ("in", "like", "between"):
            kind = yield from _choose(*(_RIGHTS if nested else _RIGHTS[:2]))
        right: Value
        if kind == "query":
            right = yield from _query(self.schema, self.literals, self.depth + 1, items=1)
        elif kind == "column":
            right = ColumnUnit((yield from self.column()))
        elif operator == "like":
            right = f"%{_text((yield from self.value()))}%"
        else:
            right = yield from self.value(left)
            upper = (yield from self.value(left)) if operator == "between" else None
        return Condition(left, operator, right, upper, negated)

    def item(self, name: str, starry: bool) -> Generator[Slot, int, SelectItem]:
        operator, right = "", None
        if name in ARITHMETIC:
            operator = name
            name = yield from _choose(*_UNITS[:-1])
        aggregate, _, distinct = name.partition(" ")
        star = not operator and (name == "count" or (name == "plain" and starry))
        left = ColumnUnit((yield from self.column(star)), "", bool(distinct))
        if operator:
            right = ColumnUnit((yield from self.column()))
        return SelectItem(ValueUnit(left, operator, right), "" if name == "plain" else aggregate)

    def value_unit(self, aggregates: bool = True) -> Generator[Slot, int, ValueUnit]:
        units = _UNITS if aggregates else _UNITS[:1]
        name = yield from _choose(*units, *ARITHMETIC)
        if name not in ARITHMETIC:
            return ValueUnit((yield from self.unit(name)))
        left = yield from self.unit((yield from _choose(*units)))
        return ValueUnit(left, name, (yield from self.unit((yield from _choose(*units)))))

    def unit(self, name: str) -> Generator[Slot, int, ColumnUnit]:
        """The column under an aggregate; `*` is one for count alone."""
        aggregate, _, distinct = name.partition(" ")
        column = yield from self.column(star=name == "count")
        return ColumnUnit(column, "" if name == "plain" else aggregate, bool(distinct))

    def column(self, star: bool = False) -> Generator[Slot, int, int]:
        _, columns = self.schema.joinable_with(self.used[0] if self.used else None)
        index = yield Slot("column", (STAR, *columns) if star else columns)
        if index == STAR:
            yield from self.table()
        else:
            self.used.append(self.schema.columns[index].table)
        return index

    def table(self) -> Generator[Slot, int, None]:
        tables, _ = self.schema.joinable_with(self.used[0] if self.used else None)
        self.used.append((yield Slot("table", tables)))

    def value(self, beside: ValueUnit | None = None) -> Generator[Slot, int, float | str]:
        """A value; a number beside a column of texts is a text, but not beside its count."""
        literal = self.literals[(yield Slot("value", tuple(range(len(self.literals)))))]
        if beside is None or beside.operator or beside.left.aggregate:
            return literal
        column = beside.left.column
        is_text = self.schema.columns[column].kind == "text" and column != STAR
        return _text(literal) if is_text else literal


def _joined(conditions: Sequence[Condition | str]) -> tuple[str, ...]:
    """Words that may go on; the benchmarks' SQL cannot read OR after a column on the right."""
    if len(conditions) >= 2 * _CONDITIONS:
        return ()
    last = conditions[-1]
    is_column = isinstance(last, Condition) and isinstance(last.right, ColumnUnit)
    return ("and",) if is_column else ("and", "or")


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else number(value)


# --- joins ---------------------------------------------------------------------------------------


def join(
    schema: Schema, tables: Sequence[int], keys: Sequence[int] = ()
) -> tuple[tuple[int, ...], tuple[Condition | str, ...]]:
    """Return FROM: the tables, those needed between them, and the conditions that join them.

    Args:
        schema: Its keys; tables that none connects are joined as their columns' names tell.
        tables: At least one; all of one component.
        keys: One of each of `choices_of_keys`, in their order; the first key where there is none.
    """
    first_table, path = _path(schema, tables)
    sources, on = [first_table], list[Condition | str]()
    chosen = iter(keys)
    for there, options in path:
        sources.append(there)
        first = next(iter(options))
        for own, its in options[next(chosen, first) if len(options) > 1 else first]:
            on += ["and"] * bool(on)
            on.append(Condition(ValueUnit(ColumnUnit(own)), "=", ColumnUnit(its)))
    return tuple(sources), tuple(on)


def choices_of_keys(schema: Schema, tables: Sequence[int]) -> list[tuple[int, ...]]:
    """Return, for each join of these tables that several keys allow, the columns to choose from."""
    return [tuple(options) for _, options in _path(schema, tables)[1] if len(options) > 1]


def _path(schema: Schema, tables: Sequence[int]) -> tuple[int, list[tuple[int, dict[int, Key]]]]:
    """The first table of FROM, and those that are joined to it, each with the keys that can."""
    wanted = set(tables)
    while True:
        known = schema if schema.join_path(wanted) is not None else schema.joinable
        path = known.join_path(wanted)
        assert path is not None, "the grammar allows tables of one component only"
        between = {table for pair in path for table in pair}
        if between <= wanted:
            return min(wanted), [(there, known.keys_between(here, there)) for here, there in path]
        # Once more from all of them: FROM depends on which tables it has, not on the way there.
        wanted |= between


# --- from trees ----------------------------------------------------------------------------------


def linearise(query: Query, schema: Schema, literals: Literals) -> list[Choice | None]:
    """Return the choices that derive a query; None stands for a value that is not on offer.

    What the grammar does not have is left out (self-joins, joins of other columns, bounds on LIKE)
    where the rest says nearly the same; `derive` tells by its result. The query is a tree of
    `parse(..., standard=True)`.

    Raises:
        SqlError: The grammar has no such query: sub-queries in FROM, tables that nothing connects,
            joins over a filter, lists, a third SELECT in a chain, and what else is outside.
    """
    values = {_key(value): index for index, value in reversed([*enumerate(literals)])}
    return list(_choices(query, schema, values, 0))


def replay(
    choices: Sequence[Choice | None], schema: Schema, literals: Literals
) -> tuple[Query, list[Slot]]:
    """Derive by given choices.

    Returns:
        The tree, in which the first value stands for a missing one, and the slots of the choices.

    Raises:
        SqlError: A choice is not allowed where it stands.
    """
    derivation = derive(schema, literals)
    slots: list[Slot] = []
    sent: int | None = None
    for choice in (*choices, Choice("symbol", -1)):
        try:
            slot = derivation.send(sent) if sent is not None else next(derivation)
        except StopIteration as done:
            if len(slots) != len(choices):
                raise SqlError("the derivation ends before its choices") from None
            return done.value, slots
        index = 0 if choice is None else choice.index
        if index not in slot.allowed or (slot.kind != (choice.kind if choice else "value")):
            raise SqlError(f"choice {len(slots)} of the derivation is not allowed: {choice}")
        slots.append(slot)
        sent = index
    raise AssertionError("the last choice is never allowed")


def _choices(
    query: Query, schema: Schema, values: Mapping[str, int], depth: int
) -> Iterator[Choice | None]:
    """The choices of a query; `values` are the places of what is on offer, by `_key`."""
    if depth == 0:
        yield symbol(query.combination or "single")
    elif query.combined:
        raise SqlError("a sub-query that combines two")
    if query.combined and query.combined.combined:
        raise SqlError("a third SELECT")
    for part in (query, query.combined):
        if part:
            yield from _CoreChoices(part, schema, values, depth).all()


class _CoreChoices:
    """The choices of one SELECT, and which tables they have led to so far.

    Tables of FROM that no column leads to are handed out to the stars, one each, the rest to JOIN.
    """

    def __init__(self, query: Query, schema: Schema, values: Mapping[str, int], depth: int) -> None:
        self.core, self.schema, self.values, self.depth = query, schema, values, depth
        tables = [source for source in query.sources if isinstance(source, int)]
        if len(tables) != len(query.sources):
            raise SqlError("a sub-query in FROM")
        if not all(part == "and" or _is_equality(part) for part in query.on):
            raise SqlError("a join over more than equal columns")
        self.tables = list(dict.fromkeys(tables))
        clauses = (query.select, query.where, query.group_by, query.having, query.order_by)
        columns = {unit.column for unit in columns_of(*chain(*clauses))} - {STAR}
        self.reached = {schema.columns[column].table for column in columns}
        if not self.reached <= set(tables):
            raise SqlError("a column of a query around it")
        self._pass_through()

    def all(self) -> Iterator[Choice | None]:
        core = self.core
        yield symbol(_SELECTS[core.distinct])
        for item in core.select:
            yield from self.item(item)
        for clause, conditions in (("where", core.where), ("having", core.having)):
            if clause == "having":
                for unit in core.group_by:
                    yield symbol("group")
                    yield from self.column(unit)
            word = clause
            for part in conditions:
                if isinstance(part, str):
                    word = part
                    continue
                yield symbol(word)
                yield from self.condition(part, clause == "having")
        for position, value in enumerate(core.order_by):
            yield symbol(f"order {core.order}" if position == 0 else "and")
            yield from self.value_unit(value)
        if core.limit is not None:
            if not core.order_by:
                raise SqlError("LIMIT without ORDER BY")
            yield symbol("limit")
            yield self.value(float(core.limit))
        while not self.reached.issuperset(self.tables):
            yield symbol("join")
            yield self.table()
        yield symbol("end")
        yield from self.keys()

    def keys(self) -> Iterator[Choice]:
        """Where several keys can join a table, the query's; where it joins otherwise, the first."""
        if not self._is_connected():
            raise SqlError("tables that nothing connects")
        given = {
            frozenset((part.left.left.column, part.right.column))
            for part in self.core.on
            if isinstance(part, Condition) and isinstance(part.right, ColumnUnit)
        }
        for _, options in _path(self.schema, sorted(self.reached))[1]:
            if len(options) > 1:
                joined = (
                    column
                    for column, key in options.items()
                    if all(frozenset(pair) in given for pair in key)
                )
                yield Choice("column", next(joined, next(iter(options))))

    def table(self) -> Choice:
        """The next table of FROM that nothing has led to."""
        table = next((t for t in self.tables if t not in self.reached), self.tables[0])
        self.reached.add(table)
        self._pass_through()
        return Choice("table", table)

    def _pass_through(self) -> None:
        """Reach the tables between those that are reached."""
        if self._is_connected():
            self.reached = set(join(self.schema, sorted(self.reached))[0])

    def _is_connected(self) -> bool:
        component = self.schema.joinable.components
        return len({component[table] for table in self.reached}) == 1

    def item(self, item: SelectItem) -> Iterator[Choice | None]:
        value = item.value
        if value.operator:
            yield symbol(value.operator)
        name = item.aggregate or value.left.aggregate or "plain"
        yield from self.unit(name, value.left)
        if value.right:
            yield from self.column(value.right)

    def value_unit(self, value: ValueUnit) -> Iterator[Choice | None]:
        if value.operator:
            yield symbol(value.operator)
        for unit in (value.left, value.right):
            if unit:
                yield from self.unit(unit.aggregate or "plain", unit)

    def unit(self, name: str, unit: ColumnUnit) -> Iterator[Choice | None]:
        # DISTINCT before another aggregate than count changes sums only, and no exact match.
        yield symbol("count distinct" if name == "count" and unit.distinct else name)
        yield from self.column(unit)

    def column(self, unit: ColumnUnit) -> Iterator[Choice | None]:
        yield Choice("column", unit.column)
        if unit.column == STAR:
            yield self.table()

    def value(self, value: float | str) -> Choice | None:
        index = self.values.get(_key(value))
        return None if index is None else Choice("value", index)

    def condition(self, condition: Condition, grouped: bool) -> Iterator[Choice | None]:
        operator = ("not " if condition.negated else "") + condition.operator
        if operator not in _OPERATORS:
            raise SqlError(f"the operator {operator}")
        yield symbol(operator)
        if grouped:
            yield from self.value_unit(condition.left)
        else:
            yield symbol(condition.left.operator or "plain")
            for unit in (condition.left.left, condition.left.right):
                if unit and (unit.aggregate or unit.column == STAR):
                    raise SqlError("an aggregate in WHERE")
                if unit:
                    yield from self.column(unit)
        right = condition.right
        if isinstance(right, Query):
            if condition.operator != "in":
                yield symbol("query")
            yield from _choices(right, self.schema, self.values, self.depth + 1)
        elif condition.operator == "in":
            raise SqlError("a list")
        elif isinstance(right, ColumnUnit):
            yield symbol("column")
            yield from self.column(right)
        else:
            if condition.operator not in ("like", "between"):
                yield symbol("value")
            yield self.value(right)
        if condition.upper is not None:
            if isinstance(condition.upper, (Query, ColumnUnit)):
                raise SqlError("an upper bound that is no value")
            yield self.value(condition.upper)


def _is_equality(part: Condition | str) -> bool:
    return (
        isinstance(part, Condition) and part.operator == "=" and isinstance(part.right, ColumnUnit)
    )


def _key(value: object) -> str:
    """Values are the same if they read alike: case, `%` of LIKE and the form of numbers aside."""
    if isinstance(value, float):
        return number(value)
    text = str(value).strip("%").strip().casefold()
    try:
        return number(float(text))
    except ValueError:
        return text
