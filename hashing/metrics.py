"""How good a ranking by Hamming distance is: mAP, precision, recall, forgetting; ties are exact.

Distances of k bits take k + 1 values, so thousands of items tie. All figures here are expectations
over every order of tied items, in closed form (McSherry and Najork, ECIR 2008): they depend on the
codes alone, not on the order in which items are stored. Per query the number of items and of
relevant items at each distance is all they need, so nothing is ever sorted.

Relevant is what shares a label with the query. Queries without a relevant item in the database are
left out of every mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from hashing.similarity import relevance

CHUNK_PAIRS = 8_000_000  # (query, item) pairs counted at once: below 200 MB


@dataclass(frozen=True)
class DistanceCounts:
    """How many items, and how many relevant ones, lie at each Hamming distance from each query.

    Args:
        items: float64 (queries, bits + 1).
        relevant: float64 (queries, bits + 1).
        queries: int64, which of the queries these are: those that have a relevant item.
    """

    items: Tensor
    relevant: Tensor
    queries: Tensor

    def of(self, chosen: Tensor) -> "DistanceCounts":
        """Those of some of these queries, by a mask over them."""
        return DistanceCounts(self.items[chosen], self.relevant[chosen], self.queries[chosen])


def count_distances(
    queries: Tensor, query_labels: Tensor, database: Tensor, database_labels: Tensor
) -> DistanceCounts:
    """Count items by their distance from each query, in chunks of queries.

    Args:
        queries: Codes of -1 and 1, (q, bits), any number type.
        query_labels: Multi-hot, (q, classes).
        database: Codes of -1 and 1, (n, bits).
        database_labels: Multi-hot, (n, classes).

    Returns:
        The counts, for the queries that have a relevant item.
    """
    bits, size = queries.shape[1], len(database)
    bins = 2 * (bits + 1)
    columns = database.float().T
    counts = torch.zeros(len(queries), bins, dtype=torch.float64)
    step = max(1, CHUNK_PAIRS // max(1, size))
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        # An inner product of codes is bits - 2 * distance: small whole numbers, exact in float32.
        key = (bits - queries[part].float() @ columns).to(torch.int32)  # 2 * distance
        key += relevance(query_labels[part], database_labels)
        key += torch.arange(len(key), dtype=torch.int32, device=key.device)[:, None] * bins
        counts[part] = torch.bincount(key.flatten(), minlength=len(key) * bins).view(-1, bins).cpu()
    pairs = counts.view(len(queries), bits + 1, 2)
    relevant = pairs[..., 1]
    kept = (relevant.sum(1) > 0).nonzero().flatten()
    return DistanceCounts(pairs.sum(2)[kept], relevant[kept], kept)


def average_precision(counts: DistanceCounts, top: int | None = None) -> Tensor:
    """Expected average precision of each query.

    The precision at the rank of each relevant item, summed, over the number of relevant items in
    the database; of the first `top` ranks only, over min(top, that number).

    Args:
        counts: Of `count_distances`.
        top: k of mAP@k, at least 1; None for the whole ranking.

    Returns:
        float64 (queries,).
    """
    n, r = counts.items, counts.relevant
    before = n.cumsum(1) - n  # items that are nearer
    hits = r.cumsum(1) - r
    ranks = n if top is None else (top - before).clamp(min=0).minimum(n)  # of a group, up to `top`
    most = int(n.sum(1).max()) if len(n) else 0
    reciprocals = torch.arange(1, most + 1, dtype=torch.float64).reciprocal()
    harmonic = torch.cat([torch.zeros(1, dtype=torch.float64), reciprocals.cumsum(0)])
    # Rank before + i holds a relevant item with probability r/n; given that, hits + 1 +
    # (i - 1)(r - 1)/(n - 1) relevant ones are expected up to it. Summed over i = 1..ranks:
    slope = torch.where(n > 1, (r - 1) / (n - 1).clamp(min=1), 0.0)
    spread = harmonic[(before + ranks).long()] - harmonic[before.long()]
    precision = (hits + 1 - slope * (before + 1)) * spread + slope * ranks
    total = (r / n.clamp(min=1) * precision).sum(1)
    found = r.sum(1)
    return total / (found if top is None else found.clamp(max=top))


def precision_recall_by_radius(counts: DistanceCounts) -> tuple[Tensor, Tensor]:
    """Precision and recall of all items within each Hamming radius.

    Args:
        counts: Of `count_distances`.

    Returns:
        Precision, the mean over the queries that have any item within the radius (1 where none
        has), and recall, the mean over all; each float64 (bits + 1,).
    """
    items, hits = counts.items.cumsum(1), counts.relevant.cumsum(1)
    any_item = items > 0
    precision = (hits / items.clamp(min=1)).sum(0) / any_item.sum(0).clamp(min=1)
    precision = torch.where(any_item.any(0), precision, 1.0)
    return precision, (hits / hits[:, -1:]).mean(0)


def top_precision(counts: DistanceCounts, tops: Sequence[int]) -> Tensor:
    """Expected share of relevant items among the first N, mean over the queries.

    Args:
        counts: Of `count_distances`.
        tops: The Ns; one above the size of the database counts missing items as not relevant.

    Returns:
        float64 (len(tops),).
    """
    before = counts.items.cumsum(1) - counts.items
    share = counts.relevant / counts.items.clamp(min=1)
    return torch.stack(
        [
            (share * (top - before).clamp(min=0).minimum(counts.items)).sum(1).mean() / top
            for top in tops
        ]
    )


def mean_average_precision(
    queries: Tensor,
    query_labels: Tensor,
    database: Tensor,
    database_labels: Tensor,
    top: int | None = None,
) -> float:
    """Mean of `average_precision` over the queries; NaN if none has a relevant item.

    Args:
        queries: Codes of -1 and 1, (q, bits).
        query_labels: Multi-hot, (q, classes).
        database: Codes of -1 and 1, (n, bits).
        database_labels: Multi-hot, (n, classes).
        top: See `average_precision`.
    """
    counts = count_distances(queries, query_labels, database, database_labels)
    return float(average_precision(counts, top).mean())


class _MeanOverQueries(Metric):
    """Sums a row of figures of each query, and divides by the number of queries."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    total: Tensor
    queries: Tensor

    def __init__(self, size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        zeros = torch.zeros(size, dtype=torch.float64)
        self.add_state("total", zeros, dist_reduce_fx="sum")
        self.add_state("queries", zeros.clone(), dist_reduce_fx="sum")

    def figures(self, counts: DistanceCounts) -> tuple[Tensor, Tensor]:
        """Sums of the figures over the queries, and over how many."""
        raise NotImplementedError

    def update(
        self, queries: Tensor, query_labels: Tensor, database: Tensor, database_labels: Tensor
    ) -> None:
        """Add some queries, ranked over the whole database; see `count_distances`."""
        total, number = self.figures(
            count_distances(queries, query_labels, database, database_labels)
        )
        self.total += total.to(self.total.device)
        self.queries += number.to(self.queries.device)

    def compute(self) -> Tensor:
        """The means, NaN where there was no query."""
        return (self.total / self.queries).squeeze()


class HammingMAP(_MeanOverQueries):
    """mAP by Hamming distance, see `average_precision`.

    Args:
        top: k of mAP@k; None for the whole ranking.
        kwargs: Of `torchmetrics.Metric`.
    """

    def __init__(self, top: int | None = None, **kwargs: Any) -> None:
        super().__init__(1, **kwargs)
        if top is not None and top < 1:
            raise ValueError(f"top={top}: must be at least 1, or None for the whole ranking")
        self.top = top

    def figures(self, counts: DistanceCounts) -> tuple[Tensor, Tensor]:
        """Sum of the average precisions, number of queries."""
        values = average_precision(counts, self.top)
        return values.sum()[None], torch.tensor([float(len(values))])


class HammingPrecisionRecall(_MeanOverQueries):
    """Precision and recall within each Hamming radius, see `precision_recall_by_radius`.

    Args:
        bits: Length of a code.
        kwargs: Of `torchmetrics.Metric`.
    """

    def __init__(self, bits: int, **kwargs: Any) -> None:
        super().__init__(2 * (bits + 1), **kwargs)

    def figures(self, counts: DistanceCounts) -> tuple[Tensor, Tensor]:
        """Sums of precisions, then of recalls, and numbers of queries."""
        items, hits = counts.items.cumsum(1), counts.relevant.cumsum(1)
        sums = ((hits / items.clamp(min=1)).sum(0), (hits / hits[:, -1:]).sum(0))
        everyone = torch.full_like(sums[1], float(len(items)))
        return torch.cat(sums), torch.cat([(items > 0).sum(0).double(), everyone])

    def compute(self) -> Tensor:
        """(2, bits + 1): precision, 1 at radii within which no query has any item, and recall."""
        means = self.total / self.queries
        return torch.where(self.queries > 0, means, 1.0).view(2, -1)


class TopPrecision(_MeanOverQueries):
    """Precision among the first N, see `top_precision`.

    Args:
        tops: The Ns.
        kwargs: Of `torchmetrics.Metric`.
    """

    def __init__(self, tops: Sequence[int], **kwargs: Any) -> None:
        super().__init__(len(tops), **kwargs)
        self.tops = tuple(tops)

    def figures(self, counts: DistanceCounts) -> tuple[Tensor, Tensor]:
        """Sums of the precisions, number of queries for each N."""
        number = torch.full((len(self.tops),), float(len(counts.items)), dtype=torch.float64)
        if not len(counts.items):
            return torch.zeros_like(number), number
        return top_precision(counts, self.tops) * number, number


class Forgetting(Metric):
    """By how much a figure of the old classes lies below its best so far; below 0 it rose.

    `update` takes the figure after each session, in order.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = True
    best: Tensor
    last: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("best", torch.tensor(-torch.inf), dist_reduce_fx="max")
        self.add_state("last", torch.tensor(torch.nan), dist_reduce_fx="mean")

    def update(self, value: float | Tensor) -> None:
        """Add the figure after one more session."""
        if not torch.isnan(self.last):
            self.best = self.best.maximum(self.last)
        self.last = torch.as_tensor(value, dtype=self.last.dtype)

    def compute(self) -> Tensor:
        """Best figure before the last session, minus the last one; 0 after a single session."""
        return self.best - self.last if torch.isfinite(self.best) else torch.zeros_like(self.last)
