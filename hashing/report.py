"""What a lifelong training reached: mAP by session, what codes are worth, and its plots."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from hashing.metrics import (
    DistanceCounts,
    average_precision,
    bit_balance,
    chance_precision,
    count_distances,
    distinct_codes,
    precision_recall_by_radius,
)
from hashing.pairs import DIRECTIONS, MODALITIES
from hashing.plots import precision_recall_plot, sessions_plot
from ledger import Ledger, Quality, Saving

SUBSETS = ("all", "old", "new")
Figures = Mapping[str, float]
Counted = tuple[DistanceCounts, Tensor]
"""Distances of the queries that have a relevant item, and these queries' sessions."""


@dataclass(frozen=True)
class Retrieval:
    """Queries and the items that they search, of both modalities, on one device.

    Args:
        queries: Their codes, int8 (q, bits), by modality.
        query_labels: Multi-hot, (q, classes).
        query_groups: The session in which each arrives, (q,), on the CPU.
        codes: Of the items, int8 (n, bits), by modality.
        labels: Multi-hot, (n, classes).
        groups: The session in which each item arrives, (n,), on the CPU.
        session: The last one that has arrived.
    """

    queries: Mapping[str, Tensor]
    query_labels: Tensor
    query_groups: Tensor
    codes: Mapping[str, Tensor]
    labels: Tensor
    groups: Tensor
    session: int

    def counted(self, session: int) -> dict[str, Counted]:
        """Count, by direction, distances of queries to the items that have come by a session."""
        asked = self.query_groups <= session
        known = (self.groups <= session).to(self.labels.device)
        on_device = asked.to(self.labels.device)
        labels = self.query_labels[on_device]
        found = {}
        for direction, query, searched in DIRECTIONS:
            counts = count_distances(
                self.queries[query][on_device],
                labels,
                self.codes[searched][known],
                self.labels[known],
            )
            found[direction] = counts, self.query_groups[asked][counts.queries.cpu()]
        return found

    @cached_property
    def now(self) -> dict[str, Counted]:
        """Those after the last session, which several figures need."""
        return self.counted(self.session)

    def subsets(self, groups: Tensor) -> dict[str, Tensor]:
        """Masks over queries of some sessions: all, those of earlier sessions, of the last."""
        old, new = groups < self.session, groups == self.session
        return {"all": groups >= 0, "old": old, "new": new}

    def maps(self) -> dict[str, float]:
        """Return mean average precisions of the queries, against all codes so far.

        Returns:
            `map_{all|old|new|original|original_alone}_{i2t|t2i}`: all queries whose classes have
            arrived; those of earlier sessions; of the last; of the first; of the first, against the
            items of the first alone. One whose queries have no relevant item is left out.
        """
        alone = self.counted(0)
        figures: dict[str, float] = {}
        for direction, (counts, groups) in self.now.items():
            values = average_precision(counts)
            if len(original := average_precision(alone[direction][0])):
                figures[f"map_original_alone_{direction}"] = float(original.mean())
            for name, chosen in {**self.subsets(groups), "original": groups == 0}.items():
                if chosen.any():
                    figures[f"map_{name}_{direction}"] = float(values[chosen].mean())
        return figures

    def health(self) -> dict[str, float]:
        """Return what tells codes that say something from codes that do not, whatever their mAP."""
        figures: dict[str, float] = {}
        known = (self.groups <= self.session).to(self.labels.device)
        for m in MODALITIES:
            figures[f"distinct_codes/{m}"] = float(distinct_codes(self.codes[m][known]))
            figures[f"bit_balance/{m}"] = bit_balance(self.codes[m][known])
        for direction, (counts, _) in self.now.items():
            if len(chance := chance_precision(counts)):
                figures[f"chance/{direction}"] = float(chance.mean())
        return figures

    def curves(self) -> dict[str, tuple[list[float], list[float]]]:
        """Return precision and recall within each Hamming radius, by direction and subset."""
        curves = {}
        for direction, (counts, groups) in self.now.items():
            for name, chosen in self.subsets(groups).items():
                if chosen.any():
                    precision, recall = precision_recall_by_radius(counts.of(chosen))
                    curves[f"{direction}, {name}"] = (precision.tolist(), recall.tolist())
        return curves


def lost(history: Sequence[Figures], figures: Figures) -> dict[str, float]:
    """Return by how much mAP of the original classes has fallen from its best.

    Args:
        history: Of the sessions before; nothing is lost in the first.
        figures: Of `Retrieval.maps`, of the last session.

    Returns:
        By direction `forgetting`, against all items that have arrived, and `drift`, against the
        original ones alone.
    """
    fallen = {}
    for direction, *_ in DIRECTIONS:
        for name, figure in (("forgetting", "original"), ("drift", "original_alone")):
            key = f"map_{figure}_{direction}"
            past = [figures[key] for figures in history if key in figures]
            if past and key in figures:
                fallen[f"{name}_{direction}"] = max(past) - figures[key]
    return fallen


def draw(history: Sequence[Figures], retrieval: Retrieval, folder: Path) -> dict[str, Path]:
    """Draw mAP after each session, and precision and recall after the last one.

    Returns:
        The files `map_by_session.png` and `precision_recall.png` of the folder, by name.
    """
    maps = {
        direction: {
            name: [past.get(f"map_{name}_{direction}", math.nan) for past in history]
            for name in SUBSETS
        }
        for direction, *_ in DIRECTIONS
    }
    return {
        "mAP by session": sessions_plot(maps, folder / "map_by_session.png"),
        "PR curves": precision_recall_plot(retrieval.curves(), folder / "precision_recall.png"),
    }


def saved(
    strategy: str, increments: Sequence[Figures], baseline: float | None, part: str
) -> Ledger:
    """Return what increments saved against retraining on all items at each of them.

    Args:
        strategy: Theirs.
        increments: What each reached, with its `steps` and `seconds`.
        baseline: Steps of retraining; None if that is not known. Its time is known only to a
            benchmark that runs it.
        part: Whose queries asked.
    """
    last = increments[-1]
    names = (f"map_{subset}_{direction}" for direction, *_ in DIRECTIONS for subset in SUBSETS)
    return Ledger(
        method=f"DLCH, {strategy}",
        baseline="retraining on all items at each increment",
        savings=(
            Saving(
                "mini-batch steps of the increments", "steps", _total(increments, "steps"), baseline
            ),
            Saving("time of the increments", "s", _total(increments, "seconds"), None),
        ),
        quality=tuple(Quality(name, last[name], better="higher") for name in names if name in last),
        notes=(f"mAP on the {part} part, after the last increment",),
    )


def _total(sessions: Iterable[Figures], name: str) -> float:
    return sum(figures[name] for figures in sessions)
