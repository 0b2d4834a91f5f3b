"""How good a ranking by Hamming distance is: mAP, precision and recall; ties are exact.

Distances of k bits take k + 1 values, so thousands of items tie. All figures here are expectations
over every order of tied items, in closed form (McSherry and Najork, ECIR 2008): they depend on the
codes alone, not on the order in which items are stored. Per query the number of items and of
relevant items at each distance is all they need, so nothing is ever sorted.

Relevant is what shares a label with the query. Queries without a relevant item in the database are
left out of every mean.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

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

    Raises:
        ValueError: A code is not of -1 and 1, a label not 0 or 1, or their numbers do not fit.
    """
    for name, codes, labels in (
        ("queries", queries, query_labels),
        ("database", database, database_labels),
    ):
        _check(name, codes, labels)
    for name, one, other in (
        ("codes", queries, database),
        ("labels", query_labels, database_labels),
    ):
        if one.shape[1] != other.shape[1]:
            raise ValueError(
                f"{name} of the queries have {one.shape[1]} columns, those of the database "
                f"{other.shape[1]}: must be as many"
            )
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


def _check(name: str, codes: Tensor, labels: Tensor) -> None:
    if codes.ndim != 2 or labels.ndim != 2:
        raise ValueError(
            f"{name}: codes of shape {tuple(codes.shape)} and labels of shape "
            f"{tuple(labels.shape)}: must be (items, bits) and multi-hot (items, classes); class "
            "numbers become such rows by torch.nn.functional.one_hot"
        )
    if len(codes) != len(labels):
        raise ValueError(f"{name}: {len(codes)} codes and {len(labels)} rows of labels")
    if not ((codes == 1) | (codes == -1)).all():
        raise ValueError(
            f"{name}: codes must be -1 or 1; take the signs first (hashing.networks.binarise), "
            "codes of 0 and 1 become 2 * codes - 1"
        )
    if not ((labels == 0) | (labels == 1)).all():
        raise ValueError(
            f"{name}: labels must be 0 or 1 in each class's column; class numbers become such rows "
            "by torch.nn.functional.one_hot"
        )


def average_precision(counts: DistanceCounts) -> Tensor:
    """Expected average precision of each query, over the whole ranking.

    The precision at the rank of each relevant item, summed, over the number of relevant items in
    the database.

    Args:
        counts: Of `count_distances`.

    Returns:
        float64 (queries,).
    """
    n, r = counts.items, counts.relevant
    before = n.cumsum(1) - n  # items that are nearer
    hits = r.cumsum(1) - r
    most = int(n.sum(1).max()) if len(n) else 0
    reciprocals = torch.arange(1, most + 1, dtype=torch.float64).reciprocal()
    harmonic = torch.cat([torch.zeros(1, dtype=torch.float64), reciprocals.cumsum(0)])
    # Rank before + i holds a relevant item with probability r/n; given that, hits + 1 +
    # (i - 1)(r - 1)/(n - 1) relevant ones are expected up to it. Summed over i = 1..n:
    slope = torch.where(n > 1, (r - 1) / (n - 1).clamp(min=1), 0.0)
    spread = harmonic[(before + n).long()] - harmonic[before.long()]
    precision = (hits + 1 - slope * (before + 1)) * spread + slope * n
    return (r / n.clamp(min=1) * precision).sum(1) / r.sum(1)


def chance_precision(counts: DistanceCounts) -> Tensor:
    """Expected average precision of each query if the items came in a random order.

    Args:
        counts: Of `count_distances`.

    Returns:
        float64 (queries,).
    """
    tied = (counts.items.sum(1, keepdim=True), counts.relevant.sum(1, keepdim=True))
    return average_precision(DistanceCounts(*tied, counts.queries))


def distinct_codes(codes: Tensor) -> int:
    """How many different codes there are; far fewer than items means that codes say little.

    Args:
        codes: Of -1 and 1, (n, bits), any number type.
    """
    return len(torch.unique(codes, dim=0))


def bit_balance(codes: Tensor) -> float:
    """Share of the rarer sign, mean over the bits: 0.5 if all are even, 0 if all are constant.

    Args:
        codes: Of -1 and 1, (n, bits), any number type.
    """
    positive = (codes > 0).double().mean(0)
    return float(positive.minimum(1 - positive).mean())


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


def mean_average_precision(
    queries: Tensor, query_labels: Tensor, database: Tensor, database_labels: Tensor
) -> float:
    """Mean of `average_precision` over the queries; NaN if none has a relevant item.

    Args:
        queries: Codes of -1 and 1, (q, bits).
        query_labels: Multi-hot, (q, classes).
        database: Codes of -1 and 1, (n, bits).
        database_labels: Multi-hot, (n, classes).

    Raises:
        ValueError: See `count_distances`.
    """
    counts = count_distances(queries, query_labels, database, database_labels)
    return float(average_precision(counts).mean())
