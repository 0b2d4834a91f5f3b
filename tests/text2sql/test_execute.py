# ruff: noqa: E501, RUF001
"""No statement, hostile or broken, can change, leave or hang a database."""

import hashlib
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.text2sql.conftest import DDL, make
from text2sql.execute import Database, Limits, cells
from text2sql.schema import Schema

LIMITS = Limits(seconds=0.3, rows=1000, result_bytes=2_000_000)
# A statement may go on for a moment until SQLite looks at the clock; a loaded machine takes longer.
GRACE = 2.0

_WRITES = [
    "DROP TABLE singer",
    "DROP TABLE IF EXISTS concert; SELECT 1",
    "DELETE FROM singer",
    "DELETE FROM singer WHERE 1 = 1 RETURNING *",
    "UPDATE singer SET Name = 'x'",
    "UPDATE singer SET Age = 1 RETURNING Name",
    "INSERT INTO singer VALUES (9, 'x', 'y', 1)",
    "INSERT INTO singer SELECT * FROM singer RETURNING 1",
    "REPLACE INTO singer VALUES (1, 'x', 'y', 1)",
    "CREATE TABLE evil (x)",
    "CREATE TABLE evil AS SELECT * FROM singer",
    "CREATE TEMP TABLE evil AS SELECT * FROM singer",
    "CREATE INDEX evil ON singer (Name)",
    "CREATE VIEW evil AS SELECT 1",
    "CREATE TRIGGER evil AFTER INSERT ON singer BEGIN DELETE FROM singer; END",
    "CREATE VIRTUAL TABLE evil USING fts5(x)",
    "CREATE VIRTUAL TABLE evil USING fts3(tokenize=simple)",
    "CREATE VIRTUAL TABLE temp.evil USING rtree(id, a, b)",
    "ALTER TABLE singer RENAME TO evil",
    "ALTER TABLE singer ADD COLUMN evil",
    "ALTER TABLE singer DROP COLUMN Name",
    "REINDEX",
    "ANALYZE",
    "VACUUM",
    "VACUUM INTO '{folder}/copy.sqlite'",
    "BEGIN",
    "BEGIN EXCLUSIVE",
    "COMMIT",
    "ROLLBACK",
    "SAVEPOINT a",
    "RELEASE a",
    "END",
    "WITH x AS (SELECT 1) DELETE FROM singer",
    "WITH x AS (SELECT 1) INSERT INTO singer SELECT 7, 'a', 'b', 1 FROM x",
    "WITH x AS (SELECT 1) UPDATE singer SET Name = 'q'",
    "WITH x AS (DELETE FROM singer RETURNING *) SELECT * FROM x",
]
_ESCAPES = [
    "ATTACH '{folder}/evil.sqlite' AS evil",
    "ATTACH DATABASE ':memory:' AS evil",
    "ATTACH 'file:{folder}/evil.sqlite?mode=rwc' AS evil",
    "DETACH main",
    "SELECT * FROM singer; ATTACH '{folder}/evil.sqlite' AS evil",
    "PRAGMA writable_schema = ON",
    "PRAGMA journal_mode = WAL",
    "PRAGMA journal_mode = DELETE",
    "PRAGMA query_only = OFF",
    "PRAGMA user_version = 7",
    "PRAGMA application_id = 7",
    "PRAGMA temp_store_directory = '{folder}'",
    "PRAGMA wal_checkpoint",
    "PRAGMA hard_heap_limit = 0",
    "PRAGMA table_info(singer)",
    "pragma main.page_size = 512",
    "PRAGMA optimize",
    "PRAGMA incremental_vacuum",
    "SELECT * FROM pragma_table_info('singer')",
    "SELECT * FROM pragma_database_list",
    "SELECT * FROM pragma_user_version",
    "SELECT * FROM pragma_writable_schema",
    "SELECT * FROM pragma_journal_mode('wal')",
    "SELECT load_extension('{folder}/evil')",
    "SELECT load_extension('/lib/x86_64-linux-gnu/libc.so.6', 'system')",
    "SELECT LOAD_EXTENSION ('evil') FROM singer",
    "SELECT writefile('{folder}/evil', 'x')",
    "SELECT readfile('/etc/passwd')",
    "SELECT edit('x')",
    "SELECT fts3_tokenizer('simple')",
    "SELECT fts3_tokenizer('evil', x'4141414141414141')",
    "SELECT fts5(1)",
    "SELECT rtreecheck('singer')",
    "SELECT sqlite_compileoption_get(1)",
    "SELECT sqlite_log(1, 'x')",
    "SELECT sqlite_version()",
    "SELECT snippet(singer) FROM singer",
    "SELECT matchinfo(singer) FROM singer",
    "SELECT optimize(singer) FROM singer",
    "SELECT evil_function(1)",
    "SELECT zeroblob(1000000000)",
    "SELECT randomblob(1000000000)",
    "SELECT hex(zeroblob(500000000))",
    "SELECT * FROM sqlite_dbpage",
    "SELECT * FROM generate_series(1, 1000000000)",
    "SELECT changes(), total_changes(), last_insert_rowid()",
    ".shell touch {folder}/evil",
    ".output {folder}/evil",
    "EXPLAIN SELECT * FROM singer",
    "EXPLAIN QUERY PLAN SELECT 1",
]
_SEVERAL = [
    "SELECT 1; SELECT 2",
    "SELECT 1; DROP TABLE singer",
    "SELECT 1;; DROP TABLE singer;",
    "SELECT 1; -- harmless\nDELETE FROM singer",
    "SELECT 1 /* ; */ ; /* */ UPDATE singer SET Age = 0",
    "SELECT ';' ; DELETE FROM singer",
    "; DROP TABLE singer",
    ";;;",
    "SELECT 1\n;\nVACUUM",
    "SELECT 1; PRAGMA user_version = 3",
    "SELECT 1;\x0bDELETE FROM singer",
    "SELECT 1; SELECT 1; SELECT 1; SELECT 1; DROP TABLE concert",
    "SELECT 1; BEGIN; DELETE FROM singer; COMMIT",
    'SELECT "a;b"; DELETE FROM singer',
    "SELECT [a;b]; DELETE FROM singer",
    "SELECT 1 ; CREATE TRIGGER t AFTER INSERT ON singer BEGIN SELECT 1; END; SELECT 2",
]
_HIDDEN = [
    "/* SELECT */ DROP TABLE singer",
    "-- SELECT\nDROP TABLE singer",
    "/* unclosed DROP TABLE singer",
    "--",
    "-- only a comment",
    "/**/",
    "/* a /* b */ DELETE FROM singer",
    "\ufeffDROP TABLE singer",
    "\u200bDROP TABLE singer",
    "\u00a0DELETE FROM singer",
    "ＤＲＯＰ TABLE singer",
    "DRОP TABLE singer",  # a Cyrillic letter
    "ＳＥＬＥＣＴ * FROM singer",
    "SELECT\u202e * FROM singer",
    "SELECT * FROM singer\u0000; DROP TABLE singer",
    "\u0000",
    "SELECT '\ud800'",
    "SELECT * FROM sıngeR",
    "dRoP/**/tAbLe/**/singer",
    "DROP\tTABLE\nsinger",
    "DELETE\rFROM singer",
    "SELECTDROP TABLE singer",
    "select-drop",
    "'SELECT'; DROP TABLE singer",
    '"SELECT" DROP TABLE singer',
    "(SELECT 1)",
    "((((SELECT 1))))",
]
_BOMBS = [
    "WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM x) SELECT n FROM x",
    "WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM x) SELECT count(*) FROM x",
    "WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM x) SELECT n FROM x ORDER BY -n",
    "WITH RECURSIVE x(n) AS (SELECT 1 UNION SELECT n + 1 FROM x) SELECT max(n) FROM x",
    "WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT 1 FROM x) SELECT 0 FROM x WHERE n = 2",
    "WITH RECURSIVE x(s) AS (SELECT 'a' UNION ALL SELECT s || s FROM x) SELECT length(s) FROM x",
    "WITH RECURSIVE x(s) AS (SELECT 'ab' UNION ALL SELECT replace(s, 'a', s) FROM x) SELECT s FROM x",
    "WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM x) SELECT group_concat(n) FROM x",
    "WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM x) SELECT json_group_array(n) FROM x",
    "WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM x LIMIT 9999999999) SELECT sum(n) FROM x",
    "WITH RECURSIVE x(n, s) AS (SELECT 1, printf('%.*c', 200000, 'a') UNION ALL SELECT n + 1, s || n FROM x) SELECT n, s FROM x",
    "WITH RECURSIVE x(n, s) AS (SELECT 1, printf('%.*c', 90000, 'a') UNION ALL SELECT n + 1, s FROM x) SELECT n || s FROM x ORDER BY 1",
    "SELECT count(*) FROM {cross}",
    "SELECT * FROM {cross}",
    "SELECT * FROM {cross} ORDER BY 1",
    "SELECT count(*) FROM (SELECT DISTINCT * FROM {cross})",
    "SELECT max(a.Name || b.Title) FROM singer a, concert b, {cross}",
    "SELECT sum(length(hex(s.sql))) FROM sqlite_master s, {cross}",
    "SELECT avg(random()) FROM {cross} GROUP BY random()",
    "SELECT row_number() OVER (ORDER BY random()) FROM {cross}",
    "SELECT count(*) OVER (PARTITION BY 1) FROM {cross}",
    "SELECT 1 FROM singer WHERE 0 = (SELECT count(*) FROM {cross})",
    "SELECT 1 FROM singer WHERE Name IN (SELECT random() FROM {cross})",
    "SELECT 1 WHERE EXISTS (SELECT 1 FROM {cross} HAVING sum(random()) = 0.5)",
    "SELECT 1 FROM {cross} UNION SELECT 2 FROM {cross}",
    "SELECT group_concat(1) FROM {cross}",
    "SELECT printf('%.*c', 1000000000, 'x')",
    "SELECT printf('%1000000000d', 1)",
    "SELECT format('%2000000000s', 'x')",
    "SELECT replace(printf('%.*c', 200000, 'a'), 'a', printf('%.*c', 200000, 'b'))",
    "SELECT hex(printf('%.*c', 200000, 'a'))",
    "SELECT quote(printf('%.*c', 249999, ''''))",
    "SELECT char(" + ",".join(["65"] * 8000) + ") || char(" + ",".join(["66"] * 100) + ")",
    "SELECT printf('%.*c', 200000, 'a') || printf('%.*c', 200000, 'b')",
    "SELECT upper(lower(upper(printf('%.*c', 2147483647, 'a'))))",
    "SELECT printf('%.*f', 1000000000, 1.0)",
    "SELECT printf('%.*c', 200000, 'a') LIKE '" + "%a" * 200 + "b'",
    "SELECT printf('%.*c', 200000, 'a') GLOB '" + "*a" * 200 + "b'",
    "SELECT instr(printf('%.*c', 240000, 'a'), printf('%.*c', 120000, 'a') || 'b')",
    "SELECT abs(-9223372036854775808)",
    "SELECT " + "+".join(["1"] * 5000),
    "SELECT " + "(" * 3000 + "1" + ")" * 3000,
    "SELECT " + "-" * 1 + " -".join([""] * 5000) + " 1",
    "SELECT 1 " + "UNION SELECT 1 " * 2000,
    "SELECT " + ",".join(["1"] * 10000),
    "SELECT * FROM " + " JOIN ".join(["singer"] * 100),
    "SELECT " + "abs(" * 2000 + "1" + ")" * 2000,
    "SELECT '" + "x" * 100_000 + "'",
    "S" * 200_000,
    "SELECT 1 -- " + "x" * 100_000,
    "SELECT 1 WHERE 1 IN (" + ",".join(map(str, range(20000))) + ")",
]
_BROKEN = [
    "",
    " ",
    "\n\t",
    "SELECT",
    "SELECT FROM",
    "SELECT * FROM",
    "SELECT * FROM nowhere",
    "SELECT nothing FROM singer",
    "SELECT * FROM singer WHERE",
    "SELECT * FROM singer GROUP",
    "SELECT * FROM singer ORDER BY",
    "SELECT * FROM singer LIMIT",
    "SELECT * FROM singer LIMIT 'x'",
    "SELECT (1, 2)",
    "SELECT 'unclosed",
    'SELECT "unclosed',
    "SELECT [unclosed",
    "SELECT `unclosed",
    "SELECT * FROM singer WHERE Name = 'O'Brien'",
    "SELECT count(count(*)) FROM singer",
    "SELECT * FROM singer HAVING 1",
    "SELECT ?",
    "SELECT :name FROM singer WHERE",
    "SELECT 1 UNION SELECT 1, 2",
    "SELECT T1.Name FROM singer",
    "SELECT Name FROM singer JOIN Stadium",
    "VALUES",
    "WITH",
    "WITH x SELECT 1",
    "hello, how are you?",
    "Here is the query: SELECT 1",
    "```sql\nSELECT 1\n```",
    "SELECT * FROM singer WHERE Age > = 3",
    "SELECT * FROM other.singer",
    "SELECT 1e999999 FROM nothing",
]


def statements(folder: Path) -> Iterator[str]:
    cross = ", ".join(
        f"{table} AS {table[0]}{n}"
        for n in range(8)
        for table in ("singer", "concert", "Stadium", "singer_in_concert")
    )
    for text in (*_WRITES, *_ESCAPES, *_SEVERAL, *_HIDDEN, *_BOMBS, *_BROKEN):
        yield text.replace("{folder}", str(folder)).replace("{cross}", cross)


def state(folder: Path) -> dict[str, str]:
    """Return every file below a folder with a digest of its content."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
    }


def test_no_statement_changes_leaves_or_hangs_a_database(tmp_path: Path) -> None:
    folder = make(tmp_path / "concerts.sqlite").parent
    database = Database(folder / "concerts.sqlite", LIMITS)
    before, modified = state(folder), (folder / "concerts.sqlite").stat().st_mtime_ns
    count, harmless = 0, list[str]()
    for sql in statements(folder):
        start = time.perf_counter()
        result = database.execute(sql)
        if result.status == "ok":
            harmless.append(sql[:100])
        else:
            assert result.message, sql[:200]
            assert result.rows == ()
        assert time.perf_counter() - start < LIMITS.seconds + GRACE, sql[:200]
        assert state(folder) == before, sql[:200]
        count += 1
    assert count >= 200
    assert harmless == []
    assert (folder / "concerts.sqlite").stat().st_mtime_ns == modified
    assert database.execute("SELECT count(*) FROM singer").rows == ((3,),)


@pytest.mark.parametrize("sql", _WRITES[:-5] + _ESCAPES[:22] + _SEVERAL)
def test_what_is_no_single_query_is_refused(sql: str, database: Path) -> None:
    """And not just failed: the user is told that it is not allowed."""
    assert (
        Database(database, LIMITS).execute(sql.replace("{folder}", "/nowhere")).status == "refused"
    )


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80))
def test_no_text_crashes(text: str) -> None:
    folder = _folder()
    before = state(folder)
    for sql in (text, f"SELECT {text}", f"SELECT * FROM singer {text}"):
        assert Database(folder / "concerts.sqlite", LIMITS).execute(sql).status
    assert state(folder) == before


_FOLDERS: list[Path] = []


def _folder() -> Path:
    if not _FOLDERS:
        import tempfile

        _FOLDERS.append(Path(tempfile.mkdtemp()))
        make(_FOLDERS[0] / "concerts.sqlite")
    return _FOLDERS[0]


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("SELECT Name FROM singer ORDER BY Age DESC", (("Bo",), ("Ann",), ("Cy",))),
        (
            "  -- the oldest\n/* one */ select Name from singer order by Age desc limit 1;",
            (("Bo",),),
        ),
        ("WITH x AS (SELECT 2 AS n) SELECT Name FROM singer, x WHERE Singer_ID = n", (("Bo",),)),
        ("VALUES (1, 'a;b')", ((1, "a;b"),)),
        ("SELECT upper(Name) || count(*) FROM singer WHERE Name LIKE 'a%'", (("ANN1",),)),
        ("SELECT strftime('%Y', '2014-02-03'), round(avg(Age)) FROM singer", (("2014", 32.0),)),
        (
            "WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM x LIMIT 3) SELECT n FROM x",
            ((1,), (2,), (3,)),
        ),
        ("SELECT Name FROM singer WHERE Age > 99", ()),
    ],
)
def test_queries_are_answered(
    sql: str, rows: tuple[tuple[object, ...], ...], database: Path
) -> None:
    result = Database(database).execute(sql)
    assert (result.status, result.rows, result.message) == ("ok", rows, "")
    assert len(result.columns) == (len(rows[0]) if rows else 1)


def test_text_that_is_no_utf8_is_read_without_its_bad_bytes(tmp_path: Path) -> None:
    file = make(tmp_path / "bytes.sqlite", "CREATE TABLE t (x TEXT)")
    with closing(sqlite3.connect(file)) as db:
        db.execute("INSERT INTO t VALUES (CAST(x'61FF62' AS TEXT))")
        db.commit()
    assert Database(file).execute("SELECT x FROM t").rows == (("ab",),)


def test_a_database_with_a_write_ahead_log_is_read_and_left_alone(tmp_path: Path) -> None:
    """Closed, it is opened as immutable: SQLite would write -shm beside it. In use, with locks."""
    file = make(tmp_path / "wal.sqlite", f"PRAGMA journal_mode = WAL; {DDL}")
    before = state(tmp_path)
    assert Database(file).execute("SELECT count(*) FROM singer").rows == ((3,),)
    assert state(tmp_path) == before
    with closing(sqlite3.connect(file)) as db:
        db.execute("INSERT INTO singer VALUES (4, 'Di', 'Peru', 1)")
        db.commit()
        # What another program has committed to its log is seen.
        assert Database(file).execute("SELECT count(*) FROM singer").rows == ((4,),)


def test_limits_are_kept_and_told(database: Path) -> None:
    endless = "WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM x) SELECT n FROM x"
    for limits, words in (
        (Limits(seconds=0.05, rows=10**9), "longer than 0.05 s"),
        (Limits(rows=10), "more than 10 rows"),
        (Limits(result_bytes=100), "more than 100 bytes of result"),
    ):
        result = Database(database, limits).execute(endless)
        assert (result.status, result.message) == ("stopped", words)
    with pytest.raises(ValueError, match="seconds=0"):
        Limits(seconds=0)


def test_sorting_too_much_is_stopped(database: Path) -> None:
    """In a process of its own: SQLite never raises its limit again."""
    script = f"""
from text2sql.execute import Database, Limits
limits = Limits(heap_bytes=3_000_000, seconds=20, rows=10**6)
print(Database({str(database)!r}, limits).execute(
    "WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM x LIMIT 400000) "
    "SELECT n FROM x ORDER BY '" + "a" * 200 + "' || n"
).status)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() in ("stopped", "failed")


def test_files_that_are_no_database_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such SQLite file"):
        Database(tmp_path / "none.sqlite")
    (tmp_path / "text.sqlite").write_text("no database at all")
    with pytest.raises(ValueError, match="is not a SQLite database"):
        Database(tmp_path / "text.sqlite")


def test_cells_are_the_short_texts_of_the_columns_that_the_file_has(tmp_path: Path) -> None:
    """Numbers, long and empty texts are none; a column that is only declared has none."""
    file = make(
        tmp_path / "cells.sqlite",
        """CREATE TABLE a (x TEXT, "say ""hi"" now" TEXT, n INT);
        INSERT INTO a VALUES ('one', 'two', 3), ('one', '', 4), ('four', printf('%061d', 5), 6),
            (replace(hex(zeroblob(200000)), '0', 'x'), NULL, NULL);""",
    )
    declared = make(
        tmp_path / "more.sqlite", 'CREATE TABLE a (x TEXT, "say ""hi"" now" TEXT, n INT, gone TEXT)'
    )
    found = dict(cells(file, Schema.from_sqlite(declared)))
    assert list(found.values()) == [("one", "four"), ("two",), (), ()]
    with pytest.raises(ValueError, match="no such SQLite file"):
        next(cells(tmp_path / "none.sqlite", Schema.from_sqlite(declared)))
