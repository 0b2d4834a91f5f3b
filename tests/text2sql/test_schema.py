"""A schema says the same from a SQLite file and from tables.json, and refuses what is malformed."""

import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.text2sql.conftest import DDL, make
from text2sql.execute import Database
from text2sql.schema import Schema, read_tables


def column(schema: Schema, table: str, name: str) -> int:
    index = schema.find_table(table)
    assert index is not None
    found = schema.find_column(index, name)
    assert found is not None
    return found


def test_sqlite_and_tables_json_say_the_same(schema: Schema, entry: dict[str, Any]) -> None:
    assert Schema.from_entry(json.loads(json.dumps(entry))) == schema
    assert schema.db_id == "concerts"
    assert [table.words for table in schema.tables][3] == "singer in concert"
    kinds = {column.name: column.kind for column in schema.columns}
    assert (kinds["Capacity"], kinds["Country"], kinds["Age"]) == ("number", "text", "number")


def test_names_are_found_whatever_their_case(schema: Schema) -> None:
    assert schema.find_table("STADIUM") == schema.find_table("stadium") == 0
    assert column(schema, "Singer", "NAME") != column(schema, "Stadium", "name")
    assert schema.find_table("nothing") is None
    assert schema.find_column(0, "age") is None


def test_keys_merge_columns_and_connect_tables(schema: Schema) -> None:
    stadium = column(schema, "stadium", "stadium_id")
    # The key of concert names no column: SQLite means the primary key of Stadium.
    assert schema.merged[column(schema, "concert", "stadium_id")] == stadium
    assert schema.merged[column(schema, "singer_in_concert", "singer_id")] == column(
        schema, "singer", "singer_id"
    )
    assert schema.join_path({0}) == ()
    # Stadium to singer: over concert and singer_in_concert.
    path = schema.join_path({0, 1})
    assert path is not None
    concert, both = schema.find_table("concert"), schema.find_table("singer_in_concert")
    assert path == ((0, concert), (concert, both), (both, 1))
    assert list(schema.keys_between(0, concert or 0).values()) == [
        ((stadium, column(schema, "concert", "stadium_id")),)
    ]


def test_tables_without_keys_are_not_joined(tmp_path: Path) -> None:
    file = make(tmp_path / "two.sqlite", "CREATE TABLE a (x); CREATE TABLE b (y)")
    assert Schema.from_sqlite(file).join_path({0, 1}) is None


def joins(file: Path) -> set[str]:
    """What can join tables of a SQLite file: each key as "a.x = b.y and a.z = b.w"."""
    schema = Schema.from_sqlite(file).joinable
    return {
        " and ".join(f"{schema.full_name(own)} = {schema.full_name(its)}" for own, its in key)
        for here in range(len(schema.tables))
        for there in range(here + 1, len(schema.tables))
        for key in schema.keys_between(here, there).values()
    }


@pytest.mark.parametrize(
    ("ddl", "expected"),
    [
        # Declared: whole keys, of one name or of several; what they refer to may be left out.
        (
            "a (x, y, PRIMARY KEY (x, y)); CREATE TABLE b (p, q, x, "
            "FOREIGN KEY (p, q) REFERENCES a (x, y))",
            {"a.x = b.p and a.y = b.q"},
        ),
        (
            "users (tenant, id, PRIMARY KEY (tenant, id)); CREATE TABLE sales (tenant, buyer, "
            "seller, FOREIGN KEY (tenant, buyer) REFERENCES users, "
            "FOREIGN KEY (tenant, seller) REFERENCES users (tenant, id))",
            {
                "users.tenant = sales.tenant and users.id = sales.buyer",
                "users.tenant = sales.tenant and users.id = sales.seller",
            },
        ),
        (  # without names it is the primary key, in its own order
            "a (x, y, PRIMARY KEY (y, x)); CREATE TABLE b (p, q, FOREIGN KEY (p, q) REFERENCES a)",
            {"a.y = b.p and a.x = b.q"},
        ),
        (
            "airport (code PRIMARY KEY); CREATE TABLE flight (source REFERENCES airport, "
            "target REFERENCES airport)",
            {"airport.code = flight.source", "airport.code = flight.target"},
        ),
        (
            "boss (id, team REFERENCES team (id)); CREATE TABLE team (id, head REFERENCES boss "
            "(id))",
            {"boss.team = team.id", "boss.id = team.head"},
        ),
        # One key within another is no key of its own.
        (
            "a (x, y, PRIMARY KEY (x, y)); CREATE TABLE b (x REFERENCES a (x), y, "
            "FOREIGN KEY (x, y) REFERENCES a (x, y))",
            {"a.x = b.x and a.y = b.y"},
        ),
        # Not declared: names of tables and their keys, whatever their form; never id = id.
        ("customers (id, name); CREATE TABLE orders (id, customer_id, name)",
         {"customers.id = orders.customer_id"}),
        ("Customer (ID, Name); CREATE TABLE Orders (ID, CustomerID, Name)",
         {"Customer.ID = Orders.CustomerID"}),
        ("categories (id); CREATE TABLE item (id, categoryid)",
         {"categories.id = item.categoryid"}),
        ("people (id); CREATE TABLE pet (id, person_id)", {"people.id = pet.person_id"}),
        ("orders (id, nr); CREATE TABLE item (id, order_nr)", {"orders.nr = item.order_nr"}),
        ("author (aid INTEGER PRIMARY KEY, name); CREATE TABLE book (id, author INTEGER)",
         {"author.aid = book.author"}),
        ("author (idAuthor INTEGER PRIMARY KEY); CREATE TABLE book (id, id_author INTEGER)",
         {"author.idAuthor = book.id_author"}),
        ("country (id INTEGER PRIMARY KEY, name TEXT); CREATE TABLE singer (id, country TEXT)",
         {"country.name = singer.country"}),
        ("team (id, name); CREATE TABLE game (id, team1_id, guest_team_id, team_id_winner)",
         {"team.id = game.team1_id", "team.id = game.guest_team_id",
          "team.id = game.team_id_winner"}),
        # A reference counts before columns of equal name, and those of keys before others.
        ("customers (id, zip_code); CREATE TABLE orders (id, customer_id, zip_code)",
         {"customers.id = orders.customer_id"}),
        ("trip (id, zip_code, wind); CREATE TABLE weather (id, zip_code, wind)",
         {"trip.zip_code = weather.zip_code"}),
        ("list (id, room); CREATE TABLE teacher (id, Room)", {"list.room = teacher.Room"}),
        # What every table may have joins nothing.
        ("product (id, name, price, year); CREATE TABLE customer (id, name, price, year)", set()),
    ],
)  # fmt: skip
def test_keys_and_names_tell_what_joins(ddl: str, expected: set[str], tmp_path: Path) -> None:
    assert joins(make(tmp_path / "own.sqlite", f"CREATE TABLE {ddl}")) == expected


def test_a_list_of_pairs_is_read_as_keys_by_their_names(entry: dict[str, Any]) -> None:
    """tables.json has no keys of several columns: equal names tell which pairs are one."""
    entry["column_names_original"] = [
        [-1, "*"], [0, "course"], [0, "year"], [1, "course"], [1, "year"], [1, "next"],
    ]  # fmt: skip
    entry["column_names"] = entry["column_names_original"]
    entry["column_types"] = ["text"] * 6
    entry["primary_keys"] = []
    entry["foreign_keys"] = [[3, 1], [5, 1], [4, 2]]
    schema = Schema.from_entry(entry)
    assert schema.foreign_keys == ((3, 1), (5, 1), (4, 2))
    assert set(schema.keys) == {((3, 1), (4, 2)), ((5, 1),)}


def test_what_nobody_made_is_hidden_and_views_are_offered(tmp_path: Path) -> None:
    ddl = """CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT, v TEXT);
    CREATE VIEW old AS SELECT v AS word, id FROM t; INSERT INTO t (v) VALUES ('x');
    CREATE VIEW broken AS SELECT v FROM gone; CREATE VIRTUAL TABLE notes USING fts5 (body);
    CREATE TABLE last (x); ANALYZE"""
    schema = Schema.from_sqlite(make(tmp_path / "own.sqlite", ddl))
    assert [table.name for table in schema.tables] == ["t", "notes", "last", "old"]
    assert [schema.full_name(c) for c in schema.tables[3].columns] == ["old.word", "old.id"]


def test_columns_are_those_that_a_star_has(tmp_path: Path) -> None:
    """Generated ones among them, and of a virtual table none of its own."""
    ddl = "CREATE TABLE t (a INT, b INT AS (a * 2), c TEXT AS (a || 'x') STORED);"
    file = make(tmp_path / "a.sqlite", ddl + "CREATE VIRTUAL TABLE f USING fts5(title, body)")
    schema = Schema.from_sqlite(file)
    for table in schema.tables:
        star = Database(file).execute(f"SELECT * FROM {table.name}").columns
        assert star == tuple(schema.columns[index].name for index in table.columns)
    assert [column.kind for column in schema.columns[1:4]] == ["number", "number", "text"]


def test_columns_without_a_type_are_of_the_kind_that_they_hold(tmp_path: Path) -> None:
    """There SQLite finds no 5551234 where '5551234' stands: a value's kind must be its cells'."""
    ddl = "CREATE TABLE t (phone BLOB, age, ratio, mixed, none, d DATE);"
    rows = "INSERT INTO t VALUES ('5551234', 30, 1, 'x', NULL, 1), (NULL, 31, 1.5, 2, NULL, 1);"
    view = "CREATE VIEW v AS SELECT phone || '' AS phone, count(*) AS n FROM t"
    schema = Schema.from_sqlite(make(tmp_path / "a.sqlite", ddl + rows + view))
    kinds = ["text", "number", "number", "others", "others", "time", "text", "number"]
    assert [column.kind for column in schema.columns[1:]] == kinds


def test_groups_of_equal_columns_that_meet_late_stay_two(entry: dict[str, Any]) -> None:
    """Spider's evaluation joins a key to the first group it touches, and never joins groups."""
    entry["foreign_keys"] = [[1, 2], [4, 5], [2, 5]]
    assert Schema.from_entry(entry).merged == {1: 1, 2: 1, 4: 4, 5: 4}


def test_odd_names_and_files_are_read(tmp_path: Path) -> None:
    ddl = 'CREATE TABLE "my ""table""" ("a b" INT, "%x" TEXT, camelCase DATE)'
    schema = Schema.from_sqlite(make(tmp_path / "odd.sqlite", ddl))
    assert schema.tables[0].name == 'my "table"'
    assert [c.words for c in schema.columns[1:]] == ["a b", "%x", "camel case"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"db_id": None}, "db_id"),
        ({"column_types": None}, "column_types"),
        ({"table_names": ["one"]}, "table_names has 1 items"),
        ({"foreign_keys": [[1, 99]]}, r"foreign_keys\[0\]: 99"),
        ({"foreign_keys": [[1]]}, r"foreign_keys\[0\]"),
        ({"primary_keys": [0]}, "primary_keys: 0"),
        ({"table_names_original": [1, 2, 3, 4]}, r"table_names_original\[0\]"),
    ],
)
def test_a_malformed_entry_is_named(
    change: dict[str, Any], words: str, entry: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "tables.json"
    file.write_text(json.dumps([entry, {**entry, "db_id": "second", **change}]))
    with pytest.raises(ValueError, match=words) as caught:
        read_tables(file)
    assert f"{file}: entry 1" in str(caught.value)


def test_a_column_of_no_table_is_named(entry: dict[str, Any]) -> None:
    entry["column_names_original"][3] = [7, "x"]
    with pytest.raises(ValueError, match=r"entry \(concerts\): column_names_original\[3\]"):
        Schema.from_entry(entry)


@pytest.mark.parametrize(
    ("content", "words"), [("{", "not JSON"), ("{}", "must be a list"), ("[3]", "entry 0")]
)
def test_a_file_of_another_form_is_named(content: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "tables.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=words):
        read_tables(file)


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    for read in (read_tables, Schema.from_sqlite):
        with pytest.raises(ValueError, match=r"nowhere"):
            read(tmp_path / "nowhere")
    (tmp_path / "text.sqlite").write_text("this is no database, and longer than its head" * 20)
    with pytest.raises(ValueError, match=r"text.sqlite: cannot be read"):
        Schema.from_sqlite(tmp_path / "text.sqlite")


def test_reading_leaves_nothing_and_waits_no_longer_than_it_may(tmp_path: Path) -> None:
    file = make(tmp_path / "wal.sqlite", f"PRAGMA journal_mode = WAL; {DDL}")
    before = file.read_bytes()
    assert len(Schema.from_sqlite(file).tables) == 4
    assert list(tmp_path.iterdir()) == [file]
    assert file.read_bytes() == before
    with closing(sqlite3.connect(make(tmp_path / "busy.sqlite"), isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        start = time.perf_counter()
        with pytest.raises(ValueError, match=r"busy.sqlite: .* locked the database; long"):
            Schema.from_sqlite(tmp_path / "busy.sqlite", seconds=0.3)
        assert time.perf_counter() - start < 2


def test_a_virtual_table_of_an_unknown_module_is_left_out_and_named(tmp_path: Path) -> None:
    file = make(
        tmp_path / "virtual.sqlite",
        """CREATE TABLE one (x);
        PRAGMA writable_schema = ON;
        INSERT INTO sqlite_master VALUES
            ('table', 'alien', 'alien', 0, 'CREATE VIRTUAL TABLE alien USING unheard_of(x)');
        CREATE TABLE two (y REFERENCES one (x));
        CREATE VIRTUAL TABLE docs USING fts5(body);""",
    )
    with pytest.warns(UserWarning, match=r"virtual.sqlite: alien is left out: .*unheard_of"):
        schema = Schema.from_sqlite(file)
    assert [table.name for table in schema.tables] == ["one", "two", "docs"]
    assert [schema.full_name(column) for pair in schema.foreign_keys for column in pair] == [
        "two.y", "one.x"
    ]  # fmt: skip


def test_double_names_are_refused(entry: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "tables.json").write_text(json.dumps([entry, entry]))
    with pytest.raises(ValueError, match=r"entry 1.*twice"):
        read_tables(tmp_path / "tables.json")


def test_a_database_of_many_tables_is_read_in_seconds(tmp_path: Path) -> None:
    names = [f"thing{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(500)]
    ddl = ";".join(f"CREATE TABLE {n} (id, owner_id, created_by, city, parent_code)" for n in names)
    schema = Schema.from_sqlite(make(tmp_path / "many.sqlite", f"{ddl}; CREATE TABLE owner (id)"))
    began = time.process_time()
    assert len(schema.joinable.keys) == 500  # every owner_id
    assert schema.joinable.join_path({0, 7}) == ((0, 500), (500, 7))
    assert time.process_time() - began < 3  # 0.3 s measured
