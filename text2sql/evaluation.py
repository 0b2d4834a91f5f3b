"""Scores files of predictions as the community does: exact and execution match, by turn and level.

Question match (QM) is the share of turns that are right, interaction match (IM) the share of
interactions whose turns all are (SParC, arXiv 1906.02285).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from text2sql.execute import Database, Limits, Result
from text2sql.match import (
    NormalForm,
    executable,
    hardness,
    normal_form,
    order_matters,
    partial_match,
    results_match,
)
from text2sql.schema import Schema, read_list
from text2sql.sql import SqlError, parse

Missing = Literal["error", "wrong", "skip"]
TURNS = ("1", "2", "3", "4", "> 4")  # the official groups of turns
UNREADABLE = "unreadable"  # the hardness of a gold query outside of the benchmarks' SQL


@dataclass(frozen=True, slots=True)
class Gold:
    """A gold query.

    Args:
        query: SQL.
        db_id: Its database.
    """

    query: str
    db_id: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found about one turn.

    Args:
        interaction: From 0.
        turn: Within its interaction, from 0.
        db_id: The database.
        hardness: Of the gold query: easy, medium, hard, extra, or UNREADABLE.
        exact: Exact set match without values.
        execution: Execution match; None if it was not asked for.
        parsed: Whether the prediction is in the benchmarks' SQL.
        components: Component of exact set match and whether it matches.
        gold_status: How the gold query's execution ended, "" if not asked for.
        status: How the prediction's execution ended, "" if not asked for.
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
    message: str
    gold: str
    prediction: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Scores:
    """Verdicts of a file of predictions.

    Args:
        verdicts: In the order of the gold file.
    """

    verdicts: tuple[Verdict, ...]

    def metrics(self) -> dict[str, float]:
        """Return `exact`, `exact_interaction`; if executed, `execution`, `execution_interaction`.

        All are shares, in [0, 1].
        """
        found = {
            "exact": _mean([v.exact for v in self.verdicts]),
            "exact_interaction": _mean(list(self._interactions("exact").values())),
        }
        if self.executed:
            found["execution"] = _mean([bool(v.execution) for v in self.verdicts])
            whole = list(self._interactions("execution").values())
            found["execution_interaction"] = _mean(whole)
        return found

    @property
    def executed(self) -> bool:
        """Whether the turns have execution verdicts."""
        return all(v.execution is not None for v in self.verdicts)

    def by_turn(self) -> dict[str, dict[str, float]]:
        """Return count and shares for each group of TURNS that occurs."""
        return self._by(TURNS, lambda v: TURNS[min(v.turn, len(TURNS) - 1)])

    def by_hardness(self) -> dict[str, dict[str, float]]:
        """Return count and shares for each hardness that occurs."""
        return self._by(("easy", "medium", "hard", "extra", UNREADABLE), lambda v: v.hardness)

    def components(self) -> dict[str, float]:
        """Return for each component of exact set match the share of turns in which it matches."""
        names = list(self.verdicts[0].components) if self.verdicts else []
        return {name: _mean([v.components[name] for v in self.verdicts]) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain containers, for JSON."""
        return {
            **self.metrics(),
            "turns": len(self.verdicts),
            "interactions": len(self._interactions("exact")),
            "by_turn": self.by_turn(),
            "by_hardness": self.by_hardness(),
            "components": self.components(),
            "verdicts": [verdict.to_dict() for verdict in self.verdicts],
        }

    def _interactions(self, kind: str) -> dict[int, bool]:
        whole: dict[int, bool] = {}
        for verdict in self.verdicts:
            right = bool(getattr(verdict, kind))
            whole[verdict.interaction] = whole.get(verdict.interaction, True) and right
        return whole

    def _by(
        self, groups: Sequence[str], group_of: Callable[[Verdict], str]
    ) -> dict[str, dict[str, float]]:
        found = {}
        for group in groups:
            members = [v for v in self.verdicts if group_of(v) == group]
            if members:
                found[group] = {
                    "count": float(len(members)),
                    "exact": _mean([v.exact for v in members]),
                }
                if self.executed:
                    found[group]["execution"] = _mean([bool(v.execution) for v in members])
        return found


@dataclass
class Evaluator:
    """Judges predictions against gold queries; keeps what it found out about the gold ones.

    Args:
        schemas: The schema of every database, with the foreign keys that make columns equal.
        databases: The file of every database; empty to leave execution out.
        limits: What one execution may take.
        keep_distinct: Execute with DISTINCT, where the official default takes it out.
    """

    schemas: Mapping[str, Schema]
    databases: Mapping[str, Path] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    keep_distinct: bool = False
    _golds: dict[Gold, tuple[str, NormalForm | None]] = field(default_factory=dict, repr=False)
    _results: dict[tuple[str, str], Result] = field(default_factory=dict, repr=False)
    _opened: dict[str, Database] = field(default_factory=dict, repr=False)

    def judge(self, gold: Gold, prediction: str | None, interaction: int, turn: int) -> Verdict:
        """Return the verdict on one turn.

        A prediction outside of the benchmarks' SQL is wrong in exact match, one that does not run
        in execution match; so is any prediction where the gold query itself does neither.

        Args:
            gold: The gold query.
            prediction: None if it is missing, which is wrong.
            interaction: From 0.
            turn: Within its interaction, from 0.

        Raises:
            ValueError: The gold query's database has no schema or file.
        """
        schema = self._schema(gold, interaction, turn)
        level, expected = self._gold(gold, schema)
        form, message = None, "missing"
        # Systems without values write `value`; the official script reads a lone one as 1.
        text = None if prediction is None else prediction.replace(" value ", " 1 ")
        if text is not None:
            try:
                form, message = normal_form(parse(text, schema), schema), ""
            except SqlError as error:
                message = str(error)
        components = partial_match(form, expected) if expected is not None else {}
        execution, gold_status, status = None, "", ""
        if self.databases:
            wanted = self._execute(gold.db_id, gold.query)
            result = None if text is None else self._execute(gold.db_id, text)
            execution = (
                result is not None
                and wanted.status == result.status == "ok"
                and results_match(wanted.rows, result.rows, order_matters(gold.query))
            )
            gold_status, status = wanted.status, result.status if result else "missing"
            message = message or (result.message if result else "")
        return Verdict(
            interaction,
            turn,
            gold.db_id,
            level,
            expected is not None and form == expected,
            execution,
            form is not None,
            components,
            gold_status,
            status,
            message,
            gold.query,
            prediction,
        )

    def _schema(self, gold: Gold, interaction: int, turn: int) -> Schema:
        where = f"gold interaction {interaction}, turn {turn}: database {gold.db_id!r}"
        if gold.db_id not in self.schemas:
            raise ValueError(f"{where} has no schema")
        if self.databases and gold.db_id not in self.databases:
            raise ValueError(f"{where} has no SQLite file")
        return self.schemas[gold.db_id]

    def _gold(self, gold: Gold, schema: Schema) -> tuple[str, NormalForm | None]:
        if gold not in self._golds:
            try:
                query = parse(gold.query, schema)
                self._golds[gold] = hardness(query), normal_form(query, schema)
            except SqlError:
                self._golds[gold] = UNREADABLE, None
        return self._golds[gold]

    def _execute(self, db_id: str, sql: str) -> Result:
        """Execute, or remember: turns of an interaction and their gold queries repeat a lot."""
        runs = executable(sql, self.keep_distinct)
        if (db_id, runs) not in self._results:
            if db_id not in self._opened:
                self._opened[db_id] = Database(self.databases[db_id], self.limits)
            self._results[db_id, runs] = self._opened[db_id].execute(runs)
        return self._results[db_id, runs]


def evaluate(
    golds: Sequence[Sequence[Gold]],
    predictions: Sequence[Sequence[str | None]],
    evaluator: Evaluator,
    missing: Missing = "error",
) -> Scores:
    """Judge all predictions.

    Args:
        golds: Gold queries by interaction and turn.
        predictions: As many interactions; of a shorter one the last turns are missing.
        evaluator: Judges the turns.
        missing: What a missing prediction is: an "error", "wrong", or left out of all counts
            ("skip", which is what the official script does with it).

    Raises:
        ValueError: Interactions or turns are missing or in excess; names the first.
    """
    if len(golds) != len(predictions):
        raise ValueError(
            f"{len(predictions)} interactions of predictions for {len(golds)} gold ones; a blank "
            "line must stand between interactions"
        )
    for number, (gold, prediction) in enumerate(zip(golds, predictions, strict=True)):
        if len(prediction) > len(gold):
            raise ValueError(
                f"interaction {number}: {len(prediction)} predictions for {len(gold)} gold ones; "
                f"the one at turn {len(gold)} (counted from 0) is in excess"
            )
        turns = [*prediction, *[None] * (len(gold) - len(prediction))]
        if None in turns and missing == "error":
            raise ValueError(
                f"interaction {number}, turn {turns.index(None)} (counted from 0): the prediction "
                f"is missing; there are {len(gold)} gold queries. missing=wrong counts such a turn "
                "as wrong, missing=skip leaves it out, as the official script does"
            )
    return Scores(
        tuple(
            evaluator.judge(gold, prediction, number, turn)
            for number, (turns, answers) in enumerate(zip(golds, predictions, strict=True))
            for turn, gold in enumerate(turns)
            for prediction in [answers[turn] if turn < len(answers) else None]
            if prediction is not None or missing != "skip"
        )
    )


# --- files ---------------------------------------------------------------------------------------


def read_gold(path: str | Path) -> list[list[Gold]]:
    """Read gold queries: text (`SQL <tab> db_id`) or the dev.json of Spider, SParC or CoSQL.

    Args:
        path: A text file has a blank line between interactions; one without any is Spider's, and
            every line an interaction of its own. A file ending in .json is read as JSON.

    Raises:
        ValueError: The file cannot be read, or a line or entry has another form; names it.
    """
    path = Path(path)
    if path.suffix == ".json":
        return [
            [
                Gold(_string(turn, ("query",), f"{path}: entry {number}, turn {position}"), db_id)
                for position, turn in enumerate(turns)
            ]
            for number, turns, db_id in _json_entries(path)
        ]
    golds = []
    for block in _blocks(path):
        turns = []
        for line, text in block:
            sql, tab, db_id = text.partition("\t")
            if not tab or not db_id.strip():
                raise ValueError(f"{path}:{line}: must be SQL, a tab and a database's name: {text}")
            turns.append(Gold(sql.strip(), db_id.strip().split("\t")[0]))
        golds.append(turns)
    return golds if len(golds) > 1 else [[gold] for turns in golds for gold in turns]


def read_predictions(path: str | Path, golds: Sequence[Sequence[Gold]]) -> list[list[str | None]]:
    """Read predictions: text, one a line with blank lines as in the gold file, or JSON.

    Args:
        path: JSON is a list of interactions, each a list of SQL (null where missing), or in the
            layout of dev.json with `prediction` beside or in place of `query`.
        golds: What is predicted. Where each has one turn, blank lines do not count.

    Raises:
        ValueError: The file cannot be read, or has another form.
    """
    path = Path(path)
    if path.suffix == ".json":
        content = read_list(path, "interactions or questions")
        if all(isinstance(turns, list) for turns in content):
            for number, turns in enumerate(content):
                for position, sql in enumerate(turns):
                    if not isinstance(sql, str | None):
                        raise ValueError(
                            f"{path}: interaction {number}, turn {position}: must be SQL or null"
                        )
            return content
        return [
            [
                _string(turn, ("prediction", "query"), f"{path}: entry {number}, turn {position}")
                for position, turn in enumerate(turns)
            ]
            for number, turns, _ in _json_entries(path)
        ]
    blocks = [[text.split("\t")[0].strip() for _, text in block] for block in _blocks(path)]
    if all(len(turns) == 1 for turns in golds):
        return [[sql] for block in blocks for sql in block]
    return [list(block) for block in blocks]


def find_databases(
    folders: Iterable[str | Path], db_ids: Iterable[str], all_needed: bool = True
) -> dict[str, Path]:
    """Find the SQLite file of every database: DB/DB.sqlite, DB.sqlite, or FOLDER/DB/DB.sqlite.

    Args:
        folders: Where to look, in order.
        db_ids: The databases.
        all_needed: Whether a file that is not there is an error.

    Raises:
        ValueError: A folder or a needed file is not there; names all files that are missing.
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


def _json_entries(path: Path) -> Iterable[tuple[int, list[Any], str]]:
    for number, entry in enumerate(read_list(path, "interactions or questions")):
        where = f"{path}: entry {number}"
        db_id = _string(entry, ("database_id", "db_id"), where)
        turns = entry.get("interaction", [entry])
        if not isinstance(turns, list) or not turns:
            raise ValueError(f"{where}: interaction must be a list of turns")
        yield number, turns, db_id


def _string(entry: Any, names: Sequence[str], where: str) -> str:
    for name in names:
        if isinstance(entry, Mapping) and isinstance(entry.get(name), str):
            return str(entry[name])
    raise ValueError(f"{where}: has no text under {' or '.join(names)}")


def _blocks(path: Path) -> list[list[tuple[int, str]]]:
    """Return a text file's lines with their numbers, parted at blank lines."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 at byte {error.start}") from error
    blocks: list[list[tuple[int, str]]] = [[]]
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            blocks[-1].append((number, line.strip()))
        elif blocks[-1]:
            blocks.append([])
    blocks = [block for block in blocks if block]
    if not blocks:
        raise ValueError(f"{path}: is empty")
    return blocks


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else 0.0
