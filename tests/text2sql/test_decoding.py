"""Beam search finds what brute force finds; samples are distributed as the model says."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from text2sql.decoding import Advance, beam_search, draw_samples

BEGIN, END, WORDS, LONGEST = 0, 1, 4, 3


class Toy:
    """A model whose next word depends on the whole prefix, and on the source, by chance."""

    def __init__(self, seed: int, sources: int, copies: int) -> None:
        self.seed = seed
        self.prefixes: list[tuple[int, ...]] = [
            (source,) for source in range(sources) for _ in range(copies)
        ]

    def log_probs(self, prefix: tuple[int, ...]) -> Tensor:
        generator = torch.Generator().manual_seed(hash((self.seed, prefix)) % 2**31)
        return torch.randn(WORDS, generator=generator).mul(2).log_softmax(0)

    def advance(self, tokens: Tensor, rows: Tensor) -> Tensor:
        known = [self.prefixes[row] for row in rows.tolist()]
        self.prefixes = [(*p, t) for p, t in zip(known, tokens.tolist(), strict=True)]
        return torch.stack([self.log_probs(prefix) for prefix in self.prefixes])

    def brute_force(self, source: int) -> list[tuple[float, tuple[int, ...]]]:
        """Every sequence that ends, or is cut off, with its score, best first."""
        found: dict[tuple[int, ...], float] = {}
        for words in product(range(WORDS), repeat=LONGEST):
            stop = words.index(END) + 1 if END in words else LONGEST
            sequence, total = words[:stop], 0.0
            for place, word in enumerate(sequence):
                total += float(self.log_probs((source, BEGIN, *sequence[:place]))[word])
            found[sequence] = total / len(sequence)
        return sorted(((score, words) for words, score in found.items()), reverse=True)


def until_end(row: list[int]) -> tuple[int, ...]:
    return tuple(row[: row.index(END) + 1] if END in row else row)


@settings(deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_beam_that_drops_nothing_is_exact(seed: int) -> None:
    sources, beam = 2, WORDS**LONGEST
    toy = Toy(seed, sources, beam)
    tokens, scores = beam_search(
        toy.advance, sources, beam, begin=BEGIN, end=END, max_tokens=LONGEST
    )
    for source in range(sources):
        expected = toy.brute_force(source)
        finite = scores[source].isfinite()
        assert int(finite.sum()) == len(expected)  # each sequence once
        found = [until_end(row) for row in tokens[source].tolist()]
        assert scores[source, : len(expected)].tolist() == pytest.approx(
            [score for score, _ in expected], abs=1e-5
        )
        assert found[0] == expected[0][1]
        assert len(set(found[: len(expected)])) == len(expected)


@settings(deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_narrow_beam_is_greedy_and_scores_what_it_returns(seed: int) -> None:
    toy = Toy(seed, 1, 1)
    tokens, scores = beam_search(toy.advance, 1, 1, begin=BEGIN, end=END, max_tokens=LONGEST)
    prefix: tuple[int, ...] = (0, BEGIN)
    total = 0.0
    for word in until_end(tokens[0, 0].tolist()):
        assert word == int(toy.log_probs(prefix).argmax())
        total += float(toy.log_probs(prefix).max())
        prefix = (*prefix, word)
    assert scores.item() == pytest.approx(total / (len(prefix) - 2), abs=1e-5)


def sampled(advance: Advance, rows: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return draw_samples(
        advance, rows, begin=BEGIN, end=END, max_tokens=LONGEST, generator=generator
    )


def test_samples_are_distributed_as_the_model_says_and_carry_its_log_probability() -> None:
    rows = 4000
    toy = Toy(3, 1, rows)
    tokens, scores = sampled(toy.advance, rows, seed=1)
    expected = {words: score * len(words) for score, words in toy.brute_force(0)}
    found = [until_end(row) for row in tokens.tolist()]
    assert scores.tolist() == pytest.approx([expected[words] for words in found], abs=1e-5)
    for words, score in expected.items():
        chance = float(torch.tensor(score).exp())
        deviation = (chance * (1 - chance) / rows) ** 0.5
        assert abs(found.count(words) / rows - chance) < 5 * deviation + 1e-9


def test_samples_are_drawn_from_the_given_generator_only() -> None:
    state = torch.get_rng_state()
    first, second, other = (sampled(Toy(3, 1, 50).advance, 50, seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
