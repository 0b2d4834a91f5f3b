"""Random queries on a schema, for property tests: all that the benchmarks' language can say."""

from hypothesis import strategies as st

from text2sql.schema import Schema
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
    Value,
    ValueUnit,
)


@st.composite
def queries(draw: st.DrawFn, schema: Schema, depth: int = 2) -> Query:
    """Draw a query whose columns belong to the tables of its FROM."""
    count = len(schema.tables)
    tables = draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=3))
    places = [(t, tables[:i].count(t)) for i, t in enumerate(tables)]

    def column(aggregates: bool = True) -> ColumnUnit:
        table, occurrence = draw(st.sampled_from(places))
        aggregate = draw(st.sampled_from(("", *AGGREGATES))) if aggregates else ""
        if aggregate == "count" and draw(st.booleans()):
            return ColumnUnit(STAR, "count")
        index = draw(st.sampled_from(schema.tables[table].columns))
        return ColumnUnit(index, aggregate, bool(aggregate) and draw(st.booleans()), occurrence)

    def unit() -> ValueUnit:
        if draw(st.integers(0, 4)):
            return ValueUnit(column())
        return ValueUnit(column(False), draw(st.sampled_from(ARITHMETIC)), column(False))

    def conditions() -> Conditions:
        found: list[Condition | str] = []
        for number in range(draw(st.integers(0, 3))):
            if number:
                found.append(draw(st.sampled_from(("and", "or"))))
            operator = draw(st.sampled_from(("=", ">", "<", ">=", "<=", "!=", "in", "like")))
            text = st.text(alphabet="abc XY%", max_size=5)
            right: Value = draw(st.one_of(st.integers(-9, 99).map(float), text))
            negated = operator in ("in", "like") and draw(st.booleans())
            if operator == "in" or (depth > 0 and not draw(st.integers(0, 3))):
                if depth == 0:
                    operator, negated = "=", False
                else:
                    right = draw(queries(schema, depth - 1))
            found.append(Condition(unit(), operator, right, None, negated))
            if not draw(st.integers(0, 5)):
                found[-1] = Condition(unit(), "between", 1.0, 5.0, draw(st.booleans()))
        return tuple(found)

    def item() -> SelectItem:
        """Draw a result column; the language reads an aggregate there as the item's own."""
        found = unit()
        left = found.left
        if not left.aggregate:
            return SelectItem(found)
        inner = ColumnUnit(left.column, "", left.distinct, left.occurrence)
        return SelectItem(ValueUnit(inner), left.aggregate)

    items = [item() for _ in range(draw(st.integers(1, 3)))]
    on = [Condition(ValueUnit(column(False)), "=", column(False)) for _ in tables[1:]]
    joined = [part for condition in on for part in ("and", condition)][1:]
    group = tuple(column(False) for _ in range(draw(st.integers(0, 2))))
    order = draw(st.sampled_from(("", "asc", "desc")))
    combination = draw(st.sampled_from(("", "", *COMBINATIONS))) if depth else ""
    return Query(
        tuple(items),
        tuple(tables),
        tuple(joined),
        conditions(),
        group,
        conditions() if group else (),
        tuple(unit() for _ in range(draw(st.integers(1, 2)))) if order else (),
        order,
        draw(st.none() | st.integers(1, 9)),
        draw(st.booleans()),
        combination,
        draw(queries(schema, depth - 1)) if combination else None,
    )
