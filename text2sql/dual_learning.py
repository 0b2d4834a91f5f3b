"""Dual learning of rewriter and simplifier on dialogues that nobody annotated (DELTA, 2106.02282).

The rewriter makes a complete question of a turn; the simplifier should get the turn back from it.
The simplifier makes a short question of a complete one; the rewriter should get that back. How well
that goes is a part of the reward, with those of `text2sql.rewards`; the gradient is the policy
gradient (REINFORCE) with the batch's mean, or the turn's, as baseline. Where there are pairs, both
also learn from them [D].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from device import send
from text2sql.decoding import evaluating
from text2sql.dialogue import Example
from text2sql.rewards import Rewards
from text2sql.rewriting import Rewriter, Source, to_rewrite, to_simplify

Baseline = Literal["batch", "turn"]
Score = Callable[[Sequence[Example], Sequence[str]], dict[str, list[float]]]
# Row and drawn text to what the other model reads, and what it should write.
Back = Callable[[int, str], tuple[Source, str]]


@dataclass(frozen=True)
class Direction:
    """How one of the two models learned in a step.

    Args:
        policy: Minus the mean over samples of advantage x log-probability, over the mean length.
        reconstruction: Negative log-likelihood, by the other model and in nats per token, of what
            the samples were made from. Its gradient is the other model's.
        parts: Mean of each part of the reward.
        best: The text of highest reward for each example.
    """

    policy: Tensor
    reconstruction: Tensor
    parts: dict[str, float]
    best: list[str]


@dataclass(frozen=True)
class DualStep:
    """How rewriter (from utterances) and simplifier (from complete questions) learned in a step.

    Args:
        rewriter: The one direction.
        simplifier: The other.
        supervised: Negative log-likelihood of the pairs in both directions, in nats per token; None
            if no example is one.
    """

    rewriter: Direction
    simplifier: Direction
    supervised: Tensor | None

    def loss(self, reconstruction: float = 0.5, supervised: float = 1.0) -> Tensor:
        """The sum of the two policies' losses, and with weights of the other parts."""
        total = self.rewriter.policy + self.simplifier.policy
        total = total + reconstruction * (
            self.rewriter.reconstruction + self.simplifier.reconstruction
        )
        return total if self.supervised is None else total + supervised * self.supervised

    def metrics(self) -> dict[str, float]:
        """Mean parts of both rewards, and the losses, by name."""
        found: dict[str, float] = {}
        for name, direction in (("rewriter", self.rewriter), ("simplifier", self.simplifier)):
            found |= {f"{name}/reward_{part}": mean for part, mean in direction.parts.items()}
            found[f"{name}/reward"] = sum(direction.parts.values())
            found[f"{name}/reconstruction"] = float(direction.reconstruction.detach())
        if self.supervised is not None:
            found["supervised"] = float(self.supervised.detach())
        return found


def dual_step(
    rewriter: Rewriter,
    simplifier: Rewriter,
    examples: Sequence[Example],
    rewards: Rewards,
    samples: int = 4,
    *,
    baseline: Baseline = "batch",
    schema_words: bool = False,
    generator: torch.Generator | None = None,
) -> DualStep:
    """Let both models learn from a batch of turns; the caller takes the gradient.

    The complete question from which the simplifier starts is the gold rewrite, else the rewriter's
    sample of highest reward [D].

    Args:
        rewriter: History and utterance to complete question.
        simplifier: History and complete question to utterance.
        examples: B turns; a rewrite is used where there is one.
        rewards: Of the samples.
        samples: K drawn for each turn and direction, at least 2.
        baseline: What is taken off the rewards, see `advantages`.
        schema_words: Whether both read the names of tables and columns.
        generator: Source of the draws, on the CPU.

    Raises:
        ValueError: There are less than 2 samples, of which none differs from their mean.
    """
    if samples < 2:
        raise ValueError(f"samples={samples}: must be at least 2, whose mean is the baseline")
    learning = _Learning(examples, rewards.weights.reconstruction, samples, baseline, generator)

    def to_utterance(row: int, text: str) -> tuple[Source, str]:
        return to_simplify(examples[row], text, schema_words), examples[row].utterance

    turns = [to_rewrite(example, schema_words) for example in examples]
    there = learning.direction(rewriter, simplifier, turns, rewards.of_rewrites, to_utterance)
    questions = [e.rewrite or best for e, best in zip(examples, there.best, strict=True)]

    def to_question(row: int, text: str) -> tuple[Source, str]:
        return Source(turns[row].context, text, turns[row].hints), questions[row]

    complete = [to_simplify(e, q, schema_words) for e, q in zip(examples, questions, strict=True)]
    back = learning.direction(simplifier, rewriter, complete, rewards.of_simplified, to_question)
    return DualStep(there, back, supervised_loss(rewriter, simplifier, examples, schema_words))


def supervised_loss(
    rewriter: Rewriter,
    simplifier: Rewriter,
    examples: Sequence[Example],
    schema_words: bool = False,
) -> Tensor | None:
    """Negative log-likelihood of both models on the pairs among examples; None without any."""
    pairs = [(example, example.rewrite) for example in examples if example.rewrite]
    if not pairs:
        return None
    rewrites = [rewrite for _, rewrite in pairs]
    there = rewriter.loss([to_rewrite(e, schema_words) for e, _ in pairs], rewrites)
    back = simplifier.loss(
        [to_simplify(e, rewrite, schema_words) for e, rewrite in pairs],
        [e.utterance for e, _ in pairs],
    )
    return there + back


@dataclass(frozen=True)
class _Learning:
    """What both directions of a step share; `weight` is of the reconstruction in the reward."""

    examples: Sequence[Example]
    weight: float
    samples: int
    baseline: Baseline
    generator: torch.Generator | None

    def direction(
        self, model: Rewriter, other: Rewriter, sources: Sequence[Source], score: Score, back: Back
    ) -> Direction:
        """Let a model draw, and both score what it drew."""
        drawn = model.sample(sources, self.samples, self.generator)
        rows = [row for row in range(len(sources)) for _ in range(self.samples)]
        written = [hypothesis for some in drawn for hypothesis in some]
        texts = [hypothesis.text for hypothesis in written]
        parts = score([self.examples[row] for row in rows], texts)
        reconstructed = [back(row, text) for row, text in zip(rows, texts, strict=True)]
        # Dropout off: the policy that is scored is the one that drew.
        with evaluating(model, other):
            found, lengths = other.log_prob(*zip(*reconstructed, strict=True))
            log_probs, own_lengths = model.log_prob(sources, [h.tokens for h in written])
        reached = found / lengths
        if self.weight:
            parts = {**parts, "reconstruction": (self.weight * reached.detach()).tolist()}
        sums = [sum(values) for values in zip(*parts.values(), strict=True)] or [0.0] * len(rows)
        table = torch.tensor(sums).view(len(sources), self.samples)
        advantage = send(advantages(table, self.baseline).flatten(), log_probs.device)
        policy = -(advantage * log_probs).mean() / own_lengths.float().mean()
        best = [drawn[row][place].text for row, place in enumerate(table.argmax(1).tolist())]
        means = {name: sum(values) / len(values) for name, values in parts.items()}
        return Direction(policy, -reached.mean(), means, best)


def advantages(rewards: Tensor, baseline: Baseline = "batch") -> Tensor:
    """Return rewards less a baseline, (B, K).

    Args:
        rewards: Of K samples for each of B turns.
        baseline: `batch`, the mean of all; `turn`, the mean of the turn's other samples
            (leave-one-out, https://openreview.net/forum?id=r1lgTGL5DE), so that turns on which
            everything fails or succeeds teach nothing.
    """
    if baseline == "batch":
        return rewards - rewards.mean()
    count = rewards.shape[1]
    return (rewards - rewards.mean(1, keepdim=True)) * count / (count - 1)
