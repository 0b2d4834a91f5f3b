"""What was reached is said of the queries that can find something, and of no others."""

import math

import torch

from hashing.report import Retrieval, lost


def test_original_queries_that_find_nothing_leave_their_figures_out() -> None:
    """The one original query is of a class that no item has: nothing is said of such queries."""
    codes = {m: torch.ones(4, 8, dtype=torch.int8) for m in ("image", "text")}
    labels = torch.tensor([[0, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]])
    groups = torch.tensor([0, 0, 1, 1])
    history: list[dict[str, float]] = []
    for session in (0, 1):
        asked = {m: values[:2] for m, values in codes.items()}
        retrieval = Retrieval(
            asked, torch.tensor([[1, 0, 0], [0, 0, 1]]), torch.tensor([0, 1]),
            codes, labels, groups, session,
        )  # fmt: skip
        figures = retrieval.maps() | retrieval.health()
        figures |= lost(history, figures)
        assert not any("original" in name or "forgetting" in name for name in figures)
        assert all(map(math.isfinite, figures.values()))
        history.append(figures)
    assert history[1]["map_new_i2t"] == history[1]["map_all_i2t"] > 0.5
