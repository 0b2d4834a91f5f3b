"""What a class accepts is read from its source as Python itself would say it."""

import importlib
import inspect
import math
import pkgutil
import re
import subprocess
import sys
from typing import Annotated, Any, Literal, TypedDict

import numpy as np
import pytest
import torchmetrics
from annotated_types import Ge, Interval, Len, Lt, MultipleOf

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


Depth = Annotated[int, Ge(1)]


class Deep(TypedDict, total=False):
    depth: Depth


class Bounded:
    def __init__(
        self,
        rate: Annotated[float, Interval(gt=0, le=1)] = 0.5,
        bits: Annotated[int, Ge(8), MultipleOf(8)] = 8,
        pair: Annotated[list[Annotated[float, Interval(ge=0, lt=1)]], Len(2, 2)] | None = None,
        most: Depth | None = None,
        settings: Deep | None = None,
        kind: Literal["a", "b"] | Annotated[float, Lt(0)] = "a",
    ) -> None: ...


class Parent:
    shape = "round"

    def __init__(self, width: int, *, settings: Settings | None = None) -> None: ...


class Child(Parent):
    """Has its parent's arguments."""


class Bare:
    """Takes nothing."""


class Unknown(np.ndarray):
    """Takes what only an import could tell."""


def test_a_class_without_a_constructor_takes_nothing_if_all_of_it_is_known() -> None:
    for name, is_open in (("Bare", False), ("Unknown", True)):
        read = signatures.signature(f"tests.runner.test_signatures.{name}")
        assert read == signatures.Signature({}, is_open)


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


def library_classes() -> dict[str, type]:
    """Every class of Lightning's callbacks, loggers and profilers and of torchmetrics, by path."""
    metrics = [m.name for m in pkgutil.iter_modules(torchmetrics.__path__) if m.ispkg]
    modules = ["callbacks", "loggers", "profilers"]
    found: dict[type, str] = {}
    for path in [
        *(f"pytorch_lightning.{name}" for name in modules),
        "torchmetrics",
        *(f"torchmetrics.{name}" for name in metrics if name not in ("functional", "utilities")),
    ]:
        for name, thing in vars(importlib.import_module(path)).items():
            if inspect.isclass(thing) and thing.__module__.startswith(path.split(".")[0]):
                found.setdefault(thing, f"{path}.{name}")
    return {path: thing for thing, path in found.items()}


def test_all_classes_of_the_libraries_bind() -> None:
    """With their required arguments alone, and with each default written out."""
    classes = library_classes()
    assert len(classes) > 270
    wrong = []
    for target, cls in classes.items():
        told = inspect.signature(cls).parameters.values()
        named = [p for p in told if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        read = signatures.signature(target)
        assert read is not None, target
        required = {name for name, p in read.parameters.items() if p.required}
        if required != {p.name for p in named if p.default is p.empty}:
            wrong.append(f"{target} must be given {required}")
        plain = (bool, int, float, str, list, dict, type(None))
        defaults = {p.name: p.default for p in named if isinstance(p.default, plain)}
        problems = signatures.bind(target, defaults, read)
        missing = {f"{target}.{name}: missing, and it has no default" for name in required}
        wrong += [problem for problem in problems if problem not in missing]
        assert missing <= {*problems}
    assert wrong == []


class Clock:
    def __init__(self, *, zone: str, seconds: float = 1.0) -> None: ...


class Alarm(Clock):
    """Gives one argument of its base's itself."""

    def __init__(self, sound: str = "bell", **kwargs: Any) -> None:
        super().__init__(zone="UTC", **kwargs)


class Chosen:
    def __new__(cls, kind: str, seconds: float = 1.0) -> Any:
        return Alarm(seconds=seconds) if kind == "alarm" else Clock(zone=kind)


def test_what_a_class_gives_its_base_itself_is_no_argument_of_its_own() -> None:
    accepted = signatures.signature("tests.runner.test_signatures.Alarm")
    assert accepted is not None
    assert signatures.bind("alarm", {"seconds": 2.0}, accepted) == []
    assert "no such key" in signatures.bind("alarm", {"zone": "UTC"}, accepted)[0]


def test_a_class_that_chooses_in_new_has_its_arguments() -> None:
    accepted = signatures.signature("tests.runner.test_signatures.Chosen")
    assert accepted is not None
    assert list(accepted.parameters) == ["kind", "seconds"]
    assert signatures.bind("chosen", {}, accepted) == [
        "chosen.kind: missing, and it has no default"
    ]


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


def test_bounds() -> None:
    """Ranges, lengths and alternatives of annotations, wherever the names come from."""
    accepted = signatures.signature("tests.runner.test_signatures.Bounded")
    assert accepted is not None
    fine = {"rate": 1.0, "bits": 16, "pair": [0.1, 0.2], "most": None, "settings": {"depth": 1}}
    assert signatures.bind("n", fine, accepted) == []
    for given, complaint in (
        ({"rate": 0}, "n.rate=0 must be float in (0, 1]"),
        ({"rate": 1.5}, "n.rate=1.5 must be float in (0, 1]"),
        ({"rate": "x"}, "n.rate='x' must be float in (0, 1]"),
        ({"rate": math.nan}, "n.rate=nan must be a finite number"),
        ({"bits": 12}, "n.bits=12 must be int of at least 8, a multiple of 8"),
        ({"bits": 2**70}, f"n.bits={2**70} must be a number of 64 bits"),
        ({"pair": [0.1]}, "n.pair=[0.1] must be list of 2 items or null"),
        ({"pair": [0.1, 1]}, "n.pair[1]=1 must be float in [0, 1)"),
        ({"most": 0}, "n.most=0 must be int of at least 1 or null"),
        ({"most": math.inf}, "n.most=inf must be int of at least 1 or null"),
        ({"settings": {"depth": 0}}, "n.settings.depth=0 must be int of at least 1"),
        ({"kind": "c"}, "n.kind='c' must be one of a, b or float below 0"),
        ({"kind": 0}, "n.kind=0 must be one of a, b or float below 0"),
    ):
        assert signatures.bind("n", given, accepted) == [complaint]


def test_literals_of_bases_and_unknown_names() -> None:
    assert signatures.attribute("tests.runner.test_signatures.Child", "shape") == "round"
    assert signatures.attribute("tests.runner.test_signatures.Child", "colour") is None
    assert signatures.find("pytorch_lightning.Nothing") is None
    assert signatures.find("no_such_package.Thing") is None


def without_heavy_imports(code: str) -> str:
    """Return what a process of its own prints, which must not import what takes seconds."""
    code += (
        "\nimport sys\n"
        "heavy = {'torch', 'pytorch_lightning', 'transformers', 'wandb'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_nothing_heavy_is_imported() -> None:
    """An experiment of each method is checked without Lightning, torch or transformers."""
    without_heavy_imports(
        "from runner.validate import checked\n"
        "for name in ('est_gpt2', 'sat_sft', 'dlch', 'delta'): checked([f'experiment={name}'])"
    )


@pytest.mark.slow
def test_nothing_heavy_is_imported_to_check_all() -> None:
    """What `make validate` does."""
    said = without_heavy_imports(
        "import sys; sys.argv = ['validate', '--all']\n"
        "from runner import validate; assert validate.main() == 0"
    )
    lines = said.splitlines()
    # Of some the user has to give a file, or to install a package.
    assert lines
    assert [line for line in lines if not re.search(r" ok$| ok once there is ", line)] == []
