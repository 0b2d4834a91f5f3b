"""DELTA's rewriter: a short question of a dialogue becomes one that stands alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypedDict

import numpy as np
import torch
from annotated_types import Ge, Interval
from torch import Tensor, nn

from lightning_modules.checkpoints import read_checkpoint
from lightning_modules.counted_loss import Figure, Loss
from lightning_modules.dialogue_module import DialogueModule
from lightning_modules.optimization import (
    Optimizer,
    Schedule,
    adamw_with_schedule,
    optimization,
)
from text2sql.dialogue import Example
from text2sql.dual_learning import Baseline, dual_step
from text2sql.encoder import encoder_config, files_of
from text2sql.metrics import RewriteScores
from text2sql.rewards import (
    Rewards,
    RewardWeights,
    TrigramModel,
    Verify,
    complete_questions,
    natural_share,
)
from text2sql.rewriter_networks import (
    PointerGenerator,
    PretrainedCausalLM,
    PretrainedSeq2Seq,
)
from text2sql.rewrites import hypotheses, most_faithful
from text2sql.rewriting import Rewriter, to_rewrite, to_simplify

Batch = Sequence[Example]
Weight = Annotated[float, Ge(0)]
PRETRAINED: Mapping[str, type[PretrainedSeq2Seq | PretrainedCausalLM]] = {
    "seq2seq": PretrainedSeq2Seq,
    "causal_lm": PretrainedCausalLM,
}
"""Networks that are pretrained as a whole, by `kind`."""


class Network(TypedDict, total=False):
    """What reads and writes; which keys count depends on `kind`."""

    kind: Literal["pointer_generator", "seq2seq", "causal_lm"]
    pretrained: str | None
    architecture: dict[str, Any] | None
    vocab_size: Annotated[int, Interval(ge=100, le=1_000_000)]
    decoder_layers: Annotated[int, Ge(1)]
    source_tokens: Annotated[int, Ge(8)]
    target_tokens: Annotated[int, Ge(4)]
    schema_words: bool


class Dual(TypedDict, total=False):
    """How dual learning goes, see `text2sql.dual_learning` and `text2sql.rewards`."""

    samples: Annotated[int, Ge(2)]
    baseline: Baseline
    verdict: Literal["match", "likelihood"]
    database: Weight
    pronoun: Weight
    fluency: Weight
    parser: Weight
    reconstruction: Weight
    supervised: Weight
    values: bool


class UtteranceRewriter(DialogueModule):
    """Rewrites the turns of a dialogue into questions that need no dialogue.

    Paper: DELTA, "Decoupled Dialogue Modeling and Semantic Parsing for Multi-Turn Text-to-SQL",
    arXiv 2106.02282. What the paper says and what is our decision stands in docs/methods/delta.md.

    `supervised` trains on the turns that have a gold rewrite, by maximum likelihood. `dual` goes on
    from a supervised training, of this data or of another one, and learns from all turns: see
    `text2sql.dual_learning`. A batch is a list of `Example`.

    Args:
        mode: `supervised` or `dual`.
        init: A checkpoint of this module, whose networks to begin with.
        network: `kind`; `pretrained` (a folder, hub id or `package:MODULE/FOLDER`) or
            `architecture` and `vocab_size` (an encoder from scratch, with word pieces learned from
            the training data); `decoder_layers`; `source_tokens`, `target_tokens`; `schema_words`
            (whether names of tables and columns are read too).
        simplifier: Whether supervised training also trains the dual model, which `dual` needs.
        dual: `samples` drawn for each turn; `baseline` of the rewards, the mean of the `batch` or
            of the `turn`'s other samples; weights of the reward's parts `database`, `pronoun`,
            `fluency`, `parser` and `reconstruction`; what the parser's `verdict` on a turn with a
            query is, see `TextToSql.verify`; the weight of `supervised` learning beside; `values`
            (whether cell values are database words).
        optimizer: As in `CausalLM`.
        schedule: As in `CausalLM`.
        beam: Hypotheses of the search that writes rewrites.
        scored_rewrites: Rewrites that a validation writes and scores, at most; a test all of them.
        seed: Of the samples of dual learning.

    Raises:
        ValueError: A value is not allowed; the message names its key.
    """

    rewriter: Rewriter
    """From `configure_model` on."""

    follows_length: ClassVar[bool] = True
    """Its course is a share of the whole training's steps."""
    checkpoints: ClassVar[tuple[str, ...]] = ("init",)
    """Arguments that take a run in place of a checkpoint; the runner looks it up."""
    adjustable: ClassVar[tuple[str, ...]] = ("beam", "scored_rewrites")
    """Arguments on which no weight depends: tasks that read a run may set them anew."""

    # What a callback may monitor, by its `mode`: whether less or more of it is better.
    validated: ClassVar[dict[str, tuple[str, ...]]] = {
        "min": ("train/loss", "val/loss"),
        "max": ("val/bleu", "val/rouge_l", "val/exact", "val/restored_f1"),
        "either": ("val/schema_share", "val/schema_share_gold"),
    }

    unread: ClassVar[dict[str, str]] = {"dual.language_model": ""}
    """Keys of older runs that nothing reads any more."""
    read_where: ClassVar[dict[str, tuple[str, Any]]] = {
        "dual": ("mode", ("dual",)), "seed": ("mode", ("dual",)),
        "network.vocab_size": ("network.pretrained", False),
        "network.decoder_layers": ("network.kind", ("pointer_generator",)),
    }  # fmt: skip

    def __init__(
        self,
        mode: Literal["supervised", "dual"] = "supervised",
        init: str | None = None,
        network: Network | None = None,
        simplifier: bool = False,
        dual: Dual | None = None,
        optimizer: Optimizer | None = None,
        schedule: Schedule | None = None,
        beam: Annotated[int, Ge(1)] = 4,
        scored_rewrites: Annotated[int, Ge(0)] = 200,
        seed: Annotated[int, Interval(ge=0, lt=2**32)] = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.mode, self.init, self.seed = mode, init, seed
        self.beam, self.scored_rewrites = beam, scored_rewrites
        self.network_settings: dict[str, Any] = {
            "kind": "pointer_generator",
            "pretrained": None,
            "architecture": None,
            "vocab_size": 4000,
            "decoder_layers": 2,
            "source_tokens": 128,
            "target_tokens": 64,
            "schema_words": False,
            **(network or {}),
        }
        self.dual_settings: dict[str, Any] = {
            "samples": 4,
            "baseline": "batch",
            "verdict": "match",
            "supervised": 1.0,
            "values": True,
            **(dual or {}),
        }
        self.optimizer_settings, self.schedule_settings = optimization(
            optimizer, schedule, Optimizer(lr=3e-4)
        )
        self._check()
        self.schema_words: bool = self.network_settings["schema_words"]
        self.simplifier: Rewriter | None = None
        self.has_simplifier = simplifier or mode == "dual"
        self.scores: Any = nn.ModuleDict({split: RewriteScores() for split in ("val", "test")})
        self.samples: list[dict[str, Any]] = []
        """Rows of the running validation or test: what was written for each turn."""
        self.verify: Verify | None = None
        """A parser's verdict on rewrites, for the reward; whoever has a parser sets it."""
        self._rewards: Rewards | None = None

    def _check(self) -> None:
        n, d = self.network_settings, self.dual_settings
        if (n["pretrained"] is None) == (n["architecture"] is None):
            raise ValueError(
                "module.network: give pretrained (a folder, hub id or package:MODULE/FOLDER) or "
                "architecture (an encoder from scratch), not both"
            )
        if n["architecture"] is not None:
            limit = encoder_config(n["architecture"]).max_position_embeddings
            lengths = {key: n[key] for key in ("source_tokens", "target_tokens")}
            if max(lengths.values()) > limit:
                said = ", ".join(f"module.network.{key}={most}" for key, most in lengths.items())
                raise ValueError(
                    f"{said}: the encoder reads {limit} at most, by "
                    "module.network.architecture.max_position_embeddings"
                )
        if n["kind"] in PRETRAINED and n["pretrained"] is None:
            raise ValueError(f"module.network.kind={n['kind']}: needs module.network.pretrained")
        self.reward_weights = RewardWeights(**{k: d[k] for k in vars(RewardWeights()) if k in d})
        if self.mode == "dual" and self.init is None:
            raise ValueError(
                "module.init: mode=dual goes on from a supervised training (with "
                "module.simplifier=true); give its checkpoint or run folder"
            )

    # --- networks -------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Build or load the networks, once, in training mode."""
        if hasattr(self, "rewriter"):
            return
        begin = None
        if self.init is not None:
            try:
                begin = read_checkpoint(self.init)
            except ValueError as error:
                raise ValueError(f"module.init={self.init}: {error}") from error
            self.word_pieces = self.word_pieces or begin.get("rewriter_tokenizer")
        self.rewriter = self._network()
        if self.has_simplifier:
            self.simplifier = self._network()
        if begin is not None:
            self._begin_with(begin["state_dict"])

    def _network(self) -> Rewriter:
        n = self.network_settings
        lengths = {key: n[key] for key in ("source_tokens", "target_tokens")}
        try:
            if n["kind"] in PRETRAINED:
                return PRETRAINED[n["kind"]].pretrained(n["pretrained"], self.kept, **lengths)
            encoder, tokenizer = self.encoder(n["pretrained"], n["architecture"], n["vocab_size"])
            return PointerGenerator(encoder, tokenizer, n["decoder_layers"], **lengths)
        except ValueError as error:
            raise ValueError(f"module.network.{error}") from error

    def _begin_with(self, state: dict[str, Tensor]) -> None:
        for name in ("rewriter", "simplifier"):
            network = getattr(self, name)
            if network is None:
                continue
            prefix = f"{name}."
            own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            if not own:
                raise ValueError(
                    f"module.init={self.init}: holds no {name}; train it with "
                    "module.simplifier=true"
                )
            try:
                network.load_state_dict(own)
            except RuntimeError as error:
                raise ValueError(
                    f"module.init={self.init}: its {name} is another network: {error}"
                ) from error

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the tokenizer, and a pretrained network's config."""
        if self.word_pieces is not None:
            checkpoint["rewriter_tokenizer"] = self.word_pieces
        if self.network_settings["pretrained"] is not None:
            config, tokenizer = self.rewriter.config, self.rewriter.tokenizer
            checkpoint["rewriter_base"] = self.kept or files_of(config, tokenizer)

    def await_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Become what a checkpoint's weights are of, which needs neither `init` nor `pretrained`.

        An older checkpoint does not say what its pretrained network was.
        """
        pieces = checkpoint.get("rewriter_tokenizer")
        if pieces != self.word_pieces:
            self.word_pieces, self.simplifier = pieces, None
            if hasattr(self, "rewriter"):
                del self.rewriter
        self.init, self.kept = None, checkpoint.get("rewriter_base")

    def configure_optimizers(self) -> Any:
        """AdamW with decay groups, and the learning rate by step, as CausalLM's."""
        return adamw_with_schedule(self, self.optimizer_settings, self.schedule_settings)

    # --- learning -------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Refuse training data without a pair, and read what the rewards need of it."""
        known = self.datamodule.examples("train")
        if self.mode == "supervised" and not any(e.rewrite and e.history for e in known):
            raise ValueError(
                "datamodule: no turn of the training data that follows another has a rewrite to "
                "learn from; give dialogues that have some (task=annotate lets a trained rewriter "
                "write them); in a pipeline, module.rewriter_from=RUN or module.rewriter=null"
            )
        if self.mode == "supervised":
            return
        weights, values = self.reward_weights, self.dual_settings["values"]
        if weights.parser and self.verify is None and self.trainer.is_global_zero:
            print(
                "module.dual.parser and verdict have no effect: no parser gives its verdict here. "
                "One does in experiment=delta_dual"
            )
        trigrams = TrigramModel(complete_questions(known)) if weights.fluency else None
        share = natural_share(known, values) if weights.database else 1.0
        self._rewards = Rewards(weights, share, trigrams, self.verify, values)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        return self.counted(*self.learn(batch))

    def parts(self) -> Mapping[str, nn.Module]:
        """Supervised, each network has a loss of its own; dual learning has one of both."""
        if self.mode == "dual" or self.simplifier is None:
            return {"train/rewriter_loss": self}
        return {
            "train/rewriter_loss": self.rewriter,
            "train/simplifier_loss": self.simplifier,
        }

    def learn(self, batch: Batch) -> tuple[dict[str, Loss], dict[str, Figure]]:
        """Return the losses of a batch, and what else there is to log."""
        return self._dual_loss(batch) if self.mode == "dual" else (self._supervised(batch), {})

    def _supervised(self, batch: Batch) -> dict[str, Loss]:
        pairs = [example for example in batch if example.rewrite]
        if not pairs:
            return {}
        losses: dict[str, Loss] = {"train/rewriter_loss": self.rewriting_loss(pairs)}
        if self.simplifier is not None:
            sources = [to_simplify(e, e.complete, self.schema_words) for e in pairs]
            losses["train/simplifier_loss"] = self.simplifier.counted_loss(
                sources, [e.utterance for e in pairs]
            )
        return losses

    def rewriting_loss(self, pairs: Batch) -> tuple[Tensor, Tensor]:
        """Mean negative log-likelihood of gold rewrites, in nats per word piece, and the pieces."""
        sources = [to_rewrite(example, self.schema_words) for example in pairs]
        return self.rewriter.counted_loss(sources, [example.complete for example in pairs])

    def _dual_loss(self, batch: Batch) -> tuple[dict[str, Loss], dict[str, Figure]]:
        assert self.simplifier is not None, "dual learning has both models"
        assert self._rewards is not None, "on_fit_start makes the rewards"
        draws = torch.Generator()
        # By step, batch and rank: a resumed run draws what the first one would have.
        place = [self.seed, self.global_step, self.trainer.fit_loop.batch_idx, self.global_rank]
        draws.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))
        step = dual_step(
            self.rewriter,
            self.simplifier,
            batch,
            self._rewards,
            self.dual_settings["samples"],
            baseline=self.dual_settings["baseline"],
            schema_words=self.schema_words,
            generator=draws,
        )
        weights = self.reward_weights.reconstruction, self.dual_settings["supervised"]
        # Means of turns, of which each batch has its own baseline.
        figures = {f"dual/{name}": (value, len(batch)) for name, value in step.metrics().items()}
        return {"train/rewriter_loss": (step.loss(*weights), len(batch))}, figures

    # --- what was reached -----------------------------------------------------------------------

    @torch.no_grad()
    def rewrite(self, examples: Sequence[Example]) -> list[str]:
        """Write each turn as a question that stands alone; a first turn stands as it is.

        Of the hypotheses the likeliest counts that says all of the turn: see `most_faithful`.

        Args:
            examples: Turns; their rewrites and queries are not read.
        """
        later = [example for example in examples if example.history]
        found = hypotheses(self.rewriter, later, self.beam, self.schema_words)
        written = {example: most_faithful(example, texts) for example, texts in found.items()}
        return [written.get(example, example.utterance) for example in examples]

    def turns_read(self, example: Example) -> tuple[str, ...]:
        """Return the turns before this one that are read with it, oldest first."""
        source = to_rewrite(example, self.schema_words)
        count = self.rewriter.turns_read(source)
        return source.context[len(source.context) - count :]

    def forget(self) -> None:
        """Drop what the last validation or test has written and judged."""
        self.samples = []

    def evaluate_batch(self, split: str, batch: Batch) -> None:
        """Add a batch to the loss, and its rewrites to the scores: in validation the first ones."""
        pairs = [example for example in batch if example.rewrite]
        self.losses[split].update(*(self.rewriting_loss(pairs) if pairs else (0.0, 0)))
        # First turns are complete as they are: they would only make the scores look better.
        later = [example for example in pairs if example.history]
        if split == "val":
            later = later[: max(0, self.scored_rewrites - len(self.samples))]
        texts, golds = self.rewrite(later), [e.complete for e in later]
        self.scores[split].update(
            texts, golds, [e.utterance for e in later], [e.schema for e in later]
        )
        self.samples += [
            {
                "step": self.global_step,
                "split": split,
                "history": " | ".join(example.history),
                "utterance": example.utterance,
                "rewrite": text,
                "gold": gold,
            }
            for example, text, gold in zip(later, texts, golds, strict=True)
        ]

    def finish(self, split: str) -> None:
        """Log the loss and the scores of the rewrites."""
        self.log_loss(split)
        scores = self.scores[split]
        if scores.update_called:
            # The metric has summed over the ranks; `sync_dist` averages equal values.
            named = {f"{split}/{name}": value for name, value in scores.compute().items()}
            self.log_dict(named, sync_dist=True)
        scores.reset()
