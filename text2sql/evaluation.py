"""Scores files of predictions as the community does: exact and execution match, by turn and level.

Question match (QM) is the share of turns that are right, interaction match (IM) the share of
interactions whose turns all are (SParC, arXiv 1906.02285).
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from text2sql.dialogue import Example
from text2sql.execute import Database, Limits, Result
from text2sql.match import (
    HARDNESS,
    NormalForm,
    executable,
    hardness,
    normal_form,
    partial_match,
    results_match,
    without_masks,
)
from text2sql.schema import Schema, read_list
from text2sql.sql import SqlError, parse

Missing = Literal["error", "wrong", "skip"]
TURNS = ("1", "2", "3", "4", "> 4")  # the official groups of turns
_DB_IDS = ("database_id", "db_id")
_WAYS = (
    "missing=wrong counts such a turn as wrong, missing=skip leaves it out, as the official script "
    "does"
)
UNREADABLE = "unreadable"  # the hardness of a gold query outside of the benchmarks' SQL


@dataclass(frozen=True, slots=True)
class Gold:
    """A gold query, and its database's name."""

    query: str
    db_id: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found about one turn.

    Args:
        interaction: From 0.
        turn: Within its interaction, from 0.
        db_id: The database.
        hardness: Of the gold query: one of HARDNESS, or UNREADABLE.
        exact: Exact set match without values.
        execution: Execution match, on every file; None if it was not asked for.
        parsed: Whether the prediction is in the benchmarks' SQL.
        components: Component of exact set match and whether it matches; UNREADABLE alone, and
            whether the texts are equal, if the gold query is outside of the benchmarks' SQL.
        gold_status: How the gold query's execution ended, "" if not asked for.
        status: How the prediction's execution ended, "" if not asked for; "longer" if it was
            stopped because it has more rows than the gold query.
        files: How many SQLite files of the database were asked, or would have been.
        message: Why the prediction was not parsed or did not run.
        gold: The gold query.
        prediction: The prediction; None if it is missing.
    """

    interaction: int
    turn: int
    db_id: str
    hardness: str
    exact: bool
    execution: bool | None
    parsed: bool
    components: Mapping[str, bool]
    gold_status: str
    status: str
    files: int
    message: str
    gold: str
    prediction: str | None


@dataclass(frozen=True)
class Scores:
    """Verdicts of a file of predictions, in the order of the gold file."""

    verdicts: tuple[Verdict, ...]

    def metrics(self) -> dict[str, float]:
        """Return `exact`, `exact_interaction`; if executed, `execution`, `execution_interaction`.

        All are shares, in [0, 1].
        """
        found = {}
        for kind in self.kinds:
            whole: dict[int, bool] = {}
            for verdict in self.verdicts:
                right = bool(getattr(verdict, kind))
                whole[verdict.interaction] = whole.get(verdict.interaction, True) and right
            found[kind] = _share(self.verdicts, kind)
            found[f"{kind}_interaction"] = _mean(list(whole.values()))
        return found

    @property
    def kinds(self) -> tuple[str, ...]:
        """`exact`, and `execution` if all turns have verdicts of it."""
        executed = all(verdict.execution is not None for verdict in self.verdicts)
        return ("exact", "execution") if executed else ("exact",)

    @property
    def interactions(self) -> int:
        """How many interactions the turns are of."""
        return len({verdict.interaction for verdict in self.verdicts})

    def by_turn(self) -> dict[str, dict[str, float]]:
        """Return count and shares for each group of TURNS that occurs."""
        return self._by(TURNS, lambda v: TURNS[min(v.turn, len(TURNS) - 1)])

    def by_hardness(self) -> dict[str, dict[str, float]]:
        """Return count and shares for each hardness that occurs."""
        return self._by((*HARDNESS, UNREADABLE), lambda v: v.hardness)

    def components(self) -> dict[str, float]:
        """Return for each component of exact set match its share among the turns that have it.

        Turns whose gold query is outside of the benchmarks' SQL have UNREADABLE alone.
        """
        found: dict[str, list[bool]] = {}
        for verdict in self.verdicts:
            for name, matches in verdict.components.items():
                found.setdefault(name, []).append(matches)
        return {name: _mean(matches) for name, matches in found.items()}

    def to_json(self) -> str:
        """Return everything as the text of a file."""
        content = {
            **self.metrics(),
            "turns": len(self.verdicts),
            "interactions": self.interactions,
            "by_turn": self.by_turn(),
            "by_hardness": self.by_hardness(),
            "components": self.components(),
            "verdicts": [asdict(verdict) for verdict in self.verdicts],
        }
        return json.dumps(content, indent=1) + "\n"

    def _by(
        self, groups: Sequence[str], group_of: Callable[[Verdict], str]
    ) -> dict[str, dict[str, float]]:
        parts = {group: [v for v in self.verdicts if group_of(v) == group] for group in groups}
        return {
            group: {
                "count": float(len(members)),
                **{kind: _share(members, kind) for kind in self.kinds},
            }
            for group, members in parts.items()
            if members
        }


@dataclass
class Evaluator:
    """Judges predictions against gold queries; keeps what it found out about the gold ones.

    Args:
        schemas: The schema of every database, with the foreign keys that make columns equal.
        databases: The files of databases; queries about others are not executed. Where one lies in
            a folder of its name, every SQLite file of the folder is asked, as a test suite has them.
        limits: What one execution may take.
        keep_distinct: Execute with DISTINCT, where the official default takes it out.
        kept_bytes: Of the results that are kept, because turns and their gold queries repeat.
    """

    schemas: Mapping[str, Schema]
    databases: Mapping[str, Path] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    keep_distinct: bool = False
    kept_bytes: int = 64_000_000
    _golds: dict[Gold, tuple[str, NormalForm | None]] = field(default_factory=dict, repr=False)
    _kept: OrderedDict[tuple[Path, str], Result] = field(default_factory=OrderedDict, repr=False)
    _kept_size: int = field(default=0, repr=False)
    _suites: dict[Path, tuple[Database, ...]] = field(default_factory=dict, repr=False)

    def judge(self, gold: Gold, prediction: str | None, interaction: int, turn: int) -> Verdict:
        """Return the verdict on one turn; interactions, and turns in each, count from 0.

        A prediction outside of the benchmarks' SQL is wrong in exact match, one that does not run
        in execution match; so is any prediction where the gold query itself does neither. But a
        gold query outside of that SQL is matched by its own text. A missing prediction (None) is
        wrong.

        Raises:
            ValueError: The gold query's database has no schema.
        """
        schema = self.schemas.get(gold.db_id)
        if schema is None:
            raise ValueError(
                f"gold interaction {interaction}, turn {turn}: database {gold.db_id!r} has no schema"
            )
        level, expected = self._gold(gold, schema)
        form, message = None, "missing"
        copied = prediction is not None and _words(prediction) == _words(gold.query)
        # A copy of the gold query has its values.
        text = prediction if prediction is None or copied else without_masks(prediction, schema)
        if text is not None:
            try:
                form, message = normal_form(parse(text, schema), schema), ""
            except SqlError as error:
                message = str(error)
        if expected is None:
            exact, components = copied, {UNREADABLE: copied}
        else:
            exact, components = form == expected, partial_match(form, expected)
        execution, gold_status, status, files = None, "", "", 0
        if gold.db_id in self.databases:
            suite = self._suite(self.databases[gold.db_id])
            execution, gold_status, status, why = self._compare(gold, text, suite)
            files, message = len(suite), message or why
        return Verdict(
            interaction, turn, gold.db_id, level, exact, execution, form is not None, components,
            gold_status, status, files, message, gold.query, prediction,
        )  # fmt: skip

    def _gold(self, gold: Gold, schema: Schema) -> tuple[str, NormalForm | None]:
        if gold not in self._golds:
            try:
                query = parse(gold.query, schema)
                self._golds[gold] = hardness(query), normal_form(query, schema)
            except SqlError:
                self._golds[gold] = UNREADABLE, None
        return self._golds[gold]

    def _suite(self, file: Path) -> tuple[Database, ...]:
        """Open the files of a database: the one, or all of the folder that has its name."""
        if file not in self._suites:
            files = [file]
            if file.parent.name == file.stem:
                files += sorted(set(file.parent.glob("*.sqlite")) - {file})
            self._suites[file] = tuple(Database(one, self.limits) for one in files)
        return self._suites[file]

    def _compare(
        self, gold: Gold, text: str | None, suite: Sequence[Database]
    ) -> tuple[bool, str, str, str]:
        """Execute until results differ: whether none do, how gold and prediction ended, and why."""
        if text is None:
            return False, self._execute(suite[0], gold.query, None).status, "missing", ""
        ordered = "order by" in gold.query.lower()
        for database in suite:
            wanted = self._execute(database, gold.query, None)
            # More rows than the gold query has cannot match, however many they are.
            rows = len(wanted.rows) + 1 if wanted.status == "ok" else None
            result = self._execute(database, text, rows)
            is_longer = result.status == "stopped" and len(result.rows) == rows
            status, message = ("longer", "") if is_longer else (result.status, result.message)
            if not (
                wanted.status == status == "ok" and results_match(wanted.rows, result.rows, ordered)
            ):
                return False, wanted.status, status, message
        return True, "ok", "ok", ""

    def _execute(self, database: Database, sql: str, rows: int | None) -> Result:
        """Execute, or remember; `rows` bounds the result further."""
        runs = executable(sql, self.keep_distinct)
        key = database.path, runs
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        limits = self.limits
        if rows is not None:
            limits = replace(limits, rows=min(rows, limits.rows))
        result = database.execute(runs, limits)
        if result.status != "stopped":
            self._kept[key] = result
            self._kept_size += _kept_size(result)
            while self._kept_size > self.kept_bytes:
                self._kept_size -= _kept_size(self._kept.popitem(last=False)[1])
        return result


class Judge:
    """Judges SQL against the gold queries of examples; executes where there is a database."""

    def __init__(self, seconds: float) -> None:
        self.schemas: dict[str, Schema] = {}
        self.databases: dict[str, Path] = {}
        self.evaluator = Evaluator(self.schemas, self.databases, Limits(seconds=seconds))

    def __call__(self, example: Example, sql: str) -> Verdict:
        """Return the verdict on one turn; the example must have a schema and a gold query."""
        name = example.about.db_id
        self.schemas[name] = example.about
        if example.database is not None:
            self.databases[name] = example.database
        gold = Gold(example.gold, name)
        return self.evaluator.judge(gold, sql, example.interaction, example.turn)


def _kept_size(result: Result) -> int:
    return result.size + 1000  # of the query's text and the entry


def _words(sql: str) -> list[str]:
    return sql.rstrip("; \t\r\n").split()


def evaluate(
    golds: Sequence[Sequence[Gold]],
    predictions: Sequence[Sequence[str | None]],
    evaluator: Evaluator,
    missing: Missing = "error",
) -> Scores:
    """Judge all predictions.

    Args:
        golds: Gold queries by interaction and turn.
        predictions: Likewise; None where one is missing.
        evaluator: Judges the turns.
        missing: What a missing prediction is: an "error", "wrong", or left out of all counts
            ("skip", which is what the official script does with it).

    Raises:
        ValueError: A prediction is missing; names the first.
    """
    verdicts = []
    for number, (turns, answers) in enumerate(zip(golds, predictions, strict=True)):
        for turn, (gold, prediction) in enumerate(zip(turns, answers, strict=True)):
            if prediction is None and missing == "error":
                raise ValueError(
                    f"interaction {number}, turn {turn}: the prediction is missing. {_WAYS}"
                )
            if prediction is not None or missing == "wrong":
                verdicts.append(evaluator.judge(gold, prediction, number, turn))
    return Scores(tuple(verdicts))


# --- files ---------------------------------------------------------------------------------------


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
                raise ValueError(f"{answer.where}: the prediction is missing. {_WAYS}")
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


def _share(verdicts: Sequence[Verdict], kind: str) -> float:
    return _mean([bool(getattr(verdict, kind)) for verdict in verdicts])


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else 0.0
