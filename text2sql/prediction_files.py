"""Files of gold queries and predictions, in the forms that the benchmarks exchange."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from glob import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from text2sql.evaluation import MISSING_WAYS, Gold
from text2sql.schema import read_list

_DB_IDS = ("database_id", "db_id")


def read_gold(path: str | Path) -> list[list[Gold]]:
    """Read gold queries: text (`SQL <tab> db_id`) or the dev.json of Spider, SParC or CoSQL.

    Args:
        path: A text file has a blank line after each interaction; one without any is Spider's, and
            every line an interaction of its own. A file ending in .json is read as JSON.

    Raises:
        ValueError: The file cannot be read, or a line or entry has another form; names it.
    """
    path = Path(path)
    if path.suffix.lower() == ".json":
        found = _entries(path, "query")
    else:
        lines = _lines(path)
        found = _blocks(path, lines)
        if all(lines):
            found = [[answer] for block in found for answer in block]
    golds: list[list[Gold]] = []
    for answers in found:
        golds.append([])
        for answer in answers:
            if answer.sql is None or not isinstance(answer.db_id, str):
                raise ValueError(
                    f"{answer.where}: must be SQL, a tab and a database's name, or in JSON SQL "
                    "under query and the name under database_id or db_id"
                )
            golds[-1].append(Gold(answer.sql, answer.db_id))
    return golds


def read_predictions(
    path: str | Path, golds: Sequence[Sequence[Gold]], complete: bool = False
) -> list[list[str | None]]:
    """Read predictions: text, one a line with blank lines as in the gold file, or JSON.

    Args:
        path: Text: where each interaction has one turn, a line for each, empty where a prediction
            is missing; or as many lines that are not empty. What stands after a tab may name the
            database. JSON: a list of SQL (null where missing), a list of interactions which are
            such lists, or the layout of dev.json with the SQL under `prediction`. The gold `query`
            is never read.
        golds: What is predicted.
        complete: Whether a missing prediction is an error, which names its place in the file.

    Returns:
        As many as `golds`; None for one that is missing.

    Raises:
        ValueError: The file cannot be read, or has another form; a prediction is for another
            database than its gold query, or has no gold query; names the line or entry.
    """
    path = Path(path)
    found = _from_json(path, golds) if path.suffix.lower() == ".json" else _from_text(path, golds)
    _refuse_other_interactions(found, golds, path)
    predictions: list[list[str | None]] = []
    for number, (answers, turns) in enumerate(zip(found, golds, strict=True)):
        if len(answers) > len(turns):
            raise ValueError(
                f"{answers[len(turns)].where}: interaction {number}: {len(answers)} predictions "
                f"for {len(turns)} gold ones; this is the first in excess"
            )
        predictions.append([])
        for turn, gold in enumerate(turns):
            place = f"interaction {number}, turn {turn} (counted from 0)"
            if turn < len(answers):
                answer = answers[turn]
            else:
                last = answers[-1].where if answers else str(path)
                answer = _Answer(None, f"{last}: {place}, behind this one")
            if answer.db_id not in (None, gold.db_id):
                raise ValueError(
                    f"{answer.where}: is a prediction for {answer.db_id}; the gold query of "
                    f"{place} is about {gold.db_id}"
                )
            if complete and answer.sql is None:
                raise ValueError(f"{answer.where}: the prediction is missing. {MISSING_WAYS}")
            predictions[-1].append(answer.sql)
    return predictions


def find_databases(
    folders: Iterable[str | Path], db_ids: Iterable[str], all_needed: bool = True
) -> dict[str, Path]:
    """Find the SQLite file of every database: DB/DB.sqlite, DB.sqlite, or FOLDER/DB/DB.sqlite.

    Raises:
        ValueError: A folder, or a file if `all_needed`, is not there; names all files that are
            missing.
    """
    places = [Path(folder) for folder in folders]
    for place in places:
        if not place.is_dir():
            raise ValueError(f"{place}: no such folder")
    found: dict[str, Path] = {}
    missing = []
    for db_id in dict.fromkeys(db_ids):
        candidates = (
            file
            for place in places
            for file in (
                place / db_id / f"{db_id}.sqlite",
                place / f"{db_id}.sqlite",
                *sorted(place.glob(f"*/{escape(db_id)}/{escape(db_id)}.sqlite")),
            )
        )
        file = next((file for file in candidates if file.is_file()), None)
        if file is None:
            missing.append(db_id)
        else:
            found[db_id] = file
    if missing and all_needed:
        raise ValueError(
            f"no SQLite file for {', '.join(missing)}; looked for {missing[0]}/{missing[0]}.sqlite "
            f"in {', '.join(map(str, places))} and one folder below"
        )
    return found


@dataclass(frozen=True, slots=True)
class _Answer:
    """A query with its place and, if it names one, its database."""

    sql: str | None
    where: str
    db_id: Any = None


def _refuse_other_interactions(
    found: Sequence[Sequence[_Answer]], golds: Sequence[Sequence[Gold]], path: Path
) -> None:
    """Refuse predictions that are not as many interactions as the gold queries."""
    if len(found) == len(golds):
        return
    pairs = enumerate(zip(found, golds, strict=False))
    unlike = (i for i, (answers, turns) in pairs if len(answers) != len(turns))
    first = next(unlike, min(len(found) - 1, len(golds)))
    raise ValueError(
        f"{found[first][0].where if found and found[first] else path}: {len(found)} interactions "
        f"of predictions for {len(golds)} gold ones, which begin to differ here; a blank line must "
        "stand between interactions, and nowhere else; where each has one turn, an empty line may "
        "stand for a prediction that is missing"
    )


def _from_text(path: Path, golds: Sequence[Sequence[Gold]]) -> list[list[_Answer]]:
    lines = _lines(path)
    # A second column that is no database's name, such as a score, says nothing.
    known = {gold.db_id for turns in golds for gold in turns}
    blocks = _blocks(path, lines, known)
    if all(len(turns) == 1 for turns in golds):
        if len(lines) == len(golds):
            return [[_in_line(path, *line, known)] for line in enumerate(lines, start=1)]
        return [[answer] for block in blocks for answer in block]
    return blocks


def _from_json(path: Path, golds: Sequence[Sequence[Gold]]) -> list[list[_Answer]]:
    content = read_list(path, "predictions, interactions or questions")
    if content and all(isinstance(item, str | None) for item in content):
        if len(content) != sum(map(len, golds)):
            raise ValueError(
                f"{path}: {len(content)} predictions for {sum(map(len, golds))} gold ones"
            )
        flat = (_answer(sql, f"{path}: item {number}") for number, sql in enumerate(content))
        return [[next(flat) for _ in turns] for turns in golds]
    if all(isinstance(turns, list) for turns in content):
        return [
            [
                _answer(sql, f"{path}: interaction {number}, turn {position}")
                for position, sql in enumerate(turns)
            ]
            for number, turns in enumerate(content)
        ]
    return _entries(path, "prediction")


def _entries(path: Path, key: str) -> list[list[_Answer]]:
    """Read what stands under a key in the layout of dev.json; Spider's entries are their turns."""
    found: list[list[_Answer]] = []
    for number, entry in enumerate(read_list(path, "interactions or questions")):
        where = f"{path}: entry {number}"
        if not isinstance(entry, Mapping):
            raise ValueError(
                f"{where}: must be an interaction or a question, has {repr(entry)[:40]}"
            )
        turns = entry.get("interaction", [entry])
        if not isinstance(turns, list) or not turns:
            raise ValueError(f"{where}: interaction must be a list of turns")
        found.append([])
        for position, turn in enumerate(turns):
            place = f"{where}, turn {position}"
            if not isinstance(turn, Mapping) or key not in turn:
                has = ", ".join(turn) if isinstance(turn, Mapping) else repr(turn)[:40]
                raise ValueError(f"{place}: needs the key {key} (SQL, or null), has {has}")
            names = (item[k] for item in (turn, entry) for k in _DB_IDS if k in item)
            found[-1].append(_answer(turn[key], place, next(names, None)))
    return found


def _answer(sql: Any, where: str, db_id: Any = None) -> _Answer:
    if not isinstance(sql, str | None):
        raise ValueError(f"{where}: must be SQL or null, has {repr(sql)[:40]}")
    return _Answer(sql if sql and sql.strip() else None, where, db_id)


def _lines(path: Path) -> list[str]:
    """Return a text file's lines, without the blanks around them; at least one has more."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 at byte {error.start}") from error
    # A tab at a line's beginning says that there is no SQL before the database's name.
    lines = [line.rstrip().lstrip(" ") for line in text.removesuffix("\n").split("\n")]
    first = next(filter(None, lines), "")
    if first[:1] in ("", "[", "{"):
        what = "holds JSON: make it one list, in a file whose name ends in .json"
        raise ValueError(f"{path}: {what if first else 'is empty'}")
    return lines


def _blocks(
    path: Path, lines: Sequence[str], known: Container[str] | None = None
) -> list[list[_Answer]]:
    """Read lines, parted at blank ones."""
    parts = groupby(enumerate(lines, start=1), lambda line: bool(line[1]))
    return [[_in_line(path, *line, known) for line in part] for has_text, part in parts if has_text]


def _in_line(path: Path, number: int, text: str, known: Container[str] | None) -> _Answer:
    """Read SQL and, after a tab, the name of one of the known databases."""
    sql, _, rest = text.partition("\t")
    name = rest.strip().split("\t")[0]
    return _Answer(
        sql.strip() or None,
        f"{path}:{number}",
        name if name and (known is None or name in known) else None,
    )
