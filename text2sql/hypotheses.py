"""What a rewriter writes for turns of dialogues, and which of its texts is taken."""

from collections.abc import Sequence

import torch

from text2sql.dialogue import Example
from text2sql.linking import content, stems
from text2sql.rewards import pronouns, words_of
from text2sql.rewriting import Rewriter, to_rewrite

TOGETHER = 32  # turns that are rewritten in one batch


@torch.no_grad()
def hypotheses(
    rewriter: Rewriter, examples: Sequence[Example], beam: int, schema_words: bool = False
) -> dict[Example, list[str]]:
    """Return the best rewrites of later turns, best first.

    Args:
        rewriter: Writes them.
        examples: Turns with a history; their rewrites and queries are not read.
        beam: How many for each.
        schema_words: Whether names of tables and columns are read too.
    """
    # Longest first, so that texts of a batch are about as long; their order changes nothing.
    later = sorted(examples, key=_length, reverse=True)
    written: dict[Example, list[str]] = {}
    for start in range(0, len(later), TOGETHER):
        some = later[start : start + TOGETHER]
        found = rewriter.generate([to_rewrite(example, schema_words) for example in some], beam)
        written |= {e: [each.text for each in ts] for e, ts in zip(some, found, strict=True)}
    return written


def most_faithful(example: Example, texts: Sequence[str]) -> str:
    """Return the rewrite that keeps what the turn says of the database, the turn itself if none.

    People who rewrite leave out names of columns now and then (in SParC in a tenth of the turns),
    and values hardly ever. A text that loses a value counts therefore for nothing, and neither does
    one that loses a name if the turn names a table and has no pronoun, so that it may well stand
    alone. Of the others the first counts that loses the fewest names; one that only has words
    of the turn in other forms says nothing new [D].

    Args:
        example: The turn.
        texts: Rewrites of it, best first; at least one.
    """
    if example.schema is None:
        return texts[0]
    said = content(example.utterance, example.schema, example.database)
    stands_alone = bool(said.tables) and not pronouns(example.utterance)
    ranked = []
    for text in texts:
        kept = stems(text)
        lost = len((said.columns | said.tables) - kept)
        if said.values <= kept and not (lost and stands_alone):
            ranked.append((lost, text))
    best = min(ranked, key=lambda each: each[0])[1] if ranked else example.utterance
    new = set(words_of(best)) - set(words_of(example.utterance))
    return example.utterance if new and stems(best) <= stems(example.utterance) else best


def _length(example: Example) -> int:
    return sum(map(len, (*example.history, example.utterance)))
