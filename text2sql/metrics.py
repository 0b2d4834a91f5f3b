"""Question and interaction match as torchmetrics."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


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
