"""A parser in use: questions in; SQL, how likely it is, and how likely that is right out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from text2sql.decoding import evaluating
from text2sql.dialogue import Example
from text2sql.evaluation import Judge
from text2sql.execute import Database, Limits
from text2sql.parser import ParserNetwork
from text2sql.parser_features import Features, Featuriser, batches
from text2sql.parser_search import search
from text2sql.schema import Schema
from text2sql.sql import SqlError, to_sql

_RIDGE = 1.0  # pseudo-count that keeps the curve finite where likelihood parts right from wrong
_ABSENT = 10.0  # nats that a value which a question leaves out takes from its verdict [D]

Question = tuple[str, Schema, Path | None]
"""What is asked, the schema, and the SQLite file whose cells are looked up."""
Scored = tuple[str, float]
"""SQL with its log-likelihood, in nats."""


class Parser:
    """Reads questions and writes SQL; the network's mode is afterwards what it was."""

    def __init__(self, featuriser: Featuriser, network: ParserNetwork) -> None:
        self.featuriser, self.network = featuriser, network

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.network.start.device

    def loss(self, features: Sequence[Features]) -> tuple[Tensor, Tensor]:
        """Mean negative log-likelihood of gold derivations, in nats per choice, and the choices."""
        total, count = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        for _, batch in batches(features, self.device):
            likelihood, choices = self.network.log_likelihood(batch)
            total, count = total - likelihood.sum(), count + choices.sum()
        return total / count.clamp_min(1), count

    def best(self, questions: Sequence[Question], beam: int) -> list[Scored]:
        """Return the likeliest SQL of each question; see `ranked`."""
        features = [self.featuriser(*question) for question in questions]
        return [ranked[0] for ranked in self.ranked(features, beam)]

    @torch.no_grad()
    def ranked(self, features: Sequence[Features], beam: int) -> list[list[Scored]]:
        """Return the best SQL of each question, best first; gold derivations are not looked at."""
        found: list[list[Scored]] = [[] for _ in features]
        with evaluating(self.network):
            for group, batch in batches(features, self.device):
                for index, parses in zip(group, search(self.network, batch, beam), strict=True):
                    schema = features[index].schema
                    found[index] = [(to_sql(parse.query, schema), parse.score) for parse in parses]
        return found

    @torch.no_grad()
    def costs(
        self,
        asked: Sequence[tuple[Question, str]],
        per_choice: bool = False,
        missing: float = math.inf,
    ) -> list[float]:
        """Return how unlikely gold queries are: negative log-likelihoods in nats.

        Args:
            asked: Questions, each with its gold SQL.
            per_choice: Divide each by the number of the grammar's choices that make the query.
            missing: What a value of the query that is not on offer costs.

        Returns:
            Infinity where the grammar does not derive the query.
        """
        costs = [math.inf] * len(asked)
        known: dict[int, Features] = {}
        for index, (question, query) in enumerate(asked):
            try:
                known[index] = self.featuriser(*question, query)
            except SqlError:
                continue
        places = list(known)
        with evaluating(self.network):
            for group, batch in batches(list(known.values()), self.device):
                likelihood, _ = self.network.log_likelihood(batch)
                for place, value in zip(group, likelihood.tolist(), strict=True):
                    choices = known[places[place]].choices
                    absent = choices.count(None)
                    cost = -value + (absent * missing if absent else 0.0)
                    costs[places[place]] = cost / (len(choices) if per_choice else 1)
        return costs


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


@dataclass(frozen=True)
class ParserVerdict:
    """Judges rewrites by what a parser makes of them; a `text2sql.rewards.Verify`.

    Of a turn with a gold query: 1 if the SQL of the question matches it or, smooth, the geometric
    mean of the probabilities of the choices that make it, a value that the question leaves out at
    exp(-10). Of a turn without: 1 if the SQL finds anything in the database. Of a turn about no
    database: 0.

    Args:
        reader: The parser.
        judge: Compares SQL with gold queries.
        limits: Of an execution.
        beam: Derivations kept at every step.
        smooth: Of turns with a gold query.
    """

    reader: Parser
    judge: Judge
    limits: Limits
    beam: int
    smooth: bool

    def __call__(self, batch: Sequence[Example], questions: Sequence[str]) -> list[float]:
        """Return verdicts in [0, 1], of a question for each turn."""
        pairs = list(zip(batch, questions, strict=True))
        scored = [pair for pair in pairs if self.smooth and pair[0].is_judged]
        asked = [((question, e.about, e.database), e.gold) for e, question in scored]
        costs = self.reader.costs(asked, per_choice=True, missing=_ABSENT)
        found = {pair: math.exp(-cost) for pair, cost in zip(scored, costs, strict=True)}
        left = [pair for pair in pairs if pair not in found and pair[0].schema is not None]
        written = self.reader.best([(q, e.about, e.database) for e, q in left], self.beam)
        for (example, question), (sql, _) in zip(left, written, strict=True):
            right = 0.0
            if example.query is not None:
                right = float(self.judge(example, sql).exact)
            elif example.database is not None:
                result = Database(example.database, self.limits).execute(sql)
                right = float(result.status == "ok" and bool(result.rows))
            found[example, question] = right
        return [found.get(pair, 0.0) for pair in pairs]
