"""Samples of what a model writes, and how often a language model's answers are right."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, cast

import pytorch_lightning as pl
import torch
from annotated_types import Ge
from pytorch_lightning.strategies import ModelParallelStrategy
from torch.nn.utils.rnn import pad_sequence

from language.generation import as_told, end_tokens, padding_token
from subnetworks.families import longest_context


class _SamplesFile(pl.Callback):
    """Keeps `samples.jsonl` in step with the run: one that goes on writes later rows anew.

    A checkpoint says how long the file was; what stands behind is of another future, or of a line
    that was never finished.
    """

    file: Path
    _bytes: int | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Cut the file to its length at the checkpoint that is gone on from."""
        if self._bytes is not None and trainer.is_global_zero and self.file.exists():
            os.truncate(self.file, min(self._bytes, self.file.stat().st_size))

    def state_dict(self) -> dict[str, Any]:
        """Return how long the file is."""
        return {"bytes": self.file.stat().st_size if self.file.exists() else 0}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        self._bytes = state_dict["bytes"]

    def places(self) -> dict[str, Path]:
        """The file of the samples, for the run's report."""
        return {"samples": self.file}


class GenerationSamples(_SamplesFile):
    """At each validation and test, lets the full model go on from prompts of the held-out data.

    Greedy, so that nothing random is drawn. Prompt, answer and reference go to `samples.jsonl` in
    the run folder and as a table to loggers that have tables (W&B). A prompt of which the model's
    context has no room for an answer loses its beginning, which is said. Of several processes each
    answers a part, and the first one's are written. With an answer pattern the
    share of right answers is logged as `val/exact_match` or `test/exact_match`: GSM8K's metric,
    where the pattern's last match in both texts must be equal, thousands separators apart. It is a
    metric of data whose answers all end so: of other data it is not logged, and that is said once.

    Args:
        folder: Where the file is written.
        prompts: How many prompts at a validation.
        test_prompts: How many at a test; None for all of the test part.
        max_new_tokens: Length of an answer, at least 1.
        batch_size: Prompts that are answered together.
        answer_pattern: A regular expression whose first group is the final answer; None: no metric.

    Raises:
        ValueError: The pattern is no regular expression with a group.
    """

    reads: ClassVar[str] = "tokens"
    """What the data must serve."""
    # What a callback may monitor, by its `mode`: whether less or more of it is better.
    validated: ClassVar[dict[str, tuple[str, ...]]] = {"max": ("val/exact_match",)}

    def __init__(
        self,
        folder: str,
        prompts: Annotated[int, Ge(1)] = 8,
        test_prompts: Annotated[int, Ge(1)] | None = None,
        max_new_tokens: Annotated[int, Ge(1)] = 64,
        batch_size: Annotated[int, Ge(1)] = 32,
        answer_pattern: str | None = None,
    ) -> None:
        try:
            pattern = None if answer_pattern is None else re.compile(answer_pattern)
        except re.error as error:
            raise ValueError(f"answer_pattern={answer_pattern!r}: {error}") from error
        if pattern is not None and pattern.groups < 1:
            raise ValueError(f"answer_pattern={answer_pattern!r}: needs a group, such as (-?\\d+)")
        self.file = Path(folder) / "samples.jsonl"
        self.prompts, self.test_prompts = prompts, test_prompts
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size
        self.pattern = pattern
        self._said: set[str] = set()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write samples of the validation part."""
        if not trainer.sanity_checking:
            self._sample(trainer, pl_module, "val", self.prompts)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write samples of the test part."""
        self._sample(trainer, pl_module, "test", self.test_prompts)

    def _sample(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, split: str, count: int | None
    ) -> None:
        data, model = cast(Any, trainer).datamodule, cast(Any, pl_module).backbone
        prompts = data.prompts(2**31 if count is None else count, test=split == "test")
        pattern = self._pattern_of([prompt.reference for prompt in prompts], trainer)
        limit = longest_context(model.config)
        kept, room = share_context(limit, self.max_new_tokens)
        long = sum(kept is not None and len(prompt.ids) > kept for prompt in prompts)
        if long or room < self.max_new_tokens:
            self._say_once(
                trainer,
                f"Samples of {split}: the model's context is {limit} tokens long. {long} of "
                f"{len(prompts)} prompts are shortened to their last {kept} tokens; an answer "
                f"has {room} at most.",
            )
            prompts = [replace(prompt, ids=prompt.ids[-cast(int, kept) :]) for prompt in prompts]
        mine = prompts[trainer.global_rank :: trainer.world_size]
        # Where each process has a part of the weights, all of them must generate equally often.
        together = isinstance(trainer.strategy, ModelParallelStrategy)
        most = -(-len(prompts) // trainer.world_size) if together else len(mine)
        rows, ends = [], getattr(data, "ends", ())
        for start in range(0, most, self.batch_size):
            some = mine[start : start + self.batch_size]
            with trainer.precision_plugin.forward_context():
                read = [prompt.ids for prompt in some or prompts[:1]]
                answers = generate(model, read, data.tokenizer, room, ends, together)
            for prompt, answer in zip(some, answers[: len(some)], strict=True):
                row = {
                    "step": trainer.global_step,
                    "split": split,
                    "prompt": data.tokenizer.decode(prompt.ids),
                    "answer": answer,
                    "reference": prompt.reference,
                }
                if pattern is not None:
                    row["right"] = exact_match(answer, prompt.reference, pattern)
                rows.append(row)
        if pattern is not None:
            counts = torch.tensor([sum(row["right"] for row in rows), len(rows)], dtype=torch.float)
            right, asked = trainer.strategy.reduce(counts.to(pl_module.device), reduce_op="sum")
            # Summed over the ranks already; `sync_dist` averages equal values.
            pl_module.log(f"{split}/exact_match", right / asked, sync_dist=True)
        _write(trainer, split, rows, self.file, self.prompts)

    def _pattern_of(self, references: list[str], trainer: pl.Trainer) -> re.Pattern[str] | None:
        """Return the answer pattern if every reference has a final answer by it."""
        if self.pattern is None or all(map(self.pattern.search, references)):
            return self.pattern
        words = f"No exact_match: not all answers end as {self.pattern.pattern!r} says."
        self._say_once(trainer, words)
        return None

    def _say_once(self, trainer: pl.Trainer, words: str) -> None:
        if trainer.is_global_zero and words not in self._said:
            self._said.add(words)
            print(words, flush=True)


class ModuleSamples(_SamplesFile):
    """Writes down what a module wrote while it was validated or tested.

    The module keeps a list of rows, `samples`, dictionaries with the same keys: say, what it was
    asked, what it answered, what is right. They go to `samples.jsonl` in the run folder, and some
    of them as a table to loggers that have tables (W&B). Of several processes the first one's.

    Args:
        folder: Where the file is written.
        shown: Rows of a table, at least 1.
    """

    needs_of_module: ClassVar[str] = "lists_samples"
    """What the module must promise."""

    def __init__(self, folder: str, shown: Annotated[int, Ge(1)] = 16) -> None:
        self.file, self.shown = Path(folder) / "samples.jsonl", shown

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the rows of the validation."""
        if not trainer.sanity_checking:
            _write(trainer, "val", cast(Any, pl_module).samples, self.file, self.shown)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the rows of the test."""
        _write(trainer, "test", cast(Any, pl_module).samples, self.file, self.shown)


def _write(
    trainer: pl.Trainer, split: str, rows: list[dict[str, Any]], file: Path, shown: int
) -> None:
    if not trainer.is_global_zero or not rows:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    for logger in trainer.loggers:
        log_rows(logger, f"{split}/samples", rows[:shown], trainer.global_step)


def log_rows(logger: Any, key: str, rows: list[dict[str, Any]], step: int) -> None:
    """Hand rows, dictionaries with the same keys, to a logger as a table, if it has tables."""
    if hasattr(logger, "log_table"):
        data = [list(row.values()) for row in rows]
        logger.log_table(key, columns=list(rows[0]), data=data, step=step)


def share_context(limit: int | None, max_new_tokens: int) -> tuple[int | None, int]:
    """Divide a model's context between prompt and answer, which gets no more than half of it.

    Returns:
        Tokens of a prompt and of an answer at most; None where the context has no limit.
    """
    if limit is None:
        return None, max_new_tokens
    room = min(max_new_tokens, limit // 2)
    return limit - room, room


def generate(
    model: Any,
    prompts: list[list[int]],
    tokenizer: Any,
    max_new_tokens: int,
    ends: Iterable[int] = (),
    together: bool = False,
) -> list[str]:
    """Let a model answer prompts, greedily, in one batch padded on the left.

    Args:
        model: A Hugging Face causal language model.
        prompts: Token ids.
        tokenizer: Of the model.
        max_new_tokens: Tokens of an answer at most.
        ends: Tokens that end an answer, see `language.generation.end_tokens`.
        together: Whether all processes generate at once, each with a part of the weights; then they
            go on until the last one is done.

    Returns:
        The answers in words, without special tokens.
    """
    filler: Any = padding_token(tokenizer)
    device = next(model.parameters()).device
    rows = [torch.tensor(prompt, dtype=torch.long, device=device) for prompt in prompts]
    pad = partial(pad_sequence, batch_first=True, padding_side="left")
    ids, mask = pad(rows, padding_value=filler), pad([torch.ones_like(row) for row in rows])
    was_training, stops = model.training, end_tokens(model, tokenizer, ends)
    model.eval()
    try:
        with as_told(model):
            written = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                pad_token_id=filler,
                eos_token_id=stops,
                synced_gpus=together,
            )
    finally:
        model.train(was_training)
    answers: list[str] = tokenizer.batch_decode(
        written[:, ids.shape[1] :], skip_special_tokens=True
    )
    return [answer.strip() for answer in answers]


def exact_match(answer: str, reference: str, pattern: re.Pattern[str]) -> bool:
    """Whether the final answers of two texts are equal: the pattern's last match, its first group.

    An answer without one is wrong.
    """
    found = [pattern.findall(text) for text in (answer, reference)]
    if not all(found):
        return False
    finals = [matches[-1] if isinstance(matches[-1], str) else matches[-1][0] for matches in found]
    left, right = (final.replace(",", "").strip().rstrip(".") for final in finals)
    return left == right
