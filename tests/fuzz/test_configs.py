"""A config with any values in it is refused in words that name a key, or it can be started."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hydra.errors import HydraException
from hypothesis.strategies import SearchStrategy
from omegaconf.errors import OmegaConfBaseException

from runner.errors import ConfigError
from runner.validate import check, experiments
from tests.fuzz import configs, judge
from tests.fuzz.small import small, write_inputs
from tests.fuzz.trials import each, examples
from tests.fuzz.warm import warm_up


@pytest.mark.slow  # what is drawn depends on the modules that other tests have loaded
@pytest.mark.parametrize("experiment", experiments())
def test_a_config_is_checked_in_words(experiment: str) -> None:
    base = configs.base(f"experiment={experiment}")
    count = examples(60)
    refused: set[str] = set()

    def use(given: configs.Changes) -> None:
        refused.add(judge.check(base, given))

    each(experiment, configs.changes(configs.keys_of(base)), count, use)
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
    warm_up()
    write_inputs(folder)
    return folder


def trials(experiment: str, data: Path) -> SearchStrategy[configs.Changes]:
    """Changes of an experiment's small run, and groups of all others."""
    groups = configs.groups_of(small(name, data) for name in experiments())
    keys = judge.harmless(configs.keys_of(small(experiment, data)))
    return configs.with_groups(configs.changes(keys), groups)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("experiment", experiments())
def test_what_is_not_refused_runs(experiment: str, data: Path) -> None:
    """Of 500 in all: a step or two are trained; nothing ends in a traceback, nothing hangs."""
    base = small(experiment, data)
    whole = judge.run(base, {}, data)
    assert whole.end == "ran", whole.said

    def use(given: configs.Changes) -> None:
        verdict = judge.run(base, given, data)
        assert not verdict.fault, verdict.fault

    each(experiment, trials(experiment, data), examples(15), use)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("experiment", experiments())
def test_a_run_is_gone_on_with_or_another_begun(experiment: str, data: Path) -> None:
    """`resume=auto` with a few other values than the run was begun with."""
    base = small(experiment, data)
    outputs, again = judge.interrupted(experiment, base, data)

    def use(given: configs.Changes) -> None:
        verdict = judge.run(again, given, data, outputs)
        assert not verdict.fault, verdict.fault

    each(experiment, trials(experiment, data), examples(5), use)
