"""A small database of concerts, as schema, tables.json entry and SQLite file."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from text2sql.match import normal_form
from text2sql.schema import Schema
from text2sql.sql import Query

DDL = """
CREATE TABLE Stadium (Stadium_ID INTEGER PRIMARY KEY, Name TEXT, Capacity INT);
CREATE TABLE singer (Singer_ID INTEGER PRIMARY KEY, Name TEXT, Country VARCHAR(20), Age REAL);
CREATE TABLE concert (
    concert_ID INTEGER PRIMARY KEY, Title TEXT, Stadium_ID INT REFERENCES Stadium, Year TEXT
);
CREATE TABLE singer_in_concert (
    concert_ID INT, Singer_ID INT, PRIMARY KEY (concert_ID, Singer_ID),
    FOREIGN KEY (concert_ID) REFERENCES concert (concert_ID),
    FOREIGN KEY (Singer_ID) REFERENCES singer (Singer_ID)
);
INSERT INTO Stadium VALUES (1, 'Park', 500), (2, 'Lake', 900);
INSERT INTO singer VALUES (1, 'Ann', 'France', 30), (2, 'Bo', 'Peru', 41), (3, 'Cy', 'France', 25);
INSERT INTO concert VALUES (1, 'Spring', 1, '2014'), (2, 'Fall', 2, '2015'), (3, 'Ice', 2, '2015');
INSERT INTO singer_in_concert VALUES (1, 1), (2, 1), (2, 2), (3, 2);
"""


def make(path: Path, ddl: str = DDL) -> Path:
    """Write a SQLite file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as db:
        db.executescript(ddl)
    return path


def entry_of(schema: Schema) -> dict[str, Any]:
    """A schema as an entry of a tables.json."""
    return {
        "db_id": schema.db_id,
        "table_names": [table.words for table in schema.tables],
        "table_names_original": [table.name for table in schema.tables],
        "column_names": [[column.table, column.words] for column in schema.columns],
        "column_names_original": [[column.table, column.name] for column in schema.columns],
        "column_types": [column.kind for column in schema.columns],
        "primary_keys": list(schema.primary_keys),
        "foreign_keys": [list(pair) for pair in schema.foreign_keys],
    }


def same_query(one: Query, other: Query, schema: Schema) -> bool:
    """Whether two queries are equal by exact set match."""
    return normal_form(one, schema) == normal_form(other, schema)


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file DB/DB.sqlite in a folder of databases."""
    return make(tmp_path_factory.mktemp("databases") / "concerts" / "concerts.sqlite")


@pytest.fixture(scope="session")
def schema(database: Path) -> Schema:
    """The schema of `database`."""
    return Schema.from_sqlite(database)


@pytest.fixture
def entry(schema: Schema) -> dict[str, Any]:
    """The schema as an entry of a tables.json."""
    return entry_of(schema)


@pytest.fixture(scope="session")
def benchmark() -> Path:
    """The folder text2sql of the real data; skips where there is none."""
    folder = os.environ.get("FRUGAL_DATA")
    if not folder:
        pytest.skip("FRUGAL_DATA is not set: no benchmark data here")
    return Path(folder) / "text2sql"
