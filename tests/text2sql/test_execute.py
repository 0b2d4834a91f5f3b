# ruff: noqa: E501, RUF001
"""No statement, hostile or broken, can change, leave or hang a database."""

import hashlib
import math
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.text2sql.conftest import DDL, make
from text2sql import execute, guard
from text2sql.execute import Database, Limits
from text2sql.linking import cells
from text2sql.schema import Schema

LIMITS = Limits(seconds=0.1, rows=1000, result_bytes=2_000_000)
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
        if file.is_file()
    }


def test_no_statement_changes_leaves_or_hangs_a_database(tmp_path: Path) -> None:
    folder = make(tmp_path / "concerts.sqlite").parent
    database = Database(folder / "concerts.sqlite", LIMITS)
    before, modified = state(folder), (folder / "concerts.sqlite").stat().st_mtime_ns
    count = 0
    for sql in statements(folder):
        start = time.perf_counter()
        result = database.execute(sql)
        if result.status == "ok":  # some that look like bombs are answered at once
            assert sql in _BOMBS, sql[:200]
        else:
            assert result.message, sql[:200]
            assert result.rows == () or result.status == "stopped", sql[:200]
        assert result.size <= LIMITS.result_bytes
        assert time.perf_counter() - start < LIMITS.seconds + GRACE, sql[:200]
        assert state(folder) == before, sql[:200]
        count += 1
    assert count >= 200
    assert (folder / "concerts.sqlite").stat().st_mtime_ns == modified
    assert database.execute("SELECT count(*) FROM singer").rows == ((3,),)


@pytest.mark.parametrize("sql", _WRITES[:-5] + _ESCAPES[:22] + _SEVERAL)
def test_what_is_no_single_query_is_refused(sql: str, database: Path) -> None:
    """And not just failed: the user is told that it is not allowed."""
    assert (
        Database(database, LIMITS).execute(sql.replace("{folder}", "/nowhere")).status == "refused"
    )


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=80))
def test_no_text_crashes(text: str, database: Path) -> None:
    reader, before = Database(database, LIMITS), state(database.parent)
    for sql in (text, f"SELECT {text}", f"SELECT * FROM singer {text}"):
        assert reader.execute(sql).status
    assert state(database.parent) == before


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


# --- limits --------------------------------------------------------------------------------------

_NUMBERS = (
    "(WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r LIMIT {}) SELECT n FROM r)"
)
# One call of trim, within which SQLite looks at no clock: half a minute.
_ONE_OPCODE = (
    f"WITH a(s) AS (SELECT group_concat('bbbbbbbbbb', '') FROM {_NUMBERS.format(24000)}), "
    f"c(s) AS (SELECT group_concat('xxxxxxxxxx', '') FROM {_NUMBERS.format(2000)}) "
    "SELECT length(trim(a.s, c.s || 'b')) FROM a, c"
)
_ENDLESS = "WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM x) SELECT n FROM x"
_DOUBLED = (
    "WITH t0(x) AS MATERIALIZED (SELECT zeroblob(100000))"
    + "".join(
        f", t{i}(x) AS MATERIALIZED (SELECT x FROM t{i - 1} UNION ALL SELECT x FROM t{i - 1})"
        for i in range(1, 20)
    )
    + " SELECT count(*) FROM t19"
)


@pytest.mark.parametrize(
    "sql",
    [
        _ONE_OPCODE,
        "SELECT length(printf('%.*c', 2147483647, 'x'))",
        "SELECT instr(printf('%.*c', 8000000, 'a'), printf('%.*c', 4000000, 'a') || 'b')",
        f"SELECT max(x) FROM (SELECT replace(hex(zeroblob(9000)), '0', n) x FROM {_NUMBERS.format(10**9)})",
    ],
)
def test_a_query_ends_in_time_whatever_sqlite_does(sql: str, database: Path) -> None:
    """A limit that is looked at between opcodes does not bound an opcode: the process is killed."""
    reader = Database(database, Limits(seconds=0.4))
    reader.execute("SELECT 1")
    start = time.perf_counter()
    result = reader.execute(sql)
    assert (result.status, result.message) == ("stopped", "longer than 0.4 s")
    assert time.perf_counter() - start < 0.4 + GRACE
    assert reader.execute("SELECT count(*) FROM singer").rows == ((3,),)


@pytest.mark.parametrize(
    "sql",
    [
        _DOUBLED,
        f"SELECT n FROM {_NUMBERS.format(10**9)} ORDER BY '{'a' * 200}' || n",
        f"SELECT group_concat(hex(zeroblob(50000))) FROM {_NUMBERS.format(9000)}",
        f"SELECT json_group_array(hex(zeroblob(9000))) FROM {_NUMBERS.format(10**9)}",
        f"SELECT {', '.join(['zeroblob(15000000)'] * 500)}",
        f"SELECT replace(hex(zeroblob(6000000)), '0', 'ab') FROM {_NUMBERS.format(10**9)} ORDER BY 1",
    ],
)
def test_the_memory_of_a_query_is_bounded(sql: str, database: Path) -> None:
    bound = 150_000_000
    limits = Limits(seconds=60, memory_bytes=bound, value_bytes=10**9)
    result = Database(database, limits).execute(sql)
    assert result.status in ("stopped", "failed"), result
    assert "longer than" not in result.message
    peaks = [
        int(line.split()[1]) * 1024
        for worker in execute._workers
        for line in Path(f"/proc/{worker.process.pid}/status").read_text().splitlines()
        if line.startswith("VmHWM")
    ]
    assert max(peaks) < bound


def test_limits_are_kept_and_told(database: Path) -> None:
    for limits, words in (
        (Limits(seconds=0.05, rows=10**9), "longer than 0.05 s"),
        (Limits(rows=10), "more than 10 rows"),
        (Limits(result_bytes=1000), "more than 1000 bytes of result"),
    ):
        result = Database(database, limits).execute(_ENDLESS)
        assert (result.status, result.message) == ("stopped", words)
        # What was found until then is there, for who wants to show it.
        assert result.rows[:3] == ((1,), (2,), (3,))
        assert len(result.rows) <= limits.rows
        assert sum(sys.getsizeof(row) + sys.getsizeof(row[0]) for row in result.rows) == result.size
        assert result.size <= limits.result_bytes
    shorter = Database(database).execute(_ENDLESS, Limits(rows=2))
    assert shorter.rows == ((1,), (2,))
    assert shorter.message == "more than 2 rows"
    assert Database(database, Limits(rows=3)).execute("SELECT * FROM singer").status == "ok"
    for wrong in (
        {"seconds": 0},
        {"seconds": math.nan},
        {"seconds": math.inf},
        {"value_bytes": 2**31},
    ):
        with pytest.raises(ValueError, match="must be above 0 and at most"):
            Limits(**wrong)


def test_long_cells_and_results_come_whole(database: Path) -> None:
    long = Database(database).execute(
        "SELECT hex(zeroblob(150000)), printf('%05d', 7), zeroblob(3)"
    )
    assert long.rows == (("0" * 300_000, "00007", b"\0\0\0"),)
    many = Database(database).execute(
        f"SELECT n, n / 2.0, NULL, 'x' FROM {_NUMBERS.format(50_000)}"
    )
    assert many.rows == tuple((n, n / 2.0, None, "x") for n in range(1, 50_001))


# --- the process ---------------------------------------------------------------------------------


def _is_running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _wait_for_end(pid: int, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while _is_running(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not _is_running(pid)


def _pid(reader: Database) -> int:
    """The process that answers the next query of this thread."""
    assert reader.execute("SELECT 1").status == "ok"
    return execute._idle[-1].process.pid


def test_one_process_answers_many_queries_and_is_replaced_when_it_dies(database: Path) -> None:
    reader = Database(database)
    pid = _pid(reader)
    assert {_pid(reader) for _ in range(20)} == {pid}
    os.kill(pid, signal.SIGKILL)  # idle
    assert reader.execute("SELECT count(*) FROM singer").rows == ((3,),)
    assert not _is_running(pid)
    with ThreadPoolExecutor(4) as threads:  # all that are idle
        list(threads.map(lambda _: Database(database).execute(_ENDLESS).status, range(8)))
    for worker in tuple(execute._workers):
        os.kill(worker.process.pid, signal.SIGKILL)
        assert _wait_for_end(worker.process.pid)
    assert reader.execute("SELECT count(*) FROM singer").rows == ((3,),)
    # At work: the query is run once more by another one.
    pid = _pid(reader)
    threading.Timer(0.2, os.kill, (pid, signal.SIGKILL)).start()
    long = Database(database, Limits(seconds=0.6)).execute(_ONE_OPCODE)
    assert (long.status, long.message) == ("stopped", "longer than 0.6 s")
    assert _pid(reader) != pid


def test_a_query_that_ends_every_process_fails(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "__file__", os.devnull)  # a program that ends at once
    for worker in tuple(execute._workers):
        worker.kill()
    result = Database.execute(_unchecked(database), "SELECT 1")
    assert result.status == "failed"
    assert "its process ended" in result.message


def _unchecked(path: Path) -> Database:
    reader = Database.__new__(Database)
    reader.path, reader.limits = path, Limits()
    return reader


def test_threads_have_processes_of_their_own(database: Path) -> None:
    reader = Database(database)
    with ThreadPoolExecutor(8) as threads:
        found = list(
            threads.map(
                lambda n: reader.execute(f"SELECT {n}, count(*) FROM singer").rows, range(200)
            )
        )
    assert found == [((n, 3),) for n in range(200)]
    assert len(execute._idle) <= 4
    assert len(execute._workers) == len(execute._idle)


def test_a_fork_has_processes_of_its_own(database: Path) -> None:
    reader = Database(database)
    pid = _pid(reader)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        rows = [reader.execute(f"SELECT {n}").rows for n in range(5)]
        right = rows == [((n,),) for n in range(5)] and _pid(reader) != pid
        os.write(writing, b"right" if right else b"wrong")
        os._exit(0)
    assert [reader.execute(f"SELECT {n}").rows for n in range(9, 99)] == [
        ((n,),) for n in range(9, 99)
    ]
    assert os.read(reading, 5) == b"right"
    os.waitpid(child, 0)
    os.close(reading)
    os.close(writing)
    assert _pid(reader) == pid


@pytest.mark.parametrize("end", ["pass", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_no_process_outlives_its_parent(end: str, database: Path, tmp_path: Path) -> None:
    """Not in the midst of an opcode either, nor while a fork of the parent goes on."""
    script = f"""
import os, signal, sys, threading, time
from text2sql import execute
reader = execute.Database({str(database)!r}, execute.Limits(seconds=30))
reader.execute("SELECT 1")
threading.Thread(target=reader.execute, args=({_ONE_OPCODE!r},), daemon=True).start()
while execute._idle:
    time.sleep(0.01)
time.sleep(0.1)
fork = os.fork()
if fork == 0:
    time.sleep(60)
print(fork, *(worker.process.pid for worker in execute._workers), flush=True)
{end}
"""
    with (tmp_path / "out").open("w+") as out, (tmp_path / "err").open("w+") as err:
        command = [sys.executable, "-W", "error", "-c", script]
        ended = subprocess.run(command, stdout=out, stderr=err, check=False, timeout=60)
        out.seek(0)
        fork, *workers = map(int, out.read().split())
        err.seek(0)
        assert err.read() == ""
    try:
        assert ended.returncode == (0 if end == "pass" else -signal.SIGKILL)
        assert len(workers) == 1
        assert _wait_for_end(workers[0])
    finally:
        os.kill(fork, signal.SIGKILL)


def test_ctrl_c_ends_a_query_and_not_the_next_one(database: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    reader = Database(database)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        pid = _pid(reader)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            reader.execute(_ONE_OPCODE)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert _wait_for_end(pid)
    assert reader.execute("SELECT 2").rows == ((2,),)


def test_a_process_that_holds_much_memory_is_not_kept(database: Path) -> None:
    """What SQLite frees in small pieces does not go back to the system."""
    reader = Database(database, Limits(seconds=60, memory_bytes=300_000_000))
    pid = _pid(reader)
    held = _DOUBLED.replace("100000", "1000")
    assert reader.execute(held).message == "more than 300000000 bytes of memory"
    assert _wait_for_end(pid)
    assert reader.execute("SELECT count(*) FROM singer").rows == ((3,),)


def test_the_process_is_small(database: Path) -> None:
    """It holds nothing of its parent: no memory, no open files."""
    pid = _pid(Database(database))
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert resident < 60_000_000
    assert os.getsid(pid) == pid  # Ctrl-C in a terminal is not for it
    assert len(os.listdir(f"/proc/{pid}/fd")) <= 4  # the channel, /dev/null twice, the database


# --- databases in use ----------------------------------------------------------------------------


def test_a_database_with_a_write_ahead_log_is_read_and_left_alone(tmp_path: Path) -> None:
    """Closed, it is opened as immutable: SQLite would write -shm beside it. In use, with locks."""
    file = make(tmp_path / "wal.sqlite", f"PRAGMA journal_mode = WAL; {DDL}")
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "link.sqlite"
    link.symlink_to(file)
    before = state(tmp_path)
    readers = Database(file), Database(link)
    for reader in readers:
        assert reader.execute("SELECT count(*) FROM singer").rows == ((3,),)
    assert state(tmp_path) == before
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute("INSERT INTO singer VALUES (4, 'Di', 'Peru', 1)")
        db.execute("BEGIN")
        db.execute("INSERT INTO singer VALUES (5, 'Ed', 'Peru', 1)")
        # What another program has committed to its log is seen, and nothing else.
        for reader in (*readers, Database(link)):
            assert reader.execute("SELECT count(*) FROM singer").rows == ((4,),)
        db.execute("COMMIT")
        for reader in readers:
            assert reader.execute("SELECT count(*) FROM singer").rows == ((5,),)
    # Nor is its program kept from ending its log.
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "elsewhere", "link.sqlite", "wal.sqlite"
    ]  # fmt: skip
    for reader in readers:
        assert reader.execute("SELECT count(*) FROM singer").rows == ((5,),)


def test_a_database_that_is_opened_by_another_program_meanwhile_is_refused(tmp_path: Path) -> None:
    """It was opened as immutable, because nobody else had it."""
    file = make(tmp_path / "wal.sqlite", f"PRAGMA journal_mode = WAL; {DDL}")
    reader = Database(file, Limits(seconds=60))
    slow = f"SELECT (SELECT max(n) FROM {_NUMBERS.format(3_000_000)}), count(*) FROM singer"
    with ThreadPoolExecutor(1) as thread:
        _pid(reader)
        answer = thread.submit(reader.execute, slow)
        time.sleep(0.2)  # until it reads
        with closing(sqlite3.connect(file, isolation_level=None)) as db:
            db.execute("INSERT INTO singer VALUES (4, 'Di', 'Peru', 1)")
            result = answer.result()
            # Of one that is read with locks, a checkpoint changes nothing.
            seen = thread.submit(reader.execute, slow)
            time.sleep(0.2)
            db.execute("INSERT INTO singer VALUES (5, 'Ed', 'Peru', 1)")
            db.execute("PRAGMA wal_checkpoint(PASSIVE)")
            assert seen.result().rows in (((3_000_000, 4),), ((3_000_000, 5),))
    assert (result.status, result.message) == (
        "failed", "another program opened the database; ask again"
    )  # fmt: skip


@pytest.mark.parametrize(("mode", "kind"), [("WAL", "wal"), ("DELETE", "journal")])
def test_a_log_that_was_left_behind_is_refused_and_kept(
    mode: str, kind: str, tmp_path: Path
) -> None:
    """To read it, SQLite would write an index of it; a journal it would roll back."""
    file = make(tmp_path / "own.sqlite", f"PRAGMA journal_mode = {mode}; {DDL}")
    copy = tmp_path / "copy.sqlite"
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute("PRAGMA cache_size = 1")
        db.execute("BEGIN")
        db.execute(
            f"INSERT INTO singer SELECT n + 9, hex(zeroblob(3000)), '', 1 FROM {_NUMBERS.format(99)}"
        )
        if kind == "wal":
            db.execute("COMMIT")
        copy.write_bytes(file.read_bytes())
        Path(f"{copy}-{kind}").write_bytes(Path(f"{file}-{kind}").read_bytes())
    before = state(tmp_path)
    result = Database(copy).execute("SELECT count(*) FROM singer")
    assert result.status == "failed"
    assert f"copy.sqlite-{kind} was left behind" in result.message
    assert state(tmp_path) == before


@pytest.mark.parametrize("journal", ["MEMORY", "OFF", "DELETE", "TRUNCATE", "PERSIST"])
def test_only_what_is_committed_is_seen(journal: str, tmp_path: Path) -> None:
    file = make(tmp_path / "busy.sqlite")
    reader = Database(file, Limits(seconds=0.3))
    assert reader.execute("SELECT count(*) FROM singer").rows == ((3,),)
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute(f"PRAGMA journal_mode = {journal}")
        db.execute("PRAGMA cache_size = 1")
        db.execute("BEGIN")
        db.execute("INSERT INTO singer VALUES (4, 'Di', 'Peru', 1)")
        for one in (reader, Database(file)):
            assert one.execute("SELECT count(*) FROM singer").rows == ((3,),)
        # More than its cache holds: it writes what it has not committed to the file.
        db.execute(
            f"INSERT INTO singer SELECT n + 9, hex(zeroblob(3000)), '', 1 FROM {_NUMBERS.format(99)}"
        )
        for one in (reader, Database(file, Limits(seconds=0.3))):
            start = time.perf_counter()
            result = one.execute("SELECT count(*) FROM singer")
            assert result.status == "stopped"
            assert "another program has locked the database" in result.message
            assert time.perf_counter() - start < 0.3 + GRACE
        db.execute("COMMIT")
        for one in (reader, Database(file)):
            assert one.execute("SELECT count(*) FROM singer").rows == ((103,),)
            # Opening it failed before: it is guarded as ever.
            assert one.execute("SELECT * FROM pragma_database_list").status == "refused"


def test_what_is_kept_open_is_guarded(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if opening it failed the first time, as by another program's lock."""
    attempts = iter([sqlite3.OperationalError("database is locked")])

    def meet(db: sqlite3.Connection) -> None:
        for error in attempts:
            raise error

    monkeypatch.setattr(guard, "_meet_virtual_tables", meet)
    monkeypatch.setattr(guard, "_bound_memory", lambda size: None)  # this process is the tests'
    reader = guard.Reader()
    for status in ("stopped", "refused", "refused"):
        sql = "SELECT * FROM pragma_database_list"
        request = str(database), sql, False, 5.0, 9, 10**6, 10**6, 10**9
        assert [frame[0] for frame in reader.answer(request)] == [status]
    reader._close()


def test_a_file_that_is_replaced_is_read_anew(tmp_path: Path) -> None:
    file = make(tmp_path / "one.sqlite")
    reader = Database(file)
    assert reader.execute("SELECT count(*) FROM singer").rows == ((3,),)
    make(tmp_path / "two.sqlite", "CREATE TABLE singer (x); INSERT INTO singer VALUES (1)").replace(
        file
    )
    assert reader.execute("SELECT count(*) FROM singer").rows == ((1,),)
    file.unlink()
    assert reader.execute("SELECT 1").status == "failed"


# --- what may be asked ---------------------------------------------------------------------------


def test_every_function_that_is_listed_may_be_called(database: Path) -> None:
    """Also those that this SQLite lacks, or that take other arguments, are not refused."""
    reader = Database(database)
    for name in sorted(guard.FUNCTIONS):
        if name[0] == "-":
            sql = f"SELECT '{{}}' {name} 'a'"
        elif name.startswith("current"):
            sql = f"SELECT {name}"
        elif name in ("json_each", "json_tree"):
            sql = f"SELECT * FROM {name}('[1, {{}}]')"
        else:
            sql = f"SELECT {name}()"
        result = reader.execute(sql)
        assert result.status != "refused", (name, result.message)
    rows = reader.execute(
        "SELECT s.Name, e.value FROM singer s, json_each('[1, 2]') e WHERE e.value = Singer_ID"
    )
    assert rows.rows == (("Ann", 1), ("Bo", 2))
    known = {row[0] for row in reader.catalogue("SELECT DISTINCT name FROM pragma_function_list")}
    assert known - guard.FUNCTIONS <= set(
        """bm25 changes fts3_tokenizer fts5 fts5_insttoken fts5_locale fts5_source_id highlight
        last_insert_rowid load_extension match matchinfo offsets optimize rtreecheck rtreedepth
        rtreenode geopoly_area geopoly_bbox geopoly_blob geopoly_ccw geopoly_contains_point
        geopoly_debug geopoly_group_bbox geopoly_json geopoly_overlap geopoly_regular geopoly_svg
        geopoly_within geopoly_xform snippet sqlite_compileoption_get sqlite_compileoption_used
        sqlite_log sqlite_source_id sqlite_version subtype total_changes sqlite_offset""".split()  # noqa: SIM905
    )


def test_virtual_tables_of_the_database_are_read(tmp_path: Path) -> None:
    file = make(
        tmp_path / "virtual.sqlite",
        """CREATE TABLE plain (x); INSERT INTO plain VALUES (1);
        CREATE VIRTUAL TABLE box USING rtree(id, a, b); INSERT INTO box VALUES (1, 2, 3);
        CREATE VIRTUAL TABLE docs USING fts5(body);
        INSERT INTO docs VALUES ('a rare word'), ('another');
        PRAGMA writable_schema = ON;
        INSERT INTO sqlite_master VALUES
            ('table', 'alien', 'alien', 0, 'CREATE VIRTUAL TABLE alien USING unheard_of(x)');""",
    )
    reader = Database(file)
    before = state(tmp_path)
    assert reader.execute("SELECT * FROM plain").rows == ((1,),)
    assert reader.execute("SELECT * FROM box").rows == ((1, 2.0, 3.0),)
    assert reader.execute("SELECT * FROM docs WHERE docs MATCH 'rare'").rows == (("a rare word",),)
    assert reader.execute("SELECT * FROM alien").message == "no such module: unheard_of"
    for sql in ("SELECT * FROM sqlite_stmt", "SELECT * FROM dbstat", "SELECT * FROM fts5vocab"):
        assert reader.execute(sql).status != "ok", sql
    assert state(tmp_path) == before


def test_what_this_package_asks_of_its_own_may_use_pragma_and_still_not_write(
    tmp_path: Path,
) -> None:
    reader = Database(make(tmp_path / "concerts.sqlite"))
    before = state(tmp_path)
    assert reader.catalogue("PRAGMA table_info(singer)")[0][1] == "Singer_ID"
    assert reader.execute("PRAGMA table_info(singer)").status == "refused"
    for sql in ("DELETE FROM singer", "CREATE TABLE t (x)", "SELECT nowhere"):
        with pytest.raises(ValueError, match=r"readonly|no such column"):
            reader.catalogue(sql)
    assert state(tmp_path) == before


# --- files ---------------------------------------------------------------------------------------


def test_files_that_are_no_database_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such SQLite file"):
        Database(tmp_path / "none.sqlite")
    (tmp_path / "text.sqlite").write_text("no database at all")
    with pytest.raises(
        ValueError, match=r"text.sqlite: cannot be read as a SQLite database: file is not"
    ):
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
