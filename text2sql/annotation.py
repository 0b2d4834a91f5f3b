"""Rewrites for dialogues that have SQL and none: which text a parser understands best."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from text2sql.dialogue import Example

_COPY = 1.0  # nats that a rewrite must be better than the utterance as it is [D]
Dialogues = Mapping[int, Sequence[Example]]


def whole_dialogues(examples: Iterable[Example]) -> Dialogues:
    """Return the dialogues about a database, by number, with their turns in order.

    Raises:
        ValueError: Turns of a dialogue are missing.
    """
    dialogues: dict[int, list[Example]] = {}
    for example in examples:
        if example.schema is not None:  # dialogues about no database, as CANARD's, are not SParC's
            dialogues.setdefault(example.interaction, []).append(example)
    if any(e.turn != place for turns in dialogues.values() for place, e in enumerate(turns)):
        raise ValueError("datamodule.keep: task=annotate writes whole dialogues; give all")
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
    """Write dialogues in SParC's layout; the file is whole or not there.

    Args:
        dialogues: Of `whole_dialogues`.
        chosen: Rewrites of turns that have none; first turns are their own.
        file: In a folder that is there.
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
    unfinished = file.with_name(f".{file.name}.unfinished")
    unfinished.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(file)
