"""A run that is killed at any moment, and gone on with, is the run that was never killed."""

from __future__ import annotations

import pytest

from tests.resilience.kills import RESUMABLE, Laboratory

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
KILLS = 20


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    return Laboratory(tmp_path_factory.mktemp("laboratory"))


@pytest.mark.parametrize("name", RESUMABLE)
def test_nothing_is_lost_by_a_kill(name: str, laboratory: Laboratory) -> None:
    record = laboratory.try_kills(name, KILLS, seed=1)
    assert record.faults == []
    assert record.killed > KILLS / 2
    assert record.resumed + record.anew == record.killed


def test_a_kill_ends_what_it_has_started(laboratory: Laboratory) -> None:
    """W&B's process, beside files of its own."""
    record = laboratory.try_kills("est_gpt2", 4, 2, "logger=default")
    assert record.faults == []
