"""The command line as Hydra gets it, and how soon a run is heard of."""

from pathlib import Path

import pytest

from runner.command import _options_first
from tests.runner.laboratory import finish, start


def test_options_may_follow_settings() -> None:
    given = ["a=1", "-m", "b=1,2", "--config-dir", "x=y", "c=3", "--cfg=job", "+d={e: f}"]
    options = ["-m", "--config-dir", "x=y", "--cfg=job"]
    assert _options_first(given) == [*options, "a=1", "b=1,2", "c=3", "+d={e: f}"]
    assert _options_first(["a=1", "--config-dir"]) == ["--config-dir", "a=1"]


@pytest.mark.slow
def test_a_run_says_at_once_that_it_imports(tmp_path: Path) -> None:
    process = start(tmp_path, "experiment=tiny", "trainer.max_steps=1", "seed=1", "-m")
    code, said = finish(process)
    assert code == 0, said
    assert said.startswith("importing torch, Lightning and transformers ...\n")
    assert "job 1/1: experiment=tiny trainer.max_steps=1 seed=1" in said
