"""What a parser thinks of a rewrite: a part of the reward in dual learning."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from text2sql.dialogue import Example
from text2sql.evaluation import Judge
from text2sql.execute import Database, Limits
from text2sql.parsing import Parser

_ABSENT = 10.0  # nats that a value which a question leaves out takes from its verdict [D]


@dataclass(frozen=True)
class ParserVerdict:
    """Judges rewrites by what a parser makes of them; a `text2sql.rewards.Verify`.

    Of a turn with a gold query: 1 if the SQL of the question matches it or, smooth, the geometric
    mean of the probabilities of the choices that make it, a value that the question leaves out at
    exp(-10). Of a turn without: 1 if the SQL finds anything in the database.

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
        scored = [pair for pair in pairs if self.smooth and pair[0].query is not None]
        asked = [((question, e.about, e.database), e.gold) for e, question in scored]
        costs = self.reader.costs(asked, per_choice=True, missing=_ABSENT)
        found = {pair: math.exp(-cost) for pair, cost in zip(scored, costs, strict=True)}
        left = [pair for pair in pairs if pair not in found]
        written = self.reader.best([(q, e.about, e.database) for e, q in left], self.beam)
        for (example, question), (sql, _) in zip(left, written, strict=True):
            right = 0.0
            if example.query is not None:
                right = float(self.judge(example, sql).exact)
            elif example.database is not None:
                result = Database(example.database, self.limits).execute(sql)
                right = float(result.status == "ok" and bool(result.rows))
            found[example, question] = right
        return [found[pair] for pair in pairs]
