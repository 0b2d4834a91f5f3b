"""Rewards: complete questions earn more than short ones, and listing columns earns the least."""

import math
from pathlib import Path

import pytest

from tests.text2sql.conftest import make
from tests.text2sql.rewriters import turns
from text2sql.rewards import (
    Rewards,
    RewardWeights,
    TrigramModel,
    complete_questions,
    database_share,
    database_words,
    natural_share,
    naturalness,
    pronouns,
)
from text2sql.schema import Schema

LISTING = "name capacity stadium singer country age concert title year"


def rewards(schema: Schema, database: Path) -> Rewards:
    known = turns(schema, database)
    return Rewards(
        natural_share=natural_share(known), fluency=TrigramModel(complete_questions(known))
    )


def totals(parts: dict[str, list[float]]) -> list[float]:
    return [sum(values) for values in zip(*parts.values(), strict=True)]


def test_database_words_are_names_and_cells_each_counted_once(
    schema: Schema, database: Path, tmp_path: Path
) -> None:
    text = "Which singers, which singers are from France?"
    assert database_words(text, schema) == {"singer"}
    assert database_words(text, schema, database) == {"singer", "france"}
    assert database_share(text, schema, database) == pytest.approx(2 / 7)
    assert database_share("", schema) == 0
    # A word that is only a part of a cell is none, and no mark is a word.
    assert database_words("In the park of Peru", schema, database) == {"park", "peru"}
    ddl = "CREATE TABLE t (n TEXT); INSERT INTO t VALUES ('U.S.')"
    marks = make(tmp_path / "marks.sqlite", ddl)
    assert database_share("u.s.", Schema.from_sqlite(marks), marks) == 1


def test_the_reward_for_database_words_peaks_at_what_is_natural() -> None:
    assert naturalness(0.3, 0.3) == 1
    assert naturalness(0.1, 0.3) < naturalness(0.2, 0.3) < 1
    assert naturalness(1.0, 0.3) < naturalness(0.0, 0.3)


def test_pronouns_are_counted_and_relative_ones_are_none() -> None:
    assert pronouns("What are THEIR names, and its capacity?") == 2
    assert pronouns("Singers that are from France, which is large") == 0
    assert pronouns("Which one is above 30? Sort the above, and the one from above.") == 4
    assert pronouns("Singers above 30 with more than one concert, at least one, or only one") == 0


def test_listing_columns_earns_less_than_the_gold_rewrite(schema: Schema, database: Path) -> None:
    """The paper's reward of 0.1 for each database word would earn the listing the most."""
    given = rewards(schema, database)
    later = [example for example in turns(schema, database) if example.history]
    gold = totals(given.of_rewrites(later, [str(example.rewrite) for example in later]))
    listed = totals(given.of_rewrites(later, [LISTING] * len(later)))
    both = [f"{example.utterance} {LISTING}" for example in later]
    padded = totals(given.of_rewrites(later, both))
    naive = [len(database_words(t, schema)) for t in (str(later[0].rewrite), LISTING)]
    assert naive[1] > naive[0]
    for right, wrong, other in zip(gold, listed, padded, strict=True):
        assert right > wrong + 0.5
        assert right > other + 0.1


def test_gold_rewrites_earn_more_than_utterances_and_the_simplifier_is_paid_the_reverse(
    schema: Schema, database: Path
) -> None:
    given = rewards(schema, database)
    later = [example for example in turns(schema, database) if example.history]
    gold, short = ([str(e.rewrite) for e in later], [e.utterance for e in later])
    there = [sum(totals(given.of_rewrites(later, texts))) for texts in (gold, short)]
    parts = [given.of_simplified(later, texts) for texts in (gold, short)]
    back = [sum(sum(values) for name, values in p.items() if name != "fluency") for p in parts]
    assert there[0] > there[1]
    assert back[0] < back[1]


def test_a_second_pronoun_earns_the_simplifier_nothing(schema: Schema, database: Path) -> None:
    given, example = rewards(schema, database), turns(schema, database)[0]
    one, many = given.of_simplified([example] * 2, ["What is it?", "It, its, they?"])["pronoun"]
    assert one == many == 0.1


def test_each_part_comes_apart_and_a_weight_of_zero_leaves_it_out(
    schema: Schema, database: Path
) -> None:
    example = turns(schema, database)[0]
    seen: list[str] = []

    def verify(examples: object, texts: object) -> list[float]:
        seen.extend(texts)
        return [0.5 for _ in seen]

    given = rewards(schema, database)
    given.verify = verify
    parts = given.of_rewrites([example], ["Which singers are from France?"])
    assert set(parts) == {"database", "pronoun", "fluency", "parser"}
    assert parts["parser"] == [0.5]
    assert seen == ["Which singers are from France?"]
    given.weights = RewardWeights(database=0, pronoun=0, fluency=0, parser=0)
    assert given.of_rewrites([example], ["It"]) == {}
    with pytest.raises(ValueError, match="pronoun=-1: must be at least 0"):
        RewardWeights(pronoun=-1)


def test_a_conversation_about_no_database_has_no_database_reward() -> None:
    example = turns()[0]
    parts = Rewards().of_rewrites([example], ["Which singers?"])
    assert parts["database"] == [0.0]
    with pytest.raises(ValueError, match="no question of the training data names"):
        natural_share([example])


def test_trigrams_are_a_distribution_and_prefer_what_they_have_seen() -> None:
    known = ["Which singers are from France?", "Which singers are old?"]
    model = TrigramModel(known)
    words = ["which", "singers", "are", "from", "france", "?", "old", "</s>", "unseen"]
    for before in ((), ("which",), ("which", "singers"), ("never", "seen")):
        weight = 0.0
        for word in words:
            chance = model.REST / model._vocabulary
            for order, part in enumerate(model.WEIGHTS):
                gram = before[len(before) - order :] if order else ()
                if len(gram) == order and (seen := model._after.get(gram, 0)):
                    chance += part * model._counts.get((*gram, word), 0) / seen
            weight += chance
        assert weight <= 1 + 1e-9
    good, bad, empty = model(["Which singers are old?", "old are singers which?", ""])
    assert good > bad
    assert math.isfinite(empty)
    with pytest.raises(ValueError, match="no text to fit"):
        TrigramModel([])
