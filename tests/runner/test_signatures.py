"""What a class accepts is read from its source as Python itself would say it."""

import importlib
import inspect
import re
import subprocess
import sys
from typing import Any, Literal, TypedDict

import pytest

from runner import signatures
from tests.runner.laboratory import ROOT

TARGETS = (
    "pytorch_lightning.Trainer",
    "pytorch_lightning.callbacks.EarlyStopping",
    "pytorch_lightning.profilers.SimpleProfiler",
    "pytorch_lightning.strategies.DDPStrategy",
    "callbacks.est.EvolvingSubnetworkTraining",
    "callbacks.progress.Progress",
    "lightning_modules.causal_lm.CausalLM",
    "datamodules.language_modeling.LanguageModelingDataModule",
    "tests.runner.test_signatures.Child",
)


class Settings(TypedDict):
    rate: float
    kind: Literal["a", "b"]


class Parent:
    shape = "round"

    def __init__(self, width: int, *, settings: Settings | None = None) -> None: ...


class Child(Parent):
    """Has its parent's arguments."""


@pytest.mark.parametrize("target", TARGETS)
def test_as_inspect_says(target: str) -> None:
    module, _, name = target.rpartition(".")
    told = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    keywords = {
        key: p for key, p in told.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }
    read = signatures.signature(target)
    assert read is not None
    assert list(read.parameters) == list(keywords)
    required = {key for key, p in keywords.items() if p.default is p.empty}
    assert {key for key, p in read.parameters.items() if p.required} == required
    assert read.open == any(p.kind is p.VAR_KEYWORD for p in told.values())


def test_wandb_logger_hands_on_to_init() -> None:
    """What WandbLogger does not know itself is checked against wandb.init."""
    read = signatures.signature("pytorch_lightning.loggers.WandbLogger")
    assert read is not None
    assert not read.open
    assert {"offline", "job_type", "group", "mode"} <= read.parameters.keys()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"width": 3}, None),
        ({"width": 3, "settings": None}, None),
        ({"width": 3, "settings": {"rate": 1, "kind": "a"}}, None),
        ({}, "node.width: missing"),
        ({"width": True}, "node.width=True must be int"),
        ({"width": 3.0}, "node.width=3.0 must be int"),
        ({"width": 3, "hight": 4}, "node.hight: no such key"),
        (
            {"width": 3, "settings": {"rate": "x", "kind": "a"}},
            "node.settings.rate='x' must be float",
        ),
        ({"width": 3, "settings": {"rate": 1, "kind": "c"}}, "kind='c' must be one of a, b"),
        (
            {"width": 3, "settings": {"rate": 1, "kind": "a", "x": 1}},
            "node.settings.x: no such key",
        ),
    ],
)
def test_bind(arguments: dict[str, Any], complaint: str | None) -> None:
    accepted = signatures.signature("tests.runner.test_signatures.Child")
    assert accepted is not None
    problems = signatures.bind("node", arguments, accepted)
    assert len(problems) == (complaint is not None)
    assert complaint is None or complaint in problems[0]


def test_literals_of_bases_and_unknown_names() -> None:
    assert signatures.attribute("tests.runner.test_signatures.Child", "shape") == "round"
    assert signatures.attribute("tests.runner.test_signatures.Child", "colour") is None
    assert signatures.find("pytorch_lightning.Nothing") is None
    assert signatures.find("no_such_package.Thing") is None


def test_nothing_heavy_is_imported() -> None:
    """All experiments are checked without Lightning, torch or transformers."""
    code = (
        "import sys; sys.argv = ['validate', '--all']\n"
        "from runner import validate; code = validate.main()\n"
        "heavy = {'torch', 'pytorch_lightning', 'transformers', 'wandb'} & set(sys.modules)\n"
        "sys.exit(code or f'imported {heavy}' if heavy else code)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    # Of some the user has to give a file, or to install a package.
    assert lines
    assert [line for line in lines if not re.search(r" ok$| ok once there is ", line)] == []
