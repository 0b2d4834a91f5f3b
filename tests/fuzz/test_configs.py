"""A config with any values in it is refused in words that name a key, or it can be started."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from runner.errors import ConfigError
from runner.validate import check, experiments
from tests.fuzz import configs, judge
from tests.fuzz.trials import each, examples
from tests.fuzz.warm import inputs, warm_up
from tests.golden.runs import RUNS


@pytest.mark.slow  # what is drawn depends on the modules that other tests have loaded
@pytest.mark.parametrize("experiment", experiments())
def test_a_config_is_checked_in_words(experiment: str) -> None:
    base = configs.base(f"experiment={experiment}")
    count = examples(60)
    refused: set[str] = set()

    def use(given: configs.Changes) -> None:
        refused.add(judge.check(base, given))

    each(configs.changes(configs.keys_of(base)), count, use)
    assert len(refused) > count / 4


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_options_that_do_not_go_together_are_refused() -> None:
    """Every experiment with every option of every other group."""
    for experiment, option in configs.pairs():
        with contextlib.suppress(ConfigError, HydraException, OmegaConfBaseException):
            check(configs.base(f"experiment={experiment}", option))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data of the small runs, which the runs' caches share."""
    folder = tmp_path_factory.mktemp("data")
    inputs(folder)
    warm_up()
    return folder


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("experiment", RUNS)
def test_what_is_not_refused_runs(experiment: str, data: Path) -> None:
    """Of 500 in all: a step or two are trained; nothing ends in a traceback, nothing hangs."""
    base = judge.small(experiment, data)

    def use(given: configs.Changes) -> None:
        ended = judge.run(base, given, data)
        assert ended.code in (0, 1, 2), ended.said
        assert ended.in_words, ended.said

    each(configs.changes(judge.harmless(configs.keys_of(base))), examples(63), use)
