"""Text-to-SQL over several turns: so far, the evaluation that its parsers will be measured by."""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytorch_lightning as pl
from rich.console import Console

from lightning_modules.sql_parser import show_scores
from text2sql.evaluation import (
    Evaluator,
    Gold,
    Scores,
    evaluate,
    find_databases,
    read_gold,
    read_predictions,
)
from text2sql.execute import Limits
from text2sql.schema import Schema, read_tables


class TextToSql(pl.LightningModule):
    """Multi-turn Text-to-SQL. It has no model yet: it scores predictions that others made.

    Args:
        tables: A tables.json with the schemas and their foreign keys. null: the one beside the gold
            file, in a folder of databases or above it; without any, the SQLite files' own keys.
        missing: What a missing prediction is: an `error`, `wrong`, or left out of all counts as the
            official script does (`skip`).
        keep_distinct: Execute queries with their DISTINCT, which the official default takes out.
        seconds: What one execution may take.
    """

    # The runner's tasks of this module, each with whether it needs a checkpoint.
    tasks: ClassVar[dict[str, bool]] = {"evaluate": False}

    def __init__(
        self,
        tables: str | None = None,
        missing: Literal["error", "wrong", "skip"] = "error",
        keep_distinct: bool = False,
        seconds: float = 30.0,
    ) -> None:
        super().__init__()
        self.tables, self.missing = tables, missing
        self.keep_distinct = keep_distinct
        # The official script fetches everything: rows are bounded by memory only.
        self.limits = replace(Limits(), seconds=seconds, rows=2_000_000, result_bytes=512_000_000)

    def evaluate(self, datamodule: Any, settings: dict[str, Any]) -> dict[str, float]:
        """Score a file of predictions against a file of gold queries; print tables, write JSON.

        Args:
            datamodule: Not used.
            settings: The config: `gold` and `predictions` (files), `database` (folders of SQLite
                files, parted as in PATH; null: no execution), `json` (where verdicts go, or null).

        Returns:
            `exact`, `exact_interaction` and, with databases, `execution`, `execution_interaction`.

        Raises:
            ValueError: A key is missing, or a file is missing or malformed.
        """
        for key in ("gold", "predictions"):
            if not settings.get(key):
                raise ValueError(f"{key}: task=evaluate needs {key}=FILE")
        target = Path(settings["json"]) if settings.get("json") else None
        if target is not None and not target.absolute().parent.is_dir():
            raise ValueError(f"json={target}: there is no folder {target.absolute().parent}")
        golds = read_gold(settings["gold"])
        predictions = read_predictions(settings["predictions"], golds)
        given = settings.get("database")
        folders = [Path(part) for part in given.split(os.pathsep) if part] if given else []
        names = list(dict.fromkeys(gold.db_id for turns in golds for gold in turns))
        databases = find_databases(folders, names) if folders else {}
        source = self._tables(Path(settings["gold"]), folders)
        if source is None and not databases:
            raise ValueError(
                f"module.tables: no tables.json beside {settings['gold']}; give "
                "module.tables=FILE or database=FOLDER"
            )
        schemas = (
            read_tables(source)
            if source
            else {name: Schema.from_sqlite(file) for name, file in databases.items()}
        )
        evaluator = Evaluator(schemas, databases, self.limits, self.keep_distinct)
        scores = evaluate(golds, predictions, evaluator, self.missing)
        _show(scores, golds, Path(settings["predictions"]), source)
        if target is not None:
            target.write_text(json.dumps(scores.to_dict(), indent=1) + "\n", encoding="utf-8")
            Console().print(f"verdicts: {target}", highlight=False)
        return scores.metrics()

    def _tables(self, gold: Path, folders: list[Path]) -> Path | None:
        if self.tables is not None:
            return Path(self.tables)
        places = [gold.absolute().parent, *(f for place in folders for f in (place, place.parent))]
        files = (place / "tables.json" for place in places)
        return next((file for file in files if file.is_file()), None)


def _show(
    scores: Scores, golds: Sequence[Sequence[Gold]], predictions: Path, source: Path | None
) -> None:
    console = Console()
    show_scores(scores, predictions.name, console)
    verdicts = scores.verdicts
    notes = [f"foreign keys: {source or 'the SQLite files'}"]
    if unparsed := sum(not v.parsed for v in verdicts):
        notes.append(f"predictions outside of the benchmarks' SQL: {unparsed}")
    for v in verdicts:
        where = f"interaction {v.interaction}, turn {v.turn} ({v.db_id})"
        if v.prediction is None:
            notes.append(f"{where}: the prediction is missing")
        if not v.components:
            notes.append(f"{where}: the gold query is outside of the benchmarks' SQL: {v.gold}")
        if v.gold_status not in ("", "ok"):
            notes.append(f"{where}: the gold query does not run, the turn is a miss: {v.gold}")
        if v.status in ("refused", "stopped"):
            notes.append(f"{where}: {v.status}: {v.message}")
    for note in notes:
        console.print(note, highlight=False, markup=False)
