"""Tasks beside the runner's own: who does them, and which keys they read.

A task is a function. Its keyword-only arguments are its keys on the command line: their
annotations are the keys' types, their defaults the keys' defaults, their lines under `Args:` what
`--help` says. Of an argument that takes a dataclass, the dataclass's fields are the keys. An
argument that is named like a key of conf/config.yaml (`ckpt_path`, `seed`) gets that key's value.
Everything is read from the source; nothing is imported to know it.

* A task of a module is a method that is listed in the class's `tasks`, with whether it needs a
  checkpoint. It is called with the datamodule, None if none is chosen or `without_data` names it.
* A task without a module is a function in FREE_TASKS. It is called with the settings.
"""

from __future__ import annotations

import ast
import pkgutil
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from runner import signatures
from runner.errors import refusing

# The groups of conf/ that are nodes of the config; one that was not chosen is None.
GROUPS = ("module", "datamodule", "callbacks", "trainer", "logger", "paths")

TOP_LEVEL = "runner.ranges.TopLevel"

# What every module can do; others it lists itself, in `tasks`.
TASKS = ("train", "validate", "test", "export")

# Those of them that read keys beside conf/'s, each with its function.
KEYED = {"export": "runner.export.export"}

# By name, a function: `package.module.function`.
FREE_TASKS = {"report": "reports.report.report", "dashboard": "runner.dashboard.dashboard"}


def own_tasks(module: Mapping[str, Any] | None) -> dict[str, bool]:
    """Return the tasks that a module's node adds, each with whether it needs a checkpoint."""
    return signatures.promise(module, "tasks") or {}


def function_of(task: str, module: Mapping[str, Any] | None) -> str | None:
    """Return the dotted name of the function whose keywords a task reads; None: of no such one."""
    if function := {**KEYED, **FREE_TASKS}.get(task):
        return function
    if module is not None and task in own_tasks(module) and task not in TASKS:
        return f"{module['_target_']}.{task}"
    return None


def given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that settings give to their task."""
    function = function_of(settings["task"], settings["module"])
    found = {}
    for name, parameter in _keywords(function).items():
        if kind := signatures.dataclass_of(parameter):
            made = pkgutil.resolve_name(f"{kind.source.module}:{kind.kinds[0]}")
            keys = signatures.fields(kind).parameters
            found[name] = made(**{key: settings[key] for key in keys if key in settings})
        elif name in settings:
            found[name] = settings[name]
    return found


def _keywords(function: str | None) -> dict[str, signatures.Parameter]:
    return (signatures.keywords(function) if function else None) or {}


def run_free(settings: Mapping[str, Any]) -> dict[str, float]:
    """Do a task of FREE_TASKS; nothing is imported for it but what it imports itself.

    Raises:
        ConfigError: The function refuses what it was given, by a ValueError.
    """
    with refusing():
        do = pkgutil.resolve_name(FREE_TASKS[settings["task"]])
        metrics: dict[str, float] = do(settings, **given(settings))
    return metrics


def with_task_keys(overrides: list[str]) -> list[str]:
    """Let keys of a task be written like those of conf/, where Hydra wants a `++`.

    It is put before every bare word that no file of conf/ names. Those that the task does not read
    are refused by `runner.validate`.
    """
    tasks = [each.partition("=")[2] for each in overrides if _key(each) == "task"]
    if not tasks or tasks[-1] in {*TASKS} - KEYED.keys():
        return overrides
    known = _keys_of_conf()
    return [
        f"++{each}" if re.match(r"\w+=", each) and _key(each) not in known else each
        for each in overrides
    ]


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _keys_of_conf() -> set[str]:
    conf = Path(__file__).resolve().parent.parent / "conf"
    written = re.findall(r"(?m)^(\w+):", (conf / "config.yaml").read_text(encoding="utf-8"))
    return {*written, *(path.name for path in conf.iterdir() if path.is_dir())}


def modules() -> Iterator[tuple[str, dict[str, bool]]]:
    """Yield the dotted name of every class that `module=` chooses and has tasks, and these."""
    root = Path(__file__).resolve().parent.parent
    chosen = {path.stem for path in (root / "conf" / "module").glob("*.yaml")}
    for path in sorted((root / "lightning_modules").glob("*.py")):
        if path.stem not in chosen:
            continue
        for name in re.findall(r"(?m)^class (\w+)", path.read_text(encoding="utf-8")):
            target = f"lightning_modules.{path.stem}.{name}"
            if tasks := signatures.attribute(target, "tasks"):
                yield target, tasks


def readers(key: str) -> list[str]:
    """Return the tasks that read a key."""
    return [task for task, function in dict(_functions()).items() if key in _keys(function)]


def _functions() -> Iterator[tuple[str, str]]:
    yield from {**KEYED, **FREE_TASKS}.items()
    for target, tasks in modules():
        yield from ((task, f"{target}.{task}") for task in tasks if task not in TASKS)


def _keys(function: str | None) -> dict[str, signatures.Parameter]:
    """Return the keys that a function reads beside those of conf/config.yaml."""
    found: dict[str, signatures.Parameter] = {}
    for name, parameter in _keywords(function).items():
        kind = signatures.dataclass_of(parameter)
        found |= signatures.fields(kind).parameters if kind else {name: parameter}
    top = signatures.fields_of(TOP_LEVEL)
    return {name: key for name, key in found.items() if name not in top}


def listed() -> str:
    """Return every task with its keys, for `--help`."""
    lines = []
    for task, function in _functions():
        summary = _docstring(signatures.find(function)).partition("\n")[0]
        lines.append(f"task={task}  {summary}")
        described = _described(function)
        for name, parameter in _keys(function).items():
            kind = signatures.words(parameter.hint)
            default = f", default {parameter.default}" if parameter.default != "None" else ""
            default = ", required" if parameter.required else default
            lines.append(f"  {name}=  {kind}{default}. {described.get(name, '')}")
    return "\n".join(lines)


def _docstring(found: signatures.Definition | None) -> str:
    if found is None or not isinstance(found.node, ast.FunctionDef | ast.ClassDef):
        return ""
    return ast.get_docstring(found.node) or ""


def _described(function: str) -> dict[str, str]:
    """Return what Google docstrings say of each argument, and of the fields of its dataclass."""
    kinds = map(signatures.dataclass_of, _keywords(function).values())
    described: dict[str, str] = {}
    for found in (signatures.find(function), *kinds):
        section = re.search(r"(?ms)^Args:\n(.*?)(?:^\S|\Z)", _docstring(found))
        parts = re.split(r"(?m)^    (\w+): ", section[1] if section else "")
        said = (" ".join(text.split()) for text in parts[2::2])
        described |= zip(parts[1::2], said, strict=True)
    return described


def problems(settings: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with top-level keys that are no key of conf/config.yaml.

    Those that the task reads are bound to its arguments. By those in the module's `shortcuts` an
    experiment sets the module's arguments of these names.
    """
    task, module = settings["task"], settings["module"]
    if task not in (*TASKS, *FREE_TASKS, *own_tasks(module)):
        return []  # what it would read is unknown
    optional = signatures.Parameter(required=False)
    of_conf = dict.fromkeys((*signatures.fields_of(TOP_LEVEL), *GROUPS), optional)
    shortcuts = signatures.promise(module, "shortcuts") or ()  # checked as the module's
    wanted = {**_keys(function_of(task, module)), **dict.fromkeys(shortcuts, optional)}
    further = {name: value for name, value in settings.items() if name not in of_conf}
    for name in further.keys() - wanted.keys():
        if tasks := readers(name):
            return [f"{name}: task={task} does not read it, task={' or task='.join(tasks)} does"]
    return signatures.bind("", further, signatures.Signature({**of_conf, **wanted}))
