"""A parser in use: questions in, SQL and its likelihood out."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from text2sql.parser import Features, Featuriser, ParserNetwork, batches
from text2sql.schema import Schema
from text2sql.sql import SqlError, to_sql

Question = tuple[str, Schema, Path | None]
"""What is asked, the schema, and the SQLite file whose cells are looked up."""
Scored = tuple[str, float]
"""SQL with its log-likelihood, in nats."""


class Parser:
    """Reads questions and writes SQL.

    Args:
        featuriser: Turns questions into what the network reads.
        network: Scores derivations; it is as it was after each use.
    """

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
        """Return the best SQL of each question, best first.

        Args:
            features: Of the questions; gold derivations are not looked at.
            beam: Derivations kept at every step.
        """
        found: list[list[Scored]] = [[] for _ in features]
        with self._evaluating():
            for group, batch in batches(features, self.device):
                for index, parses in zip(group, self.network.parse(batch, beam), strict=True):
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
        with self._evaluating():
            for group, batch in batches(list(known.values()), self.device):
                likelihood, _ = self.network.log_likelihood(batch)
                for place, value in zip(group, likelihood.tolist(), strict=True):
                    choices = known[places[place]].choices
                    absent = choices.count(None)
                    cost = -value + (absent * missing if absent else 0.0)
                    costs[places[place]] = cost / (len(choices) if per_choice else 1)
        return costs

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        training = self.network.training
        self.network.eval()
        yield
        self.network.train(training)
