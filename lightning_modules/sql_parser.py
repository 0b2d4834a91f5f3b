"""Single-turn Text-to-SQL, and the end-to-end baseline that reads the turns before."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast

import pytorch_lightning as pl
import torch
from annotated_types import Ge, Gt, Interval
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lightning_modules.counted_loss import CountedLoss
from lightning_modules.optimization import (
    Optimizer,
    Schedule,
    adamw_with_schedule,
    optimization,
)
from lightning_modules.utterance_rewriter import read_checkpoint
from terminal import literal
from text2sql.confidence import Confidence
from text2sql.dialogue import Example, by_database
from text2sql.encoder import build_encoder, freeze, load_encoder, tokenizer_from, train_tokenizer
from text2sql.evaluation import Evaluator, Gold, Scores, Verdict
from text2sql.execute import Limits
from text2sql.metrics import InteractionMatch
from text2sql.parser import Features, Featuriser, ParserNetwork, batches
from text2sql.schema import Schema
from text2sql.sql import SqlError, to_sql

Count = Annotated[int, Ge(1)]
Question = tuple[str, Schema, Path | None]
_BETWEEN = " | "  # stands between the turns that are read together


class SqlParser(CountedLoss):
    """Reads a question and a schema, writes SQL by a grammar (RAT-SQL's way, arXiv 1911.04942).

    A batch is a list of `text2sql.dialogue.Example`. The network is built in `configure_model`.

    Args:
        encoder: A pretrained one: a folder, hub id or `package:MODULE/FOLDER`; null: from scratch.
        architecture: `model_type` and arguments of an encoder to train from scratch; `encoder` must
            be null.
        vocab_size: Of the tokenizer that is then trained on the training texts.
        width: Of the relational layers and the decoder.
        layers: Relational layers.
        decoder_layers: Layers of the decoder.
        heads: Attention heads of both; divides `width`.
        dropout: In both.
        frozen_layers: How many of a pretrained encoder's layers, from below, and with them its
            embeddings, are not trained.
        encoder_dropout: A pretrained encoder keeps the dropout of its config in training, which
            takes a quarter of a training step on a CPU; else it has none.
        shuffle_schema: Training reads a schema's tables, and the columns of each, in another order
            every time.
        max_nodes: Training leaves out examples with more words, columns and tables together: cost
            grows with the square. null: none.
        read: What is read of a turn: `rewrite`, the self-contained question where there is one;
            `utterance`, its words as they are.
        history: How many utterances before it are read too, newest first: above 0 this is the
            end-to-end baseline.
        beam: Derivations kept at every step of decoding.
        init: A checkpoint of this module, or the folder of its run, whose network to begin with.
        optimizer: `lr` (of all but the encoder), `betas`, `eps`, `weight_decay` of AdamW.
        encoder_lr: Learning rate of a pretrained encoder.
        schedule: `warmup`, `final` and `decay`, as for language models.
        seconds: What one execution may take in validation and test.

    Raises:
        ValueError: A value is not allowed; the message names its key.
    """

    follows_length: ClassVar[bool] = True
    """Its course is a share of the whole training's steps."""

    # What a callback may monitor.
    validated: ClassVar[tuple[str, ...]] = (
        "train/loss", "val/loss",
        "val/exact", "val/exact_interaction", "val/execution", "val/execution_interaction",
    )  # fmt: skip

    # Keys that are read only where another one is set, is not, or has one of some values.
    read_where: ClassVar[dict[str, tuple[str, Any]]] = {
        "encoder_lr": ("encoder", True), "frozen_layers": ("encoder", True),
        "encoder_dropout": ("encoder", True), "vocab_size": ("encoder", False),
    }  # fmt: skip

    def __init__(
        self,
        encoder: str | None = None,
        architecture: dict[str, Any] | None = None,
        vocab_size: Annotated[int, Interval(ge=100, le=1_000_000)] = 2000,
        width: Count = 256,
        layers: Annotated[int, Ge(0)] = 3,
        decoder_layers: Count = 3,
        heads: Count = 8,
        dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.1,
        frozen_layers: Annotated[int, Ge(0)] = 0,
        encoder_dropout: bool = False,
        shuffle_schema: bool = False,
        max_nodes: Count | None = None,
        read: Literal["rewrite", "utterance"] = "rewrite",
        history: Annotated[int, Ge(0)] = 0,
        beam: Count = 1,
        init: str | None = None,
        optimizer: Optimizer | None = None,
        encoder_lr: Annotated[float, Ge(0)] = 1e-4,
        schedule: Schedule | None = None,
        seconds: Annotated[float, Gt(0)] = 5.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if (encoder is None) == (architecture is None):
            raise ValueError(
                "module: give encoder (pretrained) or architecture (from scratch), and one only"
            )
        if width % heads:
            raise ValueError(f"module.width={width}: must be a multiple of heads={heads}")
        self.encoder, self.architecture, self.vocab_size = encoder, architecture, vocab_size
        self.sizes: dict[str, Any] = {
            "width": width, "layers": layers, "decoder_layers": decoder_layers, "heads": heads,
            "dropout": dropout,
        }  # fmt: skip
        self.read, self.history, self.beam, self.init = read, history, beam, init
        self.encoder_lr, self.frozen_layers, self.max_nodes = encoder_lr, frozen_layers, max_nodes
        self.encoder_dropout, self.shuffle_schema = encoder_dropout, shuffle_schema
        self.optimizer_settings, self.schedule_settings = optimization(
            optimizer, schedule, Optimizer(lr=5e-4)
        )
        self.network: ParserNetwork | None = None
        self.featuriser: Featuriser | None = None
        self.features: dict[Example, Features | None] = {}
        self.losses = nn.ModuleDict({split: MeanMetric() for split in ("val", "test")})
        self.matches = matches("val", "test")
        self.judge = Judge(seconds)
        self.verdicts: list[Verdict] = []
        self.judged: list[tuple[float, bool]] = []
        self.samples: list[dict[str, Any]] = []
        self.confidence: Confidence | None = None
        """How likely answers are right, learned in the last whole validation."""
        self.trained_on: dict[str, Any] = {}
        """What the datamodule of the training said of itself."""

    # --- the model

    def configure_model(self) -> None:
        """Build the network, once, in training mode."""
        if self.network is not None:
            return
        if self.init is None:
            self._build(None)
            return
        try:
            begin = read_checkpoint(self.init)
            self._build(begin.get("parser_tokenizer"))
            self.load_state_dict(begin["state_dict"])
        except (ValueError, KeyError, RuntimeError) as error:
            raise ValueError(f"module.init={self.init}: {error}") from error

    def _build(self, written: str | None) -> None:
        """Build it, with the tokenizer that a checkpoint wrote if it was trained with it."""
        try:
            if self.encoder is not None:
                encoder, tokenizer = load_encoder(self.encoder, self.encoder_dropout)
                freeze(encoder, self.frozen_layers)
            else:
                if written is None:
                    texts = _texts(cast(Any, self.trainer).datamodule.examples("train"))
                    tokenizer = train_tokenizer(texts, self.vocab_size)
                else:
                    tokenizer = tokenizer_from(written)
                encoder = build_encoder(self.architecture or {}, tokenizer)
        except ValueError as error:
            raise ValueError(f"module.encoder: {error}") from error
        self.featuriser = Featuriser(tokenizer)
        self.network = ParserNetwork(encoder, **self.sizes)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep a tokenizer that was trained here, what it learned from, and how sure it may be."""
        if self.encoder is None and self.featuriser is not None:
            checkpoint["parser_tokenizer"] = self.featuriser.tokenizer.backend_tokenizer.to_str()
        checkpoint["parser_trained_on"] = self.trained_on
        if self.confidence is not None:
            checkpoint["parser_confidence"] = asdict(self.confidence)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the network before its weights are loaded outside of a trainer."""
        self.init = None  # the checkpoint says all
        self.trained_on = checkpoint.get("parser_trained_on", {})
        if "parser_confidence" in checkpoint:
            self.confidence = Confidence(**checkpoint["parser_confidence"])
        if self.network is None:
            self._build(checkpoint.get("parser_tokenizer"))

    def question(self, example: Example) -> str:
        """Return what is read of an example: the turn and, newest first, turns before it."""
        rewrite = example.rewrite if self.read == "rewrite" else None
        before = example.history[::-1][: self.history]
        return _BETWEEN.join([rewrite or example.utterance, *before])

    def about(self) -> list[str]:
        """Say what the parser was trained on and is fit for; nothing where nobody knows."""
        if not self.trained_on:
            return []
        train = self.trained_on["train"]
        learned = f"{train['with_query']:,} questions about {train['databases']} databases"
        if self.trained_on["source"] != "generated":
            return [f"The parser learned from {learned}."]
        return [
            f"The parser learned from {learned}, all generated: it shows how a conversation goes, "
            "and is not fit for trusting what it says of a database of your own.",
            "A parser of Spider's 140 databases: python run.py experiment=delta_parser_spider "
            "datamodule.root=FOLDER, then module.parser_from=RUN here.",
        ]

    # --- training

    def on_fit_start(self) -> None:
        """Note what the training learns from."""
        self.trained_on = describe(self.trainer)

    def training_step(self, batch: Sequence[Example], batch_idx: int) -> Tensor:
        """Negative log-likelihood of the gold derivations: nats per choice of the whole step."""
        found = self.learnable(batch)
        self.log("train/left_out", float(len(batch) - len(found)), batch_size=len(batch))
        return self.counted({"train/loss": self.likelihood_loss(found)} if found else {})

    def learnable(self, batch: Sequence[Example]) -> list[Features]:
        """Return the features of those examples that there is something to learn from.

        Turns without a gold query, gold queries that the grammar does not derive (of Spider's
        training part 1 in 250) and schemas above `max_nodes` are left out.
        """
        return [f for f in map(self._of, batch) if f is not None and self._fits(f)]

    def _fits(self, features: Features) -> bool:
        return self.max_nodes is None or len(features.links.relations) <= self.max_nodes

    def _of(self, example: Example) -> Features | None:
        """Features of a training example; None if there is nothing to learn from it."""
        if example not in self.features:
            assert self.featuriser is not None, "configure_model builds it"
            self.features[example] = None
            if example.query is not None and example.schema is not None:
                try:
                    self.features[example] = self.featuriser(
                        self.question(example), example.schema, example.database, example.query
                    )
                except SqlError:
                    self.features[example] = None
        return self.features[example]

    def likelihood_loss(self, features: Sequence[Features]) -> tuple[Tensor, Tensor]:
        """Mean negative log-likelihood of gold derivations, in nats per choice, and the choices."""
        assert self.network is not None, "configure_model builds the network"
        assert self.featuriser is not None, "configure_model builds it"
        if self.training:
            features = [self.featuriser.redrawn(each, self.shuffle_schema) for each in features]
        total, count = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        for _, batch in batches(features, self.device):
            likelihood, choices = self.network.log_likelihood(batch)
            total, count = total - likelihood.sum(), count + choices.sum()
        return total / count.clamp_min(1), count

    # --- use

    def parse(self, questions: Sequence[Question], beam: int | None = None) -> list[str]:
        """Return the SQL of each question.

        Args:
            questions: What is asked, the schema, and the SQLite file whose cells are looked up.
            beam: Derivations kept at every step; None: the module's.
        """
        return [sql for sql, _ in self.best(questions, beam)]

    def best(
        self, questions: Sequence[Question], beam: int | None = None
    ) -> list[tuple[str, float]]:
        """Return the SQL of each question with its log-likelihood in nats, as `parse`."""
        features = [self._featurise(question) for question in questions]
        return [best for best, *_ in self._ranked(features, beam or self.beam)]

    def ranked(self, question: Question, beam: int) -> list[tuple[str, float]]:
        """Return the best SQL of a question, best first, with log-likelihoods in nats."""
        return self._ranked([self._featurise(question)], beam)[0]

    @torch.no_grad()
    def costs(
        self,
        asked: Sequence[tuple[str, Schema, Path | None, str]],
        per_choice: bool = False,
        missing: float = math.inf,
    ) -> list[float]:
        """Return how unlikely gold queries are: negative log-likelihoods in nats.

        Args:
            asked: Question, schema, the SQLite file whose cells are looked up, and gold SQL.
            per_choice: Divide each by the number of the grammar's choices that make the query.
            missing: What a value of the query that is not on offer costs.

        Returns:
            Infinity where the grammar does not derive the query.
        """
        assert self.network is not None, "configure_model builds the network"
        assert self.featuriser is not None, "configure_model builds it"
        found = [float("inf")] * len(asked)
        known: dict[int, Features] = {}
        for index, question in enumerate(asked):
            try:
                features = self.featuriser(*question)
            except SqlError:
                continue
            known[index] = features
        places = list(known)
        training = self.network.training
        self.network.eval()
        for group, batch in batches(list(known.values()), self.device):
            likelihood, _ = self.network.log_likelihood(batch)
            for place, value in zip(group, likelihood.tolist(), strict=True):
                choices = known[places[place]].choices
                absent = choices.count(None)
                cost = -value + (absent * missing if absent else 0.0)
                found[places[place]] = cost / (len(choices) if per_choice else 1)
        self.network.train(training)
        return found

    def _featurise(self, question: Question) -> Features:
        assert self.featuriser is not None, "configure_model builds it"
        return self.featuriser(*question)

    @torch.no_grad()
    def _ranked(self, features: Sequence[Features], beam: int) -> list[list[tuple[str, float]]]:
        assert self.network is not None, "configure_model builds the network"
        found: list[list[tuple[str, float]]] = [[] for _ in features]
        training = self.network.training
        self.network.eval()
        for group, batch in batches(features, self.device):
            for index, parses in zip(group, self.network.parse(batch, beam), strict=True):
                schema = features[index].schema
                found[index] = [(to_sql(parse.query, schema), parse.score) for parse in parses]
        self.network.train(training)
        return found

    # --- validation and test

    def validation_step(self, batch: Sequence[Example], batch_idx: int) -> None:
        """Parse and judge a batch."""
        self._evaluate("val", batch)

    def test_step(self, batch: Sequence[Example], batch_idx: int) -> None:
        """Parse and judge a batch."""
        self._evaluate("test", batch)

    def _evaluate(self, split: str, batch: Sequence[Example]) -> None:
        known = [f for f in map(self._of, batch) if f is not None]
        if known:
            cast(MeanMetric, self.losses[split]).update(*self.likelihood_loss(known))
        asked = [e for e in batch if e.schema is not None and e.query is not None]
        # Features with a gold derivation serve as well: parsing does not look at it.
        features = [
            self._of(e) or self._featurise((self.question(e), cast(Schema, e.schema), e.database))
            for e in asked
        ]
        ranked = self._ranked(features, self.beam)
        verdicts = [self.judge(e, sql) for e, ((sql, _), *_) in zip(asked, ranked, strict=True)]
        self.judged += [(r[0][1], v.exact) for r, v in zip(ranked, verdicts, strict=True)]
        update_matches(self.matches, split, verdicts)
        self.samples += [
            {"history": list(e.history), "utterance": e.utterance, "question": self.question(e),
             "sql": v.prediction, "gold": v.gold, "database": v.db_id, "turn": v.turn,
             "interaction": v.interaction, "hardness": v.hardness, "exact": v.exact,
             "execution": v.execution}
            for e, v in zip(asked, verdicts, strict=True)
        ]  # fmt: skip
        self.verdicts += verdicts

    def on_validation_epoch_start(self) -> None:
        """Forget the verdicts of the last validation."""
        self.samples, self.verdicts, self.judged = [], [], []

    def on_test_epoch_start(self) -> None:
        """Forget the verdicts of the last test."""
        self.samples, self.verdicts, self.judged = [], [], []

    def on_validation_epoch_end(self) -> None:
        """Log loss, question and interaction match, and learn how likely answers are right."""
        self._log("val")
        if not self.trainer.sanity_checking:
            self.calibrate(self.judged)

    def calibrate(self, judged: Sequence[tuple[float, bool]]) -> None:
        """Learn from answers how likely those of some likelihood are right.

        Args:
            judged: Log-likelihood of each, in nats, and whether it is right.
        """
        if judged:
            scores, right = zip(*judged, strict=True)
            self.confidence = Confidence.fit(scores, right)

    def on_test_epoch_end(self) -> None:
        """Log them, and print match by turn and hardness."""
        self._log("test")
        if self.trainer.is_global_zero and self.verdicts:
            show_scores(Scores(tuple(self.verdicts)), "test", Console())

    def _log(self, split: str) -> None:
        loss = cast(MeanMetric, self.losses[split])
        if loss.update_called:
            self.log(f"{split}/loss", loss.compute(), sync_dist=True, prog_bar=True)
            loss.reset()
        log_matches(self, self.matches, split)

    # --- optimizer

    def configure_optimizers(self) -> Any:
        """AdamW, slower for a pretrained encoder, and the learning rate by step."""
        assert self.network is not None, "configure_model builds the network"
        slower = None if self.encoder is None else self.network.encoder
        return adamw_with_schedule(
            self, self.optimizer_settings, self.schedule_settings, slower, self.encoder_lr
        )

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Leave examples where they are: they hold no tensors."""
        return batch


# --- judging -------------------------------------------------------------------------------------

_MATCHES = ("exact", "execution")


class Judge:
    """Judges SQL against the gold queries of examples; executes where there is a database.

    Args:
        seconds: What one execution may take.
    """

    def __init__(self, seconds: float) -> None:
        limits = Limits(seconds=seconds)
        self.schemas: dict[str, Schema] = {}
        self.databases: dict[str, Path] = {}
        self.executing = Evaluator(self.schemas, self.databases, limits)
        self.reading = Evaluator(self.schemas, {}, limits)

    def __call__(self, example: Example, sql: str) -> Verdict:
        """Return the verdict on one turn; the example must have a schema and a gold query."""
        assert example.schema is not None, "a gold query is of a database"
        assert example.query is not None, "there must be a gold query"
        name = example.schema.db_id
        self.schemas[name] = example.schema
        if example.database is not None:
            self.databases[name] = example.database
        evaluator = self.reading if example.database is None else self.executing
        gold = Gold(example.query, name)
        return evaluator.judge(gold, sql, example.interaction, example.turn)


def matches(*prefixes: str) -> nn.ModuleDict:
    """Return the metrics of exact and execution match for each prefix."""
    return nn.ModuleDict({f"{p} {kind}": InteractionMatch() for p in prefixes for kind in _MATCHES})


def update_matches(metrics: nn.ModuleDict, prefix: str, verdicts: Sequence[Verdict]) -> None:
    """Add verdicts to the metrics of a prefix; those without execution to exact match only."""
    for kind in _MATCHES:
        counted = [v for v in verdicts if getattr(v, kind) is not None]
        if counted:
            cast(InteractionMatch, metrics[f"{prefix} {kind}"]).update(
                [v.interaction for v in counted], [bool(getattr(v, kind)) for v in counted]
            )


def log_matches(module: pl.LightningModule, metrics: nn.ModuleDict, prefix: str) -> None:
    """Log `exact`, `exact_interaction` and, where anything was executed, both of execution.

    Args:
        module: Logs them, under the prefix with slashes for its blanks.
        metrics: Of `matches`.
        prefix: One of its prefixes.
    """
    for kind in _MATCHES:
        metric = cast(InteractionMatch, metrics[f"{prefix} {kind}"])
        if metric.update_called:
            found, name = metric.compute(), f"{prefix.replace(' ', '/')}/{kind}"
            module.log(name, found["turns"], sync_dist=True, prog_bar=kind == "exact")
            module.log(f"{name}_interaction", found["interactions"], sync_dist=True)
            metric.reset()


def describe(trainer: pl.Trainer) -> dict[str, Any]:
    """Return what a trainer's datamodule says of itself; nothing where it does not."""
    datamodule = getattr(trainer, "datamodule", None)
    said: dict[str, Any] = getattr(datamodule, "describe", dict)()
    return said


def _texts(examples: Sequence[Example]) -> dict[str, list[str]]:
    """What a tokenizer is trained on: all that is said, and the names of the databases."""
    texts = by_database(examples)
    for name, schema in {e.schema.db_id: e.schema for e in examples if e.schema}.items():
        texts[name] += [column.words for column in schema.columns]
        texts[name] += [table.words for table in schema.tables]
    return texts


def show_scores(scores: Scores, title: str, console: Console) -> None:
    """Print match by turn and by hardness.

    Args:
        scores: Of all turns.
        title: What was scored.
        console: Where to.
    """
    kinds = ("exact", "execution") if scores.executed else ("exact",)
    metrics = scores.metrics()
    interactions = len({verdict.interaction for verdict in scores.verdicts})
    many = len(scores.verdicts) > interactions
    groups = {"turn": scores.by_turn() if many else {}, "hardness": scores.by_hardness()}
    for group, rows in groups.items():
        if not rows:
            continue
        table = Table(title=literal(f"{title}, by {group}"), title_justify="left")
        table.add_column(group)
        for name in ("turns", *(f"{kind} %" for kind in kinds)):
            table.add_column(name, justify="right")
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
