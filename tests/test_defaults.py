"""What a class takes by default is what conf/ gives it."""

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from lightning_modules.causal_lm import CausalLM
from lightning_modules.lifelong_hashing import LifelongHashing
from lightning_modules.sql_parser import SqlParser
from lightning_modules.text_to_sql import TextToSql
from lightning_modules.utterance_rewriter import UtteranceRewriter
from runner import signatures
from runner.job import targets
from subnetworks.ladder import ladder

CONF = Path(__file__).resolve().parents[1] / "conf"
GROUPS = ("callbacks", "datamodule", "module")
FILES = sorted(path for group in GROUPS for path in (CONF / group).glob("*.yaml"))
TINY = {"model_type": "gpt2", "n_layer": 1, "n_head": 1, "n_embd": 8}


def content(name: str) -> Any:
    return OmegaConf.to_container(OmegaConf.load(CONF / name), resolve=False)


@pytest.mark.parametrize("name", [path.relative_to(CONF).as_posix() for path in FILES])
def test_values_are_the_same(name: str) -> None:
    """None stands for a default that conf/ chooses, an interpolation for another key's."""
    differing = []
    for key, node in targets(content(name)):
        accepted = signatures.signature(node["_target_"])
        assert accepted is not None
        for argument, value in node.items():
            if argument not in accepted.parameters or "${" in str(value):
                continue
            written = accepted.parameters[argument].default
            if not written or written == "None":
                continue
            try:
                default = ast.literal_eval(written)
            except ValueError:  # a name or a call: not written as a value
                continue
            if value != (list(default) if isinstance(default, tuple) else default):
                differing.append(f"{key}.{argument}: {value} in conf/, {default} in Python")
    assert differing == []


def test_groups_of_values_are_the_same() -> None:
    for module, name in (
        (CausalLM(architecture=TINY), "causal_lm"),
        (SqlParser(architecture=TINY), "sql_parser"),
        (TextToSql(), "text_to_sql"),
        (UtteranceRewriter(network={"architecture": TINY}), "utterance_rewriter"),
    ):
        written = content(f"module/{name}.yaml")
        assert module.optimizer_settings == written["optimizer"], name
        assert module.schedule_settings == written["schedule"], name


def test_groups_of_one_class_are_the_same() -> None:
    hashing, written = LifelongHashing(), content("module/lifelong_hashing.yaml")
    assert hashing.optimizer_settings == written["optimizer"]
    assert vars(hashing.weights) == written["weights"]
    assert vars(hashing.lengths) == written["lengths"]
    rewriter = UtteranceRewriter(network={"architecture": TINY})
    written = content("module/_utterance_rewriter.yaml")
    assert {**rewriter.dual_settings, **vars(rewriter.reward_weights)} == written["dual"]
    network = {**rewriter.network_settings, "architecture": written["network"]["architecture"]}
    assert network == written["network"]
    keywords = inspect.signature(ladder).parameters.values()
    defaults = {p.name: p.default for p in keywords if p.kind is p.KEYWORD_ONLY}
    assert defaults == content("callbacks/sat.yaml")["sat"]["ladder"]
