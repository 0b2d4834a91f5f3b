"""Question and interaction match, and how near rewrites are to those of people, as torchmetrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.text import BLEUScore
from torchmetrics.utilities import dim_zero_cat

from text2sql.evaluation import Verdict
from text2sql.rewards import database_share
from text2sql.schema import Schema
from text2sql.words import words_of


class InteractionMatch(Metric):
    """Share of turns that are right, and of interactions whose turns all are (arXiv 1906.02285)."""

    full_state_update = False
    higher_is_better = True
    interactions: list[Tensor]
    verdicts: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("interactions", default=[], dist_reduce_fx="cat")
        self.add_state("verdicts", default=[], dist_reduce_fx="cat")

    def update(self, interactions: Sequence[int], verdicts: Sequence[bool]) -> None:
        """Add turns: the number of each one's interaction, and whether it is right."""
        self.interactions.append(torch.tensor(interactions, device=self.device))
        self.verdicts.append(torch.tensor(verdicts, dtype=torch.float, device=self.device))

    def compute(self) -> dict[str, Tensor]:
        """Return `turns` and `interactions`, in [0, 1]."""
        right = dim_zero_cat(self.verdicts)
        _, groups = dim_zero_cat(self.interactions).unique(return_inverse=True)
        # Several processes may have got a turn twice, to be equally busy: a share stays what it is.
        whole = torch.ones(int(groups.max()) + 1, device=right.device)
        whole = whole.scatter_reduce(0, groups, right, "amin")
        return {"turns": right.mean(), "interactions": whole.mean()}


class Matches(nn.Module):
    """Exact and execution match of several splits or readings, such as `val/raw`."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.metrics = nn.ModuleDict(
            {f"{n} {kind}": InteractionMatch() for n in names for kind in ("exact", "execution")}
        )

    def add(self, name: str, verdicts: Sequence[Verdict]) -> None:
        """Add verdicts under a name; those without execution to exact match only."""
        for kind in ("exact", "execution"):
            counted = [v for v in verdicts if getattr(v, kind) is not None]
            if counted:
                self._metric(name, kind).update(
                    [v.interaction for v in counted], [bool(getattr(v, kind)) for v in counted]
                )

    def pop(self, name: str) -> dict[str, Tensor]:
        """Return `NAME/exact`, `NAME/exact_interaction` and, if any ran, both of execution.

        What was added is forgotten.
        """
        figures = {}
        for kind in ("exact", "execution"):
            metric = self._metric(name, kind)
            if metric.update_called:
                found = metric.compute()
                figures[f"{name}/{kind}"] = found["turns"]
                figures[f"{name}/{kind}_interaction"] = found["interactions"]
                metric.reset()
        return figures

    def _metric(self, name: str, kind: str) -> InteractionMatch:
        return cast(InteractionMatch, self.metrics[f"{name} {kind}"])


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
        """Return the scores by name; NaN-free: a set without rewrites scores 0."""
        count = self.count.clamp_min(1)[0]
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
