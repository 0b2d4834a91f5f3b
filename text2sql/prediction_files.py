"""Files of gold queries and predictions, in the forms that the benchmarks exchange."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
    if path.suffix == ".json":
        return [
            [
                Gold(_text(turn, ("query",), place), _text(entry, _DB_IDS, where))
                for place, turn in turns
            ]
            for where, entry, turns in _interactions(path)
        ]
    golds = []
    lines = _lines(path)
    for block in _blocks(lines):
        golds.append([])
        for line, text in block:
            sql, tab, db_id = text.partition("\t")
            if not tab or not db_id.strip():
                raise ValueError(f"{path}:{line}: must be SQL, a tab and a database's name: {text}")
            golds[-1].append(Gold(sql.strip(), db_id.strip().split("\t")[0]))
    return [[gold] for turns in golds for gold in turns] if all(lines) else golds


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
    found = _json_answers(path, golds) if path.suffix == ".json" else _text_answers(path, golds)
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
                *sorted(place.glob(f"*/{db_id}/{db_id}.sqlite")),
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
    """A prediction with its place and, if it names one, its database."""

    sql: str | None
    where: str
    db_id: str | None = None


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


def _text_answers(path: Path, golds: Sequence[Sequence[Gold]]) -> list[list[_Answer]]:
    lines = _lines(path)
    known = {gold.db_id for turns in golds for gold in turns}

    def answer(number: int, text: str) -> _Answer:
        sql, _, rest = text.partition("\t")
        name = rest.strip().split("\t")[0]
        return _Answer(sql.strip() or None, f"{path}:{number}", name if name in known else None)

    blocks = _blocks(lines)
    if all(len(turns) == 1 for turns in golds):
        if len(lines) == len(golds):
            return [[answer(*pair)] for pair in enumerate(lines, start=1)]
        return [[answer(*pair)] for block in blocks for pair in block]
    return [[answer(*pair) for pair in block] for block in blocks]


def _json_answers(path: Path, golds: Sequence[Sequence[Gold]]) -> list[list[_Answer]]:
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
    return [
        [_entry_answer(turn, entry, place) for place, turn in turns]
        for _, entry, turns in _interactions(path)
    ]


def _entry_answer(turn: Any, entry: Mapping[str, Any], where: str) -> _Answer:
    """Read a turn in the layout of dev.json."""
    if not isinstance(turn, Mapping) or "prediction" not in turn:
        has = ", ".join(turn) if isinstance(turn, Mapping) else repr(turn)[:40]
        raise ValueError(f"{where}: needs the key prediction (SQL, or null), has {has}")
    names = (item[key] for item in (turn, entry) for key in _DB_IDS if key in item)
    return _answer(turn["prediction"], where, next(names, None))


def _answer(sql: Any, where: str, db_id: str | None = None) -> _Answer:
    if not isinstance(sql, str | None):
        raise ValueError(f"{where}: must be SQL or null, has {repr(sql)[:40]}")
    return _Answer(sql if sql and sql.strip() else None, where, db_id)


def _interactions(path: Path) -> Iterator[tuple[str, Mapping[str, Any], list[tuple[str, Any]]]]:
    """Yield the entries of a dev.json and their turns, each after its place in the file.

    An entry of Spider is its own turn.
    """
    for number, entry in enumerate(read_list(path, "interactions or questions")):
        where = f"{path}: entry {number}"
        if not isinstance(entry, Mapping):
            raise ValueError(
                f"{where}: must be an interaction or a question, has {repr(entry)[:40]}"
            )
        turns = entry.get("interaction", [entry])
        if not isinstance(turns, list) or not turns:
            raise ValueError(f"{where}: interaction must be a list of turns")
        yield where, entry, [(f"{where}, turn {turn}", said) for turn, said in enumerate(turns)]


def _text(entry: Any, names: Sequence[str], where: str) -> str:
    """Return the text that an entry has under one of these names."""
    for name in names:
        if isinstance(entry, Mapping) and isinstance(entry.get(name), str):
            return str(entry[name])
    raise ValueError(f"{where}: has no text under {' or '.join(names)}")


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
    if not any(lines):
        raise ValueError(f"{path}: is empty")
    return lines


def _blocks(lines: Sequence[str]) -> list[list[tuple[int, str]]]:
    """Return lines with their numbers, parted at blank ones."""
    parts = groupby(enumerate(lines, start=1), lambda line: bool(line[1]))
    return [list(block) for has_text, block in parts if has_text]
