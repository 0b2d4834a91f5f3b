"""DELTA whole: a rewriter, then a parser; its evaluation, and a conversation with a database."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, cast

import torch
from annotated_types import Ge, Gt
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from lightning_modules.counted_loss import CountedLoss
from lightning_modules.optimization import (
    Optimizer,
    Schedule,
    adamw_with_schedule,
    optimization,
)
from lightning_modules.sql_parser import (
    Judge,
    SqlParser,
    describe,
    log_matches,
    matches,
    show_scores,
    update_matches,
)
from lightning_modules.utterance_rewriter import TOGETHER, UtteranceRewriter, read_checkpoint
from terminal import literal
from text2sql.conversation import Conversation, Ranked, Reader
from text2sql.dialogue import Example
from text2sql.evaluation import (
    TURNS,
    UNREADABLE,
    Evaluator,
    Gold,
    Scores,
    Verdict,
    evaluate,
    find_databases,
    read_gold,
    read_predictions,
)
from text2sql.execute import Database, Limits
from text2sql.schema import Schema, read_tables

READINGS = ("raw", "rewritten", "gold")
"""What the parser reads: the utterance as it is, its rewrite, or the annotators' rewrite."""
_ABSENT = 10.0  # nats that a value which a question leaves out takes from its verdict [D]
_MEGABYTES = 100  # of an execution's process: 20 to start, the rest for SQLite
_CELL = 1_000_000_000  # bytes of a cell that a conversation can look at, SQLite's own limit
_COPY = 1.0  # nats that a rewrite must be better than the utterance as it is [D]
Part = TypeVar("Part", SqlParser, UtteranceRewriter)


class TextToSql(CountedLoss):
    """Multi-turn Text-to-SQL by two models that need not know of each other.

    Paper: DELTA, "Decoupled Dialogue Modeling and Semantic Parsing for Multi-Turn Text-to-SQL",
    arXiv 2106.02282: SQL_t = Parser(Rewrite(u_1 ... u_t), schema). Parts that come from runs of
    their own stay as they are; the others are trained here, side by side: the parser on the turns
    with SQL, in the words of their rewrite, the rewriter on the turns with a rewrite. Validation
    and test parse each turn three times, see READINGS. A batch is a list of `Example`.

    Args:
        parser: A `SqlParser`, to train here.
        rewriter: An `UtteranceRewriter`, to train here; None parses utterances as they are. In mode
            `dual` the parser of `parser_from` gives its verdict on what it writes.
        parser_from: A checkpoint of `SqlParser` or of a pipeline with one, or the folder of its
            run, in place of `parser`.
        rewriter_from: A checkpoint of `UtteranceRewriter` or of a pipeline with one, as dual
            learning leaves it, or the folder of its run, in place of `rewriter`.
        recursive: Rewrite from the rewrite of the turn before alone, not from all utterances.
        optimizer: As in `CausalLM`, for the parts that are trained here.
        schedule: As in `CausalLM`.
        tables: For task=evaluate, a tables.json with the schemas and their foreign keys. None: the
            one beside the gold file, in a folder of databases or above it; without any, the SQLite
            files' own keys.
        missing: For task=evaluate, what a missing prediction is: an `error`, `wrong`, or left out
            of all counts as the official script does (`skip`).
        keep_distinct: For task=evaluate, execute queries with their DISTINCT, which the official
            default takes out.
        seconds: What one execution may take.
        megabytes: For task=evaluate, memory that one execution may take. Its result may take half
            of that here, and as much the results that are kept because queries repeat.
        hypotheses: For task=annotate, the rewriter's, of which the parser chooses one.
        nats: For task=annotate, what the gold SQL of a chosen rewrite may cost at most: its
            negative log-likelihood. None: each turn gets the first hypothesis and no parser judges,
            so that a parser that then learns the domain reads in training what it will read.

    Raises:
        ValueError: A value is not allowed; the message names its key.
    """

    follows_length: ClassVar[bool] = True
    """Its course is a share of the whole training's steps."""
    # The runner's tasks of this module; none needs a checkpoint: its parts may bring theirs.
    tasks: ClassVar[dict[str, bool]] = {
        "evaluate": False, "chat": False, "annotate": False, "test": False
    }  # fmt: skip
    # What a callback may monitor.
    validated: ClassVar[tuple[str, ...]] = (
        "train/loss", "train/parser_loss", "train/rewriter_loss",
        "val/raw/exact", "val/raw/exact_interaction",
        "val/raw/execution", "val/raw/execution_interaction",
        "val/rewritten/exact", "val/rewritten/exact_interaction",
        "val/rewritten/execution", "val/rewritten/execution_interaction",
        "val/gold/exact", "val/gold/exact_interaction",
        "val/gold/execution", "val/gold/execution_interaction",
    )  # fmt: skip
    # Those that read no datamodule.
    without_data: ClassVar[tuple[str, ...]] = ("evaluate", "chat")

    # Keys of a part that only its training alone reads, and the key that does here.
    unread: ClassVar[dict[str, str]] = {
        "parser.optimizer": "optimizer", "parser.schedule": "schedule",
        "parser.encoder_lr": "optimizer.lr", "parser.seconds": "seconds",
        "rewriter.optimizer": "optimizer", "rewriter.schedule": "schedule",
        "rewriter.scored_rewrites": "",
    }  # fmt: skip
    read_where: ClassVar[dict[str, tuple[str, Any]]] = {
        "parser": ("parser_from", False), "rewriter": ("rewriter_from", False)
    }  # fmt: skip

    def __init__(
        self,
        parser: SqlParser | None = None,
        rewriter: UtteranceRewriter | None = None,
        parser_from: str | None = None,
        rewriter_from: str | None = None,
        recursive: bool = False,
        optimizer: Optimizer | None = None,
        schedule: Schedule | None = None,
        tables: str | None = None,
        missing: Literal["error", "wrong", "skip"] = "error",
        keep_distinct: bool = False,
        seconds: Annotated[float, Gt(0)] = 30.0,
        megabytes: Annotated[float, Ge(_MEGABYTES)] = 1000.0,
        hypotheses: Annotated[int, Ge(1)] = 4,
        nats: Annotated[float, Gt(0)] | None = 6.0,
    ) -> None:
        super().__init__()
        if rewriter is not None and rewriter.mode == "dual" and parser_from is None:
            raise ValueError(
                "module.rewriter.mode=dual: the parser's verdict is part of the reward; give a "
                "trained one, module.parser_from=RUN"
            )
        self.parser = None if parser_from is not None else parser
        self.rewriter = None if rewriter_from is not None else rewriter
        self.parser_from, self.rewriter_from = parser_from, rewriter_from
        self.recursive = recursive
        self.optimizer_settings, self.schedule_settings = optimization(
            optimizer, schedule, Optimizer(lr=5e-4)
        )
        self.tables, self.missing = tables, missing
        self.keep_distinct, self.seconds, self.megabytes = keep_distinct, seconds, megabytes
        self.hypotheses, self.nats = hypotheses, nats
        self.matches = matches(*(f"{split} {r}" for split in ("val", "test") for r in READINGS))
        self.judge = Judge(seconds)
        self.verdicts: dict[str, list[Verdict]] = {}
        self.samples: list[dict[str, Any]] = []
        self.judged: list[tuple[float, bool]] = []
        """Of the rewritten reading, log-likelihoods of answers and whether they are right."""
        self._rewrites: dict[tuple[int, int], str] = {}

    # --- the parts

    def configure_model(self) -> None:
        """Build the parts, or load them from their checkpoints; once."""
        if self.parser_from is not None:
            self.parser = _restored(SqlParser, "parser_from", self.parser_from)
        if self.rewriter_from is not None:
            self.rewriter = _restored(UtteranceRewriter, "rewriter_from", self.rewriter_from)
        self.parser_from = self.rewriter_from = None
        if self.parser is None:
            raise ValueError(
                "module: give parser (to train it here) or parser_from (a run of its own)"
            )
        self.parser.configure_model()
        if self.rewriter is not None:
            self.rewriter.configure_model()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the parts are and the tokenizers that were trained with them."""
        for name, part in self._parts():
            part.on_save_checkpoint(checkpoint)
            checkpoint[f"{name}_settings"] = dict(part.hparams)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the parts that the checkpoint's weights are of."""
        kinds: dict[str, Any] = {"parser": SqlParser, "rewriter": UtteranceRewriter}
        for name, kind in kinds.items():
            if f"{name}_settings" in checkpoint and getattr(self, name) is None:
                setattr(self, name, kind(**checkpoint[f"{name}_settings"]))
        self.parser_from = self.rewriter_from = None
        for _, part in self._parts():
            part.on_load_checkpoint(checkpoint)

    def _parts(self) -> list[tuple[str, Any]]:
        named = (("parser", self.parser), ("rewriter", self.rewriter))
        return [(name, part) for name, part in named if part is not None]

    # --- training

    def training_step(self, batch: Sequence[Example], batch_idx: int) -> Tensor:
        """The parser's loss and the rewriter's; they share no parameter."""
        losses: dict[str, tuple[Tensor, Tensor | int]] = {}
        if self._is_trained(self.parser):
            parser = cast(SqlParser, self.parser)
            learnable = parser.learnable(batch)
            self.log("train/left_out", float(len(batch) - len(learnable)), batch_size=len(batch))
            if learnable:
                losses["train/parser_loss"] = parser.likelihood_loss(learnable)
        if self._is_trained(self.rewriter):
            later = [example for example in batch if example.history]
            if later:
                learned, found = cast(UtteranceRewriter, self.rewriter).learn(later)
                losses |= learned
                self.log_dict(found, batch_size=len(later))
        return self.counted(losses)

    def parts(self) -> Mapping[str, nn.Module]:
        """Those of the parts that are trained here."""
        found: dict[str, nn.Module] = {}
        if self._is_trained(self.parser):
            found["train/parser_loss"] = cast(SqlParser, self.parser)
        if self._is_trained(self.rewriter):
            found |= cast(UtteranceRewriter, self.rewriter).parts()
        return found

    def on_fit_start(self) -> None:
        """Give the rewriter what its rewards need, the parser's verdict among it."""
        if self.parser is not None and self._is_trained(self.parser):
            self.parser.trained_on = describe(self.trainer)
        if self.rewriter is not None and self._is_trained(self.rewriter):
            self.rewriter.verify = self.verify
            self.rewriter.on_fit_start()

    def verify(self, batch: Sequence[Example], questions: Sequence[str]) -> list[float]:
        """Return the parser's verdicts on rewrites, in [0, 1]: the reward's part for dual learning.

        By the rewriter's `dual.verdict`, of a turn with a gold query: `match`, 1 if the SQL of the
        question matches it; `likelihood`, the geometric mean of the probabilities of the choices
        that make it, a value that the question leaves out at exp(-10). Of a turn without: 1 if the
        SQL finds anything in the database.
        """
        assert self.parser is not None, "configure_model builds the parts"
        assert self.rewriter is not None, "who asks is the rewriter"
        pairs = list(zip(batch, questions, strict=True))
        smooth = self.rewriter.dual_settings["verdict"] == "likelihood"
        scored = [pair for pair in pairs if smooth and pair[0].query is not None]
        costs = self.parser.costs(
            [(q, cast(Schema, e.schema), e.database, cast(str, e.query)) for e, q in scored],
            per_choice=True,
            missing=_ABSENT,
        )
        found = {pair: math.exp(-cost) for pair, cost in zip(scored, costs, strict=True)}
        judged = [pair for pair in pairs if pair not in found]
        written = self.parse(*zip(*judged, strict=True)) if judged else []
        for (example, question), sql in zip(judged, written, strict=True):
            right = 0.0
            if example.query is not None:
                right = float(self.judge(example, sql).exact)
            elif example.database is not None:
                database = Database(example.database, Limits(seconds=self.seconds))
                result = database.execute(sql)
                right = float(result.status == "ok" and bool(result.rows))
            found[example, question] = right
        return [found[pair] for pair in pairs]

    def _is_trained(self, part: nn.Module | None) -> bool:
        return part is not None and any(p.requires_grad for p in part.parameters())

    def configure_optimizers(self) -> Any:
        """AdamW with decay groups, and the learning rate by step, as CausalLM's."""
        if not any(p.requires_grad for p in self.parameters()):
            raise ValueError(
                "module: parser and rewriter both come from runs of their own, there is nothing to "
                "train; take task=test or task=chat"
            )
        return adamw_with_schedule(self, self.optimizer_settings, self.schedule_settings)

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Leave examples as they are: they hold no tensors."""
        return batch

    # --- use

    @torch.no_grad()
    def rewrite(self, batch: Sequence[Example]) -> list[str]:
        """Return the self-contained question of each turn.

        Args:
            batch: Turns; with `recursive`, the turns before them must have been rewritten already.
        """
        if self.rewriter is None:
            return [example.utterance for example in batch]
        if not self.recursive:
            return self.rewriter.rewrite(batch)
        for turn in sorted({example.turn for example in batch}):
            now = [example for example in batch if example.turn == turn]
            read = self.rewriter.rewrite([self._as_read(example) for example in now])
            for example, text in zip(now, read, strict=True):
                self._rewrites[example.interaction, turn] = text
        return [self._rewrites[e.interaction, e.turn] for e in batch]

    def _as_read(self, example: Example) -> Example:
        """The turn with the history that the rewriter is given."""
        if not self.recursive or not example.turn:
            return example
        return replace(example, history=(self._rewrites[example.interaction, example.turn - 1],))

    def parse(self, batch: Sequence[Example], questions: Sequence[str]) -> list[str]:
        """Return the SQL of questions about the databases of their turns."""
        return [sql for sql, _ in self._best(batch, questions)]

    def _best(self, batch: Sequence[Example], questions: Sequence[str]) -> list[tuple[str, float]]:
        assert self.parser is not None, "configure_model builds the parts"
        return self.parser.best(
            [(q, cast(Schema, e.schema), e.database) for e, q in zip(batch, questions, strict=True)]
        )

    # --- validation and test

    def validation_step(self, batch: Sequence[Example], batch_idx: int) -> None:
        """Parse each turn in three readings and judge them."""
        self._evaluate("val", batch)

    def test_step(self, batch: Sequence[Example], batch_idx: int) -> None:
        """Parse each turn in three readings and judge them."""
        self._evaluate("test", batch)

    def _evaluate(self, split: str, batch: Sequence[Example]) -> None:
        asked = [e for e in batch if e.schema is not None and e.query is not None]
        questions = {
            "raw": [(e, e.utterance) for e in asked],
            "rewritten": list(zip(asked, self.rewrite(asked), strict=True)),
            "gold": [(e, e.rewrite) for e in asked if e.rewrite is not None],
        }
        # A first turn is its own rewrite: what is asked in several readings is parsed once.
        every = list(dict.fromkeys(pair for pairs in questions.values() for pair in pairs))
        best = dict(zip(every, self._best(*zip(*every, strict=True)), strict=True)) if every else {}
        found: dict[str, dict[Example, Verdict]] = {}
        for reading, pairs in questions.items():
            judged = [self.judge(pair[0], best[pair][0]) for pair in pairs]
            if reading == "rewritten":
                scores = [best[pair][1] for pair in pairs]
                self.judged += [(s, v.exact) for s, v in zip(scores, judged, strict=True)]
            update_matches(self.matches, f"{split} {reading}", judged)
            self.verdicts.setdefault(reading, []).extend(judged)
            found[reading] = dict(zip([e for e, _ in pairs], judged, strict=True))
        for example, question in questions["rewritten"]:
            verdicts = {r: found[r].get(example) for r in READINGS}
            written = cast(Verdict, verdicts["rewritten"])
            self.samples.append(
                {
                    "step": self.global_step,
                    "split": split,
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
                    **{f"{r} exact": v and v.exact for r, v in verdicts.items()},
                    **{f"{r} execution": v and v.execution for r, v in verdicts.items()},
                }
            )

    def on_validation_epoch_start(self) -> None:
        """Forget what was judged before."""
        self.verdicts, self.samples, self.judged, self._rewrites = {}, [], [], {}

    def on_test_epoch_start(self) -> None:
        """Forget what was judged before."""
        self.verdicts, self.samples, self.judged, self._rewrites = {}, [], [], {}

    def on_validation_epoch_end(self) -> None:
        """Log match of the three readings; the parser learns how likely its answers are right."""
        self._log("val")
        if not self.trainer.sanity_checking and self.parser is not None:
            self.parser.calibrate(self.judged)

    def on_test_epoch_end(self) -> None:
        """Log them, and print them side by side, by turn and by hardness."""
        self._log("test")
        if self.trainer.is_global_zero:
            show_readings(self.verdicts, Console())

    def _log(self, split: str) -> None:
        for reading in READINGS:
            log_matches(self, self.matches, f"{split} {reading}")

    # --- task=chat

    def chat(self, datamodule: Any, *, database: str | None = None) -> dict[str, float]:
        """Talk with a database in a terminal, see `text2sql.conversation`.

        Args:
            datamodule: Not used.
            database: A SQLite file, which is opened read-only.

        Returns:
            `turns`, and `seconds_per_turn`, the slowest one's.

        Raises:
            ValueError: There is no such file, it is no SQLite database, or it has no tables.
        """
        if not database:
            raise ValueError("database: task=chat needs database=FILE, a SQLite file")
        limits = Limits(seconds=self.seconds, value_bytes=_CELL)
        conversation = Conversation(Path(database), self._reader(), limits, Console())
        self.configure_model()
        self.eval()
        conversation.hold(cast(SqlParser, self.parser).about())
        turns, slowest = conversation.turns, conversation.slowest
        return {"turns": float(turns), "seconds_per_turn": slowest}

    def _reader(self) -> Reader:
        def rewrite(example: Example) -> str:
            (question,) = self.rewrite([example])
            self._rewrites[example.interaction, example.turn] = question
            return question

        def rank(question: str, schema: Schema, path: Path, count: int) -> list[Ranked]:
            parser = cast(SqlParser, self.parser)
            beam = parser.beam if count == 1 else count
            sure = parser.confidence
            return [
                Ranked(sql, score, None if sure is None else sure(score))
                for sql, score in parser.ranked((question, schema, path), beam)[:count]
            ]

        def read(example: Example) -> tuple[str, ...]:
            if self.rewriter is None:
                return ()
            return self.rewriter.turns_read(self._as_read(example))

        return Reader(rewrite, rank, read)

    # --- task=annotate

    def annotate(self, datamodule: Any, *, json: str | None = None) -> dict[str, float]:
        """Write the training turns with rewrites of the rewriter's, in SParC's layout.

        A later turn with SQL and without a rewrite gets, of the rewriter's hypotheses and its own
        utterance, the one under which the parser finds the gold SQL likeliest; none if even that is
        unlikely (with `nats` None the first hypothesis, unjudged). First turns are their own. A
        rewriter that then trains on the file learns a domain whose turns have SQL but no rewrites
        [D]. Dialogues about no database are left out; the file is whole or not there.

        Args:
            datamodule: Whose training part is annotated; `keep` must be all.
            json: The file to write: the training dialogues with the rewrites that were chosen.

        Returns:
            `turns`, how many were to be annotated, and of these the shares that got a rewrite
            (`annotated`) and that stand alone as they are (`copied`).

        Raises:
            ValueError: A key is missing, or not allowed.
        """
        target = _target(json)
        if target is None:
            raise ValueError("json: task=annotate needs json=FILE, where the dialogues go")
        self.configure_model()
        if self.rewriter is None:
            raise ValueError("module.rewriter_from: task=annotate needs a rewriter")
        self.eval()
        datamodule.prepare_data()
        datamodule.setup("fit")
        dialogues: dict[int, list[Example]] = {}
        for example in datamodule.examples("train"):
            if (
                example.schema is not None
            ):  # dialogues about no database, as CANARD's, are not SParC's
                dialogues.setdefault(example.interaction, []).append(example)
        if any(e.turn != place for turns in dialogues.values() for place, e in enumerate(turns)):
            raise ValueError("datamodule.keep: task=annotate writes whole dialogues; give all")
        bare = [
            e
            for turns in dialogues.values()
            for e in turns
            if e.history and e.query and not e.rewrite
        ]
        chosen: dict[Example, str] = {}
        for start in track(range(0, len(bare), TOGETHER), "annotating", console=Console()):
            chosen |= self._chosen(bare[start : start + TOGETHER])
        written = [
            {
                "database_id": cast(Schema, turns[0].schema).db_id,
                "interaction": [
                    {
                        "utterance": e.utterance,
                        "query": e.query,
                        "rewrite": e.rewrite
                        or chosen.get(e)
                        or (None if e.history else e.utterance),
                    }
                    for e in turns
                ],
            }
            for turns in dialogues.values()
        ]
        unfinished = target.with_name(f".{target.name}.unfinished")
        _write_json(unfinished, written)
        unfinished.replace(target)
        copied = sum(text == e.utterance for e, text in chosen.items())
        words = (
            f"{target}: {len(chosen)} of {len(bare)} turns without a rewrite got one, {copied} of "
            "them their own words"
        )
        Console().print(literal(words), soft_wrap=True)
        count = max(1, len(bare))
        return {
            "turns": float(len(bare)),
            "annotated": len(chosen) / count,
            "copied": copied / count,
        }

    def _chosen(self, turns: Sequence[Example]) -> dict[Example, str]:
        """Return for each turn the text that the parser understands best, if it does."""
        assert self.parser is not None, "configure_model builds the parts"
        assert self.rewriter is not None, "annotate asks for one"
        found = self.rewriter.hypotheses(turns, self.hypotheses)
        if self.nats is None:
            return {example: texts[0] for example, texts in found.items()}
        offers = [(e, text) for e in turns for text in dict.fromkeys([e.utterance, *found[e]])]
        costs = self.parser.costs(
            [(text, cast(Schema, e.schema), e.database, cast(str, e.query)) for e, text in offers]
        )
        best: dict[Example, tuple[float, str]] = {}
        for (example, text), cost in zip(offers, costs, strict=True):
            # A turn that stands alone is not to be rewritten for a trifle.
            rank = cost - (_COPY if text == example.utterance else 0.0)
            if cost <= self.nats and (example not in best or rank < best[example][0]):
                best[example] = rank, text
        return {example: text for example, (_, text) in best.items()}

    # --- task=evaluate

    def evaluate(
        self,
        datamodule: Any,
        *,
        gold: str | None = None,
        predictions: str | None = None,
        database: str | None = None,
        json: str | None = None,
    ) -> dict[str, float]:
        """Score a file of predictions against a file of gold queries; print tables, write JSON.

        Args:
            datamodule: Not used.
            gold: The queries: text (SQL, tab, database; a blank line between interactions), or a
                dev.json.
            predictions: Text in the same order, one a line, or JSON.
            database: Folders with DB/DB.sqlite, parted as in PATH; None: exact match only.
            json: The file for the verdict of every turn; None: nowhere.

        Returns:
            `exact`, `exact_interaction` and, with databases, `execution`, `execution_interaction`.

        Raises:
            ValueError: A key is missing, or a file is missing or malformed.
        """
        if not gold or not predictions:
            key = "predictions" if gold else "gold"
            raise ValueError(f"{key}: task=evaluate needs {key}=FILE")
        target = _target(json)
        golds = read_gold(gold)
        complete = self.missing == "error"
        predicted = read_predictions(predictions, golds, complete)
        folders = [Path(part) for part in (database or "").split(os.pathsep) if part]
        names = list(dict.fromkeys(turn.db_id for turns in golds for turn in turns))
        databases = find_databases(folders, names) if folders else {}
        source = self._tables(Path(gold), folders)
        if source is None and not databases:
            raise ValueError(
                f"module.tables: no tables.json beside {gold}; give "
                "module.tables=FILE or database=FOLDER"
            )
        schemas = (
            read_tables(source)
            if source
            else {name: Schema.from_sqlite(file, self.seconds) for name, file in databases.items()}
        )
        memory = int(self.megabytes * 1e6)
        # The official script fetches everything: rows are bounded by memory only.
        limits = Limits(
            seconds=self.seconds, rows=10**9, result_bytes=memory // 2, memory_bytes=memory
        )
        evaluator = Evaluator(schemas, databases, limits, self.keep_distinct, memory // 2)
        scores = evaluate(golds, predicted, evaluator, self.missing)
        _show(scores, golds, Path(predictions), source)
        if target is not None:
            _write_json(target, scores.to_dict())
            Console().print(literal(f"verdicts: {target}"), soft_wrap=True)
        return scores.metrics()

    def _tables(self, gold: Path, folders: list[Path]) -> Path | None:
        if self.tables is not None:
            return Path(self.tables)
        places = [gold.absolute().parent, *(f for place in folders for f in (place, place.parent))]
        files = (place / "tables.json" for place in places)
        return next((file for file in files if file.is_file()), None)


def _write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _target(place: str | None) -> Path | None:
    """The file that `json` names, whose folder must be there; None without one."""
    if not place:
        return None
    target = Path(place)
    if not target.absolute().parent.is_dir():
        raise ValueError(f"json={target}: there is no folder {target.absolute().parent}")
    return target


def _restored(kind: type[Part], key: str, place: str) -> Part:
    """Build a part as its checkpoint says, with its weights, which are not trained further."""
    name = key.removesuffix("_from")
    try:
        checkpoint = read_checkpoint(place)
        if f"{name}_settings" in checkpoint:  # of a pipeline, in which it was trained
            state = checkpoint["state_dict"].items()
            own = {k.removeprefix(f"{name}."): v for k, v in state if k.startswith(f"{name}.")}
            checkpoint["hyper_parameters"] = checkpoint[f"{name}_settings"]
            checkpoint["state_dict"] = own
        part = kind(**checkpoint["hyper_parameters"])
        part.on_load_checkpoint(checkpoint)
        part.load_state_dict(checkpoint["state_dict"])
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"module.{key}={place}: is no checkpoint of {kind.__name__}, or run folder with one: "
            f"{error}"
        ) from error
    part.requires_grad_(False)
    return part


# --- what is printed -----------------------------------------------------------------------------


def show_readings(verdicts: dict[str, list[Verdict]], console: Console) -> None:
    """Print the readings side by side: question and interaction match, by turn and by hardness.

    Args:
        verdicts: By reading.
        console: Where to.
    """
    scores = {reading: Scores(tuple(v)) for reading, v in verdicts.items() if v}
    executed = all(s.executed for s in scores.values())
    kinds = ("exact", "execution") if executed else ("exact",)
    table = Table(title="match of turns and interactions, %", title_justify="left")
    for name in ("reading", "turns", *(f"{k} {w}" for k in kinds for w in ("QM", "IM"))):
        table.add_column(name, justify="left" if name == "reading" else "right")
    for reading, found in scores.items():
        m = found.metrics()
        shares = [m[name] for kind in kinds for name in (kind, f"{kind}_interaction")]
        cells = (f"{100 * share:.1f}" for share in shares)
        table.add_row(reading, str(len(found.verdicts)), *cells)
    console.print(table)
    by_turn = {reading: found.by_turn() for reading, found in scores.items()}
    by_level = {reading: found.by_hardness() for reading, found in scores.items()}
    levels = ("easy", "medium", "hard", "extra")
    for title, groups, by in (("turn", TURNS, by_turn), ("hardness", levels, by_level)):
        table = Table(title=f"exact match by {title}, %", title_justify="left")
        table.add_column("reading")
        shown = [group for group in groups if any(group in rows for rows in by.values())]
        for group in shown:
            table.add_column(group, justify="right")
        for reading, rows in by.items():
            cells = (f"{100 * rows[g]['exact']:.1f}" if g in rows else "-" for g in shown)
            table.add_row(reading, *cells)
        console.print(table)


def _show(
    scores: Scores, golds: Sequence[Sequence[Gold]], predictions: Path, source: Path | None
) -> None:
    console = Console()
    show_scores(scores, predictions.name, console)
    verdicts = scores.verdicts
    notes = [f"foreign keys: {source or 'the SQLite files'}"]
    if scores.executed:
        files = {v.db_id: v.files for v in verdicts}
        notes.append(f"executed on {len(files)} databases, {sum(files.values())} SQLite files")
    if unparsed := sum(not v.parsed for v in verdicts):
        notes.append(f"predictions outside of the benchmarks' SQL: {unparsed}")
    for v in verdicts:
        where = f"interaction {v.interaction}, turn {v.turn} ({v.db_id})"
        if v.prediction is None:
            notes.append(f"{where}: the prediction is missing")
        if v.hardness == UNREADABLE:
            verdict = "and matched by its own text" if v.exact else "and no text equal to it"
            notes.append(
                f"{where}: the gold query is outside of the benchmarks' SQL, {verdict}: {v.gold}"
            )
        if v.gold_status not in ("", "ok"):
            notes.append(f"{where}: the gold query does not run, the turn is a miss: {v.gold}")
        if v.status in ("refused", "stopped"):
            notes.append(f"{where}: {v.status}: {v.message}")
    for note in notes:
        console.print(literal(note), soft_wrap=True)
