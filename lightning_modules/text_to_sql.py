"""DELTA whole: a rewriter, then a parser; its evaluation, and a conversation with a database."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Interval
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from lightning_modules.checkpoints import Part, built, restored
from lightning_modules.counted_loss import Figure, Loss
from lightning_modules.dialogue_module import DialogueModule
from lightning_modules.optimization import (
    Optimizer,
    Schedule,
    adamw_with_schedule,
    optimization,
)
from lightning_modules.sql_parser import SqlParser
from lightning_modules.utterance_rewriter import UtteranceRewriter
from terminal import literal
from text2sql.conversation import Conversation, Reader
from text2sql.dialogue import Example
from text2sql.evaluation import Judge, Verdict
from text2sql.execute import MOST_SECONDS, Limits
from text2sql.parsing import ParserVerdict, Scored
from text2sql.reports import notes, sample_row, score_files, show_readings, show_scores
from text2sql.rewrites import (
    TOGETHER,
    bare_turns,
    best_understood,
    hypotheses,
    whole_dialogues,
    write_dialogues,
)
from text2sql.schema import Schema

READINGS = ("raw", "rewritten", "gold")
"""What the parser reads: the utterance as it is, its rewrite, or the annotators' rewrite."""
_MEGABYTES = 100  # of an execution's process: 20 to start, the rest for SQLite
_CELL = 1_000_000_000  # bytes of a cell that a conversation can look at, SQLite's own limit


class TextToSql(DialogueModule):
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
        parser_from: A checkpoint of `SqlParser` or of a pipeline with one, in place of `parser`.
        rewriter_from: A checkpoint of `UtteranceRewriter` or of a pipeline with one, as dual
            learning leaves it, in place of `rewriter`.
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
        sql_timeout: Seconds that one execution may take.
        megabytes: For task=evaluate, memory that one execution may take. Its result may take half
            of that here, and as much the results that are kept because queries repeat.
        hypotheses: For task=annotate, the rewriter's, of which the parser chooses one.
        max_nll: For task=annotate, what the gold SQL of a chosen rewrite may cost at most: its
            negative log-likelihood. None: each turn gets the first hypothesis and no parser judges,
            so that a parser that then learns the domain reads in training what it will read.

    Raises:
        ValueError: A value is not allowed; the message names its key.
    """

    follows_length: ClassVar[bool] = True
    """Its course is a share of the whole training's steps."""
    checkpoints: ClassVar[tuple[str, ...]] = ("parser_from", "rewriter_from")
    """Arguments that take a run in place of a checkpoint; the runner looks it up."""
    renamed: ClassVar[dict[str, str]] = {"seconds": "sql_timeout", "nats": "max_nll"}
    """What arguments were called in older runs, and what they are called now."""
    adjustable: ClassVar[tuple[str, ...]] = (
        "recursive", "tables", "missing", "keep_distinct", "sql_timeout", "megabytes", "hypotheses",
        "max_nll", "parser.beam", "rewriter.beam",
    )  # fmt: skip
    """Arguments on which no weight depends: tasks that read a run may set them anew."""
    # The runner's tasks of this module; none needs a checkpoint: its parts may bring theirs.
    tasks: ClassVar[dict[str, bool]] = {
        "evaluate": False, "chat": False, "annotate": False, "test": False
    }  # fmt: skip
    # What a callback may monitor, by its `mode`: whether less or more of it is better.
    validated: ClassVar[dict[str, tuple[str, ...]]] = {
        "min": ("train/loss", "train/parser_loss", "train/rewriter_loss"),
        "max": (
            "val/raw/exact", "val/raw/exact_interaction",
            "val/raw/execution", "val/raw/execution_interaction",
            "val/rewritten/exact", "val/rewritten/exact_interaction",
            "val/rewritten/execution", "val/rewritten/execution_interaction",
            "val/gold/exact", "val/gold/exact_interaction",
            "val/gold/execution", "val/gold/execution_interaction",
        ),
    }  # fmt: skip
    # Those that read no datamodule.
    without_data: ClassVar[tuple[str, ...]] = ("evaluate", "chat")

    # Keys of a part that only its training alone reads, and the key that does here.
    unread: ClassVar[dict[str, str]] = {
        "parser.optimizer": "optimizer", "parser.schedule": "schedule",
        "parser.pretrained_lr": "optimizer.lr", "parser.sql_timeout": "sql_timeout",
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
        sql_timeout: Annotated[float, Interval(gt=0, le=MOST_SECONDS)] = 30.0,
        megabytes: Annotated[float, Interval(ge=_MEGABYTES, le=10**6)] = 1000.0,
        hypotheses: Annotated[int, Ge(1)] = 4,
        max_nll: Annotated[float, Gt(0)] | None = 6.0,
    ) -> None:
        super().__init__(
            *(f"{split}/{reading}" for split in ("val", "test") for reading in READINGS)
        )
        if rewriter is not None and rewriter.mode == "dual" and parser_from is None:
            raise ValueError(
                "module.rewriter.mode=dual: the parser's verdict is part of the reward; give a "
                "trained one, module.parser_from=RUN"
            )
        self.parser = None if parser_from is not None else parser
        self.rewriter = None if rewriter_from is not None else rewriter
        self.parser_from, self.rewriter_from = parser_from, rewriter_from
        given = {"parser": parser_from, "rewriter": rewriter_from}
        self.finished = {name for name, place in given.items() if place is not None}
        """Parts that have their weights from a run of their own, and keep them."""
        self.recursive = recursive
        self.optimizer_settings, self.schedule_settings = optimization(
            optimizer, schedule, Optimizer(lr=5e-4)
        )
        self.tables, self.missing = tables, missing
        self.keep_distinct, self.sql_timeout, self.megabytes = keep_distinct, sql_timeout, megabytes
        self.hypotheses, self.max_nll = hypotheses, max_nll
        self.judge = Judge(sql_timeout)
        self.verdicts: dict[str, list[Verdict]] = {}
        self.samples: list[dict[str, Any]] = []
        self.judged: list[tuple[float, bool]] = []
        """Of the rewritten reading, log-likelihoods of answers and whether they are right."""

    # --- the parts

    def configure_model(self) -> None:
        """Build the parts, or load them from their checkpoints; once."""
        if self.parser_from is not None:
            self.parser = restored(SqlParser, "parser_from", self.parser_from)
        if self.rewriter_from is not None:
            self.rewriter = restored(UtteranceRewriter, "rewriter_from", self.rewriter_from)
        self.parser_from = self.rewriter_from = None
        if self.parser is None:
            raise ValueError(
                "module: give parser (to train it here) or parser_from (a run of its own)"
            )
        if self.parser.history:
            raise ValueError(
                f"module.parser: reads history={self.parser.history} utterances beside a turn, but "
                "gets one question here. Give one with history=0; an end-to-end parser is trained "
                "and tested by itself, experiment=end_to_end_sparc"
            )
        for name, part in self._parts():
            try:
                part.configure_model()
            except ValueError as error:  # a part names its keys as if it were the module
                words = str(error).replace("module.", f"module.{name}.")
                raise ValueError(words) from error
            if name in self.finished:
                part.requires_grad_(False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the parts are and the tokenizers that were trained with them."""
        for name, part in self._parts():
            part.on_save_checkpoint(checkpoint)
            checkpoint[f"{name}_settings"] = dict(part.hparams)

    def await_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Become what a checkpoint's weights are of, which needs no part's own checkpoint."""
        kinds: dict[str, Any] = {"parser": SqlParser, "rewriter": UtteranceRewriter}
        for name, kind in kinds.items():
            if f"{name}_settings" in checkpoint and getattr(self, name) is None:
                setattr(self, name, built(kind, checkpoint[f"{name}_settings"]))
        self.parser_from = self.rewriter_from = None
        for _, part in self._parts():
            part.await_checkpoint(checkpoint)

    def _parts(self) -> list[tuple[str, Any]]:
        named = (("parser", self.parser), ("rewriter", self.rewriter))
        return [(name, part) for name, part in named if part is not None]

    # --- training

    def training_step(self, batch: Sequence[Example], batch_idx: int) -> Tensor:
        """The parser's loss and the rewriter's; they share no parameter."""
        losses: dict[str, Loss] = {}
        figures: dict[str, Figure] = {}
        if parser := _trained(self.parser):
            learnable = parser.learnable(batch)
            figures["train/left_out"] = len(batch) - len(learnable), 1
            if learnable:
                losses["train/parser_loss"] = parser.likelihood_loss(learnable)
        if rewriter := _trained(self.rewriter):
            later = [example for example in batch if example.history]
            if later:
                learned, found = rewriter.learn(later)
                losses |= learned
                figures |= found
        return self.counted(losses, figures)

    def parts(self) -> Mapping[str, nn.Module]:
        """Those of the parts that are trained here."""
        found: dict[str, nn.Module] = {}
        if parser := _trained(self.parser):
            found["train/parser_loss"] = parser
        if rewriter := _trained(self.rewriter):
            found |= rewriter.parts()
        return found

    def on_fit_start(self) -> None:
        """Give the rewriter what its rewards need, the parser's verdict among it."""
        if parser := _trained(self.parser):
            parser.on_fit_start()
        if rewriter := _trained(self.rewriter):
            rewriter.verify = self.verify
            rewriter.on_fit_start()

    def verify(self, batch: Sequence[Example], questions: Sequence[str]) -> list[float]:
        """Return the parser's verdicts on rewrites, in [0, 1], by the rewriter's `dual.verdict`."""
        assert self.rewriter is not None, "who asks is the rewriter"
        smooth = self.rewriter.dual_settings["verdict"] == "likelihood"
        parser, limits = self._parser, Limits(seconds=self.sql_timeout)
        verdict = ParserVerdict(parser.reader, self.judge, limits, parser.beam, smooth)
        return verdict(batch, questions)

    def configure_optimizers(self) -> Any:
        """AdamW with decay groups, and the learning rate by step, as CausalLM's."""
        if not any(p.requires_grad for p in self.parameters()):
            raise ValueError(
                "module: parser and rewriter both come from runs of their own, there is nothing to "
                "train; take task=test or task=chat"
            )
        return adamw_with_schedule(self, self.optimizer_settings, self.schedule_settings)

    # --- use

    @torch.no_grad()
    def rewrite(self, batch: Sequence[Example]) -> list[str]:
        """Return the self-contained question of each turn; rewrites and queries are not read."""
        if self.rewriter is None:
            return [example.utterance for example in batch]
        return self.rewriter.rewrite(self._as_read(batch))

    def _as_read(self, batch: Sequence[Example]) -> list[Example]:
        """The turns with the history that the rewriter is given."""
        later = [example for example in batch if example.history] if self.recursive else []
        if not later:
            return list(batch)
        before = [replace(e, history=e.history[:-1], utterance=e.history[-1]) for e in later]
        texts = dict(zip(later, self.rewrite(before), strict=True))
        return [replace(e, history=(texts[e],)) if e in texts else e for e in batch]

    @property
    def _parser(self) -> SqlParser:
        assert self.parser is not None, "configure_model builds the parts"
        return self.parser

    # --- validation and test

    def evaluate_batch(self, split: str, batch: Sequence[Example]) -> None:
        """Parse each turn in three readings and judge them."""
        asked = [e for e in batch if e.is_judged]
        questions = {
            "raw": [(e, e.utterance) for e in asked],
            "rewritten": list(zip(asked, self.rewrite(asked), strict=True)),
            "gold": [(e, e.rewrite) for e in asked if e.rewrite is not None],
        }
        # A first turn is its own rewrite: what is asked in several readings is parsed once.
        every = list(dict.fromkeys(pair for pairs in questions.values() for pair in pairs))
        parser = self._parser
        sql = parser.reader.best([(text, e.about, e.database) for e, text in every], parser.beam)
        best = dict(zip(every, sql, strict=True))
        found: dict[str, dict[Example, Verdict]] = {}
        for reading, pairs in questions.items():
            judged = [self.judge(pair[0], best[pair][0]) for pair in pairs]
            if reading == "rewritten":
                scores = [best[pair][1] for pair in pairs]
                self.judged += [(s, v.exact) for s, v in zip(scores, judged, strict=True)]
            self.matches[f"{split}/{reading}"].update(judged)
            self.verdicts.setdefault(reading, []).extend(judged)
            found[reading] = dict(zip([e for e, _ in pairs], judged, strict=True))
        for example, question in questions["rewritten"]:
            verdicts = {reading: found[reading].get(example) for reading in READINGS}
            place = {"step": self.global_step, "split": split}
            self.samples.append(place | sample_row(example, question, verdicts))

    def forget(self) -> None:
        """Drop what the last validation or test has written and judged."""
        self.verdicts, self.samples, self.judged = {}, [], []

    def finish(self, split: str) -> None:
        """Log match of the three readings.

        In a validation the parser learns how likely its answers are right; a test prints the
        readings side by side, by turn and by hardness.
        """
        for reading in READINGS:
            self.log_match(f"{split}/{reading}")
        if split == "val" and not self.trainer.sanity_checking:
            self._parser.calibrate(self.judged)
        if split == "test" and self.trainer.is_global_zero:
            show_readings(self.verdicts, Console())

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
        limits = Limits(seconds=self.sql_timeout, value_bytes=_CELL)
        conversation = Conversation(Path(database), self._reader(), limits, Console())
        self.configure_model()
        self.eval()
        conversation.hold(self._parser.about())
        return {"turns": float(conversation.turns), "seconds_per_turn": conversation.slowest}

    def _reader(self) -> Reader:
        def rank(question: str, schema: Schema, path: Path, count: int) -> list[Scored]:
            parser = self._parser
            features = parser.reader.featuriser(question, schema, path)
            beam = parser.beam if count == 1 else count
            return parser.reader.ranked([features], beam)[0][:count]

        def read(example: Example) -> tuple[str, ...]:
            if self.rewriter is None:
                return ()
            return self.rewriter.turns_read(self._as_read([example])[0])

        def right(score: float) -> float | None:
            sure = self._parser.confidence
            return None if sure is None else sure(score)

        return Reader(lambda example: self.rewrite([example])[0], rank, read, right)

    # --- task=annotate

    def annotate(self, datamodule: Any, *, json: str | None = None) -> dict[str, float]:
        """Write the training turns with rewrites of the rewriter's, in SParC's layout.

        A later turn with SQL and without a rewrite gets, of the rewriter's hypotheses and its own
        utterance, the one under which the parser finds the gold SQL likeliest; none if even that is
        unlikely (with `max_nll` None the first hypothesis, unjudged). First turns are their own. A
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
        said: dict[str, Any] = getattr(datamodule, "describe", dict)()
        if (keep := said.get("keep", "all")) != "all":
            raise ValueError(
                f"datamodule.keep={keep}: task=annotate writes whole dialogues, of all"
            )
        dialogues = whole_dialogues(datamodule.examples("train"))
        bare = bare_turns(dialogues)
        chosen: dict[Example, str] = {}
        for start in track(range(0, len(bare), TOGETHER), "annotating", console=Console()):
            chosen |= self._chosen(self.rewriter, bare[start : start + TOGETHER])
        write_dialogues(dialogues, chosen, target)
        copied = sum(text == e.utterance for e, text in chosen.items())
        words = (
            f"{target}: {len(chosen)} of {len(bare)} turns without a rewrite got one, {copied} of "
            "them their own words"
        )
        Console().print(literal(words), soft_wrap=True)
        shares = {"annotated": len(chosen), "copied": copied}
        return {"turns": float(len(bare))} | {k: n / max(1, len(bare)) for k, n in shares.items()}

    def _chosen(self, rewriter: UtteranceRewriter, turns: Sequence[Example]) -> dict[Example, str]:
        """Return for each turn the text that the parser understands best, if it does."""
        found = hypotheses(rewriter.rewriter, turns, self.hypotheses, rewriter.schema_words)
        if self.max_nll is None:
            return {example: texts[0] for example, texts in found.items()}
        offers = [(e, text) for e in turns for text in dict.fromkeys([e.utterance, *found[e]])]
        asked = [((text, e.about, e.database), e.gold) for e, text in offers]
        return best_understood(offers, self._parser.reader.costs(asked), self.max_nll)

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
        scores, source = score_files(
            gold,
            predictions,
            database,
            self.tables,
            self.missing,
            self.keep_distinct,
            self.sql_timeout,
            self.megabytes,
        )
        console = Console()
        show_scores(scores, Path(predictions).name, console)
        for note in notes(scores, source):
            console.print(literal(note), soft_wrap=True)
        if target is not None:
            target.write_text(scores.to_json(), encoding="utf-8")
            console.print(literal(f"verdicts: {target}"), soft_wrap=True)
        return scores.metrics()


def _target(place: str | None) -> Path | None:
    """The file that `json` names, whose folder must be there; None without one."""
    if not place:
        return None
    target = Path(place)
    if not target.absolute().parent.is_dir():
        raise ValueError(f"json={target}: there is no folder {target.absolute().parent}")
    return target


def _trained(part: Part | None) -> Part | None:
    """The part, if it is trained here."""
    if part is None or not any(p.requires_grad for p in part.parameters()):
        return None
    return part
