"""Which of two sentences a language model finds likelier: BLiMP and other minimal pairs.

A sentence's score is the sum of its tokens' log-probabilities behind the token that begins a text,
and a space, as lm-eval scores BLiMP. Sentences longer than the model's context, which lm-eval
refuses, are scored too.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast

from language.generation import prefix

Pair = tuple[str, str]
"""The sentence that is right, and the one that is not."""

_LOGITS = 1 << 25  # of a batch at most: 128 MB


def read_pairs(folder: str | Path, limit: int | None = None) -> dict[str, list[Pair]]:
    """Return the pairs of every file of a folder, by the file's name.

    Args:
        folder: Holds jsonl files whose lines have `sentence_good` and `sentence_bad`.
        limit: Read only the first so many pairs of each file.

    Raises:
        ValueError: There is no such folder or no such file in it, or a line is something else.
    """
    files = sorted(Path(folder).expanduser().glob("*.jsonl"))
    if not files:
        raise ValueError(f"{folder}: no folder with jsonl files; BLiMP's are its folder data/")
    found: dict[str, list[Pair]] = {}
    for file in files:
        try:
            with file.open(encoding="utf-8-sig") as stream:
                written = ((number, line) for number, line in enumerate(stream, 1) if line.strip())
                lines = list(islice(written, limit))
        except UnicodeDecodeError as error:
            raise ValueError(f"{file}: is not UTF-8 at byte {error.start}") from error
        pairs = found[file.stem] = []
        for number, line in lines:
            try:
                row = json.loads(line)
                pair = row["sentence_good"], row["sentence_bad"]
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise ValueError(
                    f"{file}, line {number}: no object with sentence_good and sentence_bad"
                ) from error
            if not all(isinstance(sentence, str) and sentence.strip() for sentence in pair):
                raise ValueError(f"{file}, line {number}: both sentences must be text")
            pairs.append(pair)
        if not pairs:
            raise ValueError(f"{file}: it is empty")
    return found


def encode(tokenizer: PreTrainedTokenizerFast, sentences: Sequence[str]) -> list[list[int]]:
    """Return the tokens of sentences, each behind the token that begins a text."""
    begin = prefix(tokenizer)
    texts = [f" {sentence}" for sentence in sentences]
    if not texts:
        return []
    rows: list[list[int]] = tokenizer(texts, add_special_tokens=False).input_ids
    return [ids if ids[:1] == [begin] else [begin, *ids] for ids in rows]


@torch.inference_mode()
def log_likelihoods(
    model: Any, sequences: Sequence[Sequence[int]], context: int | None = None
) -> list[float]:
    """Return the sum of the log-probabilities of every token but the first, for each sequence.

    Tokens that the context does not reach are predicted from as many before them as it holds. What
    is of one length is computed together, so that nothing is padded.

    Args:
        model: A Hugging Face causal language model, in evaluation mode.
        sequences: Token ids.
        context: Tokens that the model reads at once; None: any number.

    Returns:
        In nats, in the order of the sequences.
    """
    device = next(model.parameters()).device
    # By length and by how many of the last tokens count: a sequence, and where to cut it.
    windows = defaultdict(list)
    for number, sequence in enumerate(sequences):
        whole = len(sequence) if context is None else min(len(sequence), context + 1)
        windows[whole, whole - 1].append((number, 0, whole))
        for end in range(whole + 1, len(sequence) + 1):
            windows[whole, 1].append((number, end - whole, end))
    sums = [0.0] * len(sequences)
    for (length, counted), places in sorted(windows.items()):
        size = max(1, _LOGITS // (length * model.config.vocab_size))
        for start in range(0, len(places), size):
            some = places[start : start + size]
            ids_BT = torch.tensor([sequences[n][i:j] for n, i, j in some], device=device)
            # Nothing follows the last token, so that it is predicted and not read.
            logits_BTV = model(input_ids=ids_BT[:, :-1], use_cache=False).logits.float()
            losses_BT = cross_entropy(logits_BTV.mT, ids_BT[:, 1:], reduction="none")
            for (number, *_), total in zip(
                some, losses_BT[:, -counted:].sum(1).tolist(), strict=True
            ):
                sums[number] -= total
    return sums


def judge(
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    pairs: Sequence[Pair],
    context: int | None = None,
) -> list[bool]:
    """Return for each pair whether the right sentence is at least as likely as the other one.

    Args:
        model: A Hugging Face causal language model, in evaluation mode.
        tokenizer: Of the model.
        pairs: The pairs.
        context: Tokens that the model reads at once; None: any number.
    """
    sequences = encode(tokenizer, [sentence for pair in pairs for sentence in pair])
    sums = log_likelihoods(model, sequences, context)
    return [good >= bad for good, bad in zip(sums[::2], sums[1::2], strict=True)]


def accuracies(right: Mapping[str, Sequence[bool]]) -> dict[str, float]:
    """Return the share of right pairs by file, and under `mean` the mean over the files."""
    found = {name: sum(each) / len(each) for name, each in right.items()}
    return {**found, "mean": sum(found.values()) / len(found)}
