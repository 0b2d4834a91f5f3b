"""How often answers of some likelihood are right, learned from answers that were judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

_RIDGE = 1.0  # pseudo-count that keeps the curve finite where likelihood parts right from wrong


@dataclass(frozen=True, slots=True)
class Confidence:
    """A logistic curve from an answer's log-likelihood to how likely it is right (Platt scaling).

    Args:
        level: The log odds of an answer that is certain.
        slope: By how much they fall with each nat; at least 0.
    """

    level: float
    slope: float

    @classmethod
    def fit(cls, scores: Sequence[float], right: Sequence[bool]) -> Self:
        """Fit the curve by penalised maximum likelihood.

        Args:
            scores: Log-likelihoods of answers in nats; at least one.
            right: Whether each is right.
        """
        x = np.column_stack([np.ones(len(scores)), np.asarray(scores, dtype=float)])
        y, weights = np.asarray(right, dtype=float), np.zeros(2)
        for _ in range(50):
            p = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
            gradient = x.T @ (y - p) - _RIDGE * weights
            curvature = (x * (p * (1 - p))[:, None]).T @ x + _RIDGE * np.eye(2)
            weights = weights + np.linalg.solve(curvature, gradient)
        if weights[1] < 0:  # likelier answers are wrong more often: likelihood says nothing
            rate = (y.sum() + _RIDGE / 2) / (len(y) + _RIDGE)
            return cls(float(np.log(rate / (1 - rate))), 0.0)
        return cls(float(weights[0]), float(weights[1]))

    def __call__(self, score: float) -> float:
        """Return how likely an answer of this log-likelihood is right, from 0 to 1."""
        return float(1 / (1 + np.exp(-np.clip(self.level + self.slope * score, -30, 30))))
