"""A session reads what its strategy allows, once an epoch, in an order any step can recompute."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from hashing.sessions import Lengths, SessionClock, SessionPlan, Strategy

GROUPS = np.array([0] * 30 + [1] * 10 + [2] * 5)
LENGTHS = Lengths(epochs=3, rounds=2, round_epochs=2, sample=12, old_share=0.5)


def plan(strategy: Strategy, limit: int | None = None) -> SessionPlan:
    return SessionPlan(GROUPS, strategy, LENGTHS, batch_size=8, seed=4, limit=limit)


@pytest.mark.parametrize(
    ("strategy", "allowed"),
    [
        ("lifelong", [{0}, {0, 1}, {0, 1, 2}]),
        ("retrain", [{0}, {0, 1}, {0, 1, 2}]),
        ("fine_tune", [{0}, {1}, {2}]),
        ("no_update", [{0}]),
    ],
)
def test_sessions_read_what_they_may(strategy: Strategy, allowed: list[set[int]]) -> None:
    p = plan(strategy)
    for session in p.sessions:
        rows = [p.batch(step) for step in range(session.start, session.end)]
        seen = set(GROUPS[np.concatenate(rows)]) if rows else set()
        assert seen == (allowed[session.number] if rows else set())


def test_an_epoch_has_every_item_once_and_equal_steps_give_equal_batches() -> None:
    p = plan("retrain")
    for session in p.sessions:
        for epoch in range(LENGTHS.epochs):
            start = session.start + epoch * session.steps_per_epoch
            rows = np.concatenate([p.batch(start + i) for i in range(session.steps_per_epoch)])
            assert sorted(rows) == list(session.rows)
    again = plan("retrain")
    for step in reversed(range(p.steps)):
        assert (p.batch(step) == again.batch(step)).all()


def test_a_lifelong_increment_reads_its_samples_only() -> None:
    p = plan("lifelong")
    session = p.sessions[1]
    assert session.steps == 2 * 2 * 2
    for step in range(session.start, session.end):
        sample = p.sample(session, step)
        assert len(set(sample)) == len(sample) == 12
        assert (GROUPS[sample] == 0).sum() == 6
        assert set(p.batch(step)) <= set(sample)


@pytest.mark.parametrize(("sample", "share"), [(2, 0.75), (2, 0.0), (10, 0.95), (40, 0.999)])
def test_every_sample_has_new_items(sample: int, share: float) -> None:
    lengths = replace(LENGTHS, sample=sample, old_share=share)
    p = SessionPlan(GROUPS, "lifelong", lengths, 8, 0)
    for session in p.sessions[1:]:
        assert np.isin(p.sample(session, session.start), session.new).any()


@pytest.mark.parametrize("strategy", get_args(Strategy))
def test_sessions_are_cut_short_in_proportion(strategy: Strategy) -> None:
    p = plan(strategy, limit=5)
    assert p.steps <= 5
    assert all(s.steps >= 1 for s in p.sessions if s.kind != "none")
    assert p.sessions[-1].end == p.steps


def test_the_clock_counts_what_a_device_has_yet_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host takes 1 s to ask for a step, for which the device takes 10 s."""
    host = device = 0.0

    def ask(seconds: float) -> None:
        nonlocal host, device
        host, device = host + 1.0, max(host, device) + seconds

    def settle() -> None:
        nonlocal host
        host = max(host, device)

    monkeypatch.setattr("hashing.sessions.perf_counter", lambda: host)
    clock = SessionClock(lambda: 0.0, settle)
    clock.reset()
    for is_last in (False, True):
        clock.mark()
        ask(10.0)
        clock.count("steps", settled=is_last)
    clock.mark()
    ask(4.0)
    clock.count("codes", settled=True)
    ask(3.0)
    clock.pause()
    figures = clock.figures()
    assert (figures["seconds"], figures["step_seconds"], figures["code_seconds"]) == (27, 20, 4)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="session 1 has no items"):
        SessionPlan(np.array([0, 2]), "lifelong", LENGTHS, 8, 0)
    with pytest.raises(ValueError, match="2 steps are too few for 3 sessions"):
        plan("lifelong", limit=2)
