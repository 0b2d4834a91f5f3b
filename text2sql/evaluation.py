"""Scores predictions as the community does: exact and execution match, by turn and level.

Question match (QM) is the share of turns that are right, interaction match (IM) the share of
interactions whose turns all are (SParC, arXiv 1906.02285).
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

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
from text2sql.schema import Schema
from text2sql.sql import SqlError, parse

Missing = Literal["error", "wrong", "skip"]
TURNS = ("1", "2", "3", "4", "> 4")  # the official groups of turns
MISSING_WAYS = (
    "missing=wrong counts such a turn as wrong, missing=skip leaves it out, as the official script "
    "does"
)
UNREADABLE = "unreadable"  # the hardness of a gold query that cannot be read


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
        parsed: Whether the prediction can be read as the gold query is.
        components: Component of exact set match and whether it matches; UNREADABLE alone, and
            whether the texts are equal, if the gold query cannot be read.
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
    """Verdicts of a file of predictions, in the order of the gold file; those left out counted."""

    verdicts: tuple[Verdict, ...]
    left_out: int = 0

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

        Turns whose gold query cannot be read have UNREADABLE alone.
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
            "left_out": self.left_out,
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
            a folder of its name, every SQLite file of that is asked, as a test suite has them.
        limits: What one execution may take.
        keep_distinct: Execute with DISTINCT, where the official default takes it out.
        kept_bytes: Of the results that are kept, because turns and their gold queries repeat.
    """

    schemas: Mapping[str, Schema]
    databases: Mapping[str, Path] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    keep_distinct: bool = False
    kept_bytes: int = 64_000_000
    _golds: dict[Gold, tuple[str, NormalForm | None, bool]] = field(
        default_factory=dict, repr=False
    )
    _kept: OrderedDict[tuple[Path, str], Result] = field(default_factory=OrderedDict, repr=False)
    _kept_size: int = field(default=0, repr=False)
    _suites: dict[Path, tuple[Database, ...]] = field(default_factory=dict, repr=False)

    def judge(self, gold: Gold, prediction: str | None, interaction: int, turn: int) -> Verdict:
        """Return the verdict on one turn; interactions, and turns in each, count from 0.

        A prediction outside of the benchmarks' SQL is wrong in exact match, one that does not run
        in execution match; so is any prediction where the gold query itself does neither. But where
        the gold query is outside of that SQL, both are read as standard SQL; and if it cannot be
        read so either, it is matched by its own text. A missing prediction (None) is wrong.

        Raises:
            ValueError: The gold query's database has no schema.
        """
        schema = self.schemas.get(gold.db_id)
        if schema is None:
            raise ValueError(
                f"gold interaction {interaction}, turn {turn}: "
                f"database {gold.db_id!r} has no schema"
            )
        level, expected, standard = self._gold(gold, schema)
        form, message = None, "missing"
        copied = prediction is not None and _words(prediction) == _words(gold.query)
        # A copy of the gold query has its values.
        text = prediction if prediction is None or copied else without_masks(prediction, schema)
        if text is not None:
            try:
                form, message = normal_form(parse(text, schema, standard), schema), ""
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

    def _gold(self, gold: Gold, schema: Schema) -> tuple[str, NormalForm | None, bool]:
        """Its hardness and form, None if it cannot be read; and whether it is read as standard."""
        if gold not in self._golds:
            self._golds[gold] = UNREADABLE, None, True
            for standard in (False, True):
                try:
                    query = parse(gold.query, schema, standard)
                except SqlError:
                    continue
                self._golds[gold] = hardness(query), normal_form(query, schema), standard
                break
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
        is_short = len(sql) <= self.limits.sql_bytes  # what is longer is refused unread
        runs = executable(sql, self.keep_distinct) if is_short else sql
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
        ValueError: A prediction is missing, names the first; or all are, and none is counted.
    """
    verdicts: list[Verdict] = []
    left_out = 0
    for number, (turns, answers) in enumerate(zip(golds, predictions, strict=True)):
        for turn, (gold, prediction) in enumerate(zip(turns, answers, strict=True)):
            if prediction is None and missing == "error":
                raise ValueError(
                    f"interaction {number}, turn {turn} (counted from 0): the prediction is "
                    f"missing. {MISSING_WAYS}"
                )
            if prediction is None and missing == "skip":
                left_out += 1
            else:
                verdicts.append(evaluator.judge(gold, prediction, number, turn))
    if left_out and not verdicts:
        raise ValueError(f"all {left_out} predictions are missing, missing=skip leaves none over")
    return Scores(tuple(verdicts), left_out)


def _share(verdicts: Sequence[Verdict], kind: str) -> float:
    return _mean([bool(getattr(verdict, kind)) for verdict in verdicts])


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else 0.0
