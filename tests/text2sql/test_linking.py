"""Names, cells and numbers of a question are found in the database, and nothing is made up."""

import math
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from tests.text2sql.conftest import entry_of, make
from text2sql.grammar import Choice, linearise, replay
from text2sql.linking import RELATIONS, Links, link
from text2sql.schema import Schema
from text2sql.sql import parse, to_sql
from text2sql.words import stem


def relation(links: Links, schema: Schema, word: str, name: str) -> str:
    """The relation of a word of the question to `table` or `table.column`."""
    table, _, column = name.partition(".")
    index = schema.find_table(table)
    node = len(links.words) + len(schema.columns) + index
    if column:
        node = len(links.words) + schema.find_column(index, column)
    return RELATIONS[links.relations[links.words.index(word), node]]


def test_words_are_linked_with_the_names_that_they_name(schema: Schema) -> None:
    links = link("What are the ages and the names of all singers?", schema)
    assert relation(links, schema, "singers", "singer") == "exact table"
    assert relation(links, schema, "ages", "singer.Age") == "exact column"
    assert relation(links, schema, "singers", "singer.Singer_ID") == "partial column"
    assert relation(links, schema, "singers", "Stadium") == "none"
    assert relation(links, schema, "the", "singer.Age") == "none"


def test_a_name_of_several_words_is_found_whole(schema: Schema) -> None:
    links = link("Show the stadium id of each concert", schema)
    assert relation(links, schema, "stadium", "concert.Stadium_ID") == "exact column"
    assert relation(links, schema, "id", "concert.Stadium_ID") == "exact column"
    assert relation(links, schema, "id", "singer.Singer_ID") == "partial column"


def test_a_name_is_found_as_the_database_writes_it(schema: Schema) -> None:
    links = link("Show the stadium_id of each concert", schema)
    assert relation(links, schema, "stadium_id", "concert.Stadium_ID") == "exact column"
    assert relation(links, schema, "stadium_id", "singer.Singer_ID") == "partial column"


def test_cells_are_candidates_and_linked_with_their_columns(schema: Schema, database: Path) -> None:
    links = link("Which singers from france sang in 2014?", schema, database)
    france = next(c for c in links.candidates if c.value == "France")
    assert france.columns == (schema.find_column(schema.find_table("singer"), "Country"),)
    assert links.words[france.first : france.last + 1] == ("france",)
    assert relation(links, schema, "france", "singer.Country") == "value column"
    assert 2014.0 in links.values
    unknown = link("Which singers from france sang in 2014?", schema)
    assert "France" not in unknown.values


@pytest.mark.parametrize(
    ("question", "values"),
    [
        ("older than 30", {30.0}),
        ("at least two concerts, or twice as many", {2.0}),
        ("more than 1,500 people, or 2.5", {1500.0, 2.5}),
        ("colder than -5.5, or above -3", {-5.5, -3.0}),
        ("from 10-20, or A-7", {"10-20", 7.0}),
        ("titles that contain 'Ice Show'", {"Ice Show"}),
        ("in 'Los Angeles, CA (USA)'", {"Los Angeles, CA (USA)"}),
        ("the third grade, with an A", {3.0, "A"}),
        ('the album "A Kind of Magic"', {"A Kind of Magic"}),
        ("Is Mary Ann there?", {"Mary Ann"}),
        ("before 2002-06-21", {"2002-06-21"}),
        ("names starting with Al", {"Al"}),
    ],
)
def test_values_come_from_the_question(
    schema: Schema, question: str, values: set[float | str]
) -> None:
    found = link(question, schema).values
    assert values <= set(found)
    assert found[0] == 1.0  # what LIMIT says where the question does not


@pytest.mark.parametrize(
    ("question", "values"),
    [
        ("papers of 'Ann Lee'", {"Ann", "Lee", "Ann Lee"}),
        ('rooms in the mode "Ann."', {"Ann", "Ann."}),
        ("policies of type 'Ann'", {"Ann"}),
        ("policies of type 'uniform'", {"Uniformed", "uniform"}),
        ("who has the address ann.lee@example.org?", {"ann.lee@example.org"}),
    ],
)
def test_cells_are_found_in_quotations_and_addresses(
    question: str, values: set[str], tmp_path: Path
) -> None:
    cells = ("Ann", "Lee", "Uniformed", "ann.lee@example.org")
    rows = ", ".join(f"('{cell}')" for cell in cells)
    path = make(tmp_path / "own.sqlite", f"CREATE TABLE t (n TEXT); INSERT INTO t VALUES {rows}")
    assert values <= set(link(question, Schema.from_sqlite(path), path).values)


@pytest.mark.parametrize("apostrophe", ["'", "\u2019"])
def test_an_apostrophe_opens_no_quotation(apostrophe: str, schema: Schema) -> None:
    question = "the stadium's name and O'Brien's age, and who's older"
    values = link(question.replace("'", apostrophe), schema).values
    assert all(isinstance(value, float) or " " not in value for value in values)


def test_relations_are_seen_from_both_sides(schema: Schema, database: Path) -> None:
    links = link("Which singers from France are older than 30?", schema, database)
    mirror = {name: name.removesuffix(" r") for name in RELATIONS}
    names = np.array(RELATIONS)[links.relations]
    words = len(links.words)
    for row in range(words):
        for column in range(words, len(names)):
            assert mirror[names[column, row]] == names[row, column]


def test_keys_relate_columns_and_tables(schema: Schema) -> None:
    links = link("?", schema)
    words, columns = len(links.words), len(schema.columns)
    names = np.array(RELATIONS)[links.relations[words:, words:]]
    own, its = schema.foreign_keys[0]
    assert (names[own, its], names[its, own]) == ("foreign key", "foreign key r")
    here, there = (columns + schema.columns[c].table for c in (own, its))
    assert names[here, there].startswith("table key")
    assert names[own, here] in ("of table", "primary key")


def test_stems_join_the_forms_of_a_word() -> None:
    assert stem("Airlines") == stem("airline")
    assert stem("countries") == stem("Country")


def test_a_tables_json_may_name_what_the_file_does_not_have(schema: Schema, database: Path) -> None:
    entry = entry_of(schema)
    entry["column_names"].append([0, "colour"])
    entry["column_names_original"].append([0, "colour"])
    entry["column_types"].append("text")
    links = link("Which stadium is named Park?", Schema.from_entry(entry), database)
    assert "Park" in links.values


def test_a_database_that_changes_is_read_again(tmp_path: Path) -> None:
    path = make(tmp_path / "own.sqlite")
    schema = Schema.from_sqlite(path)
    assert "Zoe Ray" not in link("How old is zoe ray?", schema, path).values
    with closing(sqlite3.connect(path)) as db:
        db.execute("INSERT INTO singer VALUES (9, 'Zoe Ray', 'Peru', 1)")
        db.commit()
    found = link("How old is zoe ray?", schema, path)
    assert "Zoe Ray" in found.values
    path.unlink()
    with pytest.raises(ValueError, match="cannot be read any more"):
        link("Show Zoe Ray", schema, path)


def test_a_cell_is_found_however_its_letters_are_composed(tmp_path: Path) -> None:
    composed, apart = "Caf\u00e9 Z\u00fcrich", "Cafe\u0301 Zu\u0308rich"
    ddl = f"CREATE TABLE t (n TEXT); INSERT INTO t VALUES ('{apart}')"
    path = make(tmp_path / "own.sqlite", ddl)
    for said in (composed.upper(), apart, "cafe zurich"):
        assert apart in link(f"Where is {said}?", Schema.from_sqlite(path), path).values


@pytest.mark.parametrize(
    ("said", "value"),
    [
        ("9007199254740993", "9007199254740993"),
        ("007", "007"),
        ("5,000", 5000.0),
        ("2.50", 2.5),
        ("-3", -3.0),
    ],
)
def test_a_number_that_is_said_keeps_its_digits(
    said: str, value: float | str, tmp_path: Path
) -> None:
    """As a float the first one would find no row, and the row beside it."""
    rows = "(9007199254740993), (9007199254740992), (7), (5000), (2.5), (-3)"
    path = make(
        tmp_path / "own.sqlite", f"CREATE TABLE t (id INTEGER); INSERT INTO t VALUES {rows}"
    )
    schema = Schema.from_sqlite(path)
    values = link(f"Which one has {said}?", schema, path).values
    assert value in values
    gold = parse("SELECT id FROM t WHERE id = 1", schema)
    choices = linearise(gold, schema, values)
    choices[-2] = Choice("value", values.index(value))
    text = to_sql(replay(choices, schema, values)[0], schema)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute(text).fetchall() == [(float(value) if "." in said else int(value),)]


def test_digits_keep_what_a_number_would_lose(tmp_path: Path) -> None:
    cells = ("007", "12345678901234567890", "5551234567", "12")
    rows = ", ".join(f"('{cell}')" for cell in cells)
    path = make(tmp_path / "own.sqlite", f"CREATE TABLE t (code TEXT); INSERT INTO t VALUES {rows}")
    schema = Schema.from_sqlite(path)
    for cell in cells:
        found = link(f"Which code is {cell}?", schema, path)
        sql = "SELECT code FROM t WHERE code = 1"
        named = next(i for i, c in enumerate(found.candidates) if c.columns)
        choices = linearise(parse(sql, schema), schema, found.values)
        choices[-2] = Choice("value", named)
        query, _ = replay(choices, schema, found.values)
        assert to_sql(query, schema) == f"SELECT code FROM t WHERE code = '{cell}'"
    assert all(math.isfinite(v) for v in link("9" * 400, schema).values if isinstance(v, float))
