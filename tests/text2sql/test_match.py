# ruff: noqa: E501
"""Exact set match, hardness and execution match are what the official evaluation makes of them."""

import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.text2sql.conftest import make, same_query
from tests.text2sql.queries import queries
from text2sql.match import (
    executable,
    hardness,
    normal_form,
    partial_match,
    results_match,
    without_masks,
)
from text2sql.schema import Schema
from text2sql.sql import Query, parse, to_sql

JOINED = (
    "SELECT T1.name FROM singer AS T1 JOIN singer_in_concert AS T2 ON T1.singer_id = T2.singer_id"
)


def match(schema: Schema, one: str, other: str) -> bool:
    return same_query(parse(one, schema), parse(other, schema), schema)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("SELECT name , age FROM singer", "select AGE, Name from SINGER"),
        ("SELECT DISTINCT name FROM singer", "SELECT name FROM singer"),
        ("SELECT count(DISTINCT name) FROM singer", "SELECT count(name) FROM singer"),
        ("SELECT name FROM singer WHERE age > 5", "SELECT name FROM singer WHERE age > 'x'"),
        (
            "SELECT name FROM singer WHERE age > 5 AND country = 'x'",
            "SELECT name FROM singer WHERE country = 'y' AND age > 1",
        ),
        (
            "SELECT name FROM singer WHERE age > 5 OR age < 2 AND country = 'x'",
            "SELECT name FROM singer WHERE country = 'x' AND age > 5 OR age < 2",
        ),
        (JOINED, JOINED.replace("T1", "x").replace("T2", "y")),
        (JOINED, "SELECT name FROM singer_in_concert JOIN singer"),
        # Equal over the foreign key, because both tables are joined.
        (JOINED.replace("T1.name", "T1.singer_id"), JOINED.replace("T1.name", "T2.singer_id")),
        ("SELECT name FROM singer LIMIT 3", "SELECT name FROM singer LIMIT 5"),
    ],
)
def test_these_are_one_query(one: str, other: str, schema: Schema) -> None:
    assert match(schema, one, other)
    assert match(schema, other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("SELECT name FROM singer", "SELECT name FROM stadium"),
        ("SELECT name FROM singer", "SELECT name, name FROM singer"),
        ("SELECT max(age) FROM singer", "SELECT min(age) FROM singer"),
        ("SELECT name FROM singer", JOINED),
        ("SELECT name FROM singer WHERE age > 5", "SELECT name FROM singer WHERE age >= 5"),
        ("SELECT name FROM singer WHERE age > 5", "SELECT name FROM singer"),
        (
            "SELECT name FROM singer WHERE age > 5 AND age < 9",
            "SELECT name FROM singer WHERE age > 5 OR age < 9",
        ),
        ("SELECT name FROM singer LIMIT 3", "SELECT name FROM singer"),
        ("SELECT name FROM singer ORDER BY age", "SELECT name FROM singer ORDER BY age DESC"),
        (
            "SELECT name FROM singer ORDER BY age, name",
            "SELECT name FROM singer ORDER BY name, age",
        ),
        (
            "SELECT name FROM singer GROUP BY name HAVING count(*) > 1 AND max(age) > 1",
            "SELECT name FROM singer GROUP BY name HAVING max(age) > 1 AND count(*) > 1",
        ),
        # In the sub-query of a condition DISTINCT and order count, and keys are not merged.
        (
            "SELECT name FROM singer WHERE age IN (SELECT DISTINCT age FROM singer)",
            "SELECT name FROM singer WHERE age IN (SELECT age FROM singer)",
        ),
        (
            "SELECT name FROM singer UNION SELECT title FROM concert",
            "SELECT name FROM singer EXCEPT SELECT title FROM concert",
        ),
        # Values count in the sub-query of FROM only.
        (
            "SELECT count(*) FROM (SELECT name FROM singer WHERE age > 5)",
            "SELECT count(*) FROM (SELECT name FROM singer WHERE age > 6)",
        ),
    ],
)
def test_these_are_two_queries(one: str, other: str, schema: Schema) -> None:
    assert not match(schema, one, other)
    assert not match(schema, other, one)


def test_columns_are_merged_only_where_their_table_is_in_from(schema: Schema) -> None:
    one = "SELECT stadium_id FROM concert"
    assert not match(schema, one, "SELECT stadium_id FROM stadium")
    # The outermost FROM decides for all parts of a combination.
    both = "{} UNION SELECT name FROM stadium"
    assert match(schema, both.format(one), both.format(one))


def test_a_prediction_that_does_not_parse_matches_nothing(schema: Schema) -> None:
    gold = parse("SELECT name FROM singer", schema)
    components = partial_match(None, normal_form(gold, schema))
    assert not components["select"]
    assert components["where"]  # both lack it


@pytest.mark.parametrize(
    ("sql", "level"),
    [
        ("SELECT name FROM singer", "easy"),
        ("SELECT name FROM singer WHERE age > 5", "easy"),
        ("SELECT name, age FROM singer", "medium"),
        ("SELECT name FROM singer WHERE age > 5 ORDER BY age", "medium"),
        ("SELECT name FROM singer WHERE age > (SELECT avg(age) FROM singer)", "hard"),
        ("SELECT name FROM singer EXCEPT SELECT title FROM concert", "hard"),
        ("SELECT name FROM singer WHERE age > 5 ORDER BY age LIMIT 1", "hard"),
        (
            "SELECT name, age FROM singer WHERE age > 5 AND age < 9 "
            "EXCEPT SELECT title, year FROM concert",
            "extra",
        ),
        ("SELECT name FROM singer WHERE age > 5 OR age < 2 GROUP BY name ORDER BY age LIMIT 1", "extra"),
    ],
)  # fmt: skip
def test_hardness_counts_components(sql: str, level: str, schema: Schema) -> None:
    assert hardness(parse(sql, schema)) == level


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), seed=st.integers(0, 10**6))
def test_order_case_and_aliases_do_not_matter(
    data: st.DataObject, seed: int, schema: Schema
) -> None:
    query, rng = data.draw(queries(schema, 1)), random.Random(seed)
    shuffled = Query(
        tuple(rng.sample(query.select, len(query.select))),
        *(getattr(query, name) for name in Query.__slots__[1:]),
    )
    text = to_sql(shuffled, schema)
    again = re.sub(r"\bT1\b", "first", text).swapcase()
    assert same_query(parse(again, schema), query, schema)
    form = normal_form(query, schema)
    assert all(partial_match(form, form).values())


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), part=st.sampled_from(Query.__slots__))
def test_components_agree_with_the_whole(data: st.DataObject, part: str, schema: Schema) -> None:
    """Of two queries, and of one and the same with one part of the other."""
    one, other = data.draw(queries(schema, 1)), data.draw(queries(schema, 1))
    mixed = replace(one, **{part: getattr(other, part)})
    form, *others = (normal_form(query, schema) for query in (one, other, mixed))
    for compared in others:
        assert all(partial_match(form, compared).values()) == (form == compared)


# --- execution -----------------------------------------------------------------------------------


def test_queries_run_without_distinct_and_with_operators_closed_up() -> None:
    assert executable("SELECT DISTINCT a FROM t WHERE b > = 1") == "SELECT  a FROM t WHERE b >= 1"
    assert executable("SELECT 'distinct' ; DROP TABLE t").strip() == "SELECT 'distinct' ;"
    assert executable("SELECT DISTINCT a FROM t", keep_distinct=True) == "SELECT DISTINCT a FROM t"
    assert executable("SELECT YEAR(CURDATE()) - 1") == "SELECT 2020- 1"
    assert executable("") == ""


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("WHERE age > value", "WHERE age > 1"),
        ("WHERE age > value;", "WHERE age > 1;"),
        ("WHERE age>value", "WHERE age>1"),
        ("WHERE age > = value OR age ! = value", "WHERE age > = 1 OR age ! = 1"),
        ("WHERE age > (value) AND name LIKE value", "WHERE age > (1) AND name LIKE 1"),
        ("WHERE age IN (value, value)", "WHERE age IN (1, 1)"),
        ("WHERE age BETWEEN value AND value", "WHERE age BETWEEN 1 AND 1"),
        ("WHERE name = \"value\" OR name = 'value'", "WHERE name = \"1\" OR name = '1'"),
        ("WHERE name LIKE '%value%'", "WHERE name LIKE '%1%'"),
        ("ORDER BY age LIMIT value", "ORDER BY age LIMIT 1"),
        ("GROUP BY age HAVING count(*) > value", "GROUP BY age HAVING count(*) > 1"),
        # No place of a value, another word, another text: as it is.
        ("WHERE value > 3 AND count(value) > 3", "WHERE value > 3 AND count(value) > 3"),
        ("WHERE age > 3 AND value = 2", "WHERE age > 3 AND value = 2"),
        ("WHERE age > T1.value + total_value", "WHERE age > T1.value + total_value"),
        ("WHERE name = 'best value'", "WHERE name = 'best value'"),
        ("ORDER BY value", "ORDER BY value"),
    ],
)
def test_the_word_value_stands_for_any_value(sql: str, expected: str, schema: Schema) -> None:
    assert without_masks(f"SELECT name FROM singer {sql}", schema) == (
        f"SELECT name FROM singer {expected}"
    )


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT x FROM boxes WHERE x > value", "SELECT x FROM boxes WHERE x > value"),
        ("SELECT x FROM Boxes AS T1 WHERE x > value", "SELECT x FROM Boxes AS T1 WHERE x > value"),
        ('SELECT x FROM boxes WHERE x = "value"', 'SELECT x FROM boxes WHERE x = "value"'),
        ("SELECT x FROM boxes WHERE x = 'value'", "SELECT x FROM boxes WHERE x = '1'"),
        (
            "SELECT x FROM boxes ORDER BY value LIMIT value",
            "SELECT x FROM boxes ORDER BY value LIMIT 1",
        ),
        ("SELECT y FROM rooms WHERE y > value", "SELECT y FROM rooms WHERE y > 1"),
        # Of its own FROM, not of another.
        (
            "SELECT y FROM rooms WHERE y > (SELECT x FROM boxes WHERE x > value) AND y < value",
            "SELECT y FROM rooms WHERE y > (SELECT x FROM boxes WHERE x > value) AND y < 1",
        ),
        (
            "SELECT x FROM boxes WHERE x > (SELECT y FROM rooms WHERE y > value)",
            "SELECT x FROM boxes WHERE x > (SELECT y FROM rooms WHERE y > 1)",
        ),
        (
            "SELECT y FROM rooms WHERE y > value UNION SELECT x FROM boxes WHERE x > value",
            "SELECT y FROM rooms WHERE y > 1 UNION SELECT x FROM boxes WHERE x > value",
        ),
    ],
)
def test_a_column_called_value_is_that_column(sql: str, expected: str, tmp_path: Path) -> None:
    ddl = "CREATE TABLE rooms (y INT); CREATE TABLE boxes (x INT, Value INT)"
    boxes = Schema.from_sqlite(make(tmp_path / "boxes.sqlite", ddl))
    assert without_masks(sql, boxes) == expected


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet="()'\",; =>vxs", max_size=30), at=st.integers(0, 30))
def test_any_text_is_read_for_masks(text: str, at: int, schema: Schema) -> None:
    found = without_masks(f"{text[:at]}value{text[at:]}", schema)
    assert found.replace("1", "value") == f"{text[:at]}value{text[at:]}"


@pytest.mark.parametrize(
    ("gold", "other", "ordered", "same"),
    [
        ([], [], True, True),
        ([(1,)], [], False, False),
        ([(1, "a"), (2, "b")], [("b", 2), ("a", 1)], False, True),
        ([(1, "a"), (2, "b")], [("b", 2), ("a", 1)], True, False),
        ([(1, "a"), (2, "b")], [("a", 1), ("b", 2)], True, True),
        ([(1,), (1,), (2,)], [(1,), (2,), (2,)], False, False),
        ([(1, 2), (2, 1)], [(1, 1), (2, 2)], False, False),
        ([(1, 2), (3, 4)], [(1, 4), (3, 2)], False, False),
        ([("1",)], [(1,)], False, False),
        ([(1.0,)], [(1,)], False, True),
        ([(None, b"x")], [(b"x", None)], False, True),
        ([(1,)], [(1, 1)], False, False),
    ],
)
def test_results_match_up_to_order(
    gold: list[tuple[object, ...]], other: list[tuple[object, ...]], ordered: bool, same: bool
) -> None:
    assert results_match(gold, other, ordered) == same


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 5).flatmap(
        lambda n: st.lists(st.tuples(*[st.integers(0, 2)] * n), min_size=1, max_size=6)
    ),
    st.randoms(use_true_random=False),
)
def test_any_exchange_of_columns_and_rows_matches(
    rows: list[tuple[int, ...]], rng: random.Random
) -> None:
    order = rng.sample(range(len(rows[0])), len(rows[0]))
    turned = [tuple(row[i] for i in order) for row in rows]
    assert results_match(rows, turned, ordered=True)
    rng.shuffle(turned)
    assert results_match(rows, turned, ordered=False)


def test_many_equal_columns_do_not_explode() -> None:
    rows = [(0,) * 12 + (i,) for i in range(50)]
    other = [(i,) + (0,) * 11 + (1,) for i in range(50)]
    assert not results_match(rows, other, ordered=False)
    assert results_match(rows, [row[::-1] for row in rows], ordered=False)


@pytest.mark.parametrize(
    ("component", "one", "other"),
    [
        ("order", "SELECT name FROM singer ORDER BY age LIMIT 1", "SELECT name FROM singer ORDER BY age"),
        ("keywords", "SELECT name FROM singer WHERE name NOT LIKE 'a'", "SELECT name FROM singer WHERE name LIKE 'a'"),
    ],
)  # fmt: skip
def test_a_component_differs(component: str, one: str, other: str, schema: Schema) -> None:
    forms = [normal_form(parse(query, schema), schema) for query in (one, other)]
    assert partial_match(forms[0], forms[1])[component] is False


def test_nothing_and_a_query_both_lack_a_group(schema: Schema) -> None:
    gold = normal_form(parse("SELECT name FROM singer", schema), schema)
    assert partial_match(None, gold)["group"]


def test_keys_are_merged_by_the_tables_of_the_first_part(schema: Schema) -> None:
    """A combined query's second part joins tables that the first one does not name."""
    combined = "SELECT stadium_id FROM stadium EXCEPT " + JOINED.replace("T1.name", "T1.singer_id")
    assert not match(schema, combined, combined.replace("EXCEPT SELECT T1", "EXCEPT SELECT T2"))
