"""Instruction data: conversations whose answers alone are trained, packed or padded.

The cache holds every conversation's tokens with a mark on those of the assistant, end to end; block
length and batches are made of them when they are read, so that one cache serves all.
"""

import functools
import itertools
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Interval, MinLen

from datamodules.batches import BatchLoader, Rows
from datamodules.conversations import (
    ConversationSource,
    Source,
    chat_template,
    check,
    open_conversations,
)
from datamodules.hub import ChatDataSet
from datamodules.language_modeling import LanguageModelingDataModule, Prompt
from datamodules.packing import PackedBlocks, PaddedSamples, Samples, grouped_batch
from datamodules.settings import (
    ContextLength,
    Seed,
    TokenizerSettings,
    Vocabulary,
    Whole,
    Workers,
    arguments,
)
from datamodules.text_sources import OldDomain
from datamodules.token_cache import count_token_ids
from language.chat_rendering import ChatRenderer, Rendering
from language.generation import padding_token
from subnetworks.context import IGNORED

log = logging.getLogger(__name__)

PARTS = ("train", "val", "test")
RENDERING = 2  # raise it when the same conversations are to give other tokens
RENDERED_AT_ONCE = 256  # conversations
BAD_ROWS = "bad_rows.txt"  # in the cache: the rows that were left out, a line each


class BadRows:
    """What becomes of rows that cannot be trained on.

    Args:
        choice: `refuse` the first one, or `skip` and list them.
    """

    def __init__(self, choice: str) -> None:
        self.choice = choice
        self.lines: list[str] = []

    def refuse(self, error: ValueError) -> None:
        """Raise what is wrong with a row, or list it.

        Raises:
            ValueError: `choice` is refuse.
        """
        if self.choice == "refuse":
            raise ValueError(
                f"{error}; mend the row, or leave such rows out: datamodule.bad_rows=skip"
            ) from error
        self.lines.append(" ".join(str(error).split()))


class InstructionDataModule(LanguageModelingDataModule):
    """Batches of conversations for supervised fine-tuning, with labels on the answers only.

    Conversations come from a generated source, from jsonl or parquet files, or from the hub, as
    prompt and answer or as chat messages, and are rendered by a chat template. Caching, the order
    of the batches, resuming and the arguments that are not named here are those of
    `LanguageModelingDataModule`.

    Args:
        source: "arithmetic" (generated word problems), "jsonl", "parquet" or "hub".
        files: For jsonl and parquet: paths or glob patterns.
        val_files: Validation files, likewise.
        test_files: Test files, likewise; read by `test` only, never trained on.
        datasets: For hub: {name: {path, name, data_dir, split, revision, test_split}}.
        streaming: For hub: read over the network instead of downloading first.
        prompt_column: The field of the prompt; or several, joined by blank lines, without those
            that are empty.
        answer_column: The field of the answer.
        messages_column: The field of a list of {role, content} or of ShareGPT's {from, value}, read
            instead of the two above. A row's `tools`, JSON schemas, go to the chat template.
        count: For arithmetic: how many problems.
        val_fraction: In (0, 1): the share of the training rows that is held out, by content hash,
            where there are no `val_files`.
        chat_template: "default" for ours, a Jinja file, or None for the tokenizer's own.
        packed: Several conversations in a block of `context_length`, none of which sees another;
            False: one a row, batches of similar length, padded.
        bad_rows: A row that is no conversation, or that the chat template does not take, is refused
            ("refuse"), or left out, counted and listed ("skip").
        over_long: Conversations of more than `context_length` tokens are left out and counted
            ("skip"), or refused ("refuse"). None is ever cut.
        batch_size: Blocks (padded: conversations) in a batch on each device.

    Raises:
        ValueError: Settings that cannot work, a row that is not a conversation, a template that is
            missing or does not fit; names key, file and line.
    """

    check: ClassVar[str] = "datamodules.conversations:check"
    read_where: ClassVar[dict[str, tuple[str, Any]]] = {
        "count": ("source", ("arithmetic",)),
        "streaming": ("source", ("hub",)),
        "prompt_column": ("messages_column", False),
        "answer_column": ("messages_column", False),
        "val_fraction": ("val_files", False),
        "tokenizer.sample_chars": ("tokenizer.pretrained", False),
    }

    def __init__(
        self,
        source: Source = "arithmetic",
        files: str | list[str] | None = None,
        val_files: str | list[str] | None = None,
        test_files: str | list[str] | None = None,
        datasets: dict[str, ChatDataSet | None] | None = None,
        streaming: bool = False,
        prompt_column: str | Annotated[list[str], MinLen(1)] = "question",
        answer_column: str = "answer",
        messages_column: str | None = None,
        count: Annotated[int, Interval(ge=1, le=10_000_000)] = 20_000,
        val_fraction: float = 0.02,
        val_batches: Whole | None = None,
        old_domain: OldDomain | None = None,
        tokenizer: TokenizerSettings | None = None,
        chat_template: str | None = None,
        packed: bool = True,
        bad_rows: Literal["refuse", "skip"] = "refuse",
        over_long: Literal["skip", "refuse"] = "skip",
        vocab_size: Vocabulary = 2048,
        context_length: ContextLength = 256,
        batch_size: Whole = 16,
        seed: Seed = 0,
        num_workers: Workers = 0,
        cache_dir: str = ".cache",
    ) -> None:
        settings = arguments(InstructionDataModule, locals())
        check(settings)
        super().__init__(
            old_domain=old_domain,
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            context_length=context_length,
            batch_size=batch_size,
            seed=seed,
            num_workers=num_workers,
            cache_dir=cache_dir,
        )
        self.settings = settings
        self.packed = packed
        self.over_long: dict[str, int] = {}
        """Conversations that are longer than a block, by part; known after `setup`."""

    def _open_source(self) -> ConversationSource:
        return open_conversations(self.settings)

    def _further_identity(self) -> dict[str, Any]:
        return {
            "chat_template": chat_template(self.settings["chat_template"]),
            "bad_rows": self.settings["bad_rows"],
            "rendering": RENDERING,
        }

    def _build(self, source: ConversationSource, folder: Path) -> dict[str, Any]:
        tokenizer = self._make_tokenizer(source)
        template = chat_template(self.settings["chat_template"])
        own = tokenizer.chat_template
        if template is not None:
            tokenizer.chat_template = template
        elif tokenizer.chat_template is None:
            raise ValueError(
                "datamodule.chat_template=null, but the tokenizer "
                f"{self.pretrained or 'trained here'} has no chat template of its own; set "
                "datamodule.chat_template=default (ours) or to a Jinja file"
            )
        tokenizer.save_pretrained(folder / "tokenizer")
        renderer = ChatRenderer(tokenizer, [own] if isinstance(own, str) else [])
        record = _write(source, renderer, folder, self.settings["bad_rows"])
        log.info("Tokenised %s into %s", {part: record[part] for part in PARTS}, folder)
        return {"token_ids": count_token_ids(tokenizer), **record}

    def _open_blocks(self, folder: Path, record: dict[str, Any]) -> dict[str, Any]:
        filler: Any = padding_token(self.tokenizer)
        self.samples = {part: Samples(folder, part, record["dtype"]) for part in PARTS}
        if record["bad_rows"]:
            listed = folder / BAD_ROWS
            with listed.open(encoding="utf-8") as file:
                first = file.readline().strip()
            self._say(
                f"Left out: {record['bad_rows']} rows, listed in {listed}; the first: {first}."
            )
        if not self.ends:
            self._say(
                "The chat template writes no control token behind an answer: what is trained does "
                "not learn to end one."
            )
        blocks: dict[str, Any] = {}
        for part, samples in self.samples.items():
            kept = np.flatnonzero(samples.lengths <= self.context_length)
            n_long = len(samples.lengths) - len(kept)
            self.over_long[part] = n_long
            if n_long:
                words = (
                    f"{n_long} of {len(samples.lengths)} conversations of the {part} part have "
                    f"more than datamodule.context_length={self.context_length} tokens (the "
                    f"longest: {samples.lengths.max()})"
                )
                if self.settings["over_long"] == "refuse":
                    raise ValueError(
                        f"{words}; raise it, or leave them out: datamodule.over_long=skip"
                    )
                self._say(f"Left out: {words}.")
            if self.packed:
                blocks[part] = PackedBlocks(samples, kept, self.context_length, filler)
            else:
                if part != "train":  # batches of similar length
                    kept = kept[np.argsort(samples.lengths[kept], kind="stable")]
                blocks[part] = PaddedSamples(samples, kept, filler)
        return blocks

    @functools.cached_property
    def ends(self) -> set[int]:
        """The control token that the chat template writes behind an answer, if it writes one."""
        return ChatRenderer(self.tokenizer).ends()

    def _amount(self, part: str) -> str:
        record = self.record[part]
        there = f"{record['tokens']} tokens in {record['conversations']} conversations"
        if self.over_long[part]:
            there += f", {self.over_long[part]} of them too long"
        return there

    def _blocks(self, count: int) -> str:
        return super()._blocks(count) if self.packed else f"{count} conversations"

    def _mends(self, part: str) -> list[str]:
        length, *others = super()._mends(part)
        if self.over_long.get(part):
            return ["datamodule.context_length (up)", *others]
        return [length, *others] if self.packed else others

    def _check_own_files(self) -> None:
        bad_rows = BadRows(self.settings["bad_rows"])
        held = Counter({"train": 0, "val": 0})
        for conversation in open_conversations(self.settings).read(bad_rows.refuse):
            # A block has one answer at least.
            roles = [message["role"] for message in conversation.messages]
            held[conversation.part] += roles.count("assistant")
        left_out = f" ({len(bad_rows.lines)} rows are left out)" if bad_rows.lines else ""
        words = {part: f"{count} answers{left_out}" for part, count in held.items()}
        self._refuse_too_little(held, words)

    def _rows(self, dataset: Any, number: int) -> Rows:
        if self.packed:
            return super()._rows(dataset, number)
        lengths = dataset.samples.lengths[dataset.kept]
        return grouped_batch(number, lengths, self.batch_size, self.seed, *self.place)

    def test_dataloader(self) -> BatchLoader:
        """Return the loader of the test part, or, where there is none, of all validation data."""
        return self._held_out(None, "test" if len(self.blocks["test"]) else "val")

    def prompts(self, count: int, test: bool = False) -> list[Prompt]:
        """Held-out conversations up to their last answer, and that answer."""
        part = "test" if test and len(self.blocks["test"]) else "val"
        found = []
        for sample in range(min(count, len(self.samples[part].ends))):
            ids, labels = self.samples[part][sample]
            # The last answer begins behind the last token that is not of one.
            start = int(np.flatnonzero(labels == IGNORED)[-1]) + 1
            answer = str(self.tokenizer.decode(ids[start:], skip_special_tokens=True))
            found.append(Prompt(ids[:start].tolist(), answer.strip()))
        return found

    def describe(self) -> dict[str, Any]:
        """Return, after `setup`, what the data is and how large, for run.json."""
        samples, blocks = self.samples["train"], self.blocks["train"]
        labels = [samples[sample][1] for sample in blocks.kept[:1000]]
        trained = sum(int((some != IGNORED).sum()) for some in labels)
        read = sum(map(len, labels))
        # Of padded batches each has a length of its own.
        alike = {"tokens_per_batch": self.per_batch * self.context_length} if self.packed else {}
        return {
            "source": self.settings["source"],
            "cache": str(self.folder),
            "context_length": self.context_length,
            **alike,
            "conversations": {part: self.record[part]["conversations"] for part in PARTS},
            "bad_rows": self.record["bad_rows"],
            "over_long": self.over_long,
            "share_of_answer_tokens": trained / max(1, read),
            "train_blocks": len(blocks),
            "fill": blocks.fill() if self.packed else None,
        }


def _write(
    source: ConversationSource, renderer: ChatRenderer, folder: Path, bad_rows: str
) -> dict[str, Any]:
    """Tokenise every conversation into three files for each part; list what is left out."""
    token_ids = count_token_ids(renderer.tokenizer)
    dtype = np.uint16 if token_ids <= 1 << 16 else np.uint32
    counts: dict[str, Counter[str]] = {part: Counter() for part in PARTS}
    left_out = BadRows(bad_rows)

    def renderings() -> Iterator[tuple[str, Rendering]]:
        for conversation in source.read(left_out.refuse):
            try:
                found = renderer.render(conversation)
            except ValueError as error:
                left_out.refuse(error)
                continue
            counts[conversation.part]["conversations"] += 1
            yield from ((conversation.part, rendering) for rendering in found)

    kinds = ("bin", "answers.bin", "ends.bin")
    with ExitStack() as opened:
        files = {
            (part, kind): opened.enter_context((folder / f"{part}.{kind}").open("wb"))
            for part in PARTS
            for kind in kinds
        }
        remaining = renderings()
        while some := list(itertools.islice(remaining, RENDERED_AT_ONCE)):
            encoded = renderer.encode([rendering for _, rendering in some])
            for (part, _), (ids, marks) in zip(some, encoded, strict=True):
                counts[part].update(samples=1, tokens=len(ids))
                ids.astype(dtype).tofile(files[part, "bin"])
                marks.astype(np.uint8).tofile(files[part, "answers.bin"])
                np.array([counts[part]["tokens"]], dtype=np.int64).tofile(files[part, "ends.bin"])
    lines = left_out.lines
    (folder / BAD_ROWS).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    empty = {"conversations": 0, "samples": 0, "tokens": 0}
    return {
        "dtype": np.dtype(dtype).name,
        "bad_rows": len(lines),
        **{part: {**empty, **count} for part, count in counts.items()},
    }
