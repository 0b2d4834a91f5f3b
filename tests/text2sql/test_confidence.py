"""How likely an answer is right is learned from answers that were judged."""

import math

import numpy as np
import pytest

from text2sql.parsing import Confidence


def test_it_says_of_likelihoods_what_was_found() -> None:
    """Drawn from a known curve, answers give the curve back."""
    draw = np.random.default_rng(0)
    scores = -draw.exponential(2.0, 4000)
    right = draw.random(4000) < 1 / (1 + np.exp(-(2 + 1.5 * scores)))
    found = Confidence.fit(scores.tolist(), right.tolist())
    assert found.level == pytest.approx(2, abs=0.2)
    assert found.slope == pytest.approx(1.5, abs=0.2)
    bold = scores > -1
    assert np.mean([found(s) for s in scores[bold]]) == pytest.approx(right[bold].mean(), abs=0.03)
    assert found(-0.1) > 0.8 > 0.5 > found(-3.0)


@pytest.mark.parametrize("right", [[True] * 9, [False] * 9, [True] * 4 + [False] * 5])
def test_it_is_finite_whatever_was_judged(right: list[bool]) -> None:
    found = Confidence.fit([-float(i) for i in range(9)], right)
    assert math.isfinite(found.level)
    assert found.slope >= 0
    assert 0 < found(-1e9) <= found(0.0) < 1
    assert math.isfinite(Confidence.fit([-1.0], [True])(-1.0))


def test_few_answers_make_no_certainty() -> None:
    """The level where 4 (1 - p) = level, by a penalty of half its square; 400 answers move it."""
    assert Confidence.fit([0.0] * 4, [True] * 4)(0.0) == pytest.approx(0.74, abs=0.01)
    assert Confidence.fit([0.0] * 400, [True] * 400)(0.0) > 0.98


def test_likelihood_that_misleads_counts_for_nothing() -> None:
    found = Confidence.fit([-float(i) for i in range(9)], [False] * 6 + [True] * 3)
    assert found.slope == 0
    assert found(0.0) == found(-99.0) == pytest.approx(0.35, abs=0.02)
