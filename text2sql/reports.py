"""Scores of Text-to-SQL as tables, and of files of predictions."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from terminal import literal
from text2sql.dialogue import Example
from text2sql.evaluation import TURNS, UNREADABLE, Evaluator, Scores, Verdict, evaluate
from text2sql.execute import Limits
from text2sql.match import HARDNESS
from text2sql.prediction_files import find_databases, read_gold, read_predictions
from text2sql.schema import Schema, read_tables


def score_files(
    gold: str,
    predictions: str,
    database: str | None,
    tables: str | None,
    missing: Literal["error", "wrong", "skip"],
    keep_distinct: bool,
    seconds: float,
    megabytes: float,
) -> tuple[Scores, Path | None]:
    """Score a file of predictions against a file of gold queries.

    Args:
        gold: See `read_gold`.
        predictions: See `read_predictions`.
        database: Folders of SQLite files, parted as in PATH; None: nothing is executed.
        tables: A tables.json with schemas and foreign keys; None: the one beside the gold file, in
            a folder of databases or above it; without any, the SQLite files' own keys.
        missing: What a missing prediction is, see `evaluate`.
        keep_distinct: Execute queries with their DISTINCT.
        seconds: What one execution may take.
        megabytes: Memory that one execution may take. Its result may take half of that here, and as
            much the results that are kept because queries repeat.

    Returns:
        The scores, and the tables.json that was read.

    Raises:
        ValueError: A file is missing or malformed, or nothing says the schemas.
    """
    golds = read_gold(gold)
    answers = read_predictions(predictions, golds, missing == "error")
    folders = [Path(part) for part in (database or "").split(os.pathsep) if part]
    names = list(dict.fromkeys(each.db_id for turns in golds for each in turns))
    databases = find_databases(folders, names) if folders else {}
    source = Path(tables) if tables is not None else _tables_near(Path(gold), folders)
    if source is None and not databases:
        raise ValueError(
            f"module.tables: no tables.json beside {gold}; give module.tables=FILE or "
            "database=FOLDER"
        )
    schemas = (
        read_tables(source)
        if source
        else {name: Schema.from_sqlite(file, seconds) for name, file in databases.items()}
    )
    memory = int(megabytes * 1e6)
    # The official script fetches everything: rows are bounded by memory only.
    limits = Limits(seconds=seconds, rows=10**9, result_bytes=memory // 2, memory_bytes=memory)
    evaluator = Evaluator(schemas, databases, limits, keep_distinct, memory // 2)
    return evaluate(golds, answers, evaluator, missing), source


def _tables_near(gold: Path, folders: Sequence[Path]) -> Path | None:
    places = [gold.absolute().parent, *(f for place in folders for f in (place, place.parent))]
    files = (place / "tables.json" for place in places)
    return next((file for file in files if file.is_file()), None)


def notes(scores: Scores, source: Path | None) -> list[str]:
    """Return what else there is to say of scores: where keys come from, and odd turns."""
    verdicts = scores.verdicts
    said = [f"foreign keys: {source or 'the SQLite files'}"]
    if "execution" in scores.kinds:
        files = {v.db_id: v.files for v in verdicts}
        said.append(f"executed on {len(files)} databases, {sum(files.values())} SQLite files")
    if scores.left_out:
        said.append(f"missing predictions, left out of all counts: {scores.left_out}")
    if unparsed := sum(not v.parsed and v.prediction is not None for v in verdicts):
        said.append(f"predictions that cannot be read: {unparsed}")
    for v in verdicts:
        where = f"interaction {v.interaction}, turn {v.turn} ({v.db_id})"
        if v.prediction is None:
            said.append(f"{where}: the prediction is missing")
        if v.hardness == UNREADABLE:
            verdict = "and matched by its own text" if v.exact else "and no text equal to it"
            said.append(f"{where}: the gold query cannot be read, {verdict}: {v.gold}")
        if v.gold_status not in ("", "ok"):
            said.append(f"{where}: the gold query does not run, the turn is a miss: {v.gold}")
        if v.status in ("refused", "stopped"):
            said.append(f"{where}: {v.status}: {v.message}")
    return said


def show_scores(scores: Scores, title: str, console: Console) -> None:
    """Print match by turn and by hardness."""
    kinds, metrics, interactions = scores.kinds, scores.metrics(), scores.interactions
    many = len(scores.verdicts) > interactions
    groups = {"turn": scores.by_turn() if many else {}, "hardness": scores.by_hardness()}
    for group, rows in groups.items():
        if not rows:
            continue
        names = ("turns", *(f"{kind} %" for kind in kinds))
        table = _table(literal(f"{title}, by {group}"), group, names)
        for name, row in rows.items():
            table.add_row(
                name, f"{row['count']:.0f}", *(f"{100 * row[kind]:.1f}" for kind in kinds)
            )
        table.add_section()
        table.add_row("all", str(len(scores.verdicts)), *(f"{100 * metrics[k]:.1f}" for k in kinds))
        if many:
            shares = (f"{100 * metrics[f'{kind}_interaction']:.1f}" for kind in kinds)
            table.add_row("interactions", str(interactions), *shares)
        console.print(table)


def show_readings(verdicts: Mapping[str, Sequence[Verdict]], console: Console) -> None:
    """Print the readings side by side: question and interaction match, by turn and by hardness."""
    scores = {reading: Scores(tuple(v)) for reading, v in verdicts.items() if v}
    kinds = min((found.kinds for found in scores.values()), key=len, default=("exact",))
    names = ("turns", *(f"{kind} {what}" for kind in kinds for what in ("QM", "IM")))
    table = _table("match of turns and interactions, %", "reading", names)
    for reading, found in scores.items():
        m = found.metrics()
        shares = [m[name] for kind in kinds for name in (kind, f"{kind}_interaction")]
        cells = (f"{100 * share:.1f}" for share in shares)
        table.add_row(reading, str(len(found.verdicts)), *cells)
    console.print(table)
    by_turn = {reading: found.by_turn() for reading, found in scores.items()}
    by_level = {reading: found.by_hardness() for reading, found in scores.items()}
    for title, groups, by in (("turn", TURNS, by_turn), ("hardness", HARDNESS, by_level)):
        shown = [group for group in groups if any(group in rows for rows in by.values())]
        table = _table(f"exact match by {title}, %", "reading", shown)
        for reading, rows in by.items():
            cells = (f"{100 * rows[g]['exact']:.1f}" if g in rows else "-" for g in shown)
            table.add_row(reading, *cells)
        console.print(table)


def _table(title: str | Text, first: str, others: Sequence[str]) -> Table:
    """An empty table; its columns but the first hold numbers."""
    table = Table(first, title=title, title_justify="left")
    for name in others:
        table.add_column(name, justify="right")
    return table


def sample_row(
    example: Example, question: str, verdicts: Mapping[str, Verdict | None]
) -> dict[str, Any]:
    """Return a turn as a row of samples: what was said, rewritten and parsed, and what is right.

    A reading without a verdict is None; the rewritten one has one.
    """
    written = verdicts["rewritten"]
    assert written is not None, "every turn is rewritten"
    return {
        "interaction": example.interaction,
        "turn": example.turn,
        "database": written.db_id,
        "history": " | ".join(example.history),
        "utterance": example.utterance,
        "rewrite": question,
        "gold rewrite": example.rewrite,
        "SQL": written.prediction,
        "gold SQL": example.query,
        "hardness": written.hardness,
        **{f"{reading} exact": v and v.exact for reading, v in verdicts.items()},
        **{f"{reading} execution": v and v.execution for reading, v in verdicts.items()},
    }
