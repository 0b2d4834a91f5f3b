"""No key without effect: every argument of every class that conf/ names is read by something."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from runner import signatures, validate
from runner.errors import ConfigError
from runner.explain import composed
from runner.folder import stored_config
from runner.job import targets, with_keys_of_today
from runner.validate import checked
from tests.runner.laboratory import ROOT, refusal

ROOMS = ("callbacks", "datamodules", "hashing", "lightning_modules", "runner", "subnetworks")
PIPELINE = "lightning_modules.text_to_sql.TextToSql"
PARTS = {
    "parser": "lightning_modules.sql_parser.SqlParser",
    "rewriter": "lightning_modules.utterance_rewriter.UtteranceRewriter",
}


def takes_arguments(target: str) -> bool:
    """Whether one of our classes says what it takes; else it is what a library's class takes."""
    definition = signatures.find(target)
    assert definition is not None
    ours = [each for each in definition.ancestry() if each.source.module.split(".")[0] in ROOMS]
    return any(getattr(statement, "name", "") == "__init__" for c in ours for statement in c.body)


def our_targets() -> set[str]:
    """Every class of ours with arguments that an experiment, or a choice of a group, builds."""
    found = set()
    for path in validate.CONF.rglob("*.yaml"):
        content = OmegaConf.to_container(OmegaConf.load(path))
        found |= {str(node["_target_"]) for _, node in targets(content)}
    return {name for name in found if name.split(".")[0] in ROOMS and takes_arguments(name)}


@cache
def read_names(room: str) -> frozenset[str]:
    """Names of attributes and items that code of a room reads."""
    nodes = [
        n for path in (ROOT / room).rglob("*.py") for n in ast.walk(ast.parse(path.read_text()))
    ]
    attributes = {n.attr for n in nodes if isinstance(n, ast.Attribute) and is_read(n)}
    items = [n.slice for n in nodes if isinstance(n, ast.Subscript) and is_read(n)]
    items += [n.args[0] for n in nodes if isinstance(n, ast.Call) and n.args and is_get(n.func)]
    # `for part, key in (("test", "test_files"), ...)` goes on with `settings[key]`.
    items += [n for loop in nodes if isinstance(loop, ast.For) for n in ast.walk(loop.iter)]
    return frozenset(attributes | {n.value for n in items if isinstance(n, ast.Constant)})


def is_read(node: ast.Attribute | ast.Subscript) -> bool:
    return isinstance(node.ctx, ast.Load)


def is_get(function: ast.expr) -> bool:
    return isinstance(function, ast.Attribute) and function.attr == "get"


def pairs(statement: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
    """What an assignment puts where, one by one."""
    if isinstance(statement, ast.Assign):
        for target in statement.targets:
            if isinstance(target, ast.Tuple) and isinstance(statement.value, ast.Tuple):
                yield from zip(target.elts, statement.value.elts, strict=True)
            else:
                yield target, statement.value
    if isinstance(statement, ast.AnnAssign) and statement.value is not None:
        yield statement.target, statement.value


def kept_as(init: ast.FunctionDef) -> dict[str, set[str]]:
    """Attributes that arguments are kept under as they are; "" where one is used otherwise."""
    found: dict[str, set[str]] = {}
    plain = set()
    for statement in ast.walk(init):
        for target, value in pairs(statement):
            if isinstance(target, ast.Attribute) and isinstance(value, ast.Name):
                found.setdefault(value.id, set()).add(target.attr)
                plain.add(value)
    for node in ast.walk(init):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node not in plain:
            found.setdefault(node.id, set()).add("")
    if "locals" in found:  # all are kept, as items
        for argument in init.args.args:
            found.setdefault(argument.arg, set()).add(argument.arg)
    return found


@pytest.mark.parametrize("target", sorted(our_targets()))
def test_every_argument_is_read(target: str) -> None:
    """Used where it is given, or kept under a name that is read somewhere in the rooms."""
    room = target.split(".")[0]
    read = read_names(room) | read_names("lightning_modules")
    definition = signatures.find(target)
    accepted = signatures.signature(target)
    assert definition is not None
    assert accepted is not None
    unread = set(accepted.parameters)
    for ancestor in definition.ancestry():
        for statement in ancestor.body:
            if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
                kept = kept_as(statement)
                unread -= {name for name, places in kept.items() if places & (read | {""})}
    assert unread == set()


def methods_of(target: str) -> dict[str, set[str]]:
    """What each method of a class reads of the instance, by the method's name."""
    definition = signatures.find(target)
    assert definition is not None
    return {
        method.name: {
            node.attr
            for node in ast.walk(method)
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
        }
        for method in definition.body
        if isinstance(method, ast.FunctionDef)
    }


@pytest.mark.parametrize("part", PARTS)
def test_a_part_has_those_keys_that_its_pipeline_reads(part: str) -> None:
    """From what the pipeline calls on, along the part's methods: what is left over is refused."""
    methods = methods_of(PARTS[part])
    used = set().union(*methods_of(PIPELINE).values()) - {"__init__", "configure_optimizers"}
    reached: set[str] = set()
    while new := {name for name in used & methods.keys() if name not in reached}:
        reached |= new
        used |= set().union(*(methods[name] for name in new))
    # Its optimizer is the pipeline's, and so are validation and test.
    assert not reached & {"configure_optimizers", "validation_step"}
    definition = signatures.find(PARTS[part])
    assert definition is not None
    (init,) = (s for s in definition.body if getattr(s, "name", "") == "__init__")
    assert isinstance(init, ast.FunctionDef)
    kept = {name: places - {""} for name, places in kept_as(init).items()}
    unread = {name for name in signature_names(part) if kept.get(name) and not kept[name] & used}
    declared = signatures.attribute(PIPELINE, "unread")
    assert {f"{part}.{name}" for name in unread} <= declared.keys()


def signature_names(part: str) -> set[str]:
    accepted = signatures.signature(PARTS[part])
    assert accepted is not None
    return set(accepted.parameters)


UNREAD = [
    *(f"module.parser.optimizer.{name}" for name in ("lr", "betas", "eps", "weight_decay")),
    *(f"module.rewriter.optimizer.{name}" for name in ("lr", "betas", "eps", "weight_decay")),
    *(f"module.{part}.schedule.{name}" for part in PARTS for name in ("warmup", "final", "decay")),
    "module.parser.pretrained_lr",
    "module.parser.sql_timeout",
    "module.rewriter.scored_rewrites",
]


@pytest.mark.parametrize("key", UNREAD)
def test_a_key_of_a_part_that_the_pipeline_decides_is_refused_with_the_one_that_does(
    key: str,
) -> None:
    here = re.sub(r"\.(parser|rewriter)", "", key).replace("pretrained_lr", "optimizer.lr")
    words = f"{key}: no such key. Nothing reads it here"
    words += "." if "scored" in key else f"; {here} does."
    assert words in refusal("experiment=delta", f"{key}=0.5")


def test_nor_can_it_be_added() -> None:
    for key in ("parser.pretrained_lr", "rewriter.scored_rewrites"):
        with pytest.raises(ConfigError, match=rf"module\.{key}: nothing reads it here"):
            checked(["experiment=delta", f"+module.{key}=1"])


# Hydra merges no list into the mapping that is the ladder otherwise.
STAGES = ["experiment=sat_cpt", "~callbacks.sat.ladder"]
STAGES += ["+callbacks.sat.ladder=[{until: 1.0, heads: 0.5}]"]
CONDITIONS: list[tuple[list[str], str | None]] = [
    (
        ["experiment=delta_parser", "module.pretrained_lr=0.1"],
        "module.pretrained=None; that must be set",
    ),
    (["experiment=delta", "module.parser.frozen_layers=1"], "module.parser.pretrained=None"),
    (["experiment=delta", "module.parser_from=x", "module.parser.width=64"], "parser_from=x"),
    (["experiment=delta", "module.rewriter.dual.samples=2"], "that must be dual"),
    (["experiment=dlch", "module.optimizer.momentum=0.5"], "name=adam; that must be sgd"),
    (["experiment=dlch", "strategy=retrain", "module.lengths.rounds=3"], "that must be lifelong"),
    (["experiment=dlch", "module.lengths.rounds=3"], None),
    (["experiment=dlch", "strategy=no_update", "module.codes=shared"], "that must be lifelong"),
    (["experiment=dlch", "datamodule.path=x.npz"], "that must be features or folder"),
    (["experiment=dlch", "module.lengths={rounds: 3}"], None),
    (["experiment=dlch", "strategy=no_update"], None),
    (["experiment=sat_cpt", "callbacks.sat.probe_sequences=2"], "activation or taylor"),
    (["experiment=sat_cpt_probe", "callbacks.sat.probe_sequences=2"], None),
    (
        [
            "experiment=sat_cpt",
            "callbacks.sat.importance=uniform",
            "callbacks.sat.selection=sample",
        ],
        "importance=uniform; that must be magnitude or",
    ),
    (STAGES, None),
    ([*STAGES, "callbacks.sat.omission.heads=0.3"], "callbacks.sat.ladder.rungs=None"),
    (["experiment=sat_cpt", "callbacks.sat.omission.heads=0.3"], None),
    (["experiment=est_gpt2", "callbacks.est.shared_indices=true"], "that must be random"),
    (["experiment=est_gpt2", "+datamodule.streaming=false"], "source=docstrings; that must be hub"),
    (["experiment=sat_sft", "datamodule.messages_column=m", "datamodule.answer_column=a"], "null"),
    (["experiment=dlch", "callbacks.checkpoint.mode=max"], "monitor=None; that must be set"),
    (["experiment=sat_cpt", "datamodule.tokenizer.sample_chars=9"], "that must be null"),
    (
        ["experiment=delta_sparc", "datamodule.root=.", "+datamodule.dialogues=20"],
        "datamodule.source=files; that must be generated",
    ),
]


@pytest.mark.parametrize(("overrides", "words"), CONDITIONS)
def test_a_key_is_refused_where_the_value_of_another_leaves_it_unread(
    overrides: list[str], words: str | None
) -> None:
    if words is None:
        checked(overrides)
        return
    with pytest.raises(ConfigError, match=r"nothing reads it while .*" + re.escape(words)):
        checked(overrides)


def test_what_a_class_says_of_its_keys_is_about_keys_that_it_has() -> None:
    """A key that was renamed must not be refused, or let through, by its old name."""
    for target in our_targets():
        accepted = signatures.signature(target)
        assert accepted is not None
        conditions = signatures.attribute(target, "read_where") or {}
        names = {*conditions, *(other for other, _ in conditions.values())}
        names |= {*(signatures.attribute(target, "adjustable") or ())}
        assert {name.split(".")[0] for name in names} <= accepted.parameters.keys(), target
    for path in signatures.attribute(PIPELINE, "unread"):
        part, name = path.split(".")
        assert name in signature_names(part)


def test_an_older_runs_config_is_read_with_the_keys_of_today(tmp_path: Path) -> None:
    """Those that were renamed under their names of now, those that nothing reads not at all."""
    node: Any = OmegaConf.to_container(composed(["experiment=delta"]).module, resolve=False)
    older = {**node, "parser": {**node["parser"], "optimizer": {"lr": 1.0}, "seconds": 3.0}}
    older["parser"]["encoder"] = older["parser"].pop("pretrained")
    dual = {**node["rewriter"]["dual"], "language_model": None}
    older["rewriter"] = {**node["rewriter"], "dual": dual}
    older["nats"], older["seconds"] = older.pop("max_nll"), older.pop("sql_timeout")
    assert with_keys_of_today(older) == node
    assert older["parser"]["seconds"] == 3.0
    config = {"name": "delta", "paths": {"run_dir": str(tmp_path)}, "module": older, "trainer": {}}
    OmegaConf.save(OmegaConf.create({**config, "datamodule": None}), tmp_path / "config.yaml")
    assert stored_config(tmp_path)["module"] == node


RENAMED = [
    ("delta_parser", "module.seconds", "module.sql_timeout"),
    ("delta_parser", "module.encoder_lr", "module.pretrained_lr"),
    ("delta", "module.nats", "module.max_nll"),
    ("delta", "module.parser.encoder_dropout", "module.parser.pretrained_dropout"),
]


@pytest.mark.parametrize(("experiment", "old", "new"), RENAMED)
def test_a_key_that_was_renamed_is_refused_with_its_name_of_now(
    experiment: str, old: str, new: str
) -> None:
    said = refusal(f"experiment={experiment}", f"{old}=1")
    assert f"{old}: no such key. It is called {new}." in said
    with pytest.raises(ConfigError, match=rf"{re.escape(old)}: is called {re.escape(new)}"):
        checked([f"experiment={experiment}", f"+{old}=1"])
