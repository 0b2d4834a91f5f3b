"""Question and interaction match as torchmetrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from text2sql.evaluation import Verdict


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
        """Add turns.

        Args:
            interactions: The number of each turn's interaction.
            verdicts: Whether each turn is right.
        """
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
    """Exact and execution match of several splits or readings.

    Args:
        names: Of these, such as `val/raw`.
    """

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
