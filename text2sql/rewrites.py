"""Rewrites in use: what a rewriter writes, which of its texts is taken, and dialogues with them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from atomic import replacing
from text2sql.dialogue import Example
from text2sql.linking import content, stems
from text2sql.rewards import pronouns
from text2sql.rewriting import Rewriter, to_rewrite
from text2sql.words import words_of

TOGETHER = 32  # turns that are rewritten in one batch
_COPY = 1.0  # nats that a rewrite must be better than the utterance as it is [D]
Dialogues = Mapping[int, Sequence[Example]]

# --- for the turns of dialogues -------------------------------------------------------------------


@torch.no_grad()
def hypotheses(
    rewriter: Rewriter, examples: Sequence[Example], beam: int, schema_words: bool = False
) -> dict[Example, list[str]]:
    """Return the best rewrites of turns with a history, `beam` for each, best first.

    Rewrites and queries of the turns are not read.
    """
    # Longest first, so that texts of a batch are about as long; their order changes nothing.
    later = sorted(examples, key=lambda e: sum(map(len, (*e.history, e.utterance))), reverse=True)
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
    alone. Of the others, best first, the first counts that loses the fewest names; one that only
    has words of the turn in other forms says nothing new [D].
    """
    if example.schema is None:
        return texts[0]
    said = content(example.utterance, example.schema, example.database)
    stands_alone = bool(said.tables) and not pronouns(example.utterance)
    ranked = []
    for text in texts:
        kept = stems(text)
        lost = len((said.columns | said.tables) - kept)
        if kept and said.values <= kept and not (lost and stands_alone):
            ranked.append((lost, text))
    best = min(ranked, key=lambda each: each[0])[1] if ranked else example.utterance
    new = set(words_of(best)) - set(words_of(example.utterance))
    return example.utterance if new and stems(best) <= stems(example.utterance) else best


# --- for dialogues that have SQL and no rewrite --------------------------------------------------


def whole_dialogues(examples: Iterable[Example]) -> Dialogues:
    """Return the dialogues about a database, by number, with their turns in order."""
    dialogues: dict[int, list[Example]] = {}
    for example in examples:
        if example.schema is not None:  # dialogues about no database, as CANARD's, are not SParC's
            dialogues.setdefault(example.interaction, []).append(example)
    return dialogues


def bare_turns(dialogues: Dialogues) -> list[Example]:
    """Return the later turns that have SQL and no rewrite."""
    every = (example for turns in dialogues.values() for example in turns)
    return [e for e in every if e.history and e.query and not e.rewrite]


def best_understood(
    offers: Sequence[tuple[Example, str]], costs: Sequence[float], most: float
) -> dict[Example, str]:
    """Return for each turn the text under which its SQL is likeliest, if it is likely at all.

    Args:
        offers: Turns, each with a text that may stand for it.
        costs: Of each, what the gold SQL costs: its negative log-likelihood in nats.
        most: What it may cost.
    """
    best: dict[Example, tuple[float, str]] = {}
    for (example, text), cost in zip(offers, costs, strict=True):
        # A turn that stands alone is not to be rewritten for a trifle.
        rank = cost - (_COPY if text == example.utterance else 0.0)
        if cost <= most and (example not in best or rank < best[example][0]):
            best[example] = rank, text
    return {example: text for example, (_, text) in best.items()}


def write_dialogues(dialogues: Dialogues, chosen: Mapping[Example, str], file: Path) -> None:
    """Write `whole_dialogues` in SParC's layout; the file is whole or not there.

    Turns have their own rewrites or those that were chosen; first turns are their own.
    """
    written = [
        {
            "database_id": turns[0].about.db_id,
            "interaction": [
                {
                    "utterance": e.utterance,
                    "query": e.query,
                    "rewrite": e.rewrite or chosen.get(e) or (None if e.history else e.utterance),
                }
                for e in turns
            ],
        }
        for turns in dialogues.values()
    ]
    with replacing(file) as stream:
        stream.write(json.dumps(written, indent=1) + "\n")
