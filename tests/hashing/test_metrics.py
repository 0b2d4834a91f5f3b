"""mAP, precision and recall equal what ten lines of brute force say, ties included."""

import time
from itertools import pairwise, permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.retrieval import RetrievalMAP

from hashing.metrics import (
    Forgetting,
    HammingMAP,
    HammingPrecisionRecall,
    TopPrecision,
    average_precision,
    count_distances,
    mean_average_precision,
    precision_recall_by_radius,
    top_precision,
)
from hashing.networks import binarise
from hashing.similarity import label_similarity, relevance


def draw(seed: int, queries: int, items: int, bits: int, classes: int = 3) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    labels = [torch.randint(0, 2, (n, classes), generator=g) for n in (queries, items)]
    for rows in labels:
        rows[:, 0] |= rows.sum(1) == 0
    codes = [binarise(torch.randn(n, bits, generator=g)) for n in (queries, items)]
    return [codes[0], labels[0], codes[1], labels[1]]


def brute_force(relevant: list[bool], top: int | None) -> float:
    """AP of one order: the sum of precisions at relevant ranks over min(top, all relevant)."""
    hits, total = 0, 0.0
    for rank, is_relevant in enumerate(relevant[:top], start=1):
        hits += is_relevant
        total += is_relevant * hits / rank
    return total / min(sum(relevant), top or len(relevant))


def orders(distances: list[int], relevant: list[bool]) -> list[list[bool]]:
    """Every order of the items that is sorted by distance."""
    sorted_orders = []
    for order in permutations(range(len(distances))):
        if all(distances[a] <= distances[b] for a, b in pairwise(order)):
            sorted_orders.append([relevant[i] for i in order])
    return sorted_orders


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([None, 1, 2, 3, 6]))
def test_average_precision_is_the_mean_over_all_orders_of_tied_items(
    seed: int, top: int | None
) -> None:
    queries, query_labels, database, labels = draw(seed, 2, 6, bits=2)
    counts = count_distances(queries, query_labels, database, labels)
    values = average_precision(counts, top)
    precision = top_precision(counts, [top or 6])
    firsts = []
    for place, query in enumerate(counts.queries):
        distances = (queries[query] != database).sum(1).tolist()
        relevant = relevance(query_labels[query][None], labels)[0].tolist()
        every = orders(distances, relevant)
        expected = sum(brute_force(order, top) for order in every) / len(every)
        assert float(values[place]) == pytest.approx(expected, abs=1e-12)
        firsts.append(sum(sum(order[: top or 6]) for order in every) / len(every) / (top or 6))
    if firsts:
        assert float(precision[0]) == pytest.approx(sum(firsts) / len(firsts), abs=1e-12)


def test_without_ties_it_is_torchmetrics_map() -> None:
    """On score bits - distance + 1: torchmetrics leaves out items whose score is not positive."""
    database = 1 - 2 * torch.tril(torch.ones(33, 32), -1)  # distances 0 to 32 from the query
    query, labels = torch.ones(1, 32), torch.eye(2)[torch.randint(0, 2, (33,))]
    distances = (query != database).sum(1)
    assert distances.tolist() == list(range(33))
    theirs = RetrievalMAP()(
        33.0 - distances, labels[:, 0] > 0, indexes=torch.zeros(33, dtype=torch.long)
    )
    ours = mean_average_precision(query, torch.tensor([[1, 0]]), database, labels)
    assert ours == pytest.approx(float(theirs), abs=1e-6)


def test_precision_and_recall_by_radius() -> None:
    queries, query_labels, database, labels = draw(3, 20, 50, bits=8)
    counts = count_distances(queries, query_labels, database, labels)
    precision, recall = precision_recall_by_radius(counts)
    for radius in range(9):
        near = (queries[:, None] != database).sum(2)[counts.queries] <= radius
        relevant = relevance(query_labels, labels)[counts.queries]
        hits, found = (near & relevant).sum(1), near.sum(1)
        share = (hits / found)[found > 0]
        assert float(precision[radius]) == pytest.approx(
            float(share.mean()) if len(share) else 1.0, abs=1e-6
        )
        assert float(recall[radius]) == pytest.approx(float((hits / relevant.sum(1)).mean()))


def test_metrics_add_up_over_batches_of_queries() -> None:
    queries, query_labels, database, labels = draw(5, 40, 60, bits=16)
    metrics: tuple[Metric, ...] = (
        HammingMAP(),
        HammingMAP(5),
        HammingPrecisionRecall(16),
        TopPrecision([1, 10]),
    )
    for part in (slice(0, 7), slice(7, 40)):
        for metric in metrics:
            metric.update(queries[part], query_labels[part], database, labels)
    counts = count_distances(queries, query_labels, database, labels)
    expected = (
        average_precision(counts).mean(),
        average_precision(counts, 5).mean(),
        torch.stack(precision_recall_by_radius(counts)),
        top_precision(counts, [1, 10]),
    )
    for whole, value in zip(metrics, expected, strict=True):
        torch.testing.assert_close(whole.compute(), value)


def test_queries_without_a_relevant_item_are_left_out() -> None:
    queries, _, database, _ = draw(1, 2, 4, bits=8)
    query_labels, labels = torch.tensor([[1, 0], [0, 1]]), torch.tensor([[1, 0]] * 4)
    counts = count_distances(queries, query_labels, database, labels)
    assert counts.queries.tolist() == [0]
    assert float(average_precision(counts)) == 1.0


def test_forgetting_is_the_fall_from_the_best() -> None:
    metric = Forgetting()
    metric.update(0.5)
    assert float(metric.compute()) == 0
    for value in (0.7, 0.6):
        metric.update(value)
    assert float(metric.compute()) == pytest.approx(0.1)


def test_label_similarity_is_the_cosine() -> None:
    a, b = torch.tensor([[1, 1, 0]]), torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 1]])
    torch.testing.assert_close(label_similarity(a, b), torch.tensor([[1.0, 0.5**0.5, 0.0]]))
    assert relevance(a, b).tolist() == [[True, True, False]]


def test_mirflickr_size_takes_seconds() -> None:
    """20,015 items, 2,000 queries, 64 bits, both directions."""
    queries, query_labels, database, labels = draw(2, 2000, 20_015, bits=64, classes=24)
    began = time.perf_counter()
    for _ in range(2):
        mean_average_precision(queries, query_labels, database, labels)
    assert time.perf_counter() - began < 20  # 5 on an idle machine, see docs/LOG.md
