"""Single-turn Text-to-SQL, and the end-to-end baseline that reads the turns before."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Interval
from rich.console import Console
from torch import Tensor

from lightning_modules.checkpoints import read_checkpoint
from lightning_modules.counted_loss import Loss
from lightning_modules.dialogue_module import DialogueModule
from lightning_modules.optimization import (
    Optimizer,
    Schedule,
    adamw_with_schedule,
    optimization,
)
from text2sql.dialogue import Example, by_database
from text2sql.encoder import files_of, freeze
from text2sql.evaluation import Judge, Scores, Verdict
from text2sql.execute import MOST_SECONDS
from text2sql.parser import ParserNetwork
from text2sql.parser_features import Features, Featuriser
from text2sql.parsing import Confidence, Parser, Question
from text2sql.reports import show_scores
from text2sql.sql import SqlError

Count = Annotated[int, Ge(1)]
_BETWEEN = " | "  # stands between the turns that are read together


class SqlParser(DialogueModule):
    """Reads a question and a schema, writes SQL by a grammar (RAT-SQL's way, arXiv 1911.04942).

    A batch is a list of `text2sql.dialogue.Example`. The network is built in `configure_model`.

    Args:
        pretrained: An encoder: a folder, hub id or `package:MODULE/FOLDER`; null: from scratch.
        architecture: `model_type` and arguments of an encoder to train from scratch; `pretrained`
            must be null.
        vocab_size: Of the tokenizer that is then trained on the training texts.
        width: Of the relational layers and the decoder.
        layers: Relational layers.
        decoder_layers: Layers of the decoder.
        heads: Attention heads of both; divides `width`.
        dropout: In both.
        frozen_layers: How many of a pretrained encoder's layers, from below, and with them its
            embeddings, are not trained.
        pretrained_dropout: A pretrained encoder keeps the dropout of its config in training, which
            takes a quarter of a training step on a CPU; else it has none.
        shuffle_schema: Training reads a schema's tables, and the columns of each, in another order
            every time.
        max_nodes: Training leaves out examples with more words, columns and tables together: cost
            grows with the square. null: none.
        read: What is read of a turn: `rewrite`, the self-contained question where there is one;
            `utterance`, its words as they are.
        history: How many utterances before an `utterance` are read too, newest first: above 0 this
            is the end-to-end baseline.
        beam: Derivations kept at every step of decoding.
        init: A checkpoint of this module, whose network to begin with.
        optimizer: `lr` (of all but the encoder), `betas`, `eps`, `weight_decay` of AdamW.
        pretrained_lr: Learning rate of a pretrained encoder.
        schedule: `warmup`, `final` and `decay`, as for language models.
        sql_timeout: Seconds that one execution may take in validation and test.

    Raises:
        ValueError: A value is not allowed; the message names its key.
    """

    network: ParserNetwork
    reader: Parser
    """The network in use; both from `configure_model` on."""

    follows_length: ClassVar[bool] = True
    """Its course is a share of the whole training's steps."""
    checkpoints: ClassVar[tuple[str, ...]] = ("init",)
    """Arguments that take a run in place of a checkpoint; the runner looks it up."""
    renamed: ClassVar[dict[str, str]] = {
        "encoder": "pretrained", "encoder_lr": "pretrained_lr",
        "encoder_dropout": "pretrained_dropout", "seconds": "sql_timeout",
    }  # fmt: skip
    """What arguments were called in older runs, and what they are called now."""
    adjustable: ClassVar[tuple[str, ...]] = ("beam", "sql_timeout")
    """Arguments on which no weight depends: tasks that read a run may set them anew."""

    # What a callback may monitor, by its `mode`: whether less or more of it is better.
    validated: ClassVar[dict[str, tuple[str, ...]]] = {
        "min": ("train/loss", "val/loss"),
        "max": (
            "val/exact", "val/exact_interaction", "val/execution", "val/execution_interaction",
        ),
    }  # fmt: skip

    # Keys that are read only where another one is set, is not, or has one of some values.
    read_where: ClassVar[dict[str, tuple[str, Any]]] = {
        "pretrained_lr": ("pretrained", True), "frozen_layers": ("pretrained", True),
        "pretrained_dropout": ("pretrained", True), "vocab_size": ("pretrained", False),
    }  # fmt: skip

    def __init__(
        self,
        pretrained: str | None = None,
        architecture: dict[str, Any] | None = None,
        vocab_size: Annotated[int, Interval(ge=100, le=1_000_000)] = 4000,
        width: Count = 128,
        layers: Annotated[int, Ge(0)] = 2,
        decoder_layers: Count = 2,
        heads: Count = 4,
        dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.1,
        frozen_layers: Annotated[int, Ge(0)] = 0,
        pretrained_dropout: bool = False,
        shuffle_schema: bool = False,
        max_nodes: Count | None = None,
        read: Literal["rewrite", "utterance"] = "rewrite",
        history: Annotated[int, Ge(0)] = 0,
        beam: Count = 1,
        init: str | None = None,
        optimizer: Optimizer | None = None,
        pretrained_lr: Annotated[float, Ge(0)] = 1e-4,
        schedule: Schedule | None = None,
        sql_timeout: Annotated[float, Interval(gt=0, le=MOST_SECONDS)] = 5.0,
    ) -> None:
        super().__init__("val", "test")
        self.save_hyperparameters()
        if (pretrained is None) == (architecture is None):
            raise ValueError("module: give pretrained or architecture (from scratch), and one only")
        if width % heads:
            raise ValueError(f"module.width={width}: must be a multiple of heads={heads}")
        if history and read == "rewrite":
            raise ValueError(
                f"module.history={history}: a rewrite stands alone; reading the turns before needs "
                "module.read=utterance"
            )
        self.pretrained, self.architecture = pretrained, architecture
        self.vocab_size = vocab_size
        self.sizes: dict[str, Any] = {
            "width": width, "layers": layers, "decoder_layers": decoder_layers, "heads": heads,
            "dropout": dropout,
        }  # fmt: skip
        self.read, self.history, self.beam, self.init = read, history, beam, init
        self.pretrained_lr, self.pretrained_dropout = pretrained_lr, pretrained_dropout
        self.frozen_layers, self.max_nodes = frozen_layers, max_nodes
        self.shuffle_schema = shuffle_schema
        self.optimizer_settings, self.schedule_settings = optimization(
            optimizer, schedule, Optimizer(lr=5e-4)
        )
        self.features: dict[Example, Features | None] = {}
        self.judge = Judge(sql_timeout)
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
        if hasattr(self, "network"):
            return
        if self.init is None:
            self._build()
            return
        try:
            begin = read_checkpoint(self.init)
            self.word_pieces = begin.get("parser_tokenizer")
            self._build()
            self.load_state_dict(begin["state_dict"])
        except (ValueError, KeyError, RuntimeError) as error:
            raise ValueError(f"module.init={self.init}: {error}") from error

    def _build(self) -> None:
        try:
            encoder, tokenizer = self.encoder(
                self.pretrained, self.architecture, self.vocab_size, self.pretrained_dropout
            )
            if self.pretrained is not None:
                freeze(encoder, self.frozen_layers)
            self.network = ParserNetwork(encoder, **self.sizes)
            self.reader = Parser(Featuriser(tokenizer), self.network)
        except ValueError as error:
            raise ValueError(f"module.{error}") from error

    def texts(self) -> dict[str, list[str]]:
        """Return all that is said in training, and the names of the databases."""
        examples = self.datamodule.examples("train")
        texts = by_database(examples)
        for name, schema in {e.schema.db_id: e.schema for e in examples if e.schema}.items():
            texts[name] += [column.words for column in schema.columns]
            texts[name] += [table.words for table in schema.tables]
        return texts

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep its tokenizer and encoder's config, what it learned from, how sure it may be."""
        if self.word_pieces is not None:
            checkpoint["parser_tokenizer"] = self.word_pieces
        if self.pretrained is not None:
            config, tokenizer = self.network.encoder.config, self.reader.featuriser.tokenizer
            checkpoint["parser_base"] = self.kept or files_of(config, tokenizer)
        checkpoint["parser_trained_on"] = self.trained_on
        if self.confidence is not None:
            checkpoint["parser_confidence"] = asdict(self.confidence)

    def await_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Become what a checkpoint's weights are of, which needs neither `init` nor `pretrained`.

        An older checkpoint does not say what its pretrained encoder was.
        """
        pieces = checkpoint.get("parser_tokenizer")
        if pieces != self.word_pieces and hasattr(self, "network"):
            del self.network
        self.init, self.word_pieces = None, pieces
        self.kept = checkpoint.get("parser_base")
        self.trained_on = checkpoint.get("parser_trained_on", {})
        if "parser_confidence" in checkpoint:
            self.confidence = Confidence(**checkpoint["parser_confidence"])

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
        databases = f"{train['databases']} database{'s' * (train['databases'] != 1)}"
        learned = f"{train['with_query']:,} questions about {databases}"
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
        """Note what the training learns from, and refuse turns of which none teaches."""
        self.trained_on = self.described()
        turns = self.datamodule.examples("train")
        if any(self.learnable([turn]) for turn in turns):
            return
        asked = [turn for turn in turns if turn.is_judged]
        example = f", but no SQL that can be derived, such as {asked[0].query}" if asked else ""
        raise ValueError(
            f"datamodule: the parser can learn from none of {len(turns)} training turns: "
            f"{len(asked)} have SQL{example}. Write it as docs/methods/delta.md says under Grammar "
            "and Limits; look at datamodule.annotated and module.max_nodes"
        )

    def training_step(self, batch: Sequence[Example], batch_idx: int) -> Tensor:
        """Negative log-likelihood of the gold derivations: nats per choice of the whole step."""
        found = self.learnable(batch)
        losses: dict[str, Loss] = {"train/loss": self.likelihood_loss(found)} if found else {}
        return self.counted(losses, {"train/left_out": (len(batch) - len(found), 1)})

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
            self.features[example] = None
            if example.query is not None and example.schema is not None:
                with suppress(SqlError):
                    self.features[example] = self.reader.featuriser(
                        *self._asked(example), example.query
                    )
        return self.features[example]

    def _asked(self, example: Example) -> Question:
        return self.question(example), example.about, example.database

    def likelihood_loss(self, features: Sequence[Features]) -> tuple[Tensor, Tensor]:
        """Mean negative log-likelihood of gold derivations, in nats per choice, and the choices."""
        if self.training:
            redrawn = self.reader.featuriser.redrawn
            features = [redrawn(each, self.shuffle_schema) for each in features]
        return self.reader.loss(features)

    # --- validation and test

    def evaluate_batch(self, split: str, batch: Sequence[Example]) -> None:
        """Parse and judge a batch."""
        known = [f for f in map(self._of, batch) if f is not None]
        self.losses[split].update(*self.likelihood_loss(known))
        asked = [e for e in batch if e.is_judged]
        # Features with a gold derivation serve as well: parsing does not look at it.
        features = [self._of(e) or self.reader.featuriser(*self._asked(e)) for e in asked]
        ranked = self.reader.ranked(features, self.beam)
        verdicts = [self.judge(e, sql) for e, ((sql, _), *_) in zip(asked, ranked, strict=True)]
        self.judged += [(r[0][1], v.exact) for r, v in zip(ranked, verdicts, strict=True)]
        self.matches[split].update(verdicts)
        self.samples += [
            {"history": list(e.history), "utterance": e.utterance, "question": self.question(e),
             "sql": v.prediction, "gold": v.gold, "database": v.db_id, "turn": v.turn,
             "interaction": v.interaction, "hardness": v.hardness, "exact": v.exact,
             "execution": v.execution}
            for e, v in zip(asked, verdicts, strict=True)
        ]  # fmt: skip
        self.verdicts += verdicts

    def forget(self) -> None:
        """Drop what the last validation or test has written and judged."""
        self.samples, self.verdicts, self.judged = [], [], []

    def finish(self, split: str) -> None:
        """Log loss, question and interaction match.

        A validation learns how likely answers are right, a test prints match by turn and hardness.
        """
        self.log_loss(split)
        self.log_match(split)
        if split == "val" and not self.trainer.sanity_checking:
            self.calibrate(self.judged)
        if split == "test" and self.trainer.is_global_zero and self.verdicts:
            show_scores(Scores(tuple(self.verdicts)), "test", Console())

    def calibrate(self, judged: Sequence[tuple[float, bool]]) -> None:
        """Learn from answers how likely those of some likelihood are right.

        Args:
            judged: Log-likelihood of each, in nats, and whether it is right.
        """
        if judged:
            scores, right = zip(*judged, strict=True)
            self.confidence = Confidence.fit(scores, right)

    # --- optimizer

    def configure_optimizers(self) -> Any:
        """AdamW, slower for a pretrained encoder, and the learning rate by step."""
        slower = None if self.pretrained is None else self.network.encoder
        return adamw_with_schedule(
            self, self.optimizer_settings, self.schedule_settings, slower, self.pretrained_lr
        )
