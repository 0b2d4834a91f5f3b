"""Question and interaction match, and how near rewrites are to those of people, as torchmetrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import nan

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.text import BLEUScore
from torchmetrics.utilities import dim_zero_cat

from text2sql.evaluation import Verdict
from text2sql.rewards import database_share
from text2sql.schema import Schema
from text2sql.words import words_of


class InteractionMatch(Metric):
    """Exact and execution match: share of turns that are right, and of interactions (1906.02285).

    Of an interaction all turns must be right. Those that were not executed count in exact match.
    """

    full_state_update = False
    higher_is_better = True
    turns: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("turns", default=[], dist_reduce_fx="cat")

    def update(self, verdicts: Sequence[Verdict]) -> None:
        """Add turns; none too, because processes count together and one may have none."""
        rows = [(v.interaction, v.exact, nan if v.execution is None else v.execution)
                for v in verdicts]  # fmt: skip
        self.turns.append(torch.tensor(rows, dtype=torch.float, device=self.device).view(-1, 3))

    def compute(self) -> dict[str, Tensor]:
        """Return `exact`, `exact_interaction`, and both of `execution`; those without turns not."""
        shares: dict[str, Tensor] = {}
        interactions, *verdicts = dim_zero_cat(self.turns).unbind(1)
        for kind, right in zip(("exact", "execution"), verdicts, strict=True):
            counted = ~right.isnan()
            if counted.any():
                _, groups = interactions[counted].unique(return_inverse=True)
                whole = torch.ones(int(groups.max()) + 1, device=right.device)
                whole = whole.scatter_reduce(0, groups, right[counted], "amin")
                shares |= {kind: right[counted].mean(), f"{kind}_interaction": whole.mean()}
        return shares


# --- rewrites ------------------------------------------------------------------------------------


def longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        before = 0
        for place, against in enumerate(other, start=1):
            before, row[place] = (
                row[place],
                before + 1 if word == against else max(row[place], row[place - 1]),
            )
    return row[-1]


class RewriteScores(BLEUScore):
    """Scores rewrites against gold ones, over a whole set, case and spacing apart.

    * `bleu`: BLEU-4 of the set, one reference each;
    * `rouge_l`: mean F1 by the longest common subsequence of words;
    * `exact`: share of equal word sequences;
    * `restored_f1`: F1, over the set, of the words that the rewrite has and the utterance has not:
      what was brought back from the dialogue;
    * `schema_share`, `schema_share_gold`: mean share of words that name tables or columns, in the
      rewrites and in the gold ones, where a schema is known. A rewriter that farms such words
      shows in their difference.
    """

    rouge: Tensor
    equal: Tensor
    count: Tensor
    restored: Tensor
    shares: Tensor

    def __init__(self) -> None:
        super().__init__(n_gram=4)
        sizes = {"rouge": 1, "equal": 1, "count": 1, "restored": 3, "shares": 3}
        for name, size in sizes.items():
            self.add_state(name, default=torch.zeros(size), dist_reduce_fx="sum")

    def update(  # type: ignore[override]
        self,
        texts: Sequence[str],
        golds: Sequence[str],
        utterances: Sequence[str],
        schemas: Sequence[Schema | None],
    ) -> None:
        """Add rewrites, their gold ones, and the utterances and schemas that they are of."""
        rows = zip(texts, golds, utterances, schemas, strict=True)
        for text, gold, utterance, schema in rows:
            ours, theirs, before = words_of(text), words_of(gold), Counter(words_of(utterance))
            super().update([" ".join(ours)], [[" ".join(theirs)]])
            common = longest_common(ours, theirs)
            self.rouge += 2 * common / max(1, len(ours) + len(theirs))
            self.equal += ours == theirs
            self.count += 1
            new, wanted = Counter(ours) - before, Counter(theirs) - before
            counts = ((new & wanted).total(), new.total(), wanted.total())
            self.restored += torch.tensor(counts, device=self.device)
            if schema is not None:
                shares = (database_share(text, schema), database_share(gold, schema), 1.0)
                self.shares += torch.tensor(shares, device=self.device)

    def compute(self) -> dict[str, Tensor]:  # type: ignore[override]
        """Return the scores by name; nothing if there are no rewrites."""
        count = self.count[0]
        if count == 0:
            return {}
        right, new, wanted = self.restored
        scores = {
            "bleu": super().compute(),
            "rouge_l": self.rouge[0] / count,
            "exact": self.equal[0] / count,
            "restored_f1": 2 * right / (new + wanted).clamp_min(1),
        }
        if self.shares[2] > 0:
            scores["schema_share"] = self.shares[0] / self.shares[2]
            scores["schema_share_gold"] = self.shares[1] / self.shares[2]
        return {name: score.float() for name, score in scores.items()}
