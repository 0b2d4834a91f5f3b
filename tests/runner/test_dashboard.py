"""Workspaces show runs of their method, by names under which something is logged."""

import ast
import json
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from runner import signatures, task_keys
from runner.dashboard import dashboards, experiments_of
from tests.runner.laboratory import ROOT, command


def test_workspaces_are_shown_without_an_account(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("wandb_workspaces", reason="the extra dashboard is not installed")
    assert command("task=dashboard", "dry=true", "logger.wandb.project=ours") == 0
    shown = json.loads(capsys.readouterr().out)
    assert [each["displayName"] for each in shown] == ["EST", "SAT", "DLCH", "DELTA"]
    assert {each["project"] for each in shown} == {"ours"}
    est = shown[0]["spec"]["section"]
    lines = [
        panel["config"]
        for section in est["panelBankConfig"]["sections"]
        for panel in section["panels"]
        if panel["viewType"] == "Run History Line Plot"
    ]
    over = [line["xAxis"] for line in lines if line["metrics"] == ["val/loss"]]
    assert over == ["step", "tokens", "FLOPs"]
    (runs,) = est["runSets"]
    assert "est_gpt2_dense" in json.dumps(runs["filters"])
    assert "sat_cpt" not in json.dumps(runs["filters"])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], "logger.wandb.entity: name the account"),
        (["logger=csv"], "leave logger=csv out"),
    ],
)
def test_a_project_that_nobody_named_gets_none(
    overrides: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("task=dashboard", *overrides) == 2
    assert words in capsys.readouterr().err


def test_every_experiment_is_in_one_workspace() -> None:
    found = [name for node in dashboards() for name in experiments_of(node)]
    experiments = {path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml")}
    assert sorted(found) == sorted(experiments - {"base_llama"})


def test_what_workspaces_show_is_logged() -> None:
    """By what modules say that they validate, and by the rows of ledgers."""
    classes = [
        *(target for target, _ in task_keys.modules()),
        "lightning_modules.sql_parser.SqlParser",
        "lightning_modules.utterance_rewriter.UtteranceRewriter",
        "callbacks.progress.Progress",
        "callbacks.samples.GenerationSamples",
    ]
    promises = [signatures.attribute(each, "validated") or {} for each in classes]
    logged = [name for each in promises for names in each.values() for name in names]
    rows = {re.sub(r"[^a-z0-9]+", "_", each.lower()).strip("_") for each in _strings()}
    for name in {name for node in dashboards() for name in _metrics(node)}:
        prefix, _, leaf = name.rpartition("/")
        if prefix == "session" or name == "seconds":
            continue
        known = any(fnmatch(name, pattern) for pattern in logged)
        assert known or leaf.removesuffix("_saved") in rows, name


def _metrics(node: dict[str, Any]) -> list[str]:
    found = list(node["columns"])
    for section in node["sections"]:
        found += [name for line in section.get("lines", ()) for name in line["y"]]
        found += [name for each in section.get("bars", ()) for name in each]
    return found


def _strings() -> set[str]:
    files = [path for room in ("callbacks", "hashing") for path in Path(ROOT, room).glob("*.py")]
    nodes = (node for path in files for node in ast.walk(ast.parse(path.read_text())))
    return {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}
