# ruff: noqa: E501, PT017
"""The benchmarks' SQL is read as their evaluator reads it, and tree and text turn into each other."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlglot
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.text2sql.conftest import make
from tests.text2sql.queries import queries
from text2sql.match import normal_form
from text2sql.schema import Schema, read_tables
from text2sql.sql import (
    STAR,
    ColumnUnit,
    Condition,
    Query,
    SqlError,
    ValueUnit,
    parse,
    to_sql,
    tokenise,
)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("SELECT Name , AGE", ["select", "name", ",", "age"]),
        (
            "a ! = 1 and b > =2 or c <= 3",
            ["a", "!=", "1", "and", "b", ">", "=2", "or", "c", "<=", "3"],
        ),
        ("count(*)>=3", ["count", "(", "*", ")", ">", "=3"]),
        ("x = 'New York'", ["x", "=", '"New York"']),
        ("x='a'", ["x=__val_2_5__"]),
        ("a,b , c,1", ["a", ",", "b", ",", "c,1"]),
        ("T1.a;", ["t1.a", ";"]),
        ("limit 1.", ["limit", "1", "."]),
        ("from cannot", ["from", "can", "not"]),
        ("`a` -- b..", ["`", "a", "`", "--", "b", ".."]),
        ("", []),
    ],
)
def test_words_are_split_as_in_english_text(text: str, tokens: list[str]) -> None:
    assert tokenise(text) == tokens


def test_an_odd_quote_is_an_error() -> None:
    with pytest.raises(SqlError, match="quotes"):
        tokenise('name = "O\'Brien"')


@pytest.mark.parametrize(
    "text",
    [
        "SELECT name FROM singer WHERE age=3",
        "SELECT count(*) AS n FROM singer",
        "SELECT name FROM singer, concert",
        "SELECT name FROM singer AS singer",
        "SELECT T1.name FROM singer AS T1 LEFT JOIN concert AS T2 ON T1.name = T2.title",
        "SELECT name FROM (SELECT name FROM singer) AS t",
        "SELECT name FROM singer WHERE age IN (1, 2)",
        "SELECT name FROM singer WHERE age IS NOT NULL",
        "SELECT name FROM singer WHERE NOT age = 1",
        "SELECT name FROM singer WHERE EXISTS (SELECT * FROM concert)",
        "SELECT max(age) - min(age) FROM singer",
        "SELECT name FROM singer ORDER BY age LIMIT",
        "SELECT title FROM singer",
        "SELECT T9.name FROM singer AS T1",
        "SELECT name FROM nothing",
        "SELECT name",
        "DROP TABLE singer",
        "",
        "SELECT name FROM singer UNION ALL SELECT name FROM singer",
        "SELECT `name` FROM singer",
        "(" * 5000 + "SELECT name FROM singer",
    ],
)
def test_what_the_benchmarks_do_not_know_is_an_error(text: str, schema: Schema) -> None:
    with pytest.raises(SqlError):
        parse(text, schema)


def test_a_query_becomes_a_tree_of_indices(schema: Schema) -> None:
    text = (
        "SELECT DISTINCT T1.name , count ( * ) FROM singer AS T1 JOIN singer_in_concert AS T2 ON "
        "T1.singer_id  =  T2.singer_id WHERE T1.age  >  20 AND T1.country ! = 'Peru' "
        "GROUP BY T1.singer_id HAVING count ( * )  > = 2 ORDER BY T1.age DESC LIMIT 3"
    )
    query = parse(text, schema)
    assert query.sources == (1, 3)
    assert query.distinct
    assert query.limit == 3
    assert query.order == "desc"
    assert [item.aggregate for item in query.select] == ["", "count"]
    assert query.select[1].value == ValueUnit(ColumnUnit(STAR))
    assert [c.operator for c in query.where if isinstance(c, Condition)] == [">", "!="]
    assert query.where[2].right == "Peru"
    assert query.having[0].right == 2.0
    assert parse(to_sql(query, schema), schema) == query


def test_what_follows_a_whole_query_is_ignored(schema: Schema) -> None:
    whole = parse("SELECT name FROM singer ORDER BY age", schema)
    assert parse("SELECT name FROM singer ORDER BY age ; whatever 1", schema) == whole


def test_words_that_are_no_condition_are_swallowed_after_a_column(schema: Schema) -> None:
    """The official reader takes all up to AND, a comma or a clause as one value."""
    query = parse("SELECT name FROM singer WHERE age = age or age > 5 GROUP BY name", schema)
    assert len(query.where) == 1
    assert query.group_by


def test_aliases_hold_everywhere_and_the_last_one_counts(schema: Schema) -> None:
    text = (
        "SELECT T1.title FROM singer AS T1 WHERE T1.title = 'x' "
        "UNION SELECT T1.title FROM concert AS T1"
    )
    query = parse(text, schema)
    assert [part.sources for part in (query, query.combined)] == [(1,), (2,)]
    # The second T1 wins in both parts: the first one's columns are not of its own table.
    columns = [part.select[0].value.left.column for part in (query, query.combined)]
    assert {schema.columns[column].table for column in columns} == {2}
    with pytest.raises(SqlError, match="title"):
        parse(text, schema, standard=True)
    query = parse(
        text.replace("T1.title FROM singer", "T1.name FROM singer").replace(
            "T1.title =", "T1.name ="
        ),
        schema,
        standard=True,
    )
    columns = [part.select[0].value.left.column for part in (query, query.combined)]
    assert [schema.columns[column].table for column in columns] == [1, 2]


ODD = """CREATE TABLE "order" ("group" INTEGER PRIMARY KEY, "a.b" TEXT, "it's" TEXT);
CREATE TABLE "order items" ("order id" INT REFERENCES "order"("group"), "a""b" TEXT, age INT);
INSERT INTO "order" VALUES (1, 'x', 'O''Brien'), (2, 'y', NULL);
INSERT INTO "order items" VALUES (1, 'p', 30), (2, 'q', -5)"""


@pytest.mark.parametrize(
    "sql",
    [
        'SELECT "a.b" FROM "order"',
        "SELECT `a.b`, [it's] FROM `order` WHERE \"it's\" = 'O''Brien'",
        'SELECT t."a""b" FROM "order items" t INNER JOIN "order" o ON t."order id"=o."group"',
        "SELECT age AS years FROM [order items] WHERE age>=-5 AND age <>30;",
        "select count(*) -- how many\nfrom /* all */ [order items] where age==30 ; -- end",
        """SELECT age FROM [order items] WHERE `a"b` IN ('q') ORDER BY age DESC, "order id" DESC""",
        'SELECT i."a""b" FROM "order items" AS i WHERE i.age>(SELECT avg(age) FROM "order items")',
    ],
)
def test_standard_sql_is_read_as_sqlite_reads_it(sql: str, tmp_path: Path) -> None:
    file = make(tmp_path / "odd.sqlite", ODD)
    schema = Schema.from_sqlite(file)
    with pytest.raises(SqlError):
        parse(sql, schema)
    text = to_sql(parse(sql, schema, standard=True), schema)
    with closing(sqlite3.connect(file)) as db:
        assert db.execute(text).fetchall() == db.execute(sql).fetchall() != []
    assert to_sql(parse(text, schema, standard=True), schema) == text


@pytest.mark.parametrize(
    "text",
    [
        "SELECT name FROM singer ORDER BY age > 5",
        "SELECT name FROM singer ORDER BY age DESC, name",
        "SELECT name FROM singer ORDER BY age, name DESC",
        "SELECT name FROM singer ORDER BY age LIMIT -1",
        "SELECT name FROM singer ORDER BY age LIMIT 3 OFFSET 2",
        "SELECT name FROM singer; SELECT age FROM singer",
        "SELECT name FROM singer WHERE name = 'Ann",
        "SELECT name FROM singer, concert",
        "SELECT name FROM singer LEFT JOIN concert ON singer_id = concert_id",
        "SELECT name FROM singer WHERE age IN (1, 2)",
        "SELECT name FROM singer WHERE (age = 1 OR age = 2) AND name = 'x'",
        "SELECT name || 'x' FROM singer",
        "SELECT CASE WHEN age = 1 THEN 2 END FROM singer",
    ],
)
def test_standard_sql_is_read_whole_or_not(text: str, schema: Schema) -> None:
    with pytest.raises(SqlError):
        parse(text, schema, standard=True)


def test_self_joins_keep_their_sides(schema: Schema) -> None:
    text = "SELECT T2.Name FROM singer AS T1 JOIN singer AS T2 ON T1.Age = T2.Age"
    query = parse(text, schema)
    assert query.select[0].value.left.occurrence == 1
    assert to_sql(query, schema) == text


def test_no_alias_is_a_tables_name(tmp_path: Path) -> None:
    ddl = "CREATE TABLE t1 (a INT); CREATE TABLE T3 (b INT); INSERT INTO t1 VALUES (5)"
    file = make(tmp_path / "t.sqlite", f"{ddl}; INSERT INTO T3 VALUES (5)")
    schema = Schema.from_sqlite(file)
    text = to_sql(parse("SELECT b FROM t1 JOIN T3 ON a = b", schema), schema)
    assert text == "SELECT T4.b FROM t1 AS T2 JOIN T3 AS T4 ON T2.a = T4.b"
    assert to_sql(parse(text, schema), schema) == text
    with closing(sqlite3.connect(file)) as db:
        assert db.execute(text).fetchall() == [(5,)]


def test_names_that_need_quotes_get_them(tmp_path: Path) -> None:
    ddl = 'CREATE TABLE "order" ("a b" INT, "group" TEXT)'
    schema = Schema.from_sqlite(make(tmp_path / "odd.sqlite", ddl))
    query = Query(
        select=parse("SELECT * FROM x", Schema.from_sqlite(make(tmp_path / "x.sqlite", "CREATE TABLE x (y)"))).select,
        sources=(0,),
        where=(Condition(ValueUnit(ColumnUnit(1)), "=", "it's"),),
        group_by=(ColumnUnit(2),),
    )  # fmt: skip
    text = to_sql(query, schema)
    assert text == """SELECT * FROM "order" WHERE "a b" = 'it''s' GROUP BY "group\""""
    with closing(sqlite3.connect(tmp_path / "odd.sqlite")) as db:
        assert db.execute(text).fetchall() == []


def test_a_column_of_a_table_that_is_not_there_cannot_be_written(schema: Schema) -> None:
    query = parse("SELECT name FROM singer", schema)
    with pytest.raises(SqlError, match="Name"):
        to_sql(Query(query.select, (2,)), schema)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_tree_becomes_sql_that_parses_back_and_that_sqlite_takes(
    data: st.DataObject, schema: Schema, database: Path
) -> None:
    query = data.draw(queries(schema))
    text = to_sql(query, schema)
    again = parse(text, schema)
    assert normal_form(again, schema) == normal_form(query, schema), text
    assert to_sql(again, schema) == text
    sqlglot.parse_one(text, read="sqlite")
    with closing(sqlite3.connect(database)) as db:
        try:
            db.execute(text)
        except sqlite3.OperationalError as error:
            # What is well formed and still no query: aggregates in WHERE, sub-queries of two columns.
            allowed: tuple[str, ...] = (
                "misuse of aggregate",
                "same number of result columns",
                "columns - expected",
            )
            allowed += ("before a set operation", "clause should come after", "DISTINCT aggregates")
            allowed += ("term does not match", "ORDER BY clause", "LIMIT clause", "row value")
            assert any(words in str(error) for words in allowed), (text, str(error))


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=60) | st.lists(st.sampled_from(
    ["select", "from", "where", "(", ")", ",", "*", "=", "name", "singer", "age", "and", "or", "in", "not", "as", "t1", "t1.name", "group", "by", "order", "limit", "'", ";", "."]
), max_size=25).map(" ".join))  # fmt: skip
def test_no_text_raises_anything_but_sql_error(text: str, schema: Schema) -> None:
    try:
        parse(text, schema)
    except SqlError:
        pass
    else:
        assert "from" in text.lower()


def test_gold_queries_of_all_benchmarks_survive_the_way_to_text_and_back(benchmark: Path) -> None:
    schemas = read_tables(benchmark / "spider" / "tables.json")
    total = unread = 0
    for name in ("spider/train_gold.sql", "spider/dev_gold.sql", "sparc/dev_gold.txt"):
        for line in (benchmark / name).read_text().splitlines():
            sql, _, db_id = line.partition("\t")
            if not sql.strip():
                continue
            total += 1
            schema = schemas[db_id.strip()]
            try:
                query = parse(sql, schema, standard=True)
            except SqlError:
                unread += 1
                continue
            try:
                again = parse(to_sql(query, schema), schema)
            except SqlError as error:
                # A value with a quote in it, or a name with signs: see to_sql.
                assert "'" in sql or '"' in to_sql(query, schema), (sql, str(error))
                continue
            assert normal_form(again, schema) == normal_form(query, schema), sql
    assert total > 9000
    assert unread < 10
