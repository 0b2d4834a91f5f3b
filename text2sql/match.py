"""Whether two queries are the same: exact set match, hardness and execution match.

The verdicts are those of the official evaluation of Spider, SParC and CoSQL (arXiv 1809.08887,
1906.02285, 1909.05378; execution: test suites, arXiv 2010.02840). What it compares is stated by
`NormalForm`; it is not what one would call equivalence, and its habits are kept:

* values, the number after LIMIT and the conditions of joins do not count;
* DISTINCT does not count, but in a sub-query of a condition it does, and there the order of
  everything counts, and columns are not merged over foreign keys;
* in a sub-query of FROM values count too;
* GROUP BY compares columns, and HAVING its conditions in their order.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import sqlparse

from text2sql.schema import Schema
from text2sql.sql import STAR, ColumnUnit, Condition, Conditions, Query, ValueUnit, columns_of

HARDNESS = ("easy", "medium", "hard", "extra")
Form = tuple[Hashable, ...]
Counts = frozenset[tuple[Any, int]]


@dataclass(frozen=True)
class NormalForm:
    """What exact set match (without values) compares: two queries match if these are equal.

    Sets stand as sorted or counted collections, so that the order of writing and the names of
    aliases are gone. `group` keeps order, and is empty without GROUP BY.

    Args:
        select: Result columns and how often each.
        where: Conditions and how often each.
        connectors: Which of `and`, `or` stand between them.
        group_names: Names of the grouping columns, without tables, and how often each.
        group: The grouping columns in order, then HAVING.
        order: Direction and units of ORDER BY.
        keywords: Which parts and operators occur.
        tables: Tables and sub-queries of FROM and how often each.
        combined: Operator and normal form of what the query is combined with.
    """

    select: Counts = frozenset()
    where: Counts = frozenset()
    connectors: frozenset[Hashable] = frozenset()
    group_names: Counts = frozenset()
    group: Form = ()
    order: Form = ()
    keywords: frozenset[str] = frozenset()
    tables: Counts = frozenset()
    combined: tuple[str, NormalForm] | None = None


def normal_form(query: Query, schema: Schema) -> NormalForm:
    """Return what exact set match compares of a query; the schema says which columns are equal."""
    # Merged are the columns of the outermost query's own tables, in all parts that it combines.
    tables = {source for source in query.sources if isinstance(source, int)}
    merged = {
        column: stand_in
        for column, stand_in in schema.merged.items()
        if schema.columns[column].table in tables
    }
    return _normal_form(query, schema, merged)


def partial_match(prediction: NormalForm | None, gold: NormalForm) -> dict[str, bool]:
    """Return which components match, by the names that the official evaluation gives them.

    A component that both lack matches. They all match, and `tables`, if and only if the whole does.
    A prediction that could not be parsed (None) is compared as an empty query.
    """
    form = prediction or NormalForm()
    return {
        "select": form.select == gold.select,
        "select(no AGG)": _counted(form.select, 1) == _counted(gold.select, 1),
        "where": form.where == gold.where,
        "where(no OP)": _counted(form.where, 2) == _counted(gold.where, 2),
        "group(no Having)": form.group_names == gold.group_names,
        "group": form.group == gold.group,
        "order": form.order == gold.order
        and (not gold.order or ("limit" in form.keywords) == ("limit" in gold.keywords)),
        "and/or": form.connectors == gold.connectors,
        "IUEN": form.combined == gold.combined,
        "keywords": form.keywords == gold.keywords,
        "tables": form.tables == gold.tables,
    }


def hardness(query: Query) -> str:
    """Return a gold query's level, one of HARDNESS, by the official counting of its components."""
    conditions = [*query.on[::2], *query.where[::2], *query.having[::2]]
    words = [*query.on[1::2], *query.where[1::2], *query.having[1::2]]
    components = (
        bool(query.where)
        + bool(query.group_by)
        + bool(query.order)
        + (query.limit is not None)
        + len(query.sources)
        - 1
        + words.count("or")
        + sum(isinstance(c, Condition) and c.operator == "like" for c in conditions)
    )
    nested = sum(
        isinstance(value, Query)
        for c in conditions
        if isinstance(c, Condition)
        for value in (c.right, c.upper)
    ) + (query.combined is not None)
    # The official count of aggregates takes a negated condition for one, and every word in HAVING.
    aggregates = (
        sum(bool(item.aggregate) for item in query.select)
        + sum(isinstance(c, Condition) and c.negated for c in query.where[::2])
        + sum(bool(unit.aggregate) for unit in columns_of(*query.group_by, *query.order_by))
        + sum(isinstance(c, str) or c.negated for c in query.having)
    )
    parts = (len(query.select), len(query.where), len(query.group_by))
    others = sum(count > 1 for count in (aggregates, *parts))
    if components <= 1 and others == 0 and nested == 0:
        return "easy"
    if nested == 0 and ((others <= 2 and components <= 1) or (components <= 2 and others < 2)):
        return "medium"
    if (
        (nested == 0 and others > 2 and components <= 2)
        or (nested == 0 and components == 3 and others <= 2)
        or (components <= 1 and others == 0 and nested <= 1)
    ):
        return "hard"
    return "extra"


# --- normal form ---------------------------------------------------------------------------------


def _normal_form(query: Query, schema: Schema, merged: dict[int, int]) -> NormalForm:
    def column(unit: ColumnUnit | None) -> Form:
        return () if unit is None else (unit.aggregate, merged.get(unit.column, unit.column))

    def value(unit: ValueUnit) -> Form:
        return (unit.operator, column(unit.left), column(unit.right))

    def condition(found: Condition | str) -> Hashable:
        if isinstance(found, str):
            return found
        return (
            found.negated,
            found.operator,
            value(found.left),
            _literal_value(found.right, False),
            _literal_value(found.upper, False),
        )

    def conditions(found: Conditions) -> Form:
        return tuple(
            condition(part) if position % 2 == 0 else _literal_condition(part, True)
            for position, part in enumerate(found)
        )

    where = conditions(query.where)
    having = conditions(query.having)
    group = tuple(merged.get(unit.column, unit.column) for unit in query.group_by)
    combined = query.combined and _normal_form(query.combined, schema, merged)
    return NormalForm(
        select=_count((item.aggregate, value(item.value)) for item in query.select),
        where=_count(where[::2]),
        connectors=frozenset(where[1::2]),
        group_names=_count(
            "*" if index == STAR else schema.columns[index].name.lower() for index in group
        ),
        group=(group, having) if group else (),
        order=(query.order, *map(value, query.order_by)) if query.order else (),
        keywords=frozenset(_keywords(query)),
        tables=_count(
            _literal(source, True) if isinstance(source, Query) else source
            for source in query.sources
        ),
        combined=(query.combination, combined) if combined else None,
    )


def _count(items: Iterable[Hashable]) -> Counts:
    return frozenset(Counter(items).items())


def _counted(items: Counts, position: int) -> Counter[Hashable]:
    """Count by one member of each item."""
    found: Counter[Hashable] = Counter()
    for item, count in items:
        found[item[position]] += count
    return found


def _keywords(query: Query) -> Iterator[str]:
    clauses = {
        "where": query.where,
        "group": query.group_by,
        "having": query.having,
        "order": query.order,
        "limit": query.limit is not None,
        query.order: query.order,
        query.combination: query.combination,
    }
    yield from (word for word, there in clauses.items() if there)
    for clause in (query.on, query.where, query.having):
        if "or" in clause[1::2]:
            yield "or"
        for part in clause[::2]:
            if isinstance(part, Condition):
                yield from ["not"] * part.negated
                yield from {part.operator} & {"in", "like"}


def _literal(query: Query, values: bool) -> Query:
    """A sub-query as it stands: order and DISTINCT count, and values if they are asked for."""

    def conditions(found: Conditions) -> Any:
        return tuple(
            _literal_condition(part, values or position % 2 == 1)
            for position, part in enumerate(found)
        )

    return replace(
        query,
        sources=tuple(_literal(s, True) if isinstance(s, Query) else s for s in query.sources),
        on=conditions(query.on),
        where=conditions(query.where),
        having=conditions(query.having),
        limit=None if query.limit is None else 1,
        combined=query.combined and _literal(query.combined, values),
    )


def _literal_condition(condition: Condition | str, values: bool) -> Hashable:
    if isinstance(condition, str):
        return condition
    right, upper = _literal_value(condition.right, values), _literal_value(condition.upper, values)
    return replace(condition, right=right, upper=upper)


def _literal_value(value: Any, values: bool) -> Any:
    if isinstance(value, Query):
        return _literal(value, values)
    return value if values else None


# --- execution -----------------------------------------------------------------------------------

Row = tuple[Any, ...]
MASK = "value"  # what systems write that predict no values
_WORD = re.compile(r"""'[^']*'|"[^"]*"|`[^`]*`|\[[^\]]*\]|[\w.]+|[<>=!]+|\S""")
_BEFORE_VALUES = frozenset(
    ("=", "==", "!=", "<>", "<", ">", "<=", ">=", "like", "in", "between", "limit", "offset")
)
_CURRENT_YEAR = re.compile(r"YEAR\s*\(\s*CURDATE\s*\(\s*\)\s*\)\s*", re.IGNORECASE)


@lru_cache(maxsize=4096)
def executable(sql: str, keep_distinct: bool = False) -> str:
    """Return a query as the official execution match runs it.

    `> =`, `< =` and `! =` are closed up; DISTINCT is taken out of prediction and gold alike,
    because exact set match ignores it, unless it is kept (the official script's `--keep_distinct`);
    of several statements the first one stays. MySQL's current year is 2020.
    """
    sql = sql.replace("> =", ">=").replace("< =", "<=").replace("! =", "!=")
    lowered = sql.lower()
    if not keep_distinct and ("distinct" in lowered or ";" in lowered):
        first = next(iter(sqlparse.engine.FilterStack().run(sql)), None)
        tokens = first.flatten() if first is not None else ()
        sql = "".join(token.value for token in tokens if token.value.lower() != "distinct")
    return _CURRENT_YEAR.sub("2020", sql)


def without_masks(sql: str, schema: Schema) -> str:
    """Return a prediction with the number 1 where it has the word `value` in a value's place.

    Alone, or as a text (`"value"`, `'%value%'`). Where FROM has a column of that name it means the
    column, though the official script puts 1 there too, as within other names and texts.
    """
    if MASK not in sql:
        return sql
    owners = {
        table.name.lower()
        for index, table in enumerate(schema.tables)
        if schema.find_column(index, MASK) is not None
    }
    words = list(_WORD.finditer(sql))
    lowered = [word[0].lower() for word in words]
    masks: list[tuple[re.Match[str], int | None]] = []  # with the SELECT that each stands in
    owning: set[int] = set()  # the SELECTs whose FROM has such a column
    brackets: list[tuple[int, str]] = []  # with the SELECT around each and the word before it
    select = 0
    for position, word in enumerate(lowered):
        before = lowered[position - 1] if position else ""
        if word == "select":
            select = position
        elif word == "(":
            brackets.append((select, before))
        elif word == ")" and brackets:
            select = brackets.pop()[0]
        elif word in owners:
            owning.add(select)
        elif words[position][0].strip("'\"% ") == MASK:
            if before in ("(", ",") and brackets:
                before = brackets[-1][1]
            is_upper_bound = before == "and" and "between" in lowered[position - 3 : position]
            if before in _BEFORE_VALUES or is_upper_bound:
                never_a_column = before in ("limit", "offset") or word.startswith("'")
                masks.append((words[position], None if never_a_column else select))
    for match, select_of_it in reversed(masks):
        if select_of_it not in owning:
            start = match.start() + match[0].index(MASK)
            sql = f"{sql[:start]}1{sql[start + len(MASK) :]}"
    return sql


def results_match(gold: Sequence[Row], prediction: Sequence[Row], ordered: bool) -> bool:
    """Return whether two results are equal up to the order of columns, and of rows if that is free.

    The official comparison of test suites (arXiv 2010.02840): rows count with how often they occur;
    some exchange of whole columns must make the results equal; a text never equals a number. Column
    names do not count. Two empty results are equal whatever their columns.
    """
    if not gold and not prediction:
        return True
    if len(gold) != len(prediction) or len(gold[0]) != len(prediction[0]):
        return False
    # Row by row, whatever the columns' order: cheap, and the definition includes it, because it
    # sorts by text and type, for which 1 and 1.0 differ.
    one, other = [_sorted_row(row) for row in gold], [_sorted_row(row) for row in prediction]
    if one != other if ordered else set(one) != set(other):
        return False
    return _permute(list(zip(*gold, strict=True)), list(zip(*prediction, strict=True)), ordered)


def _sorted_row(row: Row) -> Row:
    return tuple(sorted(row, key=lambda value: str(value) + str(type(value))))


def _permute(gold: list[Row], columns: list[Row], ordered: bool) -> bool:
    """Search for an order of `columns` that makes them the gold ones, column by column."""

    def same(one: Sequence[Any], other: Sequence[Any]) -> bool:
        return one == other if ordered else Counter(one) == Counter(other)

    fitting = [[i for i, column in enumerate(columns) if same(left, column)] for left in gold]

    def search(chosen: list[int]) -> bool:
        if len(chosen) == len(gold):
            return True
        tried: list[Row] = []
        for candidate in fitting[len(chosen)]:
            if candidate in chosen or columns[candidate] in tried:
                continue
            tried.append(columns[candidate])
            longer = [*chosen, candidate]
            rows = list(zip(*gold[: len(longer)], strict=True))
            ours = list(zip(*(columns[i] for i in longer), strict=True))
            if same(rows, ours) and search(longer):
                return True
        return False

    return search([])
