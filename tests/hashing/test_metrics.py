"""mAP, precision and recall equal what ten lines of brute force say, ties included."""

import time
from itertools import pairwise, permutations
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.retrieval import RetrievalMAP

from hashing.metrics import (
    average_precision,
    bit_balance,
    chance_precision,
    count_distances,
    distinct_codes,
    mean_average_precision,
    precision_recall_by_radius,
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


def brute_force(relevant: list[bool]) -> float:
    """AP of one order: the mean of the precisions at relevant ranks."""
    hits, total = 0, 0.0
    for rank, is_relevant in enumerate(relevant, start=1):
        hits += is_relevant
        total += is_relevant * hits / rank
    return total / sum(relevant)


def orders(distances: list[int], relevant: list[bool]) -> list[list[bool]]:
    """Every order of the items that is sorted by distance."""
    sorted_orders = []
    for order in permutations(range(len(distances))):
        if all(distances[a] <= distances[b] for a, b in pairwise(order)):
            sorted_orders.append([relevant[i] for i in order])
    return sorted_orders


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_average_precision_is_the_mean_over_all_orders_of_tied_items(seed: int) -> None:
    queries, query_labels, database, labels = draw(seed, 2, 6, bits=2)
    counts = count_distances(queries, query_labels, database, labels)
    values = average_precision(counts)
    for place, query in enumerate(counts.queries):
        distances = (queries[query] != database).sum(1).tolist()
        relevant = relevance(query_labels[query][None], labels)[0].tolist()
        every = orders(distances, relevant)
        expected = sum(brute_force(order) for order in every) / len(every)
        assert float(values[place]) == pytest.approx(expected, abs=1e-12)


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


def test_queries_without_a_relevant_item_are_left_out() -> None:
    queries, _, database, _ = draw(1, 2, 4, bits=8)
    query_labels, labels = torch.tensor([[1, 0], [0, 1]]), torch.tensor([[1, 0]] * 4)
    counts = count_distances(queries, query_labels, database, labels)
    assert counts.queries.tolist() == [0]
    assert float(average_precision(counts)) == 1.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"queries": lambda q: (q + 1) // 2}, "queries: codes must be -1 or 1"),
        ({"database": lambda q: (q + 1) // 2}, "database: codes must be -1 or 1"),
        ({"database": lambda q: q > 0}, "database: codes must be -1 or 1"),
        ({"queries": lambda q: q * torch.tensor(float("nan"))}, "queries: codes must be -1 or 1"),
        ({"queries": lambda q: q * 0.7}, "queries: codes must be -1 or 1"),
        ({"queries": lambda q: q[:, :8]}, "codes of the queries have 8 columns, .* database 16"),
        ({"queries": lambda q: q[0]}, r"queries: codes of shape \(16,\)"),
        ({"query_labels": lambda y: y.argmax(1)}, r"labels of shape \(4,\): .*one_hot"),
        ({"database_labels": lambda y: y.argmax(1)[:, None]}, "database: labels must be 0 or 1"),
        ({"database_labels": lambda y: 2 * y - 1}, "database: labels must be 0 or 1"),
        ({"query_labels": lambda y: y * 0.5}, "queries: labels must be 0 or 1"),
        ({"query_labels": lambda y: y[:1]}, "queries: 4 codes and 1 rows of labels"),
        ({"database_labels": lambda y: y[:-1]}, "database: 9 codes and 8 rows of labels"),
        ({"query_labels": lambda y: y[:, :2]}, "labels of the queries have 2 columns, .* 3"),
    ],
)
def test_what_would_give_a_wrong_figure_is_refused(changes: dict[str, Any], words: str) -> None:
    names = ("queries", "query_labels", "database", "database_labels")
    given: dict[str, Any] = dict(zip(names, draw(4, 4, 9, bits=16), strict=True))
    given["database_labels"][0] = torch.tensor([0, 0, 1])
    assert mean_average_precision(**given) > 0
    for name, change in changes.items():
        given[name] = change(given[name])
    with pytest.raises(ValueError, match=words):
        mean_average_precision(**given)


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


def test_chance_is_the_mean_over_all_orders_of_all_items() -> None:
    queries, query_labels, database, labels = draw(3, 2, 6, bits=2)
    counts = count_distances(queries, query_labels, database, labels)
    for value, query in zip(chance_precision(counts), counts.queries, strict=True):
        relevant = relevance(query_labels[query : query + 1], labels)[0].tolist()
        every = [brute_force(order) for order in orders([0] * 6, relevant)]
        assert float(value) == pytest.approx(sum(every) / len(every))


def test_codes_are_counted_and_their_bits_weighed() -> None:
    codes = torch.tensor([[1, 1, -1, 1], [1, 1, -1, -1], [1, 1, -1, 1], [1, -1, -1, -1]])
    assert distinct_codes(codes) == 3
    assert bit_balance(codes) == (0 + 0.25 + 0 + 0.5) / 4
