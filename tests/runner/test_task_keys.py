"""A task says by its arguments which keys it reads, and needs neither `++` nor an experiment."""

from pathlib import Path
from typing import Any

import pytest

from runner import task_keys
from runner.errors import ConfigError
from runner.explain import with_new_keys
from runner.validate import checked
from tests.runner.laboratory import command, run
from tests.runner.tiny import TinyModule


def test_a_task_reads_its_keys_from_a_run_without_an_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, "trainer.max_steps=1")
    (folder,) = (tmp_path / "tiny").iterdir()
    monkeypatch.setenv("FRUGAL_OUTPUTS", str(tmp_path))
    capsys.readouterr()
    assert command("task=greet", f"ckpt_path={folder}", "query=hello", "times=2") == 0
    assert capsys.readouterr().out == "greetings: hello, TinyDataModule\n" * 2
    assert command("task=greet", f"ckpt_path={folder}", "quary=hello") == 2
    assert "quary: no such key. Did you mean query?" in capsys.readouterr().err


def joined(settings: dict[str, Any], *, runs: str, seed: int, most: int = 2) -> dict[str, float]:
    """Join runs.

    Args:
        settings: The config.
        runs: Which.
        seed: That of the config.
        most: How many.
    """
    print(settings["task"], runs, seed, most)
    return {"most": float(most)}


def test_a_task_without_a_module(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(task_keys.FREE_TASKS, "join", f"{__name__}.joined")
    assert command("task=join", "runs=a/*", "seed=3", "most=4") == 0
    assert capsys.readouterr().out == "join a/* 3 4\n"
    with pytest.raises(ConfigError, match=r"runs: missing, and it has no default"):
        checked(["task=join"])
    with pytest.raises(ConfigError, match=r"most='a' must be int"):
        checked(["task=join", "runs=a", "most=a"])
    with pytest.raises(ConfigError, match=r"runs: task=train does not read it, .*task=join does"):
        checked(["experiment=est_gpt2", "+runs=a"])
    assert "task=join  Join runs.\n  runs=  str, required. Which.\n  most=  int, default 2. " in (
        task_keys.listed()
    )


def test_only_bare_words_beside_a_task_become_new_keys() -> None:
    given = ["task=greet", "query=a=b", "seed=2", "module=gpt2", "module.lr=1", "~times", "+x=1"]
    expected = [given[0], "++query=a=b", *given[2:]]
    assert with_new_keys(given) == expected
    assert with_new_keys(given[1:]) == given[1:]
    assert with_new_keys(["task=test", *given[1:]]) == ["task=test", *given[1:]]


def test_help_lists_every_task_of_every_module_with_its_keys(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command("--help") == 0
    shown = capsys.readouterr().out
    for name in ("task=search", "top_k=  int in [1, 1000], default 10. How many", "task=chat"):
        assert name in shown
    assert shown.count("task=generate  ") == 1  # of a class that another one inherits from
    found = task_keys._described(f"{TinyModule.__module__}.TinyModule.greet")
    assert found == {"datamodule": "Any.", "query": "What is said.", "times": "How often."}
    for task, function in task_keys._functions():
        described = task_keys._described(function)
        assert described.keys() >= task_keys._keys(function).keys(), f"{task}: Args lack a key"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["ckpt_path=/nowhere"], r"ckpt_path=/nowhere: no such file or folder"),
        ([], r"task=generate: module=causal_lm does it\. Name a run of it"),
    ],
)
def test_a_task_without_its_model_says_where_it_is_missing(given: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        checked(["task=generate", *given])
