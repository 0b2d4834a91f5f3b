"""What makes a rewritten question good when nobody wrote the right one (DELTA, arXiv 2106.02282).

The parts of the reward are pure functions of texts and schemas, and are logged apart: words that
name something in the database, co-reference pronouns, fluency, a parser's verdict. The fifth part,
how well the dual model gets back what it was made from, is in `text2sql.dual_learning`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from text2sql.dialogue import Example
from text2sql.linking import cells
from text2sql.schema import Schema
from text2sql.words import singular, words_of

# Words that stand for something said before. `that` and `which` are left out: in complete questions
# they begin relative clauses.
PRONOUNS = frozenset(
    """it its they them their theirs these those this he him his she her hers one ones
    itself themselves former latter above aforementioned""".split()  # noqa: SIM905
)
# Two of them mostly say something else: `more than one`, `above 30`.
_COUNTED_BY = frozenset("than least most only exactly just".split())  # noqa: SIM905
_BEFORE_ABOVE = frozenset("the from".split())  # noqa: SIM905
# Words of column names that say nothing: `of` in `number of heads`.
_EMPTY = frozenset(
    """a an and are as at by for from in is of on or per the to with""".split()  # noqa: SIM905
)
_VALUE_WORDS = 6  # longer cells are texts, which nobody quotes whole

# --- words of the database -----------------------------------------------------------------------


@cache
def schema_words(schema: Schema) -> frozenset[str]:
    """The words in names of tables and columns, in the singular."""
    names = [table.words for table in schema.tables] + [c.words for c in schema.columns[1:]]
    return _singulars(word for name in names for word in words_of(name)) - _EMPTY


def _singulars(words: Iterable[str]) -> frozenset[str]:
    return frozenset(singular(word) or word for word in words if word.isalnum())


@cache
def cell_values(database: Path) -> Mapping[str, frozenset[tuple[str, ...]]]:
    """Texts in the cells of a database, as words, by their first word.

    Those of `cells` that have up to 6 words.

    Raises:
        ValueError: There is no such database.
    """
    found: dict[str, set[tuple[str, ...]]] = {}
    for _, texts in cells(database, Schema.from_sqlite(database)):
        for words in map(tuple, map(words_of, texts)):
            if 0 < len(words) <= _VALUE_WORDS and any(word.isalpha() for word in words):
                found.setdefault(words[0], set()).add(words)
    return {first: frozenset(values) for first, values in found.items()}


def database_words(text: str, schema: Schema, database: Path | None = None) -> set[str]:
    """The different words of a text, in the singular, that name a table, a column or a cell."""
    words = words_of(text)
    found = {*_singulars(words) & schema_words(schema)}
    values = cell_values(database) if database is not None else {}
    for start, word in enumerate(words):
        for value in values.get(word, ()):
            if tuple(words[start : start + len(value)]) == value:
                found |= _singulars(value)
    return found


def database_share(text: str, schema: Schema, database: Path | None = None) -> float:
    """Different database words of a text, as a share of its words, in [0, 1].

    A word counts once, however often it is said, and every other word makes the share smaller.
    """
    count = sum(word.isalnum() for word in words_of(text))
    return len(database_words(text, schema, database)) / count if count else 0.0


def naturalness(share: float, natural: float) -> float:
    """How near a share of database words is to that of questions people ask, at most 1.

    Rises to 1 at the natural share, above 0, and falls at the same rate beyond it: the paper's
    reward for each such word would be farmed by listing columns, whose share is 1 [D].
    """
    return 1 - abs(share - natural) / natural


def pronouns(text: str) -> int:
    """Number of words that refer to something said before."""
    words = words_of(text)
    return sum(
        word in PRONOUNS
        and not (word == "one" and before in _COUNTED_BY)
        and (word != "above" or before in _BEFORE_ABOVE)
        for before, word in zip(["", *words], words, strict=False)
    )


# --- fluency -------------------------------------------------------------------------------------


class TrigramModel:
    """A language model that counts: interpolated trigrams of words of complete questions [D].

    P(w | u v) is the sum of the relative frequencies after two, one and no words, with weights 0.6,
    0.25 and 0.1, and 0.05 over a vocabulary of which unseen words are one. Small, exact, and
    nothing is downloaded.
    """

    WEIGHTS = (0.1, 0.25, 0.6)
    REST = 0.05

    def __init__(self, texts: Iterable[str]) -> None:
        self._counts: dict[tuple[str, ...], int] = Counter()
        self._after: dict[tuple[str, ...], int] = Counter()
        for text in texts:
            words = ["<s>", "<s>", *words_of(text), "</s>"]
            for at in range(2, len(words)):
                for order in range(3):
                    before = tuple(words[at - order : at])
                    self._counts[(*before, words[at])] += 1
                    self._after[before] += 1
        if not self._counts:
            raise ValueError("fluency: there is no text to fit the trigrams on")
        self._vocabulary = sum(len(gram) == 1 for gram in self._counts) + 1

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """Mean log-probability of each text, in nats per word, its end included."""
        return [self._mean(text) for text in texts]

    def _mean(self, text: str) -> float:
        words = ["<s>", "<s>", *words_of(text), "</s>"]
        total = 0.0
        for at in range(2, len(words)):
            chance = self.REST / self._vocabulary
            for order, weight in enumerate(self.WEIGHTS):
                before = tuple(words[at - order : at])
                if seen := self._after.get(before, 0):
                    chance += weight * self._counts.get((*before, words[at]), 0) / seen
            total += math.log(chance)
        return total / (len(words) - 2)


# --- the reward ----------------------------------------------------------------------------------

# Says how good a rewritten question is for a parser, in [0, 1]: whether it gives valid SQL, or the
# right one. Questions come together, so that the parser can read them in one batch.
Verify = Callable[[Sequence[Example], Sequence[str]], Sequence[float]]


@dataclass(frozen=True)
class RewardWeights:
    """How much each part counts; a part of weight 0 is not computed.

    Args:
        database: Of `naturalness` of the share of database words; falls for the simplifier.
        pronoun: Taken off for each pronoun of a rewrite; given once to a simplified text with one.
        fluency: Of the mean log-probability by the trigrams.
        parser: Of the verdict on the rewrite.
        reconstruction: Of the dual model's mean log-probability of what the text was made from.
    """

    database: float = 1.0
    pronoun: float = 0.1
    fluency: float = 0.1
    parser: float = 1.0
    reconstruction: float = 0.5

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0:
                raise ValueError(f"{name}={value}: must be at least 0")


@dataclass
class Rewards:
    """Scores texts of both models; the parts come back apart, weighted.

    Args:
        weights: See `RewardWeights`.
        natural_share: Share of database words in complete questions, see `natural_share`.
        fluency: Trigrams of complete questions; None to leave them out.
        verify: A parser's verdict; None to leave it out.
        values: Whether cell values count as database words.
    """

    weights: RewardWeights = field(default_factory=RewardWeights)
    natural_share: float = 0.3
    fluency: TrigramModel | None = None
    verify: Verify | None = None
    values: bool = True

    def of_rewrites(
        self, examples: Sequence[Example], texts: Sequence[str]
    ) -> dict[str, list[float]]:
        """Score complete questions, each for its example."""
        natural = self.natural_share
        parts = self._parts(
            examples,
            texts,
            database=lambda share: max(-1.0, naturalness(share, natural)),
            pronoun=lambda count: -float(count),
        )
        if (weight := self.weights.parser) and self.verify is not None:
            parts["parser"] = [weight * verdict for verdict in self.verify(examples, texts)]
        return parts

    def of_simplified(
        self, examples: Sequence[Example], texts: Sequence[str]
    ) -> dict[str, list[float]]:
        """Score short questions, each for its example: fewer database words, one pronoun pays."""
        return self._parts(
            examples,
            texts,
            database=lambda share: -min(1.0, share / self.natural_share),
            pronoun=lambda count: min(1, count),
        )

    def _parts(
        self,
        examples: Sequence[Example],
        texts: Sequence[str],
        database: Callable[[float], float],
        pronoun: Callable[[int], float],
    ) -> dict[str, list[float]]:
        """Weighted parts, by what a share of database words and a number of pronouns are worth."""
        w, parts = self.weights, dict[str, list[float]]()
        if w.fluency and self.fluency is not None:
            parts["fluency"] = [w.fluency * mean for mean in self.fluency(texts)]
        if w.database:
            parts["database"] = []
            for example, text in zip(examples, texts, strict=True):
                worth = 0.0
                if example.schema is not None:
                    file = example.database if self.values else None
                    worth = w.database * database(database_share(text, example.schema, file))
                parts["database"].append(worth)
        if w.pronoun:
            parts["pronoun"] = [w.pronoun * pronoun(pronouns(text)) for text in texts]
        return parts


def complete_questions(examples: Collection[Example]) -> list[str]:
    """The questions among examples that stand alone: first turns, and gold rewrites."""
    return [e.rewrite or e.utterance for e in examples if e.rewrite or not e.turn]


def natural_share(examples: Collection[Example], values: bool = True) -> float:
    """Mean share of database words in the complete questions among examples.

    Raises:
        ValueError: No complete question is about a database, or none names anything in it.
    """
    shares = [
        database_share(e.rewrite or e.utterance, e.schema, e.database if values else None)
        for e in examples
        if e.schema is not None and (e.rewrite or not e.turn)
    ]
    if not sum(shares):
        raise ValueError("rewards: no question of the training data names a table or a column")
    return sum(shares) / len(shares)
